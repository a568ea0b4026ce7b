package delivery

import (
	"context"
	"errors"
	"time"

	"github.com/sony/gobreaker/v2"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"callrelay/platform/telemetry"
)

// metrics are what a dashboard sees of one destination. All attribute sets are made once, and the slices of options that hold them.
type metrics struct {
	add      []metric.AddOption    // the destination
	record   []metric.RecordOption // the destination
	outcome  map[string][]metric.AddOption
	outcomes metric.Int64Counter
	attempts metric.Int64Counter
	duration metric.Float64Histogram
	observed metric.Registration // until the consumer ends: another one of the same destination may follow
}

func newMetrics(meter metric.Meter, c *Consumer) (*metrics, error) {
	destination := telemetry.Destination.String(c.cfg.Destination)
	same := metric.WithAttributeSet(attribute.NewSet(destination))
	m := &metrics{add: []metric.AddOption{same}, record: []metric.RecordOption{same}, outcome: map[string][]metric.AddOption{}}
	for _, outcome := range []string{nextDelivered, nextRetry, nextDead, nextHold, nextAsk, nextExpired, nextDiscarded, nextSendDisabled} {
		m.outcome[outcome] = []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(destination, telemetry.Outcome.String(outcome)))}
	}
	var errs [7]error
	m.outcomes, errs[0] = meter.Int64Counter("callrelay.upstream.deliveries",
		metric.WithDescription("What became of leased deliveries, by outcome; retry and hold are not final."))
	m.attempts, errs[1] = meter.Int64Counter("callrelay.upstream.attempts",
		metric.WithDescription("Requests made."))
	m.duration, errs[2] = meter.Float64Histogram("callrelay.upstream.attempt.duration",
		metric.WithDescription("How long a request took until its answer or its failure."), metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 30))
	var inFlight, unanswered, breaker, share metric.Int64ObservableGauge
	inFlight, errs[3] = meter.Int64ObservableGauge("callrelay.upstream.in_flight", metric.WithDescription("Deliveries that are worked on."))
	unanswered, errs[4] = meter.Int64ObservableGauge("callrelay.upstream.unanswered",
		metric.WithDescription("Results that state has not answered yet."))
	breaker, errs[5] = meter.Int64ObservableGauge("callrelay.upstream.breaker",
		metric.WithDescription("Circuit breaker: 0 closed, 1 half open, 2 open."))
	share, errs[6] = meter.Int64ObservableGauge("callrelay.upstream.share",
		metric.WithDescription("Deliveries that may be worked on here, of those that all replicas together may."))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	var err error
	m.observed, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		state := c.breaker.circuit.State()
		c.mu.Lock()
		defer c.mu.Unlock()
		o.ObserveInt64(inFlight, int64(c.running), same)
		o.ObserveInt64(unanswered, int64(len(c.items)-c.running), same)
		o.ObserveInt64(breaker, map[gobreaker.State]int64{gobreaker.StateHalfOpen: 1, gobreaker.StateOpen: 2}[state], same)
		o.ObserveInt64(share, int64(c.share.current(time.Now())), same)
		return nil
	}, inFlight, unanswered, breaker, share)
	return m, err
}

func (m *metrics) attempted(ctx context.Context, took time.Duration) {
	m.attempts.Add(ctx, 1, m.add...)
	m.duration.Record(ctx, took.Seconds(), m.record...)
}

func (m *metrics) settled(ctx context.Context, outcome string) {
	m.outcomes.Add(ctx, 1, m.outcome[outcome]...)
}
