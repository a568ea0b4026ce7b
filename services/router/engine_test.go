package router

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"callrelay/callback"
	callbackv1 "callrelay/gen/callrelay/callback/v1"
	errorsv1 "callrelay/gen/callrelay/errors/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/errkind"
	"callrelay/platform/rpc"
	"callrelay/platform/telemetry"
	"callrelay/services/router/ameyo"
)

// fakeState keeps calls in memory, with the checks of state's commit, and can be told to misbehave.
type fakeState struct {
	statev1.UnimplementedStateServiceServer
	mu    sync.Mutex
	calls map[string]*fakeCall
	// before is called with each item before it is committed; true = the answer is lost.
	before func(*statev1.CommitItem) (lost bool)
	client statev1.StateServiceClient
	// work is what the first lease gets; leases are what is sent on its stream.
	work   []*statev1.LeaseWork
	leases chan *statev1.LeaseRequest
}

type fakeCall struct {
	deliveries int
	version    string
	record     []byte
	inputs     map[string]*statev1.Outcome
	commits    []*statev1.CommitItem
}

func (c *fakeCall) state() *statev1.CallState {
	s := &statev1.CallState{Version: c.version, Record: c.record}
	for n := range c.deliveries {
		s.Deliveries = append(s.Deliveries, &statev1.Delivery{Number: uint32(n + 1), State: statev1.DeliveryState_DELIVERY_STATE_DELIVERED})
	}
	return s
}

func (f *fakeState) call(key string) *fakeCall {
	if f.calls[key] == nil {
		f.calls[key] = &fakeCall{inputs: map[string]*statev1.Outcome{}}
	}
	return f.calls[key]
}

func (f *fakeState) Load(stream grpc.BidiStreamingServer[statev1.LoadRequest, statev1.LoadResponse]) error {
	return rpc.Batches(stream, nil, 4, func(_ context.Context, req *statev1.LoadRequest) *statev1.LoadResponse {
		f.mu.Lock()
		defer f.mu.Unlock()
		resp := &statev1.LoadResponse{NowMs: 1_000_000}
		for _, item := range req.GetItems() {
			c := f.call(item.GetCall())
			resp.Answers = append(resp.Answers, &statev1.LoadAnswer{Id: item.GetId(), Call: c.state()})
		}
		return resp
	})
}

func (f *fakeState) Commit(stream grpc.BidiStreamingServer[statev1.CommitRequest, statev1.CommitResponse]) error {
	return rpc.Batches(stream, nil, 4, func(_ context.Context, req *statev1.CommitRequest) *statev1.CommitResponse {
		f.mu.Lock()
		defer f.mu.Unlock()
		resp := &statev1.CommitResponse{NowMs: 1_000_000}
		for _, item := range req.GetItems() {
			lost := f.before != nil && f.before(item)
			a := f.commit(item)
			if a.Id = item.GetId(); lost {
				a = &statev1.CommitAnswer{Id: item.GetId(), Error: errkind.Unavailable(nil, "lost").Proto()}
			}
			resp.Answers = append(resp.Answers, a)
		}
		return resp
	})
}

func (f *fakeState) Lease(stream grpc.BidiStreamingServer[statev1.LeaseRequest, statev1.LeaseResponse]) error {
	defer close(f.leases)
	if err := stream.Send(&statev1.LeaseResponse{Work: f.work}); err != nil {
		return err
	}
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		f.leases <- req
	}
}

func (f *fakeState) commit(item *statev1.CommitItem) *statev1.CommitAnswer {
	c := f.call(item.GetCall())
	if earlier, ok := c.inputs[item.GetInputId()]; ok {
		return &statev1.CommitAnswer{Status: statev1.CommitStatus_COMMIT_STATUS_EARLIER, Outcome: earlier}
	}
	if c.version != item.GetExpectedVersion() {
		return &statev1.CommitAnswer{Status: statev1.CommitStatus_COMMIT_STATUS_CONFLICT, Current: c.state()}
	}
	c.inputs[item.GetInputId()] = item.GetOutcome()
	c.commits = append(c.commits, proto.CloneOf(item))
	if item.GetCommitId() != "" {
		c.version, c.record = item.GetCommitId(), item.GetRecord()
	}
	return &statev1.CommitAnswer{Status: statev1.CommitStatus_COMMIT_STATUS_OK, Outcome: item.GetOutcome()}
}

