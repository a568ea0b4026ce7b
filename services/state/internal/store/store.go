// Package store is the only one that speaks to Redis. It owns the keys (keys.go), the scripts (lua/) and the clock, and
// turns each operation of the contract (callrelay/state/v1) into pipelined script calls whose items succeed or fail one
// by one. It does not decide who gets work (package dispatch) and does not know what a disposition means.
package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"google.golang.org/protobuf/proto"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/telemetry"
)

// Config says where Redis is and how much is kept.
type Config struct {
	URL string
	// Retention is the time to live of a call in which nothing is open any more.
	Retention time.Duration
	// JournalLimit bounds the journal of one call, in bytes; what does not fit is only counted.
	JournalLimit int
	// ReplicasAck is how many replicas must have a write before it is answered; 0 = none.
	ReplicasAck int
	// Wrote is told of the facts that the store itself adds (lost leases, what persons do), as a commit of nothing else.
	Wrote func(*statev1.CommitItem)
	// Ran is told of each pipeline of a script: which one, for how many items, and how long Redis took. nil: nobody is.
	Ran func(ctx context.Context, script string, items int, took time.Duration)
}

// Store is safe for concurrent use.
type Store struct {
	client redis.UniversalClient
	cfg    Config
	clock  *Clock
	// clockOff is by how much Redis' clock was off at the last connecting, if it was not followed.
	clockOff atomic.Int64
	self     string // names this process among the state replicas

	mu           sync.Mutex
	destinations map[string]bool

	index index
}

// CheckURL says what is wrong with a REDIS_URL.
func CheckURL(raw string) error {
	client, err := newClient(raw)
	if err != nil {
		return err
	}
	return client.Close()
}

// Open prepares the client; nothing is sent before Connect.
func Open(cfg Config) (*Store, error) {
	logging.Disable() // go-redis would print each failed connection; whoever owns the store says once that Redis is gone
	client, err := newClient(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("REDIS_URL: %w", err)
	}
	return &Store{client: client, cfg: cfg, clock: newClock(), self: rand.Text(), destinations: map[string]bool{}}, nil
}

// newClient understands redis://, rediss:// and unix:// (one server), the same with ?addr=host:port for the other nodes of
// a cluster, and ?master_name= for Sentinel. The client's own retries are off: an unknown outcome is answered by sending
// the same commit again, in one place (router).
func newClient(raw string) (redis.UniversalClient, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errors.New("expected redis://host:port/db, rediss://... or unix:///path")
	}
	// The client's buffers for pipelines are 128 KiB by default; ours are mostly below 32.
	const connections, buffer = 8, 32 << 10
	switch q := u.Query(); {
	case q.Has("master_name"):
		switch {
		case q.Get("master_name") == "":
			return nil, errors.New("master_name: expected the name by which the sentinels know the master, e.g. mymaster")
		case u.Scheme == "unix":
			return nil, errors.New("master_name: expected redis://sentinel:26379?master_name=..., not a unix socket")
		}
		o, err := redis.ParseFailoverURL(raw)
		if err != nil {
			return nil, err
		}
		o.MaxRetries, o.DialerRetries, o.PoolSize, o.ContextTimeoutEnabled, o.Protocol = -1, 1, connections, true, 2
		o.PipelineReadBufferSize, o.PipelineWriteBufferSize = buffer, buffer
		return redis.NewFailoverClient(o), nil
	case q.Has("addr"):
		o, err := redis.ParseClusterURL(raw)
		if err != nil {
			return nil, err
		}
		o.MaxRetries, o.DialerRetries, o.PoolSize, o.ContextTimeoutEnabled, o.Protocol = -1, 1, connections, true, 2
		o.PipelineReadBufferSize, o.PipelineWriteBufferSize = buffer, buffer
		return redis.NewClusterClient(o), nil
	}
	o, err := redis.ParseURL(raw)
	if err != nil {
		return nil, err
	}
	o.MaxRetries, o.DialerRetries, o.PoolSize, o.ContextTimeoutEnabled, o.Protocol = -1, 1, connections, true, 2
	o.PipelineReadBufferSize, o.PipelineWriteBufferSize = buffer, buffer
	return redis.NewClient(o), nil
}

// Close ends all connections.
func (s *Store) Close() error { return s.client.Close() }

// Ping asks Redis whether it takes writes: one that is full, read-only or without its replicas answers a mere PING. It
// changes nothing.
func (s *Store) Ping(ctx context.Context) error {
	return s.client.HSetNX(ctx, keyMeta, "format", format).Err()
}

// ClockOff is by how much Redis' clock was ahead (or, negative, behind) when it was last connected, where that is so much that
// it was not followed; else 0.
func (s *Store) ClockOff() time.Duration { return time.Duration(s.clockOff.Load()) }

// Now is state's clock in Unix milliseconds.
func (s *Store) Now() int64 { return s.clock.Now() }

