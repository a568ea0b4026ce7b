package store

import (
	"context"
	"fmt"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/redistest"
)

const dest = "topsii"

var ctx = context.Background()

func open(t *testing.T, url string) *Store {
	t.Helper()
	s, err := Open(Config{URL: url, Retention: time.Hour, JournalLimit: 4096})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.Connect(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestStore runs every test on one Redis and on a cluster of three.
func TestStore(t *testing.T) {
	for _, backend := range []struct {
		name string
		url  func() string
	}{
		{"redis", func() string { return redistest.Start(t).URL() }},
		{"cluster", func() string { return redistest.StartCluster(t) }},
	} {
		t.Run(backend.name, func(t *testing.T) {
			url := backend.url()
			for _, test := range suite {
				t.Run(test.name, func(t *testing.T) {
					s := open(t, url)
					flush(t, s)
					if err := s.Connect(ctx); err != nil {
						t.Fatal(err)
					}
					test.run(t, s)
				})
			}
		})
	}
}

var suite = []struct {
	name string
	run  func(t *testing.T, s *Store)
}{
	{"Versions", testVersions},
	{"SameInputTwice", testSameInputTwice},
	{"JournalOnly", testJournalOnly},
	{"OrderPerPair", testOrderPerPair},
	{"Tokens", testTokens},
	{"DoneWhileQueued", testDoneWhileQueued},
	{"PausedTime", testPausedTime},
	{"Giveback", testGiveback},
	{"GivebackMeetsCommit", testGivebackMeetsCommit},
	{"UnreadableDelivery", testUnreadableDelivery},
	{"Timers", testTimers},
	{"TimerSetAgain", testTimerSetAgain},
	{"Messages", testMessages},
	{"Results", testResults},
	{"EntriesWait", testEntriesWait},
	{"Retention", testRetention},
	{"Settle", testSettle},
	{"Hold", testHold},
	{"OneBadItem", testOneBadItem},
	{"Opaque", testOpaque},
	{"JournalIsBounded", testJournalIsBounded},
	{"TimeToLive", testTimeToLive},
	{"LateDoneAfterAsked", testLateDoneAfterAsked},
	{"LostScripts", testLostScripts},
	{"LostAnswer", testLostAnswer},
	{"ShortWayIsNotEnough", testShortWayIsNotEnough},
	{"ClockJumps", testClockJumps},
	{"Accounts", testAccounts},
	{"SyncAccounts", testSyncAccounts}, {"AccountLease", testAccountLease}, {"UseToken", testUseToken},
	{"Limits", testLimits},
	{"LimitsArrivals", testLimitsArrivals},
	{"Share", testShare},
	{"Format", testFormat}, // the last: nothing else works in a store of another format
}

// deaf is a connection that breaks instead of giving the next answer, once breaks is set.
type deaf struct {
	net.Conn
	breaks *atomic.Bool
}

func (c deaf) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.breaks.CompareAndSwap(true, false) {
		return 0, io.EOF
	}
	return n, err
}

// A script of which the answer is lost did run, and the client says that it does not know: it repeats nothing by itself, since the
// repeat would be answered as one, and nobody would have got what the first one gave.
func testLostAnswer(t *testing.T, s *Store) {
	var breaks atomic.Bool
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		return deaf{conn, &breaks}, err
	}
	if cluster, ok := s.client.(*redis.ClusterClient); ok {
		o := *cluster.Options()
		o.Dialer, o.MaxRetries = dial, -1
		s.client = redis.NewClusterClient(&o)
	} else {
		o := *s.client.(*redis.Client).Options()
		o.Dialer, o.MaxRetries = dial, -1
		s.client = redis.NewClient(&o)
	}
	t.Cleanup(func() { _ = s.client.Close() })
	commit := func(call string) (*statev1.CommitAnswer, error) {
		answers, _, errs := s.Commit(ctx, []*statev1.CommitItem{item(call, "i1", "", "c1", 1)}, [][]string{{"token"}})
		return answers[0], errs[0]
	}
	neighbour := 2
	for Partition(fmt.Sprint("ameyo/", neighbour)) != Partition("ameyo/1") {
		neighbour++
	}
	if _, err := commit(fmt.Sprint("ameyo/", neighbour)); err != nil { // now there is a connection, and the script
		t.Fatal(err)
	}
	breaks.Store(true)
	if a, err := commit("ameyo/1"); err == nil {
		t.Errorf("its answer was lost, and it says %v", a)
	}
	if a, err := commit("ameyo/1"); err != nil || a.GetStatus() != statev1.CommitStatus_COMMIT_STATUS_EARLIER {
		t.Errorf("repeated: %v, %v", a, err)
	}
}

func flush(t *testing.T, s *Store) {
	everywhere(t, s, func(ctx context.Context, c *redis.Client) error { return c.FlushAll(ctx).Err() })
}

