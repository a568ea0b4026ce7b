package kommo

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/seal"
	"callrelay/services/upstream/internal/delivery"
	sim "callrelay/sim/kommo"
)

// Everything below runs in synctest bubbles: minutes of waiting take no time.

const host = "acme.kommo.com"

// world is a simulator, state and one process that uses both.
type world struct {
	*testing.T
	sim    *sim.Server
	acc    *sim.Account
	state  *fakeState
	jitter time.Duration
	*Client
}

func start(t *testing.T, cfg sim.Config) *world {
	if cfg.Accounts == nil {
		cfg.Accounts = []sim.AccountConfig{{ID: 9001, Host: host, Token: "long"}}
	}
	w := &world{T: t, sim: sim.New(cfg), state: newState()}
	w.acc = w.sim.Account(9001)
	w.Client = w.process(w.state)
	return w
}

const settle = 20 * time.Second

// process is another process that uses the same state, or its own view of it.
func (w *world) process(state *fakeState) *Client {
	keys, err := seal.Parse("test:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=")
	if err != nil {
		w.Fatal(err)
	}
	return New(Options{
		Accounts: state, Limits: state, Keys: keys, ClientID: "client", ClientSecret: "secret",
		RedirectURI: "https://relay.example/v1/kommo/oauth/callback", Domains: []string{"kommo.com"},
		Connect: 5 * time.Second, Request: 15 * time.Second, Total: 30 * time.Second, PerSecond: 7, Address: "default",
		RefreshBefore: time.Hour, Unconfirmed: Unconfirmed{Settle: settle}, Log: slog.New(slog.NewTextHandler(w.Output(), nil)),
		Trace: func(http.RoundTripper) http.RoundTripper { return wire{w.sim, state, w.jitter} },
	})
}

// connect stores the simulator's long-lived token.
func (w *world) connect() *Account {
	w.Helper()
	if id, err := w.Connect(context.Background(), host, "long"); err != nil || id != 9001 {
		w.Fatal(id, err)
	}
	return w.Account(9001)
}

// install connects the account by OAuth.
func (w *world) install() *Account {
	w.Helper()
	if err := w.Install(context.Background(), host, w.acc.Code(), ""); err != nil {
		w.Fatal(err)
	}
	w.Sweep(context.Background())
	if w.state.account("kommo/9001") == nil {
		w.Fatal("not installed")
	}
	return w.Account(9001)
}

// wire carries a request to the simulator as a connection would, without a network.
type wire struct {
	sim   *sim.Server
	state *fakeState
	// jitter is how long a request and its answer take at most.
	jitter time.Duration
}

func (t wire) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.state.died("http before") {
		return nil, errDead // nothing left
	}
	if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{})
	}
	// On a connection a Host header names the account.
	in := r.Clone(r.Context())
	if in.Body == nil {
		in.Body = http.NoBody
	}
	_ = sleep(context.Background(), rand.N(t.jitter+1))
	defer func() { _ = sleep(context.Background(), rand.N(t.jitter+1)) }()
	rec := httptest.NewRecorder()
	cut := func() (cut bool) {
		defer func() { cut = recover() != nil }()
		t.sim.ServeHTTP(rec, in)
		return false
	}()
	switch {
	case t.state.died("http after"):
		return nil, errDead
	case r.Context().Err() != nil:
		return nil, r.Context().Err()
	case cut && rec.Header().Get("Content-Length") == "":
		return nil, io.EOF
	}
	answer := rec.Result()
	if cut {
		answer.Body = io.NopCloser(io.MultiReader(bytes.NewReader(rec.Body.Bytes()), errReader{}))
	}
	return answer, nil
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

var errDead = errors.New("this process is dead")

// fakeState is state's AccountService and LimitService in memory, with their semantics (services/state tests those on Redis).
type fakeState struct {
	statev1.AccountServiceClient // of what is not used here
	*shared
	// dieAt is the step before which, or after whose effect, this process dies; -1 = never. step counts.
	mu    sync.Mutex
	dieAt int
	step  int
	steps []string
}

