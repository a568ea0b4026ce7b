// Package retry computes how long to wait before the next attempt.
//
// It owns the shape of the wait and nothing else: whether there is a next attempt is decided by its callers, and it
// reads no clock and draws no random number of its own.
package retry

import "time"

// Backoff is exponential backoff with full jitter. Full jitter spreads what failed together over the whole interval,
// so that a destination that comes back is not met by everything at once.
type Backoff struct {
	// Base is the longest wait after the first failure; it doubles with each further one.
	Base time.Duration
	// Max is the longest wait after any failure.
	Max time.Duration
}

// Ceiling is the longest wait after the n-th failed attempt; the first is 1.
func (b Backoff) Ceiling(n int) time.Duration {
	ceiling := b.Base
	for range n - 1 {
		if ceiling >= b.Max/2 {
			return b.Max
		}
		ceiling *= 2
	}
	return min(ceiling, b.Max)
}

// Delay is the wait after the n-th failed attempt: uniform between 0 and Ceiling(n). random returns a number in [0, 1).
func (b Backoff) Delay(n int, random func() float64) time.Duration {
	return time.Duration(random() * float64(b.Ceiling(n)))
}
