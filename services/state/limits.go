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

const (
	// maxPause bounds what an outside system may ask for.
	maxPause = 24 * time.Hour
	// maxPlace bounds how long a request may be under way.
	maxPlace = time.Hour
)

// Take takes a place in a limit.
func (s *limits) Take(ctx context.Context, req *statev1.TakeRequest) (*statev1.TakeResponse, error) {
	lease := time.Duration(req.GetLeaseMs()) * time.Millisecond
	switch {
	case !named(req.GetName()):
		return nil, errkind.Invalid("name", "name must be 1 to %d bytes", maxName)
	case !named(req.GetToken()):
		return nil, errkind.Invalid("token", "token must be 1 to %d bytes", maxName)
	case req.GetPlaces() < 1 || req.GetPlaces() > 1000:
		return nil, errkind.Invalid("places", "places must be 1 to 1000, not %d", req.GetPlaces())
	case lease <= 0 || lease > maxPlace:
		return nil, errkind.Invalid("lease_ms", "lease_ms must be 1 to %d", maxPlace.Milliseconds())
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	wait, err := s.store.Take(ctx, req.GetName(), req.GetToken(), int(req.GetPlaces()), lease)
	if err != nil {
		return nil, unavailable(err)
	}
	return &statev1.TakeResponse{Taken: wait == 0, WaitMs: roundUp(wait)}, nil
}

// Release gives a place back.
func (s *limits) Release(ctx context.Context, req *statev1.ReleaseRequest) (*statev1.ReleaseResponse, error) {
	switch {
	case !named(req.GetName()):
		return nil, errkind.Invalid("name", "name must be 1 to %d bytes", maxName)
	case !named(req.GetToken()):
		return nil, errkind.Invalid("token", "token must be 1 to %d bytes", maxName)
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	if err := s.store.ReleasePlace(ctx, req.GetName(), req.GetToken(), req.GetUnused()); err != nil {
		return nil, unavailable(err)
	}
	return &statev1.ReleaseResponse{}, nil
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