// newTestEngine runs an engine against a fake state.
func newTestEngine(t *testing.T) (*engine, *fakeState) {
	t.Helper()
	f := &fakeState{calls: map[string]*fakeCall{}}
	server := rpc.NewServer(slog.New(slog.NewTextHandler(io.Discard, nil)))
	statev1.RegisterStateServiceServer(server.Registrar(), f)
	f.client = statev1.NewStateServiceClient(server.InProcess())
	e, err := newEngine(ameyo.DefaultConfig(), callback.Options{}, telemetry.NewGroup(nil).Service("test"), f.client)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { e.load.Run(ctx) })
	wg.Go(func() { e.commit.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait(); server.Stop(time.Second) })
	return e, f
}

// A stop lets entries under way finish, asks for no more, and tells state of those that could not: none waits for LEASE_TIME.
func TestStopEndsEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, f := newTestEngine(t)
		began, release := make(chan struct{}), make(chan struct{})
		f.before = func(item *statev1.CommitItem) (lost bool) {
			if item.GetCall() == "ameyo/1" {
				close(began)
				<-release
			}
			return item.GetCall() == "ameyo/2"
		}
		f.leases = make(chan *statev1.LeaseRequest, 16)
		for _, call := range []string{"ameyo/1", "ameyo/2"} {
			f.work = append(f.work, &statev1.LeaseWork{Call: call, Token: call, Entry: &statev1.Entry{Timer: "t", TimerId: "c1"}})
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { e.entries(ctx, f.client); close(ended) }()
		<-began
		stop()
		close(release)
		<-ended
		var told []string
		for req := range f.leases {
			if told = append(told, fmt.Sprint(req.GetCredit())); len(req.GetResults()) > 0 {
				told = append(told, req.GetResults()[0].GetToken())
			}
		}
		if got := strings.Join(told, " "); got != "64 0 0 ameyo/2" {
			t.Errorf("told state %s", got)
		}
		if n := len(f.calls["ameyo/1"].commits); n != 1 {
			t.Errorf("what was under way has %d commits", n)
		}
	})
}

func routeItem(request, call, index string) *routerv1.RouteItem {
	return &routerv1.RouteItem{RequestId: request, BudgetMs: 10_000, Query: []byte("unique_id=" + call),
		Callback: &routerv1.RouteItem_AmeyoCallEnd{AmeyoCallEnd: &callbackv1.AmeyoCallEnd{
			UniqueId: call, CustomerId: "c", SystemDisposition: "BUSY", ShareablePhonesDialIndex: index, PhoneList: `["1","2"]`}}}
}

func (e *engine) send(item *routerv1.RouteItem) *routerv1.RouteAnswer {
	return (&server{engine: e}).route(context.Background(), item, time.Now())
}

// A call does not grow without end: what is too much is refused with a reason, and recorded.
func TestCallWithTooManyDeliveries(t *testing.T) {
	e, f := newTestEngine(t)
	e.send(routeItem("r1", "1", "1"))
	c := f.call("ameyo/1")
	for i, tt := range []struct {
		deliveries int
		kind       errorsv1.Kind
	}{{maxDeliveries - 1, errorsv1.Kind_KIND_UNSPECIFIED}, {maxDeliveries, errorsv1.Kind_KIND_REFUSED}} {
		f.mu.Lock()
		c.deliveries = tt.deliveries
		f.mu.Unlock()
		answer := e.send(routeItem(fmt.Sprint("again", i), "1", "1"))
		if got := answer.GetError().GetKind(); got != tt.kind {
			t.Errorf("%d deliveries: %v", tt.deliveries, answer)
		}
	}
	// One that its sender believes to be taken is recorded by itself: a journal that is full takes no more.
	spooled := routeItem("r9", "1", "1")
	spooled.Spooled = true
	e.send(spooled)
	for _, commits := range [][]*statev1.CommitItem{c.commits, f.call("request/r9").commits} {
		journal := &statev1.Journal{}
		if len(commits) == 0 {
			t.Error("nothing was recorded")
		} else if err := proto.Unmarshal(commits[len(commits)-1].GetJournal(), journal); err != nil || !strings.Contains(journal.String(), "more than one call") {
			t.Errorf("recorded %v, %v", journal, err)
		}
	}
}

