package state

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/errkind"
	"callrelay/platform/telemetry"
	"callrelay/services/state/internal/store"
)

const (
	// checkEvery is the pause between two comparisons of the counters with the journals.
	checkEvery = time.Minute
	// checkRate is how many calls one comparison reads per second in the background: a percent of a processor.
	checkRate = 1000
	// checkAtOnce is how many calls are read for somebody who waits for it.
	checkAtOnce = 100_000
	// mostDifferences bounds an answer.
	mostDifferences = 100
)

// bucketNames are the fields of operatorv1.Accounting.
var bucketNames = map[store.Bucket]string{
	store.Refused: "refused", store.Repeated: "duplicate", store.Undecided: "undecided", store.NothingToSend: "nothing_to_send",
	store.WaitingPhone2: "waiting_phone2", store.Combined: "combined", store.Phone1Expired: "phone1_expired", store.Sending: "waiting",
	store.Delivered: "delivered", store.Dead: "dead", store.Expired: "expired", store.Discarded: "discarded", store.SendDisabled: "send_disabled",
}

// ledger compares two ways of counting requests: the counters that the scripts move with each journal entry, and the
// journals themselves, read from the first entry to the last. It owns neither.
type ledger struct {
	store     *store.Store
	retention time.Duration

	log *slog.Logger

	running sync.Mutex // one comparison at a time
	told    []string   // the unreadable calls of the last one
}

// latest is the last comparison by any state process.
func (l *ledger) latest(ctx context.Context) (*operatorv1.Accounting, error) {
	raw, err := l.store.Comparison(ctx)
	if err != nil {
		return nil, err
	}
	last := &operatorv1.Accounting{}
	if proto.Unmarshal(raw, last) != nil {
		return &operatorv1.Accounting{}, nil // of another version: the next one comes in a minute
	}
	return last, nil
}

// run compares again and again until ctx ends.
func (l *ledger) run(ctx context.Context) {
	wait := 10 * time.Second
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = checkEvery
		if last, err := l.latest(ctx); err != nil || l.store.Now()-last.GetCheckedMs() < checkEvery.Milliseconds()/2 {
			continue // another state process did
		}
		// Without Redis there is nothing to compare; that it is gone is said once, by the service.
		_ = l.compare(ctx, func(read int) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Duration(read) * time.Second / checkRate):
				return nil
			}
		})
		_ = l.store.ForgetCounters(ctx, l.oldest()-24)
	}
}

// oldest is the first hour of which every call is still stored.
func (l *ledger) oldest() int64 {
	return store.HourOf(l.store.Now()-l.retention.Milliseconds()) + 1
}

