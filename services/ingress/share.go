package ingress

import (
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"callrelay/callback/pbxtable"
	"callrelay/platform/errkind"
)

// share is the fair share of one token (spec/pbx.md, Events in): what is beyond it waits in the spool until it is within it
// again, and what is too much for that is refused. So a flood reaches router at the rate of its share and no faster.
type share struct {
	limit   *rate.Limiter
	room    int64 // how many may wait
	waiting atomic.Int64
}

// over says whether an event that comes now has to wait: its share is used up, or others wait before it.
func (s *share) over() bool { return s.waiting.Load() > 0 || !s.limit.Allow() }

// wait takes a place in the spool, if there is one.
func (s *share) wait() bool {
	if s.waiting.Add(1) > s.room {
		s.left()
		return false
	}
	return true
}

// left gives the place back. Who waited in an earlier process has none.
func (s *share) left() {
	for n := s.waiting.Load(); n > 0 && !s.waiting.CompareAndSwap(n, n-1); n = s.waiting.Load() {
	}
}

// sharePart is the part of the spool that all that wait for their shares may fill together: the rest is for callbacks.
const sharePart = .1

// errOver: there is no more room for a token's events.
var errOver = errkind.Limited(time.Second, "too many events of this extension")

// pbxEvent is what is known of an event at the door.
type pbxEvent struct {
	row   *pbxtable.Row
	share *share
	over  bool
}

type eventKey struct{}
