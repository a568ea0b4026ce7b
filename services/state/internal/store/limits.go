package store

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed lua/limit.lua
var limitLua string

// A script of our own instead of redis_rate: that one only says no, so that waiting callers race again and again; this one
// reserves, so that each waits once and in order, and what an outside system asks for (Pause) is the same key. It runs
// through run, which mends a lost script cache without a second way.
var limitScript = redis.NewScript(limitLua)

// Take reserves n evenly spaced places of a limit and says how long to wait for them. Where that would be longer than
// maxWait nothing is reserved.
func (s *Store) Take(ctx context.Context, name string, perSecond, n int, maxWait time.Duration) (taken bool, wait time.Duration, err error) {
	return s.limit(ctx, name, "take", int64(time.Second/time.Microsecond)/int64(perSecond), n, maxWait.Microseconds())
}

// Pause lets nobody through for d; it never shortens a pause.
func (s *Store) Pause(ctx context.Context, name string, d time.Duration) error {
	_, _, err := s.limit(ctx, name, "pause", d.Microseconds(), 0, 0)
	return err
}

func (s *Store) limit(ctx context.Context, name, verb string, each int64, n int, maxWait int64) (bool, time.Duration, error) {
	replies, errs := s.run(ctx, limitScript, []invocation{{[]string{keyLimit(name)}, []any{verb, s.clock.Now() * 1000, each, n, maxWait}}})
	if errs[0] != nil {
		return false, 0, errs[0]
	}
	list, ok := replies[0].([]any)
	if !ok || len(list) != 2 {
		return false, 0, fmt.Errorf("script answered %v, expected two numbers", replies[0])
	}
	taken, _ := list[0].(int64)
	wait, _ := list[1].(int64)
	return taken == 1, time.Duration(wait) * time.Microsecond, nil
}