// Connect reads Redis' time, checks that what is stored has our format, and reads the destinations known so far. It is
// called again after a lost connection.
func (s *Store) Connect(ctx context.Context) error {
	now, err := s.client.Time(ctx).Result()
	if err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	read := time.Now()
	partitions := strconv.Itoa(Partitions)
	p := s.client.Pipeline()
	p.HSetNX(ctx, keyMeta, "format", format)
	p.HSetNX(ctx, keyMeta, "partitions", partitions)
	meta := p.HGetAll(ctx, keyMeta)
	for _, d := range s.Destinations() {
		p.SAdd(ctx, keyDestinations, d) // a failover may have lost it
	}
	known := p.SMembers(ctx, keyDestinations)
	if _, err := p.Exec(ctx); err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	if m := meta.Val(); m["format"] != format || m["partitions"] != partitions {
		return &FormatError{Found: m["format"], Partitions: m["partitions"]}
	}
	s.remember(known.Val())
	s.clockOff.Store(int64(s.clock.set(now.Add(time.Since(read))))) // from now on calls are taken, see Clock.known
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	s.index.forget() // what Redis lost of it is written anew without
	return nil
}

func (s *Store) remember(destinations []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range destinations {
		s.destinations[d] = true
	}
}

// FormatError says that Redis holds data of another version of callrelay. Waiting does not help.
type FormatError struct{ Found, Partitions string }

func (e *FormatError) Error() string {
	return fmt.Sprintf("redis holds format %s with %s partitions; this callrelay needs format %s with %d. "+
		"Use another Redis database or the callrelay version that wrote it", e.Found, e.Partitions, format, Partitions)
}

// Load reads calls. An answer's error is a Redis error.
func (s *Store) Load(ctx context.Context, calls []string) ([]*statev1.CallState, []error) {
	if !s.clock.known() { // the answer comes with the time
		return make([]*statev1.CallState, len(calls)), slices.Repeat([]error{errNoTime}, len(calls))
	}
	p := s.client.Pipeline()
	cmds := make([]*redis.MapStringStringCmd, len(calls))
	for i, call := range calls {
		cmds[i] = p.HGetAll(ctx, keyCall(call))
	}
	_, _ = p.Exec(ctx) // each command has its own error
	states, errs := make([]*statev1.CallState, len(calls)), make([]error, len(calls))
	for i, cmd := range cmds {
		fields, err := cmd.Result()
		if err != nil {
			errs[i] = err
			continue
		}
		states[i], errs[i] = callState(fields)
	}
	return states, errs
}

// callState builds what rules see of a call.
func callState(fields map[string]string) (*statev1.CallState, error) {
	state := &statev1.CallState{Version: fields["v"], Record: []byte(fields["r"])}
	deliveries, err := readDeliveries(fields)
	for _, d := range deliveries {
		d.Payload, d.Traceparent, d.Link = nil, "", ""
	}
	state.Deliveries = deliveries
	return state, err
}

// readDeliveries builds a call's deliveries in the order of their numbers, which start at 1 without gaps. With an error, one of them is
// not all that was stored.
func readDeliveries(fields map[string]string) (out []*statev1.Delivery, failed error) {
	for n := 1; ; n++ {
		number := strconv.Itoa(n)
		body, ok := fields[number]
		if !ok {
			return out, failed
		}
		d := &statev1.Delivery{}
		if err := proto.Unmarshal([]byte(body), d); err != nil {
			failed = fmt.Errorf("delivery %d is unreadable: %w", n, err)
		}
		d.Number = uint32(n)
		d.State = states[fields[number+"s"]]
		d.Attempts = uint32(atoi(fields[number+"a"]))
		d.Uncertain = fields[number+"u"] != ""
		d.FinalMs = atoi(fields[number+"f"])
		d.Reason = fields[number+"y"]
		out = append(out, d)
	}
}

func atoi(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}

// states maps the stored letters.
var states = map[string]statev1.DeliveryState{
	"q": statev1.DeliveryState_DELIVERY_STATE_QUEUED,
	"l": statev1.DeliveryState_DELIVERY_STATE_LEASED,
	"d": statev1.DeliveryState_DELIVERY_STATE_DELIVERED,
	"x": statev1.DeliveryState_DELIVERY_STATE_DEAD,
	"e": statev1.DeliveryState_DELIVERY_STATE_EXPIRED,
	"c": statev1.DeliveryState_DELIVERY_STATE_DISCARDED,
	"n": statev1.DeliveryState_DELIVERY_STATE_SEND_DISABLED,
	"a": statev1.DeliveryState_DELIVERY_STATE_ASKED,
}

func letter(state statev1.DeliveryState) string {
	for l, s := range states {
		if s == state {
			return l
		}
	}
	return ""
}

// Ref names what became due: the head of a (call, destination), or a timer.
type Ref struct {
	Destination string
	Member      string
}

// Place says what became of a new delivery.
type Place string

