// Package telemetry owns how the services trace, measure and log: the standard OTEL_* variables, one provider per service also
// where several services share a process, Prometheus metrics, JSON logs with the trace's id, the names of all attributes,
// trace context inside messages, and the masking of phone numbers.
//
// It does not own what is traced or measured, it serves no HTTP of its own, and it sets no global provider or propagator:
// whatever reports anything was given its Telemetry.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Telemetry is what one service reports through.
type Telemetry struct {
	tracer  trace.Tracer
	meter   metric.Meter
	log     *slog.Logger
	tracing bool
	metrics http.Handler
	stop    []func(context.Context) error // its providers
	stopped sync.Once
	group   *Group // set where the service is all there is in the group
}

// Start makes the telemetry of a process with one service. Tracing is off, at no cost, unless an OTLP endpoint is set
// (OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT). service is the service.name, whatever the environment
// says. Starting does not wait for the endpoint.
func Start(ctx context.Context, service string) (*Telemetry, error) {
	g, err := StartGroup(ctx)
	if err != nil {
		return nil, err
	}
	t := g.Service(service)
	t.group = g
	return t, nil
}

// Tracer makes spans; without tracing they do nothing, but still carry the caller's trace on.
func (t *Telemetry) Tracer() trace.Tracer { return t.tracer }

// Meter makes instruments; they are told apart from the other services' by the label service_name.
func (t *Telemetry) Meter() metric.Meter { return t.meter }

// Log writes JSON to stdout, with the service's name and, where the context has one, the trace_id.
func (t *Telemetry) Log() *slog.Logger { return t.log }

// Tracing says whether spans go anywhere.
func (t *Telemetry) Tracing() bool { return t.tracing }

// MetricsHandler serves the metrics of the whole process to Prometheus.
func (t *Telemetry) MetricsHandler() http.Handler { return t.metrics }

// Shutdown sends what is left of the service's spans and ends its reporting.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	if t.group != nil {
		return t.group.Shutdown(ctx)
	}
	return t.stopProviders(ctx)
}

func (t *Telemetry) stopProviders(ctx context.Context) error {
	var errs []error
	t.stopped.Do(func() {
		for _, stop := range t.stop {
			errs = append(errs, stop(ctx))
		}
	})
	return errors.Join(errs...)
}

// Group is the telemetry of several services in one process: one provider for each, so that each has its own service.name,
// over one span processor and one Prometheus registry.
type Group struct {
	processor sdktrace.SpanProcessor // nil: tracing is off
	options   []sdktrace.TracerProviderOption
	registry  *prometheus.Registry

	mu       sync.Mutex
	services map[string]*Telemetry
}

// StartGroup makes a group as the OTEL_* variables say; see Start. The sampler is that of OTEL_TRACES_SAMPLER and
// OTEL_TRACES_SAMPLER_ARG, which the SDK reads itself.
func StartGroup(ctx context.Context) (*Group, error) {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		logger("telemetry").Warn("telemetry failed", "error", err)
	}))
	if !tracingWanted() {
		return newGroup(nil), nil
	}
	if p := firstSet("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"); p != "" && p != "grpc" {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL: %q is not supported, only grpc is (port 4317)", p)
	}
	exporter, err := otlptracegrpc.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("trace exporter: %w", err)
	}
	return newGroup(sdktrace.NewBatchSpanProcessor(exporter)), nil
}

func tracingWanted() bool {
	return firstSet("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT") != "" &&
		os.Getenv("OTEL_TRACES_EXPORTER") != "none" &&
		!strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true")
}

func firstSet(names ...string) string {
	for _, name := range names {
		if v := os.Getenv(name); v != "" {
			return v
		}
	}
	return ""
}

// NewGroup is for tests: spans go to processor (nil: tracing is off), all of them unless the parent says not.
func NewGroup(processor sdktrace.SpanProcessor) *Group {
	return newGroup(processor, sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())))
}

func newGroup(processor sdktrace.SpanProcessor, options ...sdktrace.TracerProviderOption) *Group {
	g := &Group{
		processor: processor,
		options:   options,
		registry:  prometheus.NewRegistry(),
		services:  map[string]*Telemetry{},
	}
	g.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return g
}

// Service returns the telemetry of the service with that service.name, the same one each time.
func (g *Group) Service(name string) *Telemetry {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t, ok := g.services[name]; ok {
		return t
	}
	log := logger(name)
	// The name comes last, so it wins over OTEL_SERVICE_NAME.
	res, err := resource.New(context.Background(),
		resource.WithTelemetrySDK(), resource.WithFromEnv(), resource.WithAttributes(semconv.ServiceName(name)))
	if err != nil {
		log.Warn("OTEL_RESOURCE_ATTRIBUTES is not used completely", "error", err)
	}
	t := &Telemetry{log: log, tracer: noop.Tracer{}, metrics: g.MetricsHandler(), tracing: g.processor != nil}
	if t.tracing {
		options := append([]sdktrace.TracerProviderOption{
			sdktrace.WithResource(res), sdktrace.WithSpanProcessor(shared{g.processor}),
		}, g.options...)
		traces := sdktrace.NewTracerProvider(options...)
		t.tracer = traces.Tracer(name)
		t.stop = append(t.stop, traces.Shutdown)
	}
	metrics := sdkmetric.NewMeterProvider(sdkmetric.WithResource(res), sdkmetric.WithReader(g.reader()))
	t.meter = metrics.Meter(name)
	t.stop = append(t.stop, metrics.Shutdown)

	g.services[name] = t
	return t
}

// reader collects one service's metrics into the shared registry.
func (g *Group) reader() sdkmetric.Reader {
	exporter, err := otelprom.New(
		otelprom.WithRegisterer(g.registry),
		otelprom.WithResourceAsConstantLabels(attribute.NewAllowKeysFilter(semconv.ServiceNameKey)),
		otelprom.WithoutScopeInfo(), // one scope per service: it would repeat service_name
		otelprom.WithoutTargetInfo(),
	)
	if err != nil {
		panic(err) // only for a registry that already has it, and the exporter describes no metric that could collide
	}
	return exporter
}

// MetricsHandler serves the metrics of all services to Prometheus.
func (g *Group) MetricsHandler() http.Handler {
	return promhttp.HandlerFor(g.registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// Shutdown ends all services' reporting, then sends what is left. It comes last in the process.
func (g *Group) Shutdown(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	for _, t := range g.services {
		errs = append(errs, t.stopProviders(ctx))
	}
	if g.processor != nil {
		errs = append(errs, g.processor.Shutdown(ctx))
	}
	return errors.Join(errs...)
}

// shared keeps the end of one service's provider from ending the processor of them all.
type shared struct{ sdktrace.SpanProcessor }

func (s shared) Shutdown(ctx context.Context) error { return s.ForceFlush(ctx) }
