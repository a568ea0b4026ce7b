package topsii

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"
)

// Held is one payload that had its effect.
type Held struct {
	Endpoint string          `json:"endpoint"`
	CallID   int64           `json:"callId"`
	Payload  json.RawMessage `json:"payload,omitempty"` // jsonData as it came; nil without Config.KeepPayloads
	Header   http.Header     `json:"header,omitempty"`  // tracing and content headers, never the key; nil without Config.KeepPayloads
	At       time.Time       `json:"at"`
	Fault    string          `json:"fault,omitempty"` // the kind of fault that the answer met
}

// Traceparent is the W3C trace context that came with the payload.
func (h Held) Traceparent() string { return h.Header.Get("Traceparent") }

// Duplicate is something that was registered more than once: payloads of one endpoint and call
// whose fields are equal, or, for createCallEnd, whose subCtiHistoryId is.
type Duplicate struct {
	Endpoint string `json:"endpoint"`
	CallID   int64  `json:"callId"`
	Times    int    `json:"times"`
}

// Stats are the counters since the start or the last Reset.
type Stats struct {
	Requests        int64                       `json:"requests"`        // to the API, not to /sim/
	WithTraceparent int64                       `json:"withTraceparent"` // requests that had the header
	InFlight        int64                       `json:"inFlight"`
	MaxInFlight     int64                       `json:"maxInFlight"`
	Effects         map[string]int64            `json:"effects"`  // by endpoint
	Outcomes        map[string]map[string]int64 `json:"outcomes"` // by endpoint and "success", a message code, "http:<status>" or "fault:<kind>"
	Held            int                         `json:"held"`
	Evicted         int64                       `json:"evicted"` // payloads that made room: where it is not 0, Held and Duplicates are not the whole story
}

// Held returns what is held, in the order of arrival.
func (s *Server) Held() []Held { return s.HeldBy("") }

// HeldBy returns what is held of one endpoint, or of all if it is empty, in the order of arrival.
func (s *Server) HeldBy(endpoint string) []Held {
	type hit struct {
		callID int64
		rec    record
	}
	var hits []hit
	s.mu.Lock()
	for id, recs := range s.store.calls {
		for _, rec := range recs {
			if endpoint == "" || endpoint == rec.endpoint {
				hits = append(hits, hit{id, rec})
			}
		}
	}
	s.mu.Unlock()
	slices.SortFunc(hits, func(a, b hit) int { return cmp.Compare(a.rec.seq, b.rec.seq) })
	out := make([]Held, len(hits))
	for i, h := range hits {
		out[i] = h.rec.held(h.callID)
	}
	return out
}

// ByCall returns what is held of one call, in the order of arrival. It is fast however much is held.
func (s *Server) ByCall(callID int64) []Held {
	s.mu.Lock()
	recs := slices.Clone(s.store.calls[callID])
	s.mu.Unlock()
	out := make([]Held, len(recs))
	for i, rec := range recs {
		out[i] = rec.held(callID)
	}
	return out
}

// Count is how many payloads had their effect at an endpoint, held or evicted.
func (s *Server) Count(endpoint string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int(s.counts.effects[endpoint])
}

// Duplicates returns what was registered more than once, by call id and endpoint.
func (s *Server) Duplicates() []Duplicate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store.duplicates()
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.counts.snapshot()
	out.Held, out.Evicted = s.store.n, s.store.evicted
	return out
}

// Reset forgets what is held and every counter. Faults stay; requests in flight stay in flight.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store = newStore(s.cfg.MaxHeld)
	inFlight := s.counts.inFlight
	s.counts = newCounters()
	s.counts.inFlight, s.counts.maxInFlight = inFlight, inFlight
	s.notify()
}

// Await returns when done says so. done is called at once and after every change
// (a request came, had its outcome, was answered), without any lock held.
func (s *Server) Await(ctx context.Context, done func() bool) error {
	for {
		s.mu.Lock()
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		if done() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("TopS.II simulator: %w while waiting; %+v", ctx.Err(), s.Stats())
		}
	}
}

// notify wakes those who Await. Called with the lock held.
func (s *Server) notify() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

func (s *Server) enter(traced bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.requests++
	if traced {
		s.counts.traced++
	}
	s.counts.inFlight++
	s.counts.maxInFlight = max(s.counts.maxInFlight, s.counts.inFlight)
	s.notify()
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.inFlight--
	s.notify()
}