// The places of a delivery, in commit.lua's words.
const (
	Waits  Place = ""       // behind another one of its line
	Due    Place = "due"    // the new head of its line
	Leased Place = "leased" // the same, and leased under the token that was given
)

// Commit writes items in their order; those of one call that follow each other name their predecessor's commit id as the
// expected version. tokens has a lease token, or none, for each delivery of each item. It returns an answer or an error for
// each item, and the places of its deliveries. An error means that the outcome is unknown: the same item may be sent again.
func (s *Store) Commit(ctx context.Context, items []*statev1.CommitItem, tokens [][]string) ([]*statev1.CommitAnswer, [][]Place, []error) {
	now := s.clock.Now()
	answers, places := make([]*statev1.CommitAnswer, len(items)), make([][]Place, len(items))
	replies, errs := s.runEach(ctx, len(items), func(i int, short bool) (invocation, error) {
		var of []string
		if tokens != nil {
			of = tokens[i]
		}
		return s.commitCall(ctx, items[i], of, now, short)
	})
	for i, item := range items {
		switch {
		case errs[i] != nil:
		case replies[i] == yes: // of first.lua
			answers[i] = &statev1.CommitAnswer{Status: statev1.CommitStatus_COMMIT_STATUS_OK, Outcome: item.GetOutcome()}
			if places[i] = []Place{Due}; tokens != nil && len(tokens[i]) > 0 && tokens[i][0] != "" {
				places[i][0] = Leased
			}
		default:
			answers[i], places[i], errs[i] = readCommit(replies[i], item)
		}
	}
	return answers, places, errs
}

// readCommit reads what commit.lua returned for an item.
func readCommit(reply any, item *statev1.CommitItem) (*statev1.CommitAnswer, []Place, error) {
	r, err := strs(reply)
	if err != nil || len(r) == 0 {
		return nil, nil, fmt.Errorf("commit: unexpected reply %v", reply)
	}
	a := &statev1.CommitAnswer{}
	var places []Place
	switch r[0] {
	case "ok":
		a.Status, a.Outcome = statev1.CommitStatus_COMMIT_STATUS_OK, item.GetOutcome()
		for _, place := range r[1:] {
			places = append(places, Place(place))
		}
	case "earlier":
		a.Status, a.Outcome = statev1.CommitStatus_COMMIT_STATUS_EARLIER, outcome(r[1])
	case "stale":
		a.Status = statev1.CommitStatus_COMMIT_STATUS_STALE
	case "conflict":
		a.Status = statev1.CommitStatus_COMMIT_STATUS_CONFLICT
		fields := make(map[string]string, len(r)/2)
		for f := 1; f+1 < len(r); f += 2 {
			fields[r[f]] = r[f+1]
		}
		a.Current, err = callState(fields)
	}
	return a, places, err
}

// commitCall is what commit.lua is told of an item, or, where short is asked for and will do, first.lua.
func (s *Store) commitCall(ctx context.Context, item *statev1.CommitItem, tokens []string, now int64, short bool) (invocation, error) {
	call, p := item.GetCall(), Partition(item.GetCall())
	bodies := make([][]byte, len(item.GetDeliveries()))
	for i, d := range item.GetDeliveries() {
		err := s.Know(ctx, d.GetDestination())
		if err != nil {
			return invocation{}, err
		}
		if bodies[i], err = proto.Marshal(&statev1.Delivery{
			Destination: d.GetDestination(), Endpoint: d.GetEndpoint(), Payload: d.GetPayload(), RequestId: d.GetRequestId(),
			Traceparent: d.GetTraceparent(), Link: d.GetLink(), Gate: d.GetGate(), MaxAgeMs: d.GetMaxAgeMs(),
			CreatedMs: now, PausedMs: d.GetPausedMs(),
		}); err != nil {
			return invocation{}, err
		}
	}
	if short && s.isFirst(item) {
		return firstCall(item, bodies[0], tokens, now), nil
	}
	keys := append(make([]string, 0, 5+2*len(item.GetDeliveries())), keyCall(call), keyDue(p, Rules), keyLeases(p, Rules))
	args := make([]any, 0, 24+5*len(item.GetDeliveries())+3*len(item.GetSetTimers())+3*len(item.GetMessages())+len(item.GetCancelTimers())+2*len(item.GetCards()))
	args = append(args, item.GetInputId(), item.GetExpectedVersion(), item.GetCommitId(), item.GetRecord(),
		item.GetJournal(), outcomeText(item.GetOutcome()), now, s.cfg.Retention.Milliseconds(), s.cfg.JournalLimit, call,
		item.GetEntry().GetTimer(), item.GetEntry().GetTimerId(),
		len(item.GetDeliveries()), len(item.GetSetTimers())+len(item.GetMessages()), len(item.GetCancelTimers()), len(item.GetCards()), retention(item))
	for i, d := range item.GetDeliveries() {
		token := ""
		if i < len(tokens) {
			token = tokens[i]
		}
		keys = append(keys, keyDue(p, d.GetDestination()), keyLeases(p, d.GetDestination()))
		args = append(args, d.GetNumber(), d.GetDestination(), bodies[i], token, flag(d.GetResultWanted()))
	}
	for _, t := range item.GetSetTimers() {
		args = append(args, t.GetName(), now+t.GetInMs(), "")
	}
	for _, m := range item.GetMessages() {
		body, err := proto.Marshal(m)
		if err != nil {
			return invocation{}, err
		}
		args = append(args, messageName+m.GetId(), now, body)
	}
	for _, name := range item.GetCancelTimers() {
		args = append(args, name)
	}
	if len(item.GetCards()) > 0 {
		keys = append(keys, keyCards(p))
	}
	for _, c := range CallCards(item, now) {
		var body []byte
		if c.GetUntilMs() != 0 {
			var err error
			if body, err = proto.Marshal(c); err != nil {
				return invocation{}, err
			}
		}
		args = append(args, call+"\t"+c.GetCard().GetId(), body)
	}
	return invoke(commitScript, append(keys, keyCounters(p)), appendMoves(append(args, now/hourMS), item)...), nil
}

