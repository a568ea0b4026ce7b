package store

import (
	"sync/atomic"
	"time"
)

// Clock is the one clock of the system: Redis TIME at connecting plus this process's monotonic time. It never goes back:
// not when Redis is restarted, fails over to a machine whose clock is behind, or the wall clock is set.
type Clock struct {
	start  time.Time // monotonic zero
	offset atomic.Int64
	last   atomic.Int64
}

func newClock() *Clock { return &Clock{start: time.Now()} }

// set moves the clock to Redis' time.
func (c *Clock) set(redisTime time.Time) {
	c.offset.Store(redisTime.UnixMilli() - time.Since(c.start).Milliseconds())
}

// Now is the time in Unix milliseconds.
func (c *Clock) Now() int64 {
	now := c.offset.Load() + time.Since(c.start).Milliseconds()
	for {
		last := c.last.Load()
		if now <= last {
			return last
		}
		if c.last.CompareAndSwap(last, now) {
			return now
		}
	}
}
