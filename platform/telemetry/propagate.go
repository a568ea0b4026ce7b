package telemetry

import (
	"context"
	"strings"

	"go.opentelemetry.io/otel/propagation"
)

// carrier holds the one header that travels inside our messages, so that no map is made for each item of a batch.
type carrier string

func (c *carrier) Get(key string) string {
	if key == "traceparent" {
		return string(*c)
	}
	return ""
}

func (c *carrier) Set(key, value string) {
	if key == "traceparent" {
		*c = carrier(value)
	}
}

func (*carrier) Keys() []string { return []string{"traceparent"} }

// Inject returns the W3C traceparent of the span in ctx, "" when there is none.
func Inject(ctx context.Context) string {
	var c carrier
	propagation.TraceContext{}.Inject(ctx, &c)
	return string(c)
}

// TraceID is the trace id in a traceparent, "" when it is none.
func TraceID(traceparent string) string {
	parts := strings.Split(traceparent, "-")
	if len(parts) != 4 {
		return ""
	}
	return parts[1]
}

// Extract returns ctx with the remote parent that traceparent names; ctx itself when it is empty or invalid.
func Extract(ctx context.Context, traceparent string) context.Context {
	if traceparent == "" {
		return ctx
	}
	c := carrier(traceparent)
	return propagation.TraceContext{}.Extract(ctx, &c)
}
