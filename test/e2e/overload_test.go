package e2e

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// overloadFor is set to measure (docs/performance.md): so long twice the sustained rate of this machine, with the limits and the
// Redis of every day, and 5,000 connections beside it that only hold theirs. Without it the store is made slow and the limits
// are small, so that every stage is reached within seconds anywhere.
var overloadFor, _ = time.ParseDuration(os.Getenv("OVERLOAD"))

// More than the relay can take: acknowledgements slow down within the budget, then the spool takes over, then 503. Meanwhile
// others hold connections, send slowly, or too much. Memory stays bounded; what was acknowledged is delivered, once, when it is over.
func TestOverload(t *testing.T) {
	for _, mode := range []string{"one process", "four processes"} {
		t.Run(mode, func(t *testing.T) {
			var env, args []string
			held, limit := 1000, 1500 // MB of all processes, under the race detector
			// As many as a dialer may have open. Each has to be answered, which a busy machine does a hundred times a second.
			most, patience := int64(1000), time.Minute
			if overloadFor == 0 {
				env = []string{"ACK_BUDGET=600ms", "SPOOL_MAX_ITEMS=150", "INGRESS_MAX_REQUESTS=200", "INGRESS_MAX_CONNECTIONS=900"}
			} else {
				held, limit, most, patience = 5000, 600, 3000, 20*time.Second
			}
			if mode == "four processes" {
				args = append(args, "--split")
			}
			r := startWith(t, env, args...)
			o := &overload{r: r, client: &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 4096}}}
			defer o.client.CloseIdleConnections()

			rate, load := 400.0, 5*time.Second
			if overloadFor > 0 {
				before := o.next.Load()
				began := time.Now()
				concurrently(20_000, 64, func(int) { o.send() })
				sustained := float64(o.next.Load()-before) / time.Since(began).Seconds()
				t.Logf("sustained: %.0f/s; %s", sustained, o.said(time.Since(began)))
				o.reset()
				rate, load = 2*sustained, overloadFor
			}
			release := o.hold(held)
			defer release()
			var background sync.WaitGroup
			over := make(chan struct{})
			if overloadFor == 0 {
				background.Go(func() { r.slowRedis(over) })
			}
			background.Go(func() { o.watch(over) })
			began := time.Now()
			o.load(rate, load, most)
			took := time.Since(began)
			close(over)
			background.Wait()
			t.Logf("%.0f/s for %s: %s", rate, took.Round(time.Second), o.said(took))
			if len(o.acked()) > 99_000 {
				t.Fatalf("%d calls: the simulator remembers 100,000; a shorter OVERLOAD tells as much", len(o.acked()))
			}
			t.Logf("memory at most (MB): %v; %d files of the spool at most", o.memory, o.spools)

			began = time.Now()
			metrics := r.env[slices.IndexFunc(r.env, func(v string) bool { return strings.HasPrefix(v, "METRICS_ADDR=") })][len("METRICS_ADDR="):]
			spooled, ahead := spoolItems(t, metrics), r.effects()
			r.eventually(120*time.Second, "the spool is empty", func() bool { return spoolItems(t, metrics) == 0 })
			t.Logf("%d were spooled at the end, and none after %s; meanwhile %d were delivered", spooled, time.Since(began).Round(10*time.Millisecond), r.effects()-ahead)
			times := map[int64]int{}
			r.eventually(120*time.Second, "all that was acknowledged is delivered", func() bool {
				if clear(times); r.effects() < int64(len(o.acked())) {
					return false // what they all are takes time to tell
				}
				for _, h := range r.held(0) {
					times[h.CallID]++
				}
				return !slices.ContainsFunc(o.acked(), func(call int64) bool { return times[call] == 0 })
			})
			t.Logf("drained within %s", time.Since(began).Round(10*time.Millisecond))
			for _, call := range o.acked() {
				if times[call] != 1 {
					t.Errorf("call %d was acknowledged and delivered %d times", call, times[call])
				}
			}
			sum := 0
			for _, mb := range o.memory {
				sum += mb
			}
			if sum > limit {
				t.Errorf("%d MB of memory, want at most %d", sum, limit)
			}
			for status, n := range o.statuses {
				if status != 200 && status != 503 {
					t.Errorf("%d answers with status %d (0: none, last because of %v)", n, status, o.failure)
				}
			}
			if overloadFor == 0 && (o.statuses[200] == 0 || o.statuses[503] == 0 || o.spools == 0) {
				t.Errorf("answers %v, %d files of the spool: want 200, 503 and the spool", o.statuses, o.spools)
			}
			r.accepted(r.end(connectedEnd(1)...))
		})
	}
}

// overload is what is done to a relay, and what it answered.
type overload struct {
	r      *relay
	client *http.Client
	next   atomic.Int64
	under  atomic.Int64 // requests under way

	mu       sync.Mutex
	calls    []int64 // acknowledged
	statuses map[int]int
	failure  error           // the last request that had no answer
	waits    []time.Duration // of acknowledgements
	memory   map[string]int  // of each process at most, in MB
	spools   int
}

