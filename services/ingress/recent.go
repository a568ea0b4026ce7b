package ingress

import (
	"sync"
	"time"
)

// newsFor is for how long after the last time a recent tells what it counted.
const newsFor = time.Hour

// recent counts something that people should know of as long as it is news.
type recent struct {
	mu   sync.Mutex
	n    int64
	last time.Time
}

// add counts one more and says how long ago the one before it was.
func (r *recent) add() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	pause := time.Since(r.last)
	if pause >= newsFor {
		r.n = 0
	}
	r.n++
	r.last = time.Now()
	return pause
}

func (r *recent) count() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.last) >= newsFor {
		return 0
	}
	return r.n
}