// firstCall is what first.lua is told of an item.
func firstCall(item *statev1.CommitItem, body []byte, tokens []string, now int64) invocation {
	call, p, to := item.GetCall(), Partition(item.GetCall()), item.GetDeliveries()[0].GetDestination()
	token, where := "", keyDue(p, to)
	if len(tokens) > 0 && tokens[0] != "" {
		token, where = tokens[0], keyLeases(p, to)
	}
	return invocation{firstScript, []any{evalsha, firstScript.hash, 3, keyCall(call), where, keyCounters(p),
		call, item.GetCommitId(), item.GetRecord(), item.GetJournal(), item.GetInputId(), outcomeText(item.GetOutcome()), now / hourMS,
		to, body, token, now}}
}

// isFirst says whether first.lua will do for an item if nothing is stored of its call.
func (s *Store) isFirst(item *statev1.CommitItem) bool {
	if len(item.GetDeliveries()) != 1 || item.GetExpectedVersion() != "" || item.GetCommitId() == "" ||
		len(item.GetSetTimers())+len(item.GetMessages())+len(item.GetCancelTimers())+len(item.GetCards()) > 0 ||
		item.GetEntry() != nil || item.GetRetentionMs() > 0 || len(item.GetJournal()) == 0 || len(item.GetJournal()) > s.cfg.JournalLimit {
		return false
	}
	d := item.GetDeliveries()[0]
	return d.GetNumber() == 1 && !d.GetResultWanted() && d.GetRequestId() == item.GetInputId() &&
		!slices.ContainsFunc(item.GetMoves(), func(m *statev1.Move) bool { return m.GetRequestId() != item.GetInputId() })
}

// retention is what a commit asks for, or nothing.
func retention(item *statev1.CommitItem) string {
	if item.GetRetentionMs() <= 0 {
		return ""
	}
	return strconv.FormatInt(item.GetRetentionMs(), 10)
}

// Rules is the destination whose work are inputs for the router.
const Rules = "rules"

// An entry of `rules` has a name: a timer's own, or one of these and the id of a message to another call or the number of a
// delivery that ended.
const (
	messageName = ">"
	resultName  = "="
)

// readEntry fills in what an entry brings beside its name.
func readEntry(e *statev1.Entry, body []byte) error {
	switch {
	case strings.HasPrefix(e.GetTimer(), messageName):
		e.Message = &statev1.Message{}
		return proto.Unmarshal(body, e.Message)
	case strings.HasPrefix(e.GetTimer(), resultName):
		e.Result = &statev1.DeliveryResult{Delivery: uint32(atoi(e.GetTimer()[len(resultName):])), Reply: body}
	}
	return nil
}

// Know records a destination the first time this process sees it, before anything is queued for it: what is not in the
// set would not be swept.
func (s *Store) Know(ctx context.Context, destination string) error {
	s.mu.Lock()
	known := s.destinations[destination]
	s.mu.Unlock()
	if known {
		return nil
	}
	if err := s.client.SAdd(ctx, keyDestinations, destination).Err(); err != nil {
		return err
	}
	s.remember([]string{destination})
	return nil
}

// Destinations are all that were ever used.
func (s *Store) Destinations() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]string, 0, len(s.destinations))
	for d := range s.destinations {
		out = append(out, d)
	}
	return out
}

// outcomeText is what is stored per input: one byte, behind which commit.lua puts where the request is counted.
func outcomeText(o *statev1.Outcome) string {
	if o.GetDuplicate() {
		return "d"
	}
	return "-"
}

func outcome(text string) *statev1.Outcome {
	return &statev1.Outcome{Duplicate: strings.HasPrefix(text, "d")}
}

