// Package upstream delivers to the CRM what the rules queued.
//
// It owns the way out: the clients of the systems behind it, how often and how fast they are tried, and when they are left
// alone. It knows no rules and no Redis and keeps nothing across a restart: its only source of work, and the only place where
// its results go, is state's Lease stream. Beside that it connects accounts (KommoService), whose credentials state keeps.
package upstream

import (
	"context"
	"log/slog"
	"net/http"
	"sync"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/grpc"

	statev1 "callrelay/gen/callrelay/state/v1"
	upstreamv1 "callrelay/gen/callrelay/upstream/v1"
	"callrelay/platform/run"
	"callrelay/platform/telemetry"
	"callrelay/services/upstream/internal/delivery"
	"callrelay/services/upstream/internal/kommo"
	"callrelay/services/upstream/internal/topsii"
)

// Service delivers. Make it with New.
type Service struct {
	cfg      Config
	tel      *telemetry.Telemetry
	log      *slog.Logger
	state    statev1.StateServiceClient
	accounts statev1.AccountServiceClient
	topsii   *delivery.Consumer
	webhooks []*delivery.Consumer // one for each PBX integration
	client   *topsii.Client
	kommo    *kommo.Client // nil: there is no key to seal credentials with
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
	stateClient, accounts := statev1.NewStateServiceClient(state), statev1.NewAccountServiceClient(state)
	consumer, err := delivery.New(cfg.consumer("topsii"), stateClient, client, tel)
	if err != nil {
		return nil, err
	}
	k, err := newKommo(cfg, tel, accounts, statev1.NewLimitServiceClient(state), options.Trace)
	if err != nil {
		return nil, err
	}
	hooks, err := webhooks(cfg, tel, stateClient, options.Trace)
	if err != nil {
		return nil, err
	}
	return &Service{cfg: cfg, webhooks: hooks, tel: tel, log: tel.Log(), state: stateClient, accounts: accounts, topsii: consumer, client: client, kommo: k}, nil
}

// Register adds what is asked of upstream about accounts; its work it asks for itself.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	upstreamv1.RegisterKommoServiceServer(r, &kommoServer{Service: s})
}

// Run delivers until ctx ends; then it finishes or hands back what it has leased.
func (s *Service) Run(ctx context.Context) error {
	to := s.client.URL("<endpoint>")
	if s.cfg.RealSend {
		s.log.Info("sending to TopS.II", "environment", s.cfg.Environment, "url", to)
	} else {
		s.log.Warn("SENDING IS DISABLED: nothing is sent to TopS.II, now or later; ENABLE_REAL_SEND=true sends",
			"environment", s.cfg.Environment, "url", to)
	}
	if s.kommo != nil {
		accounts := make(chan struct{})
		go func() { defer close(accounts); s.runKommo(ctx) }()
		defer func() { <-accounts }()
	}
	var hooks sync.WaitGroup
	defer hooks.Wait()
	for _, c := range s.webhooks {
		hooks.Go(func() { _ = c.Run(ctx) }) // it logs what it cannot do and never gives up by itself
	}
	return s.topsii.Run(ctx)
}

// Ready reports whether work can be leased.
func (s *Service) Ready() error { return s.topsii.Ready() }
