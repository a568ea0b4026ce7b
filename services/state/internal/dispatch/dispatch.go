// Package dispatch gives due work to consumers that asked for it. It owns, per destination, who wants how much and what is
// known to be due; the truth about both is in the store and with the consumers. It wakes at once for what this process
// commits and for what another state process publishes; a sweep each second repairs what was missed, and ends leases whose
// consumer has been silent for LEASE_TIME.
package dispatch

import (
	"context"
	"crypto/rand"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/telemetry"
	"callrelay/services/state/internal/store"
)

const (
	// sweepEvery is the longest time that a lost wake-up costs.
	sweepEvery = time.Second
	// leaseBatch bounds one round of leasing.
	leaseBatch = 64
	// knownLimit bounds what is remembered as due per destination; the sweep finds the rest when there is room.
	knownLimit = 8192
	// sweepPerPartition bounds what one sweep reads of a partition.
	sweepPerPartition = 128
)

// Dispatcher hands out work of all destinations.
type Dispatcher struct {
	store     *store.Store
	log       *slog.Logger
	leaseTime time.Duration

	mu    sync.Mutex
	lines map[string]*line
	start func(*line)
	// unsent are leases that no consumer saw and that could not be given back yet.
	unsent []store.Lost
	// ghosts are leases that Redis may still make, although it did not answer in time: no consumer will see them. The sweep
	// gives back those that turn up before this time on the watch.
	ghosts map[store.Lost]time.Duration

	seen map[store.Lost]time.Duration // when on the watch this process first saw a lease
	// watch is the time in which this process looked at the leases; swept is when it last did.
	watch time.Duration
	swept time.Time
	// failing keeps the log to one line while leases cannot be written.
	failing     atomic.Bool
	incarnation string // of Redis, at the last sweep
	// alone is true while no other state process is alive: then nobody needs to be told.
	alone atomic.Bool
	// holdsKnown: before that no delivery is leased by its commit.
	holdsKnown atomic.Bool
}

// New returns a dispatcher that works once Run runs.
func New(s *store.Store, log *slog.Logger, leaseTime time.Duration) *Dispatcher {
	d := &Dispatcher{store: s, log: log, leaseTime: leaseTime, lines: map[string]*line{},
		ghosts: map[store.Lost]time.Duration{}, seen: map[store.Lost]time.Duration{}}
	d.alone.Store(true)
	return d
}

// Run dispatches until ctx ends.
func (d *Dispatcher) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	// Nothing is handed out before the holds are known.
	for d.refreshHolds(ctx) != nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
	d.holdsKnown.Store(true)
	d.mu.Lock()
	d.start = func(l *line) { wg.Go(func() { l.run(ctx) }) }
	for _, l := range d.lines {
		d.start(l)
	}
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.start = nil
		d.mu.Unlock()
	}()
	wg.Go(func() { d.listen(ctx) })
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			d.sweep(ctx)
		}
	}
}

// line is the state of one destination.
type line struct {
	d    *Dispatcher
	name string
	wake chan struct{} // capacity 1

	mu        sync.Mutex
	known     []string // members believed to be due, in the order in which they became known
	in        map[string]bool
	more      bool // the store has more due than is known
	scanned   time.Time
	consumers []*Consumer
	next      int // round robin
	hold      store.Hold
	nextProbe time.Time
	probes    map[string]int64 // token of a probe -> epoch
	alarm     *time.Timer      // the next known due time
	alarmMS   int64
}

func (d *Dispatcher) line(name string) *line {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.lines[name]
	if l == nil {
		l = &line{d: d, name: name, wake: make(chan struct{}, 1), in: map[string]bool{}, more: true, probes: map[string]int64{}}
		d.lines[name] = l
		if d.start != nil {
			d.start(l)
		}
	}
	return l
}

// Consumer is one stream that takes work of one destination.
type Consumer struct {
	line   *line
	credit int
	work   chan []*statev1.LeaseWork
}

// Join adds a consumer. What is sent on Work was leased for it.
func (d *Dispatcher) Join(destination string) *Consumer {
	l := d.line(destination)
	c := &Consumer{line: l, work: make(chan []*statev1.LeaseWork, 64)}
	l.mu.Lock()
	l.consumers = append(l.consumers, c)
	l.mu.Unlock()
	return c
}

