package dispatch

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/redistest"
	"callrelay/services/state/internal/store"
)

const dest = "topsii"

var ctx = context.Background()

func open(t *testing.T, url string) *store.Store {
	t.Helper()
	s, err := store.Open(store.Config{URL: url, Retention: time.Hour, JournalLimit: 4096})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.Connect(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

func run(t *testing.T, s *store.Store, leaseTime time.Duration) *Dispatcher {
	t.Helper()
	d := New(s, slog.New(slog.NewTextHandler(io.Discard, nil)), leaseTime)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { d.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	redistest.Poll(t, 5*time.Second, "the holds are known", d.holdsKnown.Load)
	return d
}

// queue commits one delivery for each call.
func queue(t *testing.T, s *store.Store, calls ...string) []store.Ref {
	t.Helper()
	var items []*statev1.CommitItem
	for _, call := range calls {
		items = append(items, &statev1.CommitItem{Call: call, InputId: "i-" + call, CommitId: "c-" + call,
			Deliveries: []*statev1.Delivery{{Number: 1, Destination: dest, Payload: []byte("p")}}})
	}
	_, _, errs := s.Commit(ctx, items, nil)
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	var due []store.Ref
	for _, call := range calls {
		due = append(due, store.Ref{Destination: dest, Member: call})
	}
	return due
}

func next(t *testing.T, c *Consumer, limit time.Duration) []*statev1.LeaseWork {
	t.Helper()
	if limit == 0 { // what is there already
		select {
		case work := <-c.Work():
			return work
		default:
			return nil
		}
	}
	select {
	case work := <-c.Work():
		return work
	case <-time.After(limit):
		return nil
	}
}

func result(w *statev1.LeaseWork) *statev1.LeaseResult {
	return &statev1.LeaseResult{Call: w.GetCall(), Token: w.GetToken(), Delivery: 1, Destination: dest,
		Attempt: &statev1.Attempt{Delivery: 1, HttpCode: 200}, Result: &statev1.LeaseResult_Done{Done: &statev1.Done{}}}
}

func finish(t *testing.T, s *store.Store, d *Dispatcher, r *statev1.LeaseResult) {
	t.Helper()
	v, errs := s.Complete(ctx, []*statev1.LeaseResult{r})
	if errs[0] != nil || v[0].Superseded {
		t.Fatalf("%v %v", v, errs)
	}
	d.Taken(ctx, r)
}

// Why a destination is held may be what a person typed: the log shows no number of it.
func TestHoldReasonInLog(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	var log strings.Builder
	d := New(s, slog.New(slog.NewTextHandler(&log, nil)), time.Minute)
	if err := s.Hold(ctx, dest, "ask 09012345678", -1, 0); err != nil {
		t.Fatal(err)
	}
	d.Refresh(ctx)
	if said := log.String(); !strings.Contains(said, "*******5678") || strings.Contains(said, "09012345678") {
		t.Errorf("the log says %s", said)
	}
}

// Never more than the credit, and at once when something becomes due.
func TestCredit(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	d := run(t, s, time.Minute)
	c := d.Join(dest)
	d.Due(queue(t, s, "ameyo/1", "ameyo/2", "ameyo/3"))
	c.Grant(2)
	got := 0
	for got < 2 {
		work := next(t, c, 5*time.Second)
		if work == nil {
			t.Fatal("nothing came")
		}
		got += len(work)
	}
	if work := next(t, c, 1500*time.Millisecond); got != 2 || work != nil {
		t.Errorf("got %d and then %v with a credit of 2", got, work)
	}
	c.Grant(1)
	if work := next(t, c, 5*time.Second); len(work) != 1 {
		t.Errorf("after one more: %v", work)
	}
}

// Rule 10: a lost wake-up is repaired by the sweep; what another process commits wakes without it.
func TestLostWakeUp(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	d := run(t, s, time.Minute)
	c := d.Join(dest)
	c.Grant(10)
	queue(t, s, "ameyo/1") // nobody is told
	if work := next(t, c, 5*time.Second); len(work) != 1 {
		t.Errorf("got %v", work)
	}
}

func TestWakeAcrossProcesses(t *testing.T) {
	r := redistest.Start(t)
	a, b := open(t, r.URL()), open(t, r.URL())
	da, db := run(t, a, time.Minute), run(t, b, time.Minute)
	redistest.Poll(t, 5*time.Second, "they know of each other", func() bool { return !da.alone.Load() && !db.alone.Load() })
	c := db.Join(dest)
	c.Grant(10)
	quick := 0
	for i := range 5 {
		began := time.Now()
		da.Due(queue(t, a, fmt.Sprint("ameyo/", i)))
		if work := next(t, c, 5*time.Second); len(work) != 1 {
			t.Fatalf("got %v", work)
		}
		if time.Since(began) < sweepEvery/4 {
			quick++
		}
	}
	if quick < 3 { // a sweep would find them after half a second on average
		t.Errorf("only %d of 5 came before a sweep could have found them", quick)
	}
}

// Rule 7: a lease whose consumer is silent for LEASE_TIME of this process's time is given back, uncertain; while Redis
// does not answer, no time passes.
func TestLeaseTime(t *testing.T) {
	r := redistest.Start(t)
	s := open(t, r.URL())
	const leaseTime = 3 * time.Second
	d := run(t, s, leaseTime)
	c := d.Join(dest)
	c.Grant(1)
	d.Due(queue(t, s, "ameyo/1"))
	if work := next(t, c, 5*time.Second); len(work) != 1 {
		t.Fatalf("got %v", work)
	}
	r.Stop()
	paused := time.Now()
	c.Grant(1)
	if work := next(t, c, leaseTime+2*time.Second); work != nil {
		t.Fatalf("got %v while Redis stood still", work)
	}
	r.Continue()
	back := time.Now()
	work := next(t, c, 20*time.Second)
	if len(work) != 1 || !work[0].GetDelivery().GetUncertain() {
		t.Fatalf("got %v, want it back and uncertain", work)
	}
	if took := time.Since(back); took < leaseTime-time.Second {
		t.Errorf("given back %s after Redis came back (paused for %s): the pause was counted", took, back.Sub(paused))
	}
}

// Rule 15: under a hold nothing is leased; a probing hold tries one delivery, whose success releases the destination.
func TestHoldAndProbe(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	d := run(t, s, time.Minute)
	c := d.Join(dest)
	c.Grant(10)
	d.Due(queue(t, s, "ameyo/1"))
	work := next(t, c, 5*time.Second)
	refused := result(work[0])
	refused.Result = &statev1.LeaseResult_Hold{Hold: &statev1.HoldDestination{Reason: "key refused", Epoch: work[0].GetHoldEpoch(), ProbeInMs: 1500}}
	finish(t, s, d, refused)
	d.Due(queue(t, s, "ameyo/2", "ameyo/3"))
	if work := next(t, c, time.Second); work != nil {
		t.Fatalf("got %v under a hold", work)
	}
	probe := next(t, c, 5*time.Second)
	if len(probe) != 1 {
		t.Fatalf("probes: %v", probe)
	}
	if probe[0].GetDelivery().GetAttempts() != 0 {
		t.Errorf("%d attempts are counted; the destination was at fault", probe[0].GetDelivery().GetAttempts())
	}
	if work := next(t, c, time.Second); work != nil {
		t.Fatalf("got %v beside the probe", work)
	}
	finish(t, s, d, result(probe[0]))
	for got := 0; got < 2; {
		work := next(t, c, 5*time.Second)
		if work == nil {
			t.Fatal("not released")
		}
		for _, w := range work {
			if w.GetAgeMs() > 1000 {
				t.Errorf("age %d ms counts the time under the hold", w.GetAgeMs())
			}
			if w.GetWallAgeMs() < 1000 {
				t.Errorf("wall age %d ms does not count the time under the hold", w.GetWallAgeMs())
			}
		}
		got += len(work)
	}
}

// What turns out to be too late when it probes a held destination says nothing of it: the next one probes at once, however many there are.
func TestProbeThatWasTooLate(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	d := run(t, s, time.Minute)
	const interval = 4 * time.Second
	if err := s.Hold(ctx, dest, "key refused", store.AnyEpoch, interval.Milliseconds()); err != nil {
		t.Fatal(err)
	}
	d.Refresh(ctx)
	c := d.Join(dest)
	c.Grant(10)
	d.Due(queue(t, s, "kommo/1", "kommo/2", "kommo/3", "kommo/4"))
	probe := next(t, c, 3*interval)
	for late := range 2 {
		if len(probe) != 1 {
			t.Fatalf("probes: %v", probe)
		}
		r := result(probe[0])
		r.Attempt, r.Result = nil, &statev1.LeaseResult_End{End: &statev1.End{State: statev1.DeliveryState_DELIVERY_STATE_DISCARDED, Reason: "too late"}}
		finish(t, s, d, r)
		if probe = next(t, c, interval/2); len(probe) != 1 {
			t.Fatalf("after %d that were too late: %v", late+1, probe)
		}
	}
	if held, err := s.Holds(ctx); err != nil || !held[dest].Held() {
		t.Errorf("released though nothing was sent: %v %v", held, err)
	}
	finish(t, s, d, result(probe[0]))
	if work := next(t, c, interval/2); len(work) != 1 {
		t.Errorf("not released: %v", work)
	}
}

// What was leased for a consumer that left before it was sent goes back at once and is not uncertain.
func TestUnsentWorkGoesBack(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	d := run(t, s, time.Minute)
	gone := d.Join(dest)
	gone.Grant(5)
	d.Due(queue(t, s, "ameyo/1"))
	redistest.Poll(t, 5*time.Second, "it is leased", func() bool { return len(gone.work) == 1 })
	gone.Leave(ctx)
	c := d.Join(dest)
	c.Grant(5)
	work := next(t, c, 5*time.Second)
	if len(work) != 1 || work[0].GetDelivery().GetUncertain() || work[0].GetDelivery().GetAttempts() != 0 {
		t.Errorf("got %v", work)
	}
}

func commitItem(call, input, expected string) *statev1.CommitItem {
	return &statev1.CommitItem{Call: call, InputId: input, ExpectedVersion: expected, CommitId: "c-" + input,
		Deliveries: []*statev1.Delivery{{Number: 1, Destination: dest, Endpoint: "createCallEnd", Payload: []byte("p"), RequestId: input, Gate: "g"}}}
}

// What is committed while a consumer waits is leased by the same step; what does not happen costs no credit; a held
// destination gets nothing.
func TestCommitLeasesAtOnce(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	d := run(t, s, time.Minute)
	c := d.Join(dest)
	c.Grant(2)
	commit := func(items ...*statev1.CommitItem) (out []string) {
		t.Helper()
		answers, errs := d.Commit(ctx, items)
		for i, a := range answers {
			if errs[i] != nil {
				t.Fatal(errs[i])
			}
			out = append(out, a.GetStatus().String())
		}
		return out
	}
	commit(commitItem("ameyo/1", "i1", ""))
	work := next(t, c, 0)
	if len(work) != 1 {
		t.Fatalf("got %v right after the commit", work)
	}
	if leases, err := s.Leases(ctx, dest); err != nil || len(leases) != 1 || leases[0].Token != work[0].GetToken() {
		t.Errorf("the lease is not watched: %v %v", leases, err)
	}
	stored, err := s.Call(ctx, "ameyo/1")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := stored.Deliveries[0], work[0].GetDelivery(); got.GetState() != want.GetState() || got.GetEndpoint() != want.GetEndpoint() ||
		string(got.GetPayload()) != string(want.GetPayload()) || got.GetRequestId() != want.GetRequestId() || got.GetNumber() != want.GetNumber() {
		t.Errorf("leased\n%v\nstored\n%v", want, got)
	}
	if got := commit(commitItem("ameyo/1", "i1", ""), commitItem("ameyo/1", "i2", "other")); fmt.Sprint(got) != "[COMMIT_STATUS_EARLIER COMMIT_STATUS_CONFLICT]" {
		t.Errorf("got %v", got)
	}
	if work := next(t, c, 0); work != nil {
		t.Errorf("got %v for commits that did not happen", work)
	}
	commit(commitItem("ameyo/2", "i1", "")) // takes the credit that came back
	second := next(t, c, 0)
	if len(second) != 1 {
		t.Fatalf("the credit of commits that did not happen is lost: %v", second)
	}
	commit(commitItem("ameyo/3", "i1", ""))
	if work := next(t, c, 0); work != nil {
		t.Errorf("got %v without credit", work)
	}
	finish(t, s, d, result(work[0]))
	c.Grant(1)
	if work := next(t, c, 5*time.Second); len(work) != 1 || work[0].GetCall() != "ameyo/3" {
		t.Errorf("then %v", work)
	}

	if err := s.Hold(ctx, dest, "maintenance", -1, 0); err != nil {
		t.Fatal(err)
	}
	d.Refresh(ctx)
	c.Grant(1)
	commit(commitItem("ameyo/4", "i1", ""))
	if work := next(t, c, 1500*time.Millisecond); work != nil {
		t.Errorf("got %v under a hold", work)
	}
}

// What is about to be committed gets only the credit that what is older leaves.
func TestReserve(t *testing.T) {
	for _, of := range []struct {
		credits []int
		known   int
		want    bool
	}{
		{nil, 0, false}, {[]int{0}, 0, false}, {[]int{1}, 0, true},
		{[]int{1}, 2, false}, {[]int{2}, 2, false}, {[]int{3}, 2, true},
		{[]int{1, 1}, 2, false}, {[]int{2, 1}, 2, true}, {[]int{0, 3}, 2, true},
	} {
		d := New(nil, slog.New(slog.DiscardHandler), time.Minute)
		d.holdsKnown.Store(true)
		l := d.line(dest)
		l.known = make([]string, of.known)
		for _, credit := range of.credits {
			d.Join(dest).credit = credit
		}
		if c := l.reserve(); (c != nil) != of.want {
			t.Errorf("%v credit, %d are older: got %v", of.credits, of.known, c != nil)
		}
	}
}

// Until the holds are known nothing is leased by its commit either.
func TestCommitBeforeTheHoldsAreKnown(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	if err := s.Hold(ctx, dest, "maintenance", -1, 0); err != nil {
		t.Fatal(err)
	}
	d := New(s, slog.New(slog.DiscardHandler), time.Minute)
	c := d.Join(dest)
	c.Grant(1)
	if _, errs := d.Commit(ctx, []*statev1.CommitItem{{Call: "ameyo/1", InputId: "i", CommitId: "c",
		Deliveries: []*statev1.Delivery{{Number: 1, Destination: dest, Payload: []byte("p")}}}}); errs[0] != nil {
		t.Fatal(errs[0])
	}
	if work := next(t, c, 0); len(work) != 0 {
		t.Errorf("leased to %v although it is held", work)
	}
}

// Rule 7: only time in which this process looked counts, on one and the same Redis. Each step says how long ago the sweep
// before was; a stopped process sees no more than that a long time has passed.
func TestLeaseTimeCountsWhatWasWatched(t *testing.T) {
	r := redistest.Start(t)
	s := open(t, r.URL())
	d := New(s, slog.New(slog.DiscardHandler), 5*time.Second)
	d.sweep(ctx)
	queue(t, s, "ameyo/1")
	if work, _, err := s.Lease(ctx, dest, []string{"ameyo/1"}); err != nil || len(work) != 1 {
		t.Fatal(work, err)
	}
	leased := func() bool {
		t.Helper()
		leases, err := s.Leases(ctx, dest)
		if err != nil {
			t.Fatal(err)
		}
		return len(leases) == 1
	}
	d.sweep(ctx) // sees it
	for _, step := range []struct {
		what  string
		ago   time.Duration
		redis func()
		want  bool
	}{
		{"a pause of an hour counts as one second", time.Hour, nil, true},
		{"two", time.Second, nil, true},
		{"a Redis that was restarted in between begins anew", time.Second, func() { r.Kill(); r.Up(t) }, true},
		{"seen again", time.Second, nil, true},
		{"one second since", time.Second, nil, true},
		{"two seconds", time.Second, nil, true},
		{"three", time.Second, nil, true},
		{"four", time.Second, nil, true},
		{"five", time.Second, nil, false},
	} {
		if step.redis != nil {
			step.redis()
			redistest.Poll(t, 5*time.Second, "connected again", func() bool { return s.Ping(ctx) == nil })
		}
		if !d.swept.IsZero() {
			d.swept = time.Now().Add(-step.ago)
		}
		d.sweep(ctx)
		if leased() != step.want {
			t.Errorf("%s: leased is %v", step.what, !step.want)
		}
	}
}

// A lease whose answer was lost goes back as soon as Redis answers again, long before LEASE_TIME, and is not uncertain:
// nobody ever saw it.
func TestLeaseThatNobodySaw(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	d := run(t, s, time.Minute)
	queue(t, s, "ameyo/1")
	work, _, err := s.Lease(ctx, dest, []string{"ameyo/1"})
	if err != nil || len(work) != 1 {
		t.Fatal(work, err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	_, unsent, err := s.Lease(cancelled, dest, []string{"ameyo/1"}) // what a lease without an answer tells
	if err == nil || len(unsent) != 1 {
		t.Fatal(unsent, err)
	}
	unsent[0].Token = work[0].GetToken() // it stood all the same
	d.mu.Lock()
	d.unsent = unsent
	d.mu.Unlock()
	c := d.Join(dest)
	c.Grant(1)
	back := next(t, c, 5*time.Second)
	if len(back) != 1 || back[0].GetDelivery().GetUncertain() || back[0].GetDelivery().GetAttempts() != 0 {
		t.Errorf("got %v", back)
	}
}

// A commit that Redis did not answer, and that it makes only after everybody has given it up, leases its delivery for nobody:
// that is no attempt, and the delivery does not wait for LEASE_TIME.
func TestLeaseMadeAfterItWasGivenUp(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	d := New(s, slog.New(slog.NewTextHandler(io.Discard, nil)), time.Hour)
	late := store.Lost{Ref: store.Ref{Destination: dest, Member: "ameyo/1"}, Token: "late"}
	d.giveUnsentBack(ctx, []store.Lost{late})
	if _, places, errs := s.Commit(ctx, []*statev1.CommitItem{commitItem("ameyo/1", "i1", "")}, [][]string{{"late"}}); errs[0] != nil || places[0][0] != store.Leased {
		t.Fatal(places, errs)
	}
	d.sweep(ctx)
	work, _, err := s.Lease(ctx, dest, []string{"ameyo/1"})
	if err != nil || len(work) != 1 || work[0].GetDelivery().GetUncertain() || work[0].GetDelivery().GetAttempts() != 0 {
		t.Errorf("%v %v, want the delivery as if nothing had happened", work, err)
	}
}
