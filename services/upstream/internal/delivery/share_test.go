package delivery

import (
	"fmt"
	"strings"
	"testing"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
)

func (s *fakeState) asked() *statev1.ShareRequest { return s.shares[len(s.shares)-1] }

// unused is the credit that state has.
func (s *fakeState) unused() (n int) {
	for st := range s.streams {
		n += st.credit
	}
	return n
}

func TestSendsWithinItsShare(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		r.crm.answer = slow(time.Second, success)
		r.after(time.Second)
		if r.state.unused() != 4 {
			t.Fatalf("credit %d, want one for each worker", r.state.unused())
		}
		r.state.share = -1
		r.after(2 * time.Second)
		if held := r.state.asked().GetHeld(); r.state.unused() != 0 || held != 0 {
			t.Fatalf("with a share of nothing state has a credit of %d and is told that %d are held", r.state.unused(), held)
		}
		for i := range 20 {
			r.state.add(fmt.Sprint("call-", i))
		}
		r.after(10 * time.Second)
		r.sends(0)
		r.state.share = 3
		r.after(2500 * time.Millisecond)
		if r.crm.most != 3 {
			t.Errorf("%d requests ran at the same time, want 3", r.crm.most)
		}
		// While more run than a smaller share allows, they count as held.
		r.state.share = 1
		before := len(r.state.shares)
		r.after(2500 * time.Millisecond)
		var held []int32
		for _, req := range r.state.shares[before:] {
			held = append(held, req.GetHeld())
		}
		if held[0] != 3 || held[len(held)-1] != 1 {
			t.Errorf("held %v, want 3 first and 1 in the end", held)
		}
		r.crm.most = 0
		r.after(time.Minute)
		r.sends(20)
		if r.crm.most != 1 {
			t.Errorf("%d requests ran at the same time, want 1", r.crm.most)
		}
	})
}

func TestShareEndsWhereStateDoesNotRenewIt(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		r.after(time.Second)
		r.state.refuseShares = true
		r.after(14 * time.Second)
		r.state.add("in time")
		r.after(2 * time.Second) // 15 s are LEASE_TIME less a request's longest time
		r.state.add("too late")
		r.after(time.Minute)
		r.final(map[string]string{"in time/1": "done", "too late/1": ""})
		if got := r.state.standing.GetFailure(); got != "no Redis" {
			t.Errorf("people are told %q, want why nothing is sent", got)
		}
		r.state.refuseShares = false
		r.after(time.Second)
		r.final(map[string]string{"too late/1": "done"})
		r.after(10 * time.Second)
		if got := r.state.standing.GetFailure(); got != "" {
			t.Errorf("people are still told %q", got)
		}
	})
}

func TestOpenBreakerLeavesTheShareToOthers(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		r.crm.answer = inTurn(refused, refused, refused, refused, refused, success)
		for i := range 5 {
			r.state.add(fmt.Sprint("call-", i))
		}
		r.after(100 * time.Millisecond)
		if a := r.state.asked(); a.GetWanted() || a.GetHeld() != 0 || r.state.unused() != 0 {
			t.Errorf("while the breaker is open it asks for %v and has a credit of %d", a, r.state.unused())
		}
		r.after(time.Minute)
		if a := r.state.asked(); !a.GetWanted() || a.GetHeld() != 4 {
			t.Errorf("afterwards it asks for %v", a)
		}
	})
}

func TestShareByAnotherName(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		r.after(time.Second)
		first := r.state.asked()
		r.state.takenName = first.GetName()
		r.after(2 * time.Second)
		r.state.add("a")
		r.after(time.Second)
		r.final(map[string]string{"a/1": "done"})
		second := r.state.asked()
		if !strings.HasPrefix(second.GetName(), first.GetName()+"#") || second.GetInstance() != first.GetInstance() || len(second.GetName()) > 128 {
			t.Errorf("it was %v and now is %v", first, second)
		}
		r.stop()
		if a := r.state.asked(); a.GetName() != second.GetName() || a.GetHeld() != 0 || a.GetWanted() {
			t.Errorf("it left with %v", a)
		}
	})
}
