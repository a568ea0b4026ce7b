package delivery

import (
	"cmp"
	"context"
	"crypto/rand"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	statev1 "callrelay/gen/callrelay/state/v1"
)

const (
	// shareEvery is how often the share is asked for; others get what is given up at most so much later.
	shareEvery = time.Second
	// shareSoon is how often while more runs here than the share allows, or while state does not answer.
	shareSoon = 100 * time.Millisecond
	// shareTimeout bounds one question.
	shareTimeout = 2 * time.Second
)

// share is how many of the requests that all processes together may make at once run here. State gives it for LEASE_TIME;
// like a lease it counts from the moment it was asked for, and no request starts with less than its timeout left of it. Before
// the first answer it is nothing. Guarded by Consumer.mu.
type share struct {
	name, instance string
	known          bool // by state
	n              int
	until          time.Time // no request starts later
	failing        string    // why state gives none; "" = it does
}

// keepShare asks for the share until ctx ends.
func (c *Consumer) keepShare(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-time.After(c.askShare(ctx)):
		case <-c.shareWake:
		case <-ctx.Done():
		}
	}
}

// wakeShare asks now: what is wanted changed.
func (c *Consumer) wakeShare() {
	select {
	case c.shareWake <- struct{}{}:
	default:
	}
}

// askShare says what is held here and takes what it is given. It returns after how long to ask again.
func (c *Consumer) askShare(ctx context.Context) time.Duration {
	room, _ := c.breaker.room(c.cfg.Workers)
	c.mu.Lock()
	req := &statev1.ShareRequest{Destination: c.cfg.Destination, Name: c.share.name, Instance: c.share.instance, Known: c.share.known,
		Limit: int32(c.cfg.Workers), Wanted: room > 0 && !c.stopping, ForMs: c.cfg.LeaseTime.Milliseconds(),
		// Until the answer is read credit is given up to the old share.
		Held: int32(max(c.share.n, c.running+len(c.credits)))}
	c.mu.Unlock()
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, shareTimeout)
	defer cancel()
	resp, err := c.state.Share(ctx, req)
	if status.Code(err) == codes.Unimplemented { // an older state, during an upgrade
		resp, err = &statev1.ShareResponse{Share: req.GetLimit()}, nil
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.poke()
	s := &c.share
	switch {
	case err != nil:
		if s.failing == "" && c.down == nil && !c.stopping {
			c.log.Warn("state does not say how many requests may run here at once, trying again", "error", err)
		}
		s.failing = cmp.Or(status.Convert(err).Message(), err.Error())
		return shareSoon
	case resp.GetTaken():
		c.log.Warn("another upstream process has the same host name and UPSTREAM_GRPC_ADDR; after a crash its share of the destination comes back only after LEASE_TIME",
			"name", s.name)
		s.name, s.known = s.name[:min(len(s.name), 100)]+"#"+rand.Text()[:8], false
		return 0
	}
	s.known, s.failing = true, ""
	s.n, s.until = int(resp.GetShare()), asked.Add(c.cfg.LeaseTime-c.cfg.SendTimeout)
	if int(req.GetHeld()) > s.n {
		return shareSoon
	}
	return shareEvery
}

// leaveShare gives everything back: nothing runs here any more.
func (c *Consumer) leaveShare(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, shareSoon)
	defer cancel()
	_, _ = c.state.Share(ctx, &statev1.ShareRequest{Destination: c.cfg.Destination, Name: c.share.name, Instance: c.share.instance, Known: true,
		Limit: int32(c.cfg.Workers), ForMs: c.cfg.LeaseTime.Milliseconds()}) // else it ends by itself
}

// current is the share as long as a request may start under it.
func (s *share) current(now time.Time) int {
	if now.After(s.until) {
		return 0
	}
	return s.n
}

// shared reports whether a request may start under the share.
func (c *Consumer) shared() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !time.Now().After(c.share.until)
}
