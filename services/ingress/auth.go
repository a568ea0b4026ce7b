package ingress

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"maps"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"

	"callrelay/platform/rpc"
)

// operatorRoute is a route of the operator's API, the least role that may use it, and the names of its query, as in the
// contract, separated by spaces.
type operatorRoute struct{ method, pattern, role, query string }

// operatorRoutes are all of them; what is not here is not served. Patterns are those of proto/http.yaml. docs/routes.md has
// the same table, and a test holds both against the contract.
var operatorRoutes = []operatorRoute{
	{"POST", "/v1/calls:search", rpc.RoleViewer, ""},
	{"GET", "/v1/calls/{call=**}", rpc.RoleViewer, ""},
	{"GET", "/v1/calls/{call=**}:diagnose", rpc.RoleViewer, ""},
	{"GET", "/v1/requests/{request_id}", rpc.RoleViewer, ""},
	{"POST", "/v1/requests/{request_id}:resend", rpc.RoleOperator, ""},
	{"POST", "/v1/callbacks:explain", rpc.RoleViewer, ""},
	{"GET", "/v1/deliveries", rpc.RoleViewer, "state destination page_size page_token"},
	{"POST", "/v1/deliveries/{delivery=**}:retry", rpc.RoleOperator, ""},
	{"POST", "/v1/deliveries/{delivery=**}:discard", rpc.RoleOperator, ""},
	{"POST", "/v1/deliveries:retry", rpc.RoleOperator, ""},
	{"POST", "/v1/deliveries:discard", rpc.RoleOperator, ""},
	{"GET", "/v1/destinations", rpc.RoleViewer, ""},
	{"POST", "/v1/destinations/{destination=**}:hold", rpc.RoleOperator, ""},
	{"POST", "/v1/destinations/{destination=**}:release", rpc.RoleOperator, ""},
	{"GET", "/v1/journal:watch", rpc.RoleViewer, "filter after"},
	{"GET", "/v1/accounting", rpc.RoleViewer, "since check"},
	{"GET", "/v1/alarms", rpc.RoleViewer, ""},
}

// maxBody bounds the body of an operator's request, in bytes.
const maxBody = 2 << 20

var variable = regexp.MustCompile(`\{[^}=]*(=[^}]*)?\}`)

// matcher makes the pattern a regular expression over paths.
func (r operatorRoute) matcher() *regexp.Regexp {
	var b strings.Builder
	b.WriteString("^")
	rest := r.pattern
	for {
		at := variable.FindStringSubmatchIndex(rest)
		if at == nil {
			break
		}
		b.WriteString(regexp.QuoteMeta(rest[:at[0]]))
		if at[2] >= 0 { // =**
			b.WriteString("[^/]+(/[^/]+)*")
		} else {
			b.WriteString("[^/]+")
		}
		rest = rest[at[1]:]
	}
	return regexp.MustCompile(b.String() + regexp.QuoteMeta(rest) + "$")
}

// Tokens are who may use the operator's API: NAME:ROLE:TOKEN, separated by commas or line breaks. ROLE is viewer, operator,
// or operator+phones, which also sees phone numbers. TOKEN is at least 24 characters, or sha256= and the hash of one in hex.
type Tokens []token

type token struct {
	caller rpc.Caller
	// hash of the token. What it is of is long and random, so that no slow hash is needed.
	hash [sha256.Size]byte
}

// Format keeps hashes out of logs.
func (t Tokens) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "%d tokens", len(t)) }

var (
	tokenName = regexp.MustCompile(`^[A-Za-z0-9_.@-]{1,64}$`)
	tokenText = regexp.MustCompile(`^[!-~]{24,512}$`)
)

// UnmarshalText reads the list. An error never shows a token.
func (t *Tokens) UnmarshalText(text []byte) error {
	*t = nil
	seen, hashes := map[string]bool{}, map[[sha256.Size]byte]bool{}
	entries := strings.FieldsFunc(string(text), func(r rune) bool { return r == ',' || r == '\n' || r == '\r' })
	for i, entry := range entries {
		entry = strings.TrimSpace(entry)
		if entry == "" || strings.HasPrefix(entry, "#") {
			continue
		}
		wrong := func(what string) error {
			return fmt.Errorf("entry %d: %s; want NAME:ROLE:TOKEN with ROLE viewer, operator or operator+phones", i+1, what)
		}
		parts := strings.SplitN(entry, ":", 3)
		if len(parts) != 3 {
			return wrong("it has no three parts")
		}
		one := token{caller: rpc.Caller{Actor: parts[0], Masked: true}}
		switch parts[1] {
		case rpc.RoleViewer, rpc.RoleOperator:
			one.caller.Role = parts[1]
		case rpc.RoleOperator + "+phones":
			one.caller.Role, one.caller.Masked = rpc.RoleOperator, false
		default:
			return wrong("there is no such role")
		}
		if !tokenName.MatchString(parts[0]) || seen[parts[0]] {
			return wrong("the name is used twice, or is not 1 to 64 letters, digits, _ . @ -")
		}
		if digits, hashed := strings.CutPrefix(parts[2], "sha256="); hashed {
			hash, err := hex.DecodeString(digits)
			if err != nil || len(hash) != sha256.Size {
				return wrong("sha256= is not followed by 64 hex digits")
			}
			one.hash = [sha256.Size]byte(hash)
		} else if tokenText.MatchString(parts[2]) {
			one.hash = sha256.Sum256([]byte(parts[2]))
		} else {
			return wrong("the token is not 24 to 512 visible ASCII characters")
		}
		if hashes[one.hash] {
			return wrong("the token is used twice")
		}
		seen[parts[0]], hashes[one.hash] = true, true
		*t = append(*t, one)
	}
	return nil
}

