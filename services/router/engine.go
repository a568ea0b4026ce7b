package router

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"

	"callrelay/callback"
	errorsv1 "callrelay/gen/callrelay/errors/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/errkind"
	"callrelay/platform/lanes"
	"callrelay/platform/telemetry"
	"callrelay/services/router/ameyo"
	"callrelay/services/router/kommo"
)

// conflicts bounds how often an input is decided again because its call changed meanwhile.
const conflicts = 10

// engine takes inputs to their commits.
type engine struct {
	rules   *ameyo.Config
	options callback.Options
	tel     *telemetry.Telemetry
	metrics *metrics
	load    *loadPipe
	commit  *commitPipe
	lanes   lanes.Lanes
	clock   clock
	running running
	pbx     pbxRules
	kommo   kommoRules
	// entryMaxAge is how long an entry that cannot be processed is tried again.
	entryMaxAge time.Duration
	// stopTimeout is how long entries may take to end when the process stops.
	stopTimeout time.Duration

	// decide is ameyo.Decide; a test puts a broken one in its place.
	decide func(*ameyo.Config, ameyo.Call, ameyo.Input, int64) (ameyo.Call, ameyo.Effects)
}

func newEngine(rules *ameyo.Config, options callback.Options, tel *telemetry.Telemetry, client statev1.StateServiceClient) (*engine, error) {
	m, err := newMetrics(tel.Meter())
	return &engine{rules: rules, options: options, tel: tel, metrics: m, load: newLoadPipe(client), commit: newCommitPipe(client),
		stopTimeout: StopTimeout, decide: ameyo.Decide}, err
}

// input is one thing that happened to a call.
type input struct {
	id          string // the commit's input id
	call        string
	traceparent string
	since       time.Time // when it was received, by this process's clock
	received    *statev1.Received
	rejected    *statev1.Rejected // set: nothing is to be decided, only recorded
	unreadable  error             // set: nothing can be decided, only recorded
	ameyo       ameyo.Input
	pbx         *pbxInput      // set: it belongs to a call of a cloud PBX
	kommo       *kommoInput    // set: it belongs to a record of Kommo's rules
	done        bool           // nothing is to be decided: its entry has been processed elsewhere
	entry       *statev1.Entry // set: it came from `rules`
	terms       []string       // what the call can be found by, and phone numbers
	phones      []string
	resend      *resending // set: it replaces a request of its call
	receivedMS  int64      // set: when it was received, by state's clock
}

// process decides one input and commits what follows. The context ends when nobody waits for the answer any more.
// An error of kind UNAVAILABLE leaves the outcome unknown; the input may be sent again with its id.
func (e *engine) process(ctx context.Context, in *input) (duplicate bool, err error) {
	e.running.begin()
	defer e.running.end()
	leave, err := e.lanes.Enter(ctx, in.call)
	if err != nil {
		return false, errkind.Unavailable(err, "the inputs before this one of its call are not done yet")
	}
	defer leave()

	var effects ameyo.Effects
	if e.tel.Tracing() {
		var span trace.Span
		ctx, span = e.tel.Tracer().Start(telemetry.Extract(ctx, in.traceparent), "router.decide")
		defer func() {
			if span.IsRecording() {
				span.SetAttributes(decisionAttributes(in, &effects)...)
			}
			if err != nil {
				span.SetStatus(codes.Error, errkind.From(err).Message)
			}
			span.End()
		}()
	}

	state, nowMS, receivedMS, err := e.start(ctx, in)
	if err != nil {
		return false, err
	}
	now := time.Now()
	var failed error
	for range conflicts {
		item, decided, err := e.decideOne(in, state, receivedMS, nowMS)
		effects = decided
		now = since(ctx, e.metrics.decide, now)
		if err != nil && in.resend != nil {
			return false, refusal(err) // a person is told; nothing happened
		}
		if err != nil {
			failed = err
			item = undecided(in, state, nowMS, receivedMS, err)
		}
		if e.tel.Tracing() {
			item.Traceparent = telemetry.Inject(ctx)
		}
		answer, err := e.commitOne(ctx, item)
		now = since(ctx, e.metrics.commit, now)
		switch {
		case err != nil:
			return false, err
		case answer.GetStatus() == statev1.CommitStatus_COMMIT_STATUS_EARLIER && in.kommo != nil && in.kommo.token != nil && !in.received.GetSpooled():
			return true, e.decideAgain(ctx, in) // its sender got no answer, and wants the one that there was
		case answer.GetStatus() != statev1.CommitStatus_COMMIT_STATUS_CONFLICT:
			if answer.GetStatus() == statev1.CommitStatus_COMMIT_STATUS_OK {
				e.metrics.happened(ctx, effects)
			}
			return answer.GetOutcome().GetDuplicate(), failed
		}
		state, nowMS, failed = answer.GetCurrent(), answer.nowMS, nil
	}
	return false, errkind.Unavailable(fmt.Errorf("%d conflicts", conflicts), "the call keeps changing")
}

