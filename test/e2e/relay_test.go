// Package e2e tests the relay as it is run: real binaries, real HTTP, a real Redis, the TopS.II simulator behind it, in one
// process and in four. It owns what must hold from the dialer's request to what the CRM holds, and knows nothing of the
// inside.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"callrelay/sim/topsii"
)

var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "callrelay-e2e-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		bin = dir
		race := "-race=" + strconv.FormatBool(overloadFor == 0)
		build := exec.Command("go", "build", race, "-o", dir, "callrelay/cmd/callrelay", "callrelay/services/ingress/cmd/ingress",
			"callrelay/services/router/cmd/router", "callrelay/services/state/cmd/state", "callrelay/services/upstream/cmd/upstream")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%s%v\n", out, err)
			return 1
		}
		return m.Run()
	}())
}

// inBothModes runs a test against a relay in one process and against one in four.
func inBothModes(t *testing.T, test func(t *testing.T, r *relay)) {
	t.Run("one process", func(t *testing.T) { test(t, start(t)) })
	t.Run("four processes", func(t *testing.T) { test(t, start(t, "--split")) })
}

// relay is one running `callrelay up --sim`.
type relay struct {
	t       testing.TB
	url     string // of the ingress
	sim     string // of the simulator
	grpc    map[string]string
	dataDir string
	args    []string
	env     []string
	cmd     *exec.Cmd
	output  *buffer
	http    *http.Client
}

func start(t *testing.T, args ...string) *relay {
	t.Helper()
	return startWith(t, nil, args...)
}

// startWith starts a relay with further environment variables.
func startWith(t testing.TB, env []string, args ...string) *relay {
	t.Helper()
	addr := freeAddrs(t, 10)
	r := &relay{t: t, url: "http://" + addr[0], sim: "http://" + addr[1], dataDir: t.TempDir(), output: &buffer{},
		grpc: map[string]string{"INGRESS": addr[2], "ROUTER": addr[3], "STATE": addr[4], "UPSTREAM": addr[5]}}
	r.args = append([]string{"up", "--sim", "--sim-addr", addr[1], "--data-dir", r.dataDir}, args...)
	r.env = append(os.Environ(), "INGRESS_HTTP_ADDR="+addr[0], "METRICS_ADDR="+addr[6], "REDIS_APPENDFSYNC=everysec", "GORACE=atexit_sleep_ms=0",
		"REQUEST_DEDUPE_TTL_SECONDS=300")
	for name, a := range r.grpc {
		r.env = append(r.env, name+"_GRPC_ADDR="+a)
	}
	r.env = append(r.env, env...)
	r.http = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 256}}
	r.launch()
	t.Cleanup(func() {
		r.interrupt()
		r.endRedis()
		if t.Failed() {
			t.Logf("the relay's output:\n%s", r.output.tail(6000))
		}
	})
	return r
}