// Lease takes due work for one destination, at most one per ref. Refs that are not due (any more) give nothing. After an
// error it also returns the leases that may stand although nobody gets the work.
func (s *Store) Lease(ctx context.Context, destination string, members []string) ([]*statev1.LeaseWork, []Lost, error) {
	now := s.clock.Now()
	calls := make([]invocation, len(members))
	work := make([]*statev1.LeaseWork, len(members))
	for i, m := range members {
		call, timer := splitMember(m)
		p := Partition(call)
		work[i] = &statev1.LeaseWork{Call: call, Token: rand.Text()}
		if timer != "" {
			work[i].Entry = &statev1.Entry{Timer: timer, Token: work[i].Token}
		}
		calls[i] = invoke(leaseScript, []string{keyCall(call), keyDue(p, destination), keyLeases(p, destination)},
			m, destination, work[i].Token, now, timer)
	}
	replies, errs := s.run(ctx, calls)
	out := work[:0]
	var unsent []Lost
	var failed error
	for i, w := range work {
		switch {
		case errs[i] != nil:
			failed = errs[i]
			unsent = append(unsent, Lost{Ref{destination, members[i]}, w.Token})
		case replies[i] == nil: // not due any more
		default:
			if err := readWork(replies[i], w, now); err != nil {
				if w.Delivery != nil {
					err = s.unreadable(ctx, destination, w, err)
				}
				failed = cmp.Or(err, failed)
				continue
			}
			out = append(out, w)
		}
	}
	return out, unsent, failed
}

// readWork fills in what lease.lua returned. Of a delivery that cannot be read it is the number.
func readWork(reply any, w *statev1.LeaseWork, now int64) error {
	r, err := strs(reply)
	switch {
	case err == nil && w.Entry != nil && len(r) == 4:
		w.Entry.TimerId, w.Entry.DueMs = r[0], atoi(r[1])
		if r[3] != "" {
			w.Entry.WaitingMs = max(1, now-atoi(r[3]))
		}
		if err := readEntry(w.Entry, []byte(r[2])); err != nil {
			return fmt.Errorf("entry %s of %s is unreadable: %w", w.Entry.Timer, telemetry.MaskCall(w.Call), err)
		}
		return nil
	case err == nil && w.Entry == nil && len(r) == 7:
		d := &statev1.Delivery{}
		if err := proto.Unmarshal([]byte(r[1]), d); err != nil {
			w.Delivery = &statev1.Delivery{Number: uint32(atoi(r[0]))}
			return fmt.Errorf("delivery %s of %s is unreadable: %w", r[0], telemetry.MaskCall(w.Call), err)
		}
		d.Number, d.Attempts, d.Uncertain = uint32(atoi(r[0])), uint32(atoi(r[2])), r[3] != ""
		d.State = statev1.DeliveryState_DELIVERY_STATE_LEASED
		w.Delivery, w.Looked, w.Followed = d, r[3] == "0", r[5] != ""
		w.AgeMs = now - d.CreatedMs + d.PausedMs - atoi(r[4])
		w.WallAgeMs = now - max(d.CreatedMs, atoi(r[6]))
		return nil
	}
	return fmt.Errorf("lease: unexpected reply %v", reply)
}

// Verdict of a result, in the scripts' words.
type Verdict struct {
	Superseded bool
	// The pair has a head that is due now, or at DueMS if that is later.
	Head  bool
	DueMS int64
	// Result: the rules asked for it, and it waits in `rules`.
	Result bool
	// Journal is what it left in the call's journal.
	Journal []byte
}

// Complete takes results of deliveries (not of timers) and returns a verdict or an error for each.
func (s *Store) Complete(ctx context.Context, results []*statev1.LeaseResult) ([]Verdict, []error) {
	now := s.clock.Now()
	verdicts := make([]Verdict, len(results))
	for i, r := range results {
		verdicts[i].DueMS, verdicts[i].Journal = now+r.GetRetry().GetInMs(), resultJournal(r, now)
	}
	replies, errs := s.runEach(ctx, len(results), func(i int, short bool) (invocation, error) {
		return s.resultCall(results[i], verdicts[i].Journal, now, short), nil
	})
	for i := range results {
		if errs[i] != nil || replies[i] == yes { // of done.lua
			continue
		}
		r, err := strs(replies[i])
		if err != nil || len(r) < 2 {
			errs[i] = fmt.Errorf("complete: unexpected reply %v", replies[i])
			continue
		}
		verdicts[i].Superseded = r[0] == "superseded"
		verdicts[i].Result = len(r) > 2 && r[2] == "1"
		verdicts[i].Head = r[0] == "ok" && (r[1] == "1" || verdicts[i].DueMS > now)
		if r[1] == "1" {
			verdicts[i].DueMS = now
		}
	}
	return verdicts, errs
}

