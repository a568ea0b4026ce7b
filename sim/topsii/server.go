// Package topsii is a simulator of the TopS.II (FastHelp Web API) call API, for
// tests, load runs and demonstrations.
//
// It owns the documented behaviour of the three endpoints (what is accepted,
// what is refused and in which words), faults on demand, and a bounded view of
// what it was told. It is stricter than a CRM needs to be: a payload that
// differs from the documented shape is refused, so that it is noticed.
//
// It does not own anything of the relay: it imports none of its packages, so
// that relay and simulator cannot share a mistake. It does not know customers,
// staff or sessions; those refusals are played with [Fault].
package topsii

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// The endpoints, as they are named in the path (without ".json"), in [Held], [Fault] and [Stats].
const (
	CallStart = "createCallStart"
	CallEnd   = "createCallEnd"
	NotAnswer = "createNotAnswer"
)

// Unknown is the name under which [Stats] counts requests to any other path.
const Unknown = "unknown"

// DefaultPathPrefix is the path of the API on a real FastHelp 5 server.
const DefaultPathPrefix = "/fasthelp5-server/service/callmanage/predictiveCallApiService/"

// KeyHeader carries the API key.
const KeyHeader = "X-FastHelp-API-Key"

const (
	keyLength      = 32
	maxBody        = 64 << 10
	defaultMaxHeld = 100_000
	jsonType       = "application/json;charset=UTF-8"
)

// canonicalKeyHeader is the key of the header map; looking it up directly saves its conversion per request.
var canonicalKeyHeader = http.CanonicalHeaderKey(KeyHeader)

// Config of a Server. The zero value accepts any 32-character key on the default path.
type Config struct {
	// APIKey is the only key accepted. Empty: any key of 32 characters.
	APIKey string
	// PathPrefix of the three endpoints. Empty: DefaultPathPrefix.
	PathPrefix string
	// MaxHeld is how many payloads are held; the oldest make room, which Stats.Evicted counts. 0: 100,000.
	MaxHeld int
	// KeepPayloads holds payload and headers too. Without it a held payload is its
	// endpoint, call id, time and a hash, which is enough for counts and duplicates.
	KeepPayloads bool
	// StrictOrder refuses an end or a not-answer of a call whose start is not held.
	StrictOrder bool
	// OnEffect is called for each payload that has its effect, before anything is answered. It must be quick: the
	// simulator's lock is held.
	OnEffect func(endpoint string, callID int64, at time.Time)
}

// Server is the simulated TopS.II. It is safe for concurrent use; its lock is never held while it reads, writes or waits.
type Server struct {
	cfg     Config
	control http.Handler

	mu      sync.Mutex
	store   store
	faults  map[faultKey]*activeFault
	counts  counters
	changed chan struct{} // closed at the next change; nil while nobody waits
}

var _ http.Handler = (*Server)(nil)

// New returns a Server that holds nothing and has no fault.
func New(cfg Config) *Server {
	if cfg.PathPrefix == "" {
		cfg.PathPrefix = DefaultPathPrefix
	}
	if !strings.HasSuffix(cfg.PathPrefix, "/") {
		cfg.PathPrefix += "/"
	}
	if cfg.MaxHeld <= 0 {
		cfg.MaxHeld = defaultMaxHeld
	}
	s := &Server{cfg: cfg, store: newStore(cfg.MaxHeld), faults: map[faultKey]*activeFault{}, counts: newCounters()}
	s.control = s.controlHandler()
	return s
}

// ServeHTTP answers the API below the path prefix and the simulator's own control API below /sim/.
//
// A request is checked first (path, method, key, payload), then meets a fault, if
// one is set: a wrong request is refused as documented whatever faults are set.
// The effect, if there is one, happens on arrival, before any waiting.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/sim/") {
		s.control.ServeHTTP(w, r)
		return
	}
	s.enter(r.Header.Get("Traceparent") != "")
	defer s.leave()

	endpoint, call, refused := s.check(r)
	if refused != nil {
		s.count(endpoint, refused.outcome())
		refused.write(w)
		return
	}
	var kept *keptRequest
	if s.cfg.KeepPayloads {
		kept = &keptRequest{payload: call.raw, header: keptHeader(r.Header)}
	}
	fault, answer := s.arrive(endpoint, call, kept, r.URL.Path)
	fault.play(w, r, answer)
}

// check says what a request is, or why the documented API refuses it.
func (s *Server) check(r *http.Request) (endpoint string, c call, refused *reply) {
	endpoint, ok := s.endpoint(r.URL.Path)
	if !ok {
		return Unknown, call{}, &reply{status: http.StatusNotFound, contentType: "text/html", body: htmlPage("404 Not Found")}
	}
	if r.Method != http.MethodPost {
		return endpoint, call{}, &reply{status: http.StatusMethodNotAllowed, contentType: "text/html", body: htmlPage("405 Method Not Allowed"), allow: http.MethodPost}
	}
	if !s.keyAccepted(r.Header[canonicalKeyHeader]) {
		return endpoint, call{}, failReply("WTYP0030", "", "")
	}
	raw, err := jsonData(r)
	if err == nil {
		c, err = parse(endpoint, raw)
	}
	if err != nil {
		return endpoint, call{}, failReply("ETYP0040", "", err.Error())
	}
	return endpoint, c, nil
}

