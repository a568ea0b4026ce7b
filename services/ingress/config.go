package ingress

import (
	"errors"
	"fmt"
	"net/netip"
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
	MetricsAddr string `env:"METRICS_ADDR" envDefault:"127.0.0.1:9180" desc:"Where metrics are served."`

	AckBudget time.Duration `env:"ACK_BUDGET" envDefault:"2s" desc:"How long a callback may wait for its durable commit before it is answered 503."`

	AllowedNetworks Networks      `env:"AMEYO_ALLOWED_NETWORKS" desc:"Comma-separated networks (10.0.0.0/8) and addresses from which callbacks are taken; empty means all."`
	TrustedProxies  Networks      `env:"TRUSTED_PROXIES" desc:"Comma-separated networks and addresses of proxies whose X-Forwarded-For is believed."`
	PathSecret      config.Secret `env:"AMEYO_PATH_SECRET" desc:"Where set, callbacks are taken only under /SECRET/...; at least 16 letters, digits, - or _."`

	Pbx pbxConfig

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
	for _, prefix := range n {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}

// Validate reports every problem.
func (c *Config) Validate() error {
	var problems []error
	if c.AckBudget < 100*time.Millisecond || c.AckBudget > time.Minute {
		problems = append(problems, fmt.Errorf("ACK_BUDGET: must be 100ms to 1m, not %v", c.AckBudget))
	}
	if secret := c.PathSecret.Reveal(); secret != "" {
		if len(secret) < 16 || strings.Trim(secret, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			problems = append(problems, errors.New("AMEYO_PATH_SECRET: must be at least 16 letters, digits, - or _"))
		}
	}
	if _, err := c.Pbx.table(); err != nil {
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

func (c *Config) options() callback.Options {
	zone, err := time.LoadLocation(c.Timezone)
	if err != nil {
		zone = nil // Validate refused it
	}
	return callback.Options{Zone: zone, TargetTelOrder: c.TargetTelOrder}
}
