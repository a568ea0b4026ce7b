// Package state owns Redis, alone: call records, queues, timers and the journal, with the daily files as a view of it. It serves Load, Commit and Lease
// (proto/callrelay/state/v1), each in batches, and the operator's reads and actions on them. It does not know what a
// disposition means, and it sends nothing to any CRM.
package state

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/telemetry"
	"callrelay/services/state/internal/dailylog"
	"callrelay/services/state/internal/dispatch"
	"callrelay/services/state/internal/store"
)

// Service is state; it implements run.Service.
type Service struct {
	cfg      Config
	tel      *telemetry.Telemetry
	zone     *time.Location // of times that people write
	store    *store.Store
	dispatch *dispatch.Dispatcher
	files    *dailylog.Writer // nil: no daily files
	feed     *feed            // the live tail and the search index
	cards    *cardFeed        // the caller cards
	ledger   *ledger          // the accounting
	watch    *watchman        // the alarms

	unsureCommits unsure[*statev1.CommitItem] // by input id
	unsureResults unsure[bool]                // by token

	notReady atomic.Pointer[unready] // nil = ready
	stopping chan struct{}           // closed when Run ends: the long streams end with it
}

// New prepares the service; Redis is first asked by Run.
func New(cfg Config, tel *telemetry.Telemetry) (*Service, error) {
	zone, err := time.LoadLocation(cfg.Timezone)
	if err != nil {
		return nil, err
	}
	files, err := cfg.dailyFiles(zone, tel.Log())
	if err != nil {
		return nil, err
	}
	svc := &Service{cfg: cfg, tel: tel, zone: zone, files: files, cards: &cardFeed{}, stopping: make(chan struct{})}
	ran, err := timed(tel.Meter())
	if err != nil {
		return nil, err
	}
	s, err := store.Open(store.Config{URL: cfg.RedisURL.Reveal(), Retention: cfg.CallRetention, JournalLimit: cfg.JournalLimit,
		ReplicasAck: cfg.ReplicasAck, Ran: ran, Wrote: func(item *statev1.CommitItem) { svc.committed(item) }})
	if err != nil {
		return nil, err
	}
	svc.store, svc.dispatch = s, dispatch.New(s, tel.Log(), cfg.LeaseTime)
	svc.feed = newFeed(s, svc.cards, svc.dispatch.Alone)
	svc.ledger = &ledger{store: s, retention: cfg.CallRetention, log: tel.Log()}
	svc.watch = newWatchman(svc)
	svc.setReady("waiting for Redis")
	return svc, svc.observe()
}

// Register adds the gRPC services.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	statev1.RegisterStateServiceServer(r, &server{Service: s})
	statev1.RegisterAccountServiceServer(r, &accounts{Service: s})
	statev1.RegisterLimitServiceServer(r, &limits{Service: s})
	statev1.RegisterCardServiceServer(r, &cards{Service: s})
	operatorv1.RegisterOperatorServiceServer(r, &operator{Service: s})
}

// Ready is nil while Redis answers and holds our format.
func (s *Service) Ready() error {
	if not := s.notReady.Load(); not != nil {
		return errors.New(not.why)
	}
	return nil
}

// unready is why the service cannot do its work, and since when it cannot.
type unready struct {
	why   string
	since time.Time
}

func (s *Service) setReady(why string) {
	if why == "" {
		s.notReady.Store(nil)
		return
	}
	since := time.Now()
	if not := s.notReady.Load(); not != nil {
		since = not.since
	}
	s.notReady.Store(&unready{why, since})
}

// Run connects to Redis, watches it and hands out work until ctx ends. Without Redis it waits and says so; only data of
// another format ends it. The connections stay open: what the streams still work on needs them.
func (s *Service) Run(ctx context.Context) error {
	defer startFiles(s.files)()
	defer close(s.stopping)
	if err := s.connect(ctx, nil); err != nil || ctx.Err() != nil {
		return err
	}
	var background sync.WaitGroup
	defer background.Wait()
	for _, run := range []func(context.Context){s.dispatch.Run, s.feed.run, s.ledger.run, s.watch.run} {
		background.Go(func() { run(ctx) })
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := s.ping(ctx); err != nil && ctx.Err() == nil {
				if err := s.connect(ctx, err); err != nil {
					return err
				}
			}
		}
	}
}

// startFiles runs the writer of the daily files until stop is called; it ends last, after everybody who hands it something.
func startFiles(w *dailylog.Writer) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	return func() { cancel(); running.Wait() }
}

func (s *Service) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return s.store.Ping(ctx)
}

// connect tries until Redis answers and takes writes; lost is how the connection ended, nil at the start. The log has one line
// when it is gone and one when it is back. A Redis that would lose calls by itself is refused at the start; later, after a
// failover to it, it is only complained of: to stop then would make a certain loss of a possible one.
func (s *Service) connect(ctx context.Context, lost error) error {
	starting, said := lost == nil, false
	wait := func(err error) {
		s.setReady(fmt.Sprintf("Redis does not answer, or takes no writes: %v", err))
		if !said && ctx.Err() == nil {
			said = true
			s.tel.Log().Warn("waiting for Redis", "error", err)
		}
	}
	if lost != nil {
		wait(lost)
	}
	for attempt := 0; ; attempt++ {
		durability, err := s.connectOnce(ctx, starting)
		if err == nil && starting && s.unsafe(durability) {
			err = fmt.Errorf("redis would lose calls: %s (REDIS_ALLOW_UNSAFE=true starts all the same)", strings.Join(durability.Unsafe, "; "))
			s.setReady(err.Error())
			return err
		}
		if err == nil {
			s.setReady("")
			s.connected(durability)
			return nil
		}
		if _, ok := errors.AsType[*store.FormatError](err); ok {
			s.setReady(err.Error())
			return err
		}
		wait(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(time.Second, 20*time.Millisecond<<min(attempt, 6))):
		}
	}
}

// connected says what Redis is like.
func (s *Service) connected(durability store.Durability) {
	log := s.tel.Log()
	log.Info("redis connected")
	for _, problem := range durability.Unsafe {
		log.Error("redis durability: " + problem)
	}
	for _, problem := range durability.Weak {
		log.Warn("redis durability: " + problem)
	}
	if off := s.store.ClockOff(); off != 0 {
		log.Warn("redis' clock differs from ours and is not followed: set the clocks of its machines (NTP)", "ahead_by", off)
	}
}

func (s *Service) connectOnce(ctx context.Context, starting bool) (store.Durability, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	durability, err := s.store.CheckDurability(ctx)
	if err != nil || starting && s.unsafe(durability) {
		return durability, err // from Connect on calls are taken
	}
	return durability, s.store.Connect(ctx)
}

// unsafe says whether a Redis is refused at the start.
func (s *Service) unsafe(d store.Durability) bool {
	return len(d.Unsafe) > 0 && !bool(s.cfg.RedisAllowUnsafe)
}