// Work is where leased work arrives.
func (c *Consumer) Work() <-chan []*statev1.LeaseWork { return c.work }

// Grant adds credit: so many more items are wanted.
func (c *Consumer) Grant(n int) {
	c.line.mu.Lock()
	c.credit += n
	c.line.mu.Unlock()
	c.line.poke()
}

// Leave removes the consumer. What was leased for it and never sent goes back at once; what was sent is given back after
// LEASE_TIME, unless its results come over another stream.
func (c *Consumer) Leave(ctx context.Context) {
	l := c.line
	l.mu.Lock()
	l.consumers = slices.DeleteFunc(l.consumers, func(other *Consumer) bool { return other == c })
	c.credit = 0
	l.mu.Unlock()
	for {
		select {
		case work := <-c.work:
			l.unsent(ctx, work)
		default:
			return
		}
	}
}

// unsent gives back work that no consumer saw.
func (l *line) unsent(ctx context.Context, work []*statev1.LeaseWork) {
	lost := make([]store.Lost, len(work))
	for i, w := range work {
		lost[i] = store.Lost{Ref: store.Ref{Destination: l.name, Member: store.Member(w.GetCall(), w.GetEntry().GetTimer())}, Token: w.GetToken()}
	}
	l.d.giveUnsentBack(ctx, lost)
}

// giveUnsentBack ends leases that no consumer saw, so their deliveries do not become uncertain. Where Redis does not answer,
// the sweep tries again, and in the end LEASE_TIME does it.
func (d *Dispatcher) giveUnsentBack(ctx context.Context, lost []store.Lost) {
	if len(lost) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	refs, errs := d.store.Giveback(ctx, lost, false)
	d.mu.Lock()
	for _, l := range lost {
		if len(d.ghosts) < knownLimit && !slices.Contains(refs, l.Ref) {
			d.ghosts[l] = d.watch + d.leaseTime
		}
	}
	for i, err := range errs {
		if err != nil && len(d.unsent) < knownLimit {
			d.unsent = append(d.unsent, lost[i])
		}
	}
	d.mu.Unlock()
	d.Due(refs)
}

// Commit commits through the store. A delivery that can go out at once is leased in the same step for a consumer that has
// credit beyond what is older; it has to wait for nothing then.
func (d *Dispatcher) Commit(ctx context.Context, items []*statev1.CommitItem) ([]*statev1.CommitAnswer, []error) {
	tokens, takers := make([][]string, len(items)), make([][]*Consumer, len(items))
	for i, item := range items {
		tokens[i], takers[i] = make([]string, len(item.GetDeliveries())), make([]*Consumer, len(item.GetDeliveries()))
		for j, delivery := range item.GetDeliveries() {
			if takers[i][j] = d.line(delivery.GetDestination()).reserve(); takers[i][j] != nil {
				tokens[i][j] = rand.Text()
			}
		}
	}
	answers, places, errs := d.store.Commit(ctx, items, tokens)
	now := d.store.Now()
	var due []store.Ref
	leased, lost := map[*Consumer][]*statev1.LeaseWork{}, map[*line][]*statev1.LeaseWork{}
	for i, item := range items {
		for j, delivery := range item.GetDeliveries() {
			c, place := takers[i][j], store.Waits
			if j < len(places[i]) {
				place = places[i][j]
			}
			switch {
			case place == store.Leased:
				leased[c] = append(leased[c], leasedWork(item, j, tokens[i][j], now))
				continue
			case place == store.Due:
				due = append(due, store.Ref{Destination: delivery.GetDestination(), Member: item.GetCall()})
			}
			if c == nil {
				continue
			}
			c.Grant(1)
			if errs[i] != nil { // it may be leased all the same, and nobody has it
				lost[c.line] = append(lost[c.line], leasedWork(item, j, tokens[i][j], now))
			}
		}
	}
	for c, work := range leased {
		c.line.hand(ctx, c, work)
	}
	for l, work := range lost {
		go l.unsent(ctx, work)
	}
	d.Due(due)
	return answers, errs
}

