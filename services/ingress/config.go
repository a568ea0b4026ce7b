package ingress

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"callrelay/callback"
	"callrelay/platform/config"
)

// Config is everything that can be set of ingress.
type Config struct {
	HTTPAddr    string `env:"INGRESS_HTTP_ADDR" envDefault:"127.0.0.1:8080" desc:"Where callbacks are taken over HTTP; also /healthz, /readyz and /openapi.json."`
	GRPCAddr    string `env:"INGRESS_GRPC_ADDR" envDefault:"127.0.0.1:9080" desc:"Where callbacks are taken over gRPC."`
	RouterAddr  string `env:"ROUTER_GRPC_ADDR" envDefault:"127.0.0.1:9081" desc:"Where router is; whoever calls it takes several, separated by commas, one for each replica."`
	StateAddr   string `env:"STATE_GRPC_ADDR" envDefault:"127.0.0.1:9082" desc:"Where state is; whoever calls it takes several, separated by commas, one for each replica."`
	MetricsAddr string `env:"METRICS_ADDR" envDefault:"127.0.0.1:9180" desc:"Where metrics are served."`

	AckBudget time.Duration `env:"ACK_BUDGET" envDefault:"2s" desc:"How long a callback may wait for its answer: for its commit, and for the last quarter (at most 500ms) for the spool."`

	DataDir    string `env:"DATA_DIR" envDefault:"data" desc:"Where the private Redis and the spool keep their data; --data-dir wins."`
	SpoolDir   string `env:"SPOOL_DIR" desc:"Directory of the spool, for this process alone, on a local disk; empty means DATA_DIR/spool."`
	SpoolBytes int64  `env:"SPOOL_MAX_BYTES" envDefault:"1073741824" desc:"Bytes of callbacks that may be spooled; the file becomes up to three times as large. Beyond it callbacks are answered 503."`
	SpoolItems int    `env:"SPOOL_MAX_ITEMS" envDefault:"1000000" desc:"Callbacks that may be spooled, each about 200 bytes of memory. Beyond it callbacks are answered 503."`

	RefusedBytes int `env:"REFUSED_BYTES_PER_HOUR" envDefault:"4194304" desc:"Bytes of refused requests that are recorded in an hour, each with its query and about 500 bytes more, and kept for CALL_RETENTION. Beyond it they are answered, counted and an alarm, but not recorded."`

	MaxConnections int           `env:"INGRESS_MAX_CONNECTIONS" envDefault:"4096" desc:"HTTP connections at once; when all are taken, idle ones are closed for new ones."`
	MaxRequests    int           `env:"INGRESS_MAX_REQUESTS" envDefault:"2048" desc:"Requests under way at once; more are answered 503."`
	StopDelay      time.Duration `env:"INGRESS_STOP_DELAY" envDefault:"0s" desc:"How long a stopping ingress, not ready any more, goes on taking callbacks: the time that a balancer needs to notice. Only for ingress as a process of its own: callrelay up stops within 4 seconds."`

	AllowedNetworks Networks      `env:"AMEYO_ALLOWED_NETWORKS" desc:"Comma-separated networks (10.0.0.0/8) and addresses from which callbacks are taken; empty means all."`
	TrustedProxies  Networks      `env:"TRUSTED_PROXIES" desc:"Comma-separated networks and addresses of proxies whose X-Forwarded-For is believed."`
	PathSecret      config.Secret `env:"AMEYO_PATH_SECRET" desc:"Where set, callbacks are taken only under /SECRET/...; at least 16 letters, digits, - or _."`

	Pbx   pbxConfig
	Cards cardsConfig
	Kommo kommoConfig

	OperatorTokens Tokens `env:"OPERATOR_TOKENS" desc:"Who may use the operator API: NAME:ROLE:TOKEN, separated by commas or line breaks. ROLE is viewer, operator, or operator+phones, which also sees phone numbers; TOKEN is at least 24 characters, or sha256= and its hash in hex. Empty: only this machine may, through localhost. Secret."`

	Timezone       string   `env:"TIMEZONE" envDefault:"Asia/Tokyo" desc:"Zone of times that come without one, and of the times sent to TopS.II."`
	TargetTelOrder []string `env:"CALL_START_TARGET_TEL" desc:"Comma-separated sources of a call start's targetTel, the first given one wins; empty means phone,displayPhone,dialledPhone,dstPhone."`
}

