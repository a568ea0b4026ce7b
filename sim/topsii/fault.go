package topsii

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// Kind is what a fault does to a request.
type Kind string

const (
	Accept   Kind = "accept"   // nothing: exempts an endpoint or a call from a wider fault
	Fail     Kind = "fail"     // HTTP 200 with result "fail" and MessageCode, SubMessageCode, Message
	HTTP     Kind = "http"     // Status, with RetryAfter if set
	Delay    Kind = "delay"    // success, after Delay
	Hang     Kind = "hang"     // no answer until the client goes or the fault does; then success if there was an effect, else a cut
	Cut      Kind = "cut"      // the connection is closed before an answer
	NonJSON  Kind = "non_json" // HTTP 200 with a page of HTML
	SlowBody Kind = "slow"     // success, one byte of the body every Pace
	Partial  Kind = "partial"  // half of the success body, then the connection is closed
	Redirect Kind = "redirect" // Status (302) to Location
)

const defaultPace = 10 * time.Millisecond

// Fault is what happens to requests that are well-formed. Of several faults that
// match a request the most specific one acts: endpoint and call, call, endpoint, all.
type Fault struct {
	Kind Kind `json:"kind"`

	Endpoint string `json:"endpoint,omitempty"` // only requests of this endpoint; empty: all
	CallID   int64  `json:"callId,omitempty"`   // only requests of this call; 0: all
	Times    int    `json:"times,omitempty"`    // acts on so many requests; 0: until it is changed or removed

	// Probability that it acts on a request it matches, drawn from Seed; 0: always.
	// A request that it does not act on goes to the next less specific fault.
	Probability float64 `json:"probability,omitempty"`
	Seed        uint64  `json:"seed,omitempty"`

	// Effect says whether the payload is registered all the same. Accept, Delay and
	// SlowBody, which answer success, always register; Fail never does.
	Effect bool `json:"effect,omitempty"`

	Delay time.Duration `json:"-"` // wait before the answer, any kind but Hang; in JSON "delay": "250ms"
	Pace  time.Duration `json:"-"` // between the bytes of SlowBody, default 10ms; in JSON "pace": "10ms"

	MessageCode    string `json:"messageCode,omitempty"`    // Fail
	SubMessageCode string `json:"subMessageCode,omitempty"` // Fail
	Message        string `json:"message,omitempty"`        // Fail; empty: the documented meaning of the code
	Status         int    `json:"status,omitempty"`         // HTTP, Redirect
	RetryAfter     string `json:"retryAfter,omitempty"`     // HTTP: seconds or an HTTP date
	Location       string `json:"location,omitempty"`       // Redirect; empty: a path that counts as Unknown when it is followed
}

// ActiveFault is a fault that is set, with what it has done so far.
type ActiveFault struct {
	Fault Fault `json:"fault"`
	Acted int   `json:"acted"`
	Spent bool  `json:"spent"` // it has acted Times times
}

// SetFault sets a fault in place of the one for the same endpoint and call. Requests that wait on the old one go on.
func (s *Server) SetFault(f Fault) error {
	if err := f.validate(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := faultKey{f.Endpoint, f.CallID}
	s.faults[key].release()
	s.faults[key] = &activeFault{Fault: f, released: make(chan struct{}), rng: rand.New(rand.NewPCG(f.Seed, f.Seed))}
	return nil
}

// ClearFaults removes every fault. Requests that wait on one go on.
func (s *Server) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.faults {
		a.release()
	}
	clear(s.faults)
}

// Faults returns the faults that are set, spent ones too, by endpoint and call id.
func (s *Server) Faults() []ActiveFault {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []ActiveFault{}
	for _, a := range s.faults {
		out = append(out, ActiveFault{Fault: a.Fault, Acted: a.acted, Spent: a.spent()})
	}
	slices.SortFunc(out, func(a, b ActiveFault) int {
		return cmp.Or(cmp.Compare(a.Fault.Endpoint, b.Fault.Endpoint), cmp.Compare(a.Fault.CallID, b.Fault.CallID))
	})
	return out
}

func (f Fault) validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("fault %q: "+format, append([]any{f.Kind}, args...)...)
	}
	if _, ok := shapes[f.Endpoint]; !ok && f.Endpoint != "" {
		return bad("no endpoint %q", f.Endpoint)
	}
	if f.CallID < 0 || f.Times < 0 || f.Delay < 0 || f.Pace < 0 {
		return bad("callId, times, delay and pace must not be negative")
	}
	if !(f.Probability >= 0 && f.Probability <= 1) {
		return bad("probability must be from 0 to 1")
	}
	switch f.Kind {
	case Accept, Delay, SlowBody, Cut, NonJSON, Partial:
	case Fail:
		if f.Effect {
			return bad("has no effect, ever")
		}
	case Hang:
		if f.Delay > 0 {
			return bad("has no delay")
		}
	case HTTP:
		if f.Status < 200 || f.Status > 599 {
			return bad("needs a status from 200 to 599")
		}
	case Redirect:
		if f.Status != 0 && (f.Status < 300 || f.Status > 399) {
			return bad("needs a status from 300 to 399")
		}
	default:
		return bad("no such kind")
	}
	if f.Kind == Delay && f.Delay == 0 {
		return bad("needs a delay")
	}
	return nil
}

