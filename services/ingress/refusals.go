package ingress

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"callrelay/callback"
	routerv1 "callrelay/gen/callrelay/router/v1"
	"callrelay/platform/telemetry"
)

const (
	// refusalsWaiting and refusalsAtOnce bound the refused requests that wait for their record, and those on their way.
	refusalsWaiting = 512
	refusalsAtOnce  = 16
	// recordTime is how long one may take until it is left to the spool.
	recordTime = 250 * time.Millisecond
	// recordSize is about what a record takes beside its query, in bytes.
	recordSize = 512
)

// refusals records requests that no rule will see as request/<id>, so that they can be found and sent again corrected. Nothing
// was acknowledged of them, so no answer waits for that, and a flood of them fills neither memory nor Redis: beyond so many
// bytes in an hour they are only counted.
type refusals struct {
	callbacks  *callbacks
	budget     *rate.Limiter // bytes
	queue      chan refusedRequest
	done       chan struct{}
	ended      sync.WaitGroup
	unrecorded recent
}

type refusedRequest struct {
	ctx     context.Context // does not end with the request
	request *request
	refused *routerv1.Refused
}

func newRefusals(c *callbacks, bytesPerHour int) *refusals {
	return &refusals{callbacks: c, budget: rate.NewLimiter(rate.Limit(float64(bytesPerHour)/3600), bytesPerHour),
		queue: make(chan refusedRequest, refusalsWaiting), done: make(chan struct{})}
}

// run begins to record.
func (f *refusals) run() {
	for range refusalsAtOnce {
		f.ended.Go(func() {
			for {
				select {
				case r := <-f.queue:
					f.take(r, true)
					continue
				case <-f.done:
				}
				select {
				case r := <-f.queue:
					f.take(r, false)
				default:
					return
				}
			}
		})
	}
}

// stop ends run: what still waits goes to the spool, which is on disk.
func (f *refusals) stop() {
	close(f.done)
	f.ended.Wait()
}

// record counts a refused request and has it recorded, without waiting. The refusal stands whether or not that succeeds.
func (f *refusals) record(ctx context.Context, r *request, source string, e *refusal) {
	f.callbacks.metrics.answered(ctx, source, refused, r.received)
	one := refusedRequest{context.WithoutCancel(ctx), r, &routerv1.Refused{Method: valid(r.method), Path: valid(r.path),
		Status: int32(e.status), Field: valid(e.field), Message: valid(e.message)}}
	if !f.budget.AllowN(time.Now(), recordSize+len(r.query)) {
		f.lost(ctx, "more of them in an hour than REFUSED_BYTES_PER_HOUR")
		return
	}
	select {
	case f.queue <- one:
	default:
		f.lost(ctx, "more of them at once than can be recorded")
	}
}

// valid makes text of what anybody may have sent: with anything else in it, its whole message could not be sent to router.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// take has one recorded: by router where route says so, or later out of the spool.
func (f *refusals) take(r refusedRequest, route bool) {
	c := f.callbacks
	item := &routerv1.RouteItem{Callback: &routerv1.RouteItem_Refused{Refused: r.refused}}
	err := errors.New("router is away")
	if route && !c.spool.away.Load() {
		ctx, cancel := context.WithTimeout(r.ctx, recordTime)
		_, err = c.route(ctx, r.request, item, time.Now())
		cancel()
	}
	if err != nil {
		ctx, cancel := context.WithTimeout(r.ctx, recordTime)
		defer cancel()
		if err = c.spool.put(ctx, r.request, callback.RequestKey(r.request.id), item, refusedPart); err != nil {
			f.lost(ctx, "nothing took the record")
		}
	}
	c.tel.Log().InfoContext(r.ctx, "request refused", "request_id", r.request.id, "status", r.refused.GetStatus(), "field", r.refused.GetField(),
		"message", telemetry.MaskDigits(r.refused.GetMessage()), "recorded", err == nil)
}

// lost counts one of which nothing is kept. The first of a minute is logged.
func (f *refusals) lost(ctx context.Context, why string) {
	f.callbacks.metrics.unrecorded.Add(ctx, 1)
	if f.unrecorded.add() >= time.Minute {
		f.callbacks.tel.Log().WarnContext(ctx, "REFUSED REQUESTS ARE ANSWERED AND COUNTED, BUT NOT RECORDED", "why", why)
	}
}
