package state

import (
	"context"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/errkind"
)

type limits struct {
	statev1.UnimplementedLimitServiceServer
	*Service
}

// maxPause bounds what an outside system may ask for.
const maxPause = 24 * time.Hour

// Take reserves places in a limit.
func (s *limits) Take(ctx context.Context, req *statev1.TakeRequest) (*statev1.TakeResponse, error) {
	maxWait := time.Duration(req.GetMaxWaitMs()) * time.Millisecond
	switch {
	case !named(req.GetName()):
		return nil, errkind.Invalid("name", "name must be 1 to %d bytes", maxName)
	case req.GetPerSecond() < 1 || req.GetPerSecond() > 1000:
		return nil, errkind.Invalid("per_second", "per_second must be 1 to 1000, not %d", req.GetPerSecond())
	case req.GetN() < 1 || req.GetN() > 100:
		return nil, errkind.Invalid("n", "n must be 1 to 100, not %d", req.GetN())
	case maxWait < 0 || maxWait > maxPause:
		return nil, errkind.Invalid("max_wait_ms", "max_wait_ms must be 0 to %d", maxPause.Milliseconds())
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	taken, wait, err := s.store.Take(ctx, req.GetName(), int(req.GetPerSecond()), int(req.GetN()), maxWait)
	if err != nil {
		return nil, unavailable(err)
	}
	return &statev1.TakeResponse{Taken: taken, WaitMs: roundUp(wait)}, nil
}

// Pause lets nobody through for a while.
func (s *limits) Pause(ctx context.Context, req *statev1.PauseRequest) (*statev1.PauseResponse, error) {
	pause := time.Duration(req.GetForMs()) * time.Millisecond
	switch {
	case !named(req.GetName()):
		return nil, errkind.Invalid("name", "name must be 1 to %d bytes", maxName)
	case pause <= 0 || pause > maxPause:
		return nil, errkind.Invalid("for_ms", "for_ms must be 1 to %d", maxPause.Milliseconds())
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	if err := s.store.Pause(ctx, req.GetName(), pause); err != nil {
		return nil, unavailable(err)
	}
	return &statev1.PauseResponse{}, nil
}

// roundUp is in milliseconds, up, so that nobody goes a moment too early.
func roundUp(d time.Duration) int64 { return (d + time.Millisecond - 1).Milliseconds() }
