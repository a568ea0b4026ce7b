package state

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/errkind"
	"callrelay/platform/rpc"
	"callrelay/platform/telemetry"
	"callrelay/services/state/internal/dispatch"
	"callrelay/services/state/internal/store"
)

// pipelines is how many messages of one stream are with Redis at the same time.
const pipelines = 4

// redisTimeout bounds one pipeline; past it the outcome is unknown.
const redisTimeout = 5 * time.Second

type server struct {
	statev1.UnimplementedStateServiceServer
	*Service
}

// Load answers each message with one message.
func (s *server) Load(stream grpc.BidiStreamingServer[statev1.LoadRequest, statev1.LoadResponse]) error {
	return rpc.Batches(stream, s.stopping, pipelines, func(ctx context.Context, req *statev1.LoadRequest) *statev1.LoadResponse {
		ctx, cancel := context.WithTimeout(ctx, redisTimeout)
		defer cancel()
		calls := make([]string, len(req.GetItems()))
		for i, item := range req.GetItems() {
			calls[i] = item.GetCall()
		}
		states, errs := s.store.Load(ctx, calls)
		resp := &statev1.LoadResponse{NowMs: s.store.Now(), Answers: make([]*statev1.LoadAnswer, len(calls))}
		for i, item := range req.GetItems() {
			a := &statev1.LoadAnswer{Id: item.GetId(), Call: states[i]}
			if errs[i] != nil {
				a.Error, a.Call = unavailable(errs[i]).Proto(), nil
			}
			resp.Answers[i] = a
		}
		return resp
	})
}

func unavailable(err error) *errkind.Error {
	return errkind.Unavailable(err, "the store does not answer")
}

// Commit answers each message with one message. What can go out at once is handed out before the answer is sent.
func (s *server) Commit(stream grpc.BidiStreamingServer[statev1.CommitRequest, statev1.CommitResponse]) error {
	return rpc.Batches(stream, s.stopping, pipelines, func(ctx context.Context, req *statev1.CommitRequest) *statev1.CommitResponse {
		ctx, cancel := context.WithTimeout(ctx, redisTimeout)
		defer cancel()
		items := req.GetItems()
		spans := s.startCommits(ctx, items)
		for _, item := range items {
			for _, d := range item.GetDeliveries() {
				d.PausedMs = s.dispatch.HoldOf(d.GetDestination()).PausedMS(s.store.Now())
			}
		}
		answers, errs := s.dispatch.Commit(ctx, items)
		now := s.store.Now()
		resp := &statev1.CommitResponse{NowMs: now, Answers: answers}
		for i, item := range items {
			if errs[i] != nil {
				answers[i] = &statev1.CommitAnswer{Error: unavailable(errs[i]).Proto()}
			}
			answers[i].Id = item.GetId()
			if answers[i].GetStatus() == statev1.CommitStatus_COMMIT_STATUS_OK {
				s.files.Committed(item)
			}
			if len(item.GetMessages()) > 0 {
				s.dispatch.Later(store.Rules, now)
			}
			for _, t := range item.GetSetTimers() {
				s.dispatch.Later(store.Rules, now+t.GetInMs())
			}
			if spans != nil {
				end(spans[i], answers[i], errs[i])
			}
		}
		return resp
	})
}

// startCommits begins a span per item, in the item's own trace, and makes it the parent of what the item queues.
func (s *server) startCommits(ctx context.Context, items []*statev1.CommitItem) []trace.Span {
	if !s.tel.Tracing() {
		return nil
	}
	spans := make([]trace.Span, len(items))
	for i, item := range items {
		ctx, span := s.tel.Tracer().Start(telemetry.Extract(ctx, item.GetTraceparent()), "state.commit",
			trace.WithSpanKind(trace.SpanKindServer),
			trace.WithAttributes(telemetry.CallID.String(item.GetCall()), telemetry.BatchSize.Int(len(items))))
		for _, d := range item.GetDeliveries() {
			d.Traceparent = telemetry.Inject(ctx)
		}
		spans[i] = span
	}
	return spans
}

func end(span trace.Span, a *statev1.CommitAnswer, err error) {
	if err != nil {
		span.SetStatus(codes.Error, "the store does not answer")
	} else {
		span.SetAttributes(telemetry.Outcome.String(statusWord[a.GetStatus()]))
	}
	span.End()
}