// start is the call as an input is first decided on, state's time, and when the input was received by it.
//
// Most callbacks are the first of their call: they are decided on a call of which nothing is known (nil). If that is wrong, the conflict
// brings the call as it is, which costs no more than loading it first. The call of an entry or of a resent request is known to exist.
func (e *engine) start(ctx context.Context, in *input) (state *statev1.CallState, nowMS, receivedMS int64, err error) {
	now := time.Now()
	nowMS, ok := e.clock.at(now)
	if !ok || in.entry != nil || in.resend != nil {
		if state, nowMS, err = e.loadCall(ctx, in.call); err != nil {
			return nil, 0, 0, err
		}
		now = time.Now()
	}
	if in.receivedMS > 0 {
		return state, nowMS, in.receivedMS, nil
	}
	// State's clock, less the time since the callback was received: a point in time that no retry moves.
	// A timer is never before its time, even if another state process, whose clock is a little behind, answered the load.
	return state, nowMS, max(nowMS-now.Sub(in.since).Milliseconds(), in.entry.GetDueMs()), nil
}

func (e *engine) loadCall(ctx context.Context, call string) (*statev1.CallState, int64, error) {
	for attempt := 0; ; attempt++ {
		answer, err := e.load.Do(ctx, &statev1.LoadItem{Call: call})
		if err = errorOf(err, answer.GetError()); err == nil {
			e.clock.set(answer.nowMS)
			return answer.GetCall(), answer.nowMS, nil
		}
		if err := pause(ctx, attempt, err); err != nil {
			return nil, 0, err
		}
	}
}

// commitOne sends a commit until its outcome is known, verbatim each time: state recognises it by its input id.
func (e *engine) commitOne(ctx context.Context, item *statev1.CommitItem) (committed, error) {
	for attempt := 0; ; attempt++ {
		answer, err := e.commit.Do(ctx, item)
		if err = errorOf(err, answer.GetError()); err == nil {
			e.clock.set(answer.nowMS)
			return answer, nil
		}
		if err := pause(ctx, attempt, err); err != nil {
			return committed{}, err
		}
		item = proto.CloneOf(item) // the one before may still be on its way
	}
}

// errorOf is what went wrong with an item: on the way, or as its answer says.
func errorOf(err error, said *errorsv1.Error) error {
	if err != nil || said == nil {
		return err
	}
	return errkind.FromProto(said)
}

// pause waits before the next try of something that is unavailable; anything else, and the end of ctx, ends the tries.
func pause(ctx context.Context, attempt int, err error) error {
	if fault := errkind.From(err); fault.Kind != errorsv1.Kind_KIND_UNAVAILABLE {
		return fault
	}
	select {
	case <-ctx.Done():
		return errkind.Unavailable(err, "the store does not answer")
	case <-time.After(min(500*time.Millisecond, 10*time.Millisecond<<min(attempt, 6))):
		return nil
	}
}

// maxDeliveries bounds what one call can grow to. A real one has a dozen; a dialer that sends one id for all its calls would
// make a record that is too large to be read.
const maxDeliveries = 1000

