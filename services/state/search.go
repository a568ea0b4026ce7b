package state

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"callrelay/callback"
	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/errkind"
	"callrelay/services/state/internal/store"
	"callrelay/services/state/internal/words"
)

const (
	maxQuery = 200
	// looked is how many calls one page of a search looks at for those in a state.
	looked = 1000
	// behindKey is the page token of a search of which only what is named by its key was told.
	behindKey = "index"
)

// deliveryStates are the words of Delivery.state.
var deliveryStates = []string{"queued", "retrying", "held", "sending", "asked", "delivered", "dead", "expired", "discarded", "send_disabled"}

func checkStates(states ...string) error {
	for _, st := range states {
		if !slices.Contains(deliveryStates, st) {
			return errkind.Invalid("state", "%q is not a state: %s", st, strings.Join(deliveryStates, ", "))
		}
	}
	return nil
}

func pageSize(asked int32, byDefault, most int) (int, error) {
	switch n := int(asked); {
	case n == 0:
		return byDefault, nil
	case n < 0 || n > most:
		return 0, errkind.Invalid("page_size", "page_size must be 1 to %d", most)
	default:
		return n, nil
	}
}

// SearchCalls finds calls.
func (o *operator) SearchCalls(ctx context.Context, req *operatorv1.SearchCallsRequest) (*operatorv1.SearchCallsResponse, error) {
	query := strings.TrimSpace(req.GetQuery())
	if len(query) > maxQuery {
		return nil, errkind.Invalid("query", "query is longer than %d bytes", maxQuery)
	}
	since, err := o.since(req.GetSince(), 3*o.cfg.CallRetention)
	if err != nil {
		return nil, err
	}
	size, err := pageSize(req.GetPageSize(), 50, 200)
	if err != nil {
		return nil, err
	}
	if req.GetState() != "" {
		if err := checkStates(req.GetState()); err != nil {
			return nil, err
		}
	}
	_, masked := caller(ctx)
	resp := &operatorv1.SearchCallsResponse{NextPageToken: req.GetPageToken()}
	seen := map[string]bool{}
	// What is named by its key needs no index. It is on the first page, and on no other.
	if query != "" {
		key := callKey(query)
		if !strings.Contains(key, "/") {
			key = callback.RequestKey(query)
		}
		if req.GetPageToken() == "" {
			if err := o.summaries(ctx, resp, []string{key}, seen, req.GetState(), since, masked); err != nil {
				return nil, err
			}
			if len(resp.GetCalls()) >= size {
				resp.NextPageToken = behindKey
				return resp, nil
			}
		}
		seen[key] = true
	}
	if req.GetPageToken() == behindKey {
		resp.NextPageToken = ""
	}
	for read := 0; len(resp.GetCalls()) < size && read < looked; {
		want := min(size-len(resp.GetCalls()), 100)
		if req.GetState() != "" {
			want = 100
		}
		var page store.Page
		if query == "" {
			page, err = o.store.Recent(ctx, since, want, resp.GetNextPageToken())
		} else {
			page, err = o.store.Find(ctx, query, since, want, resp.GetNextPageToken())
		}
		if errors.Is(err, store.ErrPageToken) {
			return nil, errkind.Invalid("page_token", "page_token is not one of this search")
		}
		if err != nil {
			return nil, unavailable(err)
		}
		if err := o.summaries(ctx, resp, page.Calls, seen, req.GetState(), since, masked); err != nil {
			return nil, err
		}
		read += len(page.Calls)
		if resp.NextPageToken = page.Next; page.Next == "" {
			break
		}
	}
	return resp, nil
}

