package state

import (
	"context"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	errorsv1 "callrelay/gen/callrelay/errors/v1"
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
		answers := apart(s.tel.Log(), req.GetItems(),
			func(items []*statev1.LoadItem) []*statev1.LoadAnswer { return s.load(ctx, items) },
			func(item *statev1.LoadItem, e *errorsv1.Error) *statev1.LoadAnswer {
				return &statev1.LoadAnswer{Id: item.GetId(), Error: e}
			})
		return &statev1.LoadResponse{NowMs: s.store.Now(), Answers: answers}
	})
}

func (s *server) load(ctx context.Context, items []*statev1.LoadItem) []*statev1.LoadAnswer {
	calls, answers := make([]string, len(items)), make([]*statev1.LoadAnswer, len(items))
	for i, item := range items {
		calls[i] = item.GetCall()
	}
	states, errs := s.store.Load(ctx, calls)
	for i, item := range items {
		a := &statev1.LoadAnswer{Id: item.GetId(), Call: states[i]}
		if errs[i] != nil {
			a.Error, a.Call = unavailable(errs[i]).Proto(), nil
		}
		answers[i] = a
	}
	return answers
}

func unavailable(err error) *errkind.Error {
	return errkind.Unavailable(err, "Redis does not answer, or takes no writes")
}

// Commit answers each message with one message. What can go out at once is handed out before the answer is sent.
func (s *server) Commit(stream grpc.BidiStreamingServer[statev1.CommitRequest, statev1.CommitResponse]) error {
	return rpc.Batches(stream, s.stopping, pipelines, func(ctx context.Context, req *statev1.CommitRequest) *statev1.CommitResponse {
		ctx, cancel := context.WithTimeout(ctx, redisTimeout)
		defer cancel()
		answers := apart(s.tel.Log(), req.GetItems(),
			func(items []*statev1.CommitItem) []*statev1.CommitAnswer { return s.commit(ctx, items) },
			func(item *statev1.CommitItem, e *errorsv1.Error) *statev1.CommitAnswer {
				return &statev1.CommitAnswer{Id: item.GetId(), Error: e}
			})
		return &statev1.CommitResponse{NowMs: s.store.Now(), Answers: answers}
	})
}

func (s *server) commit(ctx context.Context, items []*statev1.CommitItem) []*statev1.CommitAnswer {
	items = s.paused(items)
	spans := s.startCommits(ctx, items)
	answers, errs := s.dispatch.Commit(ctx, items)
	now := s.store.Now()
	for i, item := range items {
		if errs[i] != nil {
			answers[i] = &statev1.CommitAnswer{Error: unavailable(errs[i]).Proto()}
			s.unsureCommits.add(item.GetInputId(), item)
		}
		answers[i].Id = item.GetId()
		switch answers[i].GetStatus() {
		case statev1.CommitStatus_COMMIT_STATUS_OK:
			s.unsureCommits.take(item.GetInputId())
			s.committed(item)
		case statev1.CommitStatus_COMMIT_STATUS_EARLIER:
			s.known(item)
		}
		if len(item.GetMessages()) > 0 {
			s.dispatch.Later(store.Rules, now)
		}
		for _, t := range item.GetSetTimers() {
			s.dispatch.Later(store.Rules, now+t.GetInMs())
		}
		if spans != nil {
			end(spans[i], item, len(items), answers[i], errs[i])
		}
	}
	return answers
}

// paused notes in each delivery for how long its destination had been held when it was queued. What router handed over is its own:
// what changes is copied.
func (s *server) paused(items []*statev1.CommitItem) []*statev1.CommitItem {
	out := slices.Clone(items)
	for i := range out {
		for j, d := range out[i].GetDeliveries() {
			if ms := s.dispatch.HoldOf(d.GetDestination()).PausedMS(s.store.Now()); ms != 0 {
				if out[i] == items[i] {
					out[i] = proto.CloneOf(out[i])
				}
				out[i].Deliveries[j].PausedMs = ms
			}
		}
	}
	return out
}

// serverKind is made once, not for each span.
var serverKind = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer)}

// startCommits begins a span per item, in the item's own trace, and makes it the parent of what the item queues.
func (s *server) startCommits(ctx context.Context, items []*statev1.CommitItem) []trace.Span {
	if !s.tel.Tracing() {
		return nil
	}
	spans := make([]trace.Span, len(items))
	for i, item := range items {
		ctx, span := s.tel.Tracer().Start(telemetry.Extract(ctx, item.GetTraceparent()), "state.commit", serverKind...)
		if len(item.GetDeliveries()) > 0 {
			items[i] = proto.CloneOf(item)
		}
		for _, d := range items[i].GetDeliveries() {
			d.Traceparent = telemetry.Inject(ctx)
		}
		spans[i] = span
	}
	return spans
}

