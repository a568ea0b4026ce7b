package router

import (
	"sync"
	"time"
)

// clock is state's clock as this process knows it: the time in state's last answer, and what has passed here since.
type clock struct {
	mu    sync.Mutex
	nowMS int64
	then  time.Time // zero: there was no answer yet
}

// clockTrust is how old the last answer may be; an older one is asked for again.
const clockTrust = 10 * time.Second

func (c *clock) set(nowMS int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nowMS, c.then = nowMS, time.Now()
}

// now is at, at this moment.
func (c *clock) now() (nowMS int64, ok bool) { return c.at(time.Now()) }

// at is state's time in Unix milliseconds. It is unknown before the first answer, after a pause, and when the wall clock
// jumped or the machine slept (monotonic time and wall time disagree).
func (c *clock) at(now time.Time) (nowMS int64, ok bool) {
	c.mu.Lock()
	said, then := c.nowMS, c.then
	c.mu.Unlock()
	if then.IsZero() {
		return 0, false
	}
	passed := now.Sub(then)
	wall := now.Round(0).Sub(then.Round(0))
	if passed > clockTrust || (wall-passed).Abs() > time.Second {
		return 0, false
	}
	return said + passed.Milliseconds(), true
}
