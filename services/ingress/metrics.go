package ingress

import (
	"context"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	routerv1 "callrelay/gen/callrelay/router/v1"
	"callrelay/platform/telemetry"
	"callrelay/services/ingress/internal/spool"
)

// metrics counts callbacks by what they were answered and times the answers. All attribute sets are made once.
type metrics struct {
	answers metric.Int64Counter
	latency metric.Float64Histogram
	// refusedLate counts callbacks that were refused after the spool had acknowledged them.
	refusedLate metric.Int64Counter
	// unrecorded counts refused requests of which nothing is kept.
	unrecorded metric.Int64Counter
	answer     map[[2]string]answerOptions // by source and outcome
	// notAcknowledged counts those that nothing durable took, for an alarm.
	notAcknowledged recent
}

// answerOptions are the options of one attribute set, as a call takes them, so that none makes a slice.
type answerOptions struct {
	add    []metric.AddOption
	record []metric.RecordOption
}

// Who sent a callback.
const (
	fromCallStart = "ameyo.call_start"
	fromCallEnd   = "ameyo.call_end"
	fromPbx       = "pbx"
	fromKommo     = "kommo"
)

// sourceOf says who sent what is routed.
func sourceOf(item *routerv1.RouteItem) string {
	switch item.GetCallback().(type) {
	case *routerv1.RouteItem_AmeyoCallStart:
		return fromCallStart
	case *routerv1.RouteItem_PbxEvent:
		return fromPbx
	case *routerv1.RouteItem_KommoCall, *routerv1.RouteItem_KommoWindow:
		return fromKommo
	}
	return fromCallEnd
}

// sourceAt says who sends to a path.
func sourceAt(path string) string {
	switch {
	case strings.HasPrefix(path, pbxPath):
		return fromPbx
	case strings.HasPrefix(path, kommoPath):
		return fromKommo
	case path == "/call_start.php" || path == "/v1/ameyo/call-start":
		return fromCallStart
	}
	return fromCallEnd
}

// What a callback was answered.
const (
	accepted    = "accepted"
	duplicate   = "duplicate"
	spooled     = "spooled"
	refused     = "refused"
	unavailable = "unavailable" // nothing durable took it in time, or a bug
)

func newMetrics(meter metric.Meter) (*metrics, error) {
	m := &metrics{answer: map[[2]string]answerOptions{}}
	var err error
	if m.answers, err = meter.Int64Counter("callrelay.callbacks", metric.WithUnit("{callback}"),
		metric.WithDescription("Callbacks by who sent them and what they were answered.")); err != nil {
		return nil, err
	}
	if m.latency, err = meter.Float64Histogram("callrelay.ack.duration", metric.WithUnit("s"),
		metric.WithDescription("Time from receiving a callback to its answer."),
		metric.WithExplicitBucketBoundaries(.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2)); err != nil {
		return nil, err
	}
	if m.refusedLate, err = meter.Int64Counter("callrelay.spool.refused", metric.WithUnit("{callback}"),
		metric.WithDescription("Callbacks that the rules refused after the spool had acknowledged them; each needs a person.")); err != nil {
		return nil, err
	}
	if m.unrecorded, err = meter.Int64Counter("callrelay.refused.unrecorded", metric.WithUnit("{callback}"),
		metric.WithDescription("Refused requests that were too many to keep a record of.")); err != nil {
		return nil, err
	}
	for _, source := range []string{fromCallStart, fromCallEnd, fromPbx, fromKommo} {
		for _, word := range []string{accepted, duplicate, spooled, refused, unavailable} {
			of := metric.WithAttributeSet(attribute.NewSet(telemetry.Source.String(source), telemetry.Outcome.String(word)))
			m.answer[[2]string{source, word}] = answerOptions{[]metric.AddOption{of}, []metric.RecordOption{of}}
			m.answers.Add(context.Background(), 0, of) // a first one is an increase only where there was a zero
		}
	}
	m.refusedLate.Add(context.Background(), 0)
	m.unrecorded.Add(context.Background(), 0)
	return m, nil
}

func (m *metrics) answered(ctx context.Context, source, outcome string, received time.Time) {
	if outcome == unavailable {
		m.notAcknowledged.add()
	}
	of := m.answer[[2]string{source, outcome}]
	m.answers.Add(ctx, 1, of.add...)
	m.latency.Record(ctx, time.Since(received).Seconds(), of.record...)
}

// turnedAway counts a callback that was answered 503 at once, because too many are under way. It is not timed: nothing was waited for.
func (m *metrics) turnedAway(ctx context.Context, source string) {
	m.notAcknowledged.add()
	m.answers.Add(ctx, 1, m.answer[[2]string{source, unavailable}].add...)
}

// observeSpool registers the gauges of the spool.
func observeSpool(meter metric.Meter, s *spool.Spool) error {
	var (
		gauges [4]metric.Int64ObservableGauge
		err    error
	)
	for i, g := range [...]struct{ name, unit, what string }{
		{"callrelay.spool.items", "{callback}", "Callbacks that were acknowledged from the spool and wait to be decided."},
		{"callrelay.spool.size", "By", "Bytes of the spooled callbacks."},
		{"callrelay.spool.oldest", "ms", "Age of the oldest spooled callback."},
		{"callrelay.spool.damaged", "{thing}", "Damaged spool files that are kept in SPOOL_DIR until somebody moves them away, and items of the one in use that could not be read."},
	} {
		if gauges[i], err = meter.Int64ObservableGauge(g.name, metric.WithUnit(g.unit), metric.WithDescription(g.what)); err != nil {
			return err
		}
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		st := s.Stats()
		for i, value := range []int64{int64(st.Items), st.Bytes, st.Oldest.Milliseconds(), int64(s.Damaged())} {
			o.ObserveInt64(gauges[i], value)
		}
		return nil
	}, gauges[0], gauges[1], gauges[2], gauges[3])
	return err
}