func end(span trace.Span, item *statev1.CommitItem, batch int, a *statev1.CommitAnswer, err error) {
	defer span.End()
	if !span.IsRecording() {
		return
	}
	call, size := telemetry.CallID.String(telemetry.MaskCall(item.GetCall())), telemetry.BatchSize.Int(batch)
	if err != nil {
		span.SetAttributes(call, size)
		span.SetStatus(codes.Error, "the store does not answer")
		return
	}
	span.SetAttributes(call, size, telemetry.Outcome.String(statusWord[a.GetStatus()]))
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
		ctx       = stream.Context()
		consumer  *dispatch.Consumer
		refused   error
		results   = make(chan []*statev1.LeaseResult, pipelines)
		answers   = make(chan []*statev1.LeaseAnswer, 64)
		standings = make(chan *statev1.Standing, 1)
		sent      sync.WaitGroup
	)
	join := func(destination string) error {
		if destination == "" {
			return errkind.Invalid("destination", "the first message must name the destination")
		}
		if err := s.store.Know(ctx, destination); err != nil {
			return unavailable(err) // it would not be swept
		}
		consumer = s.dispatch.Join(destination)
		sent.Go(func() {
			for st := range standings {
				s.stands(ctx, destination, st)
			}
		})
		sent.Go(func() { serve(stream, consumer, answers) })
		// Credit does not wait behind results.
		sent.Go(func() {
			defer close(answers)
			for r := range results {
				select {
				case answers <- s.complete(ctx, destination, r):
				case <-ctx.Done():
				}
			}
		})
		return nil
	}
	rpc.Receive(stream, s.stopping, func(req *statev1.LeaseRequest) bool {
		if consumer == nil {
			if refused = join(req.GetDestination()); refused != nil {
				return false
			}
		}
		if st := req.GetStanding(); st != nil {
			select {
			case standings <- st:
			default: // the next one comes soon
			}
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
	if refused != nil {
		return refused
	}
	if consumer != nil {
		consumer.Leave(ctx)
	}
	close(results)
	close(standings)
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
	return apart(s.tel.Log(), results,
		func(results []*statev1.LeaseResult) []*statev1.LeaseAnswer {
			return s.completeEach(ctx, destination, results)
		},
		func(r *statev1.LeaseResult, e *errorsv1.Error) *statev1.LeaseAnswer {
			return &statev1.LeaseAnswer{Id: r.GetId(), Error: e}
		})
}

func (s *server) completeEach(ctx context.Context, destination string, results []*statev1.LeaseResult) []*statev1.LeaseAnswer {
	answers := make([]*statev1.LeaseAnswer, len(results))
	var deliveries []*statev1.LeaseResult
	var theirs []*statev1.LeaseAnswer
	for i, r := range results {
		if r.GetDestination() != destination { // of a consumer that leaves it out
			r = proto.CloneOf(r)
			r.Destination = destination
		}
		answers[i] = &statev1.LeaseAnswer{Id: r.GetId()}
		switch {
		case r.GetDelivery() != 0:
			deliveries, theirs = append(deliveries, r), append(theirs, answers[i])
		case r.GetRetry() != nil: // else the commit of the input, or what made it stale, ended the lease
			if err := s.store.ReturnTimer(ctx, r, r.GetRetry().GetInMs()); err != nil {
				answers[i].Error = unavailable(err).Proto()
				continue
			}
			s.dispatch.Later(destination, s.store.Now()+r.GetRetry().GetInMs())
		}
	}
	if len(deliveries) > 0 {
		s.completeDeliveries(ctx, destination, deliveries, theirs)
	}
	return answers
}

// completeDeliveries takes results of deliveries, fills in their answers, and tells who has to know.
func (s *server) completeDeliveries(ctx context.Context, destination string, results []*statev1.LeaseResult, answers []*statev1.LeaseAnswer) {
	verdicts, errs := s.store.Complete(ctx, results)
	now := s.store.Now()
	var due []store.Ref
	for i, r := range results {
		v := verdicts[i]
		if errs[i] != nil {
			answers[i].Error = unavailable(errs[i]).Proto()
			s.unsureResults.add(r.GetToken(), true)
			continue
		}
		unsure, _ := s.unsureResults.take(r.GetToken())
		if answers[i].Superseded = v.Superseded; v.Superseded && !unsure {
			continue
		}
		s.completed(r, v, now)
		if v.Superseded {
			continue
		}
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
}