// leasedWork is what a consumer gets of a delivery that was leased by its own commit.
func leasedWork(item *statev1.CommitItem, j int, token string, now int64) *statev1.LeaseWork {
	d := item.GetDeliveries()[j]
	w := &statev1.LeaseWork{Call: item.GetCall(), Token: token, Delivery: &statev1.Delivery{
		Number: d.GetNumber(), Destination: d.GetDestination(), Endpoint: d.GetEndpoint(), Payload: d.GetPayload(),
		State: statev1.DeliveryState_DELIVERY_STATE_LEASED, RequestId: d.GetRequestId(), Traceparent: d.GetTraceparent(),
		Link: d.GetLink(), Gate: d.GetGate(), MaxAgeMs: d.GetMaxAgeMs(), CreatedMs: now,
	}}
	for _, later := range item.GetDeliveries()[j+1:] {
		w.Followed = w.Followed || later.GetDestination() == d.GetDestination()
	}
	return w
}

// reserve takes one credit for a delivery that is about to be committed, if there is more of it than what is older takes and
// the destination is not held.
func (l *line) reserve() *Consumer {
	l.mu.Lock()
	defer l.mu.Unlock()
	credit := 0
	for _, c := range l.consumers {
		credit += c.credit
	}
	if credit <= len(l.known) || l.hold.Held() || !l.d.holdsKnown.Load() {
		return nil
	}
	c := l.pick()
	if c != nil {
		c.credit--
	}
	return c
}

// hand gives leased work to a consumer, or back when it has left.
func (l *line) hand(ctx context.Context, c *Consumer, work []*statev1.LeaseWork) {
	l.mu.Lock()
	for _, w := range work {
		w.HoldEpoch = l.hold.Epoch
	}
	if slices.Contains(l.consumers, c) {
		select {
		case c.work <- work:
			work = nil
		default: // its stream does not read
		}
	}
	l.mu.Unlock()
	if len(work) > 0 {
		l.unsent(ctx, work)
	}
}

// Alone says that no other state process is alive.
func (d *Dispatcher) Alone() bool { return d.alone.Load() }

// Due tells that members became due now.
func (d *Dispatcher) Due(refs []store.Ref) {
	if len(refs) == 0 {
		return
	}
	var tell []store.Ref
	for _, r := range refs {
		l := d.line(r.Destination)
		if !l.add(r.Member) && !d.alone.Load() {
			tell = append(tell, r)
		}
	}
	if len(tell) > 0 {
		go d.publish(tell)
	}
}

// Later tells that something of a destination becomes due at a time (state's clock).
func (d *Dispatcher) Later(destination string, dueMS int64) { d.line(destination).later(dueMS) }

// add remembers a due member. It reports whether a consumer of this process can take it.
func (l *line) add(m string) bool {
	l.mu.Lock()
	switch {
	case l.in[m]:
	case len(l.known) >= knownLimit:
		l.more = true
	default:
		l.in[m] = true
		l.known = append(l.known, m)
	}
	able := slices.ContainsFunc(l.consumers, func(c *Consumer) bool { return c.credit > 0 })
	l.mu.Unlock()
	if able {
		l.poke()
	}
	return able
}

func (l *line) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// rescan makes the line look into the store again.
func (l *line) rescan() {
	l.mu.Lock()
	l.more = true
	l.mu.Unlock()
	l.poke()
}

// later arms the alarm if the time is the earliest known.
func (l *line) later(dueMS int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.alarmMS != 0 && l.alarmMS <= dueMS {
		return
	}
	l.alarmMS = dueMS
	wait := time.Duration(max(0, dueMS-l.d.store.Now())) * time.Millisecond
	if l.alarm != nil {
		l.alarm.Stop()
	}
	l.alarm = time.AfterFunc(wait, func() {
		l.mu.Lock()
		l.alarmMS = 0
		l.mu.Unlock()
		l.rescan()
	})
}

// run leases for the consumers of one destination.
func (l *line) run(ctx context.Context) {
	defer func() {
		l.mu.Lock()
		if l.alarm != nil {
			l.alarm.Stop()
		}
		l.mu.Unlock()
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		}
		for ctx.Err() == nil && l.round(ctx) {
		}
	}
}

