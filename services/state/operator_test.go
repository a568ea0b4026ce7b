package state

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"callrelay/callback"
	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/config"
	"callrelay/platform/errkind"
	"callrelay/platform/redistest"
	"callrelay/platform/rpc"
	"callrelay/platform/telemetry"
	"callrelay/services/state/internal/store"
)

const dest = "topsii"

// bench is a state service on a real Redis, with an operator who asks it over gRPC.
type bench struct {
	*Service
	t        *testing.T
	relay    operatorv1.OperatorServiceClient
	state    statev1.StateServiceClient
	version  map[string]string
	requests int
	next     map[string]uint32
	to       string // where deliveries go; empty: dest
}

func startHere(t *testing.T, url string, env map[string]string) *bench {
	t.Helper()
	all := map[string]string{"REDIS_URL": url}
	for k, v := range env {
		all[k] = v
	}
	cfg, err := config.LoadFrom[Config](all)
	if err != nil {
		t.Fatal(err)
	}
	tel := telemetry.NewGroup(nil).Service("test")
	svc, err := New(cfg, tel)
	if err != nil {
		t.Fatal(err)
	}
	host := rpc.NewServer(tel.Log())
	svc.Register(host.Registrar())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		host.Stop(time.Second)
	})
	redistest.Poll(t, 10*time.Second, "state is ready", func() bool { return svc.Ready() == nil })
	if err := svc.store.Know(t.Context(), dest); err != nil {
		t.Fatal(err)
	}
	return &bench{Service: svc, t: t, relay: operatorv1.NewOperatorServiceClient(host.InProcess()), state: statev1.NewStateServiceClient(host.InProcess()), version: map[string]string{}, next: map[string]uint32{}}
}

// arrive commits a callback with its facts and n deliveries, as router does, and returns its request id.
func (b *bench) arrive(call string, deliveries int, to statev1.Bucket, facts ...*statev1.JournalEntry) string {
	b.t.Helper()
	b.requests++
	id := fmt.Sprintf("R%d", b.requests)
	item := &statev1.CommitItem{Call: call, InputId: id, ExpectedVersion: b.version[call], CommitId: "c" + id,
		Record: []byte{}, Moves: []*statev1.Move{{RequestId: id, To: to}},
		Terms: []string{"customer-" + strings.TrimPrefix(call, "ameyo/"), "agent7"}, Phones: []string{"090-1234-" + fmt.Sprintf("%04d", b.requests)}}
	entries := []*statev1.JournalEntry{{RequestId: id, Fact: &statev1.JournalEntry_Received{Received: &statev1.Received{
		Source: "ameyo.call_end", Query: []byte("unique_id=1&phone1=090-1234-" + fmt.Sprintf("%04d", b.requests))}}}}
	var numbers []uint32
	for range deliveries {
		b.next[call]++
		numbers = append(numbers, b.next[call])
		item.Deliveries = append(item.Deliveries, &statev1.Delivery{Number: b.next[call], Destination: cmp.Or(b.to, dest), Endpoint: "createCallEnd", RequestId: id,
			Payload: []byte(`{"targetTel":"09012345678"}`)})
	}
	if len(numbers) > 0 {
		entries = append(entries, &statev1.JournalEntry{RequestId: id, Fact: &statev1.JournalEntry_Decided{Decided: &statev1.Decided{Rule: "1", Flow: "createCallEnd", Deliveries: numbers}}})
	}
	for _, f := range facts {
		f.RequestId = id
		if p := f.GetPhone1(); p != nil {
			if p.GetRequestId() == "" {
				p.RequestId = id
			}
			of := map[string]statev1.Bucket{"taken": statev1.Bucket_BUCKET_COMBINED, "expired": statev1.Bucket_BUCKET_PHONE1_EXPIRED, "replaced": statev1.Bucket_BUCKET_NOTHING_TO_SEND}[p.GetWhat()]
			if of != 0 {
				item.Moves = append(item.Moves, &statev1.Move{RequestId: p.GetRequestId(), To: of})
			}
		}
		entries = append(entries, f)
	}
	for _, e := range entries {
		e.AtMs = b.store.Now()
	}
	item.Journal = store.MarshalJournal(entries...)
	if to == statev1.Bucket_BUCKET_DUPLICATE || to == statev1.Bucket_BUCKET_REFUSED || to == statev1.Bucket_BUCKET_UNDECIDED {
		item.CommitId, item.Record = "", nil
	}
	answers, errs := b.dispatch.Commit(b.t.Context(), []*statev1.CommitItem{item})
	if errs[0] != nil || answers[0].GetStatus() != statev1.CommitStatus_COMMIT_STATUS_OK {
		b.t.Fatalf("%s: %v %v", id, answers[0], errs[0])
	}
	if item.GetCommitId() != "" {
		b.version[call] = item.GetCommitId()
	}
	b.committed(item)
	return id
}

