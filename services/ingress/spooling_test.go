package ingress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	callbackv1 "callrelay/gen/callrelay/callback/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
	"callrelay/platform/errkind"
	"callrelay/platform/telemetry"
)

func end(call, n int) string {
	return fmt.Sprintf("/index.php?unique_id=%d&customerId=%d&systemDisposition=BUSY", call, n)
}

func poll(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	end := time.After(limit)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// switched is a router behind which state can be taken away.
type switched struct {
	fakeRouter
	gone atomic.Bool
	// refuse is asked of what is committed.
	refuse func(*routerv1.RouteItem) *errkind.Error

	done      sync.Mutex
	committed []*routerv1.RouteItem
}

func newSwitched() *switched {
	s := &switched{refuse: func(*routerv1.RouteItem) *errkind.Error { return nil }}
	s.answer = func(item *routerv1.RouteItem) *routerv1.RouteAnswer {
		if s.gone.Load() {
			return nil
		}
		s.done.Lock()
		defer s.done.Unlock()
		s.committed = append(s.committed, item)
		return &routerv1.RouteAnswer{Error: s.refuse(item).Proto()}
	}
	return s
}

func (s *switched) items() []*routerv1.RouteItem {
	s.done.Lock()
	defer s.done.Unlock()
	return append([]*routerv1.RouteItem(nil), s.committed...)
}

// Without an answer in the ack budget callbacks are acknowledged all the same; after a few, without waiting; and are committed
// later, once each, under the ids that were given out and in order per call, with their age.
func TestSpool(t *testing.T) {
	f := newSwitched()
	f.gone.Store(true)
	const budget = 2 * time.Second
	front, s := serveService(t, &f.fakeRouter, map[string]string{"ACK_BUDGET": budget.String()})
	poll(t, 5*time.Second, "there is a stream", s.pipe.Connected)
	ids := map[string]string{}
	var slow int
	for i := range 60 {
		began := time.Now()
		resp, body := do(t, "GET", front.URL+end(i%3, i), nil)
		took := time.Since(began)
		if resp.StatusCode != 200 || took > budget {
			t.Fatalf("callback %d: %d %s after %s", i, resp.StatusCode, body, took)
		}
		if took > budget/2 {
			slow++
		}
		ids[resp.Header.Get("X-Request-Id")] = fmt.Sprint(i)
	}
	if slow > missesInARow {
		t.Errorf("%d callbacks waited for the whole budget, want at most %d", slow, missesInARow)
	}
	began := time.Now()
	if resp, _ := do(t, "GET", front.URL+"/index.php?unique_id=x", nil); resp.StatusCode != 400 || time.Since(began) > 200*time.Millisecond {
		t.Errorf("a malformed one: %d after %s", resp.StatusCode, time.Since(began))
	}
	if err := s.Ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}

	f.gone.Store(false)
	poll(t, 20*time.Second, "the spool is empty", func() bool { return s.spool.spool.Empty() && len(f.items()) == 61 })
	last := map[string]int{}
	refused := 0
	for _, item := range f.items() {
		if item.GetRefused() != nil {
			refused++
			continue
		}
		n, known := ids[item.GetRequestId()]
		if !known {
			t.Errorf("%s came twice, or was never acknowledged", item.GetRequestId())
			continue
		}
		delete(ids, item.GetRequestId())
		call := item.GetAmeyoCallEnd()
		if call.GetCustomerId() != n || !item.GetSpooled() || item.GetAgeMs() < 1 || !strings.Contains(string(item.GetQuery()), "customerId="+n) {
			t.Errorf("callback %s arrived as %v", n, item)
		}
		var number int
		if _, err := fmt.Sscan(n, &number); err != nil || last[call.GetUniqueId()] > number {
			t.Errorf("call %s: %d after %d", call.GetUniqueId(), number, last[call.GetUniqueId()])
		}
		last[call.GetUniqueId()] = number
	}
	if len(ids) != 0 || refused != 1 {
		t.Errorf("not committed: %v; %d refused requests recorded", ids, refused)
	}

	// It is over: callbacks go to router at once.
	poll(t, 5*time.Second, "router counts as there", func() bool { return !s.spool.away.Load() })
	if resp, _ := do(t, "GET", front.URL+end(1, 100), nil); resp.StatusCode != 200 || f.last().GetSpooled() {
		t.Errorf("%d, spooled %t", resp.StatusCode, f.last().GetSpooled())
	}
}

