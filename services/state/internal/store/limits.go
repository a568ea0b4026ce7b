package store

import (
	"context"
	_ "embed"
	"time"
)

//go:embed lua/limit.lua
var limitLua string

// A script of our own instead of redis_rate: that one counts what leaves, and nobody knows when it arrives. It runs through
// run, which mends a lost script cache without a second way.
var limitScript = newScript("", limitLua)

// aSecond is how long nobody else gets a place after it was given back: the outside system's second, and what its clock and
// Redis' may disagree about within one.
const aSecond = time.Second + 50*time.Millisecond

// Take takes one of the places of a limit for a request, until it is released, at most for lease; or says how long no place
// can be free. Times are by Redis' own clock: those of two state processes differ by more than a part of a second.
func (s *Store) Take(ctx context.Context, name, token string, places int, lease time.Duration) (wait time.Duration, err error) {
	return s.limit(ctx, name, "take", token, lease, places, "")
}

// ReleasePlace gives a place back; where it was unused, to be taken at once.
func (s *Store) ReleasePlace(ctx context.Context, name, token string, unused bool) error {
	keep := aSecond
	if unused {
		keep = 0
	}
	_, err := s.limit(ctx, name, "release", token, keep, 0, "")
	return err
}

// Pause lets nobody through for d; it never shortens a pause.
func (s *Store) Pause(ctx context.Context, name string, d time.Duration) error {
	_, err := s.limit(ctx, name, "pause", "", d, 0, "")
	return err
}

// limit runs the script. now is for tests; empty = Redis' clock.
func (s *Store) limit(ctx context.Context, name, verb, token string, ends time.Duration, places int, now string) (time.Duration, error) {
	replies, errs := s.run(ctx, []invocation{invoke(limitScript, []string{keyLimit(name)},
		verb, token, ends.Microseconds(), places, aSecond.Microseconds(), now)})
	wait, _ := replies[0].(int64)
	return time.Duration(wait) * time.Microsecond, errs[0]
}
