// Package kommo is a simulator of Kommo's API as far as a telephony relay uses it, for tests, load runs and demonstrations.
//
// It owns the documented behaviour (how a call finds its entity, which requests are refused and in which shape, OAuth with
// rotation, limits), choices for what the documentation leaves open ([Config]), faults on demand, and a view of everything it
// holds, so that tests and people can count. Where it has a choice it is the unkind one.
//
// It does not own anything of the relay: it imports none of its packages, so that relay and simulator cannot share a mistake.
// It has no pages and no widgets, but makes the tokens that widgets send.
package kommo

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Config of a Server. The zero value has one account, 9001 at acme.kommo.com, and the documented limits.
type Config struct {
	Accounts []AccountConfig
	// ClientID, ClientSecret and RedirectURI are the integration's; empty: "client", "secret", "https://relay.example/v1/kommo/oauth/callback".
	ClientID, ClientSecret, RedirectURI string
	// Now is the clock of limits and tokens; nil: time.Now.
	Now func() time.Time
	// PerSecond is how many requests an account may make in any second; 0: 7, negative: any number.
	PerSecond int
	// RetryAfter is what a 429 names; within that time each further request is abuse. 0: 300 s.
	RetryAfter time.Duration
	// BlockAfter so many abuses everything is answered 403, until Unblock. 0: 10.
	BlockAfter int
	// TokenLife of access tokens; 0: 24 h.
	TokenLife time.Duration

	// What the documentation leaves open, or contradicts itself about:

	// StrictRotation ends an old refresh token with its first use. Else it works until the new tokens are used.
	StrictRotation bool
	// CallIDsAreNotNotes gives calls[].id another id than the note's.
	CallIDsAreNotNotes bool
	// MatchUnsorted lets contacts of open incoming leads be found by /calls.
	MatchUnsorted bool
	// CompanyFirst looks for companies before contacts in /calls.
	CompanyFirst bool
	// MergeParams keeps the params of a note that a PATCH does not name. Else they are gone.
	MergeParams bool
	// RetryAfterHeader sends Retry-After beside the body's retry_after.
	RetryAfterHeader bool
}

// AccountConfig is one Kommo account.
type AccountConfig struct {
	ID int64
	// Host like acme.kommo.com. Requests reach it by their Host header; those to a loopback address reach the first account.
	Host string
	// Token is a long-lived access token; empty: none.
	Token string
	// UnsortedOff: incoming leads are switched off.
	UnsortedOff bool
}

// apiDomain is the host that knows every account (claim api_domain of access tokens).
const apiDomain = "api-g.kommo.com"

const (
	maxBody = 1 << 20
	maxPage = 250
)

// Server is the simulated Kommo. It is safe for concurrent use; its lock is never held while it reads, writes or waits.
type Server struct {
	cfg Config

	mu       sync.Mutex
	accounts []*Account
	faults   []*activeFault
	nextID   int64
	requests map[string]int // by operation
	hooks    sync.WaitGroup
}

var _ http.Handler = (*Server)(nil)

// New returns a Server whose accounts are empty.
func New(cfg Config) *Server {
	cfg.ClientID = cmp.Or(cfg.ClientID, "client")
	cfg.ClientSecret = cmp.Or(cfg.ClientSecret, "secret")
	cfg.RedirectURI = cmp.Or(cfg.RedirectURI, "https://relay.example/v1/kommo/oauth/callback")
	cfg.PerSecond = cmp.Or(cfg.PerSecond, 7)
	cfg.RetryAfter = cmp.Or(cfg.RetryAfter, 300*time.Second)
	cfg.BlockAfter = cmp.Or(cfg.BlockAfter, 10)
	cfg.TokenLife = cmp.Or(cfg.TokenLife, 24*time.Hour)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if len(cfg.Accounts) == 0 {
		cfg.Accounts = []AccountConfig{{ID: 9001, Host: "acme.kommo.com"}}
	}
	s := &Server{cfg: cfg, nextID: 1000, requests: map[string]int{}}
	for _, a := range cfg.Accounts {
		s.accounts = append(s.accounts, &Account{server: s, id: a.ID, host: a.Host, unsortedOff: a.UnsortedOff, longLived: a.Token})
	}
	return s
}