// compare reads all journals. An hour in which something was counted meanwhile is left for the next time: what was read of it
// belongs to no one moment.
func (l *ledger) compare(ctx context.Context, pause func(read int) error) error {
	l.running.Lock()
	defer l.running.Unlock()
	before, err := l.store.Counters(ctx)
	if err != nil {
		return err
	}
	var journaled [store.Partitions]store.Counters
	for p := range journaled {
		journaled[p] = store.Counters{}
	}
	next := &operatorv1.Accounting{}
	type suspect struct {
		id      string
		counted store.Counted
		p       int
	}
	var suspects []suspect
	err = l.store.Scan(ctx, pause, func(c *store.Call) {
		p := store.Partition(c.Key)
		if c.Unreadable != nil && len(next.Unreadable) < mostDifferences {
			if next.Unreadable = append(next.Unreadable, c.Key); !slices.Contains(l.told, c.Key) {
				l.log.Error("A CALL CANNOT BE READ", "call", telemetry.MaskCall(c.Key), "error", telemetry.MaskDigits(c.Unreadable.Error()))
			}
		}
		if c.JournalDropped > 0 || c.Unreadable != nil {
			// What its journal does not have, any more or readable, cannot be compared.
			for _, counted := range c.Counted {
				journaled[p][counted]++
				if !counted.Unrequested {
					next.NotCompared++
				}
			}
			return
		}
		says := replay(c.Journal)
		for id, told := range says {
			counted, ok := c.Counted[id]
			if !ok {
				counted = store.Counted{Hour: store.HourOf(told.atMS), Unrequested: id[0] == '#'}
			}
			if counted.Bucket != told.bucket && len(suspects) < mostDifferences {
				suspects = append(suspects, suspect{id, store.Counted{Bucket: told.bucket, Hour: counted.Hour, Unrequested: counted.Unrequested}, p})
			}
			counted.Bucket = told.bucket
			journaled[p][counted]++
			if !counted.Unrequested {
				next.CheckedRequests++
			}
		}
	})
	if err != nil {
		return err
	}
	slices.Sort(next.Unreadable)
	l.told = next.GetUnreadable()
	after, err := l.store.Counters(ctx)
	if err != nil {
		return err
	}
	sums := map[store.Counted]*operatorv1.Difference{}
	oldest := l.oldest()
	for p := range before {
		moving := map[int64]bool{}
		for c := range merged(before[p], after[p]) {
			moving[c.Hour] = moving[c.Hour] || before[p][c] != after[p][c]
		}
		for c := range merged(after[p], journaled[p]) {
			if c.Hour < oldest || moving[c.Hour] || after[p][c] == journaled[p][c] {
				continue
			}
			d := sums[c]
			if d == nil {
				d = &operatorv1.Difference{HourMs: store.HourStart(c.Hour), Bucket: bucketNames[c.Bucket]}
				if c.Unrequested {
					d.Bucket = "unrequested." + d.GetBucket()
				}
				sums[c] = d
			}
			d.Counted += after[p][c]
			d.Journaled += journaled[p][c]
			for _, s := range suspects {
				if s.p == p && s.counted == c {
					d.RequestId = s.id
				}
			}
		}
	}
	for _, d := range sums {
		next.Differences = append(next.Differences, d)
	}
	slices.SortFunc(next.Differences, func(a, b *operatorv1.Difference) int {
		if a.GetHourMs() != b.GetHourMs() {
			return int(b.GetHourMs()/1000 - a.GetHourMs()/1000)
		}
		return len(a.GetBucket()) - len(b.GetBucket())
	})
	next.Differences = next.Differences[:min(len(next.Differences), mostDifferences)]
	next.CheckedMs = l.store.Now()
	raw, err := proto.Marshal(next)
	if err != nil {
		return err
	}
	return l.store.SetComparison(ctx, raw)
}

