package state

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/metric"

	"callrelay/platform/telemetry"
)

// observe registers the gauges of the queues: what waits, what is with consumers, what a person has to look at, and how long
// the oldest has waited, by destination. They are read from Redis when somebody scrapes.
func (s *Service) observe() error {
	var (
		meter  = s.tel.Meter()
		gauges [4]metric.Int64ObservableGauge
		err    error
	)
	for i, g := range [...]struct{ name, unit, what string }{
		{"callrelay.queue.waiting", "{call}", "Calls whose next delivery, or timer, waits."},
		{"callrelay.queue.leased", "{call}", "Calls whose next delivery, or timer, is being worked on."},
		{"callrelay.queue.dead", "{delivery}", "Deliveries that ended dead, expired or asked and that nobody has settled."},
		{"callrelay.queue.oldest", "ms", "How long the oldest has been due."},
	} {
		if gauges[i], err = meter.Int64ObservableGauge(g.name, metric.WithUnit(g.unit), metric.WithDescription(g.what)); err != nil {
			return err
		}
	}
	_, err = meter.RegisterCallback(func(ctx context.Context, o metric.Observer) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		for _, name := range s.store.Destinations() {
			waiting, leased, dead, oldest, err := s.store.Backlog(ctx, name)
			if err != nil {
				return err
			}
			if oldest != 0 {
				oldest = max(0, s.store.Now()-oldest)
			}
			at := metric.WithAttributes(telemetry.Destination.String(name))
			for i, value := range []int64{waiting, leased, dead, oldest} {
				o.ObserveInt64(gauges[i], value, at)
			}
		}
		return nil
	}, gauges[0], gauges[1], gauges[2], gauges[3])
	return err
}
