package load

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
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
	// Count ends a closed loop after so many callbacks; 0: it goes on until its context ends.
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
	send := func(lane int, due time.Time) {
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
	}
	if o.Rate > 0 {
		alarm, err := newAlarm()
		if err != nil {
			return err
		}
		defer alarm.close()
		open(ctx, o.Lanes, o.Rate, alarm.wait, send)
	} else {
		closed(ctx, o.Lanes, o.Count, send)
	}
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

// closed calls do from each lane again and again until ctx ends or it was called count times, unless count is 0.
func closed(ctx context.Context, lanes, count int, do func(lane int, due time.Time)) {
	var called atomic.Int64
	var wg sync.WaitGroup
	for lane := range lanes {
		wg.Go(func() {
			for ctx.Err() == nil && (called.Add(1) <= int64(count) || count == 0) {
				do(lane, time.Time{})
			}
		})
	}
	wg.Wait()
}

// open calls do for each moment at which a callback is due, in whichever lane is free, until ctx ends. While no lane is free
// it falls behind, but it leaves no callback out and moves none: the n-th is due n/rate after the start.
func open(ctx context.Context, lanes int, rate float64, wait func(time.Duration), do func(lane int, due time.Time)) {
	start := time.Now()
	work := make(chan time.Time)
	var wg sync.WaitGroup
	for lane := range lanes {
		wg.Go(func() {
			for due := range work {
				do(lane, due)
			}
		})
	}
	for n := 0; ctx.Err() == nil; n++ {
		due := start.Add(time.Duration(float64(n) / rate * float64(time.Second)))
		if d := time.Until(due); d > 0 {
			wait(d)
		}
		if ctx.Err() != nil {
			break // it would have been due after the end
		}
		select {
		case work <- due:
		case <-ctx.Done():
		}
	}
	close(work)
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
