package prove

import (
	"fmt"
	"strings"
	"testing"
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
)

func TestVerdictOfPbx(t *testing.T) {
	for _, c := range []struct {
		name      string
		spoil     func(s *story, got map[string][]time.Time)
		want      string // in the problems; empty: there are none
		uncertain int
		open      bool
	}{
		{name: "all is well", spoil: func(*story, map[string][]time.Time) {}},
		{name: "an acknowledged event is nowhere", want: "LOST: pbx.", open: true,
			spoil: func(s *story, _ map[string][]time.Time) { s.stored.Journal = s.stored.Journal[1:] }},
		{name: "the whole call is gone", want: "LOST: of 2 registrations the webhook has 0", open: true,
			spoil: func(s *story, got map[string][]time.Time) { s.stored = nil; clear(got) }},
		{name: "a registration never came", want: "LOST: of 2 registrations the webhook has 1", open: true,
			spoil: func(_ *story, got map[string][]time.Time) { delete(got, "doc 1") }},
		{name: "one too many", want: "DOUBLED: 3 registrations",
			spoil: func(_ *story, got map[string][]time.Time) { got["doc 3"] = []time.Time{time.Now()} }},
		{name: "the same again", want: "DOUBLED: the webhook got a document 2 times",
			spoil: func(_ *story, got map[string][]time.Time) { got["doc 1"] = append(got["doc 1"], time.Now()) }},
		{name: "again, and an attempt of another may have arrived", want: "DOUBLED",
			spoil: func(s *story, got map[string][]time.Time) {
				got["doc 1"] = append(got["doc 1"], time.Now())
				s.uncertain(2)
			}},
		{name: "again, and an attempt may have arrived", uncertain: 1,
			spoil: func(s *story, got map[string][]time.Time) {
				got["doc 1"] = append(got["doc 1"], time.Now())
				s.uncertain(1)
			}},
		{name: "taken twice", want: "taken twice", spoil: func(s *story, _ map[string][]time.Time) { s.received("r0", "") }},
		{name: "not delivered yet", want: "is not delivered", open: true,
			spoil: func(s *story, _ map[string][]time.Time) { s.stored.Deliveries[1].State = "queued" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			one, callbacks := newPbx(3)(3, false) // a transfer, which is two registrations
			s, got := &story{call: one, stored: &operatorv1.Call{}}, map[string][]time.Time{}
			for i, cb := range callbacks {
				sent := one.begin(cb)
				sent.acks = []ack{{requestID: fmt.Sprint("r", i), at: time.Now()}}
				s.received(fmt.Sprint("r", i), "")
			}
			for i := range 2 {
				doc := fmt.Sprint("doc ", i+1)
				s.stored.Deliveries = append(s.stored.Deliveries, &operatorv1.Delivery{State: "delivered", Payload: doc, Facts: &statev1.Delivery{Number: uint32(i + 1)}})
				got[doc] = []time.Time{time.Now()}
			}
			c.spoil(s, got)
			v := judgePbx(one, s.stored, got)
			problems, uncertain := strings.Join(v.problems, "; "), 0
			for _, d := range v.deliveries {
				uncertain += d.uncertain
			}
			if !strings.Contains(problems, c.want) || (c.want == "") != (problems == "") || uncertain != c.uncertain || v.open != c.open {
				t.Errorf("problems %q, want %q; uncertain %d, want %d; open %t", problems, c.want, uncertain, c.uncertain, v.open)
			}
		})
	}
}
