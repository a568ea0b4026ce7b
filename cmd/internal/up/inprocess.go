package up

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"callrelay/platform/run"
	"callrelay/platform/telemetry"
	"callrelay/services/ingress"
	"callrelay/services/router"
	"callrelay/services/state"
	"callrelay/services/upstream"
)

// together is the relay in this process. The services speak gRPC with each other as if they were apart, but not over the
// network.
type together struct {
	telemetry *telemetry.Group
	hosts     []*run.Host // in the order of their start
	ingress   *ingress.Service
	log       *slog.Logger
	failure   chan error
}

func inProcess(ctx context.Context, o Options, c configs, _ map[string]string) (relay, error) {
	group, err := telemetry.StartGroup(ctx)
	if err != nil {
		return nil, err
	}
	t := &together{telemetry: group, log: o.Log, failure: make(chan error, 4)}
	// One metrics address serves all: ingress' one. A host takes at most a fifth more than its stopTimeout; all together stay in stopTime.
	start := func(name, grpcAddr, metricsAddr string, stopTimeout time.Duration, tel *telemetry.Telemetry, svc run.Service) (*run.Host, error) {
		host, err := run.Start(run.HostConfig{Name: name, GRPCAddr: grpcAddr, MetricsAddr: metricsAddr, StopTimeout: stopTimeout, Telemetry: tel}, svc)
		if err != nil {
			return nil, err
		}
		t.hosts = append(t.hosts, host)
		go func() {
			<-host.Done()
			t.failure <- host.Err()
		}()
		return host, ready(ctx, o, name, host.Conn(), host.Done())
	}

	tel := group.Service("callrelay-state")
	stateService, err := state.New(c.state, tel)
	if err != nil {
		return t, err
	}
	stateHost, err := start("state", c.state.GRPCAddr, "", 300*time.Millisecond, tel, stateService)
	if err != nil {
		return t, err
	}

	tel = group.Service("callrelay-router")
	c.router.StopTimeout = time.Second
	routerService, err := router.New(c.router, tel, stateHost.Conn())
	if err != nil {
		return t, err
	}
	routerHost, err := start("router", c.router.GRPCAddr, "", c.router.StopTimeout, tel, routerService)
	if err != nil {
		return t, err
	}

	tel = group.Service("callrelay-upstream")
	c.upstream.StopTimeout = min(c.upstream.StopTimeout, 400*time.Millisecond)
	upstreamService, err := upstream.New(c.upstream, tel, stateHost.Conn())
	if err != nil {
		return t, err
	}
	if _, err := start("upstream", c.upstream.GRPCAddr, "", 500*time.Millisecond, tel, upstreamService); err != nil {
		return t, err
	}

	tel = group.Service("callrelay-ingress")
	c.ingress.StopDelay = min(c.ingress.StopDelay, 300*time.Millisecond) // the rest of its time is for the requests under way
	if t.ingress, err = ingress.New(c.ingress, tel, routerHost.Conn(), stateHost.Conn()); err != nil {
		return t, err
	}
	_, err = start("ingress", c.ingress.GRPCAddr, c.ingress.MetricsAddr, 700*time.Millisecond, tel, t.ingress)
	return t, err
}

func (t *together) httpAddr() string { return t.ingress.HTTPAddr() }

func (t *together) failed() <-chan error { return t.failure }

func (t *together) stop(b *budget) {
	for _, host := range slices.Backward(t.hosts) {
		b.next()
		if err := host.Stop(); err != nil {
			t.log.Warn("stopping", "error", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), partTime)
	defer cancel()
	if err := t.telemetry.Shutdown(ctx); err != nil {
		t.log.Warn("the last traces were not sent", "error", err)
	}
}
