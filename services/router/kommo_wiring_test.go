package router

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/accounts"
	"callrelay/services/router/kommo"
)

// fakeAccounts has one account, kommo/9001.
type fakeAccounts struct {
	statev1.AccountServiceClient
	mu      sync.Mutex
	account *statev1.Account
}

func (f *fakeAccounts) GetAccount(context.Context, *statev1.GetAccountRequest, ...grpc.CallOption) (*statev1.GetAccountResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &statev1.GetAccountResponse{Account: f.account}, nil
}

func (f *fakeAccounts) PutAccount(_ context.Context, r *statev1.PutAccountRequest, _ ...grpc.CallOption) (*statev1.PutAccountResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.account = r.GetAccount()
	return &statev1.PutAccountResponse{Written: true}, nil
}

// record is one record of Kommo's rules, without state: what an input commits is what the next one finds.
type record struct {
	*testing.T
	e     *engine
	call  string
	state *statev1.CallState
	late  int64
}

func (r *record) decide(in *input) *statev1.CommitItem {
	r.Helper()
	in.call = r.call
	now := 1_800_000_000_000 + r.late
	item, _, err := r.e.decideKommo(in, r.state, now, now)
	if err != nil {
		r.Fatal(err)
	}
	if item.GetCommitId() != "" {
		r.state.Version, r.state.Record = item.GetCommitId(), item.GetRecord()
		for _, d := range item.GetDeliveries() {
			d.State = statev1.DeliveryState_DELIVERY_STATE_QUEUED
			r.state.Deliveries = append(r.state.Deliveries, d)
		}
		if item.GetRetentionMs() != (3 * 365 * 24 * time.Hour).Milliseconds() {
			r.Errorf("kept for %d ms", item.GetRetentionMs())
		}
	}
	return item
}

func (r *record) entry(timer string, result *statev1.DeliveryResult) *statev1.CommitItem {
	r.Helper()
	r.late += 10_000
	entry := &statev1.Entry{Timer: timer, TimerId: "c", Result: result}
	in := entryInput(r.call, entry)
	if err := r.e.kommo.entry(in, entry); err != nil {
		r.Fatal(err)
	}
	return r.decide(in)
}

// A call from a number that Kommo does not know, while incoming leads are switched off: everything that the rules want done
// reaches its commit.
func TestKommoWiring(t *testing.T) {
	e, _ := newTestEngine(t)
	connected(t, e)
	accounts := &fakeAccounts{account: &statev1.Account{Id: "kommo/9001", Version: "1"}}
	e.kommo.client = accounts
	call := &record{t, e, "kommo/9001/a", &statev1.CallState{}, 0}
	in := &input{id: "r1", traceparent: "trace", received: &statev1.Received{}}
	reported := report("r1", 9001).GetKommoCall()
	reported.StartedAt = 1_700_000_000
	if err := e.kommo.report(in, reported); err != nil {
		t.Fatal(err)
	}
	waits := call.decide(in).GetSetTimers()
	if len(waits) != 1 || waits[0].GetInMs() != 5000 {
		t.Fatalf("timers %v", waits)
	}
	posted := call.entry(waits[0].GetName(), nil)
	if len(posted.GetDeliveries()) != 1 || !posted.GetDeliveries()[0].GetResultWanted() || posted.GetDeliveries()[0].GetDestination() != "kommo/9001" ||
		!strings.Contains(string(posted.GetDeliveries()[0].GetPayload()), `"created_at":1700000000`) || posted.GetDeliveries()[0].GetTraceparent() != "trace" {
		t.Fatalf("deliveries %v", posted.GetDeliveries())
	}
	unknown := &statev1.DeliveryResult{Delivery: 1, Reply: []byte(`{"outcome":"not_found"}`)}
	if item := call.entry("=1", unknown); item.GetCommitId() != "" || len(item.GetMessages()) != 0 {
		t.Errorf("a person retried it since, and there will be another result: %v", item)
	}
	call.state.Deliveries[0].State = statev1.DeliveryState_DELIVERY_STATE_DELIVERED
	asks := call.entry("=1", unknown).GetMessages()
	if len(asks) != 1 {
		t.Fatalf("messages %v", asks)
	}

	number := &record{t, e, asks[0].GetTo(), &statev1.CallState{}, 0}
	told, err := e.kommo.message(asks[0])
	if err != nil || told.unreadable != nil || told.kommo.input.RequestID != "r1" || told.traceparent != "trace" {
		t.Fatalf("%+v %v", told, err)
	}
	lead := number.decide(told)
	if len(lead.GetDeliveries()) != 1 || lead.GetDeliveries()[0].GetEndpoint() != kommo.EndpointLead {
		t.Fatalf("deliveries %v", lead.GetDeliveries())
	}
	number.state.Deliveries[0].State = statev1.DeliveryState_DELIVERY_STATE_DELIVERED
	off := &statev1.DeliveryResult{Delivery: 1, Reply: []byte(`{"outcome":"unsorted_off"}`)}
	version, before := number.state.GetVersion(), number.state.GetRecord()
	for range 2 { // as after a conflict
		number.state.Version, number.state.Record = version, before
		if parked := number.entry("=1", off); len(parked.GetMessages()) == 0 {
			t.Errorf("nobody tells the call: %v", parked)
		}
		e.running.wait()
	}
	if n := accounts.account.GetNotices(); len(n) != 1 || n[0].GetCode() != kommo.NoticeUnsortedOff {
		t.Errorf("notices %v", n)
	}
}

