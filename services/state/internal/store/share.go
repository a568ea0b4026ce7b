package store

import (
	"context"
	_ "embed"
	"fmt"

	statev1 "callrelay/gen/callrelay/state/v1"
)

//go:embed lua/share.lua
var shareLua string

var shareScript = newScript("", shareLua)

// Share gives a sending process its share of a destination. taken: another process goes by its name.
func (s *Store) Share(ctx context.Context, r *statev1.ShareRequest) (share int32, taken bool, err error) {
	replies, errs := s.run(ctx, []invocation{invoke(shareScript, []string{keyShares(r.GetDestination())},
		r.GetName(), r.GetInstance(), flag(r.GetKnown()), s.clock.Now(), r.GetForMs(), r.GetLimit(), r.GetHeld(), flag(r.GetWanted()))})
	if errs[0] != nil {
		return 0, false, errs[0]
	}
	n, ok := replies[0].(int64)
	if !ok {
		return 0, false, fmt.Errorf("script answered %T, expected a number", replies[0])
	}
	return int32(max(n, 0)), n < 0, nil
}
