package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
	upstreamv1 "callrelay/gen/callrelay/upstream/v1"
	"callrelay/platform/accounts"
	"callrelay/platform/config"
	"callrelay/platform/errkind"
	"callrelay/platform/seal"
	"callrelay/platform/telemetry"
	"callrelay/services/upstream/internal/delivery"
	"callrelay/services/upstream/internal/kommo"
)

// KommoConfig is everything that can be set of Kommo. Without SECRETS_KEY there is no Kommo.
type KommoConfig struct {
	SecretsKey   config.Secret `env:"SECRETS_KEY" desc:"Keys that seal credentials at rest: id:base64 of 32 bytes, several separated by commas, the newest first (docs/secrets.md). Required to connect accounts and for PBX integrations."`
	ClientID     string        `env:"KOMMO_CLIENT_ID" desc:"The Kommo integration's id; empty: only long-lived tokens work, and no call-result window."`
	ClientSecret config.Secret `env:"KOMMO_CLIENT_SECRET" desc:"The Kommo integration's secret, with which Kommo also signs the tokens of the call-result window."`
	RedirectURI  string        `env:"KOMMO_REDIRECT_URI" desc:"The Kommo integration's redirect address, exactly as it is configured there."`
	Domains      []string      `env:"KOMMO_DOMAINS" envDefault:"kommo.com" desc:"Domains directly below which Kommo accounts are; nothing is sent anywhere else."`
	BaseURL      string        `env:"KOMMO_BASE_URL" desc:"Address of a simulator that answers in place of every account."`
	Concurrency  int           `env:"KOMMO_CONCURRENCY" envDefault:"4" desc:"Deliveries to one Kommo account at once, of all upstream processes together."`
	PerSecond    int           `env:"KOMMO_RATE" envDefault:"7" desc:"Requests that may arrive in any second at one account, and from one outgoing address, 1 to 7. Kommo allows 7, and stops the account for minutes after one more."`
	Address      string        `env:"KOMMO_ADDRESS" envDefault:"default" desc:"Name of the outgoing address; replicas with the same name share its limit."`
	Request      time.Duration `env:"KOMMO_REQUEST_TIMEOUT" envDefault:"15s" desc:"Longest wait for one answer of Kommo, connecting included."`
	Total        time.Duration `env:"KOMMO_TIMEOUT" envDefault:"30s" desc:"Longest time for all requests of one delivery."`
	Refresh      time.Duration `env:"KOMMO_REFRESH_BEFORE" envDefault:"1h" desc:"How long before its end an access token is renewed."`
	NoteID       config.Switch `env:"KOMMO_CALL_ID_IS_NOTE_ID" envDefault:"false" desc:"Trust that the id that Kommo answers to a call is its note's; off: a note is read before it is changed. Unconfirmed, see callrelay integrations check."`
	Settle       time.Duration `env:"KOMMO_SETTLE" envDefault:"20s" desc:"How long Kommo may still work on a request whose answer did not come, at most 1h; not looked for and not sent again before. Unconfirmed."`
	PauseAddress config.Switch `env:"KOMMO_PAUSE_ADDRESS" envDefault:"false" desc:"After a 429 stop every account behind the same outgoing address and not only the one. Unconfirmed."`
}

func (c *KommoConfig) problems(leaseTime time.Duration) (problems []error) {
	check := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	if c.SecretsKey != "" {
		_, err := seal.Parse(c.SecretsKey.Reveal())
		check(err == nil, "SECRETS_KEY: %w", err)
	}
	check(c.ClientID == "" || c.ClientSecret != "" && c.RedirectURI != "" && c.SecretsKey != "",
		"KOMMO_CLIENT_ID: needs KOMMO_CLIENT_SECRET, KOMMO_REDIRECT_URI and SECRETS_KEY too")
	check(c.BaseURL == "" || absoluteHTTP(c.BaseURL), "KOMMO_BASE_URL: must be an absolute http or https address")
	check(len(c.Domains) > 0, "KOMMO_DOMAINS: at least one domain is required")
	check(c.Concurrency > 0, "KOMMO_CONCURRENCY: must be at least 1, not %d", c.Concurrency)
	check(c.PerSecond >= 1 && c.PerSecond <= 7, "KOMMO_RATE: must be 1 to 7, not %d", c.PerSecond)
	check(c.Address != "" && len(c.Address) <= 64, "KOMMO_ADDRESS: must be 1 to 64 bytes")
	check(c.Request > 0 && c.Request <= time.Minute, "KOMMO_REQUEST_TIMEOUT: must be positive and at most 1m, not %v", c.Request)
	check(c.Total >= c.Request, "KOMMO_TIMEOUT: must be at least KOMMO_REQUEST_TIMEOUT")
	check(leaseTime >= c.Total+leaseRoom, "LEASE_TIME: must be at least KOMMO_TIMEOUT + %v = %v, not %v", leaseRoom, c.Total+leaseRoom, leaseTime)
	check(c.Refresh >= time.Minute && c.Refresh <= 12*time.Hour, "KOMMO_REFRESH_BEFORE: must be 1m to 12h, not %v", c.Refresh)
	check(c.Settle > 0 && c.Settle <= time.Hour, "KOMMO_SETTLE: must be positive and at most 1h, not %v", c.Settle)
	return problems
}

