package trace

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/grpc"

	"callrelay/platform/redistest"
)

// receiver is an OTLP collector that keeps spans in memory.
type receiver struct {
	collectorv1.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans tracetest.SpanStubs
}

// Export takes what a process sends.
func (r *receiver) Export(_ context.Context, req *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, process := range req.GetResourceSpans() {
		res := resource.NewSchemaless(attributes(process.GetResource().GetAttributes())...)
		for _, scope := range process.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				id := trace.TraceID(s.GetTraceId())
				stub := tracetest.SpanStub{Name: s.GetName(), Resource: res, Attributes: attributes(s.GetAttributes()),
					SpanKind:    trace.SpanKind(s.GetKind()), // numbered alike
					StartTime:   time.Unix(0, int64(s.GetStartTimeUnixNano())),
					SpanContext: trace.NewSpanContext(trace.SpanContextConfig{TraceID: id, SpanID: trace.SpanID(s.GetSpanId())})}
				if parent := s.GetParentSpanId(); len(parent) > 0 {
					stub.Parent = trace.NewSpanContext(trace.SpanContextConfig{TraceID: id, SpanID: trace.SpanID(parent)})
				}
				r.spans = append(r.spans, stub)
			}
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

func attributes(list []*commonv1.KeyValue) (out []attribute.KeyValue) {
	for _, kv := range list {
		out = append(out, attribute.String(kv.GetKey(), kv.GetValue().GetStringValue()))
	}
	return out
}

func (r *receiver) received() tracetest.SpanStubs {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.spans)
}

// receive starts a receiver on an address.
func receive(t *testing.T) (*receiver, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r, server := &receiver{}, grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, r)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return r, l.Addr().String()
}

// launch runs `callrelay up --sim --split` with env and nothing else that could change it, until the test ends.
func launch(t *testing.T, env ...string) *relay {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-race", "-o", dir, "callrelay/cmd/callrelay", "callrelay/services/ingress/cmd/ingress",
		"callrelay/services/router/cmd/router", "callrelay/services/state/cmd/state", "callrelay/services/upstream/cmd/upstream")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	addr := freeAddrs(t, 6)
	output, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "callrelay"), "up", "--sim", "--split", "--sim-addr", addr[0])
	cmd.Env = append(env, "PATH="+os.Getenv("PATH"), "REDIS_URL="+redistest.Start(t).URL(), "METRICS_ADDR=127.0.0.1:0", "INGRESS_HTTP_ADDR="+addr[1],
		"INGRESS_GRPC_ADDR="+addr[2], "ROUTER_GRPC_ADDR="+addr[3], "STATE_GRPC_ADDR="+addr[4], "UPSTREAM_GRPC_ADDR="+addr[5])
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the relay ended with %v", err)
		}
		_ = output.Close()
		if text, _ := os.ReadFile(output.Name()); t.Failed() {
			t.Logf("the relay's output:\n%s", text)
		}
	})
	r := &relay{url: "http://" + addr[1]}
	redistest.Poll(t, 30*time.Second, "the relay is ready", func() bool {
		resp, err := http.Get(r.url + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return r
}

// freeAddrs finds addresses that nobody listens on.
func freeAddrs(t *testing.T, n int) (out []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out = append(out, l.Addr().String())
	}
	return out
}

// The same tree as in one process, sent by four to a collector.
func TestOneTraceOverFourProcesses(t *testing.T) {
	collector, addr := receive(t)
	r := launch(t, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+addr, "OTEL_EXPORTER_OTLP_INSECURE=true", "OTEL_BSP_SCHEDULE_DELAY=50")
	r.get(t, callEnd, dialer)
	got := ""
	redistest.Poll(t, 10*time.Second, "the trace is complete", func() bool {
		got = tree(collector.received())
		return strings.Count(got, "\n") >= strings.Count(want, "\n")
	})
	if got != want {
		t.Errorf("the trace is\n%swant\n%s", got, want)
	}
	noPhones(t, collector.received())
}