// While something of a call is spooled its callbacks go behind it; those of other calls do not.
func TestOnlyTheCallGoesBehindTheSpool(t *testing.T) {
	stuck := atomic.Bool{}
	stuck.Store(true)
	f := newSwitched()
	inner := f.answer
	f.answer = func(item *routerv1.RouteItem) *routerv1.RouteAnswer {
		if end := item.GetAmeyoCallEnd(); end.GetUniqueId() == "1" && end.GetCustomerId() == "0" && stuck.Load() {
			return &routerv1.RouteAnswer{Error: errkind.Unavailable(nil, "one node is gone").Proto()}
		}
		return inner(item)
	}
	front, s := serveService(t, &f.fakeRouter, map[string]string{})
	for i := range 3 {
		do(t, "GET", front.URL+end(1, i), nil)
		do(t, "GET", front.URL+end(2, i), nil)
	}
	for _, item := range f.items() {
		if item.GetAmeyoCallEnd().GetUniqueId() != "2" || item.GetSpooled() {
			t.Errorf("committed: %v", item)
		}
	}
	if st := s.spool.spool.Stats(); st.Items != 3 || len(f.items()) != 3 {
		t.Errorf("%+v, %d committed", st, len(f.items()))
	}
	stuck.Store(false)
	poll(t, 10*time.Second, "the spool is empty", s.spool.spool.Empty)
	var order []string
	for _, item := range f.items()[3:] {
		order = append(order, item.GetAmeyoCallEnd().GetCustomerId())
	}
	if strings.Join(order, "") != "012" {
		t.Errorf("committed in the order %v", order)
	}
}

// Without any stream nobody waits; what is refused late leaves the spool and is counted.
func TestRouterGone(t *testing.T) {
	f := newSwitched()
	f.refuse = func(item *routerv1.RouteItem) *errkind.Error {
		if item.GetAmeyoCallEnd().GetUniqueId() == "666" {
			return errkind.Invalid("unique_id", "no")
		}
		return nil
	}
	f.gone.Store(true)
	front, s := serveService(t, &f.fakeRouter, map[string]string{})
	s.spool.away.Store(true) // as watch does when there is no stream
	for i := range 20 {
		if resp, _ := do(t, "GET", front.URL+end([]int{666, i}[i%2], i), nil); resp.StatusCode != 200 {
			t.Errorf("%d", resp.StatusCode)
		}
	}
	f.gone.Store(false)
	poll(t, 10*time.Second, "the spool is empty", s.spool.spool.Empty)
	if got := len(f.items()); got != 20 {
		t.Errorf("%d came to router", got)
	}
	w := httptest.NewRecorder()
	s.tel.MetricsHandler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{"callrelay_spool_refused_total", "callrelay_spool_items"} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %s in\n%s", want, w.Body.String())
		}
	}
}

