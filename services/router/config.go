package router

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"callrelay/callback"
	"callrelay/services/router/ameyo"
)

// Config is everything that can be set of router.
type Config struct {
	GRPCAddr    string `env:"ROUTER_GRPC_ADDR" envDefault:"127.0.0.1:9081" desc:"Where router is; whoever calls it takes several, separated by commas, one for each replica."`
	StateAddr   string `env:"STATE_GRPC_ADDR" envDefault:"127.0.0.1:9082" desc:"Where state is; whoever calls it takes several, separated by commas, one for each replica."`
	MetricsAddr string `env:"METRICS_ADDR" envDefault:"127.0.0.1:9181" desc:"Where metrics are served."`

	Profile       string `env:"AMEYO_PROFILE" envDefault:"seed" desc:"Which part of the decision table holds: seed, or hangup-signal where a callback with systemDisposition is final."`
	RulesFile     string `env:"AMEYO_RULES_FILE" desc:"File that replaces the built-in decision table, cause table and status overrides; checked at start."`
	DedupeSeconds int    `env:"REQUEST_DEDUPE_TTL_SECONDS" envDefault:"300" desc:"For how many seconds a repeat of a processed callback is a duplicate, by times of receipt. A phone 2 repeats no phone 1 that sent nothing, even with the same id."`
	Processing    int    `env:"REQUEST_PROCESSING_TTL_SECONDS" envDefault:"30" desc:"Accepted and without effect: nothing can be processing without a queued delivery."`
	Phone1Seconds int    `env:"PHONE1_STATE_TTL_SECONDS" envDefault:"600" desc:"For how many seconds a phone-1 status waits for phone 2."`
	Phone1Expiry  string `env:"PHONE1_EXPIRY" envDefault:"drop" desc:"What happens to a phone-1 status that phone 2 never took: drop or send."`
	CallStartAge  int    `env:"CALL_START_MAX_AGE_SECONDS" envDefault:"0" desc:"A call start older than so many seconds ends as expired, unless something of its call waits behind it; 0 means never."`

	EntryMaxAge time.Duration `env:"DELIVERY_MAX_AGE" envDefault:"24h" desc:"A delivery older than this is expired; time under a hold or an open circuit breaker does not count. A timer or message between calls that cannot be processed for so long is undecided."`

	// StopTimeout is how long Run may take to end; 0 = StopTimeout. Who starts the service sets it.
	StopTimeout time.Duration

	Pbx   pbxConfig
	Kommo kommoConfig

	Timezone       string   `env:"TIMEZONE" envDefault:"Asia/Tokyo" desc:"Zone of times that come without one, and of the times sent to TopS.II."`
	TargetTelOrder []string `env:"CALL_START_TARGET_TEL" desc:"Comma-separated sources of a call start's targetTel, the first given one wins; empty means phone,displayPhone,dialledPhone,dstPhone."`
}

// Validate reports every problem; those of a rules file with file and line.
func (c *Config) Validate() error {
	_, _, err := c.Rules()
	_, errKommo := c.Kommo.check()
	var errAge error
	if c.EntryMaxAge <= 0 {
		errAge = fmt.Errorf("DELIVERY_MAX_AGE: must be positive, not %v", c.EntryMaxAge)
	}
	return errors.Join(err, c.Pbx.check(), errKommo, errAge)
}

// Rules are the rules of the dialer as they are set, and how its callbacks are read.
func (c *Config) Rules() (*ameyo.Config, callback.Options, error) {
	var problems []error
	zone, err := time.LoadLocation(c.Timezone)
	if err != nil {
		problems = append(problems, fmt.Errorf("TIMEZONE: must be a time zone like Asia/Tokyo, not %q", c.Timezone))
	}
	if _, err := callback.ParseTargetTelOrder(strings.Join(c.TargetTelOrder, ",")); err != nil {
		problems = append(problems, fmt.Errorf("CALL_START_TARGET_TEL: %w", err))
	}
	table := ameyo.DefaultRules()
	if c.RulesFile != "" {
		data, err := os.ReadFile(c.RulesFile)
		if err == nil {
			table, err = ameyo.ParseRules(c.RulesFile, data)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("AMEYO_RULES_FILE: %w", err))
			table = ameyo.DefaultRules()
		}
	}
	rules := &ameyo.Config{
		Rules: table, Profile: c.Profile, Zone: zone,
		DedupeTTL:       time.Duration(c.DedupeSeconds) * time.Second,
		Phone1TTL:       time.Duration(c.Phone1Seconds) * time.Second,
		Phone1Expiry:    c.Phone1Expiry,
		CallStartMaxAge: time.Duration(c.CallStartAge) * time.Second,
	}
	if err := rules.Check(); err != nil {
		problems = append(problems, err)
	}
	return rules, callback.Options{Zone: zone, TargetTelOrder: c.TargetTelOrder}, errors.Join(problems...)
}
