package store

import (
	"context"
	_ "embed"

	"github.com/redis/go-redis/v9"
)

//go:embed lua/hold.lua
var holdLua string

var holdScript = newScript("", holdLua)

// Hold is what is known of a destination's hold.
type Hold struct {
	// Epoch counts releases: a result from before the last release must not hold the destination again.
	Epoch int64
	// TotalMS is the time under finished holds.
	TotalMS int64
	// SinceMS is 0 when it is not held.
	SinceMS int64
	Reason  string
	// ProbeMS: one delivery is tried after each such interval; 0 = only a person releases it.
	ProbeMS int64
}

// Held says whether nothing may be leased.
func (h Hold) Held() bool { return h.SinceMS != 0 }

// PausedMS is all time ever spent under a hold until now.
func (h Hold) PausedMS(now int64) int64 {
	if !h.Held() {
		return h.TotalMS
	}
	return h.TotalMS + max(0, now-h.SinceMS)
}

// Holds reads the holds of all destinations.
func (s *Store) Holds(ctx context.Context) (map[string]Hold, error) {
	p := s.client.Pipeline()
	cmds := map[string]*redis.MapStringStringCmd{}
	for _, d := range s.Destinations() {
		cmds[d] = p.HGetAll(ctx, keyHold(d))
	}
	if len(cmds) == 0 {
		return nil, nil
	}
	if _, err := p.Exec(ctx); err != nil {
		return nil, err
	}
	out := make(map[string]Hold, len(cmds))
	for d, cmd := range cmds {
		f := cmd.Val()
		out[d] = Hold{Epoch: atoi(f["epoch"]), TotalMS: atoi(f["total"]), SinceMS: atoi(f["since"]), Reason: f["reason"], ProbeMS: atoi(f["probe"])}
	}
	return out, nil
}

// AnyEpoch is the epoch of what a person does: it counts in any case.
const AnyEpoch = -1

// Hold stops a destination, if its epoch is still the given one; with AnyEpoch it ends probing, too.
func (s *Store) Hold(ctx context.Context, destination, reason string, epoch, probeMS int64) error {
	// Only known destinations are looked at; this one may never have had a delivery.
	if err := s.Know(ctx, destination); err != nil {
		return err
	}
	_, errs := s.run(ctx, []invocation{invoke(holdScript, []string{keyHold(destination)}, "hold", s.clock.Now(), epoch, reason, probeMS)})
	return errs[0]
}

// Release ends a hold, if its epoch is still the given one (a probe's success). Releasing what is not held does nothing.
func (s *Store) Release(ctx context.Context, destination string, epoch int64) error {
	_, errs := s.run(ctx, []invocation{invoke(holdScript, []string{keyHold(destination)}, "release", s.clock.Now(), epoch, "", 0)})
	return errs[0]
}
