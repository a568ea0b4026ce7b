package contest

import (
	"regexp"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"

	"callrelay/bench/internal/proc"
)

func TestContenders(t *testing.T) {
	names := func(only string) (out []string) {
		for _, c := range Contenders(regexp.MustCompile(only)) {
			out = append(out, c.Name)
		}
		return out
	}
	if got := names(""); len(slices.Compact(slices.Sorted(slices.Values(got)))) != 17 || got[0] != "bare" {
		t.Errorf("%v", got)
	}
	if got := names("^memory$|one/always/off"); !slices.Equal(got, []string{"memory", "callrelay/one/always/off"}) {
		t.Errorf("%v", got)
	}
}

// export is an ExportTraceServiceRequest with spans in two resources.
func export() []byte {
	message := func(number protowire.Number, contents ...[]byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), slices.Concat(contents...))
	}
	name := message(5, []byte("span"))
	scope := message(2, message(1, []byte("scope")), message(2, name), message(2, name))
	return slices.Concat(
		message(1, message(1, message(2, []byte("attribute"))), scope, scope),
		message(1, message(2, message(2, name), protowire.AppendVarint(protowire.AppendTag(nil, 9, protowire.VarintType), 7))))
}

func TestSpansAreCounted(t *testing.T) {
	sink, err := newSpanSink()
	if err != nil {
		t.Fatal(err)
	}
	defer sink.server.Stop()
	conn, err := grpc.NewClient(sink.addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 2 {
		var answer []byte
		if err := conn.Invoke(t.Context(), "/opentelemetry.proto.collector.trace.v1.TraceService/Export", export(), &answer, grpc.ForceCodecV2(rawCodec{})); err != nil {
			t.Fatal(err)
		}
	}
	if n := sink.spans.Load(); n != 10 {
		t.Errorf("%d spans, want 10", n)
	}
	for cut := range export() {
		if n := countSpans(export()[:cut]); n > 5 {
			t.Errorf("%d spans in a part of 5", n)
		}
	}
}

func TestProcessorTimePerProcess(t *testing.T) {
	w := window{
		from: mark{tree: []proc.Process{{PID: 2, Name: "state", CPU: time.Second}, {PID: 3, Name: "redis-server", CPU: time.Second}}},
		to:   mark{tree: []proc.Process{{PID: 2, Name: "state", CPU: 3 * time.Second}, {PID: 3, Name: "redis-server", CPU: 2 * time.Second}}},
	}
	if got := w.cpu(); got["state"] != 2*time.Second || got["redis"] != time.Second {
		t.Errorf("%v", got)
	}
}