// launch starts the process and waits until it takes callbacks.
func (r *relay) launch() {
	r.t.Helper()
	r.cmd = exec.Command(filepath.Join(bin, "callrelay"), r.args...)
	r.cmd.Env, r.cmd.Stdout, r.cmd.Stderr = r.env, r.output, r.output
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.eventually(30*time.Second, "the relay is ready", func() bool {
		resp, err := r.http.Get(r.url + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// interrupt is Ctrl-C. It returns how long the relay took to end.
func (r *relay) interrupt() time.Duration {
	if r.cmd == nil {
		return 0
	}
	began := time.Now()
	_ = r.cmd.Process.Signal(syscall.SIGINT)
	err := r.cmd.Wait()
	r.cmd = nil
	if err != nil {
		r.t.Errorf("the relay ended with %v", err)
	}
	return time.Since(began)
}

// kill is kill -9 of the relay's own process.
func (r *relay) kill() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
	r.cmd = nil
}

// endRedis ends a private Redis that a killed relay left over.
func (r *relay) endRedis() {
	text, err := os.ReadFile(filepath.Join(r.dataDir, "redis", "redis.pid"))
	if err != nil {
		return // it ended in order
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return
	}
	// The number may be another process's by now.
	if command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); bytes.Contains(command, []byte("redis")) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// eventually waits until the condition holds. The longer it takes, the more seldom it asks: asking is work for the relay too.
func (r *relay) eventually(limit time.Duration, what string, ok func() bool) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	began := time.Now()
	for !ok() {
		select {
		case <-time.After(min(max(10*time.Millisecond, time.Since(began)/20), 500*time.Millisecond)):
		case <-ctx.Done():
			r.t.Fatalf("not within %s: %s\n%s", limit, what, r.output.tail(4000))
		}
	}
}

// answer is what a dialer gets.
type answer struct {
	Status    int
	Success   bool
	Message   string
	Duplicate bool
	Field     string
	RequestID string `json:"requestId"`
	Header    http.Header
	Body      string
	repeated  bool // it was sent again after a 503, which is no promise either way: the first may have been taken
}

// patience is for how long a sender repeats what is answered 503.
const patience = 30 * time.Second

// untilTaken sends until the answer is another than 503 with Retry-After, as the relay asks its senders to: while builds run
// beside it, a sync of the disk can take longer than ACK_BUDGET. What is still refused then is the caller's to judge.
func (r *relay) untilTaken(what string, send func() (status int, retryAfter string)) (repeated bool) {
	r.t.Helper()
	for began := time.Now(); ; repeated = true {
		status, after := send()
		seconds, err := strconv.Atoi(after)
		if status != http.StatusServiceUnavailable || err != nil || time.Since(began) > patience {
			return repeated
		}
		r.t.Logf("%s was answered 503 and is sent again", what)
		<-time.After(time.Duration(seconds) * time.Second)
	}
}

// send sends one callback with a raw query, as a dialer does.
func (r *relay) send(path, query string) (a answer) {
	r.t.Helper()
	repeated := r.untilTaken(path, func() (int, string) {
		a = r.get(path, query)
		return a.Status, a.Header.Get("Retry-After")
	})
	a.repeated = repeated
	return a
}

// get sends one callback with a raw query, once.
func (r *relay) get(path, query string) answer {
	r.t.Helper()
	req, err := http.NewRequest(http.MethodGet, r.url+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req.URL.RawQuery = query
	resp, err := r.http.Do(req)
	if err != nil {
		r.t.Errorf("GET %s: %v", path, err)
		return answer{}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Errorf("GET %s: %v", path, err)
	}
	a := answer{Status: resp.StatusCode, Header: resp.Header, Body: string(body)}
	if err := json.Unmarshal(body, &a); err != nil {
		r.t.Errorf("GET %s: %q is not JSON", path, body)
	}
	return a
}

// end sends a call end, start a call start; values are name, value, ...
func (r *relay) end(values ...string) answer {
	r.t.Helper()
	return r.send("/index.php", query(values))
}
func (r *relay) begin(values ...string) answer {
	r.t.Helper()
	return r.send("/call_start.php", query(values))
}

func query(values []string) string {
	q := url.Values{}
	for i := 0; i+1 < len(values); i += 2 {
		q.Set(values[i], values[i+1])
	}
	return q.Encode()
}

// accepted fails unless the callback was accepted as a new one.
func (r *relay) accepted(a answer) {
	r.t.Helper()
	if a.Status != 200 || !a.Success || a.Duplicate && !a.repeated || a.RequestID == "" {
		r.t.Errorf("not accepted: %d %s", a.Status, a.Body)
	}
}

// held is what TopS.II holds of a call, or of all with 0.
func (r *relay) held(call int) []topsii.Held {
	r.t.Helper()
	path := "/sim/held"
	if call != 0 {
		path += fmt.Sprintf("?callId=%d", call)
	}
	var held []topsii.Held
	r.simGet(path, &held)
	return held
}

// registered are the payloads of a call as text, in the order in which they came.
func (r *relay) registered(call int) (out []string) {
	for _, h := range r.held(call) {
		out = append(out, string(h.Payload))
	}
	return out
}

func (r *relay) stats() (s topsii.Stats) {
	r.t.Helper()
	r.simGet("/sim/stats", &s)
	return s
}

func (r *relay) effects() (n int64) {
	for _, count := range r.stats().Effects {
		n += count
	}
	return n
}

func (r *relay) duplicates() (d []topsii.Duplicate) {
	r.t.Helper()
	r.simGet("/sim/duplicates", &d)
	return d
}

func (r *relay) simGet(path string, into any) {
	r.t.Helper()
	resp, err := r.http.Get(r.sim + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		r.t.Fatal(err)
	}
}

// fault makes the simulator misbehave.
func (r *relay) fault(f topsii.Fault) {
	r.t.Helper()
	body, _ := json.Marshal(f)
	req, _ := http.NewRequest(http.MethodPut, r.sim+"/sim/fault", bytes.NewReader(body))
	resp, err := r.http.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		r.t.Fatalf("fault: %s", b)
	}
}

func (r *relay) noFaults() {
	r.t.Helper()
	req, _ := http.NewRequest(http.MethodDelete, r.sim+"/sim/fault", nil)
	resp, err := r.http.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	resp.Body.Close()
}

// callrelay runs a command of the operator's and returns what it printed.
func (r *relay) callrelay(args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(bin, "callrelay"), args...)
	cmd.Env = r.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// concurrently runs f(0) to f(n-1) with so many at a time.
func concurrently(n, at int, f func(i int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range at {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// freeAddrs finds addresses that nobody listens on, below the range from which the system takes ports for connections.
func freeAddrs(t testing.TB, n int) (out []string) {
	t.Helper()
	portMu.Lock()
	defer portMu.Unlock()
	for len(out) < n {
		lastPort++
		addr := fmt.Sprintf("127.0.0.1:%d", 10000+(os.Getpid()*17+lastPort)%9000)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		l.Close()
		out = append(out, addr)
	}
	return out
}

var (
	portMu   sync.Mutex
	lastPort int
)

// buffer collects output of several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) tail(n int) string {
	s := b.String()
	return s[max(0, len(s)-n):]
}
