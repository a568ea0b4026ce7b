package ingress

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/status"

	"callrelay/callback"
	"callrelay/gen"
	errorsv1 "callrelay/gen/callrelay/errors/v1"
	ingressv1 "callrelay/gen/callrelay/ingress/v1"
	"callrelay/platform/errkind"
	"callrelay/platform/telemetry"
)

// maxQuery is the longest query that is read, in bytes (spec/ameyo-topsii.md, HTTP in).
const maxQuery = 16 << 10

// callbackPaths are the routes of proto/http.yaml. Only they are checked for their source, recorded and traced.
var callbackPaths = map[string]bool{
	"/call_start.php": true, "/v1/ameyo/call-start": true,
	"/index.php": true, "/v1/ameyo/call-end": true,
}

// newHandler is everything ingress serves over HTTP.
func newHandler(s *Service) (http.Handler, error) {
	gateway, pbxGateway := s.newGateway(), s.newGateway()
	if err := ingressv1.RegisterAmeyoServiceHandlerServer(context.Background(), gateway, s.ameyo); err != nil {
		return nil, err
	}
	if err := ingressv1.RegisterPbxServiceHandlerServer(context.Background(), pbxGateway, s.pbx); err != nil {
		return nil, err
	}
	kommo, err := s.kommoHandler()
	if err != nil {
		return nil, err
	}
	operator, err := operatorHandler(s)
	if err != nil {
		return nil, err
	}
	callbacks, events, rest := s.traced(s.checked(gateway)), s.pbxHandler(pbxGateway), s.restHandler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.stopping.Load() {
			w.Header().Set("Connection", "close")
		}
		ours, allowed := s.door(r)
		var bounded http.Handler // takes callbacks: only so many at once
		switch path := r.URL.Path; {
		case ours && !allowed:
			s.strangers.turnedAway(r.Context(), "address", s.peer(r))
			writeError(w, &refusal{status: http.StatusForbidden, message: "callbacks are not accepted from this address"}, "")
			return
		case ours:
			bounded = callbacks
		case strings.HasPrefix(path, pbxPath):
			bounded = events
		case strings.HasPrefix(path, kommoPath):
			bounded = kommo
		case path == cardsWatchPath:
			s.cards.serveWatch(w, r)
			return
		case path == cardsTokenPath:
			s.cards.serveToken(w, r, operator)
			return
		case operatorPath(path):
			operator.ServeHTTP(w, r)
			return
		default:
			rest.ServeHTTP(w, r)
			return
		}
		if !s.load.enter() {
			s.callbacks.metrics.turnedAway(r.Context(), sourceAt(r.URL.Path))
			writeError(w, refusalOf(tooMany()), "")
			return
		}
		defer s.load.leave()
		bounded.ServeHTTP(w, r)
	}), nil
}

// newGateway is a gateway that refuses in our words. PBX events have one of their own, behind their tokens.
func (s *Service) newGateway() *runtime.ServeMux {
	return runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, ackWriter{&runtime.JSONPb{}}),
		runtime.WithErrorHandler(s.gatewayError),
		runtime.WithRoutingErrorHandler(func(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, code int) {
			s.refuse(ctx, w, &refusal{status: code, message: http.StatusText(code)})
		}),
		runtime.WithDisablePathLengthFallback(),
	)
}

// restHandler serves what is neither a callback nor behind a token.
func (s *Service) restHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeText(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.Ready(); err != nil {
			writeText(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		writeText(w, http.StatusOK, "ready")
	})
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(gen.OpenAPI)
	})
	return mux
}

func writeText(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text + "\n"))
}

// door says whether the request is a callback and whether its source may send one. It takes the secret off the path before
// anything can name it.
func (s *Service) door(r *http.Request) (ours, allowed bool) {
	if secret := s.cfg.PathSecret.Reveal(); secret != "" {
		first, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		if subtle.ConstantTimeCompare([]byte(first), []byte(secret)) != 1 {
			if callbackBehind(r.URL.Path) {
				s.strangers.turnedAway(r.Context(), "wrong", s.peer(r))
			}
			return false, false // callbacks without the secret look like any unknown path
		}
		r.URL.Path, r.URL.RawPath = "/"+rest, ""
		r.RequestURI = r.URL.RequestURI()
	}
	if !callbackPaths[r.URL.Path] {
		return false, false
	}
	if len(s.cfg.AllowedNetworks) == 0 {
		return true, true
	}
	addr, err := netip.ParseAddr(s.peer(r))
	return true, err == nil && s.cfg.AllowedNetworks.Contains(addr.Unmap())
}

// callbackBehind says whether a path is that of a callback, with or without a first part where the secret belongs.
func callbackBehind(path string) bool {
	_, behind, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return callbackPaths[path] || callbackPaths["/"+behind]
}

