package store

import (
	"context"
	"testing"
	"time"
)

// What a commit and a result allocate on their way into the pipeline.
func TestAllocations(t *testing.T) {
	s := &Store{destinations: map[string]bool{"topsii": true}, cfg: Config{Retention: time.Hour, JournalLimit: 1000}}
	one := item("ameyo/1", "i", "", "c", 1)
	got := testing.AllocsPerRun(100, func() {
		if _, err := s.commitCall(context.Background(), one, []string{"token"}, 1, true); err != nil {
			t.Fatal(err)
		}
	})
	if got > 26 {
		t.Errorf("%v allocations for a commit, at most 26 wanted", got)
	}
}
