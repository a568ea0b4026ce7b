package kommo

import (
	"context"
	"strings"
	"testing"
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	"callrelay/platform/redistest"
	sim "callrelay/sim/kommo"
)

// A request that may have arrived, for a client with more deals than are looked through: it is sent again only once a person, who looked,
// retries it.
func TestTooMuchToLookThrough(t *testing.T) {
	simulator := sim.New(sim.Config{})
	account := simulator.Account(9001)
	ann := account.Add("contact", "Ann", []string{"+13055550142"})
	for range 40 {
		account.Add("lead", "deal", nil, ann)
	}
	r := start(t, simulator, redistest.Start(t).URL())
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	report := r.withRouter(ctx, t, map[string]string{"KOMMO_CLAIM_DELAY": "1ms"})
	r.install(ctx, t, account)
	if err := simulator.AddFault(sim.Fault{Kind: sim.Cut, Endpoint: "calls", Times: 1}); err != nil {
		t.Fatal(err)
	}
	redistest.Poll(t, 30*time.Second, "the report is taken", func() bool { return report("a", "+13055550142").GetError() == nil })
	retry := func() error {
		_, err := r.operator.RetryDelivery(ctx, &operatorv1.RetryDeliveryRequest{Delivery: "kommo/9001/a/1", Reason: "it is not there"})
		return err
	}
	redistest.Poll(t, 60*time.Second, "the rules look for it", func() bool {
		return strings.Contains(r.journal(ctx, "kommo/9001/a"), "look in Kommo whether it is there")
	})
	redistest.Poll(t, 60*time.Second, "it is given back", func() bool { return strings.Contains(r.journal(ctx, "kommo/9001/a"), "too much in Kommo") })
	if n := account.View().Calls["a"]; n != 0 || simulator.Requests("calls") != 1 {
		t.Fatalf("sent %d times before a person looked", simulator.Requests("calls"))
	}
	if err := retry(); err != nil {
		t.Fatal(err)
	}
	redistest.Poll(t, 60*time.Second, "it is there", func() bool { return strings.Contains(r.journal(ctx, "kommo/9001/a"), "Call event created") })
	if n := account.View().Calls["a"]; n != 1 || simulator.Requests("calls") != 2 {
		t.Errorf("there %d times, sent %d times", n, simulator.Requests("calls"))
	}
}
