package run

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"callrelay/platform/rpc"
	"callrelay/platform/telemetry"
)

// Service is what a Host runs.
type Service interface {
	// Register adds the gRPC services; it is called once, before Run.
	Register(grpc.ServiceRegistrar)
	// Run works until ctx ends, then drains within bounds and returns, its streams' handlers too. Returning while ctx lives
	// ends the host, as an error even when it is nil.
	Run(ctx context.Context) error
	// Ready is nil when the service can do its work; else it says what is missing. It is asked often and at any time.
	Ready() error
}

// HostConfig says where and how a service runs.
type HostConfig struct {
	Name        string               // in messages, and in that of its setting NAME_GRPC_ADDR
	GRPCAddr    string               // empty: reachable only in process, through Conn
	MetricsAddr string               // /metrics, /healthz, /readyz, /debug/pprof/; empty: not served
	StopTimeout time.Duration        // how long Run and the calls under way may take to end; 0 = 10 s
	Telemetry   *telemetry.Telemetry // nil: logs and metrics, no traces
}

// readyEvery is how often gRPC health follows Ready.
const readyEvery = 250 * time.Millisecond

// Host runs one service.
type Host struct {
	cfg     HostConfig
	svc     Service
	server  *rpc.Server
	metrics *http.Server

	grpcAddr, metricsAddr string

	unready  context.CancelFunc // ends the polling of Ready
	polled   chan struct{}      // closed when the polling has ended
	cancel   context.CancelFunc // ends Run
	ran      chan struct{}      // closed when Run has returned
	servers  sync.WaitGroup
	stopping atomic.Bool
	stop     sync.Once

	done  chan struct{}
	ended sync.Once
	mu    sync.Mutex
	err   error
}

// Start listens, so it fails here if an address is taken, and then runs the service.
func Start(cfg HostConfig, svc Service) (*Host, error) {
	if cfg.StopTimeout == 0 {
		cfg.StopTimeout = 10 * time.Second
	}
	if cfg.Telemetry == nil {
		cfg.Telemetry = telemetry.NewGroup(nil).Service(cfg.Name)
	}
	grpcListener, err := listen(cfg.GRPCAddr)
	if err != nil {
		return nil, fmt.Errorf("%s_GRPC_ADDR: %w", strings.ToUpper(cfg.Name), err)
	}
	metricsListener, err := listen(cfg.MetricsAddr)
	if err != nil {
		if grpcListener != nil {
			_ = grpcListener.Close()
		}
		return nil, fmt.Errorf("METRICS_ADDR: %w", err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	polling, unready := context.WithCancel(context.Background())
	h := &Host{
		cfg:     cfg,
		svc:     svc,
		server:  rpc.NewServer(cfg.Telemetry.Log()),
		unready: unready,
		polled:  make(chan struct{}),
		cancel:  cancel,
		ran:     make(chan struct{}),
		done:    make(chan struct{}),
	}
	svc.Register(h.server.Registrar())
	h.server.InProcess()
	if grpcListener != nil {
		h.grpcAddr = grpcListener.Addr().String()
		h.servers.Go(func() { h.end(h.server.Serve(grpcListener)) })
	}
	if metricsListener != nil {
		h.metricsAddr = metricsListener.Addr().String()
		h.metrics = &http.Server{Handler: h.mux(), ReadHeaderTimeout: 5 * time.Second}
		h.servers.Go(func() {
			if err := h.metrics.Serve(metricsListener); !errors.Is(err, http.ErrServerClosed) {
				h.end(err)
			}
		})
	}
	go h.run(ctx)
	go h.followReady(polling)
	return h, nil
}

func listen(addr string) (net.Listener, error) {
	if addr == "" {
		return nil, nil
	}
	return net.Listen("tcp", addr)
}

func (h *Host) run(ctx context.Context) {
	defer close(h.ran)
	err := h.svc.Run(ctx)
	switch {
	case ctx.Err() == nil && err == nil:
		err = errors.New("ended although nobody stopped it")
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		err = nil
	}
	h.end(err)
}

// followReady keeps gRPC health in step with Ready. Polling needs no part of the service to remember to report.
func (h *Host) followReady(ctx context.Context) {
	defer close(h.polled)
	defer h.server.SetServing(false)
	tick := time.NewTicker(readyEvery)
	defer tick.Stop()
	for {
		h.server.SetServing(h.ready() == nil)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (h *Host) ready() error {
	select {
	case <-h.done:
		return errors.New("ended")
	default:
	}
	if h.stopping.Load() {
		return errors.New("stopping")
	}
	return h.svc.Ready()
}

// end records how a part of the host ended; with the first, the host as a whole has.
func (h *Host) end(err error) {
	h.mu.Lock()
	if err != nil {
		h.err = errors.Join(h.err, fmt.Errorf("%s: %w", h.cfg.Name, err))
	}
	h.mu.Unlock()
	h.ended.Do(func() { close(h.done) })
}

// Conn is the connection to the service that does not touch the network. Stop closes it.
func (h *Host) Conn() grpc.ClientConnInterface { return h.server.InProcess() }

// Addr is the address that gRPC is served on, with its real port; empty if it is not.
func (h *Host) Addr() string { return h.grpcAddr }

// MetricsAddr is the address that metrics are served on, with its real port; empty if they are not.
func (h *Host) MetricsAddr() string { return h.metricsAddr }

// Done is closed when the service has ended, by itself or by Stop. What remains of the host then still needs Stop.
func (h *Host) Done() <-chan struct{} { return h.done }

// Err says what went wrong so far; nil also after a clean end.
func (h *Host) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// Stop ends the host and returns Err. The order is: not ready any more, so that no new work is sent here; Run ends, still
// reachable for those whose work it finishes; gRPC ends; metrics last, so that the end can be watched. It takes at most
// the StopTimeout and a fifth of it. A Run that does not end in time is left behind, as an error.
func (h *Host) Stop() error {
	h.stop.Do(func() {
		h.stopping.Store(true)
		h.unready()
		<-h.polled
		h.cancel()
		end := time.Now().Add(h.cfg.StopTimeout)
		select {
		case <-h.ran:
		case <-time.After(h.cfg.StopTimeout):
			h.end(fmt.Errorf("did not end within %v", h.cfg.StopTimeout))
		}
		h.server.Stop(max(time.Until(end), h.cfg.StopTimeout/5))
		if h.metrics != nil {
			_ = h.metrics.Close()
		}
		h.servers.Wait()
	})
	return h.Err()
}

// Serve runs the service until ctx ends or the service does, then stops it.
func Serve(ctx context.Context, cfg HostConfig, svc Service) error {
	h, err := Start(cfg, svc)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-h.Done():
	}
	return h.Stop()
}

// mux serves what operators and their tools ask a process. /healthz does not depend on Ready: restarting a service does
// not mend what it waits for.
func (h *Host) mux() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", h.cfg.Telemetry.MetricsHandler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := h.ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}
