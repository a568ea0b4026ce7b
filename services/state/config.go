package state

import (
	"errors"
	"time"

	"callrelay/platform/config"
)

// Config is everything that can be set of state.
type Config struct {
	GRPCAddr    string `env:"STATE_GRPC_ADDR" envDefault:"127.0.0.1:9082" desc:"address on which state serves gRPC"`
	MetricsAddr string `env:"METRICS_ADDR" envDefault:"127.0.0.1:9182" desc:"address of /metrics, /healthz and /readyz"`

	RedisURL config.Secret `env:"REDIS_URL" desc:"Redis or Valkey: redis://, rediss:// or unix:// ; ?addr=host:port for each further node of a cluster, ?master_name= for Sentinel. callrelay up runs a private one when it is empty"`

	CallRetention time.Duration `env:"CALL_RETENTION" envDefault:"72h" desc:"how long a call is kept after the last open thing in it ended"`
	LeaseTime     time.Duration `env:"LEASE_TIME" envDefault:"45s" desc:"work whose consumer is silent for so long is given back; must exceed the CRM's total timeout"`
	JournalLimit  int           `env:"JOURNAL_LIMIT" envDefault:"65536" desc:"bytes of journal kept per call; more is only counted"`
}

// Validate reports every problem.
func (c *Config) Validate() error {
	var problems []error
	if c.RedisURL == "" {
		problems = append(problems, errors.New("REDIS_URL is required, e.g. redis://127.0.0.1:6379/0 (callrelay up runs a private Redis)"))
	}
	if c.CallRetention < time.Hour {
		problems = append(problems, errors.New("CALL_RETENTION must be at least 1h: repeats and late phones are recognised by what is kept"))
	}
	if c.LeaseTime < time.Second {
		problems = append(problems, errors.New("LEASE_TIME must be at least 1s"))
	}
	if c.JournalLimit < 1024 || c.JournalLimit > 1<<20 {
		problems = append(problems, errors.New("JOURNAL_LIMIT must be 1024 to 1048576 bytes"))
	}
	return errors.Join(problems...)
}
