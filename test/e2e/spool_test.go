package e2e

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// freezeRedis stops the private Redis in the middle of whatever it does; the returned function lets it go on.
func (r *relay) freezeRedis() (thaw func()) {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(r.dataDir, "redis", "redis.pid"))
	if err != nil {
		r.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		r.t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		r.t.Fatal(err)
	}
	thaw = sync.OnceFunc(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	r.t.Cleanup(thaw)
	return thaw
}

// phoneFailed is a call end of a phone that nobody answered.
func phoneFailed(call int, index, status string) []string {
	return []string{"unique_id", strconv.Itoa(call), "customerId", "c", "customerCRTId", "same", "systemDisposition", status,
		"shareablePhonesDialIndex", index, "phoneList", `["09000000001","08000000002"]`}
}

// While the store stands still the dialer gets its answers in time; afterwards everything is delivered, once and in the
// order of each call.
func TestSpoolWhileTheStoreStandsStill(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *relay) {
		const calls, first = 30, 700_000
		r.accepted(r.end(connectedEnd(first - 1)...))
		thaw := r.freezeRedis()
		var slow atomic.Int32
		concurrently(calls, 4, func(i int) {
			for index, status := range []string{"BUSY", "NO_ANSWER"} {
				began := time.Now()
				a := r.end(phoneFailed(first+i, strconv.Itoa(index), status)...)
				r.accepted(a)
				switch took := time.Since(began); {
				case a.repeated:
				case took > 4*time.Second: // 2 s, and what the race detector and other tests cost
					t.Errorf("acknowledged after %s", took)
				case took > time.Second:
					slow.Add(1)
				}
			}
		})
		if n := slow.Load(); n > 12 {
			t.Errorf("%d of %d callbacks waited for the whole budget", n, 2*calls)
		}
		bad := r.get("/index.php", "systemDisposition=BUSY")
		if bad.Status != 400 || bad.Field != "unique_id" {
			t.Errorf("a malformed one: %d %s", bad.Status, bad.Body)
		}
		thaw()

		r.eventually(60*time.Second, "all are delivered", func() bool { return r.effects() >= calls+1 })
		for i := range calls {
			if got := r.registered(first + i); len(got) != 1 || !strings.Contains(got[0], `"errorInfo1":"BUSY","errorInfo2":"NO_ANSWER"`) {
				t.Errorf("call %d: %v", first+i, got)
			}
		}
		if d := r.duplicates(); len(d) != 0 {
			t.Errorf("twice: %v", d)
		}
		r.eventually(20*time.Second, "the malformed one is found", func() bool {
			out, err := r.callrelay("call", "request/"+bad.RequestID)
			return err == nil && strings.Contains(out, "unique_id")
		})
		if out, err := r.callrelay("call", strconv.Itoa(first+calls-1)); err != nil || !strings.Contains(out, "acknowledged from the spool") {
			t.Errorf("%v\n%s", err, out)
		}
		r.eventually(20*time.Second, "the spool has no file any more", func() bool {
			left, err := filepath.Glob(filepath.Join(r.dataDir, "spool", "*.db"))
			return err == nil && len(left) == 0
		})
	})
}

// kill -9 of ingress at any moment while it spools: what it has acknowledged is delivered once.
func TestKilledWhileSpooling(t *testing.T) {
	r := start(t, "--split")
	const first = 800_000
	thaw := r.freezeRedis()
	var (
		mu    sync.Mutex
		acked = map[int]bool{}
		next  atomic.Int64
		stop  = make(chan struct{})
		wg    sync.WaitGroup
	)
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	for range 16 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				call := first + int(next.Add(1))
				resp, err := client.Get(r.url + "/index.php?" + query(connectedEnd(call)))
				if err != nil {
					continue // no answer, no promise
				}
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if err == nil && resp.StatusCode == 200 {
					mu.Lock()
					acked[call] = true
					mu.Unlock()
				}
			}
		})
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acked)
	}
	for round := range 6 {
		before, more := count(), 20+rand.IntN(200)
		r.eventually(60*time.Second, "callbacks are acknowledged", func() bool { return count() >= before+more })
		pid := r.child("ingress")
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		r.eventually(10*time.Second, fmt.Sprint("kill ", round), func() bool { return syscall.Kill(pid, 0) != nil })
	}
	close(stop)
	wg.Wait()
	thaw()
	r.eventually(120*time.Second, "all that was acknowledged is delivered", func() bool {
		held := map[int64]bool{}
		for _, h := range r.held(0) {
			held[h.CallID] = true
		}
		for call := range acked {
			if !held[int64(call)] {
				return false
			}
		}
		return true
	})
	if d := r.duplicates(); len(d) != 0 {
		t.Errorf("twice: %v", d)
	}
	t.Logf("%d acknowledged over 6 kills, %d delivered of %d sent", len(acked), r.effects(), next.Load())
}

