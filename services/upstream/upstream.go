// Package upstream delivers to the CRM what the rules queued.
//
// It owns the way out: the clients of the systems behind it, how often and how fast they are tried, and when they are left
// alone. It knows no rules and no Redis and keeps nothing across a restart: its only source of work, and the only place where
// its results go, is state's Lease stream. Beside that it connects accounts and PBX integrations (KommoService, PbxService), which state keeps with sealed credentials.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"

	"google.golang.org/grpc"

	statev1 "callrelay/gen/callrelay/state/v1"
	upstreamv1 "callrelay/gen/callrelay/upstream/v1"
	"callrelay/platform/run"
	"callrelay/platform/seal"
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
	client   *topsii.Client
	kommo    *kommo.Client // nil: there is no key to seal credentials with

	integrations *integrations
	webhooks     *webhooks
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
		options.Trace = func(base http.RoundTripper) http.RoundTripper { return traced{base, tel.Tracer()} }
	}
	client := topsii.New(options)
	stateClient, accounts := statev1.NewStateServiceClient(state), statev1.NewAccountServiceClient(state)
	consumer, err := delivery.New(cfg.consumer("topsii"), stateClient, client, tel)
	if err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, tel: tel, log: tel.Log(), state: stateClient, accounts: accounts, topsii: consumer, client: client,
		integrations: &integrations{accounts: accounts, log: tel.Log()}}
	s.webhooks = &webhooks{s: s, trace: options.Trace, running: map[string]*webhookConsumer{}, failed: map[string]string{}}
	if s.integrations.file, err = readIntegrations(cfg.Webhook.Integrations); err != nil {
		return nil, err
	}
	if cfg.Kommo.SecretsKey != "" {
		keys, err := seal.Parse(cfg.Kommo.SecretsKey.Reveal())
		if err != nil {
			return nil, fmt.Errorf("SECRETS_KEY: %w", err)
		}
		s.integrations.keys = keys
		s.kommo = newKommo(cfg, tel, keys, accounts, statev1.NewLimitServiceClient(state), options.Trace)
	}
	return s, nil
}

// Register adds what is asked of upstream about accounts; its work it asks for itself.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	upstreamv1.RegisterKommoServiceServer(r, &kommoServer{Service: s})
	upstreamv1.RegisterPbxServiceServer(r, &pbxServer{integrations: s.integrations})
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
	var others sync.WaitGroup
	if s.kommo != nil {
		others.Go(func() { s.runKommo(ctx) })
	}
	others.Go(func() { s.webhooks.run(ctx) })
	s.topsii.Run(ctx)
	others.Wait()
	return nil
}

// Ready reports whether work can be leased, and PBX_INTEGRATIONS is loaded.
func (s *Service) Ready() error {
	if len(s.integrations.file) > 0 && !s.integrations.loaded.Load() {
		return errors.New("PBX_INTEGRATIONS is not in state yet")
	}
	return s.topsii.Ready()
}
