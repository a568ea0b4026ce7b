package kommo

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

// Kind is what a fault does to a request.
type Kind string

const (
	Delay    Kind = "delay"    // the answer, after Delay
	Hang     Kind = "hang"     // no answer until the client goes or the faults are cleared; then a cut
	Cut      Kind = "cut"      // the connection is closed before an answer
	HTTP     Kind = "http"     // Status with a page of HTML, or Body
	NonJSON  Kind = "non_json" // HTTP 200 with a page of HTML
	Hollow   Kind = "hollow"   // HTTP 200 with {}, or with Status 204 nothing: neither yes nor no
	SlowBody Kind = "slow"     // the answer, one byte every 10 ms
	Partial  Kind = "partial"  // half of the answer, then the connection is closed
)

// Fault is what happens to requests that are allowed. Of several the first one set that matches and is not spent acts.
type Fault struct {
	Kind Kind `json:"kind"`
	// Endpoint is the operation it acts on (see operation); empty: all.
	Endpoint string `json:"endpoint,omitempty"`
	// Account it acts on; 0: all.
	Account int64 `json:"account,omitempty"`
	// Times it acts; 0: until the faults are cleared.
	Times int `json:"times,omitempty"`
	// Probability that it acts, drawn from Seed; 0: always.
	Probability float64 `json:"probability,omitempty"`
	Seed        uint64  `json:"seed,omitempty"`
	// Effect says whether the request is carried out all the same. Delay, SlowBody and Partial always carry it out.
	Effect bool `json:"effect,omitempty"`
	// DelayMS before the answer, any kind but Hang.
	DelayMS int64 `json:"delay_ms,omitempty"`
	// Status of HTTP and Hollow, Body of HTTP.
	Status int    `json:"status,omitempty"`
	Body   string `json:"body,omitempty"`
	// RetryAfter is the header of HTTP: seconds or a date.
	RetryAfter string `json:"retry_after,omitempty"`
}

// ActiveFault is a fault that is set, with how often it has acted.
type ActiveFault struct {
	Fault Fault `json:"fault"`
	Acted int   `json:"acted"`
}

// activeFault is a fault in the list. acted and rng are guarded by the Server's lock. A nil one is the absence of a fault.
type activeFault struct {
	Fault
	acted    int
	rng      *rand.Rand
	released chan struct{} // closed when the faults are cleared
}

// AddFault sets a fault behind those that are set.
func (s *Server) AddFault(f Fault) error {
	switch f.Kind {
	case Delay, Hang, Cut, NonJSON, SlowBody, Partial, Hollow:
	case HTTP:
		if f.Status < 200 || f.Status > 599 {
			return fmt.Errorf("fault %q needs a status from 200 to 599", f.Kind)
		}
	default:
		return fmt.Errorf("there is no fault %q", f.Kind)
	}
	if f.Times < 0 || f.DelayMS < 0 || f.Probability < 0 || f.Probability > 1 {
		return fmt.Errorf("times and delay_ms must not be negative, probability must be from 0 to 1")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &activeFault{Fault: f, released: make(chan struct{}), rng: rand.New(rand.NewPCG(f.Seed, f.Seed))})
	return nil
}

// ClearFaults removes every fault. Requests that wait on one go on.
func (s *Server) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		close(f.released)
	}
	s.faults = nil
}

// Faults returns the faults that are set, spent ones too, in their order.
func (s *Server) Faults() []ActiveFault {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []ActiveFault{}
	for _, f := range s.faults {
		out = append(out, ActiveFault{f.Fault, f.acted})
	}
	return out
}

// takeFault returns the fault that acts on a request. Called with the lock held.
func (s *Server) takeFault(op string, a *Account) *activeFault {
	for _, f := range s.faults {
		switch {
		case f.Endpoint != "" && f.Endpoint != op, f.Account != 0 && (a == nil || f.Account != a.id), f.Times > 0 && f.acted >= f.Times:
		case f.Probability > 0 && f.rng.Float64() >= f.Probability:
		default:
			f.acted++
			return f
		}
	}
	return nil
}

func (f *activeFault) hasEffect() bool {
	return f == nil || f.Effect || f.Kind == Delay || f.Kind == SlowBody || f.Kind == Partial
}

// play answers a request the way the fault wants it. answer is what the API would say.
func (f *activeFault) play(w http.ResponseWriter, r *http.Request, answer *reply) {
	if f == nil {
		answer.write(w)
		return
	}
	if f.DelayMS > 0 && !f.wait(r.Context(), time.Duration(f.DelayMS)*time.Millisecond) {
		return
	}
	switch f.Kind {
	case Delay:
		answer.write(w)
	case Hang:
		select {
		case <-r.Context().Done():
		case <-f.released:
			cut()
		}
	case Cut:
		cut()
	case HTTP:
		said := page(f.Status)
		if f.Body != "" {
			said.body = []byte(f.Body)
			if json.Valid(said.body) {
				said.contentType = "application/problem+json"
			}
		}
		said.retryAfter = f.RetryAfter
		said.write(w)
	case NonJSON:
		page(http.StatusOK).write(w)
	case Hollow:
		said := ok(object{})
		if f.Status == http.StatusNoContent {
			said = &reply{status: http.StatusNoContent}
		}
		said.write(w)
	case SlowBody:
		f.writeSlowly(w, r, answer)
	case Partial:
		w.Header().Set("Content-Length", strconv.Itoa(max(1, len(answer.body))))
		answer.header(w)
		_, _ = w.Write(answer.body[:len(answer.body)/2])
		_ = http.NewResponseController(w).Flush() // the connection is closed next in any case
		cut()
	}
}

func (f *activeFault) writeSlowly(w http.ResponseWriter, r *http.Request, answer *reply) {
	answer.header(w)
	out := http.NewResponseController(w)
	for i := range answer.body {
		if _, err := w.Write(answer.body[i : i+1]); err != nil {
			return
		}
		if err := out.Flush(); err != nil || !f.wait(r.Context(), 10*time.Millisecond) {
			return
		}
	}
}

// wait waits for d, or less when the faults are cleared, and reports whether the client is still there.
func (f *activeFault) wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(cmp.Or(d, time.Millisecond))
	defer t.Stop()
	select {
	case <-t.C:
	case <-f.released:
	case <-ctx.Done():
		return false
	}
	return true
}

// cut makes net/http close the connection without saying anything further.
func cut() { panic(http.ErrAbortHandler) }
