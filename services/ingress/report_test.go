package ingress

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	statev1 "callrelay/gen/callrelay/state/v1"
)

// hearing is a state that hears reports and does not always answer.
type hearing struct {
	statev1.StateServiceClient
	heard []int64
}

func (h *hearing) Report(ctx context.Context, r *statev1.ReportRequest, _ ...grpc.CallOption) (*statev1.ReportResponse, error) {
	if h.heard = append(h.heard, r.GetSpooled()); len(h.heard) == 2 {
		<-ctx.Done() // this one takes as long as it may
		return nil, ctx.Err()
	}
	return nil, errors.New("away")
}

// The spool is reported again and again, whatever became of the report before: the alarm lives on it.
func TestReportsGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*reportEvery+time.Second)
		defer cancel()
		state, spooled := &hearing{}, int64(0)
		reporting(ctx, state, func() *statev1.ReportRequest { spooled++; return &statev1.ReportRequest{Spooled: spooled} })
		if n := len(state.heard); n < 10 || state.heard[n-1] != int64(n) {
			t.Errorf("%d reports in ten times %v: %v", n, reportEvery, state.heard)
		}
	})
}
