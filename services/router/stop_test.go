package router

import (
	"cmp"
	"context"
	"testing"
	"testing/synctest"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/config"
	"callrelay/platform/rpc"
	"callrelay/platform/telemetry"
)

// A process that stops while state does not answer hands back what it has in the time that it has for that.
func TestStopInTime(t *testing.T) {
	for _, limit := range []time.Duration{0, time.Second} {
		t.Run(limit.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testStopInTime(t, limit) })
		})
	}
}

func testStopInTime(t *testing.T, limit time.Duration) {
	f := &fakeState{calls: map[string]*fakeCall{}, leases: make(chan *statev1.LeaseRequest, 16)}
	f.before = func(*statev1.CommitItem) (lost bool) { return true }
	f.work = []*statev1.LeaseWork{{Call: "ameyo/1", Token: "a", Entry: &statev1.Entry{Timer: "t", TimerId: "c1"}}}
	tel := telemetry.NewGroup(nil).Service("test")
	server := rpc.NewServer(tel.Log())
	statev1.RegisterStateServiceServer(server.Registrar(), f)
	defer server.Stop(time.Second)
	cfg, err := config.LoadFrom[Config](nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg.StopTimeout = limit
	s, err := New(cfg, tel, server.InProcess())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { _ = s.Run(ctx); close(ended) }()
	<-f.leases // the credit
	synctest.Wait()
	stop()
	begun := time.Now()
	<-ended
	if took := time.Since(begun); took >= cmp.Or(limit, StopTimeout) {
		t.Errorf("it took %v", took)
	}
	if req := <-f.leases; len(req.GetResults()) != 1 || req.GetResults()[0].GetToken() != "a" {
		t.Errorf("handed back %v", req)
	}
}
