package delivery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	errorsv1 "callrelay/gen/callrelay/errors/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/telemetry"
	"callrelay/services/upstream/internal/retry"
)

// fakeState leases and takes results as state promises to: one head at a time per call, results from the current token
// only (done from any), each answered. Faults are set by the tests, which hold mu except while they let time pass.
type fakeState struct {
	statev1.UnimplementedStateServiceServer

	mu      *sync.Mutex
	streams map[*fakeStream]bool
	lines   []*fakeDelivery // in order; the first unfinished one of a call is its head
	tokens  int
	hold    *statev1.HoldDestination
	probing bool

	// What the tests look at.
	opened   int
	credits  []int32 // of each message that had any
	results  []*statev1.LeaseResult
	messages [][]*statev1.LeaseResult
	standing *statev1.Standing // the last one
	stands   int               // how many were told

	shares []*statev1.ShareRequest

	// Faults.
	share         int // what Share gives; 0 = all that is wanted, -1 = nothing
	refuseShares  bool
	takenName     string // another process goes by it
	refuseStreams bool
	swallow       int // so many messages with results are applied or not (applySwallowed), and the stream is cut
	applySwallow  bool
	refuseResults int // so many results are answered with an error
}

type fakeStream struct {
	credit int
	out    chan *statev1.LeaseResponse
}

// fakeDelivery is a delivery and what state knows of it.
type fakeDelivery struct {
	work   *statev1.LeaseWork
	made   time.Time
	due    time.Time
	paused time.Duration
	leased bool
	final  string
	probe  bool
}

// add queues a delivery of a call.
func (s *fakeState) add(call string, change ...func(*statev1.Delivery)) *fakeDelivery {
	number := uint32(1)
	for _, f := range s.lines {
		if f.work.Call == call {
			number++
		}
	}
	d := &statev1.Delivery{Number: number, Destination: "crm", Endpoint: "createCallEnd", Payload: []byte(call), RequestId: "request-of-" + call}
	for _, c := range change {
		c(d)
	}
	f := &fakeDelivery{work: &statev1.LeaseWork{Call: call, Delivery: d}, made: time.Now(), due: time.Now()}
	s.lines = append(s.lines, f)
	s.pump()
	return f
}

// lose gives a lease back, as after LEASE_TIME.
func (s *fakeState) lose(f *fakeDelivery) {
	f.leased, f.work.Delivery.Uncertain = false, true
	f.work.Delivery.Attempts++
	s.pump()
}

// pump grants what may go to who wants it.
func (s *fakeState) pump() {
	busy := map[string]bool{}
	for _, f := range s.lines {
		if f.final != "" {
			continue
		}
		if busy[f.work.Call] {
			continue
		}
		busy[f.work.Call] = true
		if f.leased || time.Now().Before(f.due) || s.hold != nil && !s.probing {
			continue
		}
		for st := range s.streams {
			if st.credit == 0 {
				continue
			}
			st.credit--
			s.tokens++
			f.leased, f.probe = true, s.probing
			f.work.Token = fmt.Sprintf("token-%d", s.tokens)
			f.work.AgeMs = (time.Since(f.made) - f.paused).Milliseconds()
			f.work.WallAgeMs = time.Since(f.made).Milliseconds()
			f.work.HoldEpoch = 7
			f.work.Followed = slices.ContainsFunc(s.lines, func(o *fakeDelivery) bool {
				return o != f && o.final == "" && o.work.Call == f.work.Call && o.work.Delivery.Number > f.work.Delivery.Number
			})
			s.probing = false
			st.out <- &statev1.LeaseResponse{Work: []*statev1.LeaseWork{cloneOf(f.work)}}
			break
		}
	}
}

func (s *fakeState) pumpIn(d time.Duration) {
	time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.pump()
	})
}