// summaries adds those of the calls that are still stored and wanted.
func (o *operator) summaries(ctx context.Context, resp *operatorv1.SearchCallsResponse, keys []string, seen map[string]bool, state string, sinceMS int64, masked bool) error {
	keys = slices.DeleteFunc(slices.Clone(keys), func(key string) bool { old := seen[key]; seen[key] = true; return old })
	calls, err := o.store.Calls(ctx, keys)
	if err != nil {
		return unavailable(err)
	}
	from := len(resp.GetCalls())
	for _, c := range calls {
		if c == nil || c.Unreadable != nil || len(c.Journal) == 0 || c.Journal[len(c.Journal)-1].GetAtMs() < sinceMS {
			continue
		}
		sum := &operatorv1.CallSummary{Call: c.Key, FirstMs: c.Journal[0].GetAtMs(), LastMs: c.Journal[len(c.Journal)-1].GetAtMs(),
			Deliveries: o.deliveries(c, masked, false), Summary: summary(c.Journal, masked)}
		if state == "" || slices.ContainsFunc(sum.GetDeliveries(), func(d *operatorv1.Delivery) bool { return d.GetState() == state }) {
			resp.Calls = append(resp.Calls, sum)
		}
	}
	slices.SortStableFunc(resp.GetCalls()[from:], func(a, b *operatorv1.CallSummary) int { return int(b.GetFirstMs() - a.GetFirstMs()) })
	return nil
}

// summary is the last decision, or else the last entry.
func summary(journal []*statev1.JournalEntry, masked bool) string {
	last := journal[len(journal)-1]
	for _, e := range journal {
		if e.GetDecided() != nil || e.GetRejected() != nil {
			last = e
		}
	}
	if masked {
		words.Mask(last)
	}
	return words.Entry(last)[0]
}

// place is a page token of ListDeliveries.
type place struct {
	Destination string `json:"d"`
	Partition   int    `json:"p"`
	Kind        string `json:"k"`
	Score       int64  `json:"s"`
	Member      string `json:"m"`
	Recent      string `json:"r,omitempty"`
}

func (p place) String() string {
	raw, _ := json.Marshal(p)
	return base64.RawURLEncoding.EncodeToString(raw)
}

// ListDeliveries lists deliveries.
func (o *operator) ListDeliveries(ctx context.Context, req *operatorv1.ListDeliveriesRequest) (*operatorv1.ListDeliveriesResponse, error) {
	if err := checkStates(req.GetState()...); err != nil {
		return nil, err
	}
	size, err := pageSize(req.GetPageSize(), 100, 1000)
	if err != nil {
		return nil, err
	}
	states := req.GetState()
	if len(states) == 0 {
		states = letterStates
	}
	var at place
	if token := req.GetPageToken(); token != "" {
		raw, err := base64.RawURLEncoding.DecodeString(token)
		if err != nil || json.Unmarshal(raw, &at) != nil || len(at.Kind) != 1 && at.Recent == "" {
			return nil, errkind.Invalid("page_token", "page_token is not one of this list")
		}
	}
	if err := o.known(req.GetDestination()); err != nil {
		return nil, err
	}
	_, masked := caller(ctx)
	l := &listing{Service: o.Service, states: states, destination: req.GetDestination(), size: size, masked: masked, resp: &operatorv1.ListDeliveriesResponse{}}
	if at.Recent == "" {
		if done, err := l.queued(ctx, at); err != nil || !done {
			return l.resp, err
		}
	}
	if !slices.ContainsFunc(states, func(st string) bool { return slices.Contains(endedStates, st) }) {
		return l.resp, nil
	}
	return l.resp, l.ended(ctx, at.Recent)
}

// listing is a page of ListDeliveries that is being filled.
type listing struct {
	*Service
	states      []string
	destination string // empty: all
	size        int
	masked      bool
	resp        *operatorv1.ListDeliveriesResponse
}

// add takes a delivery if it is one of those that are asked for.
func (l *listing) add(c *store.Call, d *statev1.Delivery) {
	out := l.delivery(c, d, l.masked, false)
	if slices.Contains(l.states, out.GetState()) && (l.destination == "" || d.GetDestination() == l.destination) {
		l.resp.Deliveries = append(l.resp.Deliveries, out)
	}
}

// full says whether the page is; then the next one begins behind the place.
func (l *listing) full(p place) bool {
	if len(l.resp.GetDeliveries()) < l.size {
		return false
	}
	l.resp.NextPageToken = p.String()
	return true
}

