package run_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"callrelay/platform/rpc"
	"callrelay/platform/run"
)

// service is a run.Service that does as told. The zero value is ready and ends when it is asked to.
type service struct {
	registered atomic.Bool
	notReady   atomic.Pointer[error]
	run        func(ctx context.Context) error
}

func (s *service) Register(grpc.ServiceRegistrar) { s.registered.Store(true) }

func (s *service) Run(ctx context.Context) error {
	if s.run != nil {
		return s.run(ctx)
	}
	<-ctx.Done()
	return ctx.Err()
}

func (s *service) Ready() error {
	if err := s.notReady.Load(); err != nil {
		return *err
	}
	return nil
}

func start(t *testing.T, svc *service) *run.Host {
	t.Helper()
	h, err := run.Start(run.HostConfig{
		Name: "probe", GRPCAddr: "127.0.0.1:0", MetricsAddr: "127.0.0.1:0", StopTimeout: 5 * time.Second,
	}, svc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Stop() })
	return h
}

func get(t *testing.T, h *run.Host, path string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + h.MetricsAddr() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// waitHealth follows gRPC health, which is pushed, until it says want.
func waitHealth(t *testing.T, conn grpc.ClientConnInterface, want healthv1.HealthCheckResponse_ServingStatus) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	stream, err := healthv1.NewHealthClient(conn).Watch(ctx, &healthv1.HealthCheckRequest{})
	for err == nil {
		var resp *healthv1.HealthCheckResponse
		if resp, err = stream.Recv(); err == nil && resp.GetStatus() == want {
			return
		}
	}
	t.Fatalf("health never became %v: %v", want, err)
}

func TestHostServesAndEnds(t *testing.T) {
	defer goleak.VerifyNone(t)
	svc := &service{}
	h := start(t, svc)
	if !svc.registered.Load() {
		t.Error("not registered")
	}
	conn, err := rpc.Dial(h.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	serving, not := healthv1.HealthCheckResponse_SERVING, healthv1.HealthCheckResponse_NOT_SERVING
	waitHealth(t, conn, serving)
	waitHealth(t, h.Conn(), serving)
	for path, want := range map[string]string{
		"/healthz": "ok", "/readyz": "ok", "/metrics": "go_goroutines", "/debug/pprof/": "heap", "/debug/pprof/cmdline": "run.test",
	} {
		if code, body := get(t, h, path); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %.200s", path, code, body)
		}
	}

	waiting := errors.New("waiting for Redis")
	svc.notReady.Store(&waiting)
	waitHealth(t, conn, not)
	if code, body := get(t, h, "/readyz"); code != 503 || !strings.Contains(body, waiting.Error()) {
		t.Errorf("/readyz: %d %s", code, body)
	}
	if code, _ := get(t, h, "/healthz"); code != 200 {
		t.Errorf("/healthz depends on readiness: %d", code)
	}
	svc.notReady.Store(nil)
	waitHealth(t, conn, serving)

	select {
	case <-h.Done():
		t.Error("done before it was stopped")
	default:
	}
	_ = conn.Close()
	if err := h.Stop(); err != nil {
		t.Errorf("Stop: %v", err)
	}
	<-h.Done()
	if err := errors.Join(h.Err(), h.Stop()); err != nil {
		t.Errorf("after a clean end: %v", err)
	}
	for _, addr := range []string{h.Addr(), h.MetricsAddr()} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Errorf("still listening: %v", err)
			continue
		}
		_ = l.Close()
	}
}

// While Run drains, the host is not ready, and still reachable both ways and watchable.
func TestOrderOfStopping(t *testing.T) {
	defer goleak.VerifyNone(t)
	draining, drained := make(chan struct{}), make(chan struct{})
	h := start(t, &service{run: func(ctx context.Context) error {
		<-ctx.Done()
		close(draining)
		<-drained
		return nil
	}})
	waitHealth(t, h.Conn(), healthv1.HealthCheckResponse_SERVING)
	stopped := make(chan error)
	go func() { stopped <- h.Stop() }()
	<-draining
	resp, err := healthv1.NewHealthClient(h.Conn()).Check(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil || resp.GetStatus() != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health while draining: %v, %v", resp, err)
	}
	if code, body := get(t, h, "/readyz"); code != 503 || !strings.Contains(body, "stopping") {
		t.Errorf("/readyz while draining: %d %s", code, body)
	}
	close(drained)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestEarlyEnd(t *testing.T) {
	defer goleak.VerifyNone(t)
	broken := errors.New("broken")
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"with an error", broken, "probe: broken"},
		{"without", nil, "probe: ended although nobody stopped it"},
		{"with somebody's cancelled context", context.Canceled, "probe: context canceled"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := run.Serve(t.Context(), run.HostConfig{Name: "probe"}, &service{run: func(context.Context) error { return tt.err }})
			if err == nil || err.Error() != tt.want || tt.err != nil && !errors.Is(err, tt.err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	defer goleak.VerifyNone(t)
	ctx, cancel := context.WithCancel(t.Context())
	err := run.Serve(ctx, run.HostConfig{Name: "probe"}, &service{run: func(ctx context.Context) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}})
	if err != nil {
		t.Error(err)
	}
}

func TestErrorWhileDrainingIsReported(t *testing.T) {
	h := start(t, &service{run: func(ctx context.Context) error { <-ctx.Done(); return errors.New("not all was saved") }})
	if err := h.Stop(); err == nil || !strings.Contains(err.Error(), "not all was saved") {
		t.Errorf("got %v", err)
	}
}

func TestStopDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		h, err := run.Start(run.HostConfig{Name: "probe", StopTimeout: 3 * time.Second}, &service{
			run: func(context.Context) error { <-release; return nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		watch, err := healthv1.NewHealthClient(h.Conn()).Watch(t.Context(), &healthv1.HealthCheckRequest{}) // a call that does not end by itself
		if err != nil {
			t.Fatal(err)
		}
		if _, err := watch.Recv(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := h.Stop(); err == nil || err.Error() != "probe: did not end within 3s" {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took != 3600*time.Millisecond {
			t.Errorf("Stop took %v", took)
		}
		<-h.Done()
	})
}

func TestStartSaysWhichAddressIsTaken(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = free.Close()
	for what, cfg := range map[string]run.HostConfig{
		"PROBE_GRPC_ADDR": {Name: "probe", GRPCAddr: l.Addr().String()},
		"METRICS_ADDR":    {Name: "probe", GRPCAddr: free.Addr().String(), MetricsAddr: l.Addr().String()},
	} {
		_, err := run.Start(cfg, &service{})
		if err == nil || !strings.Contains(err.Error(), l.Addr().String()) || !strings.HasPrefix(err.Error(), what+": ") {
			t.Errorf("%s: got %v", what, err)
		}
	}
	// What was opened before the failure is closed again.
	again, err := net.Listen("tcp", free.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}
