package kommo

import (
	"context"
	"strings"
	"testing"
	"time"

	errorsv1 "callrelay/gen/callrelay/errors/v1"
	operatorv1 "callrelay/gen/callrelay/operator/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
	upstreamv1 "callrelay/gen/callrelay/upstream/v1"
	"callrelay/platform/config"
	"callrelay/platform/redistest"
	"callrelay/platform/run"
	"callrelay/platform/telemetry"
	"callrelay/services/router"
	sim "callrelay/sim/kommo"
)

// withRouter puts a router beside the relay and returns what reports a call of one client to it.
func (r relay) withRouter(ctx context.Context, t *testing.T, env map[string]string) (report func(call, phone string) *routerv1.RouteAnswer) {
	t.Helper()
	cfg, err := config.LoadFrom[router.Config](env)
	if err != nil {
		t.Fatal(err)
	}
	service, err := router.New(cfg, telemetry.NewGroup(nil).Service("callrelay-router"), r.conn)
	if err != nil {
		t.Fatal(err)
	}
	host, err := run.Start(run.HostConfig{Name: "router"}, service)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.Stop(); err != nil {
			t.Error(err)
		}
	})
	stream, err := routerv1.NewRouterServiceClient(host.Conn()).Route(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stream.CloseSend() })
	return func(call, phone string) *routerv1.RouteAnswer {
		t.Helper()
		err := stream.Send(&routerv1.RouteRequest{Items: []*routerv1.RouteItem{{RequestId: "report-" + call, BudgetMs: 10_000,
			Callback: &routerv1.RouteItem_KommoCall{KommoCall: &routerv1.KommoCall{AccountId: 9001, CallId: call, Direction: "inbound", Phone: phone, Duration: 7}}}}})
		if err != nil {
			t.Fatal(err)
		}
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return answer.GetAnswers()[0]
	}
}

// journal has in words what became of a call or number.
func (r relay) journal(ctx context.Context, key string) string {
	got, err := r.operator.GetCall(ctx, &operatorv1.GetCallRequest{Call: key})
	if err != nil {
		return ""
	}
	var text strings.Builder
	for _, e := range got.GetJournal() {
		text.WriteString(strings.Join(e.GetText(), " ") + "\n")
	}
	return text.String()
}

// The account goes while its incoming lead is under way, and stays away longer than anything waits for it. The call that the lead is
// for ends undecided, for the reason that it has; the next one of its number joins the lead that is there.
func TestNumberOutlivesItsAccount(t *testing.T) {
	simulator := sim.New(sim.Config{})
	account := simulator.Account(9001)
	r := start(t, simulator, redistest.Start(t).URL(), "UPSTREAM_STOP_TIMEOUT=30s") // what is under way ends in order
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	report := r.withRouter(ctx, t, map[string]string{"DELIVERY_MAX_AGE": "2s", "KOMMO_CLAIM_DELAY": "1ms"})
	r.install(ctx, t, account)
	reported := func(call string) {
		t.Helper()
		redistest.Poll(t, 30*time.Second, "the report is taken", func() bool { return report(call, "+13055550142").GetError() == nil })
	}
	if err := simulator.AddFault(sim.Fault{Kind: sim.Delay, DelayMS: 60_000, Endpoint: "unsorted.sip"}); err != nil {
		t.Fatal(err)
	}
	reported("first")
	redistest.Poll(t, 30*time.Second, "the lead is under way", func() bool { return len(account.View().Unsorted) == 1 })
	if _, err := r.kommo.Disconnect(ctx, &upstreamv1.DisconnectRequest{AccountId: 9001}); err != nil {
		t.Fatal(err)
	}
	redistest.Poll(t, 30*time.Second, "router knows", func() bool { return report("withheld", "").GetError().GetKind() == errorsv1.Kind_KIND_NOT_FOUND })
	simulator.ClearFaults()
	redistest.Poll(t, 30*time.Second, "the call that waits says why it is given up", func() bool {
		journal := r.journal(ctx, "kommo/9001/first")
		return strings.Contains(journal, "UNDECIDED") && strings.Contains(journal, "not connected")
	})
	r.install(ctx, t, account)
	reported("second")
	redistest.Poll(t, 60*time.Second, "the next call joins the lead", func() bool { return account.View().Calls["second"] == 1 })
	if v := account.View(); len(v.Unsorted) != 1 {
		t.Errorf("%d incoming leads", len(v.Unsorted))
	}
}
