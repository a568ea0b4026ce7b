package ingress

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestRecent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recent
		if r.count() != 0 || r.add() < newsFor {
			t.Error("before the first")
		}
		<-time.After(newsFor - 1)
		if pause := r.add(); pause != newsFor-1 || r.count() != 2 {
			t.Errorf("%d after %s", r.count(), pause)
		}
		<-time.After(newsFor)
		if r.count() != 0 {
			t.Error("told although it is no news")
		}
		if r.add(); r.count() != 1 {
			t.Errorf("%d, want 1 after an hour without any", r.count())
		}
	})
}
