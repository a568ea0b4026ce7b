package upstream

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"callrelay/platform/telemetry"
)

// A span of a request says where it went and what came of it, but not its query: Kommo is searched by phone numbers, and a
// webhook's may hold its secret.
func TestClientSpan(t *testing.T) {
	var sent string
	crm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent = r.Header.Get("Traceparent")
		switch r.URL.Path {
		case "/refused":
			w.WriteHeader(http.StatusForbidden)
		case "/cut":
			w.Header().Set("Content-Length", "10")
		}
		_, _ = io.WriteString(w, "answer")
	}))
	defer crm.Close()
	for _, test := range []struct {
		url    string
		status codes.Code
		want   string
	}{
		{crm.URL + "/contacts", codes.Unset, "http.request.method=GET server.address=127.0.0.1 url.full=" + crm.URL + "/contacts http.response.status_code=200"},
		{crm.URL + "/refused", codes.Error, "http.response.status_code=403 error.type=403"},
		{crm.URL + "/cut", codes.Error, "http.response.status_code=200 error.type=*errors.errorString"},
		{"http://127.0.0.1:1/", codes.Error, "url.full=http://127.0.0.1:1/ error.type=*net.OpError"},
	} {
		t.Run(test.url, func(t *testing.T) {
			recorder := tracetest.NewSpanRecorder()
			client := traced{http.DefaultTransport, telemetry.NewGroup(recorder).Service("one").Tracer()}
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, strings.Replace(test.url, "//", "//user:hidden@", 1)+"?query=03000001234", nil)
			if err != nil {
				t.Fatal(err)
			}
			if answer, err := client.RoundTrip(request); err == nil {
				_, _ = io.ReadAll(answer.Body)
				if len(recorder.Ended()) != 0 {
					t.Error("the span ended before the answer was read")
				}
				_ = answer.Body.Close()
			}
			if len(recorder.Ended()) != 1 || len(request.Header) != 0 {
				t.Fatalf("%d spans, the request's headers are now %v", len(recorder.Ended()), request.Header)
			}
			span, got := recorder.Ended()[0], ""
			for _, kv := range span.Attributes() {
				got += " " + string(kv.Key) + "=" + kv.Value.String()
			}
			for want := range strings.FieldsSeq(test.want) {
				if !strings.Contains(got+" ", " "+want+" ") {
					t.Errorf("no %s in%s", want, got)
				}
			}
			if strings.Contains(got, "03000001234") || strings.Contains(got, "hidden") || span.Status().Code != test.status {
				t.Errorf("status %v, attributes%s", span.Status(), got)
			}
			id := span.SpanContext()
			if want := "00-" + id.TraceID().String() + "-" + id.SpanID().String() + "-01"; strings.HasPrefix(test.url, crm.URL) && sent != want {
				t.Errorf("traceparent %q was sent, want %q", sent, want)
			}
		})
	}
}