// take applies a result; superseded as state says it.
func (s *fakeState) take(r *statev1.LeaseResult) (superseded bool) {
	i := slices.IndexFunc(s.lines, func(f *fakeDelivery) bool { return f.work.Call == r.Call && f.work.Delivery.Number == r.Delivery })
	if i < 0 {
		return true
	}
	f := s.lines[i]
	if f.final != "" || r.GetDone() == nil && (!f.leased || f.work.Token != r.Token) {
		return true
	}
	f.leased = false
	d := f.work.Delivery
	d.Uncertain = d.Uncertain || r.Attempt.GetUncertain()
	switch v := r.Result.(type) {
	case *statev1.LeaseResult_Done:
		f.final = "done"
		d.Attempts++
		if f.probe {
			s.hold = nil
		}
	case *statev1.LeaseResult_End:
		f.final = v.End.State.String()
	case *statev1.LeaseResult_Hold:
		s.hold = v.Hold
		time.AfterFunc(time.Duration(v.Hold.ProbeInMs)*time.Millisecond, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.probing = true
			s.pump()
		})
	case *statev1.LeaseResult_Retry:
		if !v.Retry.Uncounted {
			d.Attempts++
		}
		f.paused += time.Duration(v.Retry.PausedMs) * time.Millisecond
		in := time.Duration(v.Retry.InMs) * time.Millisecond
		f.due = time.Now().Add(in)
		s.pumpIn(in)
	}
	s.pump()
	return false
}

func (s *fakeState) Lease(stream grpc.BidiStreamingServer[statev1.LeaseRequest, statev1.LeaseResponse]) error {
	first := true
	st := &fakeStream{out: make(chan *statev1.LeaseResponse, 10_000)}
	s.mu.Lock()
	refused := s.refuseStreams
	s.opened++
	s.streams[st] = true
	s.mu.Unlock()
	var sender sync.WaitGroup
	sender.Go(func() {
		for m := range st.out {
			_ = stream.Send(m)
		}
	})
	defer sender.Wait()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.streams, st)
		close(st.out)
	}()
	if refused {
		return status.Error(codes.Unavailable, "no Redis")
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if first != (m.Destination == "crm") {
			return status.Errorf(codes.InvalidArgument, "destination %q in message that is first: %v", m.Destination, first)
		}
		first = false
		if m.Standing != nil {
			s.mu.Lock()
			s.standing = m.Standing
			s.stands++
			s.mu.Unlock()
		}
		if err := s.message(st, m); err != nil {
			return err
		}
	}
}

func (s *fakeState) message(st *fakeStream, m *statev1.LeaseRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.Credit != 0 {
		s.credits = append(s.credits, m.Credit)
	}
	st.credit += int(m.Credit)
	var answers []*statev1.LeaseAnswer
	if len(m.Results) > 0 {
		s.messages = append(s.messages, m.Results)
	}
	cut := len(m.Results) > 0 && s.swallow > 0
	if cut {
		s.swallow--
	}
	for _, r := range m.Results {
		s.results = append(s.results, r)
		if s.refuseResults > 0 {
			s.refuseResults--
			answers = append(answers, &statev1.LeaseAnswer{Id: r.Id, Error: &errorsv1.Error{Kind: errorsv1.Kind_KIND_UNAVAILABLE, Message: "Redis is busy"}})
			continue
		}
		if !cut || s.applySwallow {
			answers = append(answers, &statev1.LeaseAnswer{Id: r.Id, Superseded: s.take(r)})
		}
	}
	if cut {
		return status.Error(codes.Unavailable, "cut")
	}
	if len(answers) > 0 {
		st.out <- &statev1.LeaseResponse{Answers: answers}
	}
	s.pump()
	return nil
}

func (s *fakeState) Share(_ context.Context, r *statev1.ShareRequest) (*statev1.ShareResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shares = append(s.shares, r)
	switch {
	case s.refuseShares:
		return nil, status.Error(codes.Unavailable, "no Redis")
	case s.takenName == r.GetName():
		return &statev1.ShareResponse{Taken: true}, nil
	case s.share != 0:
		return &statev1.ShareResponse{Share: int32(max(s.share, 0))}, nil
	case !r.GetWanted():
		return &statev1.ShareResponse{}, nil
	}
	return &statev1.ShareResponse{Share: r.GetLimit()}, nil
}

// finals says how each delivery ended; "" is not yet.
func (s *fakeState) finals() map[string]string {
	out := map[string]string{}
	for _, f := range s.lines {
		out[fmt.Sprintf("%s/%d", f.work.Call, f.work.Delivery.Number)] = f.final
	}
	return out
}

// fakeSender answers by a function and watches that no two requests of a delivery run at once.
type fakeSender struct {
	answer func(ctx context.Context, payload string) Answer

	mu      *sync.Mutex
	sent    []string
	running map[string]int
	most    int // requests at the same time, of any
	twice   []string
}

