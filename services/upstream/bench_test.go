package upstream_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"google.golang.org/grpc"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/config"
	"callrelay/platform/run"
	"callrelay/platform/telemetry"
	"callrelay/services/upstream"
)

// manyDeliveries is a state in the same process: it leases one delivery after the other, inFlight at once, each in a message of its own, as
// commits bring them, and takes their results. What it sends is made before, so that only upstream is measured.
type manyDeliveries struct {
	oneDelivery
	inFlight int
	work     []*statev1.LeaseResponse
	answers  []*statev1.LeaseAnswer
	begin    chan struct{}
	done     chan struct{}
}

func newManyDeliveries(n, inFlight int) *manyDeliveries {
	s := &manyDeliveries{inFlight: inFlight, begin: make(chan struct{}), done: make(chan struct{})}
	for i := range n {
		s.answers = append(s.answers, &statev1.LeaseAnswer{Id: uint64(i + 1)})
		s.work = append(s.work, &statev1.LeaseResponse{Work: []*statev1.LeaseWork{{Call: fmt.Sprint("ameyo/", i), Token: fmt.Sprint("0-", i), AgeMs: 1, WallAgeMs: 1,
			Delivery: &statev1.Delivery{Number: 1, Destination: "topsii", Endpoint: "createCallEnd", RequestId: fmt.Sprint("request-", i), Payload: []byte(
				`{"predictiveCallCreateCallEnd":{"callId":193416,"callStartTime":"2026-04-01 10:00:00.000","callEndTime":"2026-04-01 10:01:00.000",` +
					`"predictiveStaffId":"agent7","targetTel":"03000000001","errorInfo":""}}`)}}}})
	}
	return s
}

func (s *manyDeliveries) Register(r grpc.ServiceRegistrar) { statev1.RegisterStateServiceServer(r, s) }

func (s *manyDeliveries) Lease(stream grpc.BidiStreamingServer[statev1.LeaseRequest, statev1.LeaseResponse]) error {
	var leased, credit, taken int
	more := func() error {
		for credit > 0 && leased < len(s.work) && leased-taken < s.inFlight {
			if err := stream.Send(s.work[leased]); err != nil {
				return err
			}
			leased++
			credit--
		}
		return nil
	}
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if leased == 0 {
			<-s.begin
		}
		credit += int(request.GetCredit())
		if n := len(request.GetResults()); n > 0 {
			for i, r := range request.GetResults() {
				s.answers[taken+i].Id = r.GetId()
			}
			if err := stream.Send(&statev1.LeaseResponse{Answers: s.answers[taken : taken+n : taken+n]}); err != nil {
				return err
			}
			if taken += n; taken == len(s.work) {
				close(s.done)
			}
		}
		if err := more(); err != nil {
			return err
		}
	}
}

// quickCRM answers every request with success, as TopS.II words it, and allocates nothing for that.
func quickCRM(tb testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	const body = `{"count":-1,"limit":-1,"offset":-1,"result":"success","service":"/fasthelp5-server/service/callmanage/predictiveCallApiService/createCallEnd.json","size":1}`
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: application/json;charset=UTF-8\r\nDate: Wed, 01 Apr 2026 10:00:00 GMT\r\nContent-Length: " +
		strconv.Itoa(len(body)) + "\r\n\r\n" + body)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				r := bufio.NewReader(conn)
				length := 0
				for {
					line, err := r.ReadSlice('\n')
					if err != nil {
						return
					}
					if n, is := bytes.CutPrefix(line, []byte("Content-Length: ")); is {
						length = 0
						for _, c := range bytes.TrimSpace(n) {
							length = 10*length + int(c-'0')
						}
					}
					if len(line) > 2 {
						continue
					}
					if _, err := r.Discard(length); err != nil {
						return
					}
					if _, err := conn.Write(answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

// One delivery from its lease over TopS.II's answer to state's answer to its result, under load and one at a time. state and
// TopS.II are fakes that allocate next to nothing; what they take of the time is in it.
func BenchmarkDelivery(b *testing.B) {
	for _, inFlight := range []int{1, 8} {
		b.Run(fmt.Sprint("inflight=", inFlight), func(b *testing.B) {
			var before, after syscall.Rusage
			deliver(b, b.N, inFlight, func() {
				_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
				b.ResetTimer()
			})
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
			used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(used)/float64(b.N), "cpu-ns/op")
		})
	}
}

// What a delivery allocates, more than half of it in net/http.
func TestAllocations(t *testing.T) {
	const n = 2000
	var before, after runtime.MemStats
	deliver(t, n, 8, func() { runtime.ReadMemStats(&before) })
	runtime.ReadMemStats(&after)
	if got := (after.Mallocs - before.Mallocs) / n; got > 90 { // some are the fakes' and of beginning and end
		t.Errorf("%d allocations for a delivery, at most 90 wanted", got)
	}
}

// deliver runs n deliveries; begin is called when everything is ready for them.
func deliver(tb testing.TB, n, inFlight int, begin func()) {
	cfg, err := config.LoadFrom[upstream.Config](map[string]string{"ENABLE_REAL_SEND": "true", "TEST_BASE_URL": quickCRM(tb), "TEST_API_KEY": key32})
	if err != nil {
		tb.Fatal(err)
	}
	group := telemetry.NewGroup(nil)
	defer func() { _ = group.Shutdown(context.Background()) }()
	fake := newManyDeliveries(n, inFlight)
	state, err := run.Start(run.HostConfig{Name: "state"}, fake)
	if err != nil {
		tb.Fatal(err)
	}
	svc, err := upstream.New(cfg, group.Service("callrelay-upstream"), state.Conn())
	if err != nil {
		tb.Fatal(err)
	}
	host, err := run.Start(run.HostConfig{Name: "upstream"}, svc)
	if err != nil {
		tb.Fatal(err)
	}
	begin()
	close(fake.begin)
	<-fake.done
	if b, is := tb.(*testing.B); is {
		b.StopTimer()
	}
	if err := host.Stop(); err != nil {
		tb.Error(err)
	}
	if err := state.Stop(); err != nil {
		tb.Error(err)
	}
}
