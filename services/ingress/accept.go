package ingress

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"slices"
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
	errorsv1 "callrelay/gen/callrelay/errors/v1"
	ingressv1 "callrelay/gen/callrelay/ingress/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
	"callrelay/platform/errkind"
	"callrelay/platform/lanes"
	"callrelay/platform/telemetry"
	"callrelay/services/ingress/internal/spool"
)

// request is what the edge knows of a callback.
type request struct {
	ctx      context.Context // of an HTTP request: ends when the sender leaves
	id       string
	received time.Time
	query    []byte          // as received
	params   callback.Params // what it says, as PHP read it
	peer     string
	method   string
	path     string
	// traceparent is that of the span which serves it, for those behind; empty when not traced.
	traceparent string
	// window is what the rules say to a call-result window; nil: nothing, or they were not asked yet.
	window *routerv1.WindowReply
}

type requestKey struct{}

// methodGRPC stands for the HTTP method of a request that came over gRPC.
const methodGRPC = "gRPC"

// requestOf is the request behind a message. Of an HTTP request it is in the context, and the message is filled from its query; of
// a gRPC client it is made from the message. The context is the one to go on with: it ends when the sender leaves.
func requestOf(ctx context.Context, m proto.Message) (context.Context, *request) {
	if r, ok := ctx.Value(requestKey{}).(*request); ok {
		wire.Fill(m, r.params)
		return r.ctx, r
	}
	params := wire.Params(m)
	r := &request{id: newRequestID(), received: time.Now(), query: []byte(params.Encode()), params: params, method: methodGRPC,
		path: string(m.ProtoReflect().Descriptor().Name())}
	_ = grpc.SetHeader(ctx, metadata.Pairs("x-request-id", r.id)) // also of a refusal
	if p, ok := peer.FromContext(ctx); ok {
		if host, _, err := net.SplitHostPort(p.Addr.String()); err == nil {
			r.peer = host
		}
	}
	return ctx, r
}

// newRequestID is ours, never taken from outside: it is the input id of the commit.
func newRequestID() string { return rand.Text() }

// callbacks takes callbacks to router or to the spool, whoever sent them, and acknowledges them.
type callbacks struct {
	ackBudget time.Duration
	tel       *telemetry.Telemetry
	metrics   *metrics
	pipe      *routePipe
	spool     *spooling
	load      *load
	refused   *refusals
	lanes     lanes.Lanes // of calls
}

// accept has one callback committed or spooled and acknowledges it; a malformed one is recorded and refused.
func (c *callbacks) accept(ctx context.Context, r *request, call string, malformed error, item *routerv1.RouteItem) (*ingressv1.Ack, error) {
	if r.method == methodGRPC { // an HTTP request was counted at the door
		if !c.load.enter() {
			c.metrics.turnedAway(ctx, sourceOf(item))
			return nil, tooMany()
		}
		defer c.load.leave()
		if len(r.query) > maxQuery {
			r.query = r.query[:maxQuery]
			malformed = errkind.Invalid("", "the callback is longer than %d bytes", maxQuery)
		}
	}
	var span trace.Span = noop.Span{}
	if c.tel.Tracing() {
		ctx, span = c.tel.Tracer().Start(ctx, "ingress.accept")
		defer span.End()
		if span.IsRecording() {
			span.SetAttributes(telemetry.RequestID.String(r.id))
		}
		r.traceparent = telemetry.Inject(ctx)
	}
	if malformed != nil {
		e := malformedKind(malformed)
		span.SetStatus(codes.Error, e.Message)
		c.refused.record(ctx, r, sourceOf(item), refusalOf(e))
		return nil, e
	}
	outcome, err := c.keep(ctx, r, call, item)
	c.metrics.answered(ctx, sourceOf(item), outcome, r.received)
	if err != nil {
		span.SetStatus(codes.Error, "not committed")
		return nil, err
	}
	switch outcome {
	case duplicate:
		span.SetAttributes(telemetry.Duplicate.Bool(true))
	case spooled:
		span.SetAttributes(telemetry.Spooled.Bool(true))
	}
	return &ingressv1.Ack{Success: true, Message: "Data Received", Duplicate: outcome == duplicate, RequestId: r.id}, nil
}

