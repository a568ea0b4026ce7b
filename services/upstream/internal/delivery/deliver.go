package delivery

import (
	"context"
	"log/slog"
	"runtime/debug"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/telemetry"
)

// handBack returns work untouched, to be leased again after wait, which does not count as age.
func handBack(wait time.Duration) verdict {
	return verdict{next: nextRetry, in: wait, paused: wait, uncounted: true}
}

// deliver makes at most one request for a leased delivery and says what becomes of it. A panic fails only this one.
func (c *Consumer) deliver(it *item) (result *statev1.LeaseResult) {
	var attempt *statev1.Attempt
	defer func() {
		if problem := recover(); problem != nil {
			result = c.panicked(it, attempt, problem)
		}
	}()

	work := it.work
	if c.cfg.Disabled {
		v := verdict{next: nextSendDisabled, end: statev1.DeliveryState_DELIVERY_STATE_SEND_DISABLED, reason: "real sending is disabled (ENABLE_REAL_SEND)"}
		return c.report(c.requests, it, c.attempt(work), v)
	}
	paused := c.breaker.paused(ms(work.AgeMs))
	if v, ends := c.cfg.Policy.before(work, paused); ends {
		return c.report(c.requests, it, nil, v)
	}
	// The last look before the request: after this it takes at most SendTimeout.
	if c.requests.Err() != nil || time.Since(it.leased) > c.cfg.LeaseTime-c.cfg.SendTimeout || !c.shared() {
		return c.result(it, nil, handBack(0))
	}
	permit, wait, ok := c.breaker.allow()
	if !ok {
		return c.result(it, nil, handBack(wait))
	}
	once, failed := c.cfg.Policy.once(work), true
	defer func() {
		if once && failed {
			permit.void()
		} else {
			permit.done(failed)
		}
	}()

	var v verdict
	ctx, span := c.span(work)
	defer span.End()
	if once {
		_, own := c.cfg.Policy.worth(work, paused)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, min(own, c.cfg.SendTimeout))
		defer cancel()
	}
	defer func() { c.describe(span, work, attempt, v) }()
	attempt = c.attempt(work)
	answer := c.send(ctx, work, attempt)
	failed = answer.transportFailure()
	if answer.Outcome == Unsent && c.requests.Err() != nil {
		// Our own end cut it short before anything left.
		return c.result(it, nil, handBack(0))
	}
	v = c.cfg.Policy.after(work, answer, circumstances{
		appErrors:   c.countAppError(it.key, answer.Outcome),
		probe:       permit.probe,
		breakerOpen: c.cfg.Breaker.Open,
		paused:      paused,
		random:      c.random,
	})
	if !once { // nothing waits for such a one: it is no answer to why nothing leaves
		c.mu.Lock()
		c.failure = v.reason // empty when delivered
		c.mu.Unlock()
	}
	return c.report(ctx, it, attempt, v)
}

// panicked is the result of a delivery that met a bug.
func (c *Consumer) panicked(it *item, attempt *statev1.Attempt, problem any) *statev1.LeaseResult {
	c.log.Error("panic in a delivery", "call", telemetry.MaskCall(it.key.call), "delivery", it.key.number, "panic", problem, "stack", string(debug.Stack()))
	v := verdict{next: nextRetry, reason: "internal error of the relay, see its log", in: c.cfg.Policy.Backoff.Max}
	if int(it.work.Delivery.Attempts)+1 >= c.cfg.Policy.MaxAttempts {
		v = dead("given up: " + v.reason)
	}
	c.metrics.settled(c.requests, v.next)
	return c.result(it, attempt, v)
}

// send makes the request and notes in the attempt what came of it.
func (c *Consumer) send(ctx context.Context, work *statev1.LeaseWork, attempt *statev1.Attempt) (answer Answer) {
	attempt.Uncertain = true // what a panic leaves behind
	start := time.Now()
	if work.Delivery.Uncertain && c.cfg.SendAgain != nil {
		answer = c.cfg.SendAgain(ctx, work.Delivery.Endpoint, work.Delivery.Payload, work.Looked)
	} else {
		answer = c.sender.Send(ctx, work.Delivery.Endpoint, work.Delivery.Payload)
	}
	took := time.Since(start)
	attempt.DurationMs = took.Milliseconds()
	attempt.HttpCode = int32(answer.HTTPCode)
	attempt.Result, attempt.MessageCode, attempt.SubMessageCode = answer.Result, answer.MessageCode, answer.SubMessageCode
	if answer.Outcome != Delivered {
		attempt.Body = answer.Body // of a success its words say it all, and it would be most of what is stored
	}
	attempt.Uncertain = answer.Outcome == Uncertain
	c.metrics.attempted(ctx, took)
	return answer
}

// attempt begins the journal's fact about a request.
func (c *Consumer) attempt(work *statev1.LeaseWork) *statev1.Attempt {
	return &statev1.Attempt{
		Delivery:    work.Delivery.Number,
		Number:      work.Delivery.Attempts + 1,
		Destination: c.cfg.Destination,
		Endpoint:    work.Delivery.Endpoint,
		Url:         c.sender.URL(work.Delivery.Endpoint),
	}
}

// countAppError returns how many application errors the delivery met, with this outcome.
func (c *Consumer) countAppError(k key, outcome Outcome) int {
	if outcome != AppError {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.appErrors) >= maxAppErrors {
		clear(c.appErrors)
	}
	c.appErrors[k]++
	return c.appErrors[k]
}