// everywhere does something on the server, or on each node of the cluster.
func everywhere(t *testing.T, s *Store, each func(context.Context, *redis.Client) error) {
	t.Helper()
	var err error
	if cluster, ok := s.client.(*redis.ClusterClient); ok {
		err = cluster.ForEachMaster(ctx, each)
	} else {
		err = each(ctx, s.client.(*redis.Client))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// item is a commit of a call with n new deliveries numbered from first.
func item(call, input, expected, commit string, numbers ...uint32) *statev1.CommitItem {
	it := &statev1.CommitItem{Call: call, InputId: input, ExpectedVersion: expected, CommitId: commit,
		Record: record(commit), Journal: note(input)}
	for _, n := range numbers {
		it.Deliveries = append(it.Deliveries, &statev1.Delivery{Number: n, Destination: dest, Endpoint: "createCallEnd",
			Payload: []byte(fmt.Sprintf("payload %d", n)), RequestId: input, Gate: "gate"})
	}
	return it
}

func record(text string) []byte {
	b, _ := proto.Marshal(&statev1.Record{Blobs: map[string][]byte{"test": []byte(text)}})
	return b
}

func note(text string) []byte {
	b, _ := proto.Marshal(&statev1.Journal{Entries: []*statev1.JournalEntry{{Fact: &statev1.JournalEntry_Note{Note: text}}}})
	return b
}

func commit(t *testing.T, s *Store, items ...*statev1.CommitItem) []*statev1.CommitAnswer {
	t.Helper()
	answers, _, errs := s.Commit(ctx, items, nil)
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	return answers
}

func statuses(answers []*statev1.CommitAnswer) (out []string) {
	for _, a := range answers {
		out = append(out, strings.TrimPrefix(a.GetStatus().String(), "COMMIT_STATUS_"))
	}
	return out
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func lease(t *testing.T, s *Store, members ...string) []*statev1.LeaseWork {
	t.Helper()
	work, _, err := s.Lease(ctx, dest, members)
	if err != nil {
		t.Fatal(err)
	}
	return work
}

func complete(t *testing.T, s *Store, w *statev1.LeaseWork, change func(*statev1.LeaseResult)) Verdict {
	t.Helper()
	r := &statev1.LeaseResult{Call: w.GetCall(), Token: w.GetToken(), Delivery: w.GetDelivery().GetNumber(), Destination: dest,
		Attempt: &statev1.Attempt{Delivery: w.GetDelivery().GetNumber()}}
	change(r)
	v, errs := s.Complete(ctx, []*statev1.LeaseResult{r})
	if errs[0] != nil {
		t.Fatal(errs[0])
	}
	return v[0]
}

func done(r *statev1.LeaseResult) { r.Result = &statev1.LeaseResult_Done{Done: &statev1.Done{}} }
func again(ms int64) func(*statev1.LeaseResult) {
	return func(r *statev1.LeaseResult) {
		r.Result = &statev1.LeaseResult_Retry{Retry: &statev1.RetryLater{InMs: ms}}
	}
}
func ends(state statev1.DeliveryState) func(*statev1.LeaseResult) {
	return func(r *statev1.LeaseResult) {
		r.Result = &statev1.LeaseResult_End{End: &statev1.End{State: state, Reason: "because"}}
	}
}

func get(t *testing.T, s *Store, call string) *Call {
	t.Helper()
	c, err := s.Call(ctx, call)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ttl(t *testing.T, s *Store, call string) time.Duration {
	t.Helper()
	d, err := s.client.PTTL(ctx, keyCall(call)).Result()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Rule 1: a version is the id of the commit that wrote it; a batch may chain commits of a call, and where the first did
// not happen, the rest is CONFLICT.
func testVersions(t *testing.T, s *Store) {
	want(t, "chain", statuses(commit(t, s,
		item("ameyo/1", "i1", "", "c1", 1), item("ameyo/2", "x1", "", "d1", 1), item("ameyo/1", "i2", "c1", "c2", 2))),
		"[OK OK OK]")
	want(t, "broken chain", statuses(commit(t, s,
		item("ameyo/1", "i3", "c1", "c3"), item("ameyo/1", "i4", "c3", "c4"), item("ameyo/2", "x2", "d1", "d2"))),
		"[CONFLICT CONFLICT OK]")
	a := commit(t, s, item("ameyo/1", "i5", "", "c5"))[0]
	want(t, "a conflict shows the call as it is", a.GetCurrent().GetVersion(), "c2")
	want(t, "its record", string(a.GetCurrent().GetRecord()), string(record("c2")))
	want(t, "its deliveries", len(a.GetCurrent().GetDeliveries()), 2)
	want(t, "nothing written by conflicts", len(get(t, s, "ameyo/1").Journal), 2)
}

// Rule 2: the same commit sent again, verbatim and after others, is answered with the earlier outcome and writes nothing.
func testSameInputTwice(t *testing.T, s *Store) {
	first := item("ameyo/1", "i1", "", "c1", 1)
	first.Outcome = &statev1.Outcome{Duplicate: true}
	commit(t, s, first, item("ameyo/1", "i2", "c1", "c2"))
	before := get(t, s, "ameyo/1")
	answers := commit(t, s, first, first)
	want(t, "status", statuses(answers), "[EARLIER EARLIER]")
	want(t, "outcome", answers[0].GetOutcome().GetDuplicate(), true)
	if !reflect.DeepEqual(before, get(t, s, "ameyo/1")) {
		t.Error("a repeated input changed the call")
	}
}

// A duplicate's commit has no id: it writes its journal entry and nothing else.
func testJournalOnly(t *testing.T, s *Store) {
	commit(t, s, item("ameyo/1", "i1", "", "c1"))
	dup := item("ameyo/1", "i2", "c1", "")
	dup.Record = nil
	want(t, "status", statuses(commit(t, s, dup, item("ameyo/1", "i3", "c1", "c3"))), "[OK OK]")
	c := get(t, s, "ameyo/1")
	want(t, "version", c.Version, "c3")
	want(t, "entries", len(c.Journal), 3)
}

func testJournalIsBounded(t *testing.T, s *Store) {
	big := item("ameyo/1", "i1", "", "c1")
	big.Journal = note(strings.Repeat("x", 4000))
	more := item("ameyo/1", "i2", "c1", "c2")
	more.Journal = note(strings.Repeat("y", 200))
	commit(t, s, big, more)
	c := get(t, s, "ameyo/1")
	want(t, "entries", len(c.Journal), 1)
	want(t, "dropped bytes", int(c.JournalDropped), len(more.GetJournal()))

	size := func() int64 { return s.client.HLen(ctx, keyCall("ameyo/1")).Val() }
	before := size()
	for i := range 50 {
		repeat := item("ameyo/1", fmt.Sprint("repeat", i), "c2", "")
		repeat.Journal = note(strings.Repeat("z", 200))
		want(t, "repeat", statuses(commit(t, s, repeat)), "[OK]")
	}
	want(t, "fields after 50 repeats", size(), before)
	want(t, "a change keeps its input id", statuses(commit(t, s, item("ameyo/1", "i3", "c2", "c3"), item("ameyo/1", "i3", "c2", "c3"))), "[OK EARLIER]")
}

// Rule 9: the deliveries of a pair go out one after the other in commit order; one in retry holds back only the later ones
// of its pair; an ended one holds back nothing.
func testOrderPerPair(t *testing.T, s *Store) {
	commit(t, s, item("ameyo/1", "i1", "", "c1", 1, 2, 3), item("ameyo/2", "x1", "", "d1", 1))
	work := lease(t, s, "ameyo/1", "ameyo/1", "ameyo/2")
	want(t, "only heads", numbers(work), "[ameyo/1:1 ameyo/2:1]")
	want(t, "followed", []bool{work[0].GetFollowed(), work[1].GetFollowed()}, "[true false]")

	v := complete(t, s, work[0], again(60_000))
	want(t, "due later", v.Head && v.DueMS > s.Now()+50_000, true)
	want(t, "nothing overtakes a retry", numbers(lease(t, s, "ameyo/1")), "[]")

	s.clock.offset.Add(61_000)
	work = lease(t, s, "ameyo/1")
	want(t, "the retry", numbers(work), "[ameyo/1:1]")
	want(t, "attempts", work[0].GetDelivery().GetAttempts(), 1)
	want(t, "next is due", complete(t, s, work[0], ends(statev1.DeliveryState_DELIVERY_STATE_DEAD)).Head, true)
	work = lease(t, s, "ameyo/1")
	want(t, "dead ones do not hold back", numbers(work), "[ameyo/1:2]")
	complete(t, s, work[0], done)
	work = lease(t, s, "ameyo/1")
	want(t, "the last", numbers(work), "[ameyo/1:3]")
	want(t, "no next", complete(t, s, work[0], done).Head, false)
}

func numbers(work []*statev1.LeaseWork) (out []string) {
	for _, w := range work {
		out = append(out, fmt.Sprintf("%s:%d", w.GetCall(), w.GetDelivery().GetNumber()))
	}
	slices.Sort(out)
	return out
}

// Rule 6: done counts from any token while the delivery is not final; retry and dead only from the current one.
func testTokens(t *testing.T, s *Store) {
	commit(t, s, item("ameyo/1", "i1", "", "c1", 1))
	first := lease(t, s, "ameyo/1")[0]
	giveback(t, s, first.GetToken(), true)
	second := lease(t, s, "ameyo/1")[0]
	want(t, "a new token for each grant", first.GetToken() != second.GetToken(), true)
	want(t, "retry of the old lease", complete(t, s, first, again(0)).Superseded, true)
	want(t, "dead of the old lease", complete(t, s, first, ends(statev1.DeliveryState_DELIVERY_STATE_DEAD)).Superseded, true)
	want(t, "done of the old lease", complete(t, s, first, done).Superseded, false)
	want(t, "state", get(t, s, "ameyo/1").Deliveries[0].GetState(), statev1.DeliveryState_DELIVERY_STATE_DELIVERED)
	want(t, "done of the new lease comes too late", complete(t, s, second, done).Superseded, true)
	leases, _ := s.Leases(ctx, dest)
	want(t, "no lease is left", len(leases), 0)
}

// A fact that arrives while its delivery is queued again takes it out of the queue.
func testDoneWhileQueued(t *testing.T, s *Store) {
	commit(t, s, item("ameyo/1", "i1", "", "c1", 1))
	w := lease(t, s, "ameyo/1")[0]
	giveback(t, s, w.GetToken(), true)
	want(t, "done", complete(t, s, w, done).Superseded, false)
	due, _, err := s.Due(ctx, dest, 10)
	want(t, "nothing is due", fmt.Sprint(due, err), "[] <nil>")
}

// Time that a consumer reports as paused is no part of the age.
func testPausedTime(t *testing.T, s *Store) {
	commit(t, s, item("ameyo/1", "i1", "", "c1", 1))
	s.clock.offset.Add(60_000)
	for range 2 {
		complete(t, s, lease(t, s, "ameyo/1")[0], func(r *statev1.LeaseResult) {
			r.Result = &statev1.LeaseResult_Retry{Retry: &statev1.RetryLater{PausedMs: 20_000, Uncounted: true}}
		})
	}
	w := lease(t, s, "ameyo/1")[0]
	if w.GetAgeMs() < 20_000 || w.GetAgeMs() > 30_000 || w.GetWallAgeMs() < 60_000 {
		t.Errorf("age %d ms, wall age %d ms; want 20000 and 60000", w.GetAgeMs(), w.GetWallAgeMs())
	}
	want(t, "uncounted", w.GetDelivery().GetAttempts(), 0)
}

func giveback(t *testing.T, s *Store, token string, maybeSent bool) int {
	t.Helper()
	refs, errs := s.Giveback(ctx, []Lost{{Ref{dest, "ameyo/1"}, token}}, maybeSent)
	if errs[0] != nil {
		t.Fatal(errs[0])
	}
	return len(refs)
}

// Rules 7 and 8: a lease that ended without a result makes the delivery uncertain, and the mark travels; a lease that is
// not the current one any more is left alone.
// Before Redis was asked for the time nothing is written or answered: it would be dated 1970.
func TestNothingBeforeTheClock(t *testing.T) {
	r := redistest.Start(t)
	s, err := Open(Config{URL: r.URL(), Retention: time.Hour, JournalLimit: 4096})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, _, errs := s.Commit(ctx, []*statev1.CommitItem{item("ameyo/1", "i1", "", "c1", 1)}, nil); errs[0] == nil {
		t.Error("committed")
	}
	if _, errs := s.Load(ctx, []string{"ameyo/1"}); errs[0] == nil {
		t.Error("loaded")
	}
	if err := s.Connect(ctx); err != nil {
		t.Fatal(err)
	}
	if states, errs := s.Load(ctx, []string{"ameyo/1"}); errs[0] != nil || states[0].GetVersion() != "" {
		t.Errorf("got %v, %v", states[0], errs[0])
	}
	commit(t, s, item("ameyo/1", "i1", "", "c1", 1))
}

// Redis may make a lease between the two looks of its giving back. Then it stays, to be given back by whoever looks again.
func testGivebackMeetsCommit(t *testing.T, s *Store) {
	lost := Lost{Ref{dest, "ameyo/77"}, "late"}
	p := Partition("ameyo/77")
	if _, _, errs := s.Commit(ctx, []*statev1.CommitItem{item("ameyo/77", "R77", "", "c", 1)}, [][]string{{lost.Token}}); errs[0] != nil {
		t.Fatal(errs[0])
	}
	replies, errs := s.run(ctx, []invocation{invoke(givebackScript, []string{keyCall("ameyo/77"), keyDue(p, dest), keyLeases(p, dest)},
		lost.Member, lost.Token, "", s.Now(), "", 4096, "", "", "")}) // it was looked for before the commit
	if errs[0] != nil || replies[0] != int64(0) {
		t.Errorf("got %v, %v", replies[0], errs[0])
	}
	refs, errs := s.Giveback(ctx, []Lost{lost}, false)
	if errs[0] != nil || len(refs) != 1 {
		t.Fatalf("given back: %v, %v", refs, errs)
	}
	if work, _, err := s.Lease(ctx, dest, []string{"ameyo/77"}); err != nil || len(work) != 1 {
		t.Errorf("leased again: %v, %v", work, err)
	}
}

// A delivery that cannot be read ends dead at its first lease, once: the next of its line goes out, and the call can be read again. Until
// then it keeps none of its neighbours leased.
func testUnreadableDelivery(t *testing.T, s *Store) {
	it := item("ameyo/1", "i1", "", "c1", 1, 2, 3)
	it.Moves = []*statev1.Move{{RequestId: "i1", To: statev1.Bucket_BUCKET_NOTHING_TO_SEND}}
	commit(t, s, it)
	corrupt := func(number string) {
		if err := s.client.HSet(ctx, keyCall("ameyo/1"), number, "\xff").Err(); err != nil {
			t.Fatal(err)
		}
	}
	corrupt("1")
	work, _, err := s.Lease(ctx, dest, []string{"ameyo/1"})
	want(t, "leased, and no error", fmt.Sprint(work, err), "[] <nil>")
	w := lease(t, s, "ameyo/1")[0]
	want(t, "the next", w.GetDelivery().GetNumber(), 2)
	complete(t, s, w, done)

	corrupt("2")
	want(t, "a neighbour given back", giveback(t, s, lease(t, s, "ameyo/1")[0].GetToken(), true), 1)
	corrupt("3")
	work, _, err = s.Lease(ctx, dest, []string{"ameyo/1"})
	want(t, "leased, and no error", fmt.Sprint(work, err), "[] <nil>")
	if err := s.client.HSet(ctx, keyCall("ameyo/1"), "2", "").Err(); err != nil {
		t.Fatal(err)
	}
	c := mustCall(t, s, "ameyo/1")
	for _, d := range []*statev1.Delivery{c.Deliveries[0], c.Deliveries[2]} {
		want(t, "state", d.GetState(), statev1.DeliveryState_DELIVERY_STATE_DEAD)
		want(t, "reason", strings.Contains(d.GetReason(), "is unreadable"), true)
		want(t, "whose it is and where it went", d.GetRequestId()+" "+d.GetDestination(), "i1 "+dest)
	}
	waiting, leased, letters, _, err := s.Backlog(ctx, dest)
	want(t, "waiting, leases, letters", fmt.Sprint(waiting, leased, letters, err), "0 0 2 <nil>")
	want(t, "counted", c.Counted["i1"].Bucket, Dead)
}

func testGiveback(t *testing.T, s *Store) {
	commit(t, s, item("ameyo/1", "i1", "", "c1", 1))
	w := lease(t, s, "ameyo/1")[0]
	want(t, "another lease", giveback(t, s, "another token", true), 0)
	want(t, "given back", giveback(t, s, w.GetToken(), true), 1)
	w = lease(t, s, "ameyo/1")[0]
	want(t, "uncertain", w.GetDelivery().GetUncertain(), true)
	want(t, "counted", w.GetDelivery().GetAttempts(), 1)
	complete(t, s, w, again(0))
	want(t, "still uncertain", lease(t, s, "ameyo/1")[0].GetDelivery().GetUncertain(), true)

	commit(t, s, item("ameyo/9", "i1", "", "c1", 1))
	unseen := lease(t, s, "ameyo/9")[0]
	if refs, errs := s.Giveback(ctx, []Lost{{Ref{dest, "ameyo/9"}, unseen.GetToken()}}, false); errs[0] != nil || len(refs) != 1 {
		t.Fatal(refs, errs)
	}
	unseen = lease(t, s, "ameyo/9")[0]
	want(t, "one that nobody saw", fmt.Sprint(unseen.GetDelivery().GetUncertain(), unseen.GetDelivery().GetAttempts()), "false 0")
}

// Rule 11: setting a timer replaces, cancelling removes, an outdated entry is STALE, and the commit of an entry's input
// removes it.
func testTimers(t *testing.T, s *Store) {
	set := func(input, expected, commitID string, in int64) *statev1.CommitItem {
		it := item("ameyo/1", input, expected, commitID)
		it.SetTimers = []*statev1.Timer{{Name: "phone1:7", InMs: in}}
		return it
	}
	take := func() []*statev1.LeaseWork {
		work, _, err := s.Lease(ctx, Rules, []string{"ameyo/1\tphone1:7"})
		if err != nil {
			t.Fatal(err)
		}
		return work
	}
	entry := func(w *statev1.LeaseWork, input, expected, commitID string) *statev1.CommitItem {
		it := item("ameyo/1", input, expected, commitID)
		it.Entry = w.GetEntry()
		return it
	}
	commit(t, s, set("i1", "", "c1", 60_000))
	want(t, "not due yet", len(take()), 0)
	s.clock.offset.Add(61_000)
	work := take()
	want(t, "due, with the id of the commit that set it", work[0].GetEntry().GetTimerId(), "c1")
	want(t, "leased once", len(take()), 0)
	leases, _ := s.Leases(ctx, Rules)
	want(t, "its lease is watched", len(leases), 1)

	commit(t, s, set("i2", "c1", "c2", 60_000))
	leases, _ = s.Leases(ctx, Rules)
	want(t, "no lease of the old one is left", len(leases), 0)
	want(t, "replaced while leased", statuses(commit(t, s, entry(work[0], "c1:phone1:7", "c2", "c3"))), "[STALE]")
	s.clock.offset.Add(61_000)
	work = take()
	want(t, "the new one", work[0].GetEntry().GetTimerId(), "c2")
	want(t, "its input", statuses(commit(t, s, entry(work[0], "c2:phone1:7", "c2", "c3"))), "[OK]")
	want(t, "removed", statuses(commit(t, s, entry(work[0], "another", "c3", "c4"))), "[STALE]")
	leases, _ = s.Leases(ctx, Rules)
	want(t, "no lease is left", len(leases), 0)
	want(t, "nothing open", ttl(t, s, "ameyo/1") > 0, true)

	commit(t, s, set("i5", "c3", "c5", 0))
	cancel := item("ameyo/1", "i6", "c5", "c6")
	cancel.CancelTimers = []string{"phone1:7", "never set"}
	commit(t, s, cancel)
	want(t, "cancelled", len(take()), 0)
	want(t, "nothing open after cancelling", ttl(t, s, "ameyo/1") > 0, true)
}

// Rule 13: while something is open a call has no time to live; what ends dead stays until somebody decides.
func testTimeToLive(t *testing.T, s *Store) {
	commit(t, s, item("ameyo/1", "i1", "", "c1"))
	want(t, "nothing open", ttl(t, s, "ameyo/1") > 0, true)
	commit(t, s, item("ameyo/1", "i2", "c1", "c2", 1, 2))
	want(t, "two open", ttl(t, s, "ameyo/1") < 0, true)
	complete(t, s, lease(t, s, "ameyo/1")[0], done)
	want(t, "one open", ttl(t, s, "ameyo/1") < 0, true)
	complete(t, s, lease(t, s, "ameyo/1")[0], ends(statev1.DeliveryState_DELIVERY_STATE_DEAD))
	want(t, "dead", ttl(t, s, "ameyo/1") < 0, true)
	c := get(t, s, "ameyo/1")
	if _, err := s.Settle(ctx, c, c.Deliveries[1], &statev1.Action{What: "discard", Reason: "r"}, 0); err != nil {
		t.Fatal(err)
	}
	want(t, "discarded", ttl(t, s, "ameyo/1") > 0, true)
}

// Retry and discard change the version, so rules that looked at the call before decide again (rule 5), and letters are
// listed until they are settled.
func testSettle(t *testing.T, s *Store) {
	commit(t, s, item("ameyo/1", "i1", "", "c1", 1, 2))
	complete(t, s, lease(t, s, "ameyo/1")[0], ends(statev1.DeliveryState_DELIVERY_STATE_DEAD))
	queue := Queue{Destination: dest, Partition: Partition("ameyo/1"), Kind: KindLetters}
	letters, err := s.Seats(ctx, queue, Seat{}, 10)
	want(t, "listed", fmt.Sprint(len(letters), err), "1 <nil>")
	old := get(t, s, "ameyo/1")
	if _, err := s.Settle(ctx, old, old.Deliveries[0], &statev1.Action{What: "retry"}, 0); err != nil {
		t.Fatal(err)
	}
	want(t, "rules that looked before", statuses(commit(t, s, item("ameyo/1", "i2", "c1", "c2"))), "[CONFLICT]")
	_, err = s.Settle(ctx, old, old.Deliveries[0], &statev1.Action{What: "retry"}, 0)
	want(t, "a second click", err, ErrConflict)
	letters, _ = s.Seats(ctx, queue, Seat{}, 10)
	want(t, "not listed any more", len(letters), 0)
	work := lease(t, s, "ameyo/1")
	want(t, "at the end of its line", numbers(work), "[ameyo/1:2]")

	commit(t, s, item("ameyo/5", "i1", "", "c1", 1))
	s.clock.offset.Add(100_000)
	complete(t, s, lease(t, s, "ameyo/5")[0], ends(statev1.DeliveryState_DELIVERY_STATE_EXPIRED))
	expired := get(t, s, "ameyo/5")
	if _, err := s.Settle(ctx, expired, expired.Deliveries[0], &statev1.Action{What: "retry"}, 0); err != nil {
		t.Fatal(err)
	}
	if w := lease(t, s, "ameyo/5")[0]; w.GetAgeMs() > 10_000 || w.GetWallAgeMs() > 10_000 {
		t.Errorf("an expired delivery that is retried is still %d and %d ms old", w.GetAgeMs(), w.GetWallAgeMs())
	}

	// Who retried an uncertain one has looked: the next consumer is not to ask again. It stays uncertain all the same.
	commit(t, s, item("ameyo/6", "i1", "", "c1", 1))
	complete(t, s, lease(t, s, "ameyo/6")[0], func(r *statev1.LeaseResult) {
		ends(statev1.DeliveryState_DELIVERY_STATE_ASKED)(r)
		r.Attempt.Uncertain = true
	})
	asked := get(t, s, "ameyo/6")
	if _, err := s.Settle(ctx, asked, asked.Deliveries[0], &statev1.Action{What: "retry"}, 0); err != nil {
		t.Fatal(err)
	}
	retried := lease(t, s, "ameyo/6")[0]
	want(t, "uncertain, looked", fmt.Sprint(retried.GetDelivery().GetUncertain(), retried.GetLooked()), "true true")
	want(t, "uncertain for the gate", get(t, s, "ameyo/6").Deliveries[0].GetUncertain(), true)
	complete(t, s, retried, func(r *statev1.LeaseResult) {
		r.Result, r.Attempt.Uncertain = &statev1.LeaseResult_Retry{Retry: &statev1.RetryLater{}}, true
	})
	want(t, "uncertain anew, and nobody looked", lease(t, s, "ameyo/6")[0].GetLooked(), false)

	c := get(t, s, "ameyo/1")
	head, err := s.Settle(ctx, c, c.Deliveries[0], &statev1.Action{What: "discard", Reason: "r"}, 0)
	want(t, "discarded from the middle of the line", fmt.Sprint(head, err), "false <nil>")
	complete(t, s, work[0], done)
	want(t, "nothing left", numbers(lease(t, s, "ameyo/1")), "[]")
}

// A person's answer to an uncertain delivery and the CRM's late answer may cross: the late fact counts, and the line is
// not disturbed.
func testLateDoneAfterAsked(t *testing.T, s *Store) {
	commit(t, s, item("ameyo/1", "i1", "", "c1", 1, 2))
	w := lease(t, s, "ameyo/1")[0]
	complete(t, s, w, ends(statev1.DeliveryState_DELIVERY_STATE_ASKED))
	second := lease(t, s, "ameyo/1")
	want(t, "asked ones do not hold back", numbers(second), "[ameyo/1:2]")
	queue := Queue{Destination: dest, Partition: Partition("ameyo/1"), Kind: KindLetters}
	letters, _ := s.Seats(ctx, queue, Seat{}, 10)
	want(t, "listed", len(letters), 1)
	want(t, "late done", complete(t, s, w, done).Superseded, false)
	letters, _ = s.Seats(ctx, queue, Seat{}, 10)
	want(t, "not listed any more", len(letters), 0)
	want(t, "nothing is leased twice", numbers(lease(t, s, "ameyo/1")), "[]")
	want(t, "the other is still leased", get(t, s, "ameyo/1").Deliveries[1].GetState(), statev1.DeliveryState_DELIVERY_STATE_LEASED)
	want(t, "and completes", complete(t, s, second[0], done).Superseded, false)
	want(t, "nothing open", ttl(t, s, "ameyo/1") > 0, true)
}

// Rule 14: one clock that never goes back and never stands still.
func TestClockNeverGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wall := time.Now()
		c := newClock()
		c.wall = func() time.Time { return wall }
		base := time.Now().Add(5 * time.Second) // Redis' clock is a little ahead of this machine's
		at := func() time.Duration { return time.UnixMilli(c.Now()).Sub(base) }
		c.set(base)
		for _, step := range []struct {
			what  string
			redis time.Duration // Redis TIME at connecting again, from base
			wall  time.Duration // how far this machine's wall clock is off by then
			want  time.Duration // our clock then
			off   time.Duration
		}{
			{"Redis is right", 0, 0, 0, 0},
			{"Redis is behind by hours", -3 * time.Hour, 0, 0, -3 * time.Hour},
			{"both went back by hours", -3 * time.Hour, -3 * time.Hour, 0, -3 * time.Hour},
			{"Redis is ahead by hours, this machine is not", 3 * time.Hour, 0, 0, 3 * time.Hour},
			{"this machine is ahead by hours, Redis is not", 0, 3 * time.Hour, 0, 0},
			{"Redis is ahead by a moment", 30 * time.Second, 0, 30 * time.Second, 0},
			{"and back again", 0, 0, 30 * time.Second, 0},
			{"we were asleep", 3 * time.Hour, 3 * time.Hour, 3 * time.Hour, 0},
			{"and go on from there", 0, 0, 3 * time.Hour, -3 * time.Hour},
		} {
			wall = base.Add(step.wall)
			off := c.set(base.Add(step.redis))
			want(t, step.what, at(), step.want)
			want(t, step.what+": off", off, step.off)
			<-time.After(time.Second) // in synctest's time
			base = base.Add(time.Second)
			want(t, step.what+": a second later", at(), step.want)
		}
	})
}

// A jump of the clock loses nothing and leases nothing twice. What it does to times: after a jump ahead (a machine that was
// asleep) every timer and retry of that span is due at once, phone-1 statuses and gates whose window ended in it are over,
// and deliveries with a bounded age expire, visibly, for a person to retry; all as if the time had passed without a callback.
// A Redis that is behind changes nothing here: this process's clock goes on from where it is. Only a state process that
// starts then takes the new time; while it and older ones run side by side, what one puts off by a while is early or late
// for the other by their difference.
func testClockJumps(t *testing.T, s *Store) {
	retry := func(call string) {
		commit(t, s, item(call, "i1", "", "c1", 1))
		complete(t, s, lease(t, s, call)[0], again(10_000))
		want(t, call+" waits", numbers(lease(t, s, call)), "[]")
	}
	retry("ameyo/1")
	timer := item("ameyo/2", "i1", "", "c1")
	timer.SetTimers = []*statev1.Timer{{Name: "t", InMs: 600_000}}
	commit(t, s, timer)

	asleep := time.UnixMilli(s.Now()).Add(3 * time.Hour)
	s.clock.wall = func() time.Time { return asleep }
	s.clock.set(asleep)
	due, _, err := s.Due(ctx, dest, 10)
	want(t, "due after a jump ahead", fmt.Sprint(due, err), "[ameyo/1] <nil>")
	w := lease(t, s, "ameyo/1")
	want(t, "leased", numbers(w), "[ameyo/1:1]")
	want(t, "leased twice", numbers(lease(t, s, "ameyo/1")), "[]")
	timers, _, err := s.Lease(ctx, Rules, []string{"ameyo/2\tt"})
	want(t, "timers", fmt.Sprint(len(timers), err), "1 <nil>")

	s.clock.wall = time.Now
	before := s.Now()
	s.clock.set(time.Now())
	want(t, "Redis three hours behind is followed", s.Now() < before, false)
	want(t, "a result then", complete(t, s, w[0], again(30)).Superseded, false)
	redistest.Poll(t, 2*time.Second, "30 ms later it is due: the clock does not stand still", func() bool {
		return len(lease(t, s, "ameyo/1")) == 1
	})
}

// Rule 15: a hold counts its time, a result from before the last release does not hold again, and a person's hold is not
// weakened by a probing one.
func testHold(t *testing.T, s *Store) {
	if err := s.Hold(ctx, "never used", "r", -1, 0); err != nil {
		t.Fatal(err)
	}
	if holds, _ := s.Holds(ctx); !holds["never used"].Held() {
		t.Error("a destination that was never used cannot be held")
	}
	commit(t, s, item("ameyo/1", "i1", "", "c1", 1))
	hold := func() Hold {
		holds, err := s.Holds(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return holds[dest]
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Hold(ctx, dest, "key refused", 0, 1000))
	want(t, "held", hold().Held(), true)
	s.clock.offset.Add(5000)
	must(s.Release(ctx, dest, 0))
	h := hold()
	want(t, "released", h.Held(), false)
	want(t, "time is counted", h.TotalMS >= 5000 && h.TotalMS < 60_000, true)
	must(s.Hold(ctx, dest, "late", 0, 1000))
	want(t, "a result from before the release", hold().Held(), false)
	must(s.Hold(ctx, dest, "maintenance", -1, 0))
	must(s.Hold(ctx, dest, "key refused", 1, 1000))
	want(t, "a person's hold stays", fmt.Sprint(hold().Reason, hold().ProbeMS), "maintenance0")
}

// Rule 17 and 18: one bad item never fails its batch; a lost script cache is repaired item by item.
func testOneBadItem(t *testing.T, s *Store) {
	if err := s.client.Set(ctx, keyCall("ameyo/bad"), "not a hash", 0).Err(); err != nil {
		t.Fatal(err)
	}
	unwritable := item("ameyo/4", "i4", "", "c4", 1)
	unwritable.Deliveries[0].Endpoint = "\xff"
	answers, places, errs := s.Commit(ctx, []*statev1.CommitItem{
		item("ameyo/1", "i1", "", "c1", 1), item("ameyo/bad", "i2", "", "c2", 1), unwritable, item("ameyo/3", "i3", "", "c3", 1)}, nil)
	want(t, "bad ones", fmt.Sprint(errs[1] != nil, errs[2] != nil), "true true")
	want(t, "others", fmt.Sprint(errs[0], errs[3], statuses([]*statev1.CommitAnswer{answers[0], answers[3]})), "<nil> <nil> [OK OK]")
	want(t, "places", places, "[[due] [] [] [due]]")
	_, errs = s.Load(ctx, []string{"ameyo/1", "ameyo/bad", "ameyo/3"})
	want(t, "load", fmt.Sprint(errs[0] == nil, errs[1] == nil, errs[2] == nil), "true false true")

	w := lease(t, s, "ameyo/1")[0]
	refs, errs := s.Giveback(ctx, []Lost{{Ref{dest, "ameyo/bad"}, "token"}, {Ref{dest, "ameyo/1"}, w.GetToken()}}, true)
	want(t, "giveback", fmt.Sprint(refs, errs[0] == nil, errs[1] == nil), "[{topsii ameyo/1}] false true")
}

func testLostScripts(t *testing.T, s *Store) {
	commit(t, s, item("ameyo/1", "i1", "", "c1", 1))
	everywhere(t, s, func(ctx context.Context, c *redis.Client) error { return c.ScriptFlush(ctx).Err() })
	want(t, "after a flush", statuses(commit(t, s, item("ameyo/1", "i2", "c1", "c2"), item("ameyo/1", "i3", "c2", "c3"))), "[OK OK]")
}

// An input for which the short way is not enough is committed after the rest of its message: what named it as predecessor
// conflicts, changes nothing, and goes through when it is sent again.
func testShortWayIsNotEnough(t *testing.T, s *Store) {
	commit(t, s, item("ameyo/1", "i0", "", "")) // a journal, no version
	second := item("ameyo/1", "i2", "c1", "c2", 2)
	want(t, "first try", statuses(commit(t, s, item("ameyo/1", "i1", "", "c1", 1), second, item("ameyo/2", "i1", "", "c1", 1))), "[OK CONFLICT OK]")
	want(t, "again", statuses(commit(t, s, item("ameyo/1", "i1", "", "c1", 1), second)), "[EARLIER OK]")
	c, err := s.Call(ctx, "ameyo/1")
	if err != nil {
		t.Fatal(err)
	}
	want(t, "stored", fmt.Sprintf("%s: %d deliveries, %d facts", c.Version, len(c.Deliveries), len(c.Journal)), "c2: 2 deliveries, 3 facts")
}

// Rule 18: another format or number of partitions refuses to start.
func testFormat(t *testing.T, s *Store) {
	s.client.HSet(ctx, keyMeta, "partitions", "16")
	if err := s.Connect(ctx); err == nil || !strings.Contains(err.Error(), "16 partitions") {
		t.Errorf("got %v", err)
	}
	fresh := &Store{client: s.client, cfg: s.cfg, clock: newClock(), destinations: map[string]bool{}}
	if err := fresh.Connect(ctx); err == nil {
		t.Error("connected")
	}
	if _, _, errs := fresh.Commit(ctx, []*statev1.CommitItem{item("ameyo/1", "i1", "", "c1")}, nil); errs[0] == nil {
		t.Error("it writes into what has another format")
	}
}

// Rule 19: ids, versions and payloads are opaque, whatever bytes they hold.
func testOpaque(t *testing.T, s *Store) {
	odd := item("ameyo/{1} \x00:\xff", "i:1 \n", "", "1e3", 1)
	odd.Record = []byte("\x00\xff\t ")
	odd.Deliveries[0].Payload = []byte("\x00\xff\r\n")
	commit(t, s, odd)
	want(t, "status", statuses(commit(t, s, item(odd.GetCall(), "i2", "1000", "c2"))), "[CONFLICT]")
	states, errs := s.Load(ctx, []string{odd.GetCall()})
	want(t, "record", fmt.Sprintf("%q %v", states[0].GetRecord(), errs[0]), `"\x00\xff\t " <nil>`)
	w := lease(t, s, odd.GetCall())[0]
	want(t, "payload", fmt.Sprintf("%q", w.GetDelivery().GetPayload()), `"\x00\xff\r\n"`)
	complete(t, s, w, done)
}

// What is written of a state letter reads back as the same state.
func TestLetters(t *testing.T) {
	for l, state := range states {
		want(t, state.String(), letter(state), l)
	}
	want(t, "all states", len(states), len(statev1.DeliveryState_name)-1)
}