// find compares with every token, so that the time says nothing.
func (t Tokens) find(presented string) (rpc.Caller, bool) {
	hash := sha256.Sum256([]byte(presented))
	found := -1
	for i := range t {
		if subtle.ConstantTimeCompare(hash[:], t[i].hash[:]) == 1 {
			found = i
		}
	}
	if found < 0 {
		return rpc.Caller{}, false
	}
	return t[found].caller, true
}

// Limits of wrong tokens per source.
const (
	maxFailures  = 10
	failureTime  = time.Minute
	maxOffenders = 10_000
)

// offenders counts wrong tokens by source.
type offenders struct {
	mu sync.Mutex
	m  map[netip.Prefix]*offender
}

type offender struct {
	failures int
	since    time.Time
}

// source is what is counted as one: an IPv4 address, or the network that one IPv6 customer has.
func source(addr string) netip.Prefix {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return netip.Prefix{}
	}
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.WithZone("").Prefix(bits)
	return p
}

// wait is how long a source has to wait before a token of its is looked at; 0 = it need not.
func (o *offenders) wait(from netip.Prefix) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	one := o.m[from]
	if one == nil || one.failures < maxFailures {
		return 0
	}
	return max(0, failureTime-time.Since(one.since))
}

func (o *offenders) failed(from netip.Prefix) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.m == nil {
		o.m = map[netip.Prefix]*offender{}
	}
	one := o.m[from]
	if one == nil || time.Since(one.since) >= failureTime {
		if len(o.m) >= maxOffenders {
			for p, old := range o.m {
				if time.Since(old.since) >= failureTime {
					delete(o.m, p)
				}
			}
			if len(o.m) >= maxOffenders {
				clear(o.m) // guesses from so many places are not stopped by counting places
			}
		}
		one = &offender{since: time.Now()}
		o.m[from] = one
	}
	one.failures++
}

type callerKey struct{}

// operatorAPI lets requests of the operator's API through to next, each with its caller in the context.
type operatorAPI struct {
	s         *Service
	routes    []compiledRoute
	offenders offenders
	next      http.Handler
}

type compiledRoute struct {
	operatorRoute
	path *regexp.Regexp
}

func newOperatorAPI(s *Service, next http.Handler) *operatorAPI {
	a := &operatorAPI{s: s, next: next}
	for _, r := range operatorRoutes {
		a.routes = append(a.routes, compiledRoute{r, r.matcher()})
	}
	return a
}

func (a *operatorAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	role, query, allow := a.role(r)
	if role == "" && len(allow) == 0 {
		writeError(w, &refusal{status: http.StatusNotFound, message: http.StatusText(http.StatusNotFound)}, "")
		return
	}
	caller, e := a.caller(r)
	unknown := unknownQuery(r, query)
	switch {
	case e != nil:
		if e.status == http.StatusUnauthorized {
			header.Set("WWW-Authenticate", `Bearer realm="callrelay"`)
		}
	case role == "":
		header.Set("Allow", strings.Join(allow, ", "))
		e = &refusal{status: http.StatusMethodNotAllowed, message: "use " + strings.Join(allow, " or ")}
	case unknown != nil:
		e = unknown
	case role == rpc.RoleOperator && caller.Role != rpc.RoleOperator:
		e = &refusal{status: http.StatusForbidden, message: "this needs a token with the role operator"}
	case r.ContentLength > maxBody:
		e = &refusal{status: http.StatusRequestEntityTooLarge, message: fmt.Sprintf("the body is longer than %d bytes", maxBody)}
	default:
		e = fromPage(r)
	}
	if e != nil {
		writeError(w, e, "")
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	a.next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, caller)))
}

// role is the highest role that any route with this method and path asks for, query the names that any of them knows; without
// one, allow are the methods that the path has.
func (a *operatorAPI) role(r *http.Request) (role string, query, allow []string) {
	for _, route := range a.routes {
		if !route.path.MatchString(r.URL.Path) {
			continue
		}
		if route.method != r.Method {
			allow = append(allow, route.method)
			continue
		}
		if query = append(query, strings.Fields(route.query)...); role != rpc.RoleOperator {
			role = route.role
		}
	}
	return role, query, allow
}

