package upstream

import (
	"io"
	"net/http"
	"strconv"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"callrelay/platform/telemetry"
)

// traced makes a client span of each request, until its answer was read, and sends its traceparent along. otelhttp would do the
// same, compute metrics for nobody besides, and write down whole URLs: Kommo's have phone numbers in their queries, and those
// of webhooks secrets.
type traced struct {
	base   http.RoundTripper
	tracer trace.Tracer
}

var clientKind = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindClient)}

// RoundTrip leaves the request as it is, like every RoundTripper.
func (t traced) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, span := t.tracer.Start(r.Context(), "HTTP "+r.Method, clientKind...)
	r = r.WithContext(ctx)
	r.Header = r.Header.Clone()
	propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(r.Header))
	answer, err := t.base.RoundTrip(r)
	if !span.IsRecording() {
		return answer, err
	}
	where := *r.URL
	where.User, where.RawQuery = nil, ""
	method, address, full := semconv.HTTPRequestMethodKey.String(r.Method), semconv.ServerAddress(r.URL.Hostname()), semconv.URLFull(where.String())
	if err != nil {
		span.SetAttributes(method, address, full, semconv.ErrorType(err))
		span.SetStatus(codes.Error, telemetry.MaskDigits(err.Error()))
		span.End()
		return answer, err
	}
	span.SetAttributes(method, address, full, semconv.HTTPResponseStatusCode(answer.StatusCode))
	if answer.StatusCode >= http.StatusBadRequest {
		span.SetAttributes(semconv.ErrorTypeKey.String(strconv.Itoa(answer.StatusCode)))
		span.SetStatus(codes.Error, "")
	}
	answer.Body = &tracedBody{answer.Body, span}
	return answer, nil
}

// tracedBody ends the span of its request.
type tracedBody struct {
	io.ReadCloser
	span trace.Span
}

func (b *tracedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		b.span.SetAttributes(semconv.ErrorType(err))
		b.span.SetStatus(codes.Error, telemetry.MaskDigits(err.Error()))
	}
	return n, err
}

func (b *tracedBody) Close() error {
	b.span.End()
	return b.ReadCloser.Close()
}