var statusWord = map[statev1.CommitStatus]string{
	statev1.CommitStatus_COMMIT_STATUS_OK:       "ok",
	statev1.CommitStatus_COMMIT_STATUS_EARLIER:  "earlier",
	statev1.CommitStatus_COMMIT_STATUS_CONFLICT: "conflict",
	statev1.CommitStatus_COMMIT_STATUS_STALE:    "stale",
}

// Lease hands out work and takes results until the client leaves.
func (s *server) Lease(stream grpc.BidiStreamingServer[statev1.LeaseRequest, statev1.LeaseResponse]) error {
	var (
		ctx      = stream.Context()
		consumer *dispatch.Consumer
		nameless bool
		unknown  error
		results  = make(chan []*statev1.LeaseResult, pipelines)
		answers  = make(chan []*statev1.LeaseAnswer, 64)
		sent     sync.WaitGroup
	)
	rpc.Receive(stream, s.stopping, func(req *statev1.LeaseRequest) bool {
		if consumer == nil {
			if nameless = req.GetDestination() == ""; nameless {
				return false
			}
			if err := s.store.Know(ctx, req.GetDestination()); err != nil {
				unknown = unavailable(err) // it would not be swept
				return false
			}
			consumer = s.dispatch.Join(req.GetDestination())
			sent.Go(func() { serve(stream, consumer, answers) })
			// Credit does not wait behind results.
			sent.Go(func() {
				defer close(answers)
				for r := range results {
					select {
					case answers <- s.complete(ctx, consumer.Destination(), r):
					case <-ctx.Done():
					}
				}
			})
		}
		if req.GetCredit() > 0 {
			consumer.Grant(int(req.GetCredit()))
		}
		if len(req.GetResults()) > 0 {
			select {
			case results <- req.GetResults():
			case <-ctx.Done():
			}
		}
		return true
	})
	if nameless {
		return errkind.Invalid("destination", "the first message must name the destination")
	}
	if unknown != nil {
		return unknown
	}
	if consumer != nil {
		consumer.Leave(ctx)
	}
	close(results)
	sent.Wait()
	return nil
}

// serve sends work and answers until the answers are closed, all of which still go out.
func serve(stream grpc.BidiStreamingServer[statev1.LeaseRequest, statev1.LeaseResponse], consumer *dispatch.Consumer, answers <-chan []*statev1.LeaseAnswer) {
	for more := true; more; {
		resp := &statev1.LeaseResponse{}
		select {
		case resp.Work = <-consumer.Work():
		case resp.Answers, more = <-answers:
		}
		if more && stream.Send(resp) != nil {
			return // what was leased is given back by LEASE_TIME
		}
	}
}

// complete takes results of one message.
func (s *server) complete(ctx context.Context, destination string, results []*statev1.LeaseResult) []*statev1.LeaseAnswer {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	answers := make([]*statev1.LeaseAnswer, len(results))
	var deliveries []*statev1.LeaseResult
	var at []int
	for i, r := range results {
		r.Destination = destination
		answers[i] = &statev1.LeaseAnswer{Id: r.GetId()}
		if r.GetDelivery() != 0 {
			deliveries, at = append(deliveries, r), append(at, i)
			continue
		}
		if r.GetRetry() == nil {
			continue // the commit of the input, or what made it stale, ended the lease
		}
		if err := s.store.ReturnTimer(ctx, r, r.GetRetry().GetInMs()); err != nil {
			answers[i].Error = unavailable(err).Proto()
			continue
		}
		s.dispatch.Later(destination, s.store.Now()+r.GetRetry().GetInMs())
	}
	if len(deliveries) == 0 {
		return answers
	}
	verdicts, errs := s.store.Complete(ctx, deliveries)
	now := s.store.Now()
	var due []store.Ref
	for j, r := range deliveries {
		a, v := answers[at[j]], verdicts[j]
		if errs[j] != nil {
			a.Error = unavailable(errs[j]).Proto()
			continue
		}
		if a.Superseded = v.Superseded; v.Superseded {
			continue
		}
		s.files.Completed(r, now)
		s.dispatch.Taken(ctx, r)
		if v.Result {
			s.dispatch.Later(store.Rules, now)
		}
		if v.Head && v.DueMS <= now {
			due = append(due, store.Ref{Destination: destination, Member: r.GetCall()})
		} else if v.Head {
			s.dispatch.Later(destination, v.DueMS)
		}
	}
	s.dispatch.Due(due)
	return answers
}