// unknownQuery refuses what nobody would look at: who misspells a filter must not take the answer for a filtered one. A name is
// that of the contract, or its form in JSON.
func unknownQuery(r *http.Request, known []string) *refusal {
	given, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return &refusal{status: http.StatusBadRequest, message: "the query cannot be read: " + err.Error()}
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if slices.ContainsFunc(known, func(k string) bool { return name == k || name == jsonName(k) }) {
			continue
		}
		message := fmt.Sprintf("there is no parameter %q here; ", name)
		if len(known) == 0 {
			return &refusal{status: http.StatusBadRequest, field: name, message: message + "this route takes none in its query"}
		}
		return &refusal{status: http.StatusBadRequest, field: name, message: message + "there are: " + strings.Join(known, ", ")}
	}
	return nil
}

// jsonName is a field's name in JSON: page_size is pageSize.
func jsonName(field string) string {
	first, rest, more := strings.Cut(field, "_")
	if !more || rest == "" {
		return field
	}
	return first + strings.ToUpper(rest[:1]) + jsonName(rest)[1:]
}

// caller says who asks.
func (a *operatorAPI) caller(r *http.Request) (rpc.Caller, *refusal) {
	if len(a.s.cfg.OperatorTokens) == 0 {
		return local(r)
	}
	from := source(a.s.peer(r))
	if wait := a.offenders.wait(from); wait > 0 {
		a.s.strangers.count(r.Context(), "operator", "shut_out")
		return rpc.Caller{}, &refusal{status: http.StatusTooManyRequests, message: "too many wrong tokens from this address", retryAfter: wait}
	}
	presented := bearerOf(r)
	if presented == "" {
		return rpc.Caller{}, &refusal{status: http.StatusUnauthorized, message: "a token is required: Authorization: Bearer TOKEN"}
	}
	caller, ok := a.s.cfg.OperatorTokens.find(presented)
	if !ok {
		a.offenders.failed(from)
		a.s.strangers.noticed(r.Context(), "operator", a.s.peer(r))
		return rpc.Caller{}, &refusal{status: http.StatusUnauthorized, message: "the token is not known"}
	}
	return caller, nil
}

// bearerOf is the bearer token of a request; empty: there is none.
func bearerOf(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// forwarding are headers of requests that came through a proxy. Behind one, everybody is on loopback.
var forwarding = []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip", "Forwarded", "Via"}

// local admits people on this machine while there are no tokens: the connection itself is from loopback, no proxy was on the
// way, and the request names this machine (a page whose name was made to resolve to 127.0.0.1 names itself).
func local(r *http.Request) (rpc.Caller, *refusal) {
	no := func(why string) (rpc.Caller, *refusal) {
		return rpc.Caller{}, &refusal{status: http.StatusForbidden, message: why + ": set OPERATOR_TOKENS to use the operator API from elsewhere"}
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !peer.Addr().Unmap().IsLoopback() {
		return no("without tokens only this machine may ask")
	}
	for _, name := range forwarding {
		if r.Header.Get(name) != "" {
			return no("without tokens nobody may ask through a proxy")
		}
	}
	if !loopbackHost(r.Host) {
		return no("without tokens the relay must be addressed as localhost")
	}
	return rpc.Caller{Actor: "local", Role: rpc.RoleOperator, Masked: true}, nil
}

func loopbackHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	addr, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && addr.Unmap().IsLoopback()
}

// fromPage refuses what a foreign page in a browser could send: nothing is shared with other origins, and a body is JSON,
// which a page cannot send without being asked for permission first.
func fromPage(r *http.Request) *refusal {
	if origin := r.Header.Get("Origin"); origin != "" {
		if u, err := url.Parse(origin); err != nil || u.Host != r.Host {
			return &refusal{status: http.StatusForbidden, message: "requests from pages of other origins are not accepted"}
		}
	}
	if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
		return &refusal{status: http.StatusForbidden, message: "requests from pages of other sites are not accepted"}
	}
	if r.Method == http.MethodPost {
		if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
			return &refusal{status: http.StatusUnsupportedMediaType, message: "Content-Type must be application/json"}
		}
	}
	return nil
}

// newOperatorGateway serves the operator's contract. No header of a request becomes gRPC metadata, and no metadata of an
// answer a header: only the caller that operatorAPI found travels.
func newOperatorGateway() *runtime.ServeMux {
	none := func(string) (string, bool) { return "", false }
	return runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.JSONPb{MarshalOptions: protojson.MarshalOptions{EmitUnpopulated: true}}),
		runtime.WithIncomingHeaderMatcher(none),
		runtime.WithOutgoingHeaderMatcher(none),
		runtime.WithOutgoingTrailerMatcher(none),
		runtime.WithMetadata(func(ctx context.Context, _ *http.Request) metadata.MD { return callerMetadata(ctx) }),
		runtime.WithErrorHandler(func(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, err error) {
			writeOperatorError(w, err)
		}),
		runtime.WithRoutingErrorHandler(func(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, code int) {
			writeError(w, &refusal{status: code, message: http.StatusText(code)}, "")
		}),
		runtime.WithDisablePathLengthFallback(),
	)
}
