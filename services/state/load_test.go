package state

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	errorsv1 "callrelay/gen/callrelay/errors/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/config"
	"callrelay/platform/redistest"
	"callrelay/platform/rpc"
	"callrelay/platform/run"
	"callrelay/platform/telemetry"
)

// TestMain runs state instead of tests where the environment says so: a process that tests can stop and kill.
func TestMain(m *testing.M) {
	if os.Getenv("STATE_PROCESS") == "" {
		os.Exit(m.Run())
	}
	run.Main(func(ctx context.Context) error {
		cfg, err := config.Load[Config]()
		if err != nil {
			return err
		}
		tel, err := telemetry.Start(ctx, "callrelay-state")
		if err != nil {
			return err
		}
		svc, err := New(cfg, tel)
		if err != nil {
			return err
		}
		return run.Serve(ctx, run.HostConfig{Name: "state", GRPCAddr: cfg.GRPCAddr, StopTimeout: 4 * time.Second, Telemetry: tel}, svc)
	})
}

// process is one state process.
type process struct {
	addr string
	conn *grpc.ClientConn
	env  []string
	cmd  *exec.Cmd
	gone chan struct{} // closed when it has ended

	mu    sync.Mutex
	lines []string // of its log
}

// startState runs a state process and waits until it serves.
func startState(t *testing.T, redisURL string, env ...string) *process {
	t.Helper()
	p := launchState(t, redisURL, env...)
	p.ready(t)
	return p
}

func launchState(t *testing.T, redisURL string, env ...string) *process {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	p := &process{addr: addr, env: append(os.Environ(), append([]string{"STATE_PROCESS=1", "STATE_GRPC_ADDR=" + addr, "METRICS_ADDR=",
		"REDIS_URL=" + redisURL, "LEASE_TIME=3s", "TIMEZONE=UTC"}, env...)...)}
	if p.conn, err = rpc.Dial(addr); err != nil {
		t.Fatal(err)
	}
	p.up(t)
	t.Cleanup(func() {
		_ = p.conn.Close()
		p.kill()
	})
	return p
}

func (p *process) up(t *testing.T) {
	t.Helper()
	p.cmd, p.gone = exec.Command(os.Args[0]), make(chan struct{})
	p.cmd.Env = p.env
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = p.cmd.Stdout
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func(cmd *exec.Cmd, gone chan struct{}) {
		defer close(gone)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.mu.Lock()
			p.lines = append(p.lines, lines.Text())
			p.mu.Unlock()
		}
		_ = cmd.Wait()
	}(p.cmd, p.gone)
}

func (p *process) signal(sig syscall.Signal) { _ = p.cmd.Process.Signal(sig) }

func (p *process) kill() { p.signal(syscall.SIGKILL); <-p.gone }

func (p *process) ready(t *testing.T) {
	t.Helper()
	redistest.Poll(t, 20*time.Second, "state answers", func() bool {
		select {
		case <-p.gone:
			t.Fatalf("state ended:\n%s", strings.Join(p.log(), "\n"))
		default:
		}
		return p.serves()
	})
}

// serves is what a balancer sees.
func (p *process) serves() bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	answer, _ := healthv1.NewHealthClient(p.conn).Check(ctx, &healthv1.HealthCheckRequest{})
	return answer.GetStatus() == healthv1.HealthCheckResponse_SERVING
}

func (p *process) log() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.lines...)
}

const crm = "topsii"

type deliveryKey struct {
	call   string
	number uint32
}

// neighbours are what router and upstream are to state: commits that are repeated verbatim until they are answered, and
// consumers that repeat their results until they are answered. They keep the ledger that the tests are about.
type neighbours struct {
	processes []*process
	end       context.CancelFunc
	working   sync.WaitGroup
	consuming sync.WaitGroup
	stop      context.CancelFunc

	mu       sync.Mutex
	asked    int                    // commits tried
	acked    map[deliveryKey]bool   // committed, state said so
	grants   map[deliveryKey]int    // how often a consumer got it
	done     map[deliveryKey]bool   // delivered, state said so
	pending  map[deliveryKey]string // delivered, state has not said so: newest token
	took     time.Duration          // how long the CRM takes
	due      map[deliveryKey]time.Time
	last     map[string]uint32 // per call, the newest delivery that a consumer got
	repeated int               // grants after the first
	wrong    []string
}

// startLoad commits calls of three deliveries each and delivers them, by several clients of each process.
func startLoad(t *testing.T, processes ...*process) *neighbours {
	return startSlowLoad(t, 0, processes...)
}