func (s *Server) count(endpoint, outcome string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.outcome(endpoint, outcome)
	s.notify()
}

// keptHeaders are the request headers that a view shows. The key is not among them and must never be.
var keptHeaders = []string{"Content-Type", "User-Agent", "Traceparent", "Tracestate", "Baggage", "X-Request-Id"}

func keptHeader(h http.Header) http.Header {
	out := http.Header{}
	for _, name := range keptHeaders {
		if values := h[name]; len(values) > 0 {
			out[name] = slices.Clone(values)
		}
	}
	return out
}

// keptRequest is the costly part of a record, kept only on request. It is never changed.
type keptRequest struct {
	payload []byte
	header  http.Header
}

// record is one held payload.
type record struct {
	seq      int64
	endpoint string
	identity uint64
	at       time.Time
	fault    string
	kept     *keptRequest
}

func (r record) held(callID int64) Held {
	h := Held{Endpoint: r.endpoint, CallID: callID, At: r.at, Fault: r.fault}
	if r.kept != nil {
		h.Payload, h.Header = slices.Clone(r.kept.payload), r.kept.header.Clone()
	}
	return h
}

// store holds records by call and forgets the oldest. Not safe for concurrent use; the Server's lock guards it.
type store struct {
	limit   int
	calls   map[int64][]record
	order   []int64 // a ring of call ids in the order of arrival; next is the oldest once it is full
	next    int
	n       int
	seq     int64
	evicted int64
}

func newStore(limit int) store {
	return store{limit: limit, calls: map[int64][]record{}}
}

func (st *store) add(endpoint string, c call, kept *keptRequest, at time.Time, fault string) {
	if len(st.order) < st.limit {
		st.order = append(st.order, c.id)
		st.n++
	} else {
		st.evict(st.order[st.next])
		st.order[st.next] = c.id
		st.next = (st.next + 1) % st.limit
	}
	st.seq++
	st.calls[c.id] = append(st.calls[c.id], record{seq: st.seq, endpoint: endpoint, identity: c.identity, at: at, fault: fault, kept: kept})
}

// evict drops the oldest record of a call, which is the oldest of all when the call is the oldest in the ring.
func (st *store) evict(callID int64) {
	st.evicted++
	if recs := st.calls[callID]; len(recs) > 1 {
		recs[0] = record{} // let go of its payload
		st.calls[callID] = recs[1:]
	} else {
		delete(st.calls, callID)
	}
}

func (st *store) started(callID int64) bool {
	return slices.ContainsFunc(st.calls[callID], func(r record) bool { return r.endpoint == CallStart })
}

func (st *store) duplicates() []Duplicate {
	type key struct {
		endpoint string
		identity uint64
	}
	out := []Duplicate{}
	for id, recs := range st.calls {
		if len(recs) < 2 {
			continue
		}
		times := map[key]int{}
		for _, r := range recs {
			times[key{r.endpoint, r.identity}]++
		}
		for k, n := range times {
			if n > 1 {
				out = append(out, Duplicate{Endpoint: k.endpoint, CallID: id, Times: n})
			}
		}
	}
	slices.SortFunc(out, func(a, b Duplicate) int {
		return cmp.Or(cmp.Compare(a.CallID, b.CallID), cmp.Compare(a.Endpoint, b.Endpoint))
	})
	return out
}

type outcomeKey struct{ endpoint, outcome string }

// counters of a Server, guarded by its lock.
type counters struct {
	requests, traced      int64
	inFlight, maxInFlight int64
	effects               map[string]int64
	outcomes              map[outcomeKey]int64
}

func newCounters() counters {
	return counters{effects: map[string]int64{}, outcomes: map[outcomeKey]int64{}}
}

func (c *counters) outcome(endpoint, outcome string) { c.outcomes[outcomeKey{endpoint, outcome}]++ }

func (c *counters) snapshot() Stats {
	out := Stats{
		Requests: c.requests, WithTraceparent: c.traced,
		InFlight: c.inFlight, MaxInFlight: c.maxInFlight,
		Effects: maps.Clone(c.effects), Outcomes: map[string]map[string]int64{},
	}
	for k, n := range c.outcomes {
		if out.Outcomes[k.endpoint] == nil {
			out.Outcomes[k.endpoint] = map[string]int64{}
		}
		out.Outcomes[k.endpoint][k.outcome] = n
	}
	return out
}