// A full spool refuses and says when to come back; what it has taken is delivered. Refused requests fill half of it at most.
func TestFull(t *testing.T) {
	f := newSwitched()
	f.gone.Store(true)
	front, s := serveService(t, &f.fakeRouter, map[string]string{"SPOOL_MAX_ITEMS": "10"})
	s.spool.away.Store(true)
	for range 8 {
		do(t, "GET", front.URL+"/index.php?unique_id=x", nil)
	}
	poll(t, 5*time.Second, "refused requests fill 5 of 10, and the others are lost", func() bool { return s.refused.unrecorded.count() == 3 })
	if n := s.spool.spool.Stats().Items; n != 5 {
		t.Errorf("refused requests fill %d of 10", n)
	}
	taken := 0
	for i := range 8 {
		resp, body := do(t, "GET", front.URL+end(i, i), nil)
		switch {
		case resp.StatusCode == 200:
			taken++
		case resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(body, `"success":false`):
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	}
	if taken != 5 || s.Ready() == nil {
		t.Errorf("%d callbacks were taken, want 5; ready: %v", taken, s.Ready())
	}
	if told := s.callbacks.metrics.notAcknowledged.count(); told != 3 {
		t.Errorf("%d are told not to be acknowledged, want 3", told)
	}
	f.gone.Store(false)
	poll(t, 10*time.Second, "the spool is empty", s.spool.spool.Empty)
	if len(f.items()) != 10 {
		t.Errorf("%d were delivered", len(f.items()))
	}
	if resp, _ := do(t, "GET", front.URL+end(1, 9), nil); resp.StatusCode != 200 || s.Ready() != nil {
		t.Errorf("afterwards: %d, %v", resp.StatusCode, s.Ready())
	}
}

// A router that says at once that it cannot decide a callback now is not away: others go to it as before.
func TestOneThatHasToWait(t *testing.T) {
	f := newSwitched()
	f.refuse = func(item *routerv1.RouteItem) *errkind.Error {
		if item.GetAmeyoCallEnd().GetUniqueId() != "9" {
			return errkind.Unavailable(nil, "not now")
		}
		return nil
	}
	front, s := serveService(t, &f.fakeRouter, map[string]string{})
	poll(t, 5*time.Second, "there is a stream", s.pipe.Connected)
	for i := range 2 * missesInARow {
		if resp, body := do(t, "GET", front.URL+end(i, i), nil); resp.StatusCode != 200 {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	}
	if st := s.spool.spool.Stats(); st.Items != 2*missesInARow {
		t.Errorf("%d items wait, want %d", st.Items, 2*missesInARow)
	}
	if resp, _ := do(t, "GET", front.URL+end(9, 9), nil); resp.StatusCode != 200 || s.spool.away.Load() {
		t.Errorf("%d, away %t", resp.StatusCode, s.spool.away.Load())
	}
	if !slices.ContainsFunc(f.items(), func(item *routerv1.RouteItem) bool {
		return item.GetAmeyoCallEnd().GetUniqueId() == "9" && !item.GetSpooled()
	}) {
		t.Error("a callback of another call went to the spool")
	}
}

// A client that left is no sign that router is away, and what it sent is not spooled: it has no answer and sends again.
func TestClientLeaves(t *testing.T) {
	f := newSwitched()
	f.gone.Store(true)
	front, s := serveService(t, &f.fakeRouter, map[string]string{})
	poll(t, 5*time.Second, "there is a stream", s.pipe.Connected)
	for i := range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		req, _ := http.NewRequestWithContext(ctx, "GET", front.URL+end(i, i), nil)
		if _, err := http.DefaultClient.Do(req); err == nil {
			t.Error("an answer")
		}
		cancel()
	}
	poll(t, 5*time.Second, "nothing is under way", func() bool { return s.load.now.Load() == 0 })
	if !s.spool.spool.Empty() || s.spool.away.Load() {
		t.Errorf("spooled %+v, away %t", s.spool.spool.Stats(), s.spool.away.Load())
	}
}

// More requests than are allowed at once are told so at once; nothing is kept of them.
func TestTooManyRequests(t *testing.T) {
	release := make(chan struct{})
	f := &fakeRouter{answer: func(*routerv1.RouteItem) *routerv1.RouteAnswer { <-release; return &routerv1.RouteAnswer{} }}
	front, s := serveService(t, f, map[string]string{"INGRESS_MAX_REQUESTS": "8", "ACK_BUDGET": "1m"})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if resp, _ := do(t, "GET", front.URL+end(i, i), nil); resp.StatusCode != 200 {
				t.Errorf("%d", resp.StatusCode)
			}
		})
	}
	poll(t, 5*time.Second, "all are under way", func() bool { return s.load.now.Load() == 8 })
	resp, _ := do(t, "GET", front.URL+end(9, 9), nil)
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("%d", resp.StatusCode)
	}
	if resp, _ := do(t, "GET", front.URL+"/readyz", nil); resp.StatusCode != 200 {
		t.Errorf("readyz: %d", resp.StatusCode)
	}
	if _, err := s.ameyo.CallStart(t.Context(), &callbackv1.AmeyoCallStart{}); err == nil {
		t.Error("one over gRPC was taken")
	}
	for _, source := range []string{"ameyo.call_end", "ameyo.call_start"} {
		if want := `callrelay_callbacks_total{callrelay_outcome="unavailable",callrelay_source="` + source + `",service_name="test"} 1`; !strings.Contains(metricsOf(s), want) {
			t.Errorf("no %s", want)
		}
	}
	close(release)
	wg.Wait()
}

