package state

import (
	"strings"
	"testing"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
)

// A sender that counts on a longer lease than state gives has no share, so it sends nothing, and is told why: its requests could
// outlive their leases and be sent twice.
func TestShareNeedsTheSameLeaseTime(t *testing.T) {
	s := &server{Service: &Service{cfg: Config{LeaseTime: 30 * time.Second}}}
	_, err := s.Share(t.Context(), &statev1.ShareRequest{Destination: "topsii", Name: "a", Instance: "b", Limit: 1, ForMs: 45_000})
	if err == nil || !strings.Contains(err.Error(), "LEASE_TIME is 45s in upstream and only 30s in state") {
		t.Errorf("answered %v", err)
	}
}