func merged(a, b store.Counters) store.Counters {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// told is what a journal says of a request.
type told struct {
	bucket     store.Bucket
	atMS       int64
	deliveries []uint32
}

// replay reads a call's journal from the first entry to the last and says where each of its requests is, and each delivery
// that none of them caused ("#<number>"). It shares nothing with the scripts that count.
func replay(journal []*statev1.JournalEntry) map[string]*told {
	requests := map[string]*told{}
	deliveries := map[uint32]store.Bucket{}
	owners := map[uint32]string{}
	at := map[uint32]int64{}
	to := func(id string, b store.Bucket) {
		if r := requests[id]; r != nil {
			r.bucket = b
		}
	}
	for _, e := range journal {
		id := e.GetRequestId()
		switch fact := e.GetFact().(type) {
		case *statev1.JournalEntry_Received:
			if requests[id] == nil {
				requests[id] = &told{bucket: store.NothingToSend, atMS: e.GetAtMs()}
			}
		case *statev1.JournalEntry_Rejected:
			to(id, store.Refused)
		case *statev1.JournalEntry_Duplicate:
			to(id, store.Repeated)
		case *statev1.JournalEntry_Undecided:
			to(id, store.Undecided)
		case *statev1.JournalEntry_Decided:
			for _, n := range fact.Decided.GetDeliveries() {
				deliveries[n], owners[n], at[n] = store.Sending, id, e.GetAtMs()
			}
			if fact.Decided.GetFlow() == "wait for phone 2" {
				to(id, store.WaitingPhone2)
			}
		case *statev1.JournalEntry_Kommo:
			for _, n := range fact.Kommo.GetDeliveries() {
				deliveries[n], owners[n], at[n] = store.Sending, id, e.GetAtMs()
			}
		case *statev1.JournalEntry_Phone1:
			switch of := fact.Phone1.GetRequestId(); fact.Phone1.GetWhat() {
			case "taken":
				to(of, store.Combined)
			case "expired":
				to(of, store.Phone1Expired)
			case "replaced":
				to(of, store.NothingToSend)
			}
		case *statev1.JournalEntry_Attempt:
			deliveries[fact.Attempt.GetDelivery()] = afterAttempt(fact.Attempt.GetNext())
		case *statev1.JournalEntry_Ended:
			deliveries[fact.Ended.GetDelivery()] = afterEnd[fact.Ended.GetState()]
		case *statev1.JournalEntry_Action:
			switch fact.Action.GetWhat() {
			case "retry":
				deliveries[fact.Action.GetDelivery()] = store.Sending
			case "discard":
				deliveries[fact.Action.GetDelivery()] = store.Discarded
			}
		}
	}
	for n, owner := range owners {
		r := requests[owner]
		if r == nil {
			requests["#"+strconv.Itoa(int(n))] = &told{bucket: deliveries[n], atMS: at[n]}
			continue
		}
		r.deliveries = append(r.deliveries, n)
	}
	// With several deliveries a request is where the most open one is, else the one that most needs a person.
	for _, r := range requests {
		for i, n := range r.deliveries {
			if i == 0 || slices.Index(openFirst, deliveries[n]) < slices.Index(openFirst, r.bucket) {
				r.bucket = deliveries[n]
			}
		}
	}
	return requests
}

var openFirst = []store.Bucket{store.Sending, store.Dead, store.Expired, store.Discarded, store.SendDisabled, store.Delivered}

func afterAttempt(next string) store.Bucket {
	switch next {
	case "delivered":
		return store.Delivered
	case "dead":
		return store.Dead
	case "expired":
		return store.Expired
	case "discarded":
		return store.Discarded
	case "send_disabled":
		return store.SendDisabled
	}
	return store.Sending // again, held, or a person is asked
}

var afterEnd = map[statev1.DeliveryState]store.Bucket{
	statev1.DeliveryState_DELIVERY_STATE_DELIVERED:     store.Delivered,
	statev1.DeliveryState_DELIVERY_STATE_DEAD:          store.Dead,
	statev1.DeliveryState_DELIVERY_STATE_EXPIRED:       store.Expired,
	statev1.DeliveryState_DELIVERY_STATE_DISCARDED:     store.Discarded,
	statev1.DeliveryState_DELIVERY_STATE_SEND_DISABLED: store.SendDisabled,
	statev1.DeliveryState_DELIVERY_STATE_ASKED:         store.Sending,
}

// GetAccounting says what became of each request.
func (o *operator) GetAccounting(ctx context.Context, req *operatorv1.GetAccountingRequest) (*operatorv1.Accounting, error) {
	since, err := o.since(req.GetSince(), 24*time.Hour)
	if err != nil {
		return nil, err
	}
	if req.GetCheck() {
		read := 0
		err := o.ledger.compare(ctx, func(n int) error {
			if read += n; read > checkAtOnce {
				return errkind.Refused("there are more than %d calls to read: ask without check for the last comparison in the background", checkAtOnce)
			}
			return ctx.Err()
		})
		if e := errkind.From(err); err != nil && errkind.HTTPStatus(e.Kind) < 500 {
			return nil, e
		}
		if err != nil {
			return nil, unavailable(err)
		}
	}
	counters, err := o.store.Counters(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	from := max(store.HourOf(since), store.HourOf(o.store.Now()-o.cfg.CallRetention.Milliseconds())-23)
	a, err := o.ledger.latest(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	spool, err := o.store.Reports(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	a.SinceMs, a.Spooled, a.Unrequested = store.HourStart(from), spool.GetSpooled(), &operatorv1.Unrequested{}
	u := a.GetUnrequested()
	requested := map[store.Bucket]*int64{
		store.Refused: &a.Refused, store.Repeated: &a.Duplicate, store.Undecided: &a.Undecided, store.NothingToSend: &a.NothingToSend,
		store.WaitingPhone2: &a.WaitingPhone2, store.Combined: &a.Combined, store.Phone1Expired: &a.Phone1Expired, store.Sending: &a.Waiting,
		store.Delivered: &a.Delivered, store.Dead: &a.Dead, store.Expired: &a.Expired, store.Discarded: &a.Discarded, store.SendDisabled: &a.SendDisabled,
	}
	unrequested := map[store.Bucket]*int64{store.Sending: &u.Waiting, store.Delivered: &u.Delivered, store.Dead: &u.Dead,
		store.Expired: &u.Expired, store.Discarded: &u.Discarded, store.SendDisabled: &u.SendDisabled}
	for _, partition := range counters {
		for c, n := range partition {
			field := requested[c.Bucket]
			if c.Unrequested {
				field = unrequested[c.Bucket]
			}
			if field == nil || c.Hour < from {
				continue
			}
			*field += n
			if c.Unrequested {
				continue
			}
			a.Received += n
			if c.Bucket != store.Refused && c.Bucket != store.Repeated {
				a.Accepted += n
			}
		}
	}
	a.Received += a.GetSpooled()
	return a, nil
}
