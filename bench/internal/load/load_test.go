package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestOpenLoopLeavesNothingOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, lanes = 10, 2
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 1950*time.Millisecond)
		defer cancel()
		var mu sync.Mutex
		var due, sent []time.Duration
		open(ctx, lanes, rate, func(d time.Duration) { <-time.After(d) }, func(_ int, at time.Time) {
			mu.Lock()
			due, sent = append(due, at.Sub(start)), append(sent, time.Since(start))
			n := len(due)
			mu.Unlock()
			if n == 4 || n == 5 {
				<-time.After(time.Second) // both lanes stall, which the next callbacks must show
			}
		})
		if len(due) != 20 {
			t.Fatalf("%d callbacks at 10/s in 1.95s", len(due))
		}
		for n := range due {
			want := time.Duration(n) * time.Second / rate
			if due[n] != want {
				t.Errorf("callback %d was due after %v, want %v", n, due[n], want)
			}
			late := time.Duration(0)
			if n > 4 {
				late = max(0, 1300*time.Millisecond-want)
			}
			if sent[n]-due[n] != late {
				t.Errorf("callback %d was %v late, want %v", n, sent[n]-due[n], late)
			}
		}
	})
}

func TestClosedLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		perLane := map[int]int{}
		do := func(lane int, due time.Time) {
			if !due.IsZero() {
				t.Error("in a closed loop a callback is due when it is sent")
			}
			<-time.After(time.Second)
			mu.Lock()
			perLane[lane]++
			mu.Unlock()
		}
		closed(t.Context(), 4, 10, do)
		if n := perLane[0] + perLane[1] + perLane[2] + perLane[3]; n != 10 {
			t.Errorf("%d of 10 callbacks", n)
		}
		clear(perLane)
		ctx, cancel := context.WithTimeout(t.Context(), 4500*time.Millisecond)
		defer cancel()
		closed(ctx, 2, 0, do)
		if perLane[0] != 5 || perLane[1] != 5 {
			t.Errorf("callbacks by lane %v, want 5 each: what is under way ends", perLane)
		}
	})
}

func TestAlarmIsNotEarly(t *testing.T) {
	a, err := newAlarm()
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	for _, d := range []time.Duration{time.Nanosecond, 3 * time.Millisecond} {
		began := time.Now()
		a.wait(d)
		if took := time.Since(began); took < d {
			t.Errorf("waited %v instead of %v", took, d)
		}
	}
}

// crm accepts callbacks and has them delivered when it is told.
type crm struct {
	mu    sync.Mutex
	calls []int64
}

func (c *crm) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseInt(r.URL.Query().Get("unique_id"), 10, 64)
	if err != nil || r.URL.Query().Get("customerCRTId") != fmt.Sprintf("d336-%d-vce-101", id) {
		http.Error(w, "bad", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	c.calls = append(c.calls, id)
	c.mu.Unlock()
	_, _ = io.WriteString(w, `{"success":true}`)
}

func (c *crm) taken() []int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.calls)
}

func TestRunInTheBoundsOfTheBacklog(t *testing.T) {
	relay := &crm{}
	ts := httptest.NewServer(relay)
	defer ts.Close()
	l := NewLedger(10)
	o := Load{Addr: ts.Listener.Addr().String(), Lanes: 4, Bounded: true}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error)
	go func() { ended <- l.Run(ctx, o) }()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for l.Counts().Accepted < 10 {
		<-tick.C
	}
	for range 20 {
		<-tick.C
	}
	if n := len(relay.taken()); n != 10 {
		t.Errorf("%d callbacks were sent into a backlog of 10", n)
	}
	for _, id := range relay.taken()[:5] {
		l.Delivered(id, time.Now())
		l.Delivered(id, time.Now())
	}
	l.Delivered(1, time.Now()) // nobody's
	for l.Counts().Accepted < 15 {
		<-tick.C
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := l.Counts(); got != (Counts{Accepted: 15, Delivered: 5, Doubled: 5}) {
		t.Errorf("%+v", got)
	}
	ids := relay.taken()
	slices.Sort(ids)
	if len(slices.Compact(ids)) != 15 {
		t.Error("call ids repeat")
	}
	got := l.Latencies(0, l.Now())
	if len(got.Ack) != 15 || len(got.Delivery) != 5 || len(got.Late) != 15 || got.Late[14] != 0 || got.Ack[0] <= 0 {
		t.Errorf("%+v", got)
	}
	if got := l.Latencies(l.Now(), l.Now()+time.Second); len(got.Ack) != 0 {
		t.Errorf("outside of the window: %+v", got)
	}
}

