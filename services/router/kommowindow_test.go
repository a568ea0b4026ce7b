package router

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	errorsv1 "callrelay/gen/callrelay/errors/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/services/router/kommo"
)

// usedTokens are state's tokens.
type usedTokens struct {
	statev1.AccountServiceClient
	by   map[string]string
	away bool
}

func (u *usedTokens) UseToken(_ context.Context, r *statev1.UseTokenRequest, _ ...grpc.CallOption) (*statev1.UseTokenResponse, error) {
	if u.away {
		return nil, errors.New("state is away")
	}
	if u.by[r.GetToken()] == "" {
		u.by[r.GetToken()] = r.GetRequestId()
	}
	return &statev1.UseTokenResponse{Ours: u.by[r.GetToken()] == r.GetRequestId()}, nil
}

func windowItem(id, token string, lead int64) *routerv1.RouteItem {
	return &routerv1.RouteItem{RequestId: id, BudgetMs: 10_000, Query: []byte("x=" + id), Callback: &routerv1.RouteItem_KommoWindow{KommoWindow: &routerv1.KommoWindow{
		AccountId: 9001, CallId: "a", State: "saved", Direction: "inbound", Phone: "+13055550142", Duration: 7, UserId: 8,
		EntityType: "lead", EntityId: lead, Result: "will buy", Token: token, TokenForMs: 60_000}}}
}

// A window alone is written on what the manager chose, once; who chooses something else afterwards is told where the call is, again
// when the answer was lost; a token is for one request.
func TestKommoWindow(t *testing.T) {
	e, f := newTestEngine(t)
	connected(t, e)
	tokens := &usedTokens{by: map[string]string{}}
	e.kommo.client = tokens
	call := func() *fakeCall { return f.calls["kommo/9001/a"] }

	tokens.away = true
	if a := e.send(windowItem("r1", "t1", 7)); a.GetError().GetKind() != errorsv1.Kind_KIND_UNAVAILABLE || call() != nil {
		t.Fatalf("nobody knows whether the token was used: %v", a)
	}
	tokens.away = false
	for i, duplicate := range []bool{false, true} {
		if a := e.send(windowItem("r1", "t1", 7)); a.GetError() != nil || a.GetDuplicate() != duplicate || a.GetWindow().GetConflict() || a.GetWindow().GetPending() {
			t.Errorf("saved %d: %v", i, a)
		}
	}
	first := call().commits[0]
	if d := first.GetDeliveries(); len(call().commits) != 1 || len(d) != 1 || d[0].GetEndpoint() != kommo.EndpointNote || d[0].GetRequestId() != "r1" {
		t.Fatalf("%d commits, %v", len(call().commits), d)
	}
	if len(first.GetPhones()) != 1 || len(first.GetTerms()) != 1 || len(first.GetMoves()) != 1 {
		t.Errorf("found by %v and %v, counted %v", first.GetTerms(), first.GetPhones(), first.GetMoves())
	}
	if a := e.send(windowItem("r2", "t2", 8)); !a.GetWindow().GetPending() || a.GetError() != nil {
		t.Errorf("another entity while the call is being written: %v", a)
	}

	call().deliveries = 1
	written := &statev1.Entry{Timer: "=1", TimerId: "c1", Result: &statev1.DeliveryResult{Delivery: 1, Reply: []byte(`{"outcome":"ok","note_id":5,"entity_type":"lead","entity_id":7}`)}}
	if err := e.entry(t.Context(), "kommo/9001/a", written, nil); err != nil {
		t.Fatal(err)
	}
	for i, duplicate := range []bool{false, true} {
		a := e.send(windowItem("r3", "t3", 9))
		if w := a.GetWindow(); !w.GetConflict() || w.GetEntityType() != "lead" || w.GetEntityId() != 7 || a.GetDuplicate() != duplicate || a.GetError() != nil {
			t.Errorf("another entity afterwards, %d: %v", i, a)
		}
	}

	before := len(call().commits)
	other := windowItem("r4", "t3", 9)
	if a := e.send(other); a.GetError().GetKind() != errorsv1.Kind_KIND_FORBIDDEN || len(call().commits) != before {
		t.Errorf("a token of another request: %v", a)
	}
	// Its sender has a 200: it is recorded, and has no effect.
	if other.Spooled = true; e.send(other).GetError() == nil || len(call().commits) != before {
		t.Error("a token of another request counts when it comes out of a spool")
	}
	journal := &statev1.Journal{}
	if c := f.calls["request/r4"]; c == nil || proto.Unmarshal(c.commits[0].GetJournal(), journal) != nil || !journal.GetEntries()[1].GetUndecided().GetAcknowledged() {
		t.Errorf("recorded %v", journal)
	}
	bad := windowItem("r5", "t5", 7)
	bad.GetKommoWindow().State = "closed"
	if a := e.send(bad); a.GetError().GetField() != "state" || tokens.by["t5"] != "" {
		t.Errorf("state: %v", a)
	}
	bad = windowItem("r6", "", 7)
	if a := e.send(bad); a.GetError().GetField() != "token" {
		t.Errorf("no token: %v", a)
	}
}
