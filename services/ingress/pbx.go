package ingress

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"callrelay/callback"
	"callrelay/callback/pbxtable"
	callbackv1 "callrelay/gen/callrelay/callback/v1"
	ingressv1 "callrelay/gen/callrelay/ingress/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
	"callrelay/platform/errkind"
)

// pbxPath begins the URL of every extension's events; the token follows.
const pbxPath = "/ext-event/"

// pbxConfig is what can be set of the events of cloud PBXs.
type pbxConfig struct {
	Integrations string  `env:"PBX_INTEGRATIONS" desc:"File with the table of cloud PBX integrations (docs/pbx.md), the same for ingress, router and upstream; empty means none."`
	TokenRate    float64 `env:"PBX_TOKEN_RATE" envDefault:"50" desc:"PBX events per second that one token may send; beyond it 429."`
	TokenBurst   int     `env:"PBX_TOKEN_BURST" envDefault:"200" desc:"PBX events that one token may send at once."`
}

func (c *pbxConfig) problems() (problems []error) {
	if c.TokenRate <= 0 {
		problems = append(problems, fmt.Errorf("PBX_TOKEN_RATE: must be positive, not %v", c.TokenRate))
	}
	if c.TokenBurst < 1 {
		problems = append(problems, fmt.Errorf("PBX_TOKEN_BURST: must be at least 1, not %d", c.TokenBurst))
	}
	if _, err := c.table(); err != nil {
		problems = append(problems, err)
	}
	return problems
}

func (c *pbxConfig) table() (*pbxtable.Table, error) {
	table := &pbxtable.Table{}
	if c.Integrations != "" {
		data, err := os.ReadFile(c.Integrations)
		if err == nil {
			table, err = pbxtable.Parse(data)
		}
		if err != nil {
			return nil, fmt.Errorf("PBX_INTEGRATIONS: %w", err)
		}
	}
	return table, nil
}

// pbxServer takes the events of cloud PBXs, from the gateway and from gRPC clients alike. Tokens end here.
type pbxServer struct {
	ingressv1.UnimplementedPbxServiceServer
	callbacks *ameyoServer // takes callbacks to router, whatever they are
	table     *pbxtable.Table
	shares    map[pbxtable.Row]*rate.Limiter
}

func newPbxServer(cfg pbxConfig, callbacks *ameyoServer) (*pbxServer, error) {
	table, err := cfg.table()
	if err != nil {
		return nil, err
	}
	s := &pbxServer{callbacks: callbacks, table: table, shares: map[pbxtable.Row]*rate.Limiter{}}
	for _, n := range table.Integrations {
		for _, x := range n.Extensions {
			row := pbxtable.Row{Integration: n.ID, ExtensionID: x.ID, Name: x.Name, Type: x.Type}
			s.shares[row] = rate.NewLimiter(rate.Limit(cfg.TokenRate), cfg.TokenBurst)
		}
	}
	return s, nil
}

type rowKey struct{}

// Event takes one event. Whatever it holds is acknowledged once it is committed: the PBX could not do better the next time.
func (s *pbxServer) Event(ctx context.Context, m *callbackv1.PbxEvent) (*ingressv1.PbxAck, error) {
	row, ok := ctx.Value(rowKey{}).(*pbxtable.Row)
	if !ok { // a gRPC client
		if row = s.table.Find(m.GetToken()); row == nil {
			return nil, errkind.NotFound("not found")
		}
		if !s.shares[*row].Allow() {
			return nil, limited()
		}
	}
	m.Token = ""
	ack, err := s.callbacks.accept(ctx, m, callback.PbxCallKey(row.Integration, m.GetCallId()), nil, &routerv1.RouteItem{Callback: &routerv1.RouteItem_PbxEvent{
		PbxEvent: &routerv1.PbxEvent{Event: m, Integration: row.Integration, ExtensionId: row.ExtensionID, Extension: row.Name, Type: row.Type}}})
	if err != nil {
		return nil, err
	}
	return &ingressv1.PbxAck{Success: true, RequestId: ack.GetRequestId()}, nil
}

func limited() *errkind.Error {
	return errkind.Limited(time.Second, "too many events of this extension")
}

// pbxHandler serves /ext-event/TOKEN. The token is taken off the path before anything can name it: what follows sees the
// extension that it stands for.
func (s *Service) pbxHandler(gateway http.Handler) http.Handler {
	checked := s.traced(s.pbxChecked(gateway))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		row := s.pbx.table.Find(strings.TrimPrefix(r.URL.Path, pbxPath))
		r.URL.Path, r.URL.RawPath = pbxPath+"unknown", ""
		if row != nil {
			r.URL.Path = pbxPath + row.Integration + "-" + row.Type + "-" + row.ExtensionID
		}
		r.RequestURI = r.URL.RequestURI()
		if row == nil {
			s.strangers.noticed(r.Context(), "pbx", s.peer(r)) // never shut out: its other extensions come from the same address
			http.NotFound(w, r)
			return
		}
		checked.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), rowKey{}, row)))
	})
}

// pbxChecked gives an event its request id, refuses what cannot be read, and makes one query of what the URL and the form
// say, with the names that the gateway knows.
func (s *Service) pbxChecked(gateway http.Handler) http.Handler {
	return s.identified(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		req, row := ctx.Value(requestKey{}).(*request), ctx.Value(rowKey{}).(*pbxtable.Row)
		if !s.pbx.shares[*row].Allow() {
			// Not recorded: a flood must not fill the journal. The limit is far beyond what an extension can do.
			e := limited()
			s.ameyo.metrics.answered(ctx, fromPbx, refused, req.received)
			writeError(w, &refusal{status: http.StatusTooManyRequests, message: e.Message, retryAfter: e.RetryAfter}, req.id)
			return
		}
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodPost:
			w.Header().Set("Allow", "GET, POST")
			s.refuse(ctx, w, r, &refusal{status: http.StatusMethodNotAllowed, message: "use GET or POST"})
			return
		case len(req.query) > maxQuery:
			req.query = req.query[:maxQuery]
			s.refuse(ctx, w, r, &refusal{status: http.StatusRequestURITooLong, message: "the query is longer than 16384 bytes"})
			return
		}
		form, err := io.ReadAll(io.LimitReader(r.Body, maxQuery+1))
		switch {
		case err != nil:
			s.refuse(ctx, w, r, &refusal{status: http.StatusBadRequest, message: "the form was cut off"})
			return
		case len(form) > maxQuery:
			req.query = form[:maxQuery]
			s.refuse(ctx, w, r, &refusal{status: http.StatusRequestEntityTooLarge, message: "the form is longer than 16384 bytes"})
			return
		case len(form) > 0 && len(req.query) > 0:
			req.query = append(append(req.query, '&'), form...)
		case len(form) > 0:
			req.query = form
		}
		u := *r.URL
		u.RawQuery = callback.PbxParams(callback.ParseQuery(string(req.query))).Encode()
		r = r.WithContext(ctx)
		r.URL, r.Method, r.Body = &u, http.MethodGet, http.NoBody
		gateway.ServeHTTP(w, r)
	}))
}
