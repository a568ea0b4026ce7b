package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/config"
	"callrelay/platform/run"
	"callrelay/platform/telemetry"
	"callrelay/services/upstream"
)

const (
	callbackTrace = "0af7651916cd43dd8448eb211c80319c"
	commitSpan    = "b7ad6b7169203331"
	phone1Trace   = "11111111111111111111111111111111"
)

// oneDelivery is a state that has one delivery, and takes its result.
type oneDelivery struct {
	statev1.UnimplementedStateServiceServer
	result chan *statev1.LeaseResult
}

func (s *oneDelivery) Register(r grpc.ServiceRegistrar) { statev1.RegisterStateServiceServer(r, s) }

func (s *oneDelivery) Run(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func (s *oneDelivery) Ready() error { return nil }

func (s *oneDelivery) Share(_ context.Context, r *statev1.ShareRequest) (*statev1.ShareResponse, error) {
	return &statev1.ShareResponse{Share: r.GetLimit()}, nil
}

func (s *oneDelivery) Lease(stream grpc.BidiStreamingServer[statev1.LeaseRequest, statev1.LeaseResponse]) error {
	for first := true; ; first = false {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		answer := &statev1.LeaseResponse{}
		if first && request.Destination != "topsii" {
			return fmt.Errorf("destination %q", request.Destination)
		}
		if first && request.Credit > 0 && s.result != nil {
			answer.Work = append(answer.Work, &statev1.LeaseWork{Call: "ameyo/193416", Token: "t1", Delivery: &statev1.Delivery{
				Number: 2, Destination: "topsii", Endpoint: "createNotAnswer", RequestId: "r1",
				Payload:     []byte(`{"predictiveCallCreateNotAnswer":{"callId":193416}}`),
				Traceparent: "00-" + callbackTrace + "-" + commitSpan + "-01",
				Link:        "00-" + phone1Trace + "-2222222222222222-01",
			}})
		}
		for _, result := range request.Results {
			answer.Answers = append(answer.Answers, &statev1.LeaseAnswer{Id: result.Id})
			s.result <- result
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}

// start runs upstream against a state with one delivery, and returns the delivery's result. What is to be looked at while it
// still runs is last.
func start(t *testing.T, tel *telemetry.Telemetry, env map[string]string, running ...func()) *statev1.LeaseResult {
	t.Helper()
	cfg, err := config.LoadFrom[upstream.Config](env)
	if err != nil {
		t.Fatal(err)
	}
	fake := &oneDelivery{result: make(chan *statev1.LeaseResult, 1)}
	state, err := run.Start(run.HostConfig{Name: "state"}, fake)
	if err != nil {
		t.Fatal(err)
	}
	svc, err := upstream.New(cfg, tel, state.Conn())
	if err != nil {
		t.Fatal(err)
	}
	if svc.Ready() == nil {
		t.Error("ready before it runs")
	}
	host, err := run.Start(run.HostConfig{Name: "upstream", Telemetry: tel}, svc)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(host.Stop(), state.Stop()); err != nil {
			t.Errorf("stopping: %v", err)
		}
	}()
	select {
	case result := <-fake.result:
		if err := svc.Ready(); err != nil {
			t.Errorf("not ready while it works: %v", err)
		}
		for _, look := range running {
			look()
		}
		return result
	case <-time.After(10 * time.Second):
		t.Fatal("no result within 10 s")
		return nil
	}
}

func TestDeliversWithOneTrace(t *testing.T) {
	var traceparent string
	crm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		traceparent = r.Header.Get("Traceparent")
		_, _ = io.WriteString(w, `{"result":"success"}`)
	}))
	defer crm.Close()
	recorder := tracetest.NewSpanRecorder()
	group := telemetry.NewGroup(recorder)
	defer func() { _ = group.Shutdown(t.Context()) }()
	result := start(t, group.Service("callrelay-upstream"), map[string]string{
		"ENABLE_REAL_SEND": "true", "TEST_BASE_URL": crm.URL, "TEST_API_KEY": key32,
	})
	if result.GetDone() == nil || result.Token != "t1" || result.Delivery != 2 || result.RequestId != "r1" {
		t.Fatalf("result %v", result)
	}

	// upstream.deliver in the callback's trace, below it one request, and its id is what the CRM gets.
	spans := map[string]sdktrace.ReadOnlySpan{}
	for _, s := range recorder.Ended() {
		spans[s.SpanKind().String()+" "+s.Name()] = s
		for _, a := range s.Attributes() {
			if strings.Contains(a.Value.String(), key32) {
				t.Errorf("the API key is in %s", a.Key)
			}
		}
	}
	deliver, request := spans["consumer upstream.deliver"], spans["client HTTP POST"]
	if len(recorder.Ended()) != 2 || deliver == nil || request == nil {
		t.Fatalf("spans %v", spans)
	}
	if got := deliver.Parent(); got.TraceID().String() != callbackTrace || got.SpanID().String() != commitSpan || !got.IsRemote() {
		t.Errorf("upstream.deliver hangs on %v", got)
	}
	if request.Parent().SpanID() != deliver.SpanContext().SpanID() || request.SpanContext().TraceID().String() != callbackTrace {
		t.Errorf("the request hangs on %v", request.Parent())
	}
	if want := "00-" + callbackTrace + "-" + request.SpanContext().SpanID().String() + "-01"; traceparent != want {
		t.Errorf("the CRM got traceparent %q, want %q", traceparent, want)
	}
	if links := deliver.Links(); len(links) != 1 || links[0].SpanContext.TraceID().String() != phone1Trace {
		t.Errorf("links %v", links)
	}
	got := map[string]string{}
	for _, a := range deliver.Attributes() {
		got[string(a.Key)] = a.Value.String()
	}
	for key, want := range map[string]string{
		"callrelay.request_id": "r1", "callrelay.call_id": "ameyo/193416", "callrelay.delivery": "ameyo/193416/2", "callrelay.attempt": "1",
		"callrelay.destination": "topsii", "callrelay.endpoint": "createNotAnswer", "callrelay.outcome": "delivered", "callrelay.uncertain": "false",
	} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
	if trace.SpanKindConsumer != deliver.SpanKind() {
		t.Errorf("kind %v", deliver.SpanKind())
	}
}

