package ameyo

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// resend replaces a request by a callback of the same call, as of when the first was received.
func (w *world) resend(of, query string, force bool) (Effects, error) {
	w.t.Helper()
	in := w.endInput(query)
	before := clone(w.call)
	next, effects, err := Resend(w.cfg, w.call, in, of, force, w.now)
	if !reflect.DeepEqual(clone(w.call), before) {
		w.t.Errorf("Resend changed its arguments")
	}
	if err == nil {
		w.call = next
		for _, d := range effects.Deliveries {
			w.payloads[d.Number] = string(d.Payload)
		}
	}
	return effects, err
}

func (w *world) ends(number uint32, state DeliveryState, uncertain bool) {
	d := w.call.delivery(number)
	d.State, d.Uncertain, d.FinalMS = state, uncertain, w.now
}

const (
	okEnd     = "customerCRTId=crt&systemDisposition=CONNECTED&userId=a&dialledPhone=1"
	fixed     = "customerCRTId=right&systemDisposition=CONNECTED&userId=a&dialledPhone=1"
	phone1Of2 = `customerCRTId=crt&systemDisposition=BUSY&shareablePhonesDialIndex=0&phoneList=["1","2"]`
	second    = `customerCRTId=crt2&systemDisposition=NO_ANSWER&shareablePhonesDialIndex=1&phoneList=["1","2"]`
)

// What the CRM has or may have needs force; what is under way is refused; what died or was not sent goes.
func TestResendIsCareful(t *testing.T) {
	for _, c := range []struct {
		name      string
		state     DeliveryState
		uncertain bool
		refused   string // "", "force" or "always"
	}{
		{"queued", Queued, false, "always"},
		{"leased", Leased, false, "always"},
		{"delivered", Delivered, false, "force"},
		{"dead", Dead, false, ""},
		{"dead, may have arrived", Dead, true, "force"},
		{"expired", Expired, false, ""},
		{"expired, may have arrived", Expired, true, "force"},
		{"discarded", Discarded, false, "force"},
		{"not sent", SendDisabled, false, ""},
		{"asked", Asked, true, "force"},
	} {
		for _, query := range []string{okEnd, fixed} {
			for _, force := range []bool{false, true} {
				w := newWorld(t)
				w.end(okEnd)
				w.ends(1, c.state, c.uncertain)
				effects, err := w.resend("r1", query, force)
				refusal, _ := errors.AsType[*Refusal](err)
				want := c.refused == "always" || c.refused == "force" && !force
				if (refusal != nil) != want || want && refusal.NeedsForce != (c.refused == "force") {
					t.Errorf("%s, force %v: %v", c.name, force, err)
				}
				if !want && (len(effects.Deliveries) != 1 || effects.Duplicate || !effects.Changed) {
					t.Errorf("%s: %+v", c.name, effects)
				}
			}
		}
	}
}

// After a resend, nothing of the first can pass: a late repeat of it is a duplicate, and state refuses to retry its delivery
// because the gate has another owner.
func TestReplacedStaysReplaced(t *testing.T) {
	for _, query := range []string{okEnd, fixed} {
		w := newWorld(t)
		w.end(okEnd)
		w.ends(1, Dead, false)
		if _, err := w.resend("r1", query, false); err != nil {
			t.Fatal(err)
		}
		for _, g := range w.call.Gates {
			if g.Owner == "r1" {
				t.Errorf("%q: gate %+v is still the first one's", query, g)
			}
		}
		if e := w.end(okEnd); !e.Duplicate {
			t.Errorf("%q: the first callback passes again: %+v", query, e)
		}
		w.ends(2, Dead, false)
		if e := w.end(query); e.Duplicate {
			t.Errorf("%q: died too, but its repeat is a duplicate", query)
		}
	}
}

// Phone 2 sent again reads the same status of phone 1, also under another gate; nothing else can.
func TestResentPhone2ReadsTheSame(t *testing.T) {
	w := newWorld(t)
	w.end(phone1Of2)
	w.end(second)
	w.ends(1, Dead, false)
	effects, err := w.resend("r2", strings.Replace(second, "crt2", "crt3", 1), false)
	if err != nil || len(effects.Deliveries) != 1 || !strings.Contains(string(effects.Deliveries[0].Payload), `"errorInfo1":"BUSY","errorInfo2":"NO_ANSWER"`) {
		t.Errorf("%+v %v", effects, err)
	}
}

