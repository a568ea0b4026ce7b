// Package trace asserts the trace of one callback as a literal tree: every hop from the dialer's request to TopS.II's answer,
// through the queue, in one trace.
package trace

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"callrelay/platform/config"
	"callrelay/platform/redistest"
	"callrelay/platform/run"
	"callrelay/platform/telemetry"
	"callrelay/services/ingress"
	"callrelay/services/router"
	"callrelay/services/state"
	"callrelay/services/upstream"
	"callrelay/sim/topsii"
)

// relay is all four services in this process, traced into memory.
type relay struct {
	url   string
	sim   *topsii.Server
	spans *tracetest.InMemoryExporter
	hosts []*run.Host
}

func start(t *testing.T) *relay {
	t.Helper()
	sim := topsii.New(topsii.Config{KeepPayloads: true})
	crm := httptest.NewServer(sim)
	t.Cleanup(crm.Close)
	env := map[string]string{
		"REDIS_URL": redistest.Start(t).URL(), "INGRESS_HTTP_ADDR": "127.0.0.1:0", "SPOOL_DIR": t.TempDir(),
		"ENABLE_REAL_SEND": "true", "TEST_BASE_URL": crm.URL, "TEST_API_KEY": strings.Repeat("k", 32),
	}
	r := &relay{sim: sim, spans: tracetest.NewInMemoryExporter()}
	group := telemetry.NewGroup(sdktrace.NewSimpleSpanProcessor(r.spans))
	t.Cleanup(func() {
		for _, h := range slices.Backward(r.hosts) {
			if err := h.Stop(); err != nil {
				t.Error(err)
			}
		}
		_ = group.Shutdown(context.Background())
	})
	host := func(name string, svc run.Service, err error) *run.Host {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		h, err := run.Start(run.HostConfig{Name: name, GRPCAddr: "127.0.0.1:0", StopTimeout: time.Second, Telemetry: group.Service("callrelay-" + name)}, svc)
		if err != nil {
			t.Fatal(err)
		}
		r.hosts = append(r.hosts, h)
		redistest.Poll(t, 10*time.Second, name+" is ready", func() bool { return svc.Ready() == nil })
		return h
	}
	stateService, err := state.New(load[state.Config](t, env), group.Service("callrelay-state"))
	stateHost := host("state", stateService, err)
	routerService, err := router.New(load[router.Config](t, env), group.Service("callrelay-router"), stateHost.Conn())
	routerHost := host("router", routerService, err)
	upstreamService, err := upstream.New(load[upstream.Config](t, env), group.Service("callrelay-upstream"), stateHost.Conn())
	host("upstream", upstreamService, err)
	ingressService, err := ingress.New(load[ingress.Config](t, env), group.Service("callrelay-ingress"), routerHost.Conn())
	host("ingress", ingressService, err)
	r.url = "http://" + ingressService.HTTPAddr()
	return r
}

func load[T any](t *testing.T, env map[string]string) T {
	t.Helper()
	cfg, err := config.LoadFrom[T](env)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func (r *relay) get(t *testing.T, pathAndQuery, traceparent string) *http.Response {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, r.url+pathAndQuery, nil)
	if err != nil {
		t.Fatal(err)
	}
	if traceparent != "" {
		req.Header.Set("traceparent", traceparent)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d", resp.StatusCode)
	}
	return resp
}

// One callback, the context that the dialer sends it in, and the trace that follows.
const (
	callEnd = "/index.php?unique_id=193416&customerCRTId=crt&systemDisposition=CONNECTED&userId=agent1&dialledPhone=03000000001"
	dialer  = "00-11111111111111111111111111111111-0000000000000001-01"
	want    = `callrelay-ingress: GET /index.php (server)
  callrelay-ingress: ingress.accept (internal)
    callrelay-router: router.decide (internal)
      callrelay-state: state.commit (server)
        callrelay-upstream: upstream.deliver (consumer)
          callrelay-upstream: HTTP POST (client)
`
)