// attempt leases the head of the call's line and ends it with a word of Attempt.next.
func (b *bench) attempt(call, next string) {
	b.t.Helper()
	to := cmp.Or(b.to, dest)
	work, _, err := b.store.Lease(b.t.Context(), to, []string{call})
	if err != nil || len(work) != 1 {
		b.t.Fatalf("%s: %v %v", call, work, err)
	}
	d := work[0].GetDelivery()
	r := &statev1.LeaseResult{Id: 1, Call: call, Token: work[0].GetToken(), Delivery: d.GetNumber(), RequestId: d.GetRequestId(),
		Attempt: &statev1.Attempt{Delivery: d.GetNumber(), Number: d.GetAttempts() + 1, Destination: to, Next: next}}
	end := func(st statev1.DeliveryState) {
		r.Result = &statev1.LeaseResult_End{End: &statev1.End{State: st, Reason: "because " + next}}
	}
	switch next {
	case "delivered":
		r.Result = &statev1.LeaseResult_Done{Done: &statev1.Done{}}
	case "retry":
		r.Result = &statev1.LeaseResult_Retry{Retry: &statev1.RetryLater{}}
	case "dead":
		end(statev1.DeliveryState_DELIVERY_STATE_DEAD)
	case "expired":
		end(statev1.DeliveryState_DELIVERY_STATE_EXPIRED)
	case "ask":
		end(statev1.DeliveryState_DELIVERY_STATE_ASKED)
	case "discarded":
		end(statev1.DeliveryState_DELIVERY_STATE_DISCARDED)
	case "send_disabled":
		r.Attempt, r.Result = nil, &statev1.LeaseResult_End{End: &statev1.End{State: statev1.DeliveryState_DELIVERY_STATE_SEND_DISABLED}}
	}
	if a := (&server{Service: b.Service}).complete(b.t.Context(), to, []*statev1.LeaseResult{r}); a[0].GetError() != nil || a[0].GetSuperseded() {
		b.t.Fatalf("%s: %v", call, a)
	}
}

func (b *bench) accounting() *operatorv1.Accounting {
	b.t.Helper()
	a, err := b.relay.GetAccounting(b.t.Context(), &operatorv1.GetAccountingRequest{Check: true})
	if err != nil {
		b.t.Fatal(err)
	}
	return a
}

func fact(f any) *statev1.JournalEntry {
	switch f := f.(type) {
	case *statev1.Phone1Fact:
		return &statev1.JournalEntry{Fact: &statev1.JournalEntry_Phone1{Phone1: f}}
	case *statev1.Duplicate:
		return &statev1.JournalEntry{Fact: &statev1.JournalEntry_Duplicate{Duplicate: f}}
	case *statev1.Rejected:
		return &statev1.JournalEntry{Fact: &statev1.JournalEntry_Rejected{Rejected: f}}
	case *statev1.Undecided:
		return &statev1.JournalEntry{Fact: &statev1.JournalEntry_Undecided{Undecided: f}}
	case *statev1.Decided:
		return &statev1.JournalEntry{Fact: &statev1.JournalEntry_Decided{Decided: f}}
	}
	panic("unknown")
}

var waits = &statev1.Decided{Rule: "4", Flow: "wait for phone 2"}

// Whatever key a call can have, it can be looked at, and its deliveries decided.
func TestLongestKey(t *testing.T) {
	b := startHere(t, redistest.Start(t).URL(), nil)
	id := strings.Repeat("ж", 64)
	for _, key := range []string{callback.PbxCallKey(strings.Repeat("i", 32), id), "kommo/9223372036854775807/missed:" + url.QueryEscape(id)} {
		b.arrive(key, 1, statev1.Bucket_BUCKET_NOTHING_TO_SEND)
		b.attempt(key, "dead")
		if c, err := b.relay.GetCall(t.Context(), &operatorv1.GetCallRequest{Call: key}); err != nil || len(c.GetDeliveries()) != 1 {
			t.Errorf("%d bytes: %v %v", len(key), c, err)
		}
		if _, err := b.relay.RetryDelivery(t.Context(), &operatorv1.RetryDeliveryRequest{Delivery: key + "/1"}); err != nil {
			t.Errorf("retry: %v", err)
		}
		if d, err := b.relay.DiscardDelivery(t.Context(), &operatorv1.DiscardDeliveryRequest{Delivery: key + "/1", Reason: "test"}); err != nil || d.GetState() != "discarded" {
			t.Errorf("discard: %v %v", d, err)
		}
	}
	if _, err := b.relay.GetCall(t.Context(), &operatorv1.GetCallRequest{Call: strings.Repeat("x", callback.MaxCallKey+1)}); errkind.HTTPStatus(errkind.From(err).Kind) != 400 {
		t.Errorf("what is no key: %v", err)
	}
}

