package pbx

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"callrelay/callback"
)

// story makes the events of a call as a PBX would, and what must be registered of it if none is lost. It shares no code
// with the rules.
type story struct {
	t      *rapid.T
	at     int64 // milliseconds since the epoch
	legs   int
	events []event
	want   []string
	caller string
	via    string // the id of the queue or IVR that rings phones; empty: none does
}

func (s *story) leg() string { s.legs++; return fmt.Sprintf("leg%d", s.legs) }

func (s *story) add(on, kind, leg string, change func(*callback.PbxEvent)) {
	e := callback.PbxEvent{Kind: kind, CallID: "call", SubCallID: leg, AtUS: (epoch+s.at)*1000 + 1}
	change(&e)
	s.events = append(s.events, event{on, e})
}

func (s *story) wait(min, max int) int64 {
	ms := int64(rapid.IntRange(min, max).Draw(s.t, "ms"))
	s.at += ms
	return ms
}

func (s *story) yes(what string) bool { return rapid.Bool().Draw(s.t, what) }

var phones = []string{"0003*101", "0003*102", "0003*103", "0003*104"}

func userOf(phone string) string {
	return map[string]string{"0003*101": " u101", "0003*102": " u102", "0003*103": " u103"}[phone]
}

// ring lets phones ring in parallel; at most one answers and then talks. from is what CallerIDNum says, remote what
// RemoteNumber says.
func (s *story) ring(ringing []string, answers bool, from, remote string) (answerer string) {
	legs := map[string]string{}
	in := func(more func(*callback.PbxEvent)) func(*callback.PbxEvent) {
		return func(e *callback.PbxEvent) {
			e.Flow, e.Caller, e.CallerExtensionID = callback.PbxIn, from, s.via
			more(e)
		}
	}
	for _, phone := range ringing {
		legs[phone] = s.leg()
		s.add(phone, callback.PbxDial, legs[phone], in(func(e *callback.PbxEvent) { e.Called, e.Remote = phone, remote }))
		s.wait(1, 30)
	}
	s.wait(2000, 20_000)
	status := "NOANSWER"
	if answers {
		answerer, status = rapid.SampledFrom(ringing).Draw(s.t, "answerer"), "CANCEL"
		s.add(answerer, callback.PbxAnswer, legs[answerer], in(func(e *callback.PbxEvent) {
			if s.yes("answer names the extension") {
				e.Caller = answerer
			}
		}))
	}
	for _, phone := range ringing {
		if phone == answerer {
			continue
		}
		s.wait(1, 30)
		s.add(phone, callback.PbxHangup, legs[phone], in(func(e *callback.PbxEvent) {
			if e.Status = status; answers && s.yes("losers say ANSWER") {
				e.Status, e.HasDuration = "ANSWER", true // with no talk
			}
		}))
	}
	if answerer != "" {
		talk := s.wait(0, 60_000)
		s.add(answerer, callback.PbxHangup, legs[answerer], in(func(e *callback.PbxEvent) {
			e.Status, e.HasDuration, e.DurationUS = "ANSWER", true, talk*1000
		}))
		s.want = append(s.want, fmt.Sprintf("in answered %s %s %ds%s", answerer, s.caller, (talk+500)/1000, userOf(answerer)))
	}
	return answerer
}

func (s *story) some() []string {
	return rapid.SliceOfNDistinct(rapid.SampledFrom(phones), 1, 4, rapid.ID).Draw(s.t, "ringing")
}

// service ends a stay in a queue or IVR that began at a moment.
func (s *story) service(on string, began int64, bridged bool, from string) {
	s.add(on, callback.PbxHangup, s.leg(), func(e *callback.PbxEvent) {
		e.Flow, e.Status, e.Caller, e.Bridged = callback.PbxIn, "ANSWER", from, map[bool]string{true: "yes", false: "no"}[bridged]
		e.HasDuration, e.DurationUS = true, (s.at-began)*1000
	})
}