func TestRunAtARateAndSingly(t *testing.T) {
	ts := httptest.NewServer(&crm{})
	defer ts.Close()
	l := NewLedger(1)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := l.Run(ctx, Load{Addr: ts.Listener.Addr().String(), Lanes: 4, Rate: 1000}); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began) // of a busy machine longer than the 100 ms
	if n := l.Counts().Accepted; n < 10 || int64(n) > took.Milliseconds()+1 {
		t.Errorf("%d callbacks at 1000/s in %v", n, took)
	}
	single, err := l.Single(ts.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer single.Close()
	before := l.Counts().Accepted
	if err := single.Send(); err != nil || l.Counts().Accepted != before+1 {
		t.Errorf("%v, %+v", err, l.Counts())
	}
}

func TestRunEndsWithTheRelay(t *testing.T) {
	ts := httptest.NewServer(http.NotFoundHandler())
	defer ts.Close()
	l := NewLedger(1)
	if err := l.Run(t.Context(), Load{Addr: ts.Listener.Addr().String(), Lanes: 4}); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("got %v", err)
	}
	ts.Close()
	if err := l.Run(t.Context(), Load{Addr: ts.Listener.Addr().String(), Lanes: 4}); err == nil {
		t.Error("nobody listens, and no error")
	}
}

func TestAnswers(t *testing.T) {
	for text, want := range map[string]int{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}":                        200,
		"HTTP/1.1 200 OK\r\nX: y\r\ncontent-length:2\r\n\r\n{}":                 200,
		"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n":         503,
		"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n":                 -1,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}0\r\n\r\n": -1,
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}":                        -1,
		"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}":                        -1,
		"SSH-2.0\r\n": -1,
		"HTTP/1.1 2":  -1,
		"":            -1,
	} {
		c := &client{in: bufio.NewReader(strings.NewReader(text))}
		status, err := c.answer()
		if (err != nil) != (want < 0) || (err == nil && status != want) {
			t.Errorf("%q: %d, %v", text, status, err)
		}
	}
}

func TestRequestsAreDistinctAndOfTheSizeOfADialers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() { _, _ = c.send(firstCall + 42); c.conn.Close() }()
	r, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(r.URL.RawQuery); n < 280 || n > 320 {
		t.Errorf("the query has %d bytes", n)
	}
	if q := r.URL.Query(); q.Get("unique_id") != "100000000042" || q.Get("customerCRTId") != "d336-100000000042-vce-101" || strings.Contains(r.URL.RawQuery, "@") {
		t.Errorf("%s", r.URL.RawQuery)
	}
	conn.Close()
	if _, err := c.send(firstCall); !errors.Is(err, net.ErrClosed) && err == nil {
		t.Error("a closed connection and no error")
	}
}

func TestPercentile(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i+1))
	}
	for _, tc := range []struct {
		of   []time.Duration
		p    float64
		want time.Duration
	}{
		{hundred, 50, 50}, {hundred, 99, 99}, {hundred, 99.1, 100}, {hundred, 100, 100}, {hundred, 0.1, 1},
		{hundred[:1], 99, 1}, {hundred[:2], 50, 1}, {hundred[:3], 50, 2}, {nil, 50, 0},
	} {
		if got := Percentile(tc.of, tc.p); got != tc.want {
			t.Errorf("p%v of %d: %d, want %d", tc.p, len(tc.of), got, tc.want)
		}
	}
}