// Each request is in one bucket, and both ways of counting say the same.
func TestAccountingOfEachKind(t *testing.T) {
	b := startHere(t, redistest.Start(t).URL(), nil)
	b.arrive("request/R1", 0, statev1.Bucket_BUCKET_REFUSED, fact(&statev1.Rejected{Status: 400}))
	b.arrive("ameyo/1", 1, 0+statev1.Bucket_BUCKET_NOTHING_TO_SEND)
	b.arrive("ameyo/1", 0, statev1.Bucket_BUCKET_DUPLICATE, fact(&statev1.Duplicate{Of: "R2"}))
	one := b.arrive("ameyo/2", 0, statev1.Bucket_BUCKET_WAITING_PHONE2, fact(proto.CloneOf(waits)), fact(&statev1.Phone1Fact{What: "stored"}))
	b.arrive("ameyo/2", 1, statev1.Bucket_BUCKET_NOTHING_TO_SEND, fact(&statev1.Phone1Fact{What: "taken", RequestId: one}))
	b.arrive("ameyo/3", 0, statev1.Bucket_BUCKET_WAITING_PHONE2, fact(proto.CloneOf(waits)), fact(&statev1.Phone1Fact{What: "stored"}))
	b.arrive("ameyo/4", 0, statev1.Bucket_BUCKET_NOTHING_TO_SEND)
	b.arrive("ameyo/5", 0, statev1.Bucket_BUCKET_UNDECIDED, fact(&statev1.Undecided{Reason: "a panic"}))
	two := b.arrive("ameyo/6", 2, statev1.Bucket_BUCKET_NOTHING_TO_SEND)
	b.attempt("ameyo/1", "retry")
	b.attempt("ameyo/2", "delivered")
	b.attempt("ameyo/6", "dead")
	for i, next := range []string{"dead", "expired", "ask", "send_disabled"} {
		call := fmt.Sprintf("ameyo/%d", 10+i)
		b.arrive(call, 1, statev1.Bucket_BUCKET_NOTHING_TO_SEND)
		b.attempt(call, next)
	}
	a := b.accounting()
	if len(a.GetDifferences()) > 0 || a.GetCheckedRequests() != 13 || a.GetReceived() != 13 || a.GetRefused() != 1 || a.GetDuplicate() != 1 || a.GetAccepted() != 11 ||
		a.GetCombined() != 1 || a.GetWaitingPhone2() != 1 || a.GetNothingToSend() != 1 || a.GetUndecided() != 1 || a.GetDelivered() != 1 ||
		a.GetWaiting() != 3 || a.GetDead() != 1 || a.GetExpired() != 1 || a.GetSendDisabled() != 1 {
		t.Fatalf("got %v", a)
	}
	// A request with two deliveries waits until both are done, and is then where the worse one is.
	b.attempt("ameyo/6", "delivered")
	if r, err := b.request(two); err != nil || r.GetBucket() != "dead" || len(r.GetDeliveries()) != 2 {
		t.Errorf("one dead and one delivered: %v %v", r, err)
	}
	if _, err := b.relay.RetryDelivery(t.Context(), &operatorv1.RetryDeliveryRequest{Delivery: "ameyo/6/1"}); err != nil {
		t.Fatal(err)
	}
	if r, err := b.request(two); err != nil || r.GetBucket() != "waiting" {
		t.Errorf("after the retry: %v %v", r, err)
	}
	b.attempt("ameyo/6", "delivered")
	if r, err := b.request(two); err != nil || r.GetBucket() != "delivered" {
		t.Errorf("after all: %v %v", r, err)
	}
	if a := b.accounting(); len(a.GetDifferences()) > 0 || a.GetDelivered() != 2 || a.GetReceived() != 13 {
		t.Errorf("got %v", a)
	}
}

// A call of which something cannot be read keeps no other from being compared or listed, and is told: once in the log, and as an
// alarm as long as it is there.
func TestUnreadableCall(t *testing.T) {
	for field, calls := range map[string]string{"1": "ameyo/1", "j1": "ameyo/2", "r": "ameyo/3"} {
		var logged strings.Builder
		b := startHere(t, redistest.Start(t).URL(), nil)
		b.ledger.log = slog.New(slog.NewTextHandler(&logged, nil))
		for i := range 5 {
			call := fmt.Sprintf("ameyo/%d", i)
			b.arrive(call, 1, statev1.Bucket_BUCKET_NOTHING_TO_SEND)
			b.attempt(call, "dead")
		}
		raw := redisClient(t, b.cfg.RedisURL.Reveal())
		raw.HSet(t.Context(), fmt.Sprintf("cr:{%d}:c:%s", store.Partition(calls), calls), field, "\xff")
		raw.HIncrBy(t.Context(), fmt.Sprintf("cr:{%d}:n", store.Partition("ameyo/0")), fmt.Sprintf("%dd", store.HourOf(b.store.Now())), 1)
		b.accounting()
		a := b.accounting()
		if !slices.Equal(a.GetUnreadable(), []string{calls}) || a.GetCheckedRequests() != 4 || a.GetNotCompared() != 1 {
			t.Errorf("field %s: %v", field, a)
		}
		if store.Partition("ameyo/0") != store.Partition(calls) && len(a.GetDifferences()) == 0 {
			t.Errorf("field %s: a difference elsewhere is not seen: %v", field, a)
		}
		if n := strings.Count(logged.String(), calls); n == 0 || strings.Count(logged.String(), "\n") != 1 {
			t.Errorf("field %s: logged\n%s", field, &logged)
		}
		list, err := b.relay.ListAlarms(t.Context(), &operatorv1.ListAlarmsRequest{})
		if err != nil || !slices.ContainsFunc(list.GetAlarms(), func(a *operatorv1.Alarm) bool {
			return a.GetName() == "calls_unreadable" && strings.Contains(a.GetText(), calls)
		}) {
			t.Errorf("field %s: no alarm: %v %v", field, list, err)
		}
		dead, err := b.relay.ListDeliveries(t.Context(), &operatorv1.ListDeliveriesRequest{State: []string{"dead"}})
		if err != nil || len(dead.GetDeliveries()) != 4 {
			t.Errorf("field %s: the dead ones: %v %v", field, dead, err)
		}
	}
}

