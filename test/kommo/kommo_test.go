// Package kommo tests what upstream, state and router do together for Kommo, over gRPC, on a real Redis, against the simulator.
package kommo

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	upstreamv1 "callrelay/gen/callrelay/upstream/v1"
	"callrelay/platform/config"
	"callrelay/platform/redistest"
	"callrelay/platform/run"
	"callrelay/platform/telemetry"
	"callrelay/services/state"
	"callrelay/services/upstream"
	sim "callrelay/sim/kommo"
)

const (
	host  = "acme.kommo.com"
	calls = 12
)

// relay is one state and one upstream on a simulator.
type relay struct {
	conn     grpc.ClientConnInterface // to state
	state    statev1.StateServiceClient
	operator operatorv1.OperatorServiceClient
	accounts statev1.AccountServiceClient
	kommo    upstreamv1.KommoServiceClient
}

func start(t *testing.T, simulator *sim.Server, redisURL string, more ...string) relay {
	t.Helper()
	api := httptest.NewServer(simulator)
	t.Cleanup(api.Close)
	env := map[string]string{
		"REDIS_URL": redisURL, "SECRETS_KEY": "test:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", "KOMMO_BASE_URL": api.URL,
		"KOMMO_CLIENT_ID": "client", "KOMMO_CLIENT_SECRET": "secret", "KOMMO_REDIRECT_URI": "https://relay.example/v1/kommo/oauth/callback",
		"KOMMO_SETTLE": "200ms", "RETRY_BASE": "50ms",
	}
	for _, setting := range more {
		name, value, _ := strings.Cut(setting, "=")
		env[name] = value
	}
	group := telemetry.NewGroup(nil)
	stateConfig, err1 := config.LoadFrom[state.Config](env)
	upstreamConfig, err2 := config.LoadFrom[upstream.Config](env)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	stateService, err := state.New(stateConfig, group.Service("callrelay-state"))
	if err != nil {
		t.Fatal(err)
	}
	stateHost, err := run.Start(run.HostConfig{Name: "state"}, stateService)
	if err != nil {
		t.Fatal(err)
	}
	redistest.Poll(t, 30*time.Second, "state is ready", func() bool { return stateService.Ready() == nil })
	upstreamService, err := upstream.New(upstreamConfig, group.Service("callrelay-upstream"), stateHost.Conn())
	if err != nil {
		t.Fatal(err)
	}
	upstreamHost, err := run.Start(run.HostConfig{Name: "upstream"}, upstreamService)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(upstreamHost.Stop(), stateHost.Stop()); err != nil {
			t.Error(err)
		}
	})
	return relay{stateHost.Conn(), statev1.NewStateServiceClient(stateHost.Conn()), operatorv1.NewOperatorServiceClient(stateHost.Conn()), statev1.NewAccountServiceClient(stateHost.Conn()), upstreamv1.NewKommoServiceClient(upstreamHost.Conn())}
}

// install connects the account by OAuth.
func (r relay) install(ctx context.Context, t *testing.T, account *sim.Account) {
	t.Helper()
	if _, err := r.kommo.Install(ctx, &upstreamv1.InstallRequest{Code: account.Code(), Referer: host}); err != nil {
		t.Fatal(err)
	}
	redistest.Poll(t, 30*time.Second, "the account is connected", func() bool {
		found, err := r.accounts.GetAccount(ctx, &statev1.GetAccountRequest{Id: "kommo/9001"})
		return err == nil && found.GetAccount() != nil
	})
}

// queue queues n calls.
func (r relay) queue(ctx context.Context, t *testing.T, n int) {
	t.Helper()
	stream, err := r.state.Commit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		call := fmt.Sprintf("kommo/9001/call-%d", i)
		body := fmt.Sprintf(`[{"direction":"inbound","duration":7,"source":"relay","phone":"+13055550142","uniq":"call-%d"}]`, i)
		if err := stream.Send(&statev1.CommitRequest{Items: []*statev1.CommitItem{{Call: call, InputId: fmt.Sprint("in-", i), CommitId: fmt.Sprint("c-", i),
			Record: []byte{}, Journal: journal(t, fmt.Sprint("in-", i)), Deliveries: []*statev1.Delivery{{Number: 1, Destination: "kommo/9001", Endpoint: "calls", RequestId: fmt.Sprint("in-", i), Payload: []byte(body)}}}}}); err != nil {
			t.Fatal(err)
		}
		if answer, err := stream.Recv(); err != nil || answer.GetAnswers()[0].GetStatus() != statev1.CommitStatus_COMMIT_STATUS_OK {
			t.Fatal(answer, err)
		}
	}
}