// GetCall shows one call.
func (s *server) GetCall(ctx context.Context, req *statev1.GetCallRequest) (*statev1.GetCallResponse, error) {
	return s.call(ctx, req.GetCall())
}

func (s *server) call(ctx context.Context, key string) (*statev1.GetCallResponse, error) {
	if key == "" {
		return nil, errkind.Invalid("call", "call is required, e.g. ameyo/193416")
	}
	c, err := s.store.Call(ctx, key)
	if err != nil {
		return nil, unavailable(err)
	}
	if c == nil {
		return nil, errkind.NotFound("nothing is stored of %s: it never came in, or it ended more than %s ago", key, s.cfg.CallRetention)
	}
	return c, nil
}

// ListDeliveries lists what ended dead, expired or asked.
func (s *server) ListDeliveries(ctx context.Context, req *statev1.ListDeliveriesRequest) (*statev1.ListDeliveriesResponse, error) {
	limit := int(req.GetLimit())
	if limit == 0 {
		limit = 100
	}
	if limit < 0 || limit > 1000 {
		return nil, errkind.Invalid("limit", "limit must be 1 to 1000")
	}
	wanted := map[statev1.DeliveryState]bool{}
	for _, st := range req.GetStates() {
		wanted[st] = true
	}
	names := []string{req.GetDestination()}
	if req.GetDestination() == "" {
		names = s.store.Destinations()
	}
	resp := &statev1.ListDeliveriesResponse{}
	for _, name := range names {
		found, err := s.store.Letters(ctx, name, limit-len(resp.GetDeliveries()),
			func(d *statev1.Delivery) bool { return len(wanted) == 0 || wanted[d.GetState()] })
		if err != nil {
			return nil, unavailable(err)
		}
		if resp.Deliveries = append(resp.Deliveries, found...); len(resp.GetDeliveries()) >= limit {
			break
		}
	}
	return resp, nil
}

// Retry queues a delivery again.
func (s *server) Retry(ctx context.Context, req *statev1.RetryRequest) (*statev1.RetryResponse, error) {
	action := &statev1.Action{Actor: req.GetActor(), What: "retry", Delivery: req.GetDelivery()}
	return &statev1.RetryResponse{}, s.settle(ctx, req.GetCall(), action, func(c *statev1.GetCallResponse, d *statev1.Delivery) error {
		switch d.GetState() {
		case statev1.DeliveryState_DELIVERY_STATE_DEAD, statev1.DeliveryState_DELIVERY_STATE_ASKED, statev1.DeliveryState_DELIVERY_STATE_EXPIRED:
		default:
			return errkind.Refused("delivery %d is %s; only dead, asked and expired deliveries can be retried", d.GetNumber(), word(d.GetState()))
		}
		for _, g := range c.GetRecord().GetGates() {
			if g.GetKey() == d.GetGate() && g.GetOwner() != d.GetRequestId() {
				return errkind.Refused("delivery %d is superseded: request %s came later and was accepted in its place", d.GetNumber(), g.GetOwner())
			}
		}
		return nil
	})
}

// Discard ends a delivery for good.
func (s *server) Discard(ctx context.Context, req *statev1.DiscardRequest) (*statev1.DiscardResponse, error) {
	if req.GetReason() == "" {
		return nil, errkind.Invalid("reason", "reason is required: it is all that the next person will know")
	}
	action := &statev1.Action{Actor: req.GetActor(), What: "discard", Delivery: req.GetDelivery(), Reason: req.GetReason()}
	return &statev1.DiscardResponse{}, s.settle(ctx, req.GetCall(), action, func(_ *statev1.GetCallResponse, d *statev1.Delivery) error {
		switch d.GetState() {
		case statev1.DeliveryState_DELIVERY_STATE_DEAD, statev1.DeliveryState_DELIVERY_STATE_ASKED,
			statev1.DeliveryState_DELIVERY_STATE_EXPIRED, statev1.DeliveryState_DELIVERY_STATE_QUEUED:
			return nil
		}
		return errkind.Refused("delivery %d is %s and cannot be discarded", d.GetNumber(), word(d.GetState()))
	})
}

// word is a delivery state as people say it.
func word(st statev1.DeliveryState) string { return stateWords[st] }