// A panic in decide is the error of its own callback, recorded with its query; the others of the same batch are decided.
func TestPanicHurtsNobodyElse(t *testing.T) {
	e, f := newTestEngine(t)
	e.decide = func(c *ameyo.Config, call ameyo.Call, in ameyo.Input, now int64) (ameyo.Call, ameyo.Effects) {
		if in.CallEnd.CallID == "666" {
			panic("broken rule")
		}
		return ameyo.Decide(c, call, in, now)
	}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if a := e.send(routeItem(fmt.Sprint("r", i), fmt.Sprint(100+i), "0")); a.GetError() != nil {
				t.Errorf("call %d: %v", i, a.GetError())
			}
		})
	}
	a := e.send(routeItem("bad", "666", "0"))
	wg.Wait()
	if a.GetError().GetKind() != errorsv1.Kind_KIND_INTERNAL || strings.Contains(a.GetError().GetMessage(), "broken rule") {
		t.Errorf("answered %v, want an opaque internal error", a.GetError())
	}
	c := f.calls["ameyo/666"]
	if len(c.commits) != 1 || c.version != "" {
		t.Fatalf("commits %v, version %q; want a journal entry and nothing else", c.commits, c.version)
	}
	journal := &statev1.Journal{}
	if err := proto.Unmarshal(c.commits[0].GetJournal(), journal); err != nil {
		t.Fatal(err)
	}
	if text := journal.String(); journal.GetEntries()[1].GetUndecided().GetReason() == "" || !strings.Contains(text, "unique_id=666") {
		t.Errorf("journal: %s", text)
	}
}

// So is a panic about an entry, which no handler of a stream would see: it is recorded, and its neighbours are processed.
func TestPanicOfAnEntryHurtsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, f := newTestEngine(t)
		e.pbx.known.Store(&pbxKnown{}) // and nobody to ask for more: a timer of a PBX call panics
		f.leases = make(chan *statev1.LeaseRequest, 16)
		for _, call := range []string{"pbx/i1/1", "ameyo/1"} {
			f.work = append(f.work, &statev1.LeaseWork{Call: call, Token: call, Entry: &statev1.Entry{Timer: "t", TimerId: "c1"}})
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { e.entries(ctx, f.client); close(ended) }()
		for range 3 { // the first credit, and one for each
			if req := <-f.leases; len(req.GetResults()) > 0 || req.GetCredit() == 0 {
				t.Errorf("told state %v", req)
			}
		}
		stop()
		<-ended
		if n := len(f.calls["ameyo/1"].commits); n != 1 {
			t.Errorf("the other one has %d commits", n)
		}
		journal := &statev1.Journal{}
		if c := f.calls["pbx/i1/1"]; c == nil || proto.Unmarshal(c.commits[0].GetJournal(), journal) != nil || c.commits[0].GetEntry() == nil ||
			!strings.HasPrefix(journal.GetEntries()[0].GetUndecided().GetReason(), "panic: ") {
			t.Errorf("recorded %v: %v", c, journal)
		}
	})
}

