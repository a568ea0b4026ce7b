package baseline

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"callrelay/sim/topsii"
)

func callback(id int) string {
	return fmt.Sprintf("/index.php?unique_id=%d&customerCRTId=d336-%d&systemDisposition=CONNECTED&dialledPhone=03000001234&userId=sim_sv7"+
		"&callConnectedTime=2026%%2F03%%2F06+10%%3A15%%3A30+%%2B0900", id, id)
}

// crm is the simulator, which answers nothing until its faults are cleared.
func crm(t *testing.T) (*topsii.Server, *CRM) {
	sim := topsii.New(topsii.Config{APIKey: APIKey, KeepPayloads: true})
	if err := sim.SetFault(topsii.Fault{Kind: topsii.Hang, Effect: true}); err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(sim)
	t.Cleanup(ts.Close)
	t.Cleanup(sim.ClearFaults)
	return sim, NewCRM(ts.URL)
}

// deliversOnce sends each callback twice while nothing is answered, and then wants each delivered once.
func deliversOnce(t *testing.T, relay http.Handler, sim *topsii.Server) {
	t.Helper()
	const callbacks = 3 * Workers
	var wg sync.WaitGroup
	for id := range callbacks {
		for range 2 {
			wg.Go(func() {
				w := httptest.NewRecorder()
				relay.ServeHTTP(w, httptest.NewRequest(http.MethodGet, callback(id+1), nil))
				if w.Code != http.StatusOK || w.Body.String() != ack {
					t.Errorf("%d %s", w.Code, w.Body)
				}
			})
		}
	}
	wg.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := sim.Await(ctx, func() bool { return sim.Stats().InFlight == Workers }); err != nil {
		t.Fatal(err)
	}
	sim.ClearFaults()
	if err := sim.Await(ctx, func() bool { s := sim.Stats(); return s.InFlight == 0 && sim.Count(topsii.CallEnd) >= callbacks }); err != nil {
		t.Fatal(err)
	}
	if s := sim.Stats(); s.Requests != callbacks || len(sim.Duplicates()) != 0 || s.MaxInFlight != Workers {
		t.Errorf("%+v %v", s, sim.Duplicates())
	}
}

func TestMemory(t *testing.T) {
	sim, to := crm(t)
	deliversOnce(t, NewMemory(to), sim)
}

// redisServer starts a Redis for the test and returns its socket.
func redisServer(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	socket := filepath.Join(dir, "redis.sock")
	cmd := exec.Command("redis-server", "--port", "0", "--unixsocket", socket, "--dir", dir, "--save", "")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (make test installs it)", err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	for began := time.Now(); ; {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Fatal("redis-server does not answer")
		}
		<-time.After(5 * time.Millisecond)
	}
	return socket
}

func TestAsynq(t *testing.T) {
	sim, to := crm(t)
	relay, err := NewAsynq(to, redisServer(t))
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Close()
	deliversOnce(t, relay, sim)
}

func TestFloor(t *testing.T) {
	sim, to := crm(t)
	relay, err := NewFloor(t.Context(), to, redisServer(t))
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Close()
	deliversOnce(t, relay, sim)
}

func TestWrongCallbacks(t *testing.T) {
	for _, relay := range []http.Handler{NewMemory(nil), &Asynq{}, &Floor{}} {
		for _, target := range []string{"/index.php", callback(1)[:150] + "&callConnectedTime=x"} {
			w := httptest.NewRecorder()
			relay.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
			if w.Code != http.StatusBadRequest {
				t.Errorf("%s: %d %s", target, w.Code, w.Body)
			}
		}
	}
}

func TestRefusalsOfTheCRM(t *testing.T) {
	sim, to := crm(t)
	for _, f := range []topsii.Fault{{Kind: topsii.Fail, MessageCode: "ETYP0040"}, {Kind: topsii.NonJSON}, {Kind: topsii.Cut}} {
		if err := sim.SetFault(f); err != nil {
			t.Fatal(err)
		}
		_, payload, err := read(httptest.NewRequest(http.MethodGet, callback(1), nil))
		if err != nil {
			t.Fatal(err)
		}
		if err := to.Deliver(t.Context(), payload); err == nil {
			t.Errorf("%s counts as taken", f.Kind)
		}
	}
}
