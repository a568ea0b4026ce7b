package ingress

import (
	"context"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/time/rate"

	"callrelay/platform/telemetry"
)

// strangers counts and logs who comes with a wrong token or secret, which is never named. So many lines are logged at most.
type strangers struct {
	log     *slog.Logger
	lines   *rate.Limiter
	counter metric.Int64Counter
}

func newStrangers(tel *telemetry.Telemetry) (*strangers, error) {
	s := &strangers{log: tel.Log(), lines: rate.NewLimiter(rate.Every(5*time.Second), 20)}
	var err error
	s.counter, err = tel.Meter().Int64Counter("callrelay.tokens.wrong", metric.WithUnit("{request}"),
		metric.WithDescription("Requests with a wrong token or secret, by door (operator, cards, pbx, kommo); shut_out: not looked at, after too many."))
	for _, door := range []string{"operator", "cards", "pbx", "kommo"} {
		s.add(context.Background(), 0, door, "wrong")
	}
	s.add(context.Background(), 0, "operator", "shut_out")
	return s, err
}

func (s *strangers) add(ctx context.Context, n int64, door, outcome string) {
	s.counter.Add(ctx, n, metric.WithAttributeSet(attribute.NewSet(telemetry.Door.String(door), telemetry.Outcome.String(outcome))))
}

// count counts one at a door.
func (s *strangers) count(ctx context.Context, door, outcome string) { s.add(ctx, 1, door, outcome) }

// noticed counts and logs one with a wrong token.
func (s *strangers) noticed(ctx context.Context, door, from string) {
	s.count(ctx, door, "wrong")
	if s.lines.Allow() {
		s.log.WarnContext(ctx, "a wrong token", "door", door, "from", from)
	}
}