// startSlowLoad is startLoad with a CRM that takes its time.
func startSlowLoad(t *testing.T, took time.Duration, processes ...*process) *neighbours {
	n := &neighbours{processes: processes, took: took, due: map[deliveryKey]time.Time{}, acked: map[deliveryKey]bool{}, grants: map[deliveryKey]int{}, done: map[deliveryKey]bool{},
		pending: map[deliveryKey]string{}, last: map[string]uint32{}}
	loading, end := context.WithCancel(context.Background())
	consuming, stop := context.WithCancel(context.Background())
	n.end, n.stop = end, stop
	var pipes []*rpc.Pipe[*statev1.CommitItem, *statev1.CommitAnswer]
	for _, p := range processes {
		pipe := commitPipe(statev1.NewStateServiceClient(p.conn))
		pipes = append(pipes, pipe)
		n.consuming.Go(func() { pipe.Run(consuming) })
	}
	for c := range 6 {
		n.working.Go(func() { n.commits(loading, c, pipes) })
	}
	for c := range 2 * len(processes) {
		n.consuming.Go(func() { n.consume(consuming, c) })
	}
	t.Cleanup(func() { end(); stop(); n.working.Wait(); n.consuming.Wait() })
	return n
}

func commitPipe(client statev1.StateServiceClient) *rpc.Pipe[*statev1.CommitItem, *statev1.CommitAnswer] {
	return rpc.NewPipe(rpc.PipeConfig[*statev1.CommitItem, *statev1.CommitAnswer]{
		Open: func(ctx context.Context) (rpc.PipeStream[*statev1.CommitItem, *statev1.CommitAnswer], error) {
			stream, err := client.Commit(ctx)
			return rpc.PipeStream[*statev1.CommitItem, *statev1.CommitAnswer]{
				Send: func(items []*statev1.CommitItem) error { return stream.Send(&statev1.CommitRequest{Items: items}) },
				Recv: func() ([]*statev1.CommitAnswer, error) {
					resp, err := stream.Recv()
					return resp.GetAnswers(), err
				},
			}, err
		},
		SetID:    func(item *statev1.CommitItem, id uint64) { item.Id = id },
		ID:       func(a *statev1.CommitAnswer) uint64 { return a.GetId() },
		MaxBatch: 64, MaxMessages: 4, MaxItems: 64,
	})
}

// commits makes one call after the other.
func (n *neighbours) commits(ctx context.Context, client int, pipes []*rpc.Pipe[*statev1.CommitItem, *statev1.CommitAnswer]) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for c := 0; ; c++ {
		call, version := fmt.Sprintf("ameyo/%d-%d", client, c), ""
		for number := uint32(1); number <= 3; number++ {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			item := &statev1.CommitItem{Call: call, InputId: fmt.Sprint("i", number), ExpectedVersion: version, CommitId: fmt.Sprint("c", number),
				Deliveries: []*statev1.Delivery{{Number: number, Destination: crm, Payload: []byte("payload")}}}
			if version = item.CommitId; !n.commit(ctx, item, pipes, client) {
				return
			}
		}
	}
}