// Account is the account with this id; nil where there is none.
func (s *Server) Account(id int64) *Account {
	for _, a := range s.accounts {
		if a.id == id {
			return a
		}
	}
	return nil
}

// Requests counts the requests of an operation (see operation) that were neither refused for their token nor for their rate.
func (s *Server) Requests(op string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests[op]
}

// ServeHTTP answers the API, OAuth and, below /sim/, the simulator's own control API.
//
// A request is checked first (host, limits, token), then meets a fault, if one is set. The effect, if there is one, happens
// on arrival, before any waiting.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/sim/") {
		s.control(w, r)
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil || len(body) > maxBody {
		problem(http.StatusBadRequest, "The body cannot be read or is too long.").write(w)
		return
	}
	fault, answer := s.arrive(request{Request: r, body: body, parts: strings.Split(strings.Trim(r.URL.Path, "/"), "/")})
	fault.play(w, r, answer)
}

// request is a request whose body was read.
type request struct {
	*http.Request
	body  []byte
	parts []string // of the path
	op    string
}

// arrive takes a request in: it is checked, meets its fault and has its effect, in one step.
func (s *Server) arrive(r request) (*activeFault, *reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.byHost(r.Host)
	r.op = operation(r.Method, r.parts)
	if strings.HasPrefix(r.op, "oauth") {
		return s.meet(r, a, func() *reply { return s.oauth(a, r) })
	}
	if a == nil {
		return nil, page(http.StatusNotFound)
	}
	if refused := a.limit(); refused != nil {
		return nil, refused
	}
	if refused := a.authorize(r); refused != nil {
		return nil, refused
	}
	if r.op == "" {
		return nil, problem(http.StatusNotFound, "Not Found")
	}
	if r.Method == http.MethodPost || r.Method == http.MethodPatch {
		if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
			return nil, problem(http.StatusBadRequest, "Content-Type must be application/json.")
		}
	}
	return s.meet(r, a, func() *reply { return a.serve(r) })
}

// meet lets a request meet its fault and have its effect.
func (s *Server) meet(r request, a *Account, effect func() *reply) (*activeFault, *reply) {
	s.requests[r.op]++
	fault := s.takeFault(r.op, a)
	if !fault.hasEffect() {
		return fault, nil
	}
	return fault, effect()
}

func (s *Server) byHost(host string) *Account {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	for _, a := range s.accounts {
		if a.host == host {
			return a
		}
	}
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		return s.accounts[0]
	}
	return nil
}