// peer is the address that sent the request: the connection's, or the last one in X-Forwarded-For that is not a trusted
// proxy's.
func (s *Service) peer(r *http.Request) string {
	conn, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	addr := conn.Addr().Unmap()
	if len(s.cfg.TrustedProxies) == 0 {
		return addr.String()
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && s.cfg.TrustedProxies.Contains(addr); i-- {
		next, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		addr = next.Unmap()
	}
	return addr.String()
}

// identified gives a callback its request id, and answers for its panics.
func (s *Service) identified(next func(ctx context.Context, w http.ResponseWriter, r *http.Request, req *request)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req := &request{id: newRequestID(), received: time.Now(), query: []byte(r.URL.RawQuery), peer: valid(s.peer(r)), method: r.Method, path: r.URL.Path}
		header := w.Header()
		header.Set("X-Request-Id", req.id)
		if s.tel.Tracing() {
			if req.traceparent = telemetry.Inject(r.Context()); req.traceparent != "" {
				header.Set("Traceparent", req.traceparent)
			}
		}
		ctx := context.WithValue(r.Context(), requestKey{}, req)
		req.ctx = ctx
		defer func() {
			if p := recover(); p != nil {
				s.tel.Log().ErrorContext(ctx, "panic while serving a callback", "request_id", req.id, "panic", p, "stack", string(debug.Stack()))
				writeError(w, &refusal{status: http.StatusInternalServerError, message: "internal error"}, req.id)
			}
		}()
		next(ctx, w, r, req)
	})
}

// checked refuses callbacks that cannot be read, and reads their query as PHP did.
func (s *Service) checked(gateway http.Handler) http.Handler {
	return s.identified(func(ctx context.Context, w http.ResponseWriter, r *http.Request, req *request) {
		switch {
		case r.Method != http.MethodGet:
			w.Header().Set("Allow", http.MethodGet)
			s.refuse(ctx, w, &refusal{status: http.StatusMethodNotAllowed, message: "use GET"})
			return
		case len(req.query) > maxQuery:
			req.query = req.query[:maxQuery]
			s.refuse(ctx, w, &refusal{status: http.StatusRequestURITooLong, message: "the query is longer than 16384 bytes"})
			return
		}
		req.params = callback.ParseQuery(r.URL.RawQuery)
		serveGateway(ctx, gateway, w, r.URL)
	})
}

// noForm is shared: the gateway only reads it.
var noForm = url.Values{}

// serveGateway calls the gateway with a bare request: what it needs beside the path is in the context. So it parses no query and
// makes no metadata of headers, which nobody would read. Its context never ends, which spares it one of its own that would watch
// for that; requestOf gives the handler the one that ends when the sender leaves.
func serveGateway(ctx context.Context, gateway http.Handler, w http.ResponseWriter, u *url.URL) {
	r := http.Request{Method: http.MethodGet, URL: u, Form: noForm, PostForm: noForm, Body: http.NoBody}
	gateway.ServeHTTP(w, r.WithContext(context.WithoutCancel(ctx)))
}

// refusal is an answer that acknowledges nothing.
type refusal struct {
	status         int
	field, message string
	retryAfter     time.Duration
}

// refusalOf is the answer for an error of any kind.
func refusalOf(err error) *refusal {
	e := errkind.From(err)
	return &refusal{status: errkind.HTTPStatus(e.Kind), field: e.Field, message: e.Message, retryAfter: e.RetryAfter}
}

// refuse answers a callback that no rule will see, and records it.
func (s *Service) refuse(ctx context.Context, w http.ResponseWriter, e *refusal) {
	req, _ := ctx.Value(requestKey{}).(*request)
	if req == nil {
		writeError(w, e, "")
		return
	}
	s.refused.record(ctx, req, sourceAt(req.path), e)
	writeError(w, e, req.id)
}

// gatewayError answers what the gateway or our own service refused. Our own refusals are recorded already.
func (s *Service) gatewayError(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, err error) {
	if st, ok := status.FromError(err); ok && len(st.Details()) == 0 && errkind.From(err).Kind == errorsv1.Kind_KIND_INVALID {
		s.refuse(ctx, w, &refusal{status: http.StatusBadRequest, message: st.Message()})
		return
	}
	id := ""
	if req, ok := ctx.Value(requestKey{}).(*request); ok {
		id = req.id
	}
	writeError(w, refusalOf(err), id)
}

// writeError writes the one shape of every refusal.
func writeError(w http.ResponseWriter, e *refusal, requestID string) {
	if e.status == http.StatusServiceUnavailable || e.retryAfter > 0 {
		seconds := max(1, int(e.retryAfter.Round(time.Second)/time.Second))
		w.Header().Set("Retry-After", strconv.Itoa(seconds))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.status)
	b, _ := json.Marshal(struct {
		Success   bool   `json:"success"`
		Message   string `json:"message"`
		Field     string `json:"field,omitempty"`
		RequestID string `json:"requestId,omitempty"`
	}{false, strings.ToValidUTF8(e.message, string(utf8.RuneError)), e.field, requestID})
	_, _ = w.Write(b)
}

// ackWriter writes acknowledgements byte for byte the same in every build (protojson varies its white space), and leaves
// everything else to protojson.
type ackWriter struct{ *runtime.JSONPb }

// Marshal writes one answer. The ids and messages of an Ack are ours and need no escaping.
func (a ackWriter) Marshal(v any) ([]byte, error) {
	if event, ok := v.(*ingressv1.PbxAck); ok {
		return []byte(`{"success":true,"requestId":"` + event.GetRequestId() + `"}`), nil
	}
	ack, ok := v.(*ingressv1.Ack)
	if !ok {
		return a.JSONPb.Marshal(v)
	}
	b := make([]byte, 0, 112)
	b = append(b, `{"success":true,"message":"`...)
	b = append(b, ack.GetMessage()...)
	if ack.GetDuplicate() {
		b = append(b, `","duplicate":true,"requestId":"`...)
	} else {
		b = append(b, `","requestId":"`...)
	}
	b = append(b, ack.GetRequestId()...)
	return append(b, `"}`...), nil
}
