package state

import (
	"errors"
	"fmt"
	"time"

	"callrelay/platform/config"
)

// Config is everything that can be set of state.
type Config struct {
	GRPCAddr    string `env:"STATE_GRPC_ADDR" envDefault:"127.0.0.1:9082" desc:"Where state is."`
	MetricsAddr string `env:"METRICS_ADDR" envDefault:"127.0.0.1:9182" desc:"Where metrics are served."`

	RedisURL config.Secret `env:"REDIS_URL" desc:"Redis or Valkey: redis://, rediss:// or unix://; ?addr=host:port for each further node of a cluster, ?master_name= for Sentinel. Required, but callrelay up runs a private one where it is empty."`

	CallRetention time.Duration `env:"CALL_RETENTION" envDefault:"72h" desc:"How long a call is kept after the last open thing in it ended."`
	LeaseTime     time.Duration `env:"LEASE_TIME" envDefault:"45s" desc:"Work whose consumer is silent for so long is given back; must exceed the CRM's total timeout, and be the same in upstream."`
	JournalLimit  int           `env:"JOURNAL_LIMIT" envDefault:"65536" desc:"Bytes of journal kept per call; more is only counted."`
}

// Validate reports every problem.
func (c *Config) Validate() error {
	var problems []error
	if c.RedisURL == "" {
		problems = append(problems, errors.New("REDIS_URL: is required, e.g. redis://127.0.0.1:6379/0 (callrelay up runs a private Redis)"))
	}
	if c.CallRetention < time.Hour {
		problems = append(problems, fmt.Errorf("CALL_RETENTION: must be at least 1h, not %v: repeats and late phones are recognised by what is kept", c.CallRetention))
	}
	if c.LeaseTime < time.Second {
		problems = append(problems, fmt.Errorf("LEASE_TIME: must be at least 1s, not %v", c.LeaseTime))
	}
	if c.JournalLimit < 1024 || c.JournalLimit > 1<<20 {
		problems = append(problems, fmt.Errorf("JOURNAL_LIMIT: must be 1024 to 1048576, not %d", c.JournalLimit))
	}
	return errors.Join(problems...)
}