// consumerKind is made once, not for each span. It has no room: what is appended to it is a copy.
var consumerKind = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindConsumer)}

// span starts the span of one attempt in the callback's trace.
func (c *Consumer) span(work *statev1.LeaseWork) (context.Context, trace.Span) {
	if !c.tel.Tracing() {
		return c.requests, noop.Span{}
	}
	ctx := telemetry.Extract(c.requests, work.Delivery.Traceparent)
	options := consumerKind
	if work.Delivery.Link != "" {
		linked := trace.SpanContextFromContext(telemetry.Extract(context.Background(), work.Delivery.Link))
		options = append(options, trace.WithLinks(trace.Link{SpanContext: linked}))
	}
	return c.tel.Tracer().Start(ctx, "upstream.deliver", options...)
}

// describe says in its span what was attempted and what became of it: nothing (an empty verdict) of what panicked, or was cut
// short before anything left.
func (c *Consumer) describe(span trace.Span, work *statev1.LeaseWork, attempt *statev1.Attempt, v verdict) {
	if !span.IsRecording() {
		return
	}
	call := telemetry.MaskCall(work.Call)
	attributes := append(make([]attribute.KeyValue, 0, 8),
		telemetry.RequestID.String(work.Delivery.RequestId),
		telemetry.CallID.String(call),
		telemetry.Delivery.String(call+"/"+strconv.Itoa(int(work.Delivery.Number))),
		telemetry.Attempt.Int(int(work.Delivery.Attempts)+1),
		telemetry.Destination.String(c.cfg.Destination),
		telemetry.Endpoint.String(work.Delivery.Endpoint))
	if v.next != "" {
		attributes = append(attributes, telemetry.Outcome.String(v.next), telemetry.Uncertain.Bool(attempt.Uncertain))
	}
	span.SetAttributes(attributes...)
	if v.next != "" && v.next != nextDelivered {
		span.SetStatus(codes.Error, v.reason)
	}
}

// report logs and counts a verdict and makes it a result.
func (c *Consumer) report(ctx context.Context, it *item, attempt *statev1.Attempt, v verdict) *statev1.LeaseResult {
	c.metrics.settled(ctx, v.next)
	if v.next != nextDelivered || c.log.Enabled(ctx, slog.LevelDebug) {
		c.say(ctx, it, attempt, v)
	}
	return c.result(it, attempt, v)
}

// say logs a verdict. What was delivered is told by the journal and the daily files; a line for each would be most of the log.
func (c *Consumer) say(ctx context.Context, it *item, attempt *statev1.Attempt, v verdict) {
	level := slog.LevelWarn
	switch v.next {
	case nextDelivered:
		level = slog.LevelDebug
	case nextDiscarded, nextSendDisabled:
		level = slog.LevelInfo
	}
	fields := []any{"outcome", v.next, "request_id", it.work.Delivery.RequestId, "call", telemetry.MaskCall(it.key.call),
		"delivery", it.key.number, "endpoint", it.work.Delivery.Endpoint}
	if attempt != nil {
		fields = append(fields, "attempt", attempt.Number, "url", attempt.Url, "http_code", attempt.HttpCode, "duration_ms", attempt.DurationMs)
	}
	if v.reason != "" {
		fields = append(fields, "reason", v.reason)
	}
	if v.next == nextRetry {
		fields = append(fields, "retry_in", v.in.Round(time.Millisecond).String())
	}
	c.log.Log(ctx, level, "delivery", fields...)
}

// plainDone is the result of most: nobody changes what a stream has carried, so all share it.
var plainDone = &statev1.LeaseResult_Done{Done: &statev1.Done{}}

// result is a verdict in the protocol's words. It panics on nothing: deliver's recovery uses it.
func (c *Consumer) result(it *item, attempt *statev1.Attempt, v verdict) *statev1.LeaseResult {
	result := &statev1.LeaseResult{
		Call:        it.key.call,
		Delivery:    it.key.number,
		Destination: c.cfg.Destination,
		RequestId:   it.work.Delivery.RequestId,
		Endpoint:    it.work.Delivery.Endpoint,
		Attempt:     attempt,
	}
	switch v.next {
	case nextDelivered:
		if result.Result = plainDone; v.reply != "" {
			result.Result = &statev1.LeaseResult_Done{Done: &statev1.Done{Reply: []byte(v.reply)}}
		}
	case nextRetry:
		result.Result = &statev1.LeaseResult_Retry{Retry: &statev1.RetryLater{
			InMs: v.in.Milliseconds(), PausedMs: v.paused.Milliseconds(), Uncounted: v.uncounted,
		}}
	case nextHold:
		result.Result = &statev1.LeaseResult_Hold{Hold: &statev1.HoldDestination{
			Reason: v.reason, Epoch: it.work.HoldEpoch, ProbeInMs: v.in.Milliseconds(),
		}}
	default:
		result.Result = &statev1.LeaseResult_End{End: &statev1.End{State: v.end, Reason: v.reason}}
	}
	if attempt != nil {
		attempt.Next, attempt.Error = v.next, v.reason
		if v.next == nextRetry {
			attempt.RetryInMs = v.in.Milliseconds()
		}
	}
	return result
}