// rounds lets a queue or IVR ring phones, wait, and ring others, until one answers.
func (s *story) rounds() (answerer string) {
	for round := range rapid.IntRange(1, 3).Draw(s.t, "rounds") {
		if round > 0 {
			s.wait(0, 60_000)
		}
		if answerer = s.ring(s.some(), s.yes("answered"), s.caller, ""); answerer != "" {
			return answerer
		}
	}
	return ""
}

// incoming is a call from outside: directly or through an IVR and queues, and what follows after it was answered.
func (s *story) incoming() {
	began := s.at
	ivr, queues := s.yes("IVR"), rapid.IntRange(0, 2).Draw(s.t, "queues")
	answerer, place, left := "", "", false
	if ivr {
		s.wait(1000, 10_000)
		if left = s.yes("the IVR leaves"); left { // it hands the caller over and hangs up, when nobody has answered yet
			s.service("0003*099", began, false, s.caller)
			s.wait(1, 200)
		}
	}
	switch {
	case queues > 0:
	case ivr && !left:
		s.via = extensions["0003*099"].id
		answerer = s.rounds()
	default:
		ringing := s.some()
		if answerer = s.ring(ringing, s.yes("answered"), s.caller, ""); answerer == "" && !ivr {
			s.want = append(s.want, fmt.Sprintf("in missed %s %s 0s%s", ringing[0], s.caller, userOf(ringing[0])))
		}
	}
	for q := range queues {
		if answerer != "" {
			break
		}
		place = []string{"0003*700", "0003*701"}[q]
		entered := s.at
		s.via = extensions[place].id
		answerer = s.rounds()
		s.service(place, entered, answerer != "", s.caller)
		s.wait(1, 200)
	}
	s.via = ""
	if ivr && !left {
		s.service("0003*099", began, answerer != "", s.caller)
	}
	if ivr && place == "" {
		place = "0003*099"
	}
	if answerer == "" && place != "" {
		s.want = append(s.want, fmt.Sprintf("in missed %s %s 0s", place, s.caller))
	}
	if answerer != "" {
		s.passedOn(answerer)
	}
}

// passedOn is what may follow after a phone answered: the caller is passed on to other phones or into a queue.
func (s *story) passedOn(from string) {
	s.wait(1, 50)
	switch rapid.SampledFrom([]string{"", "phone", "queue"}).Draw(s.t, "passed on to") {
	case "phone":
		others := slices.DeleteFunc(slices.Clone(phones), func(p string) bool { return p == from })
		s.ring([]string{rapid.SampledFrom(others).Draw(s.t, "to")}, s.yes("answered"), from, s.caller)
	case "queue": // long enough for nobody to have been up within the last 5 s
		entered := s.at
		s.wait(6000, 30_000)
		s.service("0003*701", entered, false, s.caller)
		s.want = append(s.want, fmt.Sprintf("in missed 0003*701 %s 0s", s.caller))
	}
}

// outgoing is an attempt to call somebody, perhaps by a callback.
func (s *story) outgoing(to string, with func(*callback.PbxEvent)) (registered string) {
	phone, leg := rapid.SampledFrom(phones).Draw(s.t, "phone"), s.leg()
	out := func(more func(*callback.PbxEvent)) func(*callback.PbxEvent) {
		return func(e *callback.PbxEvent) {
			e.Flow, e.Caller, e.Called = callback.PbxOut, phone, to
			with(e)
			more(e)
		}
	}
	s.add(phone, callback.PbxDial, leg, out(func(*callback.PbxEvent) {}))
	s.wait(500, 20_000)
	if !s.yes("answered") {
		status := rapid.SampledFrom([]string{"BUSY", "CANCEL", "NOANSWER", "CONGESTION"}).Draw(s.t, "status")
		s.add(phone, callback.PbxHangup, leg, out(func(e *callback.PbxEvent) { e.Status = status }))
		return fmt.Sprintf("out %s %s %s 0s%s", unsuccessful(status), phone, to, userOf(phone))
	}
	s.add(phone, callback.PbxAnswer, leg, out(func(*callback.PbxEvent) {}))
	talk := s.wait(0, 60_000)
	s.add(phone, callback.PbxHangup, leg, out(func(e *callback.PbxEvent) {
		e.Status, e.HasDuration, e.DurationUS = "ANSWER", true, talk*1000
	}))
	return fmt.Sprintf("out answered %s %s %ds%s", phone, to, (talk+500)/1000, userOf(phone))
}

