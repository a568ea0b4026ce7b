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

// strangers counts and logs who comes with a wrong token or secret, which is never named, or from an address that may not send
// callbacks. So many lines are logged at most.
type strangers struct {
	log     *slog.Logger
	lines   *rate.Limiter
	counter metric.Int64Counter
}

// doorAmeyo is the door of the dialer's callbacks.
const doorAmeyo = "ameyo"

func newStrangers(tel *telemetry.Telemetry) (*strangers, error) {
	counter, err := tel.Meter().Int64Counter("callrelay.tokens.wrong", metric.WithUnit("{request}"),
		metric.WithDescription("Requests with a wrong token or secret, by door (operator, cards, pbx, kommo, ameyo); shut_out: not looked at, after too many; address: callbacks from elsewhere than AMEYO_ALLOWED_NETWORKS."))
	if err != nil {
		return nil, err
	}
	s := &strangers{log: tel.Log(), lines: rate.NewLimiter(rate.Every(5*time.Second), 20), counter: counter}
	for _, door := range []string{"operator", "cards", "pbx", "kommo", doorAmeyo} {
		s.add(context.Background(), 0, door, "wrong")
	}
	s.add(context.Background(), 0, doorAmeyo, "address")
	s.add(context.Background(), 0, "operator", "shut_out")
	return s, nil
}

func (s *strangers) add(ctx context.Context, n int64, door, outcome string) {
	s.counter.Add(ctx, n, metric.WithAttributeSet(attribute.NewSet(telemetry.Door.String(door), telemetry.Outcome.String(outcome))))
}

// count counts one at a door.
func (s *strangers) count(ctx context.Context, door, outcome string) { s.add(ctx, 1, door, outcome) }

// noticed counts and logs one with a wrong token.
func (s *strangers) noticed(ctx context.Context, door, from string) {
	s.count(ctx, door, "wrong")
	s.tell(ctx, "a wrong token", door, from)
}

// turnedAway counts and logs a callback that is answered 403 (address) or, like any unknown path, 404 (wrong: the secret in it).
func (s *strangers) turnedAway(ctx context.Context, outcome, from string) {
	s.count(ctx, doorAmeyo, outcome)
	if outcome == "address" {
		s.tell(ctx, "a callback from an address that is not in AMEYO_ALLOWED_NETWORKS", doorAmeyo, from)
		return
	}
	s.tell(ctx, "a callback without the secret of AMEYO_PATH_SECRET in its path", doorAmeyo, from)
}

func (s *strangers) tell(ctx context.Context, what, door, from string) {
	if s.lines.Allow() {
		s.log.WarnContext(ctx, what, "door", door, "from", from)
	}
}