func (f *fakeSender) URL(endpoint string) string { return "http://crm/" + endpoint }

func (f *fakeSender) Send(ctx context.Context, _ string, payload []byte) Answer {
	p := string(payload)
	f.mu.Lock()
	f.sent = append(f.sent, p)
	f.running[p]++
	total := 0
	for _, n := range f.running {
		total += n
	}
	f.most = max(f.most, total)
	if f.running[p] > 1 {
		f.twice = append(f.twice, p)
	}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.running[p]--
	}()
	if f.answer == nil {
		return Answer{Outcome: Delivered, HTTPCode: 200, Result: "success"}
	}
	return f.answer(ctx, p)
}

// rig is a consumer between a fake state, over real gRPC in memory, and a fake CRM, in a bubble of fake time.
type rig struct {
	t        *testing.T
	mu       *sync.Mutex
	state    *fakeState
	crm      *fakeSender
	consumer *Consumer
	stop     func()
	ended    chan struct{}
}

func testConfig() Config {
	return Config{
		Destination: "crm",
		Name:        "host/127.0.0.1:9083",
		Workers:     4,
		LeaseTime:   45 * time.Second,
		SendTimeout: 30 * time.Second,
		StopTimeout: 4 * time.Second,
		Policy: Policy{
			MaxAttempts: 20, AppErrorAttempts: 5, MaxAge: 24 * time.Hour,
			Backoff:       retry.Backoff{Base: time.Second, Max: 5 * time.Minute},
			ProbeInterval: 30 * time.Second,
		},
		Breaker: BreakerSettings{Failures: 5, Open: 10 * time.Second, Probes: 1},
	}
}

// run makes a rig and calls body in its bubble; afterwards it stops the consumer and checks what holds in every test.
func run(t *testing.T, cfg Config, body func(*rig)) {
	t.Helper()
	runWith(t, cfg, telemetry.NewGroup(nil).Service("upstream-test"), body)
}

func runWith(t *testing.T, cfg Config, tel *telemetry.Telemetry, body func(*rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		mu := new(sync.Mutex)
		r := &rig{
			t:     t,
			mu:    mu,
			state: &fakeState{mu: mu, streams: map[*fakeStream]bool{}},
			crm:   &fakeSender{mu: mu, running: map[string]int{}},
			ended: make(chan struct{}),
		}
		listener := bufconn.Listen(1 << 20)
		server := grpc.NewServer()
		statev1.RegisterStateServiceServer(server, r.state)
		go func() { _ = server.Serve(listener) }()
		conn, err := grpc.NewClient("passthrough:///state", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithIdleTimeout(0),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		r.consumer, err = New(cfg, statev1.NewStateServiceClient(conn), r.crm, tel)
		if err != nil {
			t.Fatal(err)
		}
		r.consumer.random = func() float64 { return 1 }
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			defer close(r.ended)
			r.consumer.Run(ctx)
		}()
		r.stop = sync.OnceFunc(func() {
			mu.Unlock()
			cancel()
			<-r.ended
			mu.Lock()
		})
		mu.Lock()
		r.after(0)
		body(r)
		r.stop()
		mu.Unlock()
		_ = conn.Close()
		server.Stop()
		for _, p := range r.crm.twice {
			t.Errorf("two requests for %s ran at the same time", p)
		}
	})
}

// after lets fake time pass until everything has come to rest.
func (r *rig) after(d time.Duration) {
	r.mu.Unlock()
	defer r.mu.Lock()
	<-time.After(d)
	synctest.Wait()
}

// final checks how deliveries ended; "" is not at all.
func (r *rig) final(want map[string]string) {
	r.t.Helper()
	got := r.state.finals()
	for name, w := range want {
		if got[name] != w {
			r.t.Errorf("%s ended as %q, want %q", name, got[name], w)
		}
	}
}

func (r *rig) sends(want int) {
	r.t.Helper()
	if got := len(r.crm.sent); got != want {
		r.t.Errorf("%d requests were made, want %d: %v", got, want, r.crm.sent)
	}
}

func cloneOf(w *statev1.LeaseWork) *statev1.LeaseWork { return proto.Clone(w).(*statev1.LeaseWork) }
