package ameyo

import (
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

// world is one call with everything around it that tests need: a clock, the deliveries' results, and timers.
type world struct {
	t      tester
	cfg    *Config
	call   Call
	now    int64
	inputs int
	last   Effects
	// payloads by delivery number.
	payloads map[uint32]string
}

// epoch is 2026-11-20 20:24:25 in Tokyo.
const epoch = 1795173865000

func newWorld(t tester, change ...func(*Config)) *world {
	cfg := DefaultConfig()
	for _, c := range change {
		c(cfg)
	}
	if err := cfg.Check(); err != nil {
		t.Fatalf("%v", err)
	}
	return &world{t: t, cfg: cfg, now: epoch, payloads: map[uint32]string{}}
}

func hangupSignal(c *Config) { c.Profile = "hangup-signal" }
func expirySend(c *Config)   { c.Phone1Expiry = ExpirySend }

// clone copies a call, with its inner slices.
func clone(call Call) Call {
	call.Gates, call.Phone1, call.Deliveries = slices.Clone(call.Gates), slices.Clone(call.Phone1), slices.Clone(call.Deliveries)
	for i := range call.Gates {
		call.Gates[i].Deliveries = slices.Clone(call.Gates[i].Deliveries)
	}
	return call
}

// decide runs Decide and checks what holds for every input: nothing given is changed, not even behind the ends of its
// slices, the same comes out twice, a duplicate changes nothing, and the effects fit together.
func (w *world) decide(in Input) Effects {
	w.t.Helper()
	tail := len(w.call.Gates)
	w.call.Gates = append(w.call.Gates, Gate{Key: "sentinel"})[:tail]
	before := clone(w.call)
	cfg := *w.cfg
	next, effects := Decide(w.cfg, w.call, in, w.now)
	if again, same := Decide(w.cfg, w.call, in, w.now); !reflect.DeepEqual(again, next) || !reflect.DeepEqual(same, effects) {
		w.t.Errorf("decided twice, two results:\n%+v %+v\n%+v %+v", next, effects, again, same)
	}
	if !reflect.DeepEqual(clone(w.call), before) || w.call.Gates[:tail+1][tail].Key != "sentinel" || !reflect.DeepEqual(*w.cfg, cfg) {
		w.t.Errorf("Decide changed its arguments: %+v, was %+v", w.call, before)
	}
	if !effects.Changed && (!reflect.DeepEqual(clone(next), before) || len(effects.Deliveries)+len(effects.SetTimers)+len(effects.CancelTimers) > 0) {
		w.t.Errorf("not Changed, but %+v became %+v, %+v", before, next, effects)
	}
	if effects.Duplicate && effects.Changed {
		w.t.Errorf("a duplicate changed the call: %+v", effects)
	}
	for i, d := range effects.Deliveries {
		if want := max(before.NextDelivery, 1) + uint32(i); d.Number != want || d.Destination != "topsii" || d.RequestID == "" || !slices.ContainsFunc(next.Gates, func(g Gate) bool { return g.Key == d.Gate }) {
			w.t.Errorf("delivery %+v, want number %d", d, want)
		}
		if !json.Valid(d.Payload) {
			w.t.Errorf("payload %s", d.Payload)
		}
		w.payloads[d.Number] = string(d.Payload)
	}
	type identity struct {
		key       string
		connected bool
	}
	gates := map[identity]bool{}
	for _, g := range next.Gates {
		of := identity{g.Key, g.Connected}
		if gates[of] {
			w.t.Errorf("two gates %v", of)
		}
		gates[of] = true
		if g.WaitingPhone2 && !slices.ContainsFunc(next.Phone1, func(p Phone1) bool { return p.leftBy(&g) }) {
			w.t.Errorf("gate %+v waits for no record", g)
		}
	}
	w.call, w.last = next, effects
	return effects
}

func (w *world) input() Input {
	w.inputs++
	return Input{RequestID: fmt.Sprintf("r%d", w.inputs), Traceparent: fmt.Sprintf("t%d", w.inputs), ReceivedMS: w.now}
}

// endInput decodes a call end of call 193421 and customer 5502.
func (w *world) endInput(query string) Input {
	w.t.Helper()
	c, err := callback.DecodeCallEnd(callback.ParseQuery("unique_id=193421&customerId=5502&"+query), callback.Options{Zone: w.cfg.Zone})
	if err != nil {
		w.t.Fatalf("%s: %v", query, err)
	}
	in := w.input()
	in.CallEnd = &c
	return in
}

func (w *world) end(query string) Effects {
	w.t.Helper()
	return w.decide(w.endInput(query))
}

func (w *world) start(query string) Effects {
	w.t.Helper()
	c, err := callback.DecodeCallStart(callback.ParseQuery(query), callback.Options{})
	if err != nil {
		w.t.Fatalf("%s: %v", query, err)
	}
	in := w.input()
	in.CallStart = &c
	return w.decide(in)
}

func (w *world) timer(name string) Effects {
	w.t.Helper()
	return w.decide(Input{Timer: name, ReceivedMS: w.now})
}

// pass lets seconds pass.
func (w *world) pass(seconds int64) { w.now += seconds * 1000 }

// result ends a delivery now, as the store would.
func (w *world) result(number uint32, state DeliveryState, uncertain bool) {
	w.t.Helper()
	w.call = clone(w.call)
	d := w.call.delivery(number)
	if d == nil {
		w.t.Fatalf("there is no delivery %d", number)
	}
	d.State, d.Uncertain, d.FinalMS = state, uncertain, 0
	if state >= Delivered {
		d.FinalMS = w.now
	}
}

// sent are the payloads that the last input queued, without their envelopes.
func (w *world) sent() string {
	var all []string
	for _, d := range w.last.Deliveries {
		all = append(all, d.Endpoint+" "+string(d.Payload))
	}
	return strings.Join(all, "\n")
}

// summary tells the last input's effects in a line: "dup:processing" or "5:createNotAnswer(BUSY,NO_ANSWER)" and facts.
func (w *world) summary() string {
	var parts []string
	for _, fact := range w.last.Facts {
		switch f := fact.(type) {
		case Decided:
			flow := f.Rule + ":" + f.Flow
			if infos := strings.TrimRight(f.ErrorInfo1+","+f.ErrorInfo2, ","); infos != "" {
				flow += "(" + infos + ")"
			}
			parts = append(parts, flow)
		case Duplicate:
			differs := ""
			if f.Differs {
				differs = "!"
			}
			parts = append(parts, "dup"+differs+":"+f.Gate+":"+f.Of)
		case Phone1Fact:
			parts = append(parts, f.What+"="+f.Status)
		case Note:
			parts = append(parts, "note")
		}
	}
	return strings.Join(parts, " ")
}

// expect checks the summary of the last input.
func (w *world) expect(want string) {
	w.t.Helper()
	if got := w.summary(); got != want {
		w.t.Errorf("got %q, want %q", got, want)
	}
	if dup := strings.HasPrefix(want, "dup"); w.last.Duplicate != dup {
		w.t.Errorf("%q: Duplicate is %t", want, w.last.Duplicate)
	}
}