// decideOne asks the rules and makes the commit of what they say. A panic of the rules is this input's error, nobody else's.
func (e *engine) decideOne(in *input, state *statev1.CallState, receivedMS, nowMS int64) (item *statev1.CommitItem, effects ameyo.Effects, err error) {
	defer func() {
		if p := recover(); p != nil {
			e.tel.Log().Error("panic in the rules", "request_id", in.id, "call", telemetry.MaskCall(in.call), "panic", p, "stack", string(debug.Stack()))
			err = errkind.Internal(fmt.Errorf("panic in the rules: %v", p))
		}
	}()
	switch {
	case in.unreadable != nil:
		return nil, effects, in.unreadable
	case in.rejected != nil:
		return newCommit(in, state.GetVersion(), nowMS, received(in, nowMS, receivedMS),
			&statev1.JournalEntry{AtMs: nowMS, RequestId: in.id, Fact: &statev1.JournalEntry_Rejected{Rejected: in.rejected}}), effects, nil
	case in.done:
		return newCommit(in, state.GetVersion(), nowMS), effects, nil
	case in.received != nil && full(state):
		return nil, effects, errkind.Refused("this call has had %d deliveries: its id seems to be used for more than one call", maxDeliveries)
	case in.kommo != nil:
		item, effects.Duplicate, err = e.decideKommo(in, state, receivedMS, nowMS)
		return item, effects, err
	case in.pbx != nil:
		item, effects.Duplicate, err = e.decidePbx(in, state, receivedMS, nowMS)
		return item, effects, err
	}
	return e.decideAmeyo(in, state, receivedMS, nowMS)
}

func (e *engine) decideAmeyo(in *input, state *statev1.CallState, receivedMS, nowMS int64) (item *statev1.CommitItem, effects ameyo.Effects, err error) {
	call, record, err := readCall(state)
	if err != nil {
		return nil, effects, err
	}
	in.ameyo.ReceivedMS = receivedMS
	var next ameyo.Call
	if in.resend != nil {
		if next, effects, err = ameyo.Resend(e.rules, call, in.ameyo, in.resend.of, in.resend.force, nowMS); err != nil {
			return nil, effects, err
		}
	} else {
		next, effects = e.decide(e.rules, call, in.ameyo, nowMS)
	}

	entries := make([]*statev1.JournalEntry, 0, 1+len(effects.Facts))
	if in.received != nil {
		entries = append(entries, received(in, nowMS, receivedMS))
	}
	if in.resend != nil {
		entries = append(entries, in.resendEntries(nowMS)...)
	}
	for _, fact := range effects.Facts {
		entries = append(entries, journalEntry(fact, effects.RequestID, nowMS))
	}
	item = newCommit(in, state.GetVersion(), nowMS, entries...)
	item.Outcome = outcomes[effects.Duplicate]
	if effects.Changed {
		item.CommitId = rand.Text()
		if item.Record, err = writeRecord(next, record); err != nil {
			return nil, effects, err
		}
		item.Deliveries = newDeliveries(effects.Deliveries)
		for _, t := range effects.SetTimers {
			item.SetTimers = append(item.SetTimers, &statev1.Timer{Name: t.Name, InMs: t.InMS})
		}
		item.CancelTimers = effects.CancelTimers
	}
	item.Messages, err = kommoMessages(e.kommo.routes.ameyoMessages(in, effects, receivedMS, e.rules.Zone))
	return item, effects, err
}

// outcomes are shared by all commits: nobody changes what was sent.
var outcomes = map[bool]*statev1.Outcome{false: {}, true: {Duplicate: true}}

// received is the first entry of every callback.
func received(in *input, nowMS, receivedMS int64) *statev1.JournalEntry {
	in.received.AgeMs = nowMS - receivedMS
	return &statev1.JournalEntry{AtMs: nowMS, RequestId: in.id, Fact: &statev1.JournalEntry_Received{Received: in.received}}
}

func newCommit(in *input, version string, nowMS int64, entries ...*statev1.JournalEntry) *statev1.CommitItem {
	journal, err := proto.Marshal(&statev1.Journal{Entries: entries})
	if err != nil {
		journal, _ = proto.Marshal(&statev1.Journal{Entries: []*statev1.JournalEntry{{AtMs: nowMS, RequestId: in.id,
			Fact: &statev1.JournalEntry_Note{Note: "the facts of this input could not be written: " + err.Error()}}}})
	}
	return &statev1.CommitItem{Call: in.call, InputId: in.id, ExpectedVersion: version, Journal: journal, Entry: in.entry,
		Moves: moves(entries), Terms: in.terms, Phones: in.phones}
}

// full says that a call has had so many deliveries that its id must be used for more than one call. Its journal is full long before.
func full(state *statev1.CallState) bool { return len(state.GetDeliveries()) >= maxDeliveries }