// More than router can take: acknowledgements slow down, then the spool takes over, then 503; what was acknowledged is
// committed, once.
func TestOverload(t *testing.T) {
	rate := time.NewTicker(4 * time.Millisecond)
	defer rate.Stop()
	f := newSwitched()
	inner := f.answer
	f.answer = func(item *routerv1.RouteItem) *routerv1.RouteAnswer { <-rate.C; return inner(item) }
	front, s := serveService(t, &f.fakeRouter, map[string]string{"ACK_BUDGET": "400ms", "SPOOL_MAX_ITEMS": "200", "INGRESS_MAX_REQUESTS": "96"})
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 128}}
	defer client.CloseIdleConnections()
	var (
		mu    sync.Mutex
		acked = map[string]bool{}
		full  atomic.Int64
		next  atomic.Int64
		wg    sync.WaitGroup
	)
	for range 128 { // 96 at once take router 384 ms, of which a callback waits 300
		wg.Go(func() {
			for {
				n := int(next.Add(1))
				if n > 4000 {
					return
				}
				began := time.Now()
				resp, err := client.Get(front.URL + end(n, n))
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				switch {
				case time.Since(began) > 10*time.Second: // of 400 ms; the machine is shared
					t.Errorf("answered after %s", time.Since(began))
				case resp.StatusCode == 200:
					mu.Lock()
					acked[resp.Header.Get("X-Request-Id")] = true
					mu.Unlock()
				case resp.StatusCode == 503 && resp.Header.Get("Retry-After") != "":
					full.Add(1)
				default:
					t.Errorf("answered %d", resp.StatusCode)
				}
			}
		})
	}
	wg.Wait()
	poll(t, 30*time.Second, "the spool is empty", s.spool.spool.Empty)
	direct, spooled := 0, 0
	seen := map[string]int{}
	for _, item := range f.items() {
		if seen[item.GetRequestId()]++; item.GetSpooled() {
			spooled++
		} else {
			direct++
		}
	}
	for id := range acked {
		if seen[id] == 0 {
			t.Errorf("%s was acknowledged and never came to router", id)
		}
	}
	if direct == 0 || spooled == 0 || full.Load() == 0 {
		t.Errorf("%d direct, %d spooled, %d refused: want some of each", direct, spooled, full.Load())
	}
	if told := s.callbacks.metrics.notAcknowledged.count(); told != full.Load() {
		t.Errorf("%d were answered 503, %d are told", full.Load(), told)
	}
	t.Logf("%d acknowledged, %d answered 503; %d committed at once, %d from the spool", len(acked), full.Load(), direct, spooled)
}