// A delivery that cannot be read is found among the dead, with the reason, and all that can be done about it is to discard it.
func TestUnreadableDelivery(t *testing.T) {
	b := startHere(t, redistest.Start(t).URL(), nil)
	b.arrive("ameyo/1", 1, statev1.Bucket_BUCKET_NOTHING_TO_SEND)
	redisClient(t, b.cfg.RedisURL.Reveal()).HSet(t.Context(), fmt.Sprintf("cr:{%d}:c:ameyo/1", store.Partition("ameyo/1")), "1", "\xff")
	c := b.dispatch.Join(dest)
	c.Grant(1)
	redistest.Poll(t, 10*time.Second, "it is dead", func() bool {
		list, err := b.relay.ListDeliveries(t.Context(), &operatorv1.ListDeliveriesRequest{State: []string{"dead"}})
		return err == nil && len(list.GetDeliveries()) == 1 && strings.Contains(list.GetDeliveries()[0].GetFacts().GetReason(), "unreadable")
	})
	if len(c.Work()) > 0 {
		t.Errorf("leased: %v", <-c.Work())
	}
	if _, err := b.relay.RetryDelivery(t.Context(), &operatorv1.RetryDeliveryRequest{Delivery: "ameyo/1/1"}); err == nil || !strings.Contains(err.Error(), "nothing to send") {
		t.Errorf("retried: %v", err)
	}
	if d, err := b.relay.DiscardDelivery(t.Context(), &operatorv1.DiscardDeliveryRequest{Delivery: "ameyo/1/1", Reason: "sent by hand"}); err != nil || d.GetState() != "discarded" {
		t.Errorf("discarded: %v %v", d, err)
	}
	if a := b.accounting(); len(a.GetDifferences()) > 0 || len(a.GetUnreadable()) > 0 {
		t.Errorf("accounting: %v", a)
	}
}

func (b *bench) request(id string) (r *operatorv1.Request, err error) {
	b.t.Helper()
	redistest.Poll(b.t, 5*time.Second, id+" is in the index", func() bool {
		r, err = b.relay.GetRequest(b.t.Context(), &operatorv1.GetRequestRequest{RequestId: id})
		return err == nil
	})
	return r, err
}

// Whatever happens in whatever order, counters and journals agree, and every request is somewhere.
func TestAccountingAgrees(t *testing.T) {
	b := startHere(t, redistest.Start(t).URL(), nil)
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	waiting := map[string]string{}
	for step := range 1500 {
		call := fmt.Sprintf("ameyo/%d", r.IntN(60))
		c, err := b.store.Call(t.Context(), call)
		if err != nil {
			t.Fatal(err)
		}
		switch r.IntN(9) {
		case 0, 1:
			b.arrive(call, r.IntN(3), statev1.Bucket_BUCKET_NOTHING_TO_SEND)
		case 2:
			b.arrive(call, 0, statev1.Bucket_BUCKET_DUPLICATE, fact(&statev1.Duplicate{Of: "x"}))
		case 3:
			facts := []*statev1.JournalEntry{fact(proto.CloneOf(waits)), fact(&statev1.Phone1Fact{What: "stored"})}
			if old := waiting[call]; old != "" {
				facts = append(facts, fact(&statev1.Phone1Fact{What: "replaced", RequestId: old}))
			}
			waiting[call] = b.arrive(call, 0, statev1.Bucket_BUCKET_WAITING_PHONE2, facts...)
		case 4:
			if old := waiting[call]; old != "" {
				b.arrive(call, 1, statev1.Bucket_BUCKET_NOTHING_TO_SEND, fact(&statev1.Phone1Fact{What: []string{"taken", "expired"}[r.IntN(2)], RequestId: old}))
				delete(waiting, call)
			}
		case 5, 6, 7:
			if c != nil && slices.ContainsFunc(c.Deliveries, func(d *statev1.Delivery) bool { return d.GetState() == statev1.DeliveryState_DELIVERY_STATE_QUEUED }) {
				b.attempt(call, []string{"delivered", "retry", "dead", "expired", "ask", "discarded", "send_disabled"}[r.IntN(7)])
			}
		case 8:
			if c == nil || len(c.Deliveries) == 0 {
				continue
			}
			id := fmt.Sprintf("%s/%d", call, 1+r.IntN(len(c.Deliveries)))
			if r.IntN(2) == 0 {
				_, err = b.relay.RetryDelivery(t.Context(), &operatorv1.RetryDeliveryRequest{Delivery: id})
			} else {
				_, err = b.relay.DiscardDelivery(t.Context(), &operatorv1.DiscardDeliveryRequest{Delivery: id, Reason: "r"})
			}
			if e := errkind.From(err); err != nil && errkind.HTTPStatus(e.Kind) != http.StatusConflict {
				t.Fatal(err)
			}
			if c, err = b.store.Call(t.Context(), call); err != nil {
				t.Fatal(err)
			}
			b.version[call] = c.Version // a person changes it
		}
		if step%500 == 499 {
			a := b.accounting()
			sum := a.GetNothingToSend() + a.GetWaitingPhone2() + a.GetCombined() + a.GetPhone1Expired() + a.GetSendDisabled() + a.GetUndecided() +
				a.GetWaiting() + a.GetDelivered() + a.GetDead() + a.GetExpired() + a.GetDiscarded()
			if len(a.GetDifferences()) > 0 || a.GetReceived() != int64(b.requests) || sum != a.GetAccepted() || a.GetReceived() != a.GetAccepted()+a.GetDuplicate()+a.GetRefused() {
				t.Fatalf("seed %d, step %d, %d requests: %v", seed, step, b.requests, a)
			}
		}
	}
	// A counter that was not moved, and a journal that lost a fact, are differences, and these are alarms.
	raw := redisClient(t, b.cfg.RedisURL.Reveal())
	key := fmt.Sprintf("cr:{%d}:n", store.Partition("ameyo/1"))
	raw.HIncrBy(t.Context(), key, fmt.Sprintf("%dd", store.HourOf(b.store.Now())), 1)
	a := b.accounting()
	if len(a.GetDifferences()) == 0 {
		t.Fatal("a counter was moved and nobody noticed")
	}
	list, err := b.relay.ListAlarms(t.Context(), &operatorv1.ListAlarmsRequest{})
	if err != nil || !slices.ContainsFunc(list.GetAlarms(), func(a *operatorv1.Alarm) bool { return a.GetName() == "accounting_difference" }) {
		t.Errorf("no alarm: %v %v", list, err)
	}
	answer := httptest.NewRecorder()
	b.tel.MetricsHandler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	metrics := answer.Body.String()
	if !regexp.MustCompile(`(?m)^callrelay_accounting_difference\{.*\} [1-9]`).MatchString(metrics) ||
		!strings.Contains(metrics, fmt.Sprintf(`callrelay_accounting_requests{callrelay_bucket="combined",service_name="test"} %d`, a.GetCombined())) {
		t.Errorf("the metrics say otherwise than %v:\n%s", a, metrics)
	}
}