// resultCall is what complete.lua is told of a result, or, where short is asked for and may do, done.lua.
func (s *Store) resultCall(r *statev1.LeaseResult, journal []byte, now int64, short bool) invocation {
	p, a := Partition(r.GetCall()), r.GetAttempt()
	if short && r.GetDone() != nil && len(r.GetDone().GetReply()) == 0 && a != nil && !a.GetUncertain() && a.GetError() == "" {
		return invocation{doneScript, []any{evalsha, doneScript.hash, 3,
			keyCall(r.GetCall()), keyLeases(p, r.GetDestination()), keyCounters(p),
			r.GetCall(), r.GetDestination(), r.GetDelivery(), r.GetRequestId(), now, journal,
			s.cfg.JournalLimit, s.cfg.Retention.Milliseconds()}}
	}
	verb, final, counts, reason := "again", "", "1", a.GetError()
	switch v := r.GetResult().(type) {
	case *statev1.LeaseResult_Done:
		verb, final = "done", "d"
	case *statev1.LeaseResult_Retry:
		if v.Retry.GetUncounted() {
			counts = ""
		}
	case *statev1.LeaseResult_End:
		verb, final = "end", letter(v.End.GetState())
		reason = v.End.GetReason()
		if a == nil {
			counts = ""
		}
	case *statev1.LeaseResult_Hold:
		counts, reason = "", v.Hold.GetReason()
	}
	return invoke(completeScript,
		[]string{keyCall(r.GetCall()), keyDue(p, r.GetDestination()), keyLeases(p, r.GetDestination()), keyLetters(p, r.GetDestination()),
			keyDue(p, Rules), keyLeases(p, Rules), keyCounters(p)},
		r.GetCall(), r.GetDestination(), r.GetDelivery(), r.GetToken(), verb, final, now+r.GetRetry().GetInMs(), now,
		s.cfg.Retention.Milliseconds(), counts, flag(a.GetUncertain()), r.GetRetry().GetPausedMs(), reason,
		journal, s.cfg.JournalLimit, r.GetDone().GetReply(), rand.Text(), r.GetRequestId())
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return ""
}

// resultJournal is what a result leaves in the journal: the attempt, and an end without one.
func resultJournal(r *statev1.LeaseResult, now int64) []byte {
	e := &statev1.JournalEntry{AtMs: now, RequestId: r.GetRequestId()}
	switch {
	case r.GetAttempt() != nil:
		e.Fact = &statev1.JournalEntry_Attempt{Attempt: r.GetAttempt()}
	case r.GetEnd() != nil:
		e.Fact = &statev1.JournalEntry_Ended{Ended: &statev1.Ended{
			Delivery: r.GetDelivery(), State: r.GetEnd().GetState(), Reason: r.GetEnd().GetReason()}}
	case r.GetDone() != nil:
		e.Fact = &statev1.JournalEntry_Ended{Ended: &statev1.Ended{
			Delivery: r.GetDelivery(), State: statev1.DeliveryState_DELIVERY_STATE_DELIVERED}}
	default:
		return nil
	}
	return MarshalJournal(e)
}

// MarshalJournal makes a piece of journal.
func MarshalJournal(entries ...*statev1.JournalEntry) []byte {
	b, err := proto.Marshal(&statev1.Journal{Entries: entries})
	if err != nil {
		// Only invalid UTF-8 in a string can do that; a fact is worth more than its text.
		b, _ = proto.Marshal(&statev1.Journal{Entries: []*statev1.JournalEntry{{
			AtMs: entries[0].AtMs, Fact: &statev1.JournalEntry_Note{Note: "a fact could not be written: " + err.Error()}}}})
	}
	return b
}

// Lost is a lease whose consumer has been silent for too long.
type Lost struct {
	Ref
	Token string
}

// Giveback ends leases if they are still the same. A delivery is due at once, and uncertain if its consumer may have sent
// it. It returns what is due by that, and an error for each lease.
func (s *Store) Giveback(ctx context.Context, lost []Lost, maybeSent bool) ([]Ref, []error) {
	now := s.clock.Now()
	// The number is not in the lease: read it by its token first.
	read := s.client.Pipeline()
	stored := make([]*redis.MapStringStringCmd, len(lost))
	for i, l := range lost {
		call, _ := splitMember(l.Member)
		stored[i] = read.HGetAll(ctx, keyCall(call))
	}
	_, _ = read.Exec(ctx) // each command has its own error
	errs := make([]error, len(lost))
	entries := make([][]byte, len(lost))
	var calls []invocation
	var at []int // in lost
	for i, l := range lost {
		call, timer := splitMember(l.Member)
		fields, err := stored[i].Result()
		if err != nil {
			errs[i] = err
			continue
		}
		number := ""
		if timer == "" {
			deliveries, _ := readDeliveries(fields)
			for _, d := range deliveries {
				n := strconv.Itoa(int(d.GetNumber()))
				if fields[n+"t"] != l.Token {
					continue
				}
				if number = n; maybeSent {
					entries[i] = lostAttempt(d, now)
				}
			}
		}
		p := Partition(call)
		at = append(at, i)
		calls = append(calls, invoke(givebackScript, []string{keyCall(call), keyDue(p, l.Destination), keyLeases(p, l.Destination)},
			l.Member, l.Token, number, now, entries[i], s.cfg.JournalLimit, timer, flag(maybeSent), ""))
	}
	replies, failed := s.run(ctx, calls)
	var back []Ref
	for c, i := range at {
		if errs[i] = failed[c]; errs[i] != nil || replies[c] != int64(1) {
			continue
		}
		back = append(back, lost[i].Ref)
		if entries[i] != nil {
			s.wrote(&statev1.CommitItem{Call: lost[i].Member, Journal: entries[i]})
		}
	}
	return back, errs
}