// Nobody looks for a request that may have arrived before KOMMO_SETTLE, nor before the rules' own pause.
func TestKommoSettles(t *testing.T) {
	for settle, want := range map[time.Duration]time.Duration{time.Minute: time.Minute, time.Second: 10 * time.Second} {
		e, _ := newTestEngine(t)
		connected(t, e)
		e.kommo.config.Settle = settle
		rules, err := e.kommo.config.account(9001, nil)
		if err != nil {
			t.Fatal(err)
		}
		e.kommo.accounts.Store(&map[int64]kommoAccount{9001: {rules: rules}})
		call := &record{t, e, "kommo/9001/a", &statev1.CallState{}, 0}
		in := &input{id: "r1", received: &statev1.Received{}}
		if err := e.kommo.report(in, report("r1", 9001).GetKommoCall()); err != nil {
			t.Fatal(err)
		}
		call.entry(call.decide(in).GetSetTimers()[0].GetName(), nil)
		call.state.Deliveries[0].State, call.state.Deliveries[0].Uncertain = statev1.DeliveryState_DELIVERY_STATE_DEAD, true
		if looks := call.entry("=1", &statev1.DeliveryResult{Delivery: 1}).GetSetTimers(); len(looks) != 1 || looks[0].GetInMs() != want.Milliseconds() {
			t.Errorf("KOMMO_SETTLE=%v: %v, want %v", settle, looks, want)
		}
	}
}

// What ends a call's waiting cancels its timers.
func TestKommoTimersAreCancelled(t *testing.T) {
	e, _ := newTestEngine(t)
	connected(t, e)
	call := &record{t, e, "kommo/9001/a", &statev1.CallState{}, 0}
	in := &input{id: "r1", received: &statev1.Received{}}
	if err := e.kommo.report(in, report("r1", 9001).GetKommoCall()); err != nil {
		t.Fatal(err)
	}
	wait := call.decide(in).GetSetTimers()[0].GetName()
	rules, _ := e.kommo.of(9001)
	saved := call.decide(&input{id: "w1", kommo: &kommoInput{rules: rules, input: kommo.Input{RequestID: "w1",
		Window: &kommo.Window{State: kommo.WindowSaved, Entity: kommo.Entity{Type: "lead", ID: 7}}}}})
	if !slices.Contains(saved.GetCancelTimers(), wait) {
		t.Errorf("cancelled %v, want %s", saved.GetCancelTimers(), wait)
	}
}

