package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"sync"
	"time"

	"callrelay/callback/pbxtable"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/accounts"
	"callrelay/services/upstream/internal/delivery"
	"callrelay/services/upstream/internal/webhook"
)

// webhookConfig is what can be set of the webhooks that calls of cloud PBXs are registered with.
type webhookConfig struct {
	Integrations string        `env:"PBX_INTEGRATIONS" desc:"File with integrations of cloud PBXs, loaded into state at start (docs/pbx.md); empty: those that state has. Needs SECRETS_KEY."`
	Concurrency  int           `env:"WEBHOOK_CONCURRENCY" envDefault:"4" desc:"Requests at once to the webhook of one integration, of all upstream processes together."`
	Timeout      time.Duration `env:"WEBHOOK_TIMEOUT" envDefault:"10s" desc:"Longest wait for a webhook's answer, connecting included."`
}

func (c *webhookConfig) problems(lease time.Duration, sealed bool) (problems []error) {
	if c.Concurrency < 1 {
		problems = append(problems, fmt.Errorf("WEBHOOK_CONCURRENCY: must be at least 1, not %d", c.Concurrency))
	}
	if c.Timeout <= 0 || lease < c.Timeout+leaseRoom {
		problems = append(problems, fmt.Errorf("WEBHOOK_TIMEOUT: must be positive and %v less than LEASE_TIME, not %v: a request could outlive its lease", leaseRoom, c.Timeout))
	}
	if _, err := readIntegrations(c.Integrations); err != nil {
		problems = append(problems, err)
	}
	if c.Integrations != "" && !sealed {
		problems = append(problems, errors.New("PBX_INTEGRATIONS: needs SECRETS_KEY, which seals the secrets of webhooks (docs/secrets.md)"))
	}
	return problems
}

// webhooks works off the queue of each integration: each has a line, a breaker and a hold of its own.
type webhooks struct {
	s     *Service
	trace func(http.RoundTripper) http.RoundTripper
	// running are the consumers by integration; failed is the version of an account with which there can be none.
	running map[string]*webhookConsumer
	failed  map[string]string
	all     sync.WaitGroup
}

type webhookConsumer struct {
	version string // of the account
	webhook pbxtable.Webhook
	secret  pbxtable.Secret
	stop    func()
}

// run keeps a consumer for each integration that state has, as it is there, until ctx ends.
func (w *webhooks) run(ctx context.Context) {
	defer w.all.Wait()
	accounts.NewFollower(w.s.accounts, pbxtable.AccountPrefix).Run(ctx, func(list accounts.List, _ bool) {
		if err := w.s.integrations.load(ctx, list); err != nil && ctx.Err() == nil {
			w.s.log.Error("an integration of PBX_INTEGRATIONS could not be stored, it is tried again", "error", err)
		}
		there := map[string]bool{}
		for _, a := range list.Accounts {
			there[a.GetId()] = true
			err := w.keep(ctx, a)
			if err != nil && !errors.Is(err, errChanged) && w.failed[a.GetId()] != a.GetVersion() {
				w.failed[a.GetId()] = a.GetVersion()
				w.s.log.Error("nothing can be sent to the webhook of an integration", "integration", a.GetId(), "error", err)
			}
		}
		for id := range w.running {
			if !there[id] {
				w.end(id)
			}
		}
	})
}

// keep sees to it that the integration's consumer runs as it is stored.
func (w *webhooks) keep(ctx context.Context, a *statev1.Account) error {
	old := w.running[a.GetId()]
	if old != nil && old.version == a.GetVersion() {
		return nil
	}
	stored, err := pbxtable.ParseStored(a.GetId(), a.GetSettings())
	if err != nil {
		return err
	}
	n := &stored.Integration
	secret, err := w.s.integrations.secret(a)
	if err == nil {
		err = w.s.integrations.reseal(ctx, a, secret)
	}
	if err != nil {
		return err
	}
	if old != nil && reflect.DeepEqual(old.webhook, n.Webhook) && old.secret == secret {
		old.version = a.GetVersion()
		return nil
	}
	w.end(a.GetId())
	key, err := secret.Key()
	if err != nil {
		return fmt.Errorf("webhook.secret %w", err)
	}
	consumer, err := w.consumer(n, key)
	if err != nil {
		return err
	}
	w.running[a.GetId()] = &webhookConsumer{version: a.GetVersion(), webhook: n.Webhook, secret: secret, stop: start(ctx, &w.all, consumer)}
	return nil
}

// end ends a consumer, if there is one.
func (w *webhooks) end(id string) {
	if one := w.running[id]; one != nil {
		one.stop()
		delete(w.running, id)
	}
}

func (w *webhooks) consumer(n *pbxtable.Integration, key []byte) (*delivery.Consumer, error) {
	c := &w.s.cfg
	client := webhook.New(webhook.Options{URL: n.Webhook.URL, Key: key, AllowPrivate: n.Webhook.AllowPrivate,
		Connect: c.Webhook.Timeout, Total: c.Webhook.Timeout, Concurrency: c.Webhook.Concurrency, Trace: w.trace})
	cfg := c.consumer(n.Destination())
	cfg.Workers, cfg.SendTimeout = c.Webhook.Concurrency, c.Webhook.Timeout
	cfg.Disabled, cfg.Policy.Ask = false, false // an uncertain attempt is made again: its Webhook-Id says that it is the same
	return delivery.New(cfg, w.s.state, client, w.s.tel)
}