// What the rules refuse or cannot process is recorded as undecided, with its query and under its input id, when it comes
// out of a spool: its sender has a 200. Then it is out of the way.
func TestSpooledPoisonIsRecorded(t *testing.T) {
	e, f := newTestEngine(t)
	e.decide = func(*ameyo.Config, ameyo.Call, ameyo.Input, int64) (ameyo.Call, ameyo.Effects) { panic("broken rule") }
	noCallback := routeItem("r3", "3", "0")
	noCallback.Callback = nil
	for _, c := range []struct {
		name  string
		item  *routerv1.RouteItem
		call  string
		kind  errorsv1.Kind
		field string
	}{
		{"refused", routeItem("r1", "no digits", "0"), "request/r1", errorsv1.Kind_KIND_INVALID, "unique_id"},
		{"the rules panic", routeItem("r2", "2", "0"), "ameyo/2", errorsv1.Kind_KIND_INTERNAL, ""},
		{"it has none", noCallback, "request/r3", errorsv1.Kind_KIND_INVALID, "callback"},
	} {
		c.item.Spooled, c.item.AgeMs = true, 5000
		if a := e.send(c.item); a.GetError().GetKind() != c.kind {
			t.Errorf("%s: answered %v", c.name, a.GetError())
		}
		commits := f.call(c.call).commits
		journal := &statev1.Journal{}
		if len(commits) != 1 || proto.Unmarshal(commits[0].GetJournal(), journal) != nil || commits[0].GetInputId() != c.item.GetRequestId() {
			t.Errorf("%s: commits %v", c.name, commits)
			continue
		}
		got, why := journal.GetEntries()[0].GetReceived(), journal.GetEntries()[1].GetUndecided()
		if !got.GetSpooled() || string(got.GetQuery()) != string(c.item.GetQuery()) || got.GetAgeMs() < 5000 ||
			why.GetReason() == "" || why.GetField() != c.field || !why.GetAcknowledged() {
			t.Errorf("%s: journal %v", c.name, journal)
		}
	}
	newer := routeItem("r5", "5", "0")
	newer.Callback, newer.Spooled = nil, true
	newer.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 200, protowire.BytesType), []byte("of a newer ingress")))
	if a := e.send(newer); a.GetError().GetKind() != errorsv1.Kind_KIND_UNAVAILABLE || len(f.call("request/r5").commits) != 0 {
		t.Errorf("what this router does not know yet has to stay in the spool: %v", a)
	}
	fresh := routeItem("r4", "no digits", "0")
	if e.send(fresh); len(f.call("request/r4").commits) != 0 {
		t.Error("a fresh one is ingress' to record")
	}
}

// An answer that got lost is asked for again with the same commit, verbatim: the effects happen once.
func TestLostCommitAnswerIsRepeatedVerbatim(t *testing.T) {
	e, f := newTestEngine(t)
	var seen []*statev1.CommitItem
	f.before = func(item *statev1.CommitItem) bool {
		seen = append(seen, proto.CloneOf(item))
		return len(seen) <= 3
	}
	if a := e.send(routeItem("r1", "1", "1")); a.GetError() != nil {
		t.Fatal(a.GetError())
	}
	if len(seen) != 4 || len(f.calls["ameyo/1"].commits) != 1 {
		t.Fatalf("%d commits sent, %d happened; want 4 and 1", len(seen), len(f.calls["ameyo/1"].commits))
	}
	for _, item := range seen[1:] {
		item.Id = seen[0].GetId()
		if !proto.Equal(item, seen[0]) {
			t.Errorf("not verbatim:\n%v\n%v", seen[0], item)
		}
	}
}

// A call that another router changed meanwhile is decided again on what it is now; without end it is UNAVAILABLE.
func TestConflict(t *testing.T) {
	e, f := newTestEngine(t)
	times := 1
	f.before = func(item *statev1.CommitItem) bool {
		if times > 0 {
			times--
			f.call(item.GetCall()).version += "x"
		}
		return false
	}
	if a := e.send(routeItem("r1", "1", "1")); a.GetError() != nil {
		t.Errorf("one conflict: %v", a.GetError())
	}
	times = 1_000_000
	if a := e.send(routeItem("r2", "2", "1")); a.GetError().GetKind() != errorsv1.Kind_KIND_UNAVAILABLE {
		t.Errorf("endless conflicts: %v", a.GetError())
	}
}

// The budget ends the tries: nobody waits for the answer any more.
func TestBudget(t *testing.T) {
	e, f := newTestEngine(t)
	f.before = func(*statev1.CommitItem) bool { return true }
	item := routeItem("r1", "1", "1")
	item.BudgetMs = 50
	if a := e.send(item); a.GetError().GetKind() != errorsv1.Kind_KIND_UNAVAILABLE {
		t.Errorf("got %v", a.GetError())
	}
}

// The time of receipt is that of the callback, however late it is routed.
func TestAge(t *testing.T) {
	e, _ := newTestEngine(t)
	var got int64
	e.decide = func(c *ameyo.Config, call ameyo.Call, in ameyo.Input, now int64) (ameyo.Call, ameyo.Effects) {
		got = now - in.ReceivedMS
		return ameyo.Decide(c, call, in, now)
	}
	item := routeItem("r1", "1", "1")
	item.AgeMs = 30_000
	e.send(item)
	if got < 30_000 || got > 40_000 {
		t.Errorf("decided with an age of %d ms, want 30000 and a little", got)
	}
}
