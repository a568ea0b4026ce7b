package router

import (
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc"

	"callrelay/callback"
	callbackv1 "callrelay/gen/callrelay/callback/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/telemetry"
	"callrelay/services/router/ameyo"
)

// What deciding one callback allocates, from the message to the commit: reading it, the rules, the record, the journal.
func TestAllocations(t *testing.T) {
	e, _ := newTestEngine(t)
	item := conversation(1)
	got := testing.AllocsPerRun(100, func() {
		in, err := e.input(item, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := e.decideOne(in, &statev1.CallState{}, 1000, 1000); err != nil {
			t.Fatal(err)
		}
	})
	if got > 37 { // of them one or two are the race detector's
		t.Errorf("%v allocations to decide a callback, at most 37 wanted", got)
	}
}

// conversation is a call end as the load generator sends it: a conversation on the only phone.
func conversation(call int) *routerv1.RouteItem {
	id := fmt.Sprint(100000000000 + call)
	return &routerv1.RouteItem{Id: uint64(call), RequestId: "4MTHVJ2HP6WFR3ZQ4SR5TD2ZMN", AgeMs: 1, BudgetMs: 60_000, Peer: "127.0.0.1",
		Query: []byte("unique_id=" + id + "&customerId=4711&customerCRTId=d336-" + id + "-vce-101&systemDisposition=CONNECTED" +
			"&shareablePhonesDialIndex=0&dialledPhone=03000001234&phoneList=%7B%22phoneList%22%3A%5B%2203000001234%22%5D%7D" +
			"&userId=sim_sv7&callConnectedTime=2026%2F03%2F06+10%3A15%3A30+%2B0900"),
		Callback: &routerv1.RouteItem_AmeyoCallEnd{AmeyoCallEnd: &callbackv1.AmeyoCallEnd{UniqueId: id, CustomerId: "4711",
			CustomerCrtId: "d336-" + id + "-vce-101", SystemDisposition: "CONNECTED", ShareablePhonesDialIndex: "0", DialledPhone: "03000001234",
			PhoneList: `{"phoneList":["03000001234"]}`, UserId: "sim_sv7", CallConnectedTime: "2026/03/06 10:15:30 +0900"}}}
}

// BenchmarkRoute takes callbacks the whole way through router, from the stream of ingress to state's answer and back, between
// neighbours that cost next to nothing: messages of 8 callbacks, 64 of them under way.
func BenchmarkRoute(b *testing.B) {
	const atOnce, inMessage = 64, 8
	e, err := newEngine(ameyo.DefaultConfig(), callback.Options{}, telemetry.NewGroup(nil).Service("test"), yesState{})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	defer stop()
	go e.commit.Run(ctx)
	ingress := &routeStream{ctx: ctx, items: make(chan []*routerv1.RouteItem, atOnce), answered: make(chan int, atOnce)}
	go func() { _ = (&server{engine: e}).Route(ingress) }()
	e.clock.set(time.Now().UnixMilli())

	b.ReportAllocs()
	sent := 0
	send := func(n int) {
		if n = min(n, b.N-sent); n <= 0 {
			return
		}
		items := make([]*routerv1.RouteItem, n)
		for i := range items {
			items[i] = conversations[sent%len(conversations)]
			sent++
		}
		ingress.items <- items
	}
	for range atOnce / inMessage {
		send(inMessage)
	}
	for done := 0; done < b.N; {
		n := <-ingress.answered
		done += n
		send(n)
	}
}

var conversations = func() (items [256]*routerv1.RouteItem) {
	for i := range items {
		items[i] = conversation(i)
	}
	return items
}()

// routeStream is ingress' side of a stream.
type routeStream struct {
	grpc.ServerStream
	ctx      context.Context
	items    chan []*routerv1.RouteItem
	answered chan int
}

func (s *routeStream) Context() context.Context { return s.ctx }

func (s *routeStream) Recv() (*routerv1.RouteRequest, error) {
	select {
	case items := <-s.items:
		return &routerv1.RouteRequest{Items: items}, nil
	case <-s.ctx.Done():
		return nil, io.EOF
	}
}

func (s *routeStream) Send(resp *routerv1.RouteResponse) error {
	for _, a := range resp.GetAnswers() {
		if a.GetError() != nil {
			panic(a.GetError().GetMessage())
		}
	}
	s.answered <- len(resp.GetAnswers())
	return nil
}

// yesState commits everything.
type yesState struct{ statev1.StateServiceClient }

func (yesState) Commit(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[statev1.CommitRequest, statev1.CommitResponse], error) {
	return &commitStream{ctx: ctx, sent: make(chan *statev1.CommitRequest, messages)}, nil
}

type commitStream struct {
	grpc.ClientStream
	ctx  context.Context
	sent chan *statev1.CommitRequest
}

func (s *commitStream) Send(req *statev1.CommitRequest) error {
	s.sent <- req
	return nil
}

func (s *commitStream) Recv() (*statev1.CommitResponse, error) {
	select {
	case req := <-s.sent:
		resp := &statev1.CommitResponse{NowMs: time.Now().UnixMilli()}
		for _, item := range req.GetItems() {
			resp.Answers = append(resp.Answers, &statev1.CommitAnswer{Id: item.GetId(), Status: statev1.CommitStatus_COMMIT_STATUS_OK, Outcome: item.GetOutcome()})
		}
		return resp, nil
	case <-s.ctx.Done():
		return nil, io.EOF
	}
}