type shared struct {
	mu     sync.Mutex
	all    map[string]*statev1.Account
	ends   map[string]time.Time
	leases map[string]lease
	places map[string]map[string]time.Time // of limits, by token; "" is a pause
}

type lease struct {
	token string
	ends  time.Time
}

func newState() *fakeState {
	return &fakeState{dieAt: -1, shared: &shared{all: map[string]*statev1.Account{}, ends: map[string]time.Time{},
		leases: map[string]lease{}, places: map[string]map[string]time.Time{}}}
}

// mortal is the same state for a process that dies at a step.
func (s *fakeState) mortal(dieAt int) *fakeState { return &fakeState{shared: s.shared, dieAt: dieAt} }

// died counts a step and reports whether the process is dead at it.
func (s *fakeState) died(what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.step++
	s.steps = append(s.steps, what)
	return s.dieAt >= 0 && s.step > s.dieAt
}

// do carries out an RPC that this process may not live to begin, or whose answer it may not live to see.
func do[T any](s *fakeState, what string, effect func() T) (T, error) {
	var none T
	if s.died(what + " before") {
		return none, errDead
	}
	s.shared.mu.Lock()
	answer := effect()
	s.shared.mu.Unlock()
	if s.died(what + " after") {
		return none, errDead
	}
	return answer, nil
}

func (s *fakeState) account(id string) *statev1.Account {
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	return s.get(id)
}

func (s *shared) get(id string) *statev1.Account {
	a := proto.CloneOf(s.all[id])
	if a != nil && a.GetExpires() {
		a.ExpiresInMs = time.Until(s.ends[id]).Milliseconds()
	}
	return a
}

func (s *fakeState) GetAccount(_ context.Context, r *statev1.GetAccountRequest, _ ...grpc.CallOption) (*statev1.GetAccountResponse, error) {
	return do(s, "get", func() *statev1.GetAccountResponse { return &statev1.GetAccountResponse{Account: s.get(r.GetId())} })
}

func (s *fakeState) ListAccounts(_ context.Context, r *statev1.ListAccountsRequest, _ ...grpc.CallOption) (*statev1.ListAccountsResponse, error) {
	return do(s, "list", func() *statev1.ListAccountsResponse {
		out := &statev1.ListAccountsResponse{}
		for id := range s.all {
			if strings.HasPrefix(id, r.GetPrefix()) {
				out.Accounts = append(out.Accounts, s.get(id))
			}
		}
		slices.SortFunc(out.Accounts, func(a, b *statev1.Account) int { return strings.Compare(a.GetId(), b.GetId()) })
		return out
	})
}

func (s *fakeState) PutAccount(_ context.Context, r *statev1.PutAccountRequest, _ ...grpc.CallOption) (*statev1.PutAccountResponse, error) {
	return do(s, "put", func() *statev1.PutAccountResponse {
		a := r.GetAccount()
		now := s.all[a.GetId()].GetVersion()
		if now != a.GetVersion() && now != r.GetExpectedVersion() {
			return &statev1.PutAccountResponse{Current: s.get(a.GetId())}
		}
		if now != a.GetVersion() {
			s.all[a.GetId()] = proto.CloneOf(a)
			s.ends[a.GetId()] = time.Now().Add(time.Duration(a.GetExpiresInMs()) * time.Millisecond)
		}
		return &statev1.PutAccountResponse{Written: true}
	})
}

func (s *fakeState) DeleteAccount(_ context.Context, r *statev1.DeleteAccountRequest, _ ...grpc.CallOption) (*statev1.DeleteAccountResponse, error) {
	return do(s, "delete", func() *statev1.DeleteAccountResponse {
		now := s.all[r.GetId()].GetVersion()
		if now != "" && now != r.GetExpectedVersion() {
			return &statev1.DeleteAccountResponse{}
		}
		delete(s.all, r.GetId())
		return &statev1.DeleteAccountResponse{Deleted: true}
	})
}