// undecided records an input that the rules could not process, so that it is found and nothing waits for it for ever: in its call,
// but what its sender believes to be taken where there is room for sure, under its request id, if the call is full.
func undecided(in *input, state *statev1.CallState, nowMS, receivedMS int64, err error) *statev1.CommitItem {
	version := state.GetVersion()
	if in.received.GetSpooled() && full(state) {
		alone := *in
		alone.call = callback.RequestKey(in.id)
		in, version = &alone, ""
	}
	var entries []*statev1.JournalEntry
	if in.received != nil {
		entries = append(entries, received(in, nowMS, receivedMS))
	}
	cause := err
	if c := errors.Unwrap(err); c != nil {
		cause = c
	}
	entries = append(entries, &statev1.JournalEntry{AtMs: nowMS, RequestId: in.id, Fact: &statev1.JournalEntry_Undecided{Undecided: &statev1.Undecided{
		Reason: telemetry.MaskDigits(cause.Error()), Field: errkind.From(err).Field, Acknowledged: in.received.GetSpooled()}}})
	return newCommit(in, version, nowMS, entries...)
}

// decisionAttributes are what a trace shows of a decision.
func decisionAttributes(in *input, effects *ameyo.Effects) []attribute.KeyValue {
	attributes := make([]attribute.KeyValue, 0, 6)
	attributes = append(attributes, telemetry.CallID.String(telemetry.MaskCall(in.call)), telemetry.RequestID.String(in.id))
	if effects.Duplicate {
		attributes = append(attributes, telemetry.Duplicate.Bool(true))
	}
	if in.received.GetSpooled() {
		attributes = append(attributes, telemetry.Spooled.Bool(true))
	}
	for _, fact := range effects.Facts {
		if d, ok := fact.(ameyo.Decided); ok {
			attributes = append(attributes, telemetry.Rule.String(d.Rule), telemetry.Flow.String(d.Flow))
		}
	}
	return attributes
}

// running counts what is under way, so that one can wait until nothing is. A WaitGroup does not do: the first one may begin while
// somebody waits already.
type running struct {
	mu   sync.Mutex
	n    int
	none chan struct{} // closed when n is 0 again; nil while nobody waits
}

func (r *running) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n++
}

func (r *running) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n--; r.n == 0 && r.none != nil {
		close(r.none)
		r.none = nil
	}
}

func (r *running) wait() {
	r.mu.Lock()
	if r.n == 0 {
		r.mu.Unlock()
		return
	}
	if r.none == nil {
		r.none = make(chan struct{})
	}
	none := r.none
	r.mu.Unlock()
	<-none
}

// rulesQueue is the queue of entries: timers, messages between calls, and results of deliveries that the rules asked for.
const rulesQueue = "rules"