// joined is a callback in the name of 104 that answers and is joined to the PBX as if it came from outside.
func (s *story) joined() {
	leg := s.leg()
	out := func(e *callback.PbxEvent) { e.Flow, e.Called, e.CallBackID = callback.PbxOut, s.caller, "x" }
	s.add("0003*104", callback.PbxDial, leg, out)
	s.wait(500, 20_000)
	s.add("0003*104", callback.PbxAnswer, leg, out)
	began := s.at
	s.incoming()
	s.add("0003*104", callback.PbxHangup, leg, func(e *callback.PbxEvent) {
		out(e)
		e.Status, e.HasDuration, e.DurationUS = "ANSWER", true, (s.at-began)*1000
	})
}

// forwarded is a call that a phone forwards, to another phone or to the outside.
func (s *story) forwarded() {
	first := s.leg()
	in := func(e *callback.PbxEvent) { e.Flow, e.Caller = callback.PbxIn, s.caller }
	s.add("0003*101", callback.PbxDial, first, in)
	s.wait(5000, 20_000)
	s.add("0003*101", callback.PbxHangup, first, func(e *callback.PbxEvent) { in(e); e.Status = "NOANSWER" })
	leg, inside := s.leg(), s.yes("forwarded inside")
	out := func(e *callback.PbxEvent) {
		e.Flow, e.Transfered, e.Caller, e.Called, e.CallerExtensionID = callback.PbxOut, true, "0003*101", "+7111", "33301"
		if inside {
			e.Called, e.CalledExtensionID = "0003*103", "33303"
		}
	}
	s.add("0003*101", callback.PbxDial, leg, out)
	answered := s.yes("answered")
	began := s.at
	if inside {
		s.ring([]string{"0003*103"}, answered, s.caller, "")
	} else {
		s.wait(1000, 30_000)
	}
	if answered {
		s.add("0003*101", callback.PbxAnswer, leg, out)
		if !inside {
			s.wait(1, 1000)
		}
	} else {
		s.want = append(s.want, fmt.Sprintf("in missed 0003*101 %s 0s u101", s.caller))
	}
	talk := s.at - began
	s.add("0003*101", callback.PbxHangup, leg, func(e *callback.PbxEvent) {
		if out(e); answered {
			e.Status, e.HasDuration, e.DurationUS = "ANSWER", true, talk*1000
		} else {
			e.Status = "CANCEL"
		}
	})
	if answered && !inside {
		s.want = append(s.want, fmt.Sprintf("in forwarded 0003*101 %s %ds u101", s.caller, (talk+500)/1000))
	}
}

func tell(t *rapid.T) *story {
	s := &story{t: t, caller: rapid.SampledFrom([]string{"+79990000001", "0004*101", "112"}).Draw(t, "caller")}
	nothing := func(*callback.PbxEvent) {}
	switch rapid.SampledFrom([]string{"in", "in", "in", "out", "local", "callback", "forwarded"}).Draw(t, "kind") {
	case "in":
		s.incoming()
	case "out":
		s.want = append(s.want, s.outgoing("+7111", nothing))
	case "local":
		s.outgoing("0003*104", nothing)
		s.caller = "0003*101"
		if s.ring([]string{"0003*104"}, s.yes("answered"), s.caller, ""); len(s.want) > 0 {
			s.want = nil
		}
	case "callback":
		if s.yes("joined to the PBX") {
			s.joined()
		} else {
			s.want = append(s.want, s.outgoing(s.caller, func(e *callback.PbxEvent) { e.CallBackID = "x" }))
		}
	case "forwarded":
		s.forwarded()
	}
	slices.SortStableFunc(s.events, func(a, b event) int { return int(a.AtUS - b.AtUS) })
	slices.Sort(s.want)
	return s
}

