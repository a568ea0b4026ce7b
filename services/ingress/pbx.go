package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"callrelay/callback"
	callbackv1 "callrelay/gen/callrelay/callback/v1"
	ingressv1 "callrelay/gen/callrelay/ingress/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
)

// pbxPath begins the URL of every extension's events; the token follows.
const pbxPath = "/ext-event/"

// pbxConfig is what can be set of the events of cloud PBXs.
type pbxConfig struct {
	TokenRate  float64 `env:"PBX_TOKEN_RATE" envDefault:"50" desc:"PBX events per second that one token may send; beyond it they wait in the spool."`
	TokenBurst int     `env:"PBX_TOKEN_BURST" envDefault:"200" desc:"PBX events that one token may send at once."`
	TokenSpool int     `env:"PBX_TOKEN_SPOOL" envDefault:"1000" desc:"PBX events of one token that may wait in the spool for its share; beyond it 429."`
}

func (c *pbxConfig) problems() (problems []error) {
	if c.TokenRate <= 0 {
		problems = append(problems, fmt.Errorf("PBX_TOKEN_RATE: must be positive, not %v", c.TokenRate))
	}
	if c.TokenBurst < 1 {
		problems = append(problems, fmt.Errorf("PBX_TOKEN_BURST: must be at least 1, not %d", c.TokenBurst))
	}
	if c.TokenSpool < 0 {
		problems = append(problems, fmt.Errorf("PBX_TOKEN_SPOOL: must be at least 0, not %d", c.TokenSpool))
	}
	return problems
}

// pbxServer takes the events of cloud PBXs, from the gateway and from gRPC clients alike. Tokens end here.
type pbxServer struct {
	ingressv1.UnimplementedPbxServiceServer
	callbacks    *callbacks
	integrations *integrations
}

// Event takes one event. Whatever it holds is acknowledged once it is committed: the PBX could not do better the next time.
func (s *pbxServer) Event(ctx context.Context, m *callbackv1.PbxEvent) (*ingressv1.PbxAck, error) {
	event, ok := ctx.Value(eventKey{}).(*pbxEvent)
	if !ok { // a gRPC client
		var err error
		if event, err = s.integrations.event(m.GetToken()); err != nil {
			return nil, err
		}
		ctx = context.WithValue(ctx, eventKey{}, event)
	}
	m.Token = ""
	row := event.row
	ctx, r := requestOf(ctx, m)
	call := callback.PbxCallKey(row.Integration, m.GetCallId())
	if m.GetCallId() == "" { // it waits for nothing, and nothing behind it
		call = callback.RequestKey(r.id)
	}
	ack, err := s.callbacks.accept(ctx, r, call, nil, &routerv1.RouteItem{Callback: &routerv1.RouteItem_PbxEvent{
		PbxEvent: &routerv1.PbxEvent{Event: m, Integration: row.Integration, ExtensionId: row.ExtensionID, Extension: row.Name, Type: row.Type}}})
	if err != nil {
		return nil, err
	}
	return &ingressv1.PbxAck{Success: true, RequestId: ack.GetRequestId()}, nil
}

// pbxHandler serves /ext-event/TOKEN. The token is taken off the path before anything can name it: what follows sees the
// extension that it stands for.
func (s *Service) pbxHandler(gateway http.Handler) http.Handler {
	checked := s.traced(s.pbxChecked(gateway))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		event, err := s.integrations.event(strings.TrimPrefix(r.URL.Path, pbxPath))
		r.URL.Path, r.URL.RawPath = pbxPath+"unknown", ""
		if err == nil {
			r.URL.Path = pbxPath + event.row.Integration + "-" + event.row.Type + "-" + event.row.ExtensionID
		}
		r.RequestURI = r.URL.RequestURI()
		switch {
		case err == nil:
			checked.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), eventKey{}, event)))
		case errors.Is(err, errUnknownYet):
			writeError(w, refusalOf(err), "")
		default:
			s.strangers.noticed(r.Context(), "pbx", s.peer(r)) // never shut out: its other extensions come from the same address
			http.NotFound(w, r)
		}
	})
}

// pbxChecked gives an event its request id, refuses what cannot be read, and makes one query of what the URL and the form
// say.
func (s *Service) pbxChecked(gateway http.Handler) http.Handler {
	return s.identified(func(ctx context.Context, w http.ResponseWriter, r *http.Request, req *request) {
		event := ctx.Value(eventKey{}).(*pbxEvent)
		refuse := func(e *refusal) {
			if event.over { // not recorded: a flood must not fill the journal
				s.callbacks.metrics.answered(ctx, fromPbx, refused, req.received)
				writeError(w, refusalOf(errOver), req.id)
				return
			}
			s.refuse(ctx, w, e)
		}
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodPost:
			w.Header().Set("Allow", "GET, POST")
			refuse(&refusal{status: http.StatusMethodNotAllowed, message: "use GET or POST"})
			return
		case len(req.query) > maxQuery:
			req.query = req.query[:maxQuery]
			refuse(&refusal{status: http.StatusRequestURITooLong, message: "the query is longer than 16384 bytes"})
			return
		}
		form, err := io.ReadAll(io.LimitReader(r.Body, maxQuery+1))
		switch {
		case err != nil:
			refuse(&refusal{status: http.StatusBadRequest, message: "the form was cut off"})
			return
		case len(form) > maxQuery:
			req.query = form[:maxQuery]
			refuse(&refusal{status: http.StatusRequestEntityTooLarge, message: "the form is longer than 16384 bytes"})
			return
		case len(form) > 0 && len(req.query) > 0:
			req.query = append(append(req.query, '&'), form...)
		case len(form) > 0:
			req.query = form
		}
		req.params = callback.PbxParams(callback.ParseQuery(string(req.query)))
		serveGateway(ctx, gateway, w, r.URL)
	})
}