// entries leases the entries that are due until ctx ends.
func (e *engine) entries(ctx context.Context, client statev1.StateServiceClient) {
	for ctx.Err() == nil {
		_ = e.entryStream(ctx, client) // state being away is said by the pipes and by readiness
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// entriesAtOnce is how many entries this process works on at the same time.
const entriesAtOnce = 64

// entryStream takes entries until ctx ends or the stream breaks. When ctx ends, no more of them are asked for, those under way
// have half of the stopTimeout to finish, and the stream ends behind their results: without them each would wait for LEASE_TIME.
func (e *engine) entryStream(ctx context.Context, client statev1.StateServiceClient) error {
	streaming, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	opening := context.AfterFunc(ctx, cut)
	stream, err := client.Lease(streaming)
	if !opening() || err != nil {
		return err
	}
	working, halt := context.WithCancel(streaming)
	defer halt()
	var (
		send     sync.Mutex
		ended    bool // nothing is sent any more
		underWay running
		over     = make(chan struct{})
		stopped  sync.WaitGroup
	)
	reply := func(req *statev1.LeaseRequest) {
		if ctx.Err() != nil {
			req.Credit = 0
		}
		send.Lock()
		defer send.Unlock()
		if !ended {
			_ = stream.Send(req) // a broken stream ends Recv too; LEASE_TIME gives the entry back
		}
	}
	stopped.Go(func() {
		select {
		case <-ctx.Done():
		case <-over:
			return
		}
		defer time.AfterFunc(e.stopTimeout/2, halt).Stop()
		defer time.AfterFunc(e.stopTimeout*3/4, cut).Stop() // state does not read, or does not end the stream
		underWay.wait()
		send.Lock()
		ended = true
		_ = stream.CloseSend()
		send.Unlock()
		<-over
	})
	defer stopped.Wait()
	defer close(over)
	defer underWay.wait()
	reply(&statev1.LeaseRequest{Destination: rulesQueue, Credit: entriesAtOnce})
	for {
		resp, err := stream.Recv()
		if err != nil {
			if ctx.Err() == nil {
				halt()
			}
			return err
		}
		for range resp.GetWork() { // all of them, before the first can end
			underWay.begin()
		}
		for _, w := range resp.GetWork() {
			go func() {
				defer underWay.end()
				reply(e.entryDue(working, w))
			}()
		}
	}
}

// entryAgain is how soon an entry that cannot be processed now is tried again; then it waits as long as it has waited, at most
// entryWaits.
const (
	entryAgain = time.Second
	entryWaits = 30 * time.Second
)

// entryDue processes one entry that came due. Its commit ends its lease; only a failure has to be told. What the rules cannot
// process is recorded as undecided by the same commit, and so is what could not be processed for DELIVERY_MAX_AGE: no entry
// comes back for ever.
func (e *engine) entryDue(ctx context.Context, w *statev1.LeaseWork) *statev1.LeaseRequest {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	waiting := time.Duration(w.GetEntry().GetWaitingMs()) * time.Millisecond
	err := e.entry(ctx, w.GetCall(), w.GetEntry(), nil)
	if err != nil && tryAgain(err) && waiting > e.entryMaxAge {
		err = e.entry(ctx, w.GetCall(), w.GetEntry(), fmt.Errorf("it could not be processed within %v (DELIVERY_MAX_AGE): %v", e.entryMaxAge, err))
	}
	next := &statev1.LeaseRequest{Credit: 1}
	switch {
	case err != nil && tryAgain(err):
		again := min(max(waiting, entryAgain), entryWaits)
		if gone := (errNotConnected{}); errors.As(err, &gone) {
			e.tel.Log().Warn("an entry waits for its account", "error", err)
		}
		next.Results = []*statev1.LeaseResult{{Call: w.GetCall(), Destination: rulesQueue, Token: w.GetToken(), Timer: w.GetEntry().GetTimer(),
			Result: &statev1.LeaseResult_Retry{Retry: &statev1.RetryLater{InMs: again.Milliseconds()}}}}
	case err != nil:
		e.tel.Log().Error("AN ENTRY COULD NOT BE PROCESSED; it is recorded as undecided", "call", telemetry.MaskCall(w.GetCall()), "error", telemetry.MaskDigits(err.Error()))
	}
	return next
}

// tryAgain says whether what failed has to be tried again: it is not recorded, or nobody knows.
func tryAgain(err error) bool {
	var gone errNotConnected
	return errors.As(err, &gone) || errkind.From(err).Kind == errorsv1.Kind_KIND_UNAVAILABLE
}

// entry processes an entry, or records why it is given up. A panic is this entry's error, and recorded; one that meets that as well is
// tried again later.
func (e *engine) entry(ctx context.Context, call string, entry *statev1.Entry, givenUp error) (err error) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		e.tel.Log().Error("panic", "call", telemetry.MaskCall(call), "timer_id", entry.GetTimerId(), "panic", p, "stack", string(debug.Stack()))
		if err = errkind.Unavailable(nil, "the entry could not be recorded"); givenUp == nil {
			err = e.entry(ctx, call, entry, fmt.Errorf("panic: %v", p))
		}
	}()
	in := entryInput(call, entry)
	in.unreadable = givenUp
	switch _, _, _, isKommo := kommo.ParseKey(call); {
	case entry.GetMessage() != nil:
		return e.relay(ctx, in, entry.GetMessage(), givenUp)
	case givenUp != nil:
	case isKommo:
		if err := e.kommo.entry(in, entry); err != nil {
			return err
		}
	case strings.HasPrefix(call, callback.Pbx+"/"):
		if err := e.pbx.timer(in, entry.GetTimer()); err != nil {
			return err
		}
	}
	_, err = e.process(ctx, in)
	return err
}

func entryInput(call string, entry *statev1.Entry) *input {
	return &input{id: entry.GetTimerId() + ":" + entry.GetTimer(), call: call, since: time.Now(), entry: entry,
		ameyo: ameyo.Input{Timer: entry.GetTimer()}}
}

// traceID is the trace id of a W3C traceparent, or empty.
func traceID(traceparent string) string {
	if strings.Count(traceparent, "-") != 3 {
		return ""
	}
	_, rest, _ := strings.Cut(traceparent, "-")
	id, _, _ := strings.Cut(rest, "-")
	return id
}
