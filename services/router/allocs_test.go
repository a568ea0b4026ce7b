package router

import (
	"testing"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
)

// What deciding one callback allocates, from the message to the commit: reading it, the rules, the record, the journal.
func TestAllocations(t *testing.T) {
	e, _ := newTestEngine(t)
	s := &server{engine: e}
	got := testing.AllocsPerRun(100, func() {
		in, err := s.input(routeItem("r", "1", "0"), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := e.decideOne(in, &statev1.CallState{}, 1000, 1000); err != nil {
			t.Fatal(err)
		}
	})
	if got > 67 { // of them one or two are the race detector's
		t.Errorf("%v allocations to decide a callback, at most 67 wanted", got)
	}
}