// operation names what a request does, as faults and counts do: calls, notes.create, notes.patch, notes.get, notes.list,
// unsorted.sip, unsorted.list, unsorted.get, unsorted.accept, unsorted.decline, contacts.list, contacts.create, contacts.get
// (also companies, leads), events.popup, account, webhooks.create, oauth.token, oauth.subdomain. Empty: there is no such thing.
func operation(method string, p []string) string {
	path := strings.Join(p, "/")
	switch {
	case path == "oauth2/access_token" && method == "POST":
		return "oauth.token"
	case path == "oauth2/account/current/subdomain" && method == "GET":
		return "oauth.subdomain"
	case path == "api/v2/events" && method == "POST":
		return "events.popup"
	case len(p) < 3 || p[0] != "api" || p[1] != "v4":
		return ""
	}
	p = p[2:]
	at := func(i int) string {
		if i < len(p) {
			return p[i]
		}
		return ""
	}
	switch {
	case len(p) == 1 && p[0] == "calls" && method == "POST":
		return "calls"
	case len(p) == 1 && p[0] == "account" && method == "GET":
		return "account"
	case len(p) == 1 && p[0] == "webhooks" && method == "POST":
		return "webhooks.create"
	case at(0) == "leads" && at(1) == "unsorted":
		switch {
		case len(p) == 3 && p[2] == "sip" && method == "POST":
			return "unsorted.sip"
		case len(p) == 2 && method == "GET":
			return "unsorted.list"
		case len(p) == 3 && method == "GET":
			return "unsorted.get"
		case len(p) == 4 && p[3] == "accept" && method == "POST":
			return "unsorted.accept"
		case len(p) == 4 && p[3] == "decline" && method == "DELETE":
			return "unsorted.decline"
		}
	case singular[at(0)] != "":
		switch {
		case at(1) == "notes" && len(p) == 2, at(2) == "notes" && len(p) == 3:
			return map[string]string{"GET": "notes.list", "POST": "notes.create"}[method]
		case at(1) == "notes" && len(p) == 3:
			return map[string]string{"GET": "notes.get", "PATCH": "notes.patch"}[method]
		case len(p) == 1 && at(0) != "customers":
			if verb := map[string]string{"GET": "list", "POST": "create"}[method]; verb != "" {
				return p[0] + "." + verb
			}
		case len(p) == 2 && method == "GET":
			return p[0] + ".get"
		}
	}
	return ""
}

// singular has the words of answers by those of paths.
var singular = map[string]string{"leads": "lead", "contacts": "contact", "companies": "company", "customers": "customer"}

// reply is one HTTP answer.
type reply struct {
	status      int
	contentType string
	body        []byte
	retryAfter  string
}

func (a *reply) write(w http.ResponseWriter) {
	a.header(w)
	_, _ = w.Write(a.body) // a client that has gone is its own business
}

func (a *reply) header(w http.ResponseWriter) {
	if a.contentType != "" {
		w.Header().Set("Content-Type", a.contentType)
	}
	if a.retryAfter != "" {
		w.Header().Set("Retry-After", a.retryAfter)
	}
	w.WriteHeader(a.status)
}

// object is a JSON object whose fields are few and known.
type object = map[string]any

func ok(v any) *reply {
	return &reply{status: http.StatusOK, contentType: "application/hal+json", body: mustJSON(v)}
}

// list is the answer of a collection: 204 without a body where it is empty.
func list[T any](name string, items []T, page, limit int, self string) *reply {
	from := min((page-1)*limit, len(items))
	to := min(from+limit, len(items))
	if from == to {
		return &reply{status: http.StatusNoContent}
	}
	links := object{"self": object{"href": self}}
	if to < len(items) {
		links["next"] = object{"href": self + fmt.Sprintf("?page=%d&limit=%d", page+1, limit)}
	}
	return ok(object{"_page": page, "_links": links, "_embedded": object{name: items[from:to]}})
}

func problem(status int, detail string) *reply {
	return &reply{status: status, contentType: "application/problem+json", body: mustJSON(object{
		"title": http.StatusText(status), "type": fmt.Sprintf("https://httpstatus.es/%d", status), "status": status, "detail": detail})}
}

// invalid is the other 400: which fields of which item are wrong.
func invalid(requestID, code, path, detail string) *reply {
	return &reply{status: http.StatusBadRequest, contentType: "application/problem+json", body: mustJSON(object{
		"validation-errors": []object{{"request_id": requestID, "errors": []object{{"code": code, "path": path, "detail": detail}}}},
		"title":             "Bad Request", "type": "https://httpstatus.es/400", "status": 400, "detail": "Request validation failed"})}
}

func page(status int) *reply {
	text := fmt.Sprint(status, " ", http.StatusText(status))
	return &reply{status: status, contentType: "text/html",
		body: []byte("<html><head><title>" + text + "</title></head><body><h1>" + text + "</h1></body></html>\n")}
}

// mustJSON encodes the package's own answers, which always can be encoded.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
