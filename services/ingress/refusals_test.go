package ingress

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	routerv1 "callrelay/gen/callrelay/router/v1"
)

// The answer to a malformed callback never waits for its record, whatever happens to that.
func TestRefusalDoesNotWait(t *testing.T) {
	f := newSwitched()
	f.gone.Store(true)
	front, s := serveService(t, &f.fakeRouter, map[string]string{})
	poll(t, 5*time.Second, "there is a stream", s.pipe.Connected)
	for range 4 {
		began := time.Now()
		if resp, _ := do(t, "GET", front.URL+"/index.php?unique_id=x", nil); resp.StatusCode != 400 || time.Since(began) >= recordTime {
			t.Errorf("%d after %s", resp.StatusCode, time.Since(began))
		}
	}
	poll(t, 5*time.Second, "all are in the spool", func() bool { return s.spool.spool.Stats().Items == 4 })
	f.gone.Store(false)
	poll(t, 20*time.Second, "all are recorded", func() bool { return len(f.items()) == 4 })
}

// What is not text breaks neither a record nor the stream to router, on which everybody's callbacks are.
func TestRefusalOfWhatIsNotText(t *testing.T) {
	f := &fakeRouter{answer: accept}
	front, s := serveService(t, f, map[string]string{"TRUSTED_PROXIES": "127.0.0.0/8,::1/128"})
	s.refused.record(t.Context(), &request{id: "r1", received: time.Now(), method: "G\xff", path: "/\xff"}, fromKommo, &refusal{status: 400, field: "field\xff", message: "message\xff"})
	recorded := func(id string) (item *routerv1.RouteItem) {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, one := range f.items {
			if one.GetRequestId() == id {
				item = one
			}
		}
		return item
	}
	poll(t, 5*time.Second, "it is recorded", func() bool { return recorded("r1") != nil })
	if r := recorded("r1").GetRefused(); r.GetField() != "field\uFFFD" || r.GetMessage() != "message\uFFFD" || r.GetPath() != "/\uFFFD" || r.GetMethod() != "G\uFFFD" {
		t.Errorf("%v", r)
	}
	// The zone of an address is whatever its sender wrote.
	resp, body := do(t, "GET", front.URL+"/index.php?"+good, map[string]string{"X-Forwarded-For": "fe80::1%\xff"})
	if item := recorded(resp.Header.Get("X-Request-Id")); resp.StatusCode != 200 || item.GetPeer() != "fe80::1%\uFFFD" {
		t.Errorf("%d %s, recorded as from %q", resp.StatusCode, body, item.GetPeer())
	}
}

// A flood of malformed callbacks is answered, counted and told, but not stored; a moment later there is room for some again.
func TestRefusalsAreBounded(t *testing.T) {
	f := &fakeRouter{answer: accept}
	front, s := serveService(t, f, map[string]string{"REFUSED_BYTES_PER_HOUR": "65536"})
	query := "unique_id=x&x=" + strings.Repeat("x", 10_000)
	const flood, kept = 30, 6 // of 10.5 KB each
	for range flood {
		if resp, body := do(t, "GET", front.URL+"/index.php?"+query, nil); resp.StatusCode != 400 || !strings.Contains(body, "unique_id") {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
	}
	recorded := func() (n int) {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, item := range f.items {
			if item.GetRefused() != nil {
				n++
			}
		}
		return n
	}
	poll(t, 5*time.Second, "some are recorded", func() bool { return recorded() == kept })
	if n := s.refused.unrecorded.count(); n != flood-kept {
		t.Errorf("%d are told not to be recorded, want %d", n, flood-kept)
	}
	w := httptest.NewRecorder()
	s.tel.MetricsHandler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{`callrelay_outcome="refused",callrelay_source="ameyo.call_end"`, "callrelay_refused_unrecorded_total{"} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %s in\n%s", want, w.Body)
		}
	}
	if !s.refused.budget.AllowN(time.Now().Add(time.Hour), 65536) {
		t.Error("an hour later there is still no room")
	}
	// Good callbacks go on.
	if resp, _ := do(t, "GET", front.URL+"/index.php?"+good, nil); resp.StatusCode != 200 {
		t.Errorf("a good callback: %d", resp.StatusCode)
	}
}
