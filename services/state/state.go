// Package state owns Redis, alone: call records, queues, timers and the journal, with the daily files as a view of it. It serves Load, Commit and Lease
// (proto/callrelay/state/v1), each in batches, and the operator's reads and actions on them. It does not know what a
// disposition means, and it sends nothing to any CRM.
package state

import (
	"context"
	"errors"
	"fmt"
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
	store    *store.Store
	dispatch *dispatch.Dispatcher
	files    *dailylog.Writer       // nil: no daily files
	feed     *feed                  // the live tail and the search index
	ledger   *ledger                // the accounting
	watch    *watchman              // the alarms
	notReady atomic.Pointer[string] // why; nil = ready
	stopping chan struct{}          // closed when Run ends: the long streams end with it
}

// New prepares the service; Redis is first asked by Run.
func New(cfg Config, tel *telemetry.Telemetry) (*Service, error) {
	files, err := cfg.dailyFiles(tel.Log())
	if err != nil {
		return nil, err
	}
	svc := &Service{cfg: cfg, tel: tel, files: files, stopping: make(chan struct{})}
	s, err := store.Open(store.Config{URL: cfg.RedisURL.Reveal(), Retention: cfg.CallRetention, JournalLimit: cfg.JournalLimit,
		Wrote: func(item *statev1.CommitItem) { svc.committed(item) }})
	if err != nil {
		return nil, err
	}
	svc.store, svc.dispatch = s, dispatch.New(s, tel.Log(), cfg.LeaseTime)
	svc.feed = newFeed(s, svc.dispatch.Alone, tel.Log())
	svc.ledger = &ledger{store: s, retention: cfg.CallRetention}
	svc.watch = newWatchman(svc)
	svc.setReady("waiting for Redis")
	return svc, svc.observe()
}

// Register adds the gRPC service.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	statev1.RegisterStateServiceServer(r, &server{Service: s})
	operatorv1.RegisterOperatorServiceServer(r, &operator{Service: s})
}

// Ready is nil while Redis answers and holds our format.
func (s *Service) Ready() error {
	if why := s.notReady.Load(); why != nil {
		return errors.New(*why)
	}
	return nil
}

func (s *Service) setReady(why string) {
	if why == "" {
		s.notReady.Store(nil)
		return
	}
	s.notReady.Store(&why)
}

// Run connects to Redis, watches it and hands out work until ctx ends. Without Redis it waits and says so; only data of
// another format ends it. The connections stay open: what the streams still work on needs them.
func (s *Service) Run(ctx context.Context) error {
	files, filesDone := startFiles(s.files)
	defer func() { files(); <-filesDone }()
	defer close(s.stopping)
	if err := s.connect(ctx); err != nil || ctx.Err() != nil {
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
				if err := s.connect(ctx); err != nil {
					return err
				}
			}
		}
	}
}

// startFiles runs the writer of the daily files until stop is called; it ends last, after everybody who hands it something.
func startFiles(w *dailylog.Writer) (stop func(), done <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); w.Run(ctx) }()
	return cancel, ended
}

func (s *Service) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return s.store.Ping(ctx)
}

// connect tries until Redis answers. The log has one line when it is gone and one when it is back.
func (s *Service) connect(ctx context.Context) error {
	log := s.tel.Log()
	for attempt := 0; ; attempt++ {
		err := s.connectOnce(ctx)
		var format *store.FormatError
		switch {
		case err == nil:
			s.setReady("")
			log.Info("redis connected")
			s.warnDurability(ctx)
			return nil
		case errors.As(err, &format):
			s.setReady(err.Error())
			return err
		}
		s.setReady(fmt.Sprintf("Redis does not answer: %v", err))
		if attempt == 0 && ctx.Err() == nil {
			log.Warn("waiting for Redis", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(time.Second, 20*time.Millisecond<<min(attempt, 6))):
		}
	}
}

func (s *Service) connectOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return s.store.Connect(ctx)
}

func (s *Service) warnDurability(ctx context.Context) {
	problems, err := s.store.CheckDurability(ctx)
	if err != nil {
		s.tel.Log().Warn("durability could not be checked", "error", err)
	}
	for _, p := range problems {
		s.tel.Log().Warn("redis durability: " + p)
	}
}
