package upstream

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"callrelay/platform/config"
	"callrelay/services/upstream/internal/delivery"
	"callrelay/services/upstream/internal/retry"
)

// Config is everything that can be set of upstream. Durations are written like 10s or 24h.
type Config struct {
	GRPCAddr    string `env:"UPSTREAM_GRPC_ADDR" envDefault:"127.0.0.1:9083" desc:"Where upstream serves gRPC, for the command line and for Kommo's install redirect."`
	StateAddr   string `env:"STATE_GRPC_ADDR" envDefault:"127.0.0.1:9082" desc:"Where state is; whoever calls it takes several, separated by commas, one for each replica."`
	MetricsAddr string `env:"METRICS_ADDR" envDefault:"127.0.0.1:9183" desc:"Where metrics are served."`

	RealSend    config.Switch `env:"ENABLE_REAL_SEND" envDefault:"false" desc:"Send to TopS.II. While off nothing is sent, and what was not sent is never sent later by itself."`
	Environment string        `env:"INDEX_ENV" envDefault:"TEST" desc:"Which TopS.II: TEST or PROD."`
	TestBaseURL string        `env:"TEST_BASE_URL" desc:"Address of the TEST TopS.II, e.g. https://test.example.jp."`
	ProdBaseURL string        `env:"PROD_BASE_URL" desc:"Address of the PROD TopS.II."`
	TestAPIKey  config.Secret `env:"TEST_API_KEY" desc:"API key of the TEST TopS.II, 32 characters."`
	ProdAPIKey  config.Secret `env:"PROD_API_KEY" desc:"API key of the PROD TopS.II, 32 characters."`
	PathPrefix  string        `env:"TOPSII_PATH_PREFIX" envDefault:"/fasthelp5-server/service/callmanage/predictiveCallApiService/" desc:"Path of the API below the base URL."`

	Webhook webhookConfig

	Uncertain      string        `env:"TOPSII_UNCERTAIN" envDefault:"retry" desc:"What happens when a request may have arrived but no answer came: retry sends it again (TopS.II may see it twice), ask waits for a person."`
	Concurrency    int           `env:"TOPSII_CONCURRENCY" envDefault:"32" desc:"Requests to TopS.II at once, of all upstream processes together; where theirs differ, the smallest holds."`
	ConnectTimeout time.Duration `env:"TOPSII_CONNECT_TIMEOUT" envDefault:"10s" desc:"Longest wait for a connection to TopS.II."`
	Timeout        time.Duration `env:"TOPSII_TIMEOUT" envDefault:"30s" desc:"Longest wait for TopS.II's answer, connecting included."`

	MaxAttempts         int           `env:"DELIVERY_MAX_ATTEMPTS" envDefault:"20" desc:"After this many failed attempts a delivery is dead; probes of a destination that is down do not count."`
	AppErrorMaxAttempts int           `env:"APP_ERROR_MAX_ATTEMPTS" envDefault:"5" desc:"After this many application errors (ETYP0040 and other unexplained failures) a delivery is dead."`
	MaxAge              time.Duration `env:"DELIVERY_MAX_AGE" envDefault:"24h" desc:"A delivery older than this is expired; time under a hold or an open circuit breaker does not count. A timer or message between calls that cannot be processed for so long is undecided."`
	RetryBase           time.Duration `env:"RETRY_BASE" envDefault:"1s" desc:"Longest wait after the first failed attempt; doubles with each further one."`
	RetryMax            time.Duration `env:"RETRY_MAX" envDefault:"5m" desc:"Longest wait after any failed attempt."`
	ProbeInterval       time.Duration `env:"PROBE_INTERVAL" envDefault:"30s" desc:"How often one delivery probes a destination that is held because it is at fault."`
	BreakerFailures     int           `env:"BREAKER_FAILURES" envDefault:"5" desc:"Transport failures in a row after which nothing is sent for BREAKER_OPEN."`
	BreakerOpen         time.Duration `env:"BREAKER_OPEN" envDefault:"10s" desc:"How long nothing is sent after BREAKER_FAILURES."`
	BreakerProbes       int           `env:"BREAKER_PROBES" envDefault:"1" desc:"Requests let through after BREAKER_OPEN; all must succeed for normal sending."`
	LeaseTime           time.Duration `env:"LEASE_TIME" envDefault:"45s" desc:"The lease time of state; must be the same there."`
	StopTimeout         time.Duration `env:"UPSTREAM_STOP_TIMEOUT" envDefault:"3s" desc:"How long stopping may take; a request that is still running after three quarters of it is cut. In callrelay up at most 400ms."`

	Kommo KommoConfig
}

// leaseRoom is how much longer than one request a lease must be, so that its result can be reported in time.
const leaseRoom = 5 * time.Second