// Networks is a list of CIDR networks.
type Networks []netip.Prefix

// UnmarshalText reads a comma-separated list; a bare address is a network of one.
func (n *Networks) UnmarshalText(text []byte) error {
	*n = nil
	for part := range strings.SplitSeq(string(text), ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(part)
		if err != nil {
			addr, errAddr := netip.ParseAddr(part)
			if errAddr != nil {
				return fmt.Errorf("%q is neither a network (10.0.0.0/8) nor an address", part)
			}
			prefix = netip.PrefixFrom(addr, addr.BitLen())
		}
		*n = append(*n, prefix.Masked())
	}
	return nil
}

// Contains says whether the address is in one of the networks.
func (n Networks) Contains(addr netip.Addr) bool {
	return slices.ContainsFunc(n, func(prefix netip.Prefix) bool { return prefix.Contains(addr) })
}

// Validate reports every problem.
func (c *Config) Validate() error {
	var problems []error
	if c.AckBudget < 100*time.Millisecond || c.AckBudget > time.Minute {
		problems = append(problems, fmt.Errorf("ACK_BUDGET: must be 100ms to 1m, not %v", c.AckBudget))
	}
	for _, limit := range []struct {
		name       string
		value, min int64
	}{
		{"SPOOL_MAX_BYTES", c.SpoolBytes, 1 << 20},
		{"SPOOL_MAX_ITEMS", int64(c.SpoolItems), 1},
		{"REFUSED_BYTES_PER_HOUR", int64(c.RefusedBytes), 64 << 10},
		{"INGRESS_MAX_CONNECTIONS", int64(c.MaxConnections), 16},
		{"INGRESS_MAX_REQUESTS", int64(c.MaxRequests), 1},
	} {
		if limit.value < limit.min {
			problems = append(problems, fmt.Errorf("%s: must be at least %d, not %d", limit.name, limit.min, limit.value))
		}
	}
	if c.StopDelay < 0 || c.StopDelay > time.Minute {
		problems = append(problems, fmt.Errorf("INGRESS_STOP_DELAY: must be 0s to 1m, not %v", c.StopDelay))
	}
	if secret := c.PathSecret.Reveal(); secret != "" {
		if len(secret) < 16 || strings.Trim(secret, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			problems = append(problems, errors.New("AMEYO_PATH_SECRET: must be at least 16 letters, digits, - or _"))
		}
	}
	problems = append(problems, c.Pbx.problems()...)
	problems = append(problems, c.Cards.problems()...)
	if _, err := c.Kommo.secrets(); err != nil {
		problems = append(problems, err)
	}
	if _, err := c.Kommo.App.tokens(); err != nil {
		problems = append(problems, err)
	}
	if _, err := time.LoadLocation(c.Timezone); err != nil {
		problems = append(problems, fmt.Errorf("TIMEZONE: must be a time zone like Asia/Tokyo, not %q", c.Timezone))
	}
	if _, err := callback.ParseTargetTelOrder(strings.Join(c.TargetTelOrder, ",")); err != nil {
		problems = append(problems, fmt.Errorf("CALL_START_TARGET_TEL: %w", err))
	}
	return errors.Join(problems...)
}

func (c *Config) spoolDir() string {
	return cmp.Or(c.SpoolDir, filepath.Join(c.DataDir, "spool"))
}

// StopTimeout bounds stopping in order.
func (c *Config) StopTimeout() time.Duration { return c.StopDelay + c.AckBudget + 2*time.Second }

func (c *Config) options() callback.Options {
	zone, err := time.LoadLocation(c.Timezone)
	if err != nil {
		zone = nil // Validate refused it
	}
	return callback.Options{Zone: zone, TargetTelOrder: c.TargetTelOrder}
}
