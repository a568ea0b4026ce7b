package state

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"callrelay/platform/telemetry"
	"callrelay/services/state/internal/store"
)

// timed times the pipelines of Redis by their script, and counts the items in them.
func timed(meter metric.Meter) (func(ctx context.Context, script string, items int, took time.Duration), error) {
	took, err := meter.Float64Histogram("callrelay.redis.duration", metric.WithUnit("s"),
		metric.WithDescription("How long Redis took for one pipeline, by script; with appendfsync always this is the disk."),
		metric.WithExplicitBucketBoundaries(.00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2))
	if err != nil {
		return nil, err
	}
	batch, err := meter.Int64Histogram("callrelay.redis.batch", metric.WithUnit("{item}"),
		metric.WithDescription("How many items one pipeline carried, by script. What the short way of a script could not do is in a second one."),
		metric.WithExplicitBucketBoundaries(1, 2, 4, 8, 16, 32, 64, 128, 256))
	if err != nil {
		return nil, err
	}
	of := map[string]metric.MeasurementOption{}
	for _, script := range store.Scripts() {
		of[script] = metric.WithAttributeSet(attribute.NewSet(telemetry.Script.String(script)))
	}
	return func(ctx context.Context, script string, items int, d time.Duration) {
		took.Record(ctx, d.Seconds(), of[script])
		batch.Record(ctx, int64(items), of[script])
	}, nil
}

// observe registers the gauges of the queues: what waits, what is with consumers, what a person has to look at, how long
// the oldest has waited, and whether it is held, by destination; and those of the accounting. They are read from Redis when
// somebody scrapes. What could not be read is not served, and that is served, so that alerts do not end with what they watch.
func (s *Service) observe() error {
	var (
		meter    = s.tel.Meter()
		tell     = outage{log: s.tel.Log()}
		observed []metric.Observable
		failed   error
	)
	gauge := func(name, unit, what string) metric.Int64ObservableGauge {
		g, err := meter.Int64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(what))
		observed, failed = append(observed, g), errors.Join(failed, err)
		return g
	}
	queues := []metric.Int64ObservableGauge{ // in the order of observeQueues
		gauge("callrelay.queue.waiting", "{call}", "Calls whose next delivery, or timer, waits."),
		gauge("callrelay.queue.leased", "{call}", "Calls whose next delivery, or timer, is being worked on."),
		gauge("callrelay.queue.dead", "{delivery}", "Deliveries that ended dead, expired or asked and that nobody has settled."),
		gauge("callrelay.queue.oldest", "ms", "How long the oldest has been due."),
		gauge("callrelay.destination.held", "{hold}", "1 while nothing is sent to the destination: a person or its own fault holds it; 2 while that is a maintenance with an end."),
	}
	requests := gauge("callrelay.accounting.requests", "{request}", "Where the requests of the last 24 hours are: each in one bucket, a sum over buckets is what was received without what is spooled.")
	up := gauge("callrelay.store.up", "{store}", "1 while Redis answers and takes writes; 0 while it does not, or not what the gauges of queues, holds and accounting ask it.")
	difference := gauge("callrelay.accounting.difference", "{request}", "By how much counters and journals differed at the last comparison; anything but 0 is an alarm.")
	if failed != nil {
		return failed
	}
	_, err := meter.RegisterCallback(func(ctx context.Context, o metric.Observer) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		err := s.observeQueues(ctx, o, queues)
		if err == nil {
			err = s.observeAccounting(ctx, o, requests, difference)
		}
		ready := s.Ready() == nil
		var isUp int64
		if err == nil && ready {
			isUp = 1
		}
		o.ObserveInt64(up, isUp)
		tell.change(err, ready)
		return nil // an error would be logged at each scrape
	}, observed...)
	return err
}

// outage says once that metrics cannot be read, and once that they can again.
type outage struct {
	log  *slog.Logger
	said atomic.Bool
}

// change is told of each scrape. That Redis is gone the service says itself: then it is not ready.
func (g *outage) change(err error, ready bool) {
	switch {
	case err != nil && ready && g.said.CompareAndSwap(false, true):
		g.log.Warn("Redis does not answer in time what the metrics ask: some are not served", "error", err)
	case err == nil && g.said.CompareAndSwap(true, false):
		g.log.Info("all metrics are served again")
	}
}

func (s *Service) observeQueues(ctx context.Context, o metric.Observer, gauges []metric.Int64ObservableGauge) error {
	holds, err := s.store.Holds(ctx)
	if err != nil {
		return err
	}
	planned, err := s.store.Maintenances(ctx)
	if err != nil {
		return err
	}
	for _, name := range s.store.Destinations() {
		waiting, leased, dead, oldest, err := s.store.Backlog(ctx, name)
		if err != nil {
			return err
		}
		if oldest != 0 {
			oldest = max(0, s.store.Now()-oldest)
		}
		var held int64
		switch h := holds[name]; {
		case maintained(h, planned[name]):
			held = 2
		case h.Held():
			held = 1
		}
		at := metric.WithAttributes(telemetry.Destination.String(name))
		for i, value := range []int64{waiting, leased, dead, oldest, held} {
			o.ObserveInt64(gauges[i], value, at)
		}
	}
	return nil
}

func (s *Service) observeAccounting(ctx context.Context, o metric.Observer, requests, difference metric.Int64Observable) error {
	counters, err := s.store.Counters(ctx)
	if err != nil {
		return err
	}
	var (
		since = store.HourOf(s.store.Now()) - 23
		sums  = map[store.Bucket]int64{}
	)
	for _, partition := range counters {
		for c, n := range partition {
			if !c.Unrequested && c.Hour >= since {
				sums[c.Bucket] += n
			}
		}
	}
	for bucket, name := range bucketNames {
		o.ObserveInt64(requests, sums[bucket], metric.WithAttributes(telemetry.Bucket.String(name)))
	}
	last, err := s.ledger.latest(ctx)
	if err != nil || last.GetCheckedMs() == 0 {
		return err // not compared yet: no value is not zero
	}
	off := int64(len(last.GetUnreadable())) // of which nobody can say more
	for _, d := range last.GetDifferences() {
		off += max(d.GetCounted()-d.GetJournaled(), d.GetJournaled()-d.GetCounted())
	}
	o.ObserveInt64(difference, off)
	return nil
}