// A call is found by everything that people know of it, the latest first, page by page, and masked for who must not see numbers.
func TestSearch(t *testing.T) {
	b := startHere(t, redistest.Start(t).URL(), nil)
	var ids []string
	for i := range 30 {
		ids = append(ids, b.arrive(fmt.Sprintf("ameyo/%d", 100+i), 1, statev1.Bucket_BUCKET_NOTHING_TO_SEND))
	}
	pageSize := int32(7)
	find := func(query string) (keys []string) {
		t.Helper()
		for token := ""; ; {
			resp, err := b.relay.SearchCalls(t.Context(), &operatorv1.SearchCallsRequest{Query: query, PageSize: pageSize, PageToken: token})
			if err != nil {
				t.Fatalf("%s: %v", query, err)
			}
			if len(resp.GetCalls()) > int(pageSize) {
				t.Errorf("%s: a page of %d", query, len(resp.GetCalls()))
			}
			for _, c := range resp.GetCalls() {
				if slices.Contains(keys, c.GetCall()) {
					t.Errorf("%s: %s is found twice", query, c.GetCall())
				}
				keys = append(keys, c.GetCall())
			}
			if token = resp.GetNextPageToken(); token == "" {
				return keys
			}
		}
	}
	redistest.Poll(t, 5*time.Second, "all are found", func() bool { return len(find("")) == 30 && len(find("AGENT7")) == 30 })
	for _, query := range []string{"104", "000104", "ameyo/104", "customer-104", ids[4], "090-1234-0005", "09012340005", "+81 90 1234 0005", "90-1234-0005", "0005", "12340005"} {
		if got := find(query); len(got) != 1 || got[0] != "ameyo/104" {
			t.Errorf("%q: found %v", query, got)
		}
	}
	for _, query := range []string{"005", "agent8", "customer-1040", "09012340099", "request/none"} {
		if got := find(query); len(got) != 0 {
			t.Errorf("%q: found %v", query, got)
		}
	}
	b.attempt("ameyo/107", "dead")
	resp, err := b.relay.SearchCalls(t.Context(), &operatorv1.SearchCallsRequest{State: "dead"})
	if err != nil || len(resp.GetCalls()) != 1 || resp.GetCalls()[0].GetCall() != "ameyo/107" {
		t.Errorf("dead ones: %v %v", resp, err)
	}
	for _, bad := range []*operatorv1.SearchCallsRequest{{State: "lost"}, {Since: "yesterday"}, {PageSize: 201}, {PageToken: "x"}, {Query: strings.Repeat("x", 201)}, {Query: "x", PageToken: "x"}} {
		if _, err := b.relay.SearchCalls(t.Context(), bad); err == nil || errkind.HTTPStatus(errkind.From(err).Kind) != 400 {
			t.Errorf("%v: %v", bad, err)
		}
	}
	// What is named by its key comes first, once, and what else is found by it behind it, whatever the size of a page.
	b.arrive("ameyo/5", 1, statev1.Bucket_BUCKET_NOTHING_TO_SEND)
	for _, pageSize = range []int32{1, 2, 7} {
		if got := find("0005"); !slices.Equal(got, []string{"ameyo/5", "ameyo/104"}) {
			t.Errorf("in pages of %d: found %v", pageSize, got)
		}
	}
	masked := metadata.AppendToOutgoingContext(t.Context(), "x-callrelay-mask", "true")
	for name, ctx := range map[string]context.Context{"masked": masked, "shown": t.Context()} {
		c, err := b.relay.GetCall(ctx, &operatorv1.GetCallRequest{Call: "104"})
		if err != nil {
			t.Fatal(err)
		}
		if has := strings.Contains(c.String(), "12340005") || strings.Contains(c.String(), "1234-0005") || strings.Contains(c.String(), "09012345678"); has != (name == "shown") {
			t.Errorf("%s: %v", name, c)
		}
	}
}