// round leases once. It reports whether another round may find something.
func (l *line) round(ctx context.Context) bool {
	l.mu.Lock()
	c := l.pick()
	if c == nil {
		l.mu.Unlock()
		return false
	}
	want := min(c.credit, leaseBatch)
	probe := false
	if l.hold.Held() {
		if l.hold.ProbeMS == 0 || time.Now().Before(l.nextProbe) {
			l.mu.Unlock()
			return false
		}
		want, probe = 1, true
	}
	// Under overload what is known never runs out: look into the store now and then all the same, or what became due by
	// time (retries) would wait for ever.
	if l.more && (len(l.known) == 0 || time.Since(l.scanned) >= sweepEvery) {
		l.scanned = time.Now()
		l.mu.Unlock()
		return l.scan(ctx)
	}
	n := min(want, len(l.known))
	if n == 0 {
		l.mu.Unlock()
		return false
	}
	members := l.known[:n:n]
	l.known = l.known[n:]
	for _, m := range members {
		delete(l.in, m)
	}
	c.credit -= n
	hold := l.hold
	if probe {
		l.nextProbe = time.Now().Add(time.Duration(hold.ProbeMS) * time.Millisecond)
	}
	l.mu.Unlock()

	work, unsent, err := l.d.store.Lease(ctx, l.name, members)
	if err != nil && ctx.Err() == nil && !l.d.failing.Swap(true) {
		l.d.log.Warn("leasing fails, the sweep tries again each second", "destination", l.name, "error", err)
	}
	now := l.d.store.Now()
	for _, w := range work {
		if w.Delivery != nil {
			w.AgeMs = max(0, w.AgeMs-hold.PausedMS(now))
		}
	}

	l.mu.Lock()
	c.credit += n - len(work)
	if probe {
		for _, w := range work {
			l.probes[w.Token] = hold.Epoch
		}
	}
	l.mu.Unlock()
	if len(work) > 0 {
		l.d.failing.Store(false)
		l.hand(ctx, c, work)
	}
	l.d.giveUnsentBack(ctx, unsent)
	return err == nil
}

// pick chooses the next consumer with credit.
func (l *line) pick() *Consumer {
	for range l.consumers {
		l.next = (l.next + 1) % len(l.consumers)
		if c := l.consumers[l.next]; c.credit > 0 {
			return c
		}
	}
	return nil
}

// scan reads what is due from the store. It reports whether something is known to be due.
func (l *line) scan(ctx context.Context) bool {
	members, next, err := l.d.store.Due(ctx, l.name, sweepPerPartition)
	if err != nil {
		return false // the next sweep tries again
	}
	l.mu.Lock()
	l.more = len(members) >= sweepPerPartition // a partition may have been cut
	for _, m := range members {
		if !l.in[m] && len(l.known) < knownLimit {
			l.in[m] = true
			l.known = append(l.known, m)
		}
	}
	found := len(l.known) > 0
	l.mu.Unlock()
	if next != 0 {
		l.later(next)
	}
	return found
}

// Taken tells that a result was accepted: a probe's definite answer releases its destination, a refused address holds it.
func (d *Dispatcher) Taken(ctx context.Context, r *statev1.LeaseResult) {
	l := d.line(r.GetDestination())
	switch v := r.GetResult().(type) {
	case *statev1.LeaseResult_Hold:
		if err := d.store.Hold(ctx, l.name, v.Hold.GetReason(), v.Hold.GetEpoch(), v.Hold.GetProbeInMs()); err != nil {
			d.log.Warn("holding the destination failed; the next refused delivery does it", "destination", l.name, "error", err)
		}
		d.Refresh(ctx)
	case *statev1.LeaseResult_Done, *statev1.LeaseResult_End:
		l.mu.Lock()
		epoch, ok := l.probes[r.GetToken()]
		if ok && r.GetAttempt() == nil { // too late to be sent: the next one may probe in its place
			l.nextProbe = time.Time{}
			l.poke()
		}
		l.mu.Unlock()
		// A refused delivery shows as well as a delivered one that the destination works again.
		if !ok || r.GetAttempt().GetHttpCode() == 0 {
			break
		}
		if err := d.store.Release(ctx, l.name, epoch); err != nil {
			d.log.Warn("releasing the destination failed; the next probe does it", "destination", l.name, "error", err)
		}
		d.Refresh(ctx)
	}
	l.mu.Lock()
	delete(l.probes, r.GetToken())
	l.mu.Unlock()
}