var stateWords = map[statev1.DeliveryState]string{
	statev1.DeliveryState_DELIVERY_STATE_QUEUED:        "queued",
	statev1.DeliveryState_DELIVERY_STATE_LEASED:        "being sent",
	statev1.DeliveryState_DELIVERY_STATE_DELIVERED:     "delivered",
	statev1.DeliveryState_DELIVERY_STATE_DEAD:          "dead",
	statev1.DeliveryState_DELIVERY_STATE_EXPIRED:       "expired",
	statev1.DeliveryState_DELIVERY_STATE_DISCARDED:     "discarded",
	statev1.DeliveryState_DELIVERY_STATE_SEND_DISABLED: "not sent (sending is disabled)",
	statev1.DeliveryState_DELIVERY_STATE_ASKED:         "waiting for a person",
}

// settle reads the call, asks `allowed`, and writes if nothing changed meanwhile; else it looks again.
func (s *server) settle(ctx context.Context, key string, a *statev1.Action, allowed func(*statev1.GetCallResponse, *statev1.Delivery) error) error {
	const tries = 10
	for range tries {
		c, err := s.call(ctx, key)
		if err != nil {
			return err
		}
		n := int(a.GetDelivery())
		if n < 1 || n > len(c.GetDeliveries()) {
			return errkind.NotFound("%s has no delivery %d", key, n)
		}
		d := c.GetDeliveries()[n-1]
		if err := allowed(c, d); err != nil {
			return err
		}
		head, err := s.store.Settle(ctx, c, d, a, s.dispatch.HoldOf(d.GetDestination()).PausedMS(s.store.Now()))
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return unavailable(err)
		}
		if head {
			s.dispatch.Due([]store.Ref{{Destination: d.GetDestination(), Member: key}})
		}
		return nil
	}
	return errkind.Unavailable(fmt.Errorf("%d conflicts", tries), "the call keeps changing; try again")
}

// Hold stops a destination until a person releases it.
func (s *server) Hold(ctx context.Context, req *statev1.HoldRequest) (*statev1.HoldResponse, error) {
	if req.GetDestination() == "" {
		return nil, errkind.Invalid("destination", "destination is required, e.g. topsii")
	}
	if req.GetReason() == "" {
		return nil, errkind.Invalid("reason", "reason is required: it is all that the next person will know")
	}
	if err := s.known(req.GetDestination()); err != nil {
		return nil, err
	}
	if err := s.store.Hold(ctx, req.GetDestination(), req.GetReason(), -1, 0); err != nil {
		return nil, unavailable(err)
	}
	s.tel.Log().Info("hold", "destination", req.GetDestination(), "reason", req.GetReason(), "actor", req.GetActor())
	s.dispatch.Refresh(ctx)
	return &statev1.HoldResponse{}, nil
}

// Release ends a hold.
func (s *server) Release(ctx context.Context, req *statev1.ReleaseRequest) (*statev1.ReleaseResponse, error) {
	if req.GetDestination() == "" {
		return nil, errkind.Invalid("destination", "destination is required, e.g. topsii")
	}
	if err := s.known(req.GetDestination()); err != nil {
		return nil, err
	}
	if err := s.store.Release(ctx, req.GetDestination(), -1); err != nil {
		return nil, unavailable(err)
	}
	s.tel.Log().Info("release", "destination", req.GetDestination(), "actor", req.GetActor())
	s.dispatch.Refresh(ctx)
	return &statev1.ReleaseResponse{}, nil
}

// known refuses a destination that nothing was ever queued for and nobody works off: a slip of the keyboard.
func (s *server) known(destination string) error {
	names := s.store.Destinations()
	if slices.Contains(names, destination) {
		return nil
	}
	slices.Sort(names)
	return errkind.NotFound("there is no destination %q; there are: %s", destination, strings.Join(names, ", "))
}

// ListDestinations shows each destination.
func (s *server) ListDestinations(ctx context.Context, _ *statev1.ListDestinationsRequest) (*statev1.ListDestinationsResponse, error) {
	holds, err := s.store.Holds(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	resp := &statev1.ListDestinationsResponse{}
	for _, name := range slices.Sorted(maps.Keys(holds)) {
		h := holds[name]
		waiting, leased, letters, oldest, err := s.store.Backlog(ctx, name)
		if err != nil {
			return nil, unavailable(err)
		}
		d := &statev1.Destination{Name: name, Waiting: waiting, Leased: leased, Dead: letters,
			Held: h.Held(), HoldReason: h.Reason, HoldSinceMs: h.SinceMS}
		if oldest != 0 {
			d.OldestAgeMs = max(0, s.store.Now()-oldest)
		}
		resp.Destinations = append(resp.Destinations, d)
	}
	return resp, nil
}
