package ingress

import (
	"context"
	"net/http"
	"testing"
	"time"

	"google.golang.org/grpc"

	routerv1 "callrelay/gen/callrelay/router/v1"
)

// quickRouter commits everything at once and allocates hardly anything of its own.
type quickRouter struct {
	routerv1.UnimplementedRouterServiceServer
}

func (quickRouter) Route(stream grpc.BidiStreamingServer[routerv1.RouteRequest, routerv1.RouteResponse]) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		resp := &routerv1.RouteResponse{}
		for _, item := range req.GetItems() {
			resp.Answers = append(resp.Answers, &routerv1.RouteAnswer{Id: item.GetId()})
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

// sink takes an answer as net/http does, which is not what is measured.
type sink struct {
	header http.Header
	status int
	body   []byte
}

func (s *sink) Header() http.Header { return s.header }

func (s *sink) WriteHeader(status int) { s.status = status }

func (s *sink) Write(b []byte) (int, error) {
	s.body = append(s.body, b...)
	return len(b), nil
}

// oneCallback returns a function that takes one call end from net/http's handler to router and back. What net/http itself does
// for a request is not in it, but for the request's context and a copy of the request (3 allocations); of the pipe, the handing
// over and the fake router it is about 16.
func oneCallback(tb testing.TB) func() {
	_, s := serveService(tb, quickRouter{}, map[string]string{})
	poll(tb, 5*time.Second, "there is a stream", s.pipe.Connected)
	const query = "unique_id=193416&customerId=4711&customerCRTId=d336-193416-vce-101&systemDisposition=CONNECTED&shareablePhonesDialIndex=0" +
		"&dialledPhone=03000001234&phoneList=%7B%22phoneList%22%3A%5B%2203000001234%22%5D%7D&userId=sim_sv7&callConnectedTime=2026%2F03%2F06+10%3A15%3A30+%2B0900"
	template, err := http.NewRequest(http.MethodGet, "http://relay/index.php?"+query, nil)
	if err != nil {
		tb.Fatal(err)
	}
	template.RemoteAddr = "192.0.2.7:40000"
	w := &sink{header: http.Header{}}
	return func() {
		clear(w.header)
		w.status, w.body = http.StatusOK, w.body[:0]
		ctx, cancel := context.WithCancel(context.Background())
		s.http.Handler.ServeHTTP(w, template.WithContext(ctx))
		cancel()
		if w.status != http.StatusOK {
			tb.Fatalf("%d %s", w.status, w.body)
		}
	}
}

// What one callback allocates on its way through ingress; the pipe and the rest of what oneCallback names are in it. The best
// of three: on a machine that stands still callbacks are spooled, which takes more.
func TestAllocations(t *testing.T) {
	one := oneCallback(t)
	got := min(testing.AllocsPerRun(100, one), testing.AllocsPerRun(100, one), testing.AllocsPerRun(100, one))
	if got > 87 { // of them one is the race detector's
		t.Errorf("%v allocations to take a callback to router and back, at most 87 wanted", got)
	}
}

// go test -run xxx -bench Callback -benchmem callrelay/services/ingress
func BenchmarkCallback(b *testing.B) {
	one := oneCallback(b)
	b.ReportAllocs()
	for b.Loop() {
		one()
	}
}
