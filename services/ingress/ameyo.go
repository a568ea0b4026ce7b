package ingress

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"callrelay/callback"
	"callrelay/callback/wire"
	callbackv1 "callrelay/gen/callrelay/callback/v1"
	ingressv1 "callrelay/gen/callrelay/ingress/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
	"callrelay/platform/errkind"
	"callrelay/platform/rpc"
	"callrelay/platform/telemetry"
)

// ameyoServer takes Ameyo's callbacks, from the gateway and from gRPC clients alike.
type ameyoServer struct {
	ingressv1.UnimplementedAmeyoServiceServer
	cfg     Config
	options callback.Options
	tel     *telemetry.Telemetry
	metrics *metrics
	pipe    *rpc.Pipe[*routerv1.RouteItem, *routerv1.RouteAnswer]
}

// request is what the edge knows of a callback beside its parameters.
type request struct {
	id       string
	received time.Time
	query    []byte // as received
	peer     string
	method   string
	path     string
}

type requestKey struct{}

// requestOf finds what the HTTP side put into the context, or makes it for a gRPC client.
func requestOf(ctx context.Context, m proto.Message) *request {
	if r, ok := ctx.Value(requestKey{}).(*request); ok {
		return r
	}
	r := &request{id: newRequestID(), received: time.Now(), query: []byte(wire.Params(m).Encode()), method: "gRPC",
		path: string(m.ProtoReflect().Descriptor().Name())}
	_ = grpc.SetHeader(ctx, metadata.Pairs("x-request-id", r.id)) // also of a refusal
	if p, ok := peer.FromContext(ctx); ok {
		if host, _, err := net.SplitHostPort(p.Addr.String()); err == nil {
			r.peer = host
		}
	}
	return r
}

// newRequestID is ours, never taken from outside: it is the input id of the commit.
func newRequestID() string { return rand.Text() }

// CallStart takes a call-start callback.
func (s *ameyoServer) CallStart(ctx context.Context, m *callbackv1.AmeyoCallStart) (*ingressv1.Ack, error) {
	_, err := callback.DecodeCallStart(wire.Params(m), s.options)
	return s.accept(ctx, requestOf(ctx, m), err, &routerv1.RouteItem{Callback: &routerv1.RouteItem_AmeyoCallStart{AmeyoCallStart: m}})
}

// CallEnd takes a call-end or not-answered callback.
func (s *ameyoServer) CallEnd(ctx context.Context, m *callbackv1.AmeyoCallEnd) (*ingressv1.Ack, error) {
	_, err := callback.DecodeCallEnd(wire.Params(m), s.options)
	return s.accept(ctx, requestOf(ctx, m), err, &routerv1.RouteItem{Callback: &routerv1.RouteItem_AmeyoCallEnd{AmeyoCallEnd: m}})
}

// accept routes one callback and acknowledges it when it is committed; a malformed one is recorded and refused.
func (s *ameyoServer) accept(ctx context.Context, r *request, malformed error, item *routerv1.RouteItem) (*ingressv1.Ack, error) {
	var span trace.Span = noop.Span{}
	if s.tel.Tracing() {
		ctx, span = s.tel.Tracer().Start(ctx, "ingress.accept", trace.WithAttributes(telemetry.RequestID.String(r.id)))
		defer span.End()
	}
	if malformed != nil {
		refusal := refusalOf(malformed)
		span.SetStatus(codes.Error, refusal.Message)
		s.record(ctx, r, errkind.HTTPStatus(refusal.Kind), refusal.Field, refusal.Message)
		s.metrics.answered(ctx, refused, r.received)
		return nil, refusal
	}
	answer, err := s.route(ctx, r, item)
	if err != nil {
		span.SetStatus(codes.Error, "not committed")
		s.metrics.answered(ctx, unrecorded, r.received)
		return nil, err
	}
	outcome := accepted
	if answer.GetDuplicate() {
		outcome = duplicate
	}
	s.metrics.answered(ctx, outcome, r.received)
	span.SetAttributes(telemetry.Duplicate.Bool(answer.GetDuplicate()))
	return &ingressv1.Ack{Success: true, Message: "Data Received", Duplicate: answer.GetDuplicate(), RequestId: r.id}, nil
}

func refusalOf(err error) *errkind.Error {
	var field *callback.FieldError
	if errors.As(err, &field) {
		return errkind.Invalid(field.Field, "%s", field.Message)
	}
	return errkind.Internal(err)
}

// route sends one item and waits for its commit, at most the ack budget.
func (s *ameyoServer) route(ctx context.Context, r *request, item *routerv1.RouteItem) (*routerv1.RouteAnswer, error) {
	deadline := r.received.Add(s.cfg.AckBudget)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	item.RequestId, item.Query, item.Peer = r.id, r.query, r.peer
	item.Traceparent = telemetry.Inject(ctx)
	item.AgeMs = time.Since(r.received).Milliseconds()
	item.BudgetMs = max(1, time.Until(deadline).Milliseconds())
	answer, err := s.pipe.Do(ctx, item)
	if err != nil {
		return nil, unavailable(err)
	}
	if e := errkind.FromProto(answer.GetError()); e != nil {
		return nil, e
	}
	return answer, nil
}

func unavailable(err error) error {
	e := errkind.Unavailable(err, "the callback could not be recorded; send it again")
	e.RetryAfter = time.Second
	return e
}

// record journals a refused request as request/<id>, so that it can be found and sent again corrected. The refusal stands
// whether or not this succeeds.
func (s *ameyoServer) record(ctx context.Context, r *request, status int, field, message string) {
	_, err := s.route(ctx, r, &routerv1.RouteItem{Callback: &routerv1.RouteItem_Refused{Refused: &routerv1.Refused{
		Method: r.method, Path: r.path, Status: int32(status), Field: field, Message: message}}})
	log := s.tel.Log()
	if err != nil {
		log.WarnContext(ctx, "a refused request could not be recorded", "request_id", r.id, "field", field, "error", err)
		return
	}
	log.InfoContext(ctx, "request refused", "request_id", r.id, "status", status, "field", field, "message", telemetry.MaskDigits(message))
}
