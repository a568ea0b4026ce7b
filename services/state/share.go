package state

import (
	"context"
	"strings"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/errkind"
)

const (
	// maxShared bounds what a sender may say of itself.
	maxShared    = 1_000_000
	maxShareTime = 24 * time.Hour
)

// Share divides a destination among its senders.
func (s *server) Share(ctx context.Context, req *statev1.ShareRequest) (*statev1.ShareResponse, error) {
	switch {
	case !named(req.GetDestination()):
		return nil, errkind.Invalid("destination", "destination must be 1 to %d bytes", maxName)
	case !named(req.GetName()):
		return nil, errkind.Invalid("name", "name must be 1 to %d bytes", maxName)
	case !named(req.GetInstance()) || strings.ContainsAny(req.GetInstance(), " \t\r\n"):
		return nil, errkind.Invalid("instance", "instance must be 1 to %d bytes without blanks", maxName)
	case req.GetLimit() < 1 || req.GetLimit() > maxShared:
		return nil, errkind.Invalid("limit", "limit must be 1 to %d, not %d", maxShared, req.GetLimit())
	case req.GetHeld() < 0 || req.GetHeld() > maxShared:
		return nil, errkind.Invalid("held", "held must be 0 to %d, not %d", maxShared, req.GetHeld())
	case req.GetForMs() < 1 || req.GetForMs() > maxShareTime.Milliseconds():
		return nil, errkind.Invalid("for_ms", "for_ms must be 1 to %d", maxShareTime.Milliseconds())
	case req.GetForMs() > s.cfg.LeaseTime.Milliseconds(): // without a share it sends nothing
		return nil, errkind.Refused("LEASE_TIME is %v in upstream and only %v in state, so a request could outlive its lease and be sent twice: set both alike",
			time.Duration(req.GetForMs())*time.Millisecond, s.cfg.LeaseTime)
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	share, taken, err := s.store.Share(ctx, req)
	if err != nil {
		return nil, unavailable(err)
	}
	return &statev1.ShareResponse{Share: share, Taken: taken}, nil
}