// child is the process id of one of the four services.
func (r *relay) child(name string) (pid int) {
	r.t.Helper()
	r.eventually(20*time.Second, name+" runs", func() bool {
		stats, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, path := range stats {
			b, err := os.ReadFile(path)
			if err != nil {
				continue
			}
			if i := bytes.LastIndexByte(b, ')'); i > 0 && bytes.Contains(b[:i], []byte("("+name)) {
				if fields := strings.Fields(string(b[i+1:])); len(fields) > 1 && fields[0] != "Z" && fields[1] == strconv.Itoa(r.cmd.Process.Pid) {
					pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(path)))
					return true
				}
			}
		}
		return false
	})
	return pid
}

// A disk that takes no more: 503, nothing that was acknowledged is lost, and it goes on when there is room.
func TestDiskFull(t *testing.T) {
	addr, dir := freeAddrs(t, 4), t.TempDir()
	env := append(os.Environ(), "INGRESS_HTTP_ADDR="+addr[0], "INGRESS_GRPC_ADDR="+addr[1], "ROUTER_GRPC_ADDR="+addr[2], "METRICS_ADDR="+addr[3],
		"SPOOL_DIR="+dir, "ACK_BUDGET=1s", "GORACE=atexit_sleep_ms=0")
	var out buffer
	launch := func(script string) func() {
		cmd := exec.Command("sh", "-c", script+" exec "+filepath.Join(bin, "ingress"))
		cmd.Env, cmd.Stdout, cmd.Stderr = env, &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stop := sync.OnceFunc(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() })
		t.Cleanup(stop)
		return stop
	}
	r := &relay{t: t, url: "http://" + addr[0], output: &out, http: &http.Client{Timeout: 10 * time.Second}}
	ready := func() bool {
		resp, err := r.http.Get(r.url + "/healthz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return true
	}
	stop := launch("ulimit -f 1024;") // no file may grow beyond 512 KB: what a full disk does to a write
	r.eventually(20*time.Second, "it serves", ready)
	taken := 0
	padding := strings.Repeat("x", 8<<10)
	for i := 0; ; i++ {
		a := r.get("/index.php", query(connectedEnd(1+i))+"&padding="+padding)
		if a.Status == 200 {
			taken++
			continue
		}
		if a.Status != 503 || a.Header.Get("Retry-After") == "" || taken == 0 {
			t.Fatalf("after %d: %d %s", taken, a.Status, a.Body)
		}
		break
	}
	r.get("/index.php", query(connectedEnd(1))+"&padding="+padding)
	if n := strings.Count(out.String(), "NOTHING DURABLE CAN TAKE CALLBACKS"); n != 1 {
		t.Errorf("the alarm was given %d times", n)
	}
	if n := spoolItems(t, addr[3]); n != taken {
		t.Errorf("%d are spooled, %d were acknowledged", n, taken)
	}
	stop()

	// Damaged, too: ingress starts without room to begin the file anew, and says what is wrong.
	path := filepath.Join(dir, "spool.db")
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file[20] ^= 0x55
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	stop = launch("ulimit -f 256;")
	r.eventually(20*time.Second, "it serves with a damaged spool", ready)
	// What was refused can be in it, too: a 503 is no promise.
	kept := spoolItems(t, addr[3])
	if kept < taken || kept > taken+2 {
		t.Errorf("of a damaged file %d are spooled, %d were acknowledged", kept, taken)
	}
	if a := r.get("/index.php", query(connectedEnd(1))+"&padding="+padding); a.Status != 503 {
		t.Errorf("behind the damage: %d %s", a.Status, a.Body)
	}
	r.eventually(10*time.Second, "it is not ready, and says why", func() bool {
		resp, err := r.http.Get(r.url + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return err == nil && resp.StatusCode == 503 && strings.Contains(string(b), "its file is damaged")
	})
	if n := strings.Count(out.String(), "THE SPOOL IS DAMAGED AND CANNOT BE BEGUN ANEW"); n != 1 {
		t.Errorf("the damage was said %d times", n)
	}
	stop()
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, file) {
		t.Errorf("the damaged file was changed: %v", err)
	}

	launch("")
	r.eventually(20*time.Second, "it serves again", ready)
	if n := spoolItems(t, addr[3]); n != kept {
		t.Errorf("after a restart %d are spooled, %d were kept", n, kept)
	}
	if a := r.get("/index.php", query(connectedEnd(1))+"&padding="+padding); a.Status != 200 {
		t.Errorf("with room: %d %s", a.Status, a.Body)
	}
	t.Logf("%d were taken", taken)
}

var itemsMetric = regexp.MustCompile(`(?m)^callrelay_spool_items(?:\{.*\})? (\d+)`)

func spoolItems(t *testing.T, metrics string) int {
	t.Helper()
	resp, err := http.Get("http://" + metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	m := itemsMetric.FindSubmatch(b)
	if m == nil {
		t.Fatalf("no depth of the spool in\n%.2000s", b)
	}
	n, _ := strconv.Atoi(string(m[1]))
	return n
}
