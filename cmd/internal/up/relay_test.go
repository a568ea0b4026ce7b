package up

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"callrelay/platform/redistest"
)

// output is what Run prints.
type output struct {
	mu   sync.Mutex
	text strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// options of a relay that does not meet any other on this machine.
func options(t *testing.T) Options {
	env := map[string]string{"PATH": os.Getenv("PATH"), "METRICS_ADDR": "127.0.0.1:0"}
	for _, name := range []string{"INGRESS_HTTP_ADDR", "INGRESS_GRPC_ADDR", "ROUTER_GRPC_ADDR", "STATE_GRPC_ADDR", "UPSTREAM_GRPC_ADDR"} {
		env[name] = freeAddr(t)
	}
	return Options{Environment: env, DataDir: t.TempDir(), SimAddr: freeAddr(t), Program: "callrelay", Out: io.Discard, Log: slog.New(slog.DiscardHandler)}
}

func get(url string) (int, string) {
	resp, err := http.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(body)
}

// send sends the one callback of a call.
func send(o Options, call int) (int, string) {
	return get(fmt.Sprintf("http://%s/index.php?unique_id=%d&customerId=1&customerCRTId=c%d&systemDisposition=CONNECTED&userId=a&dialledPhone=03000000001",
		o.Environment["INGRESS_HTTP_ADDR"], call, call))
}

// deliver sends one callback and waits until the simulator holds it.
func deliver(t *testing.T, o Options, call int) {
	t.Helper()
	status, body := send(o, call)
	if status != http.StatusOK {
		t.Fatalf("callback: %d %s", status, body)
	}
	redistest.Poll(t, 10*time.Second, fmt.Sprintf("TopS.II holds call %d", call), func() bool {
		_, held := get("http://" + o.SimAddr + "/sim/held")
		return strings.Contains(held, fmt.Sprint(call))
	})
}

// start runs the relay until stop, which is how long it took to stop.
func start(t *testing.T, o Options) (stop func() time.Duration) {
	t.Helper()
	out := &output{}
	o.Out = out
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, o) }()
	redistest.Poll(t, 30*time.Second, "the relay is ready", func() bool {
		select {
		case err := <-ended:
			t.Fatalf("the relay ended: %v", err)
		default:
		}
		return strings.Contains(out.String(), "\n  stop ")
	})
	return func() time.Duration {
		began := time.Now()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("stopping: %v", err)
		}
		return time.Since(began)
	}
}

// The same with four processes is tested with the built programs, in callrelay/test/e2e.
func TestOneProcess(t *testing.T) {
	o := options(t)
	stop := start(t, o)
	deliver(t, o, 4711)
	if took := stop(); took > 5*time.Second {
		t.Errorf("stopping took %v", took)
	}
	if _, err := net.Dial("unix", filepath.Join(o.DataDir, "redis", "redis.sock")); err == nil {
		t.Error("the private Redis still runs")
	}

	// The second start finds what the first kept: the same callback again is a duplicate.
	stop = start(t, o)
	defer stop()
	if status, body := send(o, 4711); status != http.StatusOK || !strings.Contains(body, `"duplicate":true`) {
		t.Errorf("after a restart: %d %s", status, body)
	}
	deliver(t, o, 4712)
}

// A stop is as long as it may be, whatever the services would take by themselves, and what was acknowledged meanwhile is there
// after the next start.
func TestStopLosesNothing(t *testing.T) {
	o := options(t)
	o.Environment["INGRESS_STOP_DELAY"], o.Environment["UPSTREAM_STOP_TIMEOUT"] = "1m", "1m"
	logged := &output{}
	o.Log = slog.New(slog.NewTextHandler(logged, nil))
	stop := start(t, o)
	deliver(t, o, 1)
	sending := make(chan []int, 1)
	go func() {
		var acknowledged []int
		for call := 1000; ; call++ {
			status, _ := send(o, call)
			switch status {
			case 0:
				sending <- acknowledged
				return
			case http.StatusOK:
				acknowledged = append(acknowledged, call)
			}
		}
	}()
	if took := stop(); took > 5*time.Second {
		t.Errorf("stopping took %v", took)
	}
	acknowledged := <-sending
	if len(acknowledged) == 0 {
		t.Error("nothing was taken meanwhile")
	}
	if strings.Contains(logged.String(), "did not end") {
		t.Errorf("a service was left behind:\n%s", logged)
	}
	stop = start(t, o)
	defer stop()
	for _, call := range acknowledged {
		redistest.Poll(t, 10*time.Second, fmt.Sprintf("call %d is there", call), func() bool {
			status, _ := get(fmt.Sprintf("http://%s/v1/calls/ameyo/%d", o.Environment["INGRESS_HTTP_ADDR"], call))
			return status == http.StatusOK
		})
	}
	t.Logf("%d were acknowledged while it stopped", len(acknowledged))
}

// A machine that starts while its Redis is away takes callbacks all the same, and delivers them when Redis is there.
func TestStartWithoutRedis(t *testing.T) {
	redis := redistest.Start(t)
	redis.Kill()
	o := options(t)
	o.Environment["REDIS_URL"] = redis.URL()
	stop := start(t, o)
	defer stop()
	if status, body := send(o, 4713); status != http.StatusOK {
		t.Fatalf("without Redis: %d %s", status, body)
	}
	redis.Launch(t)
	deliver(t, o, 4714)
	redistest.Poll(t, 20*time.Second, "what was taken without Redis is delivered", func() bool {
		_, held := get("http://" + o.SimAddr + "/sim/held")
		return strings.Contains(held, "4713")
	})
}

func TestSplitNeedsThePrograms(t *testing.T) {
	o := options(t)
	o.Split, o.BinDir = true, t.TempDir()
	if err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("got %v", err)
	}
}

func TestSplitDoesNotMistakeAnotherRelayForItsOwn(t *testing.T) {
	o := options(t)
	o.Split, o.BinDir = true, t.TempDir()
	taken, err := net.Listen("tcp", o.Environment["STATE_GRPC_ADDR"])
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "STATE_GRPC_ADDR: ") || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("got %v", err)
	}
}

func TestTakenAddressIsAClearError(t *testing.T) {
	o := options(t)
	taken, err := net.Listen("tcp", o.Environment["INGRESS_HTTP_ADDR"])
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "INGRESS_HTTP_ADDR") || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("got %v", err)
	}
}

func TestWrongSettingStartsNothing(t *testing.T) {
	o := options(t)
	o.Environment["INDEX_ENV"] = "STAGE"
	if err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "INDEX_ENV") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(o.DataDir, "redis")); err == nil {
		t.Error("a Redis was started")
	}
}
