package state

import (
	"context"
	"crypto/rand"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/telemetry"
	"callrelay/services/state/internal/store"
)

const (
	// remembered is how many events the live tail can go back: some tenths of a second of a busy relay, hours of a quiet one.
	remembered = 1024
	// unindexed is how many calls may wait for their index entries; of more, some are found by their id only.
	unindexed = 4096
	// indexEvery is how long a call may take to be found by a search, at most, and what makes batches under load.
	indexEvery = 100 * time.Millisecond
	// indexBatch bounds one pipeline, so that no commit waits long behind it.
	indexBatch = 64
)

// event is something that was written to the journal of a call.
type event struct {
	id      string
	atMS    int64
	call    string
	journal []byte
	cards   []*statev1.CallCard // not kept: only for the other state processes
}

// feed tells what was written, after it was: to whoever watches, to the other state processes, and to the search index. The
// path of a callback only puts events into memory; what is too much is dropped, and said to whom it concerns.
type feed struct {
	store  *store.Store
	cards  *cardFeed
	alone  func() bool
	origin string // names this process in ids of events

	mu      sync.Mutex
	events  []event       // a ring: the event with the number n is at n modulo its length
	next    int64         // number of the next event
	changed chan struct{} // closed by the next event; nil while nobody waits

	found chan store.Found
	tell  chan event
}

func newFeed(s *store.Store, cards *cardFeed, alone func() bool) *feed {
	return &feed{store: s, cards: cards, alone: alone, origin: rand.Text()[:6], events: make([]event, remembered),
		found: make(chan store.Found, unindexed), tell: make(chan event, remembered)}
}

// committed hands out what an accepted commit wrote.
func (s *Service) committed(item *statev1.CommitItem) {
	s.files.Committed(item)
	now := s.store.Now()
	cards := store.CallCards(item, now)
	s.cards.tell(cards)
	s.feed.add(now, item.GetCall(), item.GetJournal(), cards)
	s.feed.index(now, item, item.GetExpectedVersion() == "")
}

// completed hands out what an accepted result wrote.
func (s *Service) completed(r *statev1.LeaseResult, v store.Verdict, nowMS int64) {
	s.files.Completed(r, nowMS)
	s.feed.add(nowMS, r.GetCall(), v.Journal, nil)
}

// add is called on the path of callbacks.
func (f *feed) add(atMS int64, call string, journal []byte, cards []*statev1.CallCard) {
	if len(journal) == 0 {
		return
	}
	e := event{atMS: atMS, call: call, journal: journal}
	f.mu.Lock()
	n := f.next
	f.put(e)
	f.mu.Unlock()
	if !f.alone() {
		e.id, e.cards = f.idOf(n, e), cards
		select {
		case f.tell <- e:
		default: // whoever watches there misses it
		}
	}
}

func (f *feed) put(e event) {
	f.events[f.next%remembered] = e
	f.next++
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// idOf is the id of the event with a number; those of this process get theirs when somebody asks.
func (f *feed) idOf(n int64, e event) string {
	if e.id != "" {
		return e.id
	}
	return strconv.FormatInt(e.atMS, 10) + "." + f.origin + "." + strconv.FormatInt(n, 10)
}

// timeOf is when the event with an id was written, in milliseconds.
func timeOf(id string) int64 {
	at, _, _ := strings.Cut(id, ".")
	ms, _ := strconv.ParseInt(at, 10, 64)
	return ms
}

// index is called on the path of callbacks. first: nothing was known of the call before.
func (f *feed) index(atMS int64, item *statev1.CommitItem, first bool) {
	if len(item.GetMoves()) == 0 || item.GetEntry() != nil {
		return // nothing came in
	}
	terms := append(make([]string, 0, len(item.GetTerms())+2), item.GetTerms()...)
	terms = append(terms, item.GetInputId())
	if trace := telemetry.TraceID(item.GetTraceparent()); trace != "" {
		terms = append(terms, trace)
	}
	select {
	case f.found <- store.Found{Call: item.GetCall(), AtMS: atMS, First: first, Terms: terms, Phones: item.GetPhones()}:
	default:
	}
}

// since reads events from the number on. missed: some before them are forgotten. changed is closed when there is more.
func (f *feed) since(from int64) (events []event, next int64, missed bool, changed <-chan struct{}) {
	const most = 256
	f.mu.Lock()
	defer f.mu.Unlock()
	if oldest := f.next - remembered; from < oldest {
		from, missed = oldest, true
	}
	for ; from < f.next && len(events) < most; from++ {
		e := f.events[from%remembered]
		e.id = f.idOf(from, e)
		events = append(events, e)
	}
	if f.changed == nil {
		f.changed = make(chan struct{})
	}
	return events, from, missed, f.changed
}

// after finds the number behind the event with the id. Of an event that is not remembered it goes on with what was written
// after its time, and says that some may be missed.
func (f *feed) after(id string) (from int64, missed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if id == "" {
		return f.next, false
	}
	oldest := max(0, f.next-remembered)
	for n := f.next - 1; n >= oldest; n-- {
		if f.idOf(n, f.events[n%remembered]) == id {
			return n + 1, false
		}
	}
	at := timeOf(id)
	for from = oldest; from < f.next && f.events[from%remembered].atMS <= at; from++ {
	}
	return from, true
}

// run writes the index and speaks with the other state processes until ctx ends.
func (f *feed) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { f.publish(ctx) })
	wg.Go(func() {
		for text := range f.store.Told(ctx) {
			f.receive(text)
		}
	})
	tick := time.NewTicker(indexEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			f.flush(context.WithoutCancel(ctx))
			return
		case <-tick.C:
			f.flush(ctx)
		}
	}
}

// flush writes what waits for the index. What Redis does not take is not tried again: those calls are found by their id only.
func (f *feed) flush(ctx context.Context) {
	for {
		var batch []store.Found
		for len(batch) < indexBatch && len(f.found) > 0 {
			batch = append(batch, <-f.found)
		}
		if len(batch) == 0 {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := f.store.Index(ctx, batch)
		cancel()
		if err != nil {
			return
		}
	}
}

// publish tells the other processes; batches come from what waits.
func (f *feed) publish(ctx context.Context) {
	for {
		var req statev1.Told
		add := func(e event) {
			req.Items = append(req.Items, &statev1.CommitItem{InputId: e.id, Call: e.call, Journal: e.journal})
			req.Cards = append(req.Cards, e.cards...)
		}
		select {
		case <-ctx.Done():
			return
		case e := <-f.tell:
			add(e)
		}
		for len(req.GetItems()) < indexBatch && len(f.tell) > 0 {
			add(<-f.tell)
		}
		if raw, err := proto.Marshal(&req); err == nil {
			_ = f.store.Tell(ctx, f.origin+string(raw)) // whoever watches there misses it
		}
	}
}

// receive takes what another process published.
func (f *feed) receive(text string) {
	var req statev1.Told
	if len(text) < len(f.origin) || strings.HasPrefix(text, f.origin) || proto.Unmarshal([]byte(text[len(f.origin):]), &req) != nil {
		return
	}
	f.cards.tell(req.GetCards())
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, item := range req.GetItems() {
		f.put(event{id: item.GetInputId(), atMS: timeOf(item.GetInputId()), call: item.GetCall(), journal: item.GetJournal()})
	}
}