// A router whose answers are late, one after the other, has more than it can do: who comes next does not wait in its line, but
// is spooled, until its answers are quick again. Where the spool cannot take it, it waits.
func TestLateAnswers(t *testing.T) {
	f := newSwitched()
	inner, late := f.answer, make(chan struct{})
	var stuck atomic.Bool
	f.answer = func(item *routerv1.RouteItem) *routerv1.RouteAnswer {
		switch call := item.GetAmeyoCallEnd().GetUniqueId(); {
		case len(call) == 2:
			<-late
		case call == "500" && stuck.Load():
			return nil
		}
		return inner(item)
	}
	front, s := serveService(t, &f.fakeRouter, map[string]string{"ACK_BUDGET": "8s", "SPOOL_MAX_ITEMS": "2"})
	poll(t, 5*time.Second, "there is a stream", s.pipe.Connected)
	send := func(n int) (id string) {
		t.Helper()
		resp, body := do(t, "GET", front.URL+end(n, n), nil)
		if resp.StatusCode != 200 {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
		return resp.Header.Get("X-Request-Id")
	}
	spooled := func(n int) (was bool) {
		t.Helper()
		id := send(n)
		poll(t, 5*time.Second, "it came to router", func() bool {
			return slices.ContainsFunc(f.items(), func(item *routerv1.RouteItem) bool {
				was = item.GetSpooled()
				return item.GetRequestId() == id
			})
		})
		return was
	}
	if spooled(100) {
		t.Error("spooled although router was quick")
	}
	var wg sync.WaitGroup
	for i := range lateInARow {
		if s.spool.busy() {
			t.Error("router counts as slow already")
		}
		wg.Go(func() { send(10 + i) })
	}
	time.AfterFunc(3*time.Second, func() { close(late) })
	wg.Wait()
	if s.spool.slow.Load() == 0 {
		t.Error("router does not count as slow after answers that took more than a quarter of the budget")
	}
	s.spool.slow.Store(int64(time.Since(started) + time.Hour)) // this machine may be slow as well
	if !spooled(200) {
		t.Error("not spooled although router is slow")
	}
	poll(t, 5*time.Second, "the spool is empty", s.spool.spool.Empty)
	stuck.Store(true)
	send(500)
	send(500)
	if spooled(201) {
		t.Error("the spool is full, and took it")
	}
	if s.spool.alarm.Load() {
		t.Error("an alarm although router took it")
	}
	stuck.Store(false)
	poll(t, 5*time.Second, "the spool is empty", s.spool.spool.Empty)
	s.spool.slow.Store(int64(time.Since(started)))
	if spooled(202) {
		t.Error("spooled although router is quick again")
	}
	// One late answer among others says nothing of router.
	s.spool.slow.Store(0)
	for range 2 * lateInARow {
		s.spool.answered(time.Second, 2*time.Second)
		s.spool.answered(time.Millisecond, 2*time.Second)
	}
	if s.spool.busy() {
		t.Error("router counts as slow although every second answer is quick")
	}
}

// A callback that waits in vain and is spooled is not overtaken by a later one of its call that was under way with it.
func TestNoneOvertakesWhatIsSpooled(t *testing.T) {
	f := newSwitched()
	inner := f.answer
	var held atomic.Bool
	f.answer = func(item *routerv1.RouteItem) *routerv1.RouteAnswer {
		if held.Load() && item.GetAmeyoCallEnd().GetCustomerId() == "1" && !item.GetSpooled() {
			return nil // it is not committed in time
		}
		return inner(item)
	}
	front, s := serveService(t, &f.fakeRouter, map[string]string{"ACK_BUDGET": "2s"})
	poll(t, 5*time.Second, "there is a stream", s.pipe.Connected)
	held.Store(true)
	var wg sync.WaitGroup
	wg.Go(func() { do(t, "GET", front.URL+end(7, 1), nil) })
	poll(t, 5*time.Second, "the first is with router", func() bool { return f.last().GetAmeyoCallEnd().GetCustomerId() == "1" })
	wg.Go(func() { do(t, "GET", front.URL+end(7, 2), nil) })
	wg.Wait()
	poll(t, 10*time.Second, "both are committed", func() bool { return len(f.items()) == 2 && s.spool.spool.Empty() })
	if got := f.items(); got[0].GetAmeyoCallEnd().GetCustomerId() != "1" {
		t.Errorf("the later one was committed first: %v", got)
	}
}

// running runs a whole service on a port of its own.
func running(t *testing.T, f *fakeRouter, env map[string]string) (*Service, func() error) {
	t.Helper()
	s := newService(t, f, env)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop := sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { _ = stop() })
	return s, stop
}

// An ingress that cannot take callbacks any more ends, so that it is started again.
func TestListenerFails(t *testing.T) {
	s := newService(t, &fakeRouter{answer: accept}, map[string]string{})
	ended := make(chan error, 1)
	go func() { ended <- s.Run(t.Context()) }()
	_ = s.listen.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it runs on without a listener")
	}
}

// Clients that hold connections and say nothing, too little, or too much keep nobody out.
func TestConnectionsThatAreHeld(t *testing.T) {
	const most = 64
	for name, say := range map[string]string{
		"idle after a request":   "GET " + end(1, 1) + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"half a request":         "GET /index.php HTTP/1.1\r\nHost: x\r\nX: ",
		"a query without end":    "GET /index.php?x=" + strings.Repeat("x", 20<<10),
		"a header without end":   "GET /index.php HTTP/1.1\r\nX: " + strings.Repeat("x", 200<<10),
		"a body that never ends": "GET " + end(1, 1) + " HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nxxx",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := running(t, &fakeRouter{answer: accept}, map[string]string{"INGRESS_MAX_CONNECTIONS": fmt.Sprint(most)})
			var conns []net.Conn
			defer func() {
				for _, c := range conns {
					_ = c.Close()
				}
			}()
			for range most + most/4 {
				c, err := net.Dial("tcp", s.HTTPAddr())
				if err != nil {
					t.Fatal(err)
				}
				conns = append(conns, c)
				_ = c.SetDeadline(time.Now().Add(8 * time.Second))
				_, _ = c.Write([]byte(say))
				if name == "idle after a request" {
					if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
						t.Fatalf("connection %d: %v", len(conns), err)
					}
				}
			}
			client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			resp, err := client.Get("http://" + s.HTTPAddr() + end(7, 7))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Errorf("%d", resp.StatusCode)
			}
		})
	}
}

