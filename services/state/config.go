package state

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"callrelay/platform/config"
	"callrelay/services/state/internal/dailylog"
	"callrelay/services/state/internal/store"
)

// Config is everything that can be set of state.
type Config struct {
	GRPCAddr    string `env:"STATE_GRPC_ADDR" envDefault:"127.0.0.1:9082" desc:"Where state is; whoever calls it takes several, separated by commas, one for each replica."`
	MetricsAddr string `env:"METRICS_ADDR" envDefault:"127.0.0.1:9182" desc:"Where metrics are served."`

	RedisURL         config.Secret `env:"REDIS_URL" desc:"Redis or Valkey: redis://, rediss:// or unix://; ?addr=host:port for each further node of a cluster. With Sentinel: the addresses of the sentinels and ?master_name=NAME; user and password in the URL are then the sentinels', those of Redis &username= and &password=. Required, but callrelay up runs a private one where it is empty."`
	ReplicasAck      int           `env:"STATE_REPLICAS_ACK" envDefault:"0" desc:"How many Redis replicas must have a write before it is acknowledged (docs/durability.md); 0 means none, and a failover may lose the last moments."`
	RedisAllowUnsafe config.Switch `env:"REDIS_ALLOW_UNSAFE" envDefault:"false" desc:"Start even with a Redis that loses calls by itself: without its append-only file, or with a maxmemory-policy that evicts."`

	CallRetention time.Duration `env:"CALL_RETENTION" envDefault:"72h" desc:"How long a call is kept after the last open thing in it ended."`
	LeaseTime     time.Duration `env:"LEASE_TIME" envDefault:"45s" desc:"Work whose consumer is silent for so long is given back; must exceed the CRM's total timeout, and be the same in upstream."`
	JournalLimit  int           `env:"JOURNAL_LIMIT" envDefault:"65536" desc:"Bytes of journal kept per call; more is only counted."`

	AlarmOldest        time.Duration `env:"ALARM_OLDEST" envDefault:"10m" desc:"It is an alarm when a delivery has been due for longer."`
	AlarmDead          int           `env:"ALARM_DEAD" envDefault:"100" desc:"It is an alarm when so many deliveries to one destination wait for a person (dead, expired or asked); 0 means never."`
	AlarmWebhookURL    config.Secret `env:"ALARM_WEBHOOK_URL" desc:"Where alarms are posted when they begin and when they are over, by Standard Webhooks; empty means nowhere."`
	AlarmWebhookSecret config.Secret `env:"ALARM_WEBHOOK_SECRET" desc:"Signs them: whsec_ and at least 24 bytes in base64. Required with ALARM_WEBHOOK_URL."`

	LogDir           string        `env:"LOG_DIR" desc:"Directory of the daily files call_start-, call_end-, not_answer- and general-YYYY-MM-DD.log; empty means none. One state process writes them."`
	LogRetentionDays int           `env:"LOG_RETENTION_DAYS" envDefault:"30" desc:"For how many days daily files are kept; 0 means for ever."`
	LogPII           config.Switch `env:"LOG_PII" envDefault:"false" desc:"Show phone numbers in the daily files."`
	Timezone         string        `env:"TIMEZONE" envDefault:"Asia/Tokyo" desc:"Zone of times that come without one, and of the times sent to TopS.II."`
}

// Validate reports every problem.
func (c *Config) Validate() error {
	var problems []error
	if c.RedisURL == "" {
		problems = append(problems, errors.New("REDIS_URL: is required, e.g. redis://127.0.0.1:6379/0 (callrelay up runs a private Redis)"))
	} else if err := store.CheckURL(c.RedisURL.Reveal()); err != nil {
		problems = append(problems, fmt.Errorf("REDIS_URL: %w", err))
	}
	if c.ReplicasAck < 0 || c.ReplicasAck > 16 {
		problems = append(problems, fmt.Errorf("STATE_REPLICAS_ACK: must be 0 to 16, not %d", c.ReplicasAck))
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
	if c.AlarmOldest < time.Second {
		problems = append(problems, fmt.Errorf("ALARM_OLDEST: must be at least 1s, not %v", c.AlarmOldest))
	}
	if c.AlarmDead < 0 {
		problems = append(problems, fmt.Errorf("ALARM_DEAD: must not be negative, not %d", c.AlarmDead))
	}
	if raw := c.AlarmWebhookURL.Reveal(); raw != "" {
		if u, err := url.Parse(raw); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			problems = append(problems, errors.New("ALARM_WEBHOOK_URL: must be an http or https address"))
		}
		if len(c.webhookKey()) < 24 {
			problems = append(problems, errors.New("ALARM_WEBHOOK_SECRET: must be whsec_ and at least 24 bytes in base64"))
		}
	}
	if c.LogRetentionDays < 0 {
		problems = append(problems, fmt.Errorf("LOG_RETENTION_DAYS: must not be negative, not %d", c.LogRetentionDays))
	}
	if _, err := time.LoadLocation(c.Timezone); err != nil {
		problems = append(problems, fmt.Errorf("TIMEZONE: must be a time zone like Asia/Tokyo, not %q", c.Timezone))
	}
	return errors.Join(problems...)
}

// webhookKey is the key that alarms are signed with; nil when the secret is none.
func (c *Config) webhookKey() []byte {
	text, ok := strings.CutPrefix(c.AlarmWebhookSecret.Reveal(), "whsec_")
	key, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil {
		return nil
	}
	return key
}

// dailyFiles opens the daily files; nil when none are wanted.
func (c *Config) dailyFiles(zone *time.Location, log *slog.Logger) (*dailylog.Writer, error) {
	if c.LogDir == "" {
		return nil, nil
	}
	w, err := dailylog.New(dailylog.Config{Dir: c.LogDir, RetentionDays: c.LogRetentionDays, Zone: zone, PII: bool(c.LogPII)}, log)
	if err != nil {
		return nil, fmt.Errorf("LOG_DIR: %w", err)
	}
	return w, nil
}
