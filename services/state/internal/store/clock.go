package store

import (
	"sync/atomic"
	"time"
)

// Clock is the one clock of the system: Redis TIME at connecting plus this process's monotonic time. It never goes back and
// never stands still: not when Redis is restarted or fails over to a machine whose clock is behind, nor when the wall clock
// is set.
type Clock struct {
	start  time.Time // monotonic zero
	offset atomic.Int64
	last   atomic.Int64
	// wall is this machine's own opinion; a test replaces it.
	wall func() time.Time
}

// trusted is how far Redis' clock may be ahead of ours when it is connected again and still be followed at its word.
const trusted = time.Minute

func newClock() *Clock { return &Clock{start: time.Now(), wall: time.Now} }

// set moves the clock to Redis' time, never back. Once it runs, a jump ahead needs this machine's wall clock as a second
// witness (then the process or the machine was asleep): a failover to a machine with a wrong clock must not make timers come
// early and windows end early. It returns by how much Redis' clock is off if it was not followed.
func (c *Clock) set(redisTime time.Time) (off time.Duration) {
	now, first := c.Now(), !c.known()
	ahead := redisTime.Sub(time.UnixMilli(now))
	switch {
	case first, ahead > 0 && ahead <= trusted, ahead > trusted && redisTime.Sub(c.wall()).Abs() <= trusted:
		c.offset.Store(redisTime.UnixMilli() - time.Since(c.start).Milliseconds())
	case ahead.Abs() > trusted:
		return ahead
	}
	return 0
}

// known says whether Redis was asked for its time. Before that Now is not the time.
func (c *Clock) known() bool { return c.offset.Load() != 0 }

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
