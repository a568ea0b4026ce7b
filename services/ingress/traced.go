package ingress

import (
	"cmp"
	"net/http"
	"strings"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// traced opens the server span of a callback. Nothing is wrapped while tracing is off. otelhttp would do the same and compute
// metrics for nobody besides, which costs as much as two spans.
func (s *Service) traced(next http.Handler) http.Handler {
	if !s.tel.Tracing() {
		return next
	}
	server := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer)}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		path := strings.ToValidUTF8(r.URL.Path, "\uFFFD") // anything else would have the whole message of spans refused
		ctx, span := s.tel.Tracer().Start(ctx, r.Method+" "+path, server...)
		defer span.End()
		r = r.WithContext(ctx)
		if !span.IsRecording() {
			next.ServeHTTP(w, r)
			return
		}
		answer := &noted{ResponseWriter: w}
		next.ServeHTTP(answer, r)
		status := cmp.Or(answer.status, http.StatusOK)
		span.SetAttributes(semconv.HTTPRequestMethodKey.String(r.Method), semconv.URLPath(path), semconv.ClientAddress(s.peer(r)),
			semconv.HTTPResponseStatusCode(status))
		if status >= http.StatusInternalServerError {
			span.SetStatus(codes.Error, "")
		}
	})
}

// noted remembers with which status a request was answered; 0 is the one that net/http sends by itself.
type noted struct {
	http.ResponseWriter
	status int
}

func (n *noted) WriteHeader(status int) {
	n.status = cmp.Or(n.status, status)
	n.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (n *noted) Unwrap() http.ResponseWriter { return n.ResponseWriter }
