package delivery

import (
	"cmp"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/telemetry"
)

// tellEvery is how often state is told how a consumer is, beside each change of its breaker and of its share. State believes it for
// three times as long.
const tellEvery = 5 * time.Second

// standing is how this consumer is, when that is to be told now; again: look again after this long. The caller holds mu.
func (c *Consumer) standing(now time.Time, again time.Duration) (*statev1.Standing, time.Duration) {
	breaker := c.breaker.circuit.State().String()
	workers := min(c.cfg.Workers, c.share.current(now)) // what the others have is not ours to use
	if due := c.toldAt.Add(tellEvery).Sub(now); due > 0 && breaker == c.toldBreaker && workers == c.toldWorkers {
		return nil, min(again, due)
	}
	c.toldAt, c.toldBreaker, c.toldWorkers = now, breaker, workers
	st := &statev1.Standing{Breaker: breaker, Running: int32(c.running), Workers: int32(workers), Process: c.cfg.Name,
		Failure: telemetry.MaskDigits(cmp.Or(c.share.failing, c.failure))}
	if breaker == "open" {
		st.BreakerMs = c.breaker.remaining().Milliseconds()
	}
	return st, min(again, tellEvery)
}