// queued lists what stands in a queue. It reports whether it came to the end.
func (l *listing) queued(ctx context.Context, from place) (done bool, err error) {
	return l.walk(ctx, from, l.destination, kindsOf(l.states), func(q store.Queue, seat store.Seat, c *store.Call) bool {
		_, number := seat.Call()
		for _, d := range c.Deliveries {
			queued := d.GetState() == statev1.DeliveryState_DELIVERY_STATE_QUEUED || d.GetState() == statev1.DeliveryState_DELIVERY_STATE_LEASED
			if int(d.GetNumber()) == number || number == 0 && queued && d.GetDestination() == q.Destination {
				l.add(c, d)
			}
		}
		return !l.full(place{q.Destination, q.Partition, string(q.Kind), seat.Score, seat.Member, ""})
	})
}

// ended lists what ended well. That stands in no queue: it is found by looking at the calls, the latest first.
func (l *listing) ended(ctx context.Context, after string) error {
	const many = 100
	want := many
	for read := 0; read < looked; {
		page, err := l.store.Recent(ctx, 0, want, after)
		if errors.Is(err, store.ErrPageToken) {
			return errkind.Invalid("page_token", "page_token is not one of this list")
		}
		if err != nil {
			return unavailable(err)
		}
		calls, err := l.store.Calls(ctx, page.Calls)
		if err != nil {
			return unavailable(err)
		}
		before, enough := len(l.resp.GetDeliveries()), 0
		for i, c := range calls {
			if c == nil || c.Unreadable != nil {
				continue
			}
			for _, d := range c.Deliveries {
				if slices.Contains(endedStates, words.State(d.GetState())) {
					l.add(c, d)
				}
			}
			if enough == 0 && len(l.resp.GetDeliveries()) >= l.size {
				enough = i + 1
			}
		}
		if enough > 0 && enough < len(calls) {
			// The page ends within these calls: read only so many, which gives the place behind them.
			want, l.resp.Deliveries = enough, l.resp.GetDeliveries()[:before]
			continue
		}
		want = many
		read += len(page.Calls)
		if after = page.Next; after == "" || l.full(place{Recent: after}) {
			return nil
		}
	}
	l.resp.NextPageToken = place{Recent: after}.String()
	return nil
}

var (
	letterStates = []string{"dead", "expired", "asked"}
	endedStates  = []string{"delivered", "discarded", "send_disabled"}
)

// kindsOf are the queues in which deliveries of the states stand.
func kindsOf(states []string) (kinds []byte) {
	has := func(words ...string) bool {
		return slices.ContainsFunc(states, func(st string) bool { return slices.Contains(words, st) })
	}
	if has(letterStates...) {
		kinds = append(kinds, store.KindLetters)
	}
	if has("queued", "retrying", "held", "sending") {
		kinds = append(kinds, store.KindDue, store.KindLeased)
	}
	return kinds
}

// visit looks at a delivery in a queue, and says whether to go on.
type visit func(store.Queue, store.Seat, *store.Call) bool

// walk visits every seat of the queues behind a place. It reports whether it came to the end.
func (s *Service) walk(ctx context.Context, from place, destination string, kinds []byte, each visit) (done bool, err error) {
	for _, q := range s.queues(destination, kinds) {
		var after store.Seat
		switch order := cmp.Or(cmp.Compare(q.Destination, from.Destination), cmp.Compare(q.Partition, from.Partition),
			cmp.Compare(slices.Index(kinds, q.Kind), strings.Index(string(kinds), from.Kind))); {
		case order < 0:
			continue
		case order == 0:
			after = store.Seat{Score: from.Score, Member: from.Member}
		}
		if done, err := s.walkQueue(ctx, q, after, each); err != nil || !done {
			return false, err
		}
	}
	return true, nil
}