// Settings of the process and of the account reach the rules; a change counts, and what did not change is not read again.
func TestKommoSettings(t *testing.T) {
	e, _ := newTestEngine(t)
	connected(t, e)
	e.kommo.config.JoinLead, e.kommo.config.WindowMax, e.kommo.config.ClaimDelay = false, time.Minute, 7*time.Second
	account := &statev1.Account{Id: "kommo/9001", Version: "1"}
	look := func() *kommo.Config {
		t.Helper()
		e.kommo.take(accounts.List{Accounts: []*statev1.Account{account}}, func(string, ...any) {})
		rules, err := e.kommo.of(9001)
		if err != nil {
			t.Fatal(err)
		}
		return rules
	}
	first := look()
	if first.ClaimDelay != 7*time.Second || first.WindowMax != time.Minute || first.Unconfirmed.JoinLead != kommo.JoinByWaiting || first.WidgetCode != "callrelay" {
		t.Errorf("%+v", first)
	}
	if look() != first {
		t.Error("nothing changed, and it was read again")
	}
	account = &statev1.Account{Id: "kommo/9001", Version: "2", Settings: []byte(`{"pipeline_id":1,"widget_code":"w","responsible_user_id":2,
		"source_name":"s","source_format":"{did} {name}","claim_delay":0,"popup_max_age":3}`)}
	now := look()
	got := []any{now.PipelineID, now.WidgetCode, now.ResponsibleUser, now.SourceName, now.SourceFormat, now.ClaimDelay, now.PopupMaxAge}
	if want := []any{int64(1), "w", int64(2), "s", "{did} {name}", time.Duration(0), 3 * time.Second}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// Seconds that nobody would wait for are refused in words, however they would wrap.
func TestKommoSeconds(t *testing.T) {
	for settings, want := range map[string]string{
		`{"claim_delay":0}`: "", `{"claim_delay":3600}`: "",
		`{"claim_delay":3601}`: "claim_delay", `{"claim_delay":-1}`: "claim_delay", `{"claim_delay":18446744075}`: "claim_delay",
		`{"popup_max_age":0}`: "", `{"popup_max_age":60}`: "", `{"popup_max_age":61}`: "popup_max_age", `{"popup_max_age":-1}`: "popup_max_age",
	} {
		if err := CheckKommoSettings([]byte(settings)); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", settings, err)
		}
	}
}

// A card is of no use later, and its end is nobody's business; all else that is sent is the rules' to know.
func TestKommoDeliveries(t *testing.T) {
	got := kommoDeliveries([]kommo.NewDelivery{{Number: 1, Endpoint: kommo.EndpointPopup, MaxAgeMS: 30_000}, {Number: 2, Endpoint: kommo.EndpointCalls}})
	if got[0].GetResultWanted() || got[0].GetMaxAgeMs() != 30_000 || !got[1].GetResultWanted() || got[1].GetMaxAgeMs() != 0 {
		t.Errorf("%v", got)
	}
}

// What is routed belongs to the request and the trace that ended the call.
func TestKommoRoutesName(t *testing.T) {
	e, f := newTestEngine(t)
	e.kommo.routes = routes{"ameyo": {9001}}
	item := routeItem("r7", "71", "0")
	item.GetAmeyoCallEnd().PhoneList = `["1"]`
	item.Traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	if a := e.send(item); a.GetError() != nil {
		t.Fatal(a)
	}
	var sent []*statev1.Message
	for _, c := range f.calls {
		for _, commit := range c.commits {
			sent = append(sent, commit.GetMessages()...)
		}
	}
	if len(sent) != 1 {
		t.Fatalf("messages %v", sent)
	}
	if in, err := kommoMessageInput(sent[0].GetBody()); err != nil || in.RequestID != "r7" || in.Traceparent != item.GetTraceparent() {
		t.Errorf("%+v %v", in, err)
	}
}