func TestSendDisabled(t *testing.T) {
	crm := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("something was sent") }))
	defer crm.Close()
	result := start(t, telemetry.NewGroup(nil).Service("callrelay-upstream"), map[string]string{"TEST_BASE_URL": crm.URL, "TEST_API_KEY": key32})
	if result.GetEnd().GetState() != statev1.DeliveryState_DELIVERY_STATE_SEND_DISABLED {
		t.Errorf("result %v", result)
	}
	want := crm.URL + "/fasthelp5-server/service/callmanage/predictiveCallApiService/createNotAnswer.json"
	if a := result.Attempt; a.GetUrl() != want || a.GetEndpoint() != "createNotAnswer" || a.GetNext() != "send_disabled" {
		t.Errorf("attempt %v", a)
	}
}

func TestMetrics(t *testing.T) {
	crm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"result":"success"}`) }))
	defer crm.Close()
	group := telemetry.NewGroup(nil)
	defer func() { _ = group.Shutdown(t.Context()) }()
	text := func() string {
		page := httptest.NewRecorder()
		group.MetricsHandler().ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		return page.Body.String()
	}
	var page string
	start(t, group.Service("callrelay-upstream"), map[string]string{"ENABLE_REAL_SEND": "true", "TEST_BASE_URL": crm.URL, "TEST_API_KEY": key32}, func() {
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); { // until the result is answered
			if page = text(); strings.Contains(page, `callrelay_upstream_unanswered{callrelay_destination="topsii",service_name="callrelay-upstream"} 0`) {
				break
			}
		}
	})
	for _, want := range []string{
		`callrelay_upstream_deliveries_total{callrelay_destination="topsii",callrelay_outcome="delivered",service_name="callrelay-upstream"} 1`,
		`callrelay_upstream_attempts_total{callrelay_destination="topsii",service_name="callrelay-upstream"} 1`,
		`callrelay_upstream_attempt_duration_seconds_count{callrelay_destination="topsii",service_name="callrelay-upstream"} 1`,
		`callrelay_upstream_in_flight{callrelay_destination="topsii",service_name="callrelay-upstream"} 0`,
		`callrelay_upstream_unanswered{callrelay_destination="topsii",service_name="callrelay-upstream"} 0`,
		`callrelay_upstream_breaker{callrelay_destination="topsii",service_name="callrelay-upstream"} 0`,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(text(), "callrelay_upstream_breaker{") {
		t.Error("a consumer that has ended is still observed: the next one of its destination would be, too")
	}
	if t.Failed() {
		t.Log(page)
	}
}
