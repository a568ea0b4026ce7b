package ingress

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"callrelay/platform/telemetry"
)

// metrics counts callbacks by what they were answered and times the answers. All attribute sets are made once.
type metrics struct {
	answers metric.Int64Counter
	latency metric.Float64Histogram
	outcome map[string]metric.MeasurementOption
}

// What a callback was answered.
const (
	accepted   = "accepted"
	duplicate  = "duplicate"
	refused    = "refused"
	unrecorded = "unavailable" // nothing durable took it in time, or a bug
)

func newMetrics(meter metric.Meter) (*metrics, error) {
	m := &metrics{outcome: map[string]metric.MeasurementOption{}}
	var err error
	if m.answers, err = meter.Int64Counter("callrelay.callbacks", metric.WithUnit("{callback}"),
		metric.WithDescription("Callbacks by what they were answered.")); err != nil {
		return nil, err
	}
	if m.latency, err = meter.Float64Histogram("callrelay.ack.duration", metric.WithUnit("s"),
		metric.WithDescription("Time from receiving a callback to its answer."),
		metric.WithExplicitBucketBoundaries(.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2)); err != nil {
		return nil, err
	}
	for _, word := range []string{accepted, duplicate, refused, unrecorded} {
		m.outcome[word] = metric.WithAttributeSet(attribute.NewSet(telemetry.Outcome.String(word)))
	}
	return m, nil
}

func (m *metrics) answered(ctx context.Context, outcome string, received time.Time) {
	m.answers.Add(ctx, 1, m.outcome[outcome])
	m.latency.Record(ctx, time.Since(received).Seconds(), m.outcome[outcome])
}