// Refresh reads the holds at once, after a person changed one.
func (d *Dispatcher) Refresh(ctx context.Context) { _ = d.refreshHolds(ctx) }

// refreshHolds reads all holds. After an error the next sweep reads them again.
func (d *Dispatcher) refreshHolds(ctx context.Context) error {
	holds, err := d.store.Holds(ctx)
	if err != nil {
		return err
	}
	for name, h := range holds {
		l := d.line(name)
		l.mu.Lock()
		was := l.hold
		l.hold = h
		if h.Held() && !was.Held() {
			l.nextProbe = time.Now().Add(time.Duration(h.ProbeMS) * time.Millisecond)
			d.log.Warn("destination held", "destination", name, "reason", telemetry.MaskDigits(h.Reason))
		}
		if !h.Held() && was.Held() {
			d.log.Info("destination released", "destination", name)
		}
		l.mu.Unlock()
		l.poke()
	}
	return nil
}

// HoldOf is the hold as this process knows it.
func (d *Dispatcher) HoldOf(destination string) store.Hold {
	l := d.line(destination)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hold
}

// sweep repairs lost wake-ups and ends lost leases.
func (d *Dispatcher) sweep(ctx context.Context) {
	if !d.connected(ctx) {
		clear(d.seen) // time without a connection does not count
		d.swept = time.Time{}
		return
	}
	// Nor does time in which this process did not run, but for one second: it has not read yet what consumers told it meanwhile.
	now := time.Now()
	d.mu.Lock()
	if !d.swept.IsZero() {
		d.watch += min(now.Sub(d.swept), sweepEvery)
	}
	d.swept = now
	unsent := d.unsent
	d.unsent = nil
	maps.DeleteFunc(d.ghosts, func(_ store.Lost, until time.Duration) bool { return until < d.watch })
	ghosts := maps.Clone(d.ghosts)
	d.mu.Unlock()
	d.giveUnsentBack(ctx, unsent)

	present := make(map[store.Lost]time.Duration, len(d.seen))
	var lost, nobodys []store.Lost
	for _, name := range d.store.Destinations() {
		d.line(name).rescan()
		leases, err := d.store.Leases(ctx, name)
		if err != nil {
			clear(d.seen)
			return
		}
		for _, l := range leases {
			first, ok := d.seen[l]
			if !ok {
				first = d.watch
			}
			present[l] = first
			if _, is := ghosts[l]; is {
				nobodys = append(nobodys, l)
			} else if d.watch-first >= d.leaseTime {
				lost = append(lost, l)
			}
		}
	}
	d.seen = present
	d.giveUnsentBack(ctx, nobodys)
	if len(lost) == 0 {
		return
	}
	refs, errs := d.store.Giveback(ctx, lost, true)
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 && !d.failing.Swap(true) {
		d.log.Warn("giving back lost leases fails, the next sweep tries again", "error", errs[i])
	}
	if len(refs) > 0 {
		d.log.Warn("leases ended without a result", "count", len(refs))
	}
	d.Due(refs)
}

// connected asks Redis for everything that a sweep needs first. It is false when Redis does not answer or takes no writes,
// and once after it was restarted or failed over, even if that passed between two sweeps.
func (d *Dispatcher) connected(ctx context.Context) bool {
	others, err := d.store.Heartbeat(ctx, 3*sweepEvery)
	if err != nil {
		return false
	}
	d.alone.Store(!others)
	incarnation, err := d.store.Incarnation(ctx)
	if err != nil || d.refreshHolds(ctx) != nil {
		return false
	}
	same := incarnation == d.incarnation || d.incarnation == ""
	d.incarnation = incarnation
	return same
}

// publish tells other state processes what became due.
func (d *Dispatcher) publish(refs []store.Ref) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var b strings.Builder
	for i, r := range refs {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(r.Destination + "\x00" + r.Member)
	}
	_ = d.store.Wake(ctx, b.String()) // the sweep repairs it
}

// listen takes what other state processes tell.
func (d *Dispatcher) listen(ctx context.Context) {
	for text := range d.store.Woken(ctx) {
		for ref := range strings.SplitSeq(text, "\n") {
			if destination, m, ok := strings.Cut(ref, "\x00"); ok {
				d.line(destination).add(m)
			}
		}
	}
}