// shuffled draws an order of the events in which some come more than once.
func (s *story) shuffled(events []event, label string) []event {
	var all []event
	for _, e := range events {
		for range rapid.IntRange(1, 3).Draw(s.t, label+" times") {
			all = append(all, e)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return rapid.Permutation(all).Draw(s.t, label)
}

// TestStories: whatever the call, in whatever order and how often its events come, what is registered is what happened,
// and nobody is left with a card.
func TestStories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := tell(t)
		check := func(how string, play func(*world)) {
			w := newWorld(t, func(c *Config) { c.InferAnswer = false })
			play(w)
			w.settle()
			w.atOnce(s.events, 1) // repeats that come when all is decided
			w.settle()
			if !slices.Equal(w.summary(), s.want) {
				t.Fatalf("%s: registered %q, want %q; said %q", how, w.summary(), s.want, w.said)
			}
		}
		check("as it happened", func(w *world) { w.play(s.events) })
		order := s.shuffled(s.events, "order")
		check("shuffled", func(w *world) { w.atOnce(order, 1) })
	})
}

// TestLoss: with any events lost, and whatever the switches, two orders of the rest lead to the same; nothing is
// registered twice (world.deliver), nothing as answered that no answer event, and no switch, says was answered, nobody who
// talked is missed, and every card and every timer ends (world.settle).
func TestLoss(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := tell(t)
		infer, history := s.yes("PBX_INFER_ANSWER"), s.yes("history")
		var rest []event
		answers, talked := map[string]bool{}, false
		for _, e := range s.events {
			if rapid.IntRange(0, 3).Draw(t, "lost") > 0 {
				rest = append(rest, e)
				answers[e.SubCallID] = answers[e.SubCallID] || e.Kind == callback.PbxAnswer
				talked = talked || e.Flow == callback.PbxIn && e.Bridged == "" && e.Status == callback.PbxAnswered && e.DurationUS > 0
			}
		}
		missed := slices.ContainsFunc(s.want, func(s string) bool { return strings.HasPrefix(s, "in missed") })
		play := func(order []event) *world {
			w := newWorld(t, func(c *Config) { c.InferAnswer, c.History = infer, history })
			w.atOnce(order, 1)
			w.settle()
			for _, r := range w.records {
				if r.Success && !answers[r.SubCallID] && !r.AnswerInferred {
					t.Errorf("registered as answered without an answer: %+v", r)
				}
				if r.AnswerInferred && !infer {
					t.Errorf("inferred: %+v", r)
				}
				if r.Missed && talked && !missed {
					t.Errorf("somebody talked, and is registered as missed: %+v", r)
				}
			}
			return w
		}
		one, other := play(s.shuffled(rest, "one order")), play(s.shuffled(rest, "another order"))
		if a, b := one.summary(), other.summary(); !slices.Equal(a, b) {
			t.Errorf("one order registers %q, another %q", a, b)
		}
		state := func(w *world) map[string]string {
			rules := map[string]string{}
			for _, l := range w.call.Legs {
				rules[l.SubCallID], _, _ = strings.Cut(l.Outcome, " ")
			}
			return rules
		}
		if a, b := state(one), state(other); !maps.Equal(a, b) {
			t.Errorf("one order ends as %v, another as %v", a, b)
		}
	})
}

