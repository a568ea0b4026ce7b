package pbx

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"callrelay/callback"
)

// tester is what testing.T and rapid.T have in common.
type tester interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// epoch is when tests begin, Unix milliseconds.
const epoch = 1767000000000

// world is one call with everything around it that tests need: a clock, its timer, what was sent and shown.
type world struct {
	t      tester
	cfg    *Config
	call   Call
	now    int64
	inputs int
	// timer is when the timer is due; 0: none is set.
	timer      int64
	records    []registration
	recordings []recording
	cards      map[string]Card
	rang, over map[string]bool // legs that began to ring; those of which an answer or a hangup came
	said       []string        // what was decided
	notes      []string
	asks       []AskHistory
}

// The extensions of the traces.
var extensions = map[string]struct{ id, kind string }{
	"0003*101": {"33301", Phone}, "0003*102": {"33302", Phone}, "0003*103": {"33303", Phone}, "0003*104": {"33304", Phone},
	"0003*099": {"33399", IVR}, "0003*700": {"33334", Queue}, "0003*701": {"33335", Queue},
}

func newWorld(t tester, change ...func(*Config)) *world {
	cfg := DefaultConfig()
	cfg.Integration, cfg.Destination, cfg.Prefix, cfg.ExtensionLen = "acme", "webhook:acme", "0003", 3
	cfg.Users = map[string]string{"0003*101": "u101", "0003*102": "u102", "0003*103": "u103", "0003*104": "", "0003*099": "", "0003*700": "", "0003*701": ""}
	cfg.Services = map[string]string{}
	for name, x := range extensions {
		if x.kind != Phone {
			cfg.Services[x.id] = name
		}
	}
	for _, c := range change {
		c(&cfg)
	}
	if err := cfg.Check(); err != nil {
		t.Fatalf("%v", err)
	}
	return &world{t: t, cfg: &cfg, now: epoch, cards: map[string]Card{}, rang: map[string]bool{}, over: map[string]bool{}}
}

func clone(call Call) Call {
	call.Legs, call.Started = slices.Clone(call.Legs), slices.Clone(call.Started)
	return call
}

// decide runs Decide and checks what holds for every input.
func (w *world) decide(in Input) Effects {
	w.t.Helper()
	before := clone(w.call)
	next, e := Decide(w.cfg, w.call, in, w.now)
	if again, same := Decide(w.cfg, w.call, in, w.now); !reflect.DeepEqual(again, next) || !reflect.DeepEqual(same, e) {
		w.t.Errorf("decided twice, two results:\n%+v %+v\n%+v %+v", next, e, again, same)
	}
	if !reflect.DeepEqual(w.call, before) {
		w.t.Errorf("Decide changed its arguments: %+v, was %+v", w.call, before)
	}
	if !e.Changed && (!reflect.DeepEqual(next, before) || len(e.Deliveries)+len(e.Cards) > 0 || e.SetTimerMS != 0 || e.CancelTimer) {
		w.t.Errorf("not Changed, but %+v became %+v, %+v", before, next, e)
	}
	w.call = next
	for i, d := range e.Deliveries {
		if want := max(before.NextDelivery, 1) + uint32(i); d.Number != want || d.Destination != "webhook:acme" || d.RequestID == "" {
			w.t.Errorf("delivery %+v, want number %d", d, want)
		}
		w.deliver(d)
	}
	for _, c := range e.Cards {
		if c.Version != w.cards[c.ID].Version+1 || c.User == "" || c.ID == "" {
			w.t.Errorf("card %+v after %+v", c, w.cards[c.ID])
		}
		w.cards[c.ID] = c.Card
		if c.Rings() && (w.rang[c.ID] || w.over[c.ID]) {
			w.t.Errorf("leg %s begins to ring (before: %v, answered or over: %v): %+v", c.ID, w.rang[c.ID], w.over[c.ID], c)
		}
		if c.Rings() {
			w.rang[c.ID] = true
		}
	}
	switch {
	case e.CancelTimer:
		w.timer = 0
	case e.SetTimerMS < 0:
		w.t.Errorf("a timer in the past: %d", e.SetTimerMS)
	case e.SetTimerMS > 0:
		w.timer = w.now + e.SetTimerMS
	}
	if w.timer != next.WakeMS {
		w.t.Errorf("the timer is due at %d, the call believes %d", w.timer, next.WakeMS)
	}
	if e.Ask != nil {
		w.asks = append(w.asks, *e.Ask)
	}
	for _, f := range e.Facts {
		switch f := f.(type) {
		case Decided:
			// What is counted of a delivery and what the journal says of it is about one request.
			if owner := cmp.Or(f.RequestID, e.RequestID); f.Delivery != 0 && !slices.ContainsFunc(e.Deliveries, func(d NewDelivery) bool {
				return d.Number == f.Delivery && d.RequestID == owner
			}) {
				w.t.Errorf("%+v of request %s has another delivery: %+v", f, owner, e.Deliveries)
			}
			w.said = append(w.said, strings.TrimSpace(f.Rule+" "+f.What+" "+f.Leg))
		case Note:
			w.notes = append(w.notes, string(f))
		}
	}
	return e
}