// lostAttempt is what the journal says of a delivery whose consumer fell silent.
func lostAttempt(d *statev1.Delivery, now int64) []byte {
	return MarshalJournal(&statev1.JournalEntry{AtMs: now, RequestId: d.GetRequestId(), Fact: &statev1.JournalEntry_Attempt{
		Attempt: &statev1.Attempt{Delivery: d.GetNumber(), Number: d.GetAttempts() + 1, Destination: d.GetDestination(),
			Endpoint: d.GetEndpoint(), Uncertain: true, Next: "retry",
			Error: "no result within the lease time: upstream stopped or lost its connection while it had this delivery"}}})
}

func (s *Store) wrote(item *statev1.CommitItem) {
	if s.cfg.Wrote != nil {
		s.cfg.Wrote(item)
	}
}

// Due reads what of a destination is due, at most perPartition of each partition, and the time at which the next of the
// rest is due (0 = nothing waits).
func (s *Store) Due(ctx context.Context, destination string, perPartition int64) (members []string, nextMS int64, err error) {
	now := s.clock.Now()
	p := s.client.Pipeline()
	var due [Partitions]*redis.StringSliceCmd
	var next [Partitions]*redis.ZSliceCmd
	for i := range Partitions {
		key := keyDue(i, destination)
		due[i] = p.ZRangeByScore(ctx, key, &redis.ZRangeBy{Min: "-inf", Max: strconv.FormatInt(now, 10), Count: perPartition})
		next[i] = p.ZRangeByScoreWithScores(ctx, key, &redis.ZRangeBy{Min: "(" + strconv.FormatInt(now, 10), Max: "+inf", Count: 1})
	}
	if _, err := p.Exec(ctx); err != nil {
		return nil, 0, err
	}
	for i := range Partitions {
		members = append(members, due[i].Val()...)
		if z := next[i].Val(); len(z) > 0 && (nextMS == 0 || int64(z[0].Score) < nextMS) {
			nextMS = int64(z[0].Score)
		}
	}
	return members, nextMS, nil
}

// Leases reads all leases of a destination.
func (s *Store) Leases(ctx context.Context, destination string) ([]Lost, error) {
	p := s.client.Pipeline()
	var cmds [Partitions]*redis.MapStringStringCmd
	for i := range Partitions {
		cmds[i] = p.HGetAll(ctx, keyLeases(i, destination))
	}
	if _, err := p.Exec(ctx); err != nil {
		return nil, err
	}
	var out []Lost
	for _, cmd := range cmds {
		for m, token := range cmd.Val() {
			out = append(out, Lost{Ref{destination, m}, token})
		}
	}
	return out, nil
}

// ReturnTimer puts a leased timer back, due again after a while. (Committing its input, setting it anew and cancelling it
// end the lease by themselves.)
func (s *Store) ReturnTimer(ctx context.Context, r *statev1.LeaseResult, againInMS int64) error {
	p := Partition(r.GetCall())
	m := Member(r.GetCall(), r.GetTimer())
	now := s.clock.Now()
	_, errs := s.run(ctx, []invocation{invoke(givebackScript, []string{keyCall(r.GetCall()), keyDue(p, Rules), keyLeases(p, Rules)},
		m, r.GetToken(), "", now+againInMS, "", s.cfg.JournalLimit, r.GetTimer(), "", now)})
	return errs[0]
}

// Call is everything stored of one call.
type Call struct {
	Key, Version string
	Record       *statev1.Record
	Deliveries   []*statev1.Delivery
	Journal      []*statev1.JournalEntry
	// JournalDropped is how many bytes of journal did not fit.
	JournalDropped int64
	// Counted says where accounting counts each request, by request id.
	Counted map[string]Counted
	// Unreadable is set by Calls and Scan, and then not all of the above.
	Unreadable error
}