// A phone 1 that waits, resent as a single phone, is sent; its timer goes with its record.
func TestResentPhone1IsSentAlone(t *testing.T) {
	w := newWorld(t)
	w.end(phone1Of2)
	effects, err := w.resend("r1", `customerCRTId=crt&systemDisposition=BUSY&shareablePhonesDialIndex=0&phoneList=["1"]`, false)
	if err != nil || len(effects.Deliveries) != 1 || !strings.Contains(string(effects.Deliveries[0].Payload), `"errorInfo1":"BUSY"}`) {
		t.Fatalf("%+v %v", effects, err)
	}
	if !slices.Contains(effects.CancelTimers, timerPrefix+"5502") || len(w.call.Phone1) != 0 {
		t.Errorf("timers cancelled %v, records %v", effects.CancelTimers, w.call.Phone1)
	}
}

// A repeat that was skipped can take the first one's place only by force.
func TestResentDuplicate(t *testing.T) {
	w := newWorld(t)
	w.end(okEnd)
	w.ends(1, Delivered, false)
	w.end(okEnd)
	if _, err := w.resend("r2", okEnd, false); err == nil || !strings.Contains(err.Error(), "r1 was accepted") {
		t.Errorf("without force: %v", err)
	}
	if e, err := w.resend("r2", okEnd, true); err != nil || len(e.Deliveries) != 1 {
		t.Errorf("with force: %+v %v", e, err)
	}
}

// A connected callback and one that was not, of one key: sending one again leaves the other as it is.
func TestResendLeavesTheOtherResult(t *testing.T) {
	w := newWorld(t)
	w.end(single)
	w.ends(1, Delivered, false)
	w.end(conn1)
	w.ends(2, Dead, false)
	if _, err := w.resend("r2", conn1, false); err != nil {
		t.Fatal(err)
	}
	w.ends(3, Dead, false)
	w.end(single)
	w.expect("dup:processed:r1")
	w.end(conn1)
	w.expect("1:createCallEnd")

	w.ends(4, Delivered, false)
	if _, err := w.resend("r1", single, false); err == nil {
		t.Error("resent without force, although both are with the CRM")
	}
	if _, err := w.resend("r1", single, true); err != nil {
		t.Fatal(err)
	}
	w.end(conn1)
	w.expect("dup:processed:r5")
}

// Whatever happened before: without force, a resend never queues anything for a callback whose request or gate is with the
// CRM or may be, it always leaves a call in which the replaced request owns nothing, and a repeat of it is a duplicate.
func TestResendNeverDoublesSilently(t *testing.T) {
	queries := []string{okEnd, fixed, phone1Of2, second}
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		owners := map[string]string{} // request -> its query
		for range rapid.IntRange(1, 6).Draw(t, "callbacks") {
			q := rapid.SampledFrom(queries).Draw(t, "query")
			w.end(q)
			owners[w.last.RequestID] = q
			w.now += rapid.Int64Range(0, 700_000).Draw(t, "pause")
			for i := range w.call.Deliveries {
				if d := &w.call.Deliveries[i]; d.State < Delivered && rapid.Bool().Draw(t, "ends") {
					w.ends(d.Number, rapid.SampledFrom([]DeliveryState{Delivered, Dead, Expired, Asked, Discarded, SendDisabled}).Draw(t, "state"), rapid.Bool().Draw(t, "uncertain"))
				}
			}
		}
		of := rapid.SampledFrom(slices.Sorted(func(yield func(string) bool) {
			for id := range owners {
				if !yield(id) {
					return
				}
			}
		})).Draw(t, "of")
		before := clone(w.call)
		effects, err := w.resend(of, owners[of], false)
		with := func(d Delivery) bool {
			return d.RequestID == of && (d.State < Dead || d.Uncertain || d.State == Asked || d.State == Discarded)
		}
		if slices.ContainsFunc(before.Deliveries, with) && err == nil {
			t.Fatalf("resent although it may be with the CRM: %+v", before.Deliveries)
		}
		if err != nil {
			return
		}
		if effects.Duplicate || !effects.Changed {
			t.Fatalf("%+v", effects)
		}
		for _, g := range w.call.Gates {
			if g.Owner == of {
				t.Fatalf("the replaced request still owns %+v", g)
			}
		}
		for _, p := range w.call.Phone1 {
			if p.RequestID == of && !p.LateMark && p.TakenBy == "" {
				t.Fatalf("the replaced request's record still waits: %+v", p)
			}
		}
	})
}
