package delivery

import (
	"context"
	crand "crypto/rand"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/rpc"
	"callrelay/platform/telemetry"
)

// Config says how one destination is worked off.
type Config struct {
	// Destination is the queue's name in state, e.g. "topsii".
	Destination string
	// Workers is how many requests run at once, those of all other processes that send to the destination included.
	Workers int
	// Name tells this process from the others, and is the same after a restart.
	Name string
	// LeaseTime is state's: after this long without a result the work is given to somebody else.
	LeaseTime time.Duration
	// SendTimeout is the longest a Send takes. No request starts with less than that left of its lease.
	SendTimeout time.Duration
	// StopTimeout is how long Run may take after the end was asked for: three quarters for running requests to finish,
	// the rest for state to answer the last results.
	StopTimeout time.Duration
	// Disabled: nothing is sent, everything ends as send_disabled.
	Disabled bool
	// SendAgain takes the place of Send when an earlier attempt may have arrived: it finds that out first. looked: a person retried it
	// since. nil: Send.
	SendAgain func(ctx context.Context, endpoint string, payload []byte, looked bool) Answer
	Policy    Policy
	Breaker   BreakerSettings
}

const (
	// maxResults bounds the results in one message: 256 of at most 3 KB stay well below gRPC's 4 MB.
	maxResults = 256
	// backlogPerWorker bounds the results that wait for state's answer. Beyond it no credit is given: a relay that cannot
	// record what it did must not do more.
	backlogPerWorker = 4
	// maxAppErrors bounds the counts in memory.
	maxAppErrors = 10_000
)

// Consumer works off one destination. Make it with New; use it for one Run.
type Consumer struct {
	cfg     Config
	state   statev1.StateServiceClient
	sender  Sender
	tel     *telemetry.Telemetry
	log     *slog.Logger
	metrics *metrics
	breaker *breaker
	random  func() float64
	// connected: the log says so. Run's goroutine alone uses it.
	connected bool
	// wake holds one token when there is something new to look at.
	wake chan struct{}
	// shareWake holds one token when the share has to be asked for anew.
	shareWake chan struct{}
	// requests is the context of all requests; it ends when the stop timeout passed.
	requests context.Context
	workers  *rpc.Workers

	mu       sync.Mutex
	stopping bool
	share    share
	// down says why state is not connected; nil = it is.
	down error
	// running counts the items at work.
	running int
	// items is everything leased here until state has answered its result.
	items map[key]*item
	// credits are the moments at which each unused credit of the stream was sent, oldest first: state can have granted
	// the next lease no earlier than that.
	credits []time.Time
	// unsent are the items whose result is not on the stream.
	unsent map[*item]bool
	// sent are the results on the stream that wait for an answer, by id.
	sent   map[uint64]*item
	lastID uint64
	// What state was told last of how this consumer is, and when.
	toldAt      time.Time
	toldBreaker string
	toldWorkers int
	// failure is why the last attempt failed; empty = it did not.
	failure string
	// appErrors counts a delivery's application errors. State counts attempts, not their kind; lost on a restart, which
	// means a few more retries within MaxAttempts.
	appErrors map[key]int
}

// key names a delivery.
type key struct {
	call   string
	number uint32
}

// item is one leased delivery.
type item struct {
	key    key
	work   *statev1.LeaseWork
	leased time.Time
	// token is that of the newest lease.
	token string
	// result is nil while the item is at work.
	result *statev1.LeaseResult
	// id is the result's on the stream; 0 = it has to be sent, not before due.
	id       uint64
	due      time.Time
	refusals int
}

// New makes a consumer. Nothing happens before Run.
func New(cfg Config, state statev1.StateServiceClient, sender Sender, tel *telemetry.Telemetry) (*Consumer, error) {
	c := &Consumer{
		cfg:       cfg,
		state:     state,
		sender:    sender,
		tel:       tel,
		log:       tel.Log().With("destination", cfg.Destination),
		random:    rand.Float64,
		wake:      make(chan struct{}, 1),
		shareWake: make(chan struct{}, 1),
		share:     share{name: cfg.Name, instance: crand.Text()},
		down:      errors.New("not connected to state yet"),
		items:     map[key]*item{},
		unsent:    map[*item]bool{},
		appErrors: map[key]int{},
	}
	c.breaker = newBreaker(cfg.Breaker, func(from, to string) {
		c.log.Warn("circuit breaker", "from", from, "to", to)
		c.poke()
		c.wakeShare()
	})
	var err error
	c.metrics, err = newMetrics(tel.Meter(), c)
	return c, err
}

// Ready reports why no work can be leased: state is not connected. A CRM that is down or held is no such reason.
func (c *Consumer) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.down
}

// Run works until ctx ends. Then it leases nothing more, lets running requests finish, and returns when state has answered
// every result, at the latest after StopTimeout.
func (c *Consumer) Run(ctx context.Context) {
	var abort context.CancelFunc
	c.workers = rpc.NewWorkers(c.cfg.Workers)
	c.requests, abort = context.WithCancel(context.WithoutCancel(ctx))
	defer abort()
	streams, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	defer context.AfterFunc(ctx, func() {
		c.stop()
		time.AfterFunc(c.cfg.StopTimeout*3/4, abort)
		time.AfterFunc(c.cfg.StopTimeout, cut)
	})()

	defer func() { _ = c.metrics.observed.Unregister() }()
	shares, end := context.WithCancel(streams)
	var keeper sync.WaitGroup
	keeper.Go(func() { c.keepShare(shares) })
	c.keepStream(streams)
	abort()
	c.workers.Close()
	end()
	keeper.Wait()
	c.leaveShare(streams)
	if n := c.unanswered(); n > 0 {
		c.log.Error("stopped with results that state did not answer; their leases run out and they may be sent again", "results", n)
	}
}

// keepStream keeps one stream to state open until everything is done or ctx ends.
func (c *Consumer) keepStream(ctx context.Context) {
	const firstWait, longestWait, logEvery = 100 * time.Millisecond, 2 * time.Second, time.Minute
	wait := firstWait
	var failing string
	var logged time.Time
	for !c.finished() && ctx.Err() == nil {
		heard, err := c.stream(ctx)
		if err == nil {
			wait = firstWait
			continue
		}
		c.setDown(err)
		c.connected = false
		if heard {
			wait = firstWait
		}
		if now := time.Now(); err.Error() != failing || now.Sub(logged) > logEvery {
			c.log.Warn("no stream to state, trying again", "error", err)
			failing, logged = err.Error(), now
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, longestWait)
	}
}

// poke makes the stream look whether there is something to send.
func (c *Consumer) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *Consumer) stop() {
	c.mu.Lock()
	c.stopping = true
	c.mu.Unlock()
	c.poke()
	c.wakeShare()
}

// finished reports whether the end was asked for and nothing is left to say.
func (c *Consumer) finished() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopping && len(c.items) == 0
}

func (c *Consumer) unanswered() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.items)
}

func (c *Consumer) setDown(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = err
}