// queues are those in which deliveries to a destination (empty: to any) stand, in the order in which they are walked.
func (s *Service) queues(destination string, kinds []byte) (all []store.Queue) {
	names := s.store.Destinations()
	slices.Sort(names)
	for _, name := range names {
		if name == store.Rules || destination != "" && name != destination {
			continue
		}
		for p := range store.Partitions {
			for _, kind := range kinds {
				all = append(all, store.Queue{Destination: name, Partition: p, Kind: kind})
			}
		}
	}
	return all
}

func (s *Service) walkQueue(ctx context.Context, q store.Queue, after store.Seat, each visit) (done bool, err error) {
	const batch = 64
	for {
		seats, err := s.store.Seats(ctx, q, after, batch)
		if err != nil {
			return false, unavailable(err)
		}
		keys := make([]string, len(seats))
		for i, seat := range seats {
			keys[i], _ = seat.Call()
		}
		calls, err := s.store.Calls(ctx, keys)
		if err != nil {
			return false, unavailable(err)
		}
		for i, seat := range seats {
			switch c := calls[i]; {
			case c == nil:
				if q.Kind == store.KindLetters {
					_ = s.store.Vacate(ctx, q, seat) // else by whoever looks next
				}
			case c.Unreadable != nil: // an alarm names it
			case !each(q, seat, c):
				return false, nil
			}
		}
		if len(seats) < batch {
			return true, nil
		}
		after = seats[len(seats)-1]
	}
}

// WatchJournal tells each journal entry as it is written.
func (o *operator) WatchJournal(req *operatorv1.WatchJournalRequest, stream operatorv1.OperatorService_WatchJournalServer) error {
	switch {
	case len(req.GetFilter()) > maxQuery:
		return errkind.Invalid("filter", "filter is longer than %d bytes", maxQuery)
	case len(req.GetAfter()) > maxQuery:
		return errkind.Invalid("after", "after is longer than %d bytes", maxQuery)
	}
	_, masked := caller(stream.Context())
	filter := strings.Fields(strings.ToLower(req.GetFilter()))
	from, missed := o.feed.after(req.GetAfter())
	for {
		events, next, forgotten, changed := o.feed.since(from)
		from, missed = next, missed || forgotten
		if missed {
			if err := stream.Send(&operatorv1.WatchJournalResponse{Missed: true}); err != nil {
				return err
			}
			missed = false
		}
		for _, e := range events {
			wanted := slices.DeleteFunc(e.entries(masked), func(entry *operatorv1.Entry) bool { return !entryMatches(entry, filter) })
			for i, entry := range wanted {
				if i == len(wanted)-1 {
					entry.Id = e.id // who resumes behind it has seen them all
				}
				if err := stream.Send(&operatorv1.WatchJournalResponse{Entry: entry}); err != nil {
					return err
				}
			}
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		case <-o.stopping:
			return errkind.Unavailable(nil, "the service stops; watch again")
		}
	}
}

// entries reads the journal entries of an event.
func (e event) entries(masked bool) []*operatorv1.Entry {
	journal, err := store.ReadJournal(e.journal)
	if err != nil {
		return nil
	}
	return entries(e.call, journal, masked)
}

func entryMatches(e *operatorv1.Entry, filter []string) bool {
	if len(filter) == 0 {
		return true
	}
	text := strings.ToLower(e.GetCall() + " " + e.GetFact().GetRequestId() + " " + strings.Join(e.GetText(), " "))
	return !slices.ContainsFunc(filter, func(word string) bool { return !strings.Contains(text, word) })
}

// progressEvery is how often a bulk action says how far it is.
const progressEvery = 500 * time.Millisecond

// RetryDeliveries retries in bulk.
func (o *operator) RetryDeliveries(req *operatorv1.RetryDeliveriesRequest, stream operatorv1.OperatorService_RetryDeliveriesServer) error {
	return o.bulk(stream.Context(), req.GetFilter(), "retry", req.GetReason(), retryable, stream.Send)
}

