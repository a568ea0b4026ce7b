package callback

import "testing"

// A callback is read twice, in ingress and in router; what one reading allocates is held here.
func TestAllocations(t *testing.T) {
	got := testing.AllocsPerRun(100, func() {
		if _, err := DecodeCallEnd(ParseQuery(sampleQuery), Options{}); err != nil {
			t.Fatal(err)
		}
	})
	if got > 7 {
		t.Errorf("%v allocations to read a callback, at most 7 wanted", got)
	}
}