// Validate reports every setting that cannot work, all at once.
func (c *Config) Validate() error {
	var problems []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	for _, u := range []struct{ name, value string }{{"TEST_BASE_URL", c.TestBaseURL}, {"PROD_BASE_URL", c.ProdBaseURL}} {
		check(u.value == "" || absoluteHTTP(u.value), "%s: must be an absolute http or https address without user, query and fragment, e.g. https://crm.example.jp", u.name)
	}
	for _, k := range []struct {
		name  string
		value config.Secret
	}{{"TEST_API_KEY", c.TestAPIKey}, {"PROD_API_KEY", c.ProdAPIKey}} {
		n := len(k.value.Reveal())
		check(n == 0 || n == 32, "%s: must be 32 characters, not %d", k.name, n)
	}
	switch c.Environment {
	case "TEST", "PROD":
		baseURL, apiKey := c.chosen()
		check(!bool(c.RealSend) || baseURL != "", "%s_BASE_URL: is required with ENABLE_REAL_SEND=true and INDEX_ENV=%[1]s", c.Environment)
		check(!bool(c.RealSend) || apiKey.Reveal() != "", "%s_API_KEY: is required with ENABLE_REAL_SEND=true and INDEX_ENV=%[1]s", c.Environment)
	default:
		check(false, "INDEX_ENV: must be TEST or PROD, not %q", c.Environment)
	}
	check(c.Uncertain == "retry" || c.Uncertain == "ask", "TOPSII_UNCERTAIN: must be retry or ask, not %q", c.Uncertain)
	for _, n := range []struct {
		name  string
		value int
	}{
		{"TOPSII_CONCURRENCY", c.Concurrency}, {"DELIVERY_MAX_ATTEMPTS", c.MaxAttempts}, {"APP_ERROR_MAX_ATTEMPTS", c.AppErrorMaxAttempts},
		{"BREAKER_FAILURES", c.BreakerFailures}, {"BREAKER_PROBES", c.BreakerProbes},
	} {
		check(n.value > 0, "%s: must be at least 1, not %d", n.name, n.value)
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"TOPSII_CONNECT_TIMEOUT", c.ConnectTimeout}, {"TOPSII_TIMEOUT", c.Timeout}, {"DELIVERY_MAX_AGE", c.MaxAge}, {"RETRY_BASE", c.RetryBase},
		{"RETRY_MAX", c.RetryMax}, {"PROBE_INTERVAL", c.ProbeInterval}, {"BREAKER_OPEN", c.BreakerOpen}, {"LEASE_TIME", c.LeaseTime},
		{"UPSTREAM_STOP_TIMEOUT", c.StopTimeout},
	} {
		check(d.value > 0, "%s: must be positive, not %v", d.name, d.value)
	}
	problems = append(problems, c.Webhook.problems(c.LeaseTime, c.Kommo.SecretsKey != "")...)
	needed := c.ConnectTimeout + c.Timeout + leaseRoom
	check(c.LeaseTime >= needed, "LEASE_TIME: must be at least TOPSII_CONNECT_TIMEOUT + TOPSII_TIMEOUT + %v = %v, not %v: a request could outlive its lease and be sent twice",
		leaseRoom, needed, c.LeaseTime)
	return errors.Join(append(problems, c.Kommo.problems(c.LeaseTime)...)...)
}

// consumer is how TopS.II is worked off, and what every destination begins with.
func (c *Config) consumer(destination string) delivery.Config {
	return delivery.Config{
		Destination: destination,
		Name:        c.name(),
		Workers:     c.Concurrency,
		LeaseTime:   c.LeaseTime,
		SendTimeout: c.Timeout,
		StopTimeout: c.StopTimeout,
		Disabled:    !bool(c.RealSend),
		Policy: delivery.Policy{
			Ask:              c.Uncertain == "ask",
			MaxAttempts:      c.MaxAttempts,
			AppErrorAttempts: c.AppErrorMaxAttempts,
			MaxAge:           c.MaxAge,
			Backoff:          retry.Backoff{Base: c.RetryBase, Max: c.RetryMax},
			ProbeInterval:    c.ProbeInterval,
		},
		Breaker: delivery.BreakerSettings{Failures: c.BreakerFailures, Open: c.BreakerOpen, Probes: c.BreakerProbes},
	}
}

// name tells this process from other upstreams, and is the same after a restart: no two on a host listen on one address.
func (c *Config) name() string {
	host, _ := os.Hostname() // without one the address has to do
	name := host + "/" + c.GRPCAddr
	return name[max(0, len(name)-maxName):]
}

// maxName bounds it, in bytes.
const maxName = 128

// chosen are the address and key of the chosen environment.
func (c *Config) chosen() (baseURL string, apiKey config.Secret) {
	if c.Environment == "PROD" {
		return c.ProdBaseURL, c.ProdAPIKey
	}
	return c.TestBaseURL, c.TestAPIKey
}

func absoluteHTTP(address string) bool {
	u, err := url.Parse(address)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil && u.RawQuery == "" && u.Fragment == ""
}