// DiscardDeliveries discards in bulk.
func (o *operator) DiscardDeliveries(req *operatorv1.DiscardDeliveriesRequest, stream operatorv1.OperatorService_DiscardDeliveriesServer) error {
	if req.GetReason() == "" {
		return errReason
	}
	return o.bulk(stream.Context(), req.GetFilter(), "discard", req.GetReason(), discardable, stream.Send)
}

// bulk does what a person would do one by one. Each is settled in its own step, which refuses what changed meanwhile: so two
// runs at once do nothing twice, and one that is broken off has done some and not others, nothing by half.
func (o *operator) bulk(ctx context.Context, filter *operatorv1.DeliveryFilter, what, reason string, allowed permission, send func(*operatorv1.Progress) error) error {
	if err := o.checkBulk(filter, reason); err != nil {
		return err
	}
	before := o.store.Now()
	if ms := filter.GetEndedBeforeMs(); ms != 0 {
		before = min(before, ms)
	}
	progress := &operatorv1.Progress{}
	var err error
	if progress.Total, err = o.letters(ctx, filter.GetDestination()); err != nil {
		return err
	}
	actor, _ := caller(ctx)
	wanted := func(d *statev1.Delivery) bool {
		st := words.State(d.GetState())
		return slices.Contains(letterStates, st) && (len(filter.GetState()) == 0 || slices.Contains(filter.GetState(), st)) &&
			d.GetFinalMs() <= before && strings.Contains(d.GetReason(), filter.GetReasonContains())
	}
	told := time.Now()
	var failed error
	_, err = o.walk(ctx, place{}, filter.GetDestination(), []byte{store.KindLetters}, func(_ store.Queue, seat store.Seat, c *store.Call) bool {
		_, number := seat.Call()
		progress.Seen++
		if number < 1 || number > len(c.Deliveries) || !wanted(c.Deliveries[number-1]) {
			return ctx.Err() == nil
		}
		_, err := o.settle(ctx, c.Key, &statev1.Action{Actor: actor, What: what, Delivery: uint32(number), Reason: reason},
			func(c *store.Call, d *statev1.Delivery) error {
				if !wanted(d) {
					return errkind.Refused("delivery %d changed meanwhile", d.GetNumber())
				}
				return allowed(c, d)
			})
		switch kind := errkind.From(err); {
		case err == nil:
			progress.Done++
		case errkind.HTTPStatus(kind.Kind) >= 500:
			failed = err
			return false
		default:
			progress.Refused++
			if len(progress.GetRefusals()) < 20 {
				progress.Refusals = append(progress.Refusals, c.Key+": "+kind.Message)
			}
		}
		if time.Since(told) >= progressEvery {
			told = time.Now()
			if failed = send(proto.CloneOf(progress)); failed != nil {
				return false
			}
			progress.Refusals = nil
		}
		return ctx.Err() == nil
	})
	switch {
	case err != nil:
		return err
	case failed != nil:
		return failed
	case ctx.Err() != nil:
		return ctx.Err()
	}
	progress.Finished = true
	return send(proto.CloneOf(progress))
}

// checkBulk says what is wrong with a bulk action.
func (o *operator) checkBulk(filter *operatorv1.DeliveryFilter, reason string) error {
	for _, st := range filter.GetState() {
		if !slices.Contains(letterStates, st) {
			return errkind.Invalid("filter.state", "%q is not a state of what can be done in bulk: %s", st, strings.Join(letterStates, ", "))
		}
	}
	if len(reason) > maxReason || len(filter.GetReasonContains()) > maxReason {
		return errkind.Invalid("reason", "reason is longer than %d bytes", maxReason)
	}
	return o.known(filter.GetDestination())
}

// letters is how many deliveries to a destination (empty: to all) a person has to look at.
func (o *operator) letters(ctx context.Context, destination string) (n int64, err error) {
	for _, name := range o.store.Destinations() {
		if destination != "" && destination != name {
			continue
		}
		_, _, letters, _, err := o.store.Backlog(ctx, name)
		if err != nil {
			return 0, unavailable(err)
		}
		n += letters
	}
	return n, nil
}
