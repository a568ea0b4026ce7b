package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"callrelay/platform/redistest"
	"callrelay/sim/topsii"
)

// member is one process of a relay that has two of every service.
type member struct {
	t    *testing.T
	name string
	addr string // gRPC
	env  []string
	out  buffer
	cmd  *exec.Cmd
}

func (m *member) start() {
	m.t.Helper()
	m.cmd = exec.Command(filepath.Join(bin, m.name))
	m.cmd.Env, m.cmd.Stdout, m.cmd.Stderr = m.env, &m.out, &m.out
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	redistest.Poll(m.t, 60*time.Second, m.name+" listens", func() bool {
		conn, err := net.Dial("tcp", m.addr)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
}

// stop is what a supervisor does: SIGTERM, and then it waits.
func (m *member) stop() {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Signal(syscall.SIGTERM)
	if err := m.cmd.Wait(); err != nil {
		m.t.Errorf("%s ended with %v\n%s", m.name, err, m.out.tail(2000))
	}
	m.cmd = nil
}

// Every process of a relay with two of each service is restarted in turn, under load: no callback goes without its 200, each is
// delivered once, and both upstreams together keep to the limit.
func TestRollingRestart(t *testing.T) {
	const limit = 4
	crm := topsii.New(topsii.Config{APIKey: strings.Repeat("k", 32), MaxHeld: 1_000_000})
	if err := crm.SetFault(topsii.Fault{Kind: topsii.Delay, Delay: 5 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	sim := httptest.NewServer(crm)
	t.Cleanup(sim.Close)
	services := []string{"state", "router", "upstream", "ingress"}
	addr := freeAddrs(t, 2*len(services)+2)
	doors := addr[2*len(services):]
	lists := map[string]string{}
	for i, s := range services {
		lists[s] = addr[2*i] + "," + addr[2*i+1]
	}
	common := append(os.Environ(), "GORACE=atexit_sleep_ms=0", "REDIS_URL="+redistest.Start(t).URL(), "REDIS_ALLOW_UNSAFE=true", "METRICS_ADDR=127.0.0.1:0",
		"STATE_GRPC_ADDR="+lists["state"], "ROUTER_GRPC_ADDR="+lists["router"], "INGRESS_STOP_DELAY=1s", "ENABLE_REAL_SEND=true",
		"ACK_BUDGET=10s", // a busy disk is no reason for a 503; a restart must not be one
		"TEST_BASE_URL="+sim.URL, "TEST_API_KEY="+strings.Repeat("k", 32), fmt.Sprint("TOPSII_CONCURRENCY=", limit))
	var members []*member
	for i, s := range services {
		for j := range 2 {
			m := &member{t: t, name: s, addr: addr[2*i+j], env: append(common[:len(common):len(common)], strings.ToUpper(s)+"_GRPC_ADDR="+addr[2*i+j],
				"INGRESS_HTTP_ADDR="+doors[j], "DATA_DIR="+t.TempDir())}
			m.start()
			t.Cleanup(m.stop)
			members = append(members, m)
		}
	}

	// The balancer: it sends to those whose readiness it saw last.
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var ready [2]atomic.Bool
	look := func() {
		for i, door := range doors {
			resp, err := client.Get("http://" + door + "/readyz")
			if err == nil {
				_ = resp.Body.Close()
			}
			ready[i].Store(err == nil && resp.StatusCode == 200)
		}
	}
	redistest.Poll(t, 60*time.Second, "both are ready", func() bool { look(); return ready[0].Load() && ready[1].Load() })
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	background.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			look()
			<-tick.C
		}
	})
	var calls, acked atomic.Int64
	for range 4 {
		background.Go(func() {
			for ctx.Err() == nil {
				call := int(calls.Add(1))
				door := call % 2
				if !ready[door].Load() {
					door = 1 - door
				}
				resp, err := client.Get("http://" + doors[door] + "/index.php?" + query(connectedEnd(call)))
				if err != nil {
					t.Errorf("call %d: %v", call, err)
					continue
				}
				body, _ := io.ReadAll(resp.Body)
				if resp.Body.Close(); resp.StatusCode != 200 {
					t.Errorf("call %d: %d %s", call, resp.StatusCode, body)
				}
				acked.Add(1)
			}
		})
	}
	more := func() {
		before := acked.Load()
		redistest.Poll(t, 60*time.Second, "callbacks are taken", func() bool { return acked.Load() >= before+50 })
	}
	more()
	for _, m := range members {
		m.stop()
		more()
		m.start()
		redistest.Poll(t, 60*time.Second, "both are ready", func() bool { return ready[0].Load() && ready[1].Load() })
		more()
	}
	cancel()
	background.Wait()
	redistest.Poll(t, 60*time.Second, "all are delivered", func() bool {
		for call := range calls.Load() {
			if len(crm.ByCall(call+1)) == 0 {
				return false
			}
		}
		return true
	})
	for call := range calls.Load() {
		if n := len(crm.ByCall(call + 1)); n != 1 {
			t.Errorf("call %d was delivered %d times", call+1, n)
		}
	}
	if most := crm.Stats().MaxInFlight; most > limit {
		t.Errorf("%d requests at once, want at most %d of both upstreams", most, limit)
	}
	t.Logf("%d callbacks, %d at once at the most", acked.Load(), crm.Stats().MaxInFlight)
}