// TestOrders: of any facts at all, two orders make the same records.
func TestOrders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		one := func(of ...string) string { return rapid.SampledFrom(of).Draw(t, "one") }
		s := &story{t: t}
		for range rapid.IntRange(1, 3).Draw(t, "legs") {
			on, leg := one("0003*101", "0003*102", "0003*104", "0003*700", "0003*099"), s.leg()
			e := callback.PbxEvent{Flow: one("in", "out"), Caller: one("", "+7999", "0003*102", "102"), Called: one(on, "+7111", "0003*102"), DID: one("", "7812"),
				CallBackID: one("", "", "x"), CallerExtensionID: one("", "33301", "33334"), CalledExtensionID: one("", "33303"), Transfered: rapid.IntRange(0, 4).Draw(t, "transfered") == 0}
			for _, kind := range []string{callback.PbxDial, callback.PbxAnswer, callback.PbxHangup} {
				if s.wait(0, 5000); rapid.IntRange(0, 4).Draw(t, "lost") == 0 {
					continue
				}
				s.add(on, kind, leg, func(to *callback.PbxEvent) {
					e.Kind, e.CallID, e.SubCallID, e.AtUS = to.Kind, to.CallID, to.SubCallID, to.AtUS
					switch *to = e; kind {
					case callback.PbxDial:
						to.Remote = one("", "", "+7333", "0003*101")
					case callback.PbxHangup:
						to.Status, to.HasDuration = one("ANSWER", "ANSWER", "CANCEL", ""), s.yes("has a duration")
						if to.HasDuration && s.yes("talked") {
							to.DurationUS = 2_000_000
						}
						if kind := extensions[on].kind; kind == Queue || kind == IVR {
							to.Bridged = one("yes", "no", "")
						}
					}
				})
			}
		}
		infer, keep := s.yes("PBX_INFER_ANSWER"), s.yes("keep_local")
		play := func(order []event) []string {
			w := newWorld(t, func(c *Config) { c.InferAnswer, c.KeepLocal = infer, keep })
			w.atOnce(order, 1)
			w.settle()
			return w.summary()
		}
		if a, b := play(s.shuffled(s.events, "one order")), play(s.shuffled(s.events, "another order")); !slices.Equal(a, b) {
			t.Errorf("one order registers %q, another %q", a, b)
		}
	})
}

// TestSayCommutes: an event that is repeated with other content says the same in either order, and nothing new a second time.
func TestSayCommutes(t *testing.T) {
	text := rapid.SampledFrom([]string{"", "a", "b", "ANSWER"})
	said := rapid.Custom(func(t *rapid.T) Said {
		return Said{AtUS: rapid.Int64Range(1, 3).Draw(t, "at"), ReceivedMS: 1, RequestID: "r", Flow: text.Draw(t, "flow"), Status: text.Draw(t, "status"),
			Caller: text.Draw(t, "caller"), Called: text.Draw(t, "called"), Remote: text.Draw(t, "remote"), DID: text.Draw(t, "did"),
			CallerExtensionID: text.Draw(t, "from"), CalledExtensionID: text.Draw(t, "to"), CallBackID: text.Draw(t, "callback"),
			Bridged: rapid.SampledFrom([]string{"", "no", "yes"}).Draw(t, "bridged"), Transfered: rapid.Bool().Draw(t, "transfered"),
			HasDuration: rapid.Bool().Draw(t, "has duration"), DurationUS: rapid.Int64Range(0, 2).Draw(t, "duration"), RecordID: text.Draw(t, "recording")}
	})
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(said, 1, 4).Draw(t, "said")
		var one, other Said
		for _, e := range list {
			one.say(e)
		}
		for _, e := range rapid.Permutation(list).Draw(t, "order") {
			other.say(e)
		}
		if one != other {
			t.Fatalf("%+v\nor %+v", one, other)
		}
		for _, e := range list {
			if one.say(e) {
				t.Fatalf("%+v was news a second time", e)
			}
		}
	})
}