// delivery is that of a call, as a person sees it.
func (r relay) delivery(ctx context.Context, i int) *operatorv1.Delivery {
	got, err := r.operator.GetCall(ctx, &operatorv1.GetCallRequest{Call: fmt.Sprintf("kommo/9001/call-%d", i)})
	if err != nil || len(got.GetDeliveries()) == 0 {
		return nil
	}
	return got.GetDeliveries()[0]
}

// Installed by OAuth, calls are queued while Kommo takes requests without answering; each is there once in the end.
func TestCallsArriveOnce(t *testing.T) {
	simulator := sim.New(sim.Config{})
	account := simulator.Account(9001)
	account.Add("contact", "Ann", []string{"+1 305 555 0142"})
	r := start(t, simulator, redistest.Start(t).URL(), "TOPSII_UNCERTAIN=ask") // that is about TopS.II: Kommo can be asked
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	r.install(ctx, t, account)
	for _, f := range []sim.Fault{{Kind: sim.Cut, Effect: true, Endpoint: "calls", Times: 3}, {Kind: sim.HTTP, Status: 504, Endpoint: "calls", Times: 1},
		{Kind: sim.HTTP, Status: 401, Endpoint: "calls", Times: 1}} {
		if err := simulator.AddFault(f); err != nil {
			t.Fatal(err)
		}
	}
	r.queue(ctx, t, calls)
	redistest.Poll(t, 80*time.Second, "every call is delivered", func() bool {
		for i := range calls {
			if r.delivery(ctx, i).GetState() != "delivered" {
				return false
			}
		}
		return true
	})
	v := account.View()
	if len(v.Calls) != calls || len(v.Notes) != calls || v.Limited != 0 {
		t.Errorf("%d calls, %d notes, %d limited", len(v.Calls), len(v.Notes), v.Limited)
	}
	if account.Refreshes() != 1 {
		t.Errorf("renewed %d times", account.Refreshes())
	}
	check, err := r.kommo.Check(ctx, &upstreamv1.CheckRequest{AccountId: 9001})
	if err != nil || len(check.GetFindings()) < 8 {
		t.Errorf("check %v %v", check, err)
	}
}

// Who retries a call that may have arrived need not know whether it did: it is looked for first, also after attempts that were
// definite.
func TestRetryByHandLooksFirst(t *testing.T) {
	simulator := sim.New(sim.Config{})
	account := simulator.Account(9001)
	account.Add("contact", "Ann", []string{"+1 305 555 0142"})
	r := start(t, simulator, redistest.Start(t).URL(), "DELIVERY_MAX_ATTEMPTS=2")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	r.install(ctx, t, account)
	for _, f := range []sim.Fault{{Kind: sim.Cut, Effect: true, Endpoint: "calls", Times: 1}, {Kind: sim.HTTP, Status: 502, Endpoint: "contacts.list", Times: 2}} {
		if err := simulator.AddFault(f); err != nil {
			t.Fatal(err)
		}
	}
	r.queue(ctx, t, 1)
	redistest.Poll(t, 30*time.Second, "it is given up", func() bool { return r.delivery(ctx, 0).GetState() == "dead" })
	if n := account.View().Calls["call-0"]; n != 1 {
		t.Fatalf("%d calls", n)
	}
	if _, err := r.operator.RetryDelivery(ctx, &operatorv1.RetryDeliveryRequest{Delivery: r.delivery(ctx, 0).GetId()}); err != nil {
		t.Fatal(err)
	}
	redistest.Poll(t, 30*time.Second, "it is delivered", func() bool { return r.delivery(ctx, 0).GetState() == "delivered" })
	if n := account.View().Calls["call-0"]; n != 1 {
		t.Errorf("%d calls", n)
	}
}

// journal is what rules write with a delivery; without it accounting would miss it.
func journal(t *testing.T, request string) []byte {
	t.Helper()
	raw, err := proto.Marshal(&statev1.Journal{Entries: []*statev1.JournalEntry{
		{RequestId: request, Fact: &statev1.JournalEntry_Received{Received: &statev1.Received{}}},
		{RequestId: request, Fact: &statev1.JournalEntry_Kommo{Kommo: &statev1.KommoOutcome{Deliveries: []uint32{1}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