func (o *overload) reset() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.statuses, o.waits = nil, nil
}

func (o *overload) acked() []int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.calls
}

// send sends one callback of a call of its own.
func (o *overload) send() {
	call := 900_000 + o.next.Add(1)
	began := time.Now()
	status := 0
	resp, err := o.client.Get(o.r.url + "/index.php?" + query(connectedEnd(int(call))))
	if err == nil {
		if _, err = io.Copy(io.Discard, resp.Body); err == nil {
			status = resp.StatusCode
		}
		resp.Body.Close()
		if status == 503 && resp.Header.Get("Retry-After") == "" {
			status = 1
		}
	}
	took := time.Since(began)
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil {
		o.failure = err
	}
	if o.statuses == nil {
		o.statuses = map[int]int{}
	}
	o.statuses[status]++
	if status == 200 {
		o.calls, o.waits = append(o.calls, call), append(o.waits, took)
	}
}

// load sends at a rate, however slow the answers are, unless `most` are open.
func (o *overload) load(rate float64, length time.Duration, most int64) {
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	sent := 0
	for began := time.Now(); time.Since(began) < length; <-tick.C {
		for ; float64(sent) < rate*time.Since(began).Seconds() && o.under.Load() < most; sent++ {
			o.under.Add(1)
			wg.Go(func() { defer o.under.Add(-1); o.send() })
		}
	}
}

func (o *overload) said(took time.Duration) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	slices.Sort(o.waits)
	if len(o.waits) == 0 {
		return fmt.Sprint("no acknowledgement; ", o.statuses)
	}
	at := func(p int) time.Duration { return o.waits[(len(o.waits)-1)*p/100].Round(time.Millisecond) }
	return fmt.Sprintf("%d acknowledged (%.0f/s), p50 %s p99 %s max %s; answers by status %v", len(o.waits), float64(len(o.waits))/took.Seconds(), at(50), at(99), at(100), o.statuses)
}

// hold takes connections that are of no use to anybody, for as long as they are left open.
func (o *overload) hold(n int) (release func()) {
	kinds := []string{
		"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",                               // and then idle: most of them
		"GET /index.php HTTP/1.1\r\nHost: x\r\nX: ",                              // a header without end
		"GET /index.php HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx", // a body without end
		"GET /index.php?x=" + strings.Repeat("x", 100<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n",
	}
	conns := make([]net.Conn, n)
	concurrently(n, 32, func(i int) {
		c, err := net.Dial("tcp", strings.TrimPrefix(o.r.url, "http://"))
		if err != nil {
			o.r.t.Errorf("connection %d: %v", i, err)
			return
		}
		conns[i] = c
		kind := 0
		if i%20 == 0 {
			kind = 1 + i/20%3
		}
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		_, _ = io.WriteString(c, kinds[kind])
		if kind == 0 {
			if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
				o.r.t.Errorf("connection %d: %v", i, err)
			}
		}
	})
	return func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	}
}

// watch notes the memory of each process and the files of the spool, at their most.
func (o *overload) watch(over <-chan struct{}) {
	o.memory = map[string]int{}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		for name, mb := range o.r.memory() {
			o.memory[name] = max(o.memory[name], mb)
		}
		files, _ := filepath.Glob(filepath.Join(o.r.dataDir, "spool*", "spool.db"))
		o.spools = max(o.spools, len(files))
		select {
		case <-over:
			return
		case <-tick.C:
		}
	}
}

// memory is that of the relay's processes, in MB.
func (r *relay) memory() map[string]int {
	parents, names, sizes := map[int]int{}, map[int]string{}, map[int]int{}
	all, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, path := range all {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		for line := range strings.Lines(string(raw)) {
			switch field := strings.Fields(line); {
			case len(field) < 2:
			case field[0] == "Name:":
				names[pid] = field[1]
			case field[0] == "PPid:":
				parents[pid], _ = strconv.Atoi(field[1])
			case field[0] == "VmRSS:":
				kb, _ := strconv.Atoi(field[1])
				sizes[pid] = kb >> 10
			}
		}
	}
	out := map[string]int{}
	for pid := range maps.Keys(parents) {
		if root := r.cmd.Process.Pid; pid == root || parents[pid] == root {
			out[names[pid]] += sizes[pid]
		}
	}
	return out
}

// slowRedis lets Redis work a quarter of the time.
func (r *relay) slowRedis(over <-chan struct{}) {
	thaw := func() {}
	defer func() { thaw() }()
	for frozen := false; ; frozen = !frozen {
		wait := 200 * time.Millisecond
		if thaw(); frozen {
			thaw, wait = r.freezeRedis(), 600*time.Millisecond
		}
		select {
		case <-over:
			return
		case <-time.After(wait):
		}
	}
}