func (s *fakeState) AcquireAccount(_ context.Context, r *statev1.AcquireAccountRequest, _ ...grpc.CallOption) (*statev1.AcquireAccountResponse, error) {
	return do(s, "acquire", func() *statev1.AcquireAccountResponse {
		if l := s.leases[r.GetId()]; l.token != "" && l.token != r.GetToken() && time.Now().Before(l.ends) {
			return &statev1.AcquireAccountResponse{WaitMs: time.Until(l.ends).Milliseconds()}
		}
		s.leases[r.GetId()] = lease{r.GetToken(), time.Now().Add(time.Duration(r.GetForMs()) * time.Millisecond)}
		return &statev1.AcquireAccountResponse{Acquired: true}
	})
}

func (s *fakeState) ReleaseAccount(_ context.Context, r *statev1.ReleaseAccountRequest, _ ...grpc.CallOption) (*statev1.ReleaseAccountResponse, error) {
	return do(s, "release", func() *statev1.ReleaseAccountResponse {
		if s.leases[r.GetId()].token == r.GetToken() {
			delete(s.leases, r.GetId())
		}
		return &statev1.ReleaseAccountResponse{}
	})
}

func (s *fakeState) Take(_ context.Context, r *statev1.TakeRequest, _ ...grpc.CallOption) (*statev1.TakeResponse, error) {
	return do(s, "take", func() *statev1.TakeResponse {
		places, wait := s.placesOf(r.GetName()), time.Second
		for _, ends := range places {
			wait = min(wait, time.Until(ends))
		}
		switch _, has := places[r.GetToken()]; {
		case !places[""].IsZero():
			return &statev1.TakeResponse{WaitMs: time.Until(places[""]).Milliseconds() + 1}
		case !has && len(places) >= int(r.GetPlaces()):
			return &statev1.TakeResponse{WaitMs: wait.Milliseconds() + 1}
		}
		places[r.GetToken()] = time.Now().Add(time.Duration(r.GetLeaseMs()) * time.Millisecond)
		return &statev1.TakeResponse{Taken: true}
	})
}

// placesOf are those that are taken, and the pause.
func (s *shared) placesOf(name string) map[string]time.Time {
	if s.places[name] == nil {
		s.places[name] = map[string]time.Time{}
	}
	maps.DeleteFunc(s.places[name], func(_ string, ends time.Time) bool { return !ends.After(time.Now()) })
	return s.places[name]
}

// Release is no step: nobody waits for it.
func (s *fakeState) Release(_ context.Context, r *statev1.ReleaseRequest, _ ...grpc.CallOption) (*statev1.ReleaseResponse, error) {
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	places := s.placesOf(r.GetName())
	if places[r.GetToken()].After(time.Now().Add(time.Second)) {
		places[r.GetToken()] = time.Now().Add(time.Second)
	}
	if r.GetUnused() {
		delete(places, r.GetToken())
	}
	return &statev1.ReleaseResponse{}, nil
}

func (s *fakeState) Pause(_ context.Context, r *statev1.PauseRequest, _ ...grpc.CallOption) (*statev1.PauseResponse, error) {
	return do(s, "pause", func() *statev1.PauseResponse {
		if until := time.Now().Add(time.Duration(r.GetForMs()) * time.Millisecond); until.After(s.placesOf(r.GetName())[""]) {
			s.places[r.GetName()][""] = until
		}
		return &statev1.PauseResponse{}
	})
}

// relay delivers as package delivery does, without its queue: an attempt that may have arrived is sent again by SendAgain,
// after the wait it asks for.
func relay(a *Account, endpoint, payload string, attempts int) (delivery.Answer, int) {
	uncertain := false
	for n := 1; ; n++ {
		var answer delivery.Answer
		if uncertain {
			answer = a.SendAgain(context.Background(), endpoint, []byte(payload), false)
		} else {
			answer = a.Send(context.Background(), endpoint, []byte(payload))
		}
		uncertain = uncertain || answer.Outcome == delivery.Uncertain
		if answer.Outcome == delivery.Delivered || answer.Outcome == delivery.Dead || n == attempts {
			return answer, n
		}
		_ = sleep(context.Background(), max(time.Second, answer.RetryAfter))
	}
}