// durations are the fields of a Fault that JSON has as text, like "250ms".
type durations struct {
	Delay string `json:"delay,omitempty"`
	Pace  string `json:"pace,omitempty"`
}

type plainFault Fault

// MarshalJSON writes durations as text.
func (f Fault) MarshalJSON() ([]byte, error) {
	var d durations
	if f.Delay != 0 {
		d.Delay = f.Delay.String()
	}
	if f.Pace != 0 {
		d.Pace = f.Pace.String()
	}
	return json.Marshal(struct {
		plainFault
		durations
	}{plainFault(f), d})
}

// UnmarshalJSON reads durations as text and refuses unknown fields, so that a typing error is not a fault that never acts.
func (f *Fault) UnmarshalJSON(b []byte) error {
	var v struct {
		plainFault
		durations
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		return err
	}
	out := Fault(v.plainFault)
	for _, d := range []struct {
		text string
		to   *time.Duration
	}{{v.durations.Delay, &out.Delay}, {v.durations.Pace, &out.Pace}} {
		if d.text == "" {
			continue
		}
		var err error
		if *d.to, err = time.ParseDuration(d.text); err != nil {
			return err
		}
	}
	*f = out
	return nil
}

type faultKey struct {
	endpoint string
	callID   int64
}

// activeFault is a fault in the table. acted and rng are guarded by the Server's lock; the rest never changes.
// A nil *activeFault is the absence of a fault.
type activeFault struct {
	Fault
	acted    int
	rng      *rand.Rand
	released chan struct{} // closed when the fault is replaced or removed
}

// takeFault returns the fault that acts on a request, or nil. Called with the lock held.
func (s *Server) takeFault(endpoint string, callID int64) *activeFault {
	if len(s.faults) == 0 {
		return nil
	}
	for _, key := range [...]faultKey{{endpoint, callID}, {"", callID}, {endpoint, 0}, {"", 0}} {
		if a := s.faults[key]; a != nil && !a.spent() && a.drawn() {
			a.acted++
			return a
		}
	}
	return nil
}

func (a *activeFault) spent() bool { return a.Times > 0 && a.acted >= a.Times }

func (a *activeFault) drawn() bool {
	return a.Probability == 0 || a.rng.Float64() < a.Probability
}

func (a *activeFault) release() {
	if a != nil {
		close(a.released)
	}
}

// label is the kind as it is shown and counted; empty when nothing is out of the ordinary.
func (a *activeFault) label() string {
	if a == nil || (a.Kind == Accept && a.Delay == 0) {
		return ""
	}
	return string(a.Kind)
}

func (a *activeFault) hasEffect() bool {
	return a == nil || a.Effect || a.Kind == Accept || a.Kind == Delay || a.Kind == SlowBody
}

// play answers a request the way the fault wants it. answer is what the API would say.
func (a *activeFault) play(w http.ResponseWriter, r *http.Request, answer *reply) {
	if a == nil {
		answer.write(w)
		return
	}
	if a.Delay > 0 && !a.wait(r.Context(), a.Delay) {
		return
	}
	switch a.Kind {
	case Accept, Delay:
		answer.write(w)
	case Fail:
		failReply(a.MessageCode, a.SubMessageCode, a.Message).write(w)
	case HTTP:
		text := strconv.Itoa(a.Status) + " " + http.StatusText(a.Status)
		(&reply{status: a.Status, contentType: "text/html", body: htmlPage(text), retryAfter: a.RetryAfter}).write(w)
	case NonJSON:
		(&reply{status: http.StatusOK, contentType: "text/html", body: htmlPage("Maintenance")}).write(w)
	case Redirect:
		location := cmp.Or(a.Location, "/redirected")
		(&reply{status: cmp.Or(a.Status, http.StatusFound), contentType: "text/html", location: location}).write(w)
	case Hang:
		select {
		case <-r.Context().Done():
			return
		case <-a.released:
		}
		if !a.Effect {
			cut()
		}
		answer.write(w)
	case Cut:
		cut()
	case SlowBody:
		a.writeSlowly(w, r, answer)
	case Partial:
		w.Header().Set("Content-Length", strconv.Itoa(len(answer.body)))
		answer.writeHeader(w)
		_, _ = w.Write(answer.body[:len(answer.body)/2])
		_ = http.NewResponseController(w).Flush() // the connection is closed next in any case
		cut()
	}
}

func (a *activeFault) writeSlowly(w http.ResponseWriter, r *http.Request, answer *reply) {
	w.Header().Set("Content-Length", strconv.Itoa(len(answer.body)))
	answer.writeHeader(w)
	out := http.NewResponseController(w)
	for i := range answer.body {
		if _, err := w.Write(answer.body[i : i+1]); err != nil {
			return
		}
		if err := out.Flush(); err != nil {
			return
		}
		if !a.wait(r.Context(), cmp.Or(a.Pace, defaultPace)) {
			return
		}
	}
}

// wait waits for d, or less when the fault is removed, and reports whether the client is still there.
func (a *activeFault) wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-a.released:
	case <-ctx.Done():
		return false
	}
	return true
}

// cut makes net/http close the connection without saying anything further.
func cut() { panic(http.ErrAbortHandler) }