// keep has a callback committed or, when that takes too long, spooled.
func (c *callbacks) keep(ctx context.Context, r *request, call string, item *routerv1.RouteItem) (outcome string, err error) {
	if event, ok := ctx.Value(eventKey{}).(*pbxEvent); ok && event.over {
		return c.keepOver(ctx, r, call, item, event)
	}
	budget := c.ackBudget - min(c.ackBudget/4, 500*time.Millisecond)
	// One callback of a call at a time, or a later one could be committed while an earlier one, which waits in vain, is spooled.
	waiting, giveUp := context.WithDeadline(ctx, r.received.Add(budget))
	defer giveUp()
	if leave, err := c.lanes.Enter(waiting, call); err == nil {
		defer leave()
	}
	if err := ctx.Err(); err != nil { // nobody waits any more
		return unavailable, notRecorded(err)
	}
	if waiting.Err() == nil && !c.spool.behind(call) {
		if c.spool.busy() && c.keepEarly(ctx, r, call, item, budget/2) {
			return spooled, nil
		}
		sent := time.Now()
		answer, err := c.route(waiting, r, item, sent)
		if err == nil {
			c.spool.answered(time.Since(sent), budget)
			r.window = answer.GetWindow()
		}
		switch {
		case err == nil && answer.GetDuplicate():
			return duplicate, nil
		case err == nil:
			return accepted, nil
		case slices.Contains(definite, errkind.From(err).Kind):
			return refused, err
		case errkind.From(err).Kind != errorsv1.Kind_KIND_UNAVAILABLE, ctx.Err() != nil: // nobody waits any more
			return unavailable, err
		}
		if time.Since(r.received) >= budget/2 { // what comes at once is about this callback, not about router
			c.spool.missed()
		}
	}
	// Whether it was committed is unknown: it keeps its request id, by which it will be recognised.
	ctx, cancel := context.WithDeadline(ctx, r.received.Add(c.ackBudget))
	defer cancel()
	if err := c.spool.put(ctx, r, call, item, 1); err != nil {
		return unavailable, err
	}
	return spooled, nil
}

// definite are what the rules answer to who has to do something else before it can be taken: nothing is wrong with the relay.
var definite = []errorsv1.Kind{errorsv1.Kind_KIND_NOT_FOUND, errorsv1.Kind_KIND_FORBIDDEN}

// keepEarly spools a callback that router could take as well, if later: the spool need not be able to.
func (c *callbacks) keepEarly(ctx context.Context, r *request, call string, item *routerv1.RouteItem, budget time.Duration) bool {
	ctx, cancel := context.WithDeadline(ctx, r.received.Add(budget))
	defer cancel()
	return c.spool.keep(ctx, r, call, item, 1) == nil
}

// keepOver has an event wait in the spool that is beyond its token's share.
func (c *callbacks) keepOver(ctx context.Context, r *request, call string, item *routerv1.RouteItem, event *pbxEvent) (outcome string, err error) {
	if !event.share.wait() {
		return refused, errOver
	}
	item.Share = event.row.Token[:]
	ctx, cancel := context.WithDeadline(ctx, r.received.Add(c.ackBudget))
	defer cancel()
	switch err := c.spool.put(ctx, r, call, item, sharePart); {
	case err == nil:
		return spooled, nil
	case errors.Is(err, spool.ErrFull):
		event.share.left()
		return refused, errOver
	default:
		event.share.left()
		return unavailable, err
	}
}

// malformedKind is what decoding complained of, with its kind.
func malformedKind(err error) *errkind.Error {
	if field, ok := errors.AsType[*callback.FieldError](err); ok {
		return errkind.Invalid(field.Field, "%s", field.Message)
	}
	return errkind.From(err)
}

// route sends one item and waits for its commit, until the deadline of ctx.
func (c *callbacks) route(ctx context.Context, r *request, item *routerv1.RouteItem, now time.Time) (*routerv1.RouteAnswer, error) {
	deadline, _ := ctx.Deadline()
	item.RequestId, item.Query, item.Peer, item.Traceparent = r.id, r.query, r.peer, r.traceparent
	item.AgeMs = now.Sub(r.received).Milliseconds()
	item.BudgetMs = max(1, deadline.Sub(now).Milliseconds())
	answer, err := c.pipe.Do(ctx, item)
	if err != nil {
		return nil, notRecorded(err)
	}
	e := errkind.FromProto(answer.GetError())
	if e == nil || e.Kind != errorsv1.Kind_KIND_UNAVAILABLE {
		c.spool.committed()
	}
	if e != nil {
		return nil, e
	}
	return answer, nil
}

func notRecorded(err error) error {
	e := errkind.Unavailable(err, "the callback could not be recorded; send it again")
	e.RetryAfter = time.Second
	return e
}
