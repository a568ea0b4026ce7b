package state

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel"

	"callrelay/platform/redistest"
)

// Without Redis the metrics say so, at each scrape and without a line in the log for each.
func TestMetricsWithoutRedis(t *testing.T) {
	var failed atomic.Int64
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) { failed.Add(1) }))
	r := redistest.Start(t)
	b := startHere(t, r.URL(), nil)
	scrape := func() string {
		answer := httptest.NewRecorder()
		b.tel.MetricsHandler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		return answer.Body.String()
	}
	const up, held = `callrelay_store_up{service_name="test"} `, "\ncallrelay_destination_held{"
	if got := scrape(); !strings.Contains(got, up+"1\n") || !strings.Contains(got, held) {
		t.Errorf("with Redis:\n%s", got)
	}
	r.Kill()
	for range 3 {
		if got := scrape(); !strings.Contains(got, up+"0\n") || strings.Contains(got, held) {
			t.Errorf("without Redis:\n%s", got)
		}
	}
	r.Up(t)
	redistest.Poll(t, 20*time.Second, "all metrics are back", func() bool {
		got := scrape()
		return strings.Contains(got, up+"1\n") && strings.Contains(got, held)
	})
	if n := failed.Load(); n > 0 {
		t.Errorf("%d scrapes failed", n)
	}
}

func TestOutageIsSaidOnce(t *testing.T) {
	var logged bytes.Buffer
	g, err := outage{log: slog.New(slog.NewTextHandler(&logged, nil))}, errors.New("no answer")
	for _, step := range []struct {
		err   error
		ready bool
		lines int
	}{{nil, true, 0}, {err, false, 0}, {nil, true, 0}, {err, true, 1}, {err, true, 1}, {err, false, 1}, {nil, true, 2}, {nil, true, 2}} {
		if g.change(step.err, step.ready); strings.Count(logged.String(), "\n") != step.lines {
			t.Errorf("after %+v:\n%s", step, &logged)
		}
	}
}