// tree draws the spans of the dialer's trace, children below their parents, siblings in the order of their start.
func tree(spans tracetest.SpanStubs) string {
	id, _ := trace.TraceIDFromHex("11111111111111111111111111111111")
	var b strings.Builder
	var draw func(parent trace.SpanID, depth int)
	draw = func(parent trace.SpanID, depth int) {
		var children tracetest.SpanStubs
		for _, s := range spans {
			if s.SpanContext.TraceID() == id && s.Parent.SpanID() == parent {
				children = append(children, s)
			}
		}
		slices.SortFunc(children, func(a, b tracetest.SpanStub) int { return a.StartTime.Compare(b.StartTime) })
		for _, s := range children {
			service, _ := s.Resource.Set().Value("service.name")
			fmt.Fprintf(&b, "%s%s: %s (%s)\n", strings.Repeat("  ", depth), service.AsString(), s.Name, s.SpanKind)
			draw(s.SpanContext.SpanID(), depth+1)
		}
	}
	draw(trace.SpanID{0, 0, 0, 0, 0, 0, 0, 1}, 0)
	return b.String()
}

func TestOneTracePerCallback(t *testing.T) {
	r := start(t)
	resp := r.get(t, callEnd, dialer)
	if got := resp.Header.Get("traceparent"); !strings.HasPrefix(got, "00-11111111111111111111111111111111-") {
		t.Errorf("the ack's traceparent is %q", got)
	}
	if resp.Header.Get("X-Request-Id") == "" {
		t.Error("the ack has no X-Request-Id")
	}
	got := ""
	redistest.Poll(t, 10*time.Second, "the trace is complete", func() bool {
		got = tree(r.spans.GetSpans())
		return strings.Count(got, "\n") >= strings.Count(want, "\n")
	})
	if got != want {
		t.Errorf("the trace is\n%swant\n%s", got, want)
	}
	held := r.sim.ByCall(193416)
	if len(held) != 1 || !strings.HasPrefix(held[0].Traceparent(), "00-11111111111111111111111111111111-") {
		t.Errorf("TopS.II got %v", held)
	}
	noPhones(t, r.spans.GetSpans())
}

// A combined not-answer belongs to phone 2's trace and links phone 1's.
func TestCombinedNotAnswerLinksPhone1(t *testing.T) {
	r := start(t)
	two := "&phoneList=%5B%2203000000001%22%2C%2203000000002%22%5D"
	r.get(t, "/index.php?unique_id=5&systemDisposition=BUSY&shareablePhonesDialIndex=0"+two, "00-11111111111111111111111111111111-0000000000000001-01")
	r.get(t, "/index.php?unique_id=5&systemDisposition=NO_ANSWER&shareablePhonesDialIndex=1"+two, "00-22222222222222222222222222222222-0000000000000001-01")
	redistest.Poll(t, 10*time.Second, "the delivery's span has ended", func() bool {
		for _, s := range r.spans.GetSpans() {
			if s.Name == "upstream.deliver" {
				if s.SpanContext.TraceID().String() != "22222222222222222222222222222222" {
					t.Fatalf("in trace %s", s.SpanContext.TraceID())
				}
				return len(s.Links) == 1 && s.Links[0].SpanContext.TraceID().String() == "11111111111111111111111111111111"
			}
		}
		return false
	})
}

// noPhones fails when a span names an unmasked phone number or the API key.
func noPhones(t *testing.T, spans tracetest.SpanStubs) {
	t.Helper()
	for _, s := range spans {
		texts := []string{s.Name, s.Status.Description}
		for _, kv := range s.Attributes {
			texts = append(texts, show(kv))
		}
		for _, e := range s.Events {
			for _, kv := range e.Attributes {
				texts = append(texts, show(kv))
			}
		}
		for _, text := range texts {
			if strings.Contains(text, "03000000001") || strings.Contains(text, strings.Repeat("k", 32)) {
				t.Errorf("span %s says %q", s.Name, text)
			}
		}
	}
}

func show(kv attribute.KeyValue) string { return string(kv.Key) + "=" + kv.Value.String() }
