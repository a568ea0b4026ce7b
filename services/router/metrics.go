package router

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"callrelay/platform/telemetry"
	"callrelay/services/router/ameyo"
)

// metrics time the two parts of an input and count what was found on the way. All attribute sets are made once.
type metrics struct {
	decide, commit metric.Float64Histogram
	gates          metric.Int64Counter
	phone1         metric.Int64Counter
	what           map[string]metric.MeasurementOption // of phone1
}

func newMetrics(meter metric.Meter) (*metrics, error) {
	var errs [4]error
	m := &metrics{what: map[string]metric.MeasurementOption{}}
	m.decide, errs[0] = meter.Float64Histogram("callrelay.decide.duration", metric.WithUnit("s"),
		metric.WithDescription("How long the rules took over one input."),
		metric.WithExplicitBucketBoundaries(.00001, .000025, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .1))
	m.commit, errs[1] = meter.Float64Histogram("callrelay.commit.duration", metric.WithUnit("s"),
		metric.WithDescription("How long one commit took until its outcome was known, with waiting for its batch and all tries."),
		metric.WithExplicitBucketBoundaries(.00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2))
	m.gates, errs[2] = meter.Int64Counter("callrelay.gates.hit", metric.WithUnit("{callback}"),
		metric.WithDescription("Callbacks that a gate found to be a repeat."))
	m.phone1, errs[3] = meter.Int64Counter("callrelay.phone1", metric.WithUnit("{record}"),
		metric.WithDescription("What became of phone-1 records: stored, replaced, taken (used by phone 2), expired, absorbed (a late phone 1)."))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	for _, what := range []string{ameyo.Phone1Stored, ameyo.Phone1Replaced, ameyo.Phone1Taken, ameyo.Phone1Expired, ameyo.Phone1Absorbed} {
		m.what[what] = metric.WithAttributeSet(attribute.NewSet(telemetry.Outcome.String(what)))
		m.phone1.Add(context.Background(), 0, m.what[what])
	}
	m.gates.Add(context.Background(), 0)
	return m, nil
}

// happened counts what was committed.
func (m *metrics) happened(ctx context.Context, effects ameyo.Effects) {
	if effects.Duplicate {
		m.gates.Add(ctx, 1)
	}
	for _, fact := range effects.Facts {
		if f, ok := fact.(ameyo.Phone1Fact); ok {
			m.phone1.Add(ctx, 1, m.what[f.What])
		}
	}
}

// since times something that began then. What follows begins now.
func since(ctx context.Context, h metric.Float64Histogram, begun time.Time) (now time.Time) {
	now = time.Now()
	h.Record(ctx, now.Sub(begun).Seconds())
	return now
}