// Call reads one call; nil when there is nothing.
func (s *Store) Call(ctx context.Context, call string) (*Call, error) {
	fields, err := s.client.HGetAll(ctx, keyCall(call)).Result()
	if err != nil || len(fields) == 0 {
		return nil, err
	}
	c, err := readCall(call, fields)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Calls reads several calls at once; nil for what there is nothing of. One that cannot be read does not keep the others back.
func (s *Store) Calls(ctx context.Context, calls []string) ([]*Call, error) {
	p := s.client.Pipeline()
	cmds := make([]*redis.MapStringStringCmd, len(calls))
	for i, call := range calls {
		cmds[i] = p.HGetAll(ctx, keyCall(call))
	}
	if _, err := p.Exec(ctx); err != nil {
		return nil, err
	}
	out := make([]*Call, len(calls))
	for i, cmd := range cmds {
		if len(cmd.Val()) == 0 {
			continue
		}
		var err error
		if out[i], err = readCall(calls[i], cmd.Val()); err != nil {
			out[i].Unreadable = err
		}
	}
	return out, nil
}

// readCall returns what can be read of a call also with an error.
func readCall(call string, fields map[string]string) (out *Call, err error) {
	out = &Call{Key: call, Version: fields["v"], JournalDropped: atoi(fields["jx"]), Record: &statev1.Record{}, Counted: readCounted(fields)}
	if err := proto.Unmarshal([]byte(fields["r"]), out.Record); err != nil {
		return out, fmt.Errorf("record of %s is unreadable: %w", call, err)
	}
	for n := int64(1); n <= atoi(fields["jn"]); n++ {
		piece := &statev1.Journal{}
		if err := proto.Unmarshal([]byte(fields["j"+strconv.FormatInt(n, 10)]), piece); err != nil {
			return out, fmt.Errorf("journal of %s is unreadable: %w", call, err)
		}
		out.Journal = append(out.Journal, piece.GetEntries()...)
	}
	out.Deliveries, err = readDeliveries(fields)
	return out, err
}

// ErrPageToken says that a page token is not one that this program gave.
var ErrPageToken = errors.New("not a page token")

// ErrConflict says that the call changed while a person's action was prepared; try again.
var ErrConflict = errors.New("the call changed meanwhile")

// Settle retries or discards a delivery of a call that was read by Call. A retried one is as old as if it were new; pausedMS
// is the time its destination has ever spent under a hold. It returns whether the pair has a head that is due now.
func (s *Store) Settle(ctx context.Context, c *Call, d *statev1.Delivery, a *statev1.Action, pausedMS int64) (bool, error) {
	now, p := s.clock.Now(), Partition(c.Key)
	entry := MarshalJournal(&statev1.JournalEntry{AtMs: now, RequestId: d.GetRequestId(), Fact: &statev1.JournalEntry_Action{Action: a}})
	replies, errs := s.run(ctx, []invocation{invoke(settleScript,
		[]string{keyCall(c.Key), keyDue(p, d.GetDestination()), keyLetters(p, d.GetDestination()), keyDue(p, Rules), keyLeases(p, Rules), keyCounters(p)},
		c.Key, d.GetDestination(), d.GetNumber(), c.Version, rand.Text(), letter(d.GetState()), a.GetWhat(), now,
		s.cfg.Retention.Milliseconds(), entry, s.cfg.JournalLimit, a.GetReason(),
		now-d.GetCreatedMs()+d.GetPausedMs()-pausedMS, rand.Text(), d.GetRequestId())})
	if errs[0] != nil {
		return false, errs[0]
	}
	r, err := strs(replies[0])
	switch {
	case err != nil:
		return false, err
	case r[0] == "conflict":
		return false, ErrConflict
	}
	s.wrote(&statev1.CommitItem{Call: c.Key, Journal: entry, Deliveries: []*statev1.Delivery{d}})
	return r[1] == "1", nil
}

// Backlog counts a destination's heads that wait, that are leased, and its dead, expired and asked deliveries, and says
// when the oldest waiting head was due (0 = none).
func (s *Store) Backlog(ctx context.Context, destination string) (waiting, leased, letters, oldestMS int64, err error) {
	p := s.client.Pipeline()
	type counts struct {
		due, leased, letters *redis.IntCmd
		first                *redis.ZSliceCmd
	}
	var all [Partitions]counts
	for i := range Partitions {
		all[i] = counts{p.ZCard(ctx, keyDue(i, destination)), p.HLen(ctx, keyLeases(i, destination)),
			p.ZCard(ctx, keyLetters(i, destination)), p.ZRangeWithScores(ctx, keyDue(i, destination), 0, 0)}
	}
	if _, err = p.Exec(ctx); err != nil {
		return 0, 0, 0, 0, err
	}
	for _, c := range all {
		waiting, leased, letters = waiting+c.due.Val(), leased+c.leased.Val(), letters+c.letters.Val()
		if z := c.first.Val(); len(z) > 0 && (oldestMS == 0 || int64(z[0].Score) < oldestMS) {
			oldestMS = int64(z[0].Score)
		}
	}
	return waiting, leased, letters, oldestMS, nil
}

// ReadJournal reads a piece of journal.
func ReadJournal(raw []byte) ([]*statev1.JournalEntry, error) {
	journal := &statev1.Journal{}
	err := proto.Unmarshal(raw, journal)
	return journal.GetEntries(), err
}
