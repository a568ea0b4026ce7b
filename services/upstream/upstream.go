// Package upstream delivers to the CRM what the rules queued.
//
// It owns the way out: the clients of the systems behind it, how often and how fast they are tried, and when they are left
// alone. It knows no rules and no Redis, keeps nothing across a restart, and serves no RPCs beside health: its only source
// of work, and the only place where its results go, is state's Lease stream.
package upstream

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/grpc"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/run"
	"callrelay/platform/telemetry"
	"callrelay/services/upstream/internal/delivery"
	"callrelay/services/upstream/internal/retry"
	"callrelay/services/upstream/internal/topsii"
)

// Service delivers. Make it with New.
type Service struct {
	cfg    Config
	log    *slog.Logger
	client *topsii.Client
	// consumers work off one destination each; the first is TopS.II's.
	consumers []*delivery.Consumer
}

var _ run.Service = (*Service)(nil)

// New makes the service from a configuration that was validated. Nothing happens before Run.
func New(cfg Config, tel *telemetry.Telemetry, state grpc.ClientConnInterface) (*Service, error) {
	baseURL, apiKey := cfg.chosen()
	options := topsii.Options{
		BaseURL:     baseURL,
		PathPrefix:  cfg.PathPrefix,
		APIKey:      apiKey.Reveal(),
		Connect:     cfg.ConnectTimeout,
		Total:       cfg.Timeout,
		Concurrency: cfg.Concurrency,
	}
	if tel.Tracing() {
		options.Trace = func(base http.RoundTripper) http.RoundTripper {
			return otelhttp.NewTransport(base,
				otelhttp.WithTracerProvider(tel.TracerProvider()),
				otelhttp.WithMeterProvider(noop.NewMeterProvider()), // delivery has its own
				otelhttp.WithPropagators(propagation.TraceContext{}))
		}
	}
	client := topsii.New(options)
	stateClient := statev1.NewStateServiceClient(state)
	consumer, err := delivery.New(delivery.Config{
		Destination: "topsii",
		Workers:     cfg.Concurrency,
		LeaseTime:   cfg.LeaseTime,
		SendTimeout: cfg.Timeout,
		StopTimeout: cfg.StopTimeout,
		Disabled:    !bool(cfg.RealSend),
		Policy: delivery.Policy{
			Ask:              cfg.Uncertain == "ask",
			MaxAttempts:      cfg.MaxAttempts,
			AppErrorAttempts: cfg.AppErrorMaxAttempts,
			MaxAge:           cfg.MaxAge,
			Backoff:          retry.Backoff{Base: cfg.RetryBase, Max: cfg.RetryMax},
			ProbeInterval:    cfg.ProbeInterval,
		},
		Breaker: delivery.BreakerSettings{Failures: cfg.BreakerFailures, Open: cfg.BreakerOpen, Probes: cfg.BreakerProbes},
	}, stateClient, client, tel)
	if err != nil {
		return nil, err
	}
	hooks, err := webhooks(cfg, tel, stateClient, options.Trace)
	if err != nil {
		return nil, err
	}
	return &Service{cfg: cfg, log: tel.Log(), client: client, consumers: append([]*delivery.Consumer{consumer}, hooks...)}, nil
}

// Register adds nothing: upstream is not called, it asks for work.
func (s *Service) Register(grpc.ServiceRegistrar) {}

// Run delivers until ctx ends; then it finishes or hands back what it has leased.
func (s *Service) Run(ctx context.Context) error {
	to := s.client.URL("<endpoint>")
	if s.cfg.RealSend {
		s.log.Info("sending to TopS.II", "environment", s.cfg.Environment, "url", to)
	} else {
		s.log.Warn("SENDING IS DISABLED: nothing is sent to TopS.II, now or later; ENABLE_REAL_SEND=true sends",
			"environment", s.cfg.Environment, "url", to)
	}
	var running sync.WaitGroup
	errs := make([]error, len(s.consumers))
	for i, c := range s.consumers {
		running.Go(func() { errs[i] = c.Run(ctx) })
	}
	running.Wait()
	return errors.Join(errs...)
}

// Ready reports whether work can be leased.
func (s *Service) Ready() error { return s.consumers[0].Ready() }
