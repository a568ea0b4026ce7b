package delivery

import (
	"errors"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
)

// BreakerSettings say when a destination is left alone.
type BreakerSettings struct {
	// Failures in a row open the breaker.
	Failures int
	// Open is how long nothing is sent then.
	Open time.Duration
	// Probes is how many requests are let through after that; when all succeed it closes, when one fails it opens again.
	Probes int
}

// breaker stops requests to a destination that nothing definite comes back from.
type breaker struct {
	settings BreakerSettings
	circuit  *gobreaker.TwoStepCircuitBreaker[any]

	mu        sync.Mutex
	openUntil time.Time
	// outages are the times during which it was not closed, oldest first; the last one may still be going on.
	outages []outage
}

type outage struct{ from, to time.Time }

// maxOutages bounds what is remembered; the oldest is forgotten first.
const maxOutages = 1000

var (
	errTransport = errors.New("transport failure")
	errVoid      = errors.New("says nothing")
)

func newBreaker(settings BreakerSettings, changed func(from, to string)) *breaker {
	b := &breaker{settings: settings}
	b.circuit = gobreaker.NewTwoStepCircuitBreaker[any](gobreaker.Settings{
		MaxRequests: uint32(settings.Probes),
		Timeout:     settings.Open,
		ReadyToTrip: func(counts gobreaker.Counts) bool { return int(counts.ConsecutiveFailures) >= settings.Failures },
		IsExcluded:  func(err error) bool { return errors.Is(err, errVoid) },
		OnStateChange: func(_ string, from, to gobreaker.State) {
			b.note(from, to)
			changed(from.String(), to.String())
		},
	})
	return b
}

// note runs under the circuit's lock, so in the order of the changes.
func (b *breaker) note(from, to gobreaker.State) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if to == gobreaker.StateOpen {
		// The circuit takes its own time a moment before ours and stays open up to and including its end.
		b.openUntil = now.Add(b.settings.Open + time.Millisecond)
	}
	switch {
	case from == gobreaker.StateClosed:
		b.outages = append(b.outages, outage{from: now})
		if len(b.outages) > maxOutages {
			b.outages = b.outages[1:]
		}
	case to == gobreaker.StateClosed:
		b.outages[len(b.outages)-1].to = now
	}
}

// room is how many requests may run at once of the workers there are, and when to ask again if that changes by itself.
func (b *breaker) room(workers int) (limit int, again time.Duration) {
	switch b.circuit.State() {
	case gobreaker.StateOpen:
		return 0, b.remaining()
	case gobreaker.StateHalfOpen:
		return min(workers, b.settings.Probes), 0
	}
	return workers, 0
}

// remaining is how long it stays open, and never 0.
func (b *breaker) remaining() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(time.Until(b.openUntil), time.Millisecond)
}

// permit is the right to make one request. It ends with done or void.
type permit struct {
	end func(error)
	// probe: the breaker is half open.
	probe bool
}

// done tells the breaker whether the request failed in transport.
func (p permit) done(failed bool) {
	if failed {
		p.end(errTransport)
	} else {
		p.end(nil)
	}
}

// void ends it without a word on the destination: neither does it fail nor is it well.
func (p permit) void() { p.end(errVoid) }

// allow gives a permit, or says after how long to try again.
func (b *breaker) allow() (p permit, wait time.Duration, ok bool) {
	end, err := b.circuit.Allow()
	if errors.Is(err, gobreaker.ErrTooManyRequests) {
		return permit{}, time.Second, false
	}
	if err != nil {
		return permit{}, b.remaining(), false
	}
	return permit{end: end, probe: b.circuit.State() == gobreaker.StateHalfOpen}, 0, true
}

// paused is how much of the last age it was not closed: age that does not count.
func (b *breaker) paused(age time.Duration) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	born := now.Add(-age)
	var sum time.Duration
	for _, o := range b.outages {
		from, to := o.from, o.to
		if to.IsZero() {
			to = now
		}
		if from.Before(born) {
			from = born
		}
		sum += max(to.Sub(from), 0)
	}
	return sum
}
