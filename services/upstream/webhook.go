package upstream

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"callrelay/callback/pbxtable"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/telemetry"
	"callrelay/services/upstream/internal/delivery"
	"callrelay/services/upstream/internal/retry"
	"callrelay/services/upstream/internal/webhook"
)

// webhookConfig is what can be set of the webhooks that calls of cloud PBXs are registered with.
type webhookConfig struct {
	Integrations string        `env:"PBX_INTEGRATIONS" desc:"File with the table of cloud PBX integrations (docs/pbx.md), the same for ingress, router and upstream; empty means none."`
	Concurrency  int           `env:"WEBHOOK_CONCURRENCY" envDefault:"4" desc:"Requests at once to the webhook of one integration, of all upstream processes together."`
	Timeout      time.Duration `env:"WEBHOOK_TIMEOUT" envDefault:"10s" desc:"Longest wait for a webhook's answer, connecting included."`
}

func (c *webhookConfig) table(lease time.Duration) (*pbxtable.Table, error) {
	var problems []error
	if c.Concurrency < 1 {
		problems = append(problems, fmt.Errorf("WEBHOOK_CONCURRENCY: must be at least 1, not %d", c.Concurrency))
	}
	if c.Timeout <= 0 || lease < c.Timeout+leaseRoom {
		problems = append(problems, fmt.Errorf("WEBHOOK_TIMEOUT: must be positive and %v less than LEASE_TIME, not %v: a request could outlive its lease", leaseRoom, c.Timeout))
	}
	table := &pbxtable.Table{}
	if c.Integrations != "" {
		data, err := os.ReadFile(c.Integrations)
		if err == nil {
			table, err = pbxtable.Parse(data)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("PBX_INTEGRATIONS: %w", err))
		}
	}
	return table, errors.Join(problems...)
}

// webhooks makes a consumer for each integration: each has a line, a breaker and a hold of its own.
func webhooks(cfg Config, tel *telemetry.Telemetry, state statev1.StateServiceClient, trace func(http.RoundTripper) http.RoundTripper) ([]*delivery.Consumer, error) {
	table, err := cfg.Webhook.table(cfg.LeaseTime)
	if err != nil {
		return nil, err
	}
	var consumers []*delivery.Consumer
	for _, n := range table.Integrations {
		key, err := n.Webhook.Secret.Key()
		if err != nil {
			return nil, err
		}
		client := webhook.New(webhook.Options{URL: n.Webhook.URL, Key: key, AllowPrivate: n.Webhook.AllowPrivate,
			Connect: cfg.Webhook.Timeout, Total: cfg.Webhook.Timeout, Concurrency: cfg.Webhook.Concurrency, Trace: trace})
		consumer, err := delivery.New(delivery.Config{
			Destination: n.Destination(),
			Name:        cfg.name(),
			Workers:     cfg.Webhook.Concurrency,
			LeaseTime:   cfg.LeaseTime,
			SendTimeout: cfg.Webhook.Timeout,
			StopTimeout: cfg.StopTimeout,
			Policy: delivery.Policy{ // an uncertain attempt is made again: its Webhook-Id says that it is the same
				MaxAttempts:      cfg.MaxAttempts,
				AppErrorAttempts: cfg.AppErrorMaxAttempts,
				MaxAge:           cfg.MaxAge,
				Backoff:          retry.Backoff{Base: cfg.RetryBase, Max: cfg.RetryMax},
				ProbeInterval:    cfg.ProbeInterval,
			},
			Breaker: delivery.BreakerSettings{Failures: cfg.BreakerFailures, Open: cfg.BreakerOpen, Probes: cfg.BreakerProbes},
		}, state, client, tel)
		if err != nil {
			return nil, err
		}
		consumers = append(consumers, consumer)
	}
	return consumers, nil
}
