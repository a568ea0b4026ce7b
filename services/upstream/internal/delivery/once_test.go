package delivery

import (
	"context"
	"fmt"
	"testing"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
)

func once() Config {
	cfg := testConfig()
	cfg.Policy.Once = "card"
	return cfg
}

func card(d *statev1.Delivery) { d.Endpoint, d.MaxAgeMs = "card", 5000 }

// What is worth one attempt gets one, whatever comes of it but that the destination is at fault, and nobody is asked about it.
func TestOnce(t *testing.T) {
	for name, c := range map[string]struct {
		answer Answer
		final  string
	}{
		"shown":             {success, "done"},
		"refused":           {refusal, "DELIVERY_STATE_DISCARDED"},
		"perhaps shown":     {unknown, "DELIVERY_STATE_DISCARDED"},
		"nothing left":      {refused, "DELIVERY_STATE_DISCARDED"},
		"an error on a way": {broken5, "DELIVERY_STATE_DISCARDED"},
		"an error":          {appFail, "DELIVERY_STATE_DISCARDED"},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, once(), func(r *rig) {
				r.crm.answer = func(context.Context, string) Answer { return c.answer }
				r.state.add("a", card)
				r.after(time.Hour)
				r.final(map[string]string{"a/1": c.final})
				r.sends(1)
			})
		})
	}
}

// A destination that is held gets nothing that is too late when it is released, and what is sent has ended when it is.
func TestOnceIsNeverLate(t *testing.T) {
	run(t, once(), func(r *rig) {
		r.crm.answer = inTurn(atFault, success)
		r.state.add("held", card)
		r.after(time.Hour)
		r.final(map[string]string{"held/1": "DELIVERY_STATE_DISCARDED"})
		r.sends(1)

		r.state.hold = nil
		r.crm.answer = slow(time.Minute, success)
		r.state.add("slow", card)
		r.after(5*time.Second + time.Millisecond)
		r.final(map[string]string{"held/1": "DELIVERY_STATE_DISCARDED", "slow/1": "DELIVERY_STATE_DISCARDED"})
	})
}

// However many fail, what else is sent to the destination goes on: its breaker does not count them, nor is one of them shown as why
// nothing leaves.
func TestOnceHoldsNothingBack(t *testing.T) {
	run(t, once(), func(r *rig) {
		r.crm.answer = func(_ context.Context, call string) Answer {
			if call[:4] == "card" {
				return unknown
			}
			return success
		}
		for i := range 20 {
			r.state.add(fmt.Sprint("card-", i), card)
		}
		r.after(time.Second)
		if r.consumer.failure != "" {
			t.Errorf("the operator is told of a card: %q", r.consumer.failure)
		}
		r.state.add("call")
		r.after(time.Second)
		if n := len(r.consumer.breaker.outages); n != 0 || r.state.finals()["call/1"] != "done" {
			t.Errorf("the breaker opened %d times; the call: %q", n, r.state.finals()["call/1"])
		}
	})
}