func (s *Server) endpoint(path string) (string, bool) {
	name, ok := strings.CutPrefix(path, s.cfg.PathPrefix)
	if !ok {
		return "", false
	}
	name, ok = strings.CutSuffix(name, ".json")
	if !ok {
		return "", false
	}
	_, ok = shapes[name]
	return name, ok
}

func (s *Server) keyAccepted(values []string) bool {
	if len(values) != 1 {
		return false
	}
	if s.cfg.APIKey == "" {
		return len(values[0]) == keyLength
	}
	return values[0] == s.cfg.APIKey
}

// jsonData reads the one form field of a request. It must be in the body, alone and once.
func jsonData(r *http.Request) ([]byte, error) {
	contentType := r.Header.Get("Content-Type")
	if media, _, err := mime.ParseMediaType(contentType); err != nil || media != "application/x-www-form-urlencoded" {
		return nil, fmt.Errorf("Content-Type must be application/x-www-form-urlencoded, not %q", contentType)
	}
	if r.URL.RawQuery != "" {
		return nil, errors.New("the URL must have no query")
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("the body cannot be read: %w", err)
	}
	if len(body) > maxBody {
		return nil, fmt.Errorf("the body is longer than %d bytes", maxBody)
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, fmt.Errorf("the body is not a form: %w", err)
	}
	values := form["jsonData"]
	switch {
	case len(values) == 0:
		return nil, errors.New("the form field jsonData is missing")
	case len(values) > 1 || len(form) > 1:
		return nil, errors.New("jsonData must be the only form field, once")
	}
	return []byte(values[0]), nil
}

// arrive takes a well-formed request in: it meets its fault, has its effect and is counted, in one step.
// The reply is what the API says when the fault lets it speak.
func (s *Server) arrive(endpoint string, c call, kept *keptRequest, path string) (*activeFault, *reply) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	fault := s.takeFault(endpoint, c.id)
	answer := successReply(path)
	if fault.hasEffect() {
		if s.cfg.StrictOrder && endpoint != CallStart && !s.store.started(c.id) {
			answer = failReply("WTYP0010", "WPRDEXTC3201", "")
		} else {
			s.store.add(endpoint, c, kept, now, fault.label())
			s.counts.effects[endpoint]++
			if s.cfg.OnEffect != nil {
				s.cfg.OnEffect(endpoint, c.id, now)
			}
		}
	}
	outcome := answer.outcome()
	if label := fault.label(); label != "" {
		outcome = "fault:" + label
	}
	s.counts.outcome(endpoint, outcome)
	s.notify()
	return fault, answer
}

// reply is one HTTP answer.
type reply struct {
	status      int
	contentType string
	body        []byte
	code        string // messageCode[/subMessageCode] of a failure
	location    string
	retryAfter  string
	allow       string
}

// successAnswer has the fields in the order in which the real API writes them.
type successAnswer struct {
	Count   int    `json:"count"`
	Limit   int    `json:"limit"`
	Offset  int    `json:"offset"`
	Result  string `json:"result"`
	Service string `json:"service"`
	Size    int    `json:"size"`
}

type failAnswer struct {
	Result         string `json:"result"`
	MessageCode    string `json:"messageCode,omitempty"`
	SubMessageCode string `json:"subMessageCode,omitempty"`
	Message        string `json:"message"`
}

// messages are the documented meanings of the codes, by subMessageCode, else messageCode.
var messages = map[string]string{
	"WPRDEXTC3201": "The call does not exist.",
	"WPRDEXTC3202": "The staff cannot be identified.",
	"WPRDEXTC3203": "The staff is not logged in.",
	"WTYP0010":     "Logical error.",
	"WTYP0020":     "Licence error.",
	"WTYP0030":     "The API key is wrong.",
	"ETYP0040":     "Application error.",
}

func successReply(path string) *reply {
	return &reply{status: http.StatusOK, contentType: jsonType,
		body: mustJSON(successAnswer{Count: -1, Limit: -1, Offset: -1, Result: "success", Service: path, Size: 1})}
}

// failReply is a refusal, which the API sends with HTTP 200. An empty message is the documented one of the code.
func failReply(code, subCode, message string) *reply {
	for _, key := range []string{subCode, code, "ETYP0040"} {
		if message == "" {
			message = messages[key]
		}
	}
	full := code
	if subCode != "" {
		full += "/" + subCode
	}
	return &reply{status: http.StatusOK, contentType: jsonType, code: full,
		body: mustJSON(failAnswer{Result: "fail", MessageCode: code, SubMessageCode: subCode, Message: message})}
}

// outcome is the name under which an answer is counted.
func (a *reply) outcome() string {
	switch {
	case a.status != http.StatusOK:
		return fmt.Sprintf("http:%d", a.status)
	case a.code != "":
		return a.code
	default:
		return "success"
	}
}

func (a *reply) write(w http.ResponseWriter) {
	a.writeHeader(w)
	_, _ = w.Write(a.body) // a client that has gone is its own business
}

func (a *reply) writeHeader(w http.ResponseWriter) {
	set := func(name, value string) {
		if value != "" {
			w.Header().Set(name, value)
		}
	}
	set("Content-Type", a.contentType)
	set("Location", a.location)
	set("Retry-After", a.retryAfter)
	set("Allow", a.allow)
	w.WriteHeader(a.status)
}

func htmlPage(text string) []byte {
	return []byte("<html><head><title>" + text + "</title></head><body><h1>" + text + "</h1></body></html>\n")
}

// mustJSON encodes the package's own answers, which always can be encoded.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