// commit repeats an item verbatim until its outcome is known.
func (n *neighbours) commit(ctx context.Context, item *statev1.CommitItem, pipes []*rpc.Pipe[*statev1.CommitItem, *statev1.CommitAnswer], at int) bool {
	key := deliveryKey{item.GetCall(), item.GetDeliveries()[0].GetNumber()}
	for ; ; at++ {
		n.mu.Lock()
		n.asked++
		n.mu.Unlock()
		try, cancel := context.WithTimeout(ctx, 4*time.Second)
		answer, err := pipes[at%len(pipes)].Do(try, proto.Clone(item).(*statev1.CommitItem))
		cancel()
		if err == nil && answer.GetError() == nil {
			n.mu.Lock()
			defer n.mu.Unlock()
			switch answer.GetStatus() {
			case statev1.CommitStatus_COMMIT_STATUS_OK, statev1.CommitStatus_COMMIT_STATUS_EARLIER:
				n.acked[key] = true
				return true
			}
			n.wrongLocked("%v: %s, an acknowledged commit before it is lost", key, answer.GetStatus())
			return false
		}
		if err == nil && answer.GetError().GetKind() != errorsv1.Kind_KIND_UNAVAILABLE {
			n.mu.Lock()
			n.wrongLocked("%v: %v instead of UNAVAILABLE", key, answer.GetError())
			n.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (n *neighbours) wrongLocked(format string, a ...any) {
	if len(n.wrong) < 20 {
		n.wrong = append(n.wrong, fmt.Sprintf(format, a...))
	}
}

// consume keeps a Lease stream, to one process after the other.
func (n *neighbours) consume(ctx context.Context, at int) {
	for ; ctx.Err() == nil; at++ {
		n.lease(ctx, statev1.NewStateServiceClient(n.processes[at%len(n.processes)].conn))
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// lease works over one stream until it breaks. What it delivers is answered over whatever stream comes.
func (n *neighbours) lease(ctx context.Context, client statev1.StateServiceClient) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Lease(ctx)
	if err != nil || stream.Send(&statev1.LeaseRequest{Destination: crm, Credit: 32}) != nil {
		return
	}
	responses := make(chan *statev1.LeaseResponse)
	go func() {
		defer close(responses)
		for {
			resp, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case responses <- resp:
			case <-ctx.Done():
				return
			}
		}
	}()
	var (
		lastID uint64
		onWay  = map[uint64]deliveryKey{}
		again  = time.NewTicker(300 * time.Millisecond) // results that no stream carries, or that were not taken
		hurry  = make(chan struct{}, 1)
	)
	defer again.Stop()
	for {
		req := &statev1.LeaseRequest{}
		select {
		case resp, ok := <-responses:
			if !ok {
				return
			}
			for _, a := range resp.GetAnswers() {
				n.answered(onWay[a.GetId()], a)
				delete(onWay, a.GetId())
			}
			for _, w := range resp.GetWork() {
				req.Credit++
				n.granted(w)
			}
			if len(resp.GetWork()) == 0 {
				continue
			}
		case <-again.C:
		case <-hurry:
		}
		carried := map[deliveryKey]bool{}
		for _, key := range onWay {
			carried[key] = true
		}
		n.mu.Lock()
		for key, token := range n.pending {
			if carried[key] || len(req.Results) == 64 || time.Now().Before(n.due[key]) {
				continue
			}
			lastID++
			onWay[lastID] = key
			req.Results = append(req.Results, &statev1.LeaseResult{Id: lastID, Call: key.call, Delivery: key.number, Destination: crm, Token: token,
				Attempt: &statev1.Attempt{Delivery: key.number, HttpCode: 200}, Result: &statev1.LeaseResult_Done{Done: &statev1.Done{}}})
		}
		n.mu.Unlock()
		if len(req.Results) == 64 {
			select {
			case hurry <- struct{}{}:
			default:
			}
		}
		if stream.Send(req) != nil {
			return
		}
	}
}

// granted is the moment at which upstream would send the request.
func (n *neighbours) granted(w *statev1.LeaseWork) {
	key := deliveryKey{w.GetCall(), w.GetDelivery().GetNumber()}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.grants[key]++
	if n.grants[key] > 1 {
		n.repeated++
		if !w.GetDelivery().GetUncertain() {
			n.wrongLocked("%v was leased a second time and is not marked uncertain", key)
		}
	} else if key.number != n.last[key.call]+1 {
		n.wrongLocked("%v came after delivery %d of its call", key, n.last[key.call])
	}
	if n.done[key] {
		n.wrongLocked("%v was leased again after its result was taken", key)
	}
	if before := (deliveryKey{key.call, key.number - 1}); key.number > 1 && !n.done[before] && n.pending[before] == "" {
		n.wrongLocked("%v came before %v was delivered", key, before)
	}
	n.last[key.call] = max(n.last[key.call], key.number)
	n.pending[key] = w.GetToken()
	n.due[key] = time.Now().Add(n.took)
}

func (n *neighbours) answered(key deliveryKey, a *statev1.LeaseAnswer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a.GetError() != nil {
		if a.GetError().GetKind() != errorsv1.Kind_KIND_UNAVAILABLE {
			n.wrongLocked("result of %v: %v instead of UNAVAILABLE", key, a.GetError())
		}
		return // it stays pending
	}
	n.done[key] = true
	delete(n.pending, key)
}

// settled waits for what was committed to be delivered.
func (n *neighbours) settled(t *testing.T) {
	t.Helper()
	n.end()
	n.working.Wait()
	open := 0
	deadline := time.After(60 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		n.mu.Lock()
		open = len(n.pending)
		example := deliveryKey{}
		for key := range n.acked {
			if !n.done[key] {
				open++
				example = key
			}
		}
		n.mu.Unlock()
		if open == 0 {
			break
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%d deliveries are not done, e.g. %v\n%s", open, example, n.report())
		}
	}
	n.stop()
	n.consuming.Wait()
	t.Log(n.report())
	if len(n.wrong) > 0 {
		t.Error(strings.Join(n.wrong, "\n"))
	}
}

func (n *neighbours) report() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return fmt.Sprintf("%d commits acknowledged in %d tries, %d delivered, %d leased more than once", len(n.acked), n.asked, len(n.done), n.repeated)
}

// progress waits for so many more acknowledged commits.
func (n *neighbours) progress(t *testing.T, more int) {
	t.Helper()
	count := func() int {
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(n.done)
	}
	start := count()
	redistest.Poll(t, 40*time.Second, "deliveries go on", func() bool { return count() >= start+more })
}
