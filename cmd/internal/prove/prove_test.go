package prove

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/sim/dialer"
	"callrelay/sim/topsii"
)

func TestScheduleOfASeed(t *testing.T) {
	for _, total := range []time.Duration{20 * time.Second, time.Minute, 10 * time.Minute} {
		faults := schedule(7, total, 2)
		if !reflect.DeepEqual(faults, schedule(7, total, 2)) || reflect.DeepEqual(faults, schedule(8, total, 2)) {
			t.Errorf("%v: a schedule must be its seed's", total)
		}
		seen, end := map[string]bool{}, time.Duration(0)
		for _, f := range faults {
			seen[f.kind()] = true
			if f.at < end {
				t.Errorf("%v: %v begins at %v, before the one before has ended (%v)", total, f, f.at, end)
			}
			end = f.at + f.length
		}
		if len(seen) != len(kinds()) || end > total {
			t.Errorf("%v: %d of %d kinds, over at %v", total, len(seen), len(kinds()), end)
		}
	}
}

// story is a call of which the relay did everything right; a test spoils it.
type story struct {
	call   *call
	stored *operatorv1.Call
	held   []topsii.Held
}

// newStory is a call start and its end, acknowledged and delivered one after the other.
func newStory() *story {
	callbacks := dialer.Phone1Connected(dialer.New(3))
	s := &story{call: newCall(4, callKey(4)), stored: &operatorv1.Call{}}
	at := time.Now()
	var m model
	for i, cb := range callbacks {
		sent := s.call.begin(cb)
		sent.first, sent.doors[0] = at.Add(time.Duration(i)*time.Second), true
		sent.acks = []ack{{requestID: fmt.Sprint("r", i), at: sent.first.Add(time.Millisecond)}}
		s.received(fmt.Sprint("r", i), cb.Query)
		endpoint := []string{"createCallStart", "createCallEnd"}[i]
		want := strings.Split(strings.TrimPrefix(m.take(cb.Query), endpoint+" "), "|")
		payload := fmt.Sprintf(`{"x":{"predictiveStaffId":%q,"targetTel":%q}}`, want[0], want[1])
		if i == 1 {
			payload = fmt.Sprintf(`{"x":{"subCtiHistoryId":%q,"predictiveStaffId":%q,"targetTel":%q}}`, want[0], want[1], want[2])
		}
		s.stored.Deliveries = append(s.stored.Deliveries, &operatorv1.Delivery{State: "delivered", Payload: payload,
			Facts: &statev1.Delivery{Number: uint32(i + 1), Endpoint: endpoint}})
		s.held = append(s.held, topsii.Held{Endpoint: endpoint, Payload: []byte(payload), At: sent.acks[0].at})
	}
	return s
}

func (s *story) received(id, query string) {
	s.stored.Journal = append(s.stored.Journal, &operatorv1.Entry{Fact: &statev1.JournalEntry{RequestId: id,
		Fact: &statev1.JournalEntry_Received{Received: &statev1.Received{Query: []byte(query)}}}})
}

func (s *story) uncertain(delivery uint32) {
	s.stored.Journal = append(s.stored.Journal, &operatorv1.Entry{Fact: &statev1.JournalEntry{
		Fact: &statev1.JournalEntry_Attempt{Attempt: &statev1.Attempt{Delivery: delivery, Uncertain: true}}}})
}

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		name      string
		spoil     func(s *story)
		want      string // in the problems; empty: there are none
		uncertain int
		open      bool
	}{
		{name: "all is well", spoil: func(*story) {}},
		{name: "an acknowledged callback is nowhere", want: "LOST: connected was acknowledged", open: true,
			spoil: func(s *story) { s.stored.Journal = s.stored.Journal[:1] }},
		{name: "the whole call is gone", want: "LOST", open: true, spoil: func(s *story) { s.stored, s.held = nil, nil }},
		{name: "TopS.II never got it", want: "LOST: TopS.II never got createCallEnd", open: true, spoil: func(s *story) { s.held = s.held[:1] }},
		{name: "TopS.II got it twice", want: "DOUBLED", spoil: func(s *story) { s.held = append(s.held, s.held[1]) }},
		{name: "twice, and one attempt may have arrived", uncertain: 1,
			spoil: func(s *story) { s.held = append(s.held, s.held[1]); s.uncertain(2) }},
		{name: "twice, and an attempt of another one may have arrived", want: "DOUBLED",
			spoil: func(s *story) { s.held = append(s.held, s.held[1]); s.uncertain(1) }},
		{name: "three times, and one attempt may have arrived", want: "DOUBLED", uncertain: 1,
			spoil: func(s *story) { s.held = append(s.held, s.held[1], s.held[1]); s.uncertain(2) }},
		{name: "TopS.II got what nobody asked for", want: "no callback asked for", spoil: func(s *story) {
			s.held = append(s.held, topsii.Held{Endpoint: "createNotAnswer", Payload: []byte(`{"x":{"errorInfo1":"BUSY"}}`)})
		}},
		{name: "the end before the start", want: "WRONG ORDER: TopS.II",
			spoil: func(s *story) { s.held[0].At = s.held[1].At.Add(time.Second) }},
		{name: "accepted in another order than acknowledged", want: "WRONG ORDER: call_start",
			spoil: func(s *story) {
				e := s.stored.Journal
				e[0], e[1] = e[1], e[0]
			}},
		{name: "taken twice", want: "taken twice",
			spoil: func(s *story) { s.received("r0", s.call.order[0].callback.Query) }},
		{name: "not delivered yet", want: "is not delivered", open: true,
			spoil: func(s *story) { s.stored.Deliveries[1].State = "queued" }},
		{name: "a repeat asks for nothing",
			spoil: func(s *story) { s.received("r9", s.call.order[1].callback.Query) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStory()
			c.spoil(s)
			v := judge(s.call, s.stored, s.held)
			got, uncertain := strings.Join(v.problems, "; "), 0
			for _, d := range v.deliveries {
				uncertain += d.uncertain
			}
			if !strings.Contains(got, c.want) || (c.want == "") != (got == "") || uncertain != c.uncertain || v.open != c.open {
				t.Errorf("problems %q, want %q; uncertain %d, want %d; open %t", got, c.want, uncertain, c.uncertain, v.open)
			}
		})
	}
}

func TestSilence(t *testing.T) {
	begin := time.Now()
	at := func(ms ...int) (all []time.Time) {
		for _, n := range ms {
			all = append(all, begin.Add(time.Duration(n)*time.Millisecond))
		}
		return all
	}
	next := begin.Add(3 * time.Second)
	for _, c := range []struct {
		moments []time.Time
		want    time.Duration
	}{
		{at(-5, 10, 20, 1500, 1510), 1480 * time.Millisecond}, // what was under way, then nothing for long
		{at(-5, 10, 20, 30, 290, 400, 2000), 260 * time.Millisecond},
		{at(-5, -1), 0}, // nothing came any more: there is no end to measure
	} {
		if got := silence(c.moments, begin, next); got != c.want {
			t.Errorf("got %v, want %v", got, c.want)
		}
	}
}