// The tail tells each entry once, goes on where a reader stopped, and says when it cannot; another state process tells it too.
func TestTail(t *testing.T) {
	url := redistest.Start(t).URL()
	b, other := startHere(t, url, nil), startHere(t, url, nil)
	redistest.Poll(t, 10*time.Second, "both know of each other", func() bool { return !b.dispatch.Alone() && !other.dispatch.Alone() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	watch := func(b *bench, req *operatorv1.WatchJournalRequest) func() *operatorv1.WatchJournalResponse {
		stream, err := b.relay.WatchJournal(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		return func() *operatorv1.WatchJournalResponse {
			t.Helper()
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
	}
	b.arrive("ameyo/1", 1, statev1.Bucket_BUCKET_NOTHING_TO_SEND)
	all := watch(b, &operatorv1.WatchJournalRequest{After: "0.x.0"})
	if !all().GetMissed() {
		t.Error("it does not say that it may have missed something")
	}
	// What was written together has one place, which its last entry tells: a reader that was cut off before it sees all again.
	if first := all().GetEntry(); first.GetCall() != "ameyo/1" || first.GetFact().GetReceived() == nil || first.GetId() != "" {
		t.Errorf("got %v", first)
	}
	first := all().GetEntry()
	if first.GetFact().GetDecided() == nil || first.GetId() == "" {
		t.Errorf("got %v", first)
	}
	b.attempt("ameyo/1", "delivered")
	b.arrive("ameyo/2", 0, statev1.Bucket_BUCKET_NOTHING_TO_SEND)
	resumed := watch(b, &operatorv1.WatchJournalRequest{After: first.GetId(), Filter: "AMEYO/2 received"})
	if m := resumed(); m.GetMissed() || m.GetEntry().GetCall() != "ameyo/2" {
		t.Errorf("resumed with %v", m)
	}
	if m := all(); m.GetEntry().GetFact().GetAttempt().GetNext() != "delivered" {
		t.Errorf("got %v", m)
	}
	there := watch(other, &operatorv1.WatchJournalRequest{After: "0.x.0", Filter: "ameyo/3"})
	there() // missed
	b.arrive("ameyo/3", 0, statev1.Bucket_BUCKET_NOTHING_TO_SEND)
	if m := there(); m.GetEntry().GetCall() != "ameyo/3" {
		t.Errorf("the other state process tells %v", m)
	}
	refused, err := b.relay.WatchJournal(ctx, &operatorv1.WatchJournalRequest{After: strings.Repeat("x", 201)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := refused.Recv(); err == nil || errkind.From(err).Field != "after" {
		t.Errorf("an id that is too long: %v", err)
	}
}

// Some records are a client's number: whoever may not see numbers does not see it in the journal either.
func TestNumberOfARecordIsMasked(t *testing.T) {
	for masked, want := range map[bool]string{true: "kommo-number/9001/******0142", false: "kommo-number/9001/3055550142"} {
		if got := entries("kommo-number/9001/3055550142", []*statev1.JournalEntry{{}}, masked)[0].GetCall(); got != want {
			t.Errorf("masked %v: %s", masked, got)
		}
	}
}

// A long name is not cut within a character: a journal entry with half of one could not be written.
func TestLongActor(t *testing.T) {
	who := rpc.Caller{Actor: strings.Repeat("x", 199) + "é", Role: rpc.RoleOperator}
	actor, _ := caller(metadata.NewIncomingContext(t.Context(), who.Metadata()))
	if !utf8.ValidString(actor) || !strings.HasPrefix(actor, who.Actor[:199]) {
		t.Errorf("%q", actor)
	}
}

// What is asked of one destination is done, counted and listed for that one.
func TestBulkOfOneDestination(t *testing.T) {
	b := startHere(t, redistest.Start(t).URL(), nil)
	for i, to := range []string{"kommo/1", dest, "webhook:a"} {
		if b.to = to; b.store.Know(t.Context(), to) != nil {
			t.Fatal("Redis is gone")
		}
		for n := range 3 {
			call := fmt.Sprintf("ameyo/%d%d", i, n)
			b.arrive(call, 1, statev1.Bucket_BUCKET_NOTHING_TO_SEND)
			b.attempt(call, "dead")
		}
		b.arrive(fmt.Sprintf("ameyo/%d", i), 1, statev1.Bucket_BUCKET_NOTHING_TO_SEND)
		b.attempt(fmt.Sprintf("ameyo/%d", i), "delivered")
	}
	list := func(destination string, states ...string) (calls []string) {
		resp, err := b.relay.ListDeliveries(t.Context(), &operatorv1.ListDeliveriesRequest{Destination: destination, State: states})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range resp.GetDeliveries() {
			calls = append(calls, d.GetCall())
		}
		slices.Sort(calls)
		return calls
	}
	stream, err := b.relay.DiscardDeliveries(t.Context(), &operatorv1.DiscardDeliveriesRequest{Reason: "r", Filter: &operatorv1.DeliveryFilter{Destination: dest}})
	if err != nil {
		t.Fatal(err)
	}
	var last *operatorv1.Progress
	for p, err := stream.Recv(); err != io.EOF; p, err = stream.Recv() {
		if err != nil {
			t.Fatal(err)
		}
		last = p
	}
	if last.GetDone() != 3 || last.GetTotal() != 3 || last.GetSeen() != 3 || !last.GetFinished() {
		t.Errorf("told %v", last)
	}
	for to, want := range map[string][]string{"": {"ameyo/00", "ameyo/01", "ameyo/02", "ameyo/20", "ameyo/21", "ameyo/22"},
		"kommo/1": {"ameyo/00", "ameyo/01", "ameyo/02"}, dest: nil, "webhook:a": {"ameyo/20", "ameyo/21", "ameyo/22"}} {
		if got := list(to, "dead"); !slices.Equal(got, want) {
			t.Errorf("of %q %v are dead, want %v", to, got, want)
		}
	}
	redistest.Poll(t, 10*time.Second, "the index has them all", func() bool { return len(list("", "delivered")) == 3 })
	if got := list(dest, "delivered"); !slices.Equal(got, []string{"ameyo/1"}) {
		t.Errorf("of %q %v are delivered, want ameyo/1", dest, got)
	}
}

// In bulk: only what is asked for, each once however often it is clicked, with who and why, and it can be broken off.
func TestBulk(t *testing.T) {
	b := startHere(t, redistest.Start(t).URL(), nil)
	const n = 80
	for i := range n {
		call := fmt.Sprintf("ameyo/%d", i)
		b.arrive(call, 1, statev1.Bucket_BUCKET_NOTHING_TO_SEND)
		b.attempt(call, []string{"dead", "expired"}[i%2])
	}
	list, token := 0, ""
	for {
		resp, err := b.relay.ListDeliveries(t.Context(), &operatorv1.ListDeliveriesRequest{PageSize: 7, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		if list += len(resp.GetDeliveries()); len(resp.GetDeliveries()) > 7 {
			t.Errorf("a page of 7 has %d", len(resp.GetDeliveries()))
		}
		if token = resp.GetNextPageToken(); token == "" {
			break
		}
	}
	if list != n {
		t.Errorf("%d are listed page by page", list)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-callrelay-actor", "ann")
	run := func() (last *operatorv1.Progress) {
		stream, err := b.relay.RetryDeliveries(ctx, &operatorv1.RetryDeliveriesRequest{Reason: "it is back", Filter: &operatorv1.DeliveryFilter{State: []string{"dead"}, ReasonContains: "because dead"}})
		if err != nil {
			t.Error(err)
			return nil
		}
		for {
			p, err := stream.Recv()
			if err == io.EOF {
				return last
			}
			if err != nil {
				t.Error(err)
				return last
			}
			last = p
		}
	}
	var wg sync.WaitGroup
	var clicks [3]*operatorv1.Progress
	for i := range clicks {
		wg.Go(func() { clicks[i] = run() })
	}
	wg.Wait()
	var done int64
	for _, p := range clicks {
		if done += p.GetDone(); !p.GetFinished() {
			t.Errorf("not finished: %v", p)
		}
	}
	if done != n/2 {
		t.Errorf("%d were retried by three clicks, want %d", done, n/2)
	}
	c, err := b.relay.GetCall(t.Context(), &operatorv1.GetCallRequest{Call: "0"})
	if err != nil || c.GetDeliveries()[0].GetState() != "queued" || !strings.Contains(c.String(), "ann: retry delivery 1 because it is back") {
		t.Errorf("%v %v", c, err)
	}
	queued, err := b.relay.ListDeliveries(t.Context(), &operatorv1.ListDeliveriesRequest{State: []string{"queued"}})
	if err != nil || len(queued.GetDeliveries()) != n/2 {
		t.Errorf("%d are queued: %v", len(queued.GetDeliveries()), err)
	}
	// What died again after somebody looked is not retried by the click that follows.
	b.attempt("ameyo/0", "dead")
	if _, err := b.relay.RetryDelivery(t.Context(), &operatorv1.RetryDeliveryRequest{Delivery: "ameyo/0/1", EndedMs: 1}); errkind.HTTPStatus(errkind.From(err).Kind) != 409 {
		t.Errorf("a retry of what ended again: %v", err)
	}
	broken, cancel := context.WithCancel(ctx)
	cancel()
	stream, err := b.relay.DiscardDeliveries(broken, &operatorv1.DiscardDeliveriesRequest{Reason: "r"})
	if err == nil {
		_, err = stream.Recv()
	}
	if err == nil {
		t.Error("a broken off bulk goes on")
	}
	if a := b.accounting(); len(a.GetDifferences()) > 0 || a.GetDead() != 1 {
		t.Errorf("got %v", a)
	}
	// What ended well stands in no list; its pages are as exact.
	for i := 2; i < n; i += 2 {
		b.attempt(fmt.Sprintf("ameyo/%d", i), "delivered")
	}
	list, token = 0, ""
	redistest.Poll(t, 10*time.Second, "all delivered are listed", func() bool {
		for list = 0; ; {
			resp, err := b.relay.ListDeliveries(t.Context(), &operatorv1.ListDeliveriesRequest{State: []string{"delivered"}, PageSize: 7, PageToken: token})
			if err != nil || len(resp.GetDeliveries()) > 7 {
				t.Fatalf("a page of 7 has %d: %v", len(resp.GetDeliveries()), err)
			}
			list += len(resp.GetDeliveries())
			if token = resp.GetNextPageToken(); token == "" {
				return list == n/2-1
			}
		}
	})
}

// Holding is journaled with who did it; the same again changes nothing.
func TestHoldIsJournaled(t *testing.T) {
	b := startHere(t, redistest.Start(t).URL(), nil)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-callrelay-actor", "ann")
	for range 3 {
		if d, err := b.relay.HoldDestination(ctx, &operatorv1.HoldDestinationRequest{Destination: dest, Reason: "maintenance"}); err != nil || !d.GetHeld() {
			t.Fatal(d, err)
		}
	}
	for range 3 {
		if d, err := b.relay.ReleaseDestination(ctx, &operatorv1.ReleaseDestinationRequest{Destination: dest}); err != nil || d.GetHeld() {
			t.Fatal(d, err)
		}
	}
	c, err := b.relay.GetCall(t.Context(), &operatorv1.GetCallRequest{Call: "destination/" + dest})
	if err != nil || len(c.GetJournal()) != 2 || c.GetJournal()[0].GetText()[0] != "ann: hold because maintenance" {
		t.Errorf("%v %v", c, err)
	}
}

// An alarm is told once when it begins and once when it is over, signed, and again until it is taken.
func TestAlarmWebhook(t *testing.T) {
	key := []byte("0123456789012345678901234567890")
	type told struct{ header, body string }
	got, fails := make(chan told, 10), make(chan bool, 1)
	fails <- true
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(r.Header.Get("webhook-id") + "." + r.Header.Get("webhook-timestamp") + "." + string(body)))
		if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); r.Header.Get("webhook-signature") != want {
			t.Errorf("signature %s, want %s", r.Header.Get("webhook-signature"), want)
		}
		select {
		case <-fails:
			w.WriteHeader(http.StatusBadGateway)
		default:
			got <- told{r.Header.Get("webhook-id"), string(body)}
		}
	}))
	defer hook.Close()
	redis := redistest.Start(t)
	url := redis.URL()
	env := map[string]string{"ALARM_WEBHOOK_URL": hook.URL, "ALARM_WEBHOOK_SECRET": "whsec_" + base64.StdEncoding.EncodeToString(key)}
	b := startHere(t, url, env)
	startHere(t, url, env) // a second one tells nothing twice
	if _, err := b.relay.HoldDestination(t.Context(), &operatorv1.HoldDestinationRequest{Destination: dest, Reason: "maintenance"}); err != nil {
		t.Fatal(err)
	}
	report := func(spooled int64) error {
		_, err := (&server{Service: b.Service}).Report(t.Context(), &statev1.ReportRequest{Instance: "a", Spooled: spooled})
		return err
	}
	var spooled int64 // is reported each second, as ingress does: what it said once is believed for 30 s only
	next := func() (m told) {
		t.Helper()
		redistest.Poll(t, time.Minute, "something is told", func() bool {
			select {
			case m = <-got:
				return true
			case <-time.After(time.Second):
				if spooled > 0 && report(spooled) == nil {
					t.Error("a report without Redis is said to be kept")
				}
				return false
			}
		})
		return m
	}
	if m := next(); !strings.Contains(m.body, `"alarm.begun"`) || !strings.Contains(m.body, "maintenance") {
		t.Errorf("got %s", m.body)
	}
	if _, err := b.relay.ReleaseDestination(t.Context(), &operatorv1.ReleaseDestinationRequest{Destination: dest}); err != nil {
		t.Fatal(err)
	}
	if m := next(); !strings.Contains(m.body, `"alarm.over"`) {
		t.Errorf("got %s", m.body)
	}
	// That Redis is away is told by each process, and so is what ingress reported to it: the spool fills meanwhile.
	redis.Kill()
	tells := func(kind string) {
		t.Helper()
		heard := map[string]int{}
		for range 3 {
			m := next()
			if !strings.Contains(m.body, `"`+kind+`"`) {
				t.Errorf("got %s, want %s", m.body, kind)
			}
			for _, name := range []string{"redis_away", "spool_in_use"} {
				if strings.Contains(m.body, `"`+name+`"`) {
					heard[name]++
				}
			}
		}
		if heard["redis_away"] != 2 || heard["spool_in_use"] != 1 {
			t.Errorf("%s: got %v", kind, heard)
		}
	}
	spooled = 3
	_ = report(spooled)
	tells("alarm.begun")
	_ = report(spooled)
	list, err := b.relay.ListAlarms(t.Context(), &operatorv1.ListAlarmsRequest{})
	if err != nil || len(list.GetAlarms()) != 2 || !strings.HasPrefix(list.GetAlarms()[0].GetText(), "Redis does not answer") ||
		!strings.HasPrefix(list.GetAlarms()[1].GetText(), "3 callbacks are in the spool") {
		t.Errorf("without Redis: %v %v", list, err)
	}
	if away := time.Since(time.UnixMilli(list.GetAlarms()[0].GetSinceMs())); away < 0 || away > time.Minute {
		t.Errorf("Redis is away for %s", away)
	}
	spooled = 0
	redis.Launch(t)
	redistest.Poll(t, time.Minute, "a report is taken again", func() bool { return report(0) == nil })
	tells("alarm.over")
	if len(got) > 0 {
		t.Errorf("told twice: %v", <-got)
	}
}

// What ingress reports is in the accounting and an alarm.
func TestSpoolReport(t *testing.T) {
	b := startHere(t, redistest.Start(t).URL(), nil)
	for _, instance := range []string{"a", "b"} {
		if _, err := (&server{Service: b.Service}).Report(t.Context(), &statev1.ReportRequest{Instance: instance, Spooled: 3, OldestMs: 60_000, RefusedAfterAck: 1, NotAcknowledged: 4, SpoolDamaged: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if a := b.accounting(); a.GetSpooled() != 6 || a.GetReceived() != 6 {
		t.Errorf("got %v", a)
	}
	list, err := b.relay.ListAlarms(t.Context(), &operatorv1.ListAlarmsRequest{})
	if err != nil || len(list.GetAlarms()) != 4 {
		t.Fatalf("%v %v", list, err)
	}
	for i, want := range []string{"6 callbacks are in the spool of ingress, the oldest for 1m0s", "2 callbacks were acknowledged out of the spool and then refused",
		"8 callbacks of the last hour were not acknowledged", "2 files or items of the spool"} {
		if got := list.GetAlarms()[i].GetText(); !strings.HasPrefix(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// Deliveries that wait for a person are an alarm, once there are many.
func TestDeadLettersAlarm(t *testing.T) {
	b := startHere(t, redistest.Start(t).URL(), map[string]string{"ALARM_DEAD": "2"})
	for _, c := range []struct{ call, want string }{{"ameyo/1", ""}, {"ameyo/2", "2 deliveries to " + dest + " wait for a person"}} {
		b.arrive(c.call, 1, statev1.Bucket_BUCKET_NOTHING_TO_SEND)
		b.attempt(c.call, "dead")
		list, err := b.relay.ListAlarms(t.Context(), &operatorv1.ListAlarmsRequest{})
		if err != nil || (len(list.GetAlarms()) > 0) != (c.want != "") || c.want != "" && !strings.HasPrefix(list.GetAlarms()[0].GetText(), c.want) {
			t.Errorf("%s: %v %v", c.call, list, err)
		}
	}
}