func (w *world) deliver(d NewDelivery) {
	w.t.Helper()
	var doc struct {
		Type, Timestamp string
		Data            json.RawMessage
	}
	err := json.Unmarshal(d.Payload, &doc)
	if err != nil || doc.Type != d.Endpoint || doc.Timestamp == "" {
		w.t.Errorf("payload %s: %v", d.Payload, err)
	}
	if d.Endpoint == EndpointRecording {
		var r recording
		if err := json.Unmarshal(doc.Data, &r); err != nil {
			w.t.Errorf("%v", err)
		}
		w.recordings = append(w.recordings, r)
		return
	}
	var r registration
	if err := json.Unmarshal(doc.Data, &r); err != nil {
		w.t.Errorf("%v", err)
	}
	for _, other := range w.records {
		if other.SubCallID == r.SubCallID {
			w.t.Errorf("two records of leg %s: %+v, %+v", r.SubCallID, other, r)
		}
		if other.Missed && r.Missed {
			w.t.Errorf("two missed records: %+v, %+v", other, r)
		}
	}
	w.records = append(w.records, r)
}

// event is one event and the extension with whose token it comes.
type event struct {
	on string
	callback.PbxEvent
}

// send lets an event arrive now.
func (w *world) send(e event) Effects {
	w.t.Helper()
	w.inputs++
	x := extensions[e.on]
	w.over[e.SubCallID] = w.over[e.SubCallID] || e.Kind != callback.PbxDial
	return w.decide(Input{RequestID: fmt.Sprintf("r%d", w.inputs), ReceivedMS: w.now, Event: &e.PbxEvent,
		ExtensionID: x.id, Extension: e.on, Type: x.kind})
}

// pass lets time pass, with the timers that come due.
func (w *world) pass(ms int64) {
	w.t.Helper()
	for end := w.now + ms; ; {
		if w.timer == 0 || w.timer > end {
			w.now = end
			return
		}
		w.now = max(w.now, w.timer)
		w.timer = 0 // its commit removes it
		w.decide(Input{Timer: TimerName, ReceivedMS: w.now})
	}
}

// settle lets all time pass.
func (w *world) settle() {
	w.t.Helper()
	for i := 0; w.timer != 0; i++ {
		if i == 100 {
			w.t.Fatalf("the timer is set again and again: %+v", w.call)
		}
		w.pass(w.timer - w.now)
	}
	for id, c := range w.cards {
		if c.Open() {
			w.t.Errorf("card %s is open for ever: %+v", id, c)
		}
	}
	for _, r := range w.records {
		if r.Success && r.RawStatus != nil && *r.RawStatus != "ANSWER" {
			w.t.Errorf("successful with status %s: %+v", *r.RawStatus, r)
		}
	}
}

// summary is what was registered, in an order of its own.
func (w *world) summary() []string {
	var s []string
	for _, r := range w.records {
		line := fmt.Sprintf("%s %s %s %s %ds", r.Direction, r.Status, r.Extension, r.Number, r.DurationS)
		if r.User != nil {
			line += " " + *r.User
		}
		if r.AnswerInferred {
			line += " inferred"
		}
		if r.Reconciled {
			line += " reconciled"
		}
		s = append(s, line)
	}
	slices.Sort(s)
	return s
}
