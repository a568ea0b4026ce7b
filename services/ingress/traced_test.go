package ingress

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"unicode/utf8"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"callrelay/platform/telemetry"
)

// The server span goes on with the sender's trace and says what was asked, by whom, and how it was answered.
func TestServerSpan(t *testing.T) {
	for answered, want := range map[int]struct {
		status int
		code   codes.Code
	}{0: {200, codes.Unset}, 200: {200, codes.Unset}, 400: {400, codes.Unset}, 503: {503, codes.Error}} {
		recorder := tracetest.NewSpanRecorder()
		s := &Service{tel: telemetry.NewGroup(recorder).Service("one")}
		var inside string
		handler := s.traced(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			inside = telemetry.Inject(r.Context())
			if answered != 0 {
				w.WriteHeader(answered)
			}
			_, _ = w.Write([]byte("answer"))
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
		}))
		r := httptest.NewRequest(http.MethodGet, "/index.php?dialledPhone=03000001234", nil)
		r.RemoteAddr = "192.0.2.10:1234"
		r.Header.Set("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
		r.Header.Set("tracestate", "vendor=1")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != want.status || len(recorder.Ended()) != 1 {
			t.Fatalf("status %d, spans %v", w.Code, recorder.Ended())
		}
		span, got := recorder.Ended()[0], ""
		for _, kv := range span.Attributes() {
			got += " " + string(kv.Key) + "=" + kv.Value.String()
		}
		attributes := fmt.Sprint(" http.request.method=GET url.path=/index.php client.address=192.0.2.10 http.response.status_code=", want.status)
		if got != attributes || span.Name() != "GET /index.php" || span.SpanKind() != trace.SpanKindServer || span.Status().Code != want.code {
			t.Errorf("%s, %v, status %v, attributes%s; want%s", span.Name(), span.SpanKind(), span.Status(), got, attributes)
		}
		if parent := span.Parent(); parent.SpanID().String() != "b7ad6b7169203331" || !parent.IsRemote() || span.SpanContext().TraceState().Get("vendor") != "1" ||
			inside != "00-0af7651916cd43dd8448eb211c80319c-"+span.SpanContext().SpanID().String()+"-01" {
			t.Errorf("it hangs on %v; inside, the traceparent is %q", parent, inside)
		}
	}
}

// A path that is not UTF-8 is repaired: as it is it would have the whole message refused in which its span is sent.
func TestServerSpanOfOddPath(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	s := &Service{tel: telemetry.NewGroup(recorder).Service("one")}
	s.traced(http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/v1/kommo/%ff/calls", nil))
	span := recorder.Ended()[0]
	for _, kv := range span.Attributes() {
		if !utf8.ValidString(kv.Value.String()) {
			t.Errorf("%s is %q", kv.Key, kv.Value.String())
		}
	}
	if span.Name() != "POST /v1/kommo/\uFFFD/calls" {
		t.Errorf("its name is %q", span.Name())
	}
}
