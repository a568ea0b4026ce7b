package telemetry_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"callrelay/platform/telemetry"
)

// clean takes the tester's own OTEL variables out of the test.
func clean(t *testing.T) {
	t.Helper()
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "OTEL_") {
			t.Setenv(name, "")
		}
	}
}

func TestTracingIsOffWithoutEndpoint(t *testing.T) {
	clean(t)
	for name, environ := range map[string]map[string]string{
		"nothing set":   {},
		"sdk disabled":  {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
		"exporter none": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
	} {
		t.Run(name, func(t *testing.T) {
			for k, v := range environ {
				t.Setenv(k, v)
			}
			tel, err := telemetry.Start(t.Context(), "one")
			if err != nil {
				t.Fatal(err)
			}
			if tel.Tracing() {
				t.Error("tracing is on")
			}
			const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
			ctx, span := tel.Tracer().Start(telemetry.Extract(t.Context(), parent), "x")
			span.End()
			if span.IsRecording() {
				t.Error("a span is recorded")
			}
			if got := telemetry.Inject(ctx); got != parent {
				t.Errorf("the caller's trace is not carried on: %q", got)
			}
			if err := tel.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestOnlyGRPCIsSpoken(t *testing.T) {
	clean(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	if _, err := telemetry.Start(t.Context(), "one"); err == nil || !strings.Contains(err.Error(), "OTEL_EXPORTER_OTLP_PROTOCOL") {
		t.Errorf("got %v", err)
	}
}

// receiver is an OTLP endpoint that keeps the names of services and spans.
type receiver struct {
	collector.UnimplementedTraceServiceServer
	mu  sync.Mutex
	got []string
}

func (r *receiver) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rs := range req.GetResourceSpans() {
		for _, a := range rs.GetResource().GetAttributes() {
			if a.GetKey() != "service.name" {
				continue
			}
			for _, ss := range rs.GetScopeSpans() {
				for _, s := range ss.GetSpans() {
					r.got = append(r.got, a.GetValue().GetStringValue()+"/"+s.GetName())
				}
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func (r *receiver) spans() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.Sort(r.got)
	return r.got
}

func receive(t *testing.T) *receiver {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{}
	s := grpc.NewServer()
	collector.RegisterTraceServiceServer(s, r)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	clean(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+l.Addr().String())
	t.Setenv("OTEL_SERVICE_NAME", "from-the-environment")
	return r
}

func TestGroupExportsEachServiceUnderItsOwnName(t *testing.T) {
	r := receive(t)
	g, err := telemetry.StartGroup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	one, two := g.Service("one"), g.Service("two")
	if g.Service("one") != one {
		t.Error("the same name gives another telemetry")
	}
	emit := func(tel *telemetry.Telemetry, name string) {
		_, span := tel.Tracer().Start(t.Context(), name)
		span.End()
	}
	emit(one, "a")
	emit(two, "b")
	if err := one.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if got, want := r.spans(), []string{"one/a", "two/b"}; !slices.Equal(got, want) {
		t.Errorf("after the first service ended: %v, want %v", got, want)
	}
	emit(two, "c") // one's end must not have ended two
	if err := g.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if got, want := r.spans(), []string{"one/a", "two/b", "two/c"}; !slices.Equal(got, want) {
		t.Errorf("at the end: %v, want %v", got, want)
	}
}

func TestStartAloneSendsEverythingAtShutdown(t *testing.T) {
	r := receive(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	tel, err := telemetry.Start(t.Context(), "alone")
	if err != nil {
		t.Fatal(err)
	}
	_, span := tel.Tracer().Start(t.Context(), "a")
	span.End()
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if got, want := r.spans(), []string{"alone/a"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestSamplerOfTheEnvironment(t *testing.T) {
	r := receive(t)
	t.Setenv("OTEL_TRACES_SAMPLER", "always_off")
	tel, err := telemetry.Start(t.Context(), "alone")
	if err != nil {
		t.Fatal(err)
	}
	_, span := tel.Tracer().Start(t.Context(), "a")
	span.End()
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if got := r.spans(); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

func TestInjectedProcessorSeesAllUnlessTheParentSaysNot(t *testing.T) {
	clean(t)
	t.Setenv("OTEL_TRACES_SAMPLER", "always_off") // a developer's shell must not change tests
	recorder := tracetest.NewSpanRecorder()
	tel := telemetry.NewGroup(recorder).Service("one")
	if !tel.Tracing() {
		t.Error("tracing is off")
	}
	for _, parent := range []string{"", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"} {
		_, span := tel.Tracer().Start(telemetry.Extract(t.Context(), parent), "parent "+parent)
		span.End()
	}
	if got := len(recorder.Ended()); got != 2 {
		t.Errorf("%d spans, want 2", got)
	}
}

func TestInjectExtract(t *testing.T) {
	if got := telemetry.Inject(t.Context()); got != "" {
		t.Errorf("Inject without a span: %q", got)
	}
	for _, bad := range []string{"", "x", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", "\xff"} {
		if ctx := telemetry.Extract(t.Context(), bad); ctx != t.Context() {
			t.Errorf("Extract(%q) changed the context", bad)
		}
	}
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	ctx := telemetry.Extract(t.Context(), parent)
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsRemote() || !sc.IsSampled() || sc.SpanID().String() != "b7ad6b7169203331" {
		t.Errorf("Extract: %+v", sc)
	}
	if got := telemetry.Inject(ctx); got != parent {
		t.Errorf("Inject: %q", got)
	}
}

func scrape(t *testing.T, tel *telemetry.Telemetry) string {
	t.Helper()
	w := httptest.NewRecorder()
	tel.MetricsHandler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("scrape: %d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestMetricsOfAllServicesShareOneRegistry(t *testing.T) {
	clean(t)
	g := telemetry.NewGroup(nil)
	for i, name := range []string{"one", "two"} {
		counter, err := g.Service(name).Meter().Int64Counter("callbacks")
		if err != nil {
			t.Fatal(err)
		}
		counter.Add(t.Context(), int64(i+1))
	}
	text := scrape(t, g.Service("one"))
	for _, line := range []string{`callbacks_total{service_name="one"} 1`, `callbacks_total{service_name="two"} 2`, "go_goroutines "} {
		if !strings.Contains(text, line) {
			t.Errorf("no %s in:\n%s", line, text)
		}
	}
	if err := g.Service("one").Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := g.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestLog(t *testing.T) {
	clean(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = w
	tel := telemetry.NewGroup(tracetest.NewSpanRecorder()).Service("one")
	os.Stdout = stdout
	ctx, span := tel.Tracer().Start(t.Context(), "x")
	tel.Log().With("k", "v").InfoContext(ctx, "traced")
	tel.Log().Info("not traced")
	span.End()
	_ = w.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var lines []map[string]any
	for line := range strings.Lines(string(text)) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		lines = append(lines, m)
	}
	if len(lines) != 2 {
		t.Fatalf("got %s", text)
	}
	if m := lines[0]; m["service"] != "one" || m["k"] != "v" || m["trace_id"] != span.SpanContext().TraceID().String() {
		t.Errorf("got %v", m)
	}
	if _, has := lines[1]["trace_id"]; has {
		t.Errorf("got %v", lines[1])
	}
}

func BenchmarkInject(b *testing.B) {
	ctx := telemetry.Extract(b.Context(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	b.ReportAllocs()
	for b.Loop() {
		telemetry.Inject(ctx)
	}
}

func BenchmarkExtract(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		telemetry.Extract(b.Context(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	}
}
