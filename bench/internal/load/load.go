package load

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"
)

// Load is how callbacks are sent.
type Load struct {
	Addr  string // of the relay
	Lanes int    // connections
	// Rate in callbacks per second, kept whatever the answers do: an open loop. 0: a closed loop, in which each lane sends
	// its next callback when the last one is answered.
	Rate float64
	// Bounded lets a closed loop wait while the ledger's backlog is full.
	Bounded bool
	// Count ends the load after so many callbacks; 0: it goes on until its context ends.
	Count int
}

// Run sends until ctx ends and returns when everything sent is answered. What is late is never left out: every callback is
// sent, and its latency counts from the moment it was due.
func (l *Ledger) Run(ctx context.Context, o Load) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	clients := make([]*client, o.Lanes)
	for i := range clients {
		c, err := dial(o.Addr)
		if err != nil {
			return err
		}
		defer c.conn.Close()
		clients[i] = c
	}
	pace(ctx, o.Lanes, o.Rate, o.Count, func(lane int, due time.Time) {
		if o.Bounded {
			select {
			case l.room <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
		if err := l.send(clients[lane], due); err != nil {
			cancel(err)
		}
	})
	if err := context.Cause(ctx); err != nil && !errors.Is(err, ctx.Err()) {
		return err
	}
	return nil
}

// send sends one callback and writes down what becomes of it; due is zero where it is due when it is sent.
func (l *Ledger) send(c *client, due time.Time) error {
	n, e := l.take()
	now := time.Now()
	if due.IsZero() {
		due = now
	}
	e.due, e.sent = l.since(due), l.since(now)
	status, err := c.send(firstCall + n)
	switch {
	case err != nil:
		return err
	case status == http.StatusOK:
		e.acked = l.Now()
		l.accepted.Add(1)
	default:
		l.refused.Add(1)
		l.leave()
	}
	return nil
}

// pace calls do from so many lanes until ctx ends or it was called count times. With a rate the n-th call is due n/rate
// after the start, in lane n modulo lanes; a lane that is late makes up for it without leaving a call out.
func pace(ctx context.Context, lanes int, rate float64, count int, do func(lane int, due time.Time)) {
	start := time.Now()
	var wg sync.WaitGroup
	for lane := range lanes {
		wg.Go(func() {
			timer := time.NewTimer(0)
			defer timer.Stop()
			for n := lane; (count == 0 || n < count) && ctx.Err() == nil; n += lanes {
				var due time.Time
				if rate > 0 {
					due = start.Add(time.Duration(float64(n) / rate * float64(time.Second)))
					if d := time.Until(due); d > 0 {
						timer.Reset(d)
						select {
						case <-timer.C:
						case <-ctx.Done():
							return
						}
					}
				}
				do(lane, due)
			}
		})
	}
	wg.Wait()
}

// Single sends one callback on an idle connection, again and again.
type Single struct {
	ledger *Ledger
	client *client
}

// Single returns a connection for single callbacks.
func (l *Ledger) Single(addr string) (*Single, error) {
	c, err := dial(addr)
	return &Single{ledger: l, client: c}, err
}

// Send sends one callback and returns when it is answered.
func (s *Single) Send() error { return s.ledger.send(s.client, time.Time{}) }

// Close closes the connection.
func (s *Single) Close() error { return s.client.conn.Close() }