func newKommo(cfg Config, tel *telemetry.Telemetry, keys *seal.Keys, accounts statev1.AccountServiceClient, limits statev1.LimitServiceClient,
	trace func(http.RoundTripper) http.RoundTripper) *kommo.Client {
	k := cfg.Kommo
	return kommo.New(kommo.Options{
		Accounts: accounts, Limits: limits, Keys: keys, ClientID: k.ClientID, ClientSecret: k.ClientSecret.Reveal(), RedirectURI: k.RedirectURI,
		Domains: k.Domains, BaseURL: k.BaseURL, Connect: min(cfg.ConnectTimeout, k.Request), Request: k.Request, Total: k.Total,
		PerSecond: k.PerSecond, Address: k.Address, RefreshBefore: k.Refresh,
		Unconfirmed: kommo.Unconfirmed{CallIDIsNoteID: bool(k.NoteID), Settle: k.Settle, PauseAddress: bool(k.PauseAddress)}, Trace: trace, Log: tel.Log(),
	})
}

// runKommo works off the queue of each account that is connected, and keeps their tokens alive, until ctx ends.
func (s *Service) runKommo(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { s.kommo.Run(ctx) })
	stop := map[string]func(){} // the consumers, by account
	accounts.NewFollower(s.accounts, kommo.Destination).Run(ctx, func(list accounts.List, _ bool) {
		there := map[string]bool{}
		for _, a := range list.Accounts {
			there[a.GetId()] = true
			if stop[a.GetId()] != nil {
				continue
			}
			consumer, err := s.kommoConsumer(a.GetId())
			if err != nil {
				s.log.Error("kommo account", "account", a.GetId(), "error", err)
				continue
			}
			stop[a.GetId()] = start(ctx, &all, consumer)
		}
		for id, end := range stop {
			if !there[id] {
				end()
				delete(stop, id)
			}
		}
	})
}

// start runs a consumer until ctx ends, or until stop, which waits until it has handed back what it had.
func start(ctx context.Context, all *sync.WaitGroup, consumer *delivery.Consumer) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	all.Go(func() {
		defer close(ended)
		consumer.Run(ctx)
	})
	return func() {
		cancel()
		<-ended
	}
}

func (s *Service) kommoConsumer(destination string) (*delivery.Consumer, error) {
	id, err := strconv.ParseInt(strings.TrimPrefix(destination, kommo.Destination), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("%q is not the name of a Kommo account", destination)
	}
	account := s.kommo.Account(id)
	cfg := s.cfg.consumer(destination)
	cfg.Workers, cfg.SendTimeout, cfg.SendAgain = s.cfg.Kommo.Concurrency, s.cfg.Kommo.Total, account.SendAgain
	cfg.Disabled, cfg.Policy.Ask = false, false // SendAgain asks Kommo itself
	cfg.Policy.Once = kommo.EventsPopup
	return delivery.New(cfg, s.state, account, s.tel)
}

// kommoServer answers for the accounts.
type kommoServer struct {
	upstreamv1.UnimplementedKommoServiceServer
	*Service
}

var errNoKey = errors.New("SECRETS_KEY is not set")

func (s *kommoServer) client() (*kommo.Client, error) {
	if s.kommo == nil {
		return nil, errkind.Refused("Kommo accounts cannot be used: %v", errNoKey)
	}
	return s.kommo, nil
}

// Install keeps an authorization code.
func (s *kommoServer) Install(ctx context.Context, req *upstreamv1.InstallRequest) (*upstreamv1.InstallResponse, error) {
	c, err := s.client()
	if err != nil {
		return nil, err
	}
	return &upstreamv1.InstallResponse{}, c.Install(ctx, req.GetReferer(), req.GetCode(), req.GetClientId())
}

// Connect keeps a long-lived access token.
func (s *kommoServer) Connect(ctx context.Context, req *upstreamv1.ConnectRequest) (*upstreamv1.ConnectResponse, error) {
	c, err := s.client()
	if err != nil {
		return nil, err
	}
	id, err := c.Connect(ctx, req.GetHost(), req.GetToken())
	return &upstreamv1.ConnectResponse{AccountId: id}, err
}

// Disconnect forgets an account.
func (s *kommoServer) Disconnect(ctx context.Context, req *upstreamv1.DisconnectRequest) (*upstreamv1.DisconnectResponse, error) {
	c, err := s.client()
	if err != nil {
		return nil, err
	}
	return &upstreamv1.DisconnectResponse{}, c.Disconnect(ctx, req.GetAccountId())
}

// Configure replaces the settings of an account.
func (s *kommoServer) Configure(ctx context.Context, req *upstreamv1.ConfigureRequest) (*upstreamv1.ConfigureResponse, error) {
	c, err := s.client()
	if err != nil {
		return nil, err
	}
	if !json.Valid(req.GetSettings()) || len(req.GetSettings()) > maxSettings {
		return nil, errkind.Invalid("settings", "settings must be JSON of at most %d bytes", maxSettings)
	}
	return &upstreamv1.ConfigureResponse{}, c.Configure(ctx, req.GetAccountId(), req.GetSettings())
}

// maxSettings bounds the settings of an account, in bytes.
const maxSettings = 16 << 10

// Check makes harmless requests to an account.
func (s *kommoServer) Check(ctx context.Context, req *upstreamv1.CheckRequest) (*upstreamv1.CheckResponse, error) {
	c, err := s.client()
	if err != nil {
		return nil, err
	}
	if req.GetAccountId() <= 0 {
		return nil, errkind.Invalid("account_id", "account_id must be the id of a Kommo account, e.g. 9001")
	}
	resp := &upstreamv1.CheckResponse{}
	for _, f := range c.Account(req.GetAccountId()).Check(ctx) {
		resp.Findings = append(resp.Findings, &upstreamv1.Finding{Fact: f.Fact, Found: f.Found, Ok: f.OK})
	}
	return resp, nil
}
