package kommo

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
)

const (
	// lateness is how long after a request was given up the network may still deliver it, and the second after that.
	lateness = 5 * time.Second
	// tellTime bounds what state is told after a request: nobody waits longer for that, and without it things end by themselves.
	tellTime = time.Second
)

// place is a request's place in each limit (callrelay/state/v1/limits.proto).
type place struct {
	c      *Client
	limits []string
	token  string
	// deadline is when the request is given up: its place is its own for lateness more.
	deadline time.Time
}

// limits are the account's, by its host, and that of the outgoing address.
func (c *Client) limits(host string) []string {
	return []string{Destination + host, "kommo-address/" + c.options.Address}
}

// admit waits for a place in all limits. Who waits for one holds no other.
func (c *Client) admit(ctx context.Context, host string) (*place, *result) {
	// At most half of what is left is spent on waiting: the rest is for the request.
	patience := time.Now().Add(c.options.Total / 2)
	if ends, ok := ctx.Deadline(); ok {
		patience = time.Now().Add(time.Until(ends) / 2)
	}
	for {
		p := &place{c: c, token: rand.Text(), deadline: time.Now().Add(c.options.Request)}
		wait, err := p.take(ctx, c.limits(host))
		switch {
		case err != nil:
			p.release(ctx, true)
			return nil, &result{kind: unsent, reason: "the limit of requests to Kommo cannot be asked for, nothing was sent: " + c.words(err)}
		case wait == 0:
			return p, nil
		}
		p.release(ctx, true)
		if time.Now().Add(wait).After(patience) {
			return nil, &result{kind: unsent, after: wait, reason: fmt.Sprintf("too many requests to Kommo are waiting, or it wants to be left alone; no place is free within %v", wait.Round(time.Millisecond))}
		}
		if sleep(ctx, wait) != nil {
			return nil, &result{kind: unsent, reason: "stopped while waiting for a place in the limit, nothing was sent"}
		}
	}
}

// take takes a place in each limit until there is none: then it says for how long.
func (p *place) take(ctx context.Context, limits []string) (wait time.Duration, err error) {
	for _, name := range limits {
		answer, err := p.c.options.Limits.Take(ctx, &statev1.TakeRequest{Name: name, Token: p.token, Places: int32(p.c.options.PerSecond),
			LeaseMs: (p.c.options.Request + lateness).Milliseconds()})
		if err == nil && !answer.GetTaken() {
			return time.Duration(answer.GetWaitMs()) * time.Millisecond, nil
		}
		p.limits = append(p.limits, name) // or it may be taken
		if err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// release gives the places back, and lets nobody wait for that: what came of the request has to be kept first. One that cannot
// be given back ends by itself.
func (p *place) release(ctx context.Context, unused bool) {
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tellTime)
		defer cancel()
		for _, name := range p.limits {
			_, _ = p.c.options.Limits.Release(ctx, &statev1.ReleaseRequest{Name: name, Token: p.token, Unused: unused})
		}
	}()
}

// pause stops an account for all replicas. Where that cannot be recorded, the hold of its queue stops it.
func (c *Client) pause(ctx context.Context, host string, d time.Duration) {
	limits := c.limits(host)
	if !c.options.Unconfirmed.PauseAddress {
		limits = limits[:1]
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tellTime)
	defer cancel()
	for _, name := range limits {
		if _, err := c.options.Limits.Pause(ctx, &statev1.PauseRequest{Name: name, ForMs: d.Milliseconds()}); err != nil {
			c.options.Log.Warn("a pause that Kommo asked for is not known to the other processes", "limit", name, "error", err)
		}
	}
}
