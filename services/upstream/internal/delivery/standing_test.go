package delivery

import (
	"fmt"
	"testing"
	"time"
)

// What may run here is this process' share of what may run at once, and is told at once when it changes.
func TestStandingTellsTheShare(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		r.after(time.Second)
		for share, want := range map[int]int32{3: 3, 9: 4, -1: 0} {
			r.state.share = share
			r.after(1200 * time.Millisecond)
			if st := r.state.standing; st.GetWorkers() != want {
				t.Errorf("with a share of %d of 4: %v", share, st)
			}
		}
	})
}

// State is told at once when the breaker changes, and every few seconds how things are.
func TestStanding(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		r.after(time.Millisecond)
		if st := r.state.standing; st.GetBreaker() != "closed" || st.GetWorkers() != 4 || st.GetFailure() != "" || st.GetProcess() == "" {
			t.Fatalf("in the beginning: %v", st)
		}
		r.after(time.Minute)
		if n := r.state.stands; n < 12 || n > 20 {
			t.Errorf("told %d times in a quiet minute, want one each 5 s and at each new stream", n)
		}
		r.crm.answer = slow(time.Second, refused)
		for i := range 20 {
			r.state.add(fmt.Sprint("call-", i))
		}
		r.after(2100 * time.Millisecond) // the second round of 4 opens it
		if st := r.state.standing; st.GetBreaker() != "open" || st.GetBreakerMs() < 9_000 || st.GetBreakerMs() > 10_001 || st.GetFailure() == "" {
			t.Errorf("when it opened: %v", st)
		}
		r.crm.answer = slow(time.Millisecond, success)
		r.after(time.Minute)
		if st := r.state.standing; st.GetBreaker() != "closed" || st.GetFailure() != "" {
			t.Errorf("when it is over: %v", st)
		}
	})
}