// Two of them behind a balancer, stopped and started in turn under load: no callback goes without its 200.
func TestRollingRestart(t *testing.T) {
	f := &fakeRouter{answer: accept}
	env := func() map[string]string { return map[string]string{"INGRESS_STOP_DELAY": "300ms"} }
	var (
		mu    sync.Mutex
		addrs [2]string // of those that are ready; empty = gone
		stops [2]func() error
	)
	up := func(i int) {
		s, stop := running(t, f, env())
		mu.Lock()
		defer mu.Unlock()
		addrs[i], stops[i] = s.HTTPAddr(), stop
	}
	up(0)
	up(1)
	// The balancer: it sends to those whose readiness it saw last, and to the other one when a connection is refused.
	pick := func(n int) string {
		mu.Lock()
		defer mu.Unlock()
		if a := addrs[n%2]; a != "" {
			return a
		}
		return addrs[1-n%2]
	}
	stopped := make(chan struct{})
	var wg sync.WaitGroup
	var acked atomic.Int64
	for w := range 8 {
		wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for i := 0; ; i++ {
				select {
				case <-stopped:
					return
				default:
				}
				resp, err := client.Get("http://" + pick(i) + end(w, i))
				if err != nil {
					t.Errorf("no answer: %v", err)
					continue
				}
				if resp.StatusCode != 200 {
					t.Errorf("answered %d", resp.StatusCode)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				acked.Add(1)
			}
		})
	}
	for round := range 4 {
		before := acked.Load()
		poll(t, 10*time.Second, "callbacks are taken", func() bool { return acked.Load() > before+200 })
		i := round % 2
		mu.Lock()
		addr, stop := addrs[i], stops[i]
		mu.Unlock()
		ended := make(chan error, 1)
		go func() { ended <- stop() }()
		poll(t, 5*time.Second, "it says that it is not ready", func() bool {
			resp, err := http.Get("http://" + addr + "/readyz")
			if err != nil {
				return true
			}
			defer resp.Body.Close()
			return resp.StatusCode == 503
		})
		mu.Lock()
		addrs[i] = ""
		mu.Unlock()
		if err := <-ended; err != nil {
			t.Errorf("stopping: %v", err)
		}
		up(i)
	}
	close(stopped)
	wg.Wait()
	t.Logf("%d callbacks acknowledged", acked.Load())
}

// A second ingress on the same directory is told what is wrong, and a directory that cannot be made, too.
func TestSpoolDir(t *testing.T) {
	dir := t.TempDir()
	serve(t, &fakeRouter{answer: accept}, map[string]string{"SPOOL_DIR": dir})
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{dir: "in use by another ingress", file: "not a directory"} {
		cfg := Config{HTTPAddr: "127.0.0.1:0", SpoolDir: dir, SpoolBytes: 1 << 20, SpoolItems: 1}
		if _, err := New(cfg, telemetry.NewGroup(nil).Service("test"), nil, nil); err == nil || !strings.HasPrefix(err.Error(), "SPOOL_DIR: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// A spool that an earlier process left is delivered by the next one.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	f := newSwitched()
	f.gone.Store(true)
	t.Run("before", func(t *testing.T) {
		front, s := serveService(t, &f.fakeRouter, map[string]string{"SPOOL_DIR": dir})
		s.spool.away.Store(true)
		for i := range 20 {
			do(t, "GET", front.URL+end(i%4, i), nil)
		}
	})
	f.gone.Store(false)
	_, s := serveService(t, &f.fakeRouter, map[string]string{"SPOOL_DIR": dir})
	poll(t, 10*time.Second, "the spool is empty", s.spool.spool.Empty)
	if n := len(f.items()); n != 20 {
		t.Errorf("%d were delivered", n)
	}
}
