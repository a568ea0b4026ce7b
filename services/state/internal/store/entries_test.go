package store

import (
	"strings"
	"testing"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
)

// leaseEntry takes an entry of rules.
func leaseEntry(t *testing.T, s *Store, call, name string) *statev1.LeaseWork {
	t.Helper()
	work, _, err := s.Lease(ctx, Rules, []string{call + "\t" + name})
	if err != nil {
		t.Fatal(err)
	}
	if len(work) == 0 {
		return nil
	}
	return work[0]
}

// A timer may be set again by the input that it is.
func testTimerSetAgain(t *testing.T, s *Store) {
	it := item("ameyo/1", "i1", "", "c1")
	it.SetTimers = []*statev1.Timer{{Name: "poll"}}
	commit(t, s, it)
	for i, id := range []string{"c2", "c3"} {
		s.clock.offset.Add(1000)
		w := leaseEntry(t, s, "ameyo/1", "poll")
		if w == nil {
			t.Fatalf("round %d: the timer is gone", i)
		}
		again := item("ameyo/1", w.GetEntry().GetTimerId()+":poll", w.GetEntry().GetTimerId(), id)
		again.Entry, again.SetTimers = w.GetEntry(), []*statev1.Timer{{Name: "poll", InMs: 500}}
		want(t, "set again", statuses(commit(t, s, again)), "[OK]")
		want(t, "the call waits for it", ttl(t, s, "ameyo/1") < 0, true)
	}
	s.clock.offset.Add(1000)
	w := leaseEntry(t, s, "ameyo/1", "poll")
	last := item("ameyo/1", "c3:poll", "c3", "c4")
	last.Entry, last.CancelTimers = w.GetEntry(), []string{"poll"}
	want(t, "cancelled by itself", statuses(commit(t, s, last)), "[OK]")
	want(t, "nothing open", ttl(t, s, "ameyo/1") > 0, true)
}

// A message lies with its sender until router has committed it at its call (rule 12).
func testMessages(t *testing.T, s *Store) {
	it := item("kommo/1/a", "i1", "", "c1")
	it.Messages = []*statev1.Message{{Id: "kommo/1/a>1", To: "kommo-number/1/5", Body: []byte("\x00x")}, {Id: "kommo/1/a>2", To: "kommo-number/1/5"}}
	commit(t, s, it)
	want(t, "sent again", statuses(commit(t, s, it)), "[EARLIER]")
	due, _, err := s.Due(ctx, Rules, 10)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "due at once", len(due), 2)
	first := leaseEntry(t, s, "kommo/1/a", ">kommo/1/a>1")
	m := first.GetEntry().GetMessage()
	want(t, "its id", m.GetId(), "kommo/1/a>1")
	want(t, "its call", m.GetTo(), "kommo-number/1/5")
	want(t, "its body", string(m.GetBody()), "\x00x")

	// Router stops between the two commits: the message comes again, and its input id is known at its call.
	target := item("kommo-number/1/5", m.GetId(), "", "n1")
	want(t, "at its call", statuses(commit(t, s, target)), "[OK]")
	if _, errs := s.Giveback(ctx, []Lost{{Ref{Rules, "kommo/1/a\t>kommo/1/a>1"}, first.GetToken()}}, true); errs[0] != nil {
		t.Fatal(errs)
	}
	first = leaseEntry(t, s, "kommo/1/a", ">kommo/1/a>1")
	want(t, "with what it brings", string(first.GetEntry().GetMessage().GetBody()), "\x00x")
	want(t, "a second time", statuses(commit(t, s, target)), "[EARLIER]")

	for _, w := range []*statev1.LeaseWork{first, leaseEntry(t, s, "kommo/1/a", ">kommo/1/a>2")} {
		want(t, "the call waits for it", ttl(t, s, "kommo/1/a") < 0, true)
		done := item("kommo/1/a", w.GetEntry().GetTimerId()+":"+w.GetEntry().GetTimer(), "c1", "")
		done.Entry = w.GetEntry()
		want(t, "completed", statuses(commit(t, s, done)), "[OK]")
		done.InputId += "again"
		want(t, "once", statuses(commit(t, s, done)), "[STALE]")
	}
	want(t, "nothing open", ttl(t, s, "kommo/1/a") > 0, true)
	left, err := s.client.HKeys(ctx, keyCall("kommo/1/a")).Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range left {
		if strings.HasPrefix(field, "m:") || strings.HasPrefix(field, "e:") || strings.HasPrefix(field, "t:") {
			t.Errorf("%s is left", field)
		}
	}
}

// An entry that comes back knows since when, until it is processed or there is a new one.
func testEntriesWait(t *testing.T, s *Store) {
	set := func(input, version, commitID string, entry *statev1.Entry) {
		t.Helper()
		it := item("kommo/1/a", input, version, commitID)
		it.Entry, it.SetTimers = entry, []*statev1.Timer{{Name: "wait"}}
		want(t, "set", statuses(commit(t, s, it)), "[OK]")
	}
	back := func(w *statev1.LeaseWork, wait int64) *statev1.Entry {
		t.Helper()
		if err := s.ReturnTimer(ctx, &statev1.LeaseResult{Call: "kommo/1/a", Token: w.GetToken(), Timer: w.GetEntry().GetTimer()}, wait); err != nil {
			t.Fatal(err)
		}
		s.clock.offset.Add(wait)
		return leaseEntry(t, s, "kommo/1/a", w.GetEntry().GetTimer()).GetEntry()
	}
	set("i1", "", "c1", nil)
	w := leaseEntry(t, s, "kommo/1/a", "wait")
	want(t, "the first time", w.GetEntry().GetWaitingMs(), int64(0))
	for n := range int64(3) {
		e := back(w, 60_000)
		if waited := e.GetWaitingMs(); waited < (n+1)*60_000 || waited > (n+1)*60_000+30_000 {
			t.Errorf("after %d minutes: %d ms", n+1, waited)
		}
		w.Token, w.Entry = e.GetToken(), e
	}
	set("i2", "c1", "c2", w.GetEntry())
	want(t, "set again", leaseEntry(t, s, "kommo/1/a", "wait").GetEntry().GetWaitingMs(), int64(0))
}

// The result of a delivery is an input where the rules asked for it, and a new one after a person retried it.
func testResults(t *testing.T, s *Store) {
	it := item("kommo/1/a", "i1", "", "c1")
	it.Deliveries = []*statev1.Delivery{{Number: 1, Destination: "kommo/1", ResultWanted: true}, {Number: 2, Destination: "kommo/1"}}
	commit(t, s, it)
	finish := func(delivery uint32, result *statev1.LeaseResult) Verdict {
		work, _, err := s.Lease(ctx, "kommo/1", []string{"kommo/1/a"})
		if err != nil || len(work) != 1 {
			t.Fatalf("%v %v", work, err)
		}
		result.Call, result.Destination, result.Delivery, result.Token = "kommo/1/a", "kommo/1", delivery, work[0].GetToken()
		verdicts, errs := s.Complete(ctx, []*statev1.LeaseResult{result})
		if errs[0] != nil {
			t.Fatal(errs[0])
		}
		return verdicts[0]
	}
	dead := &statev1.LeaseResult{Result: &statev1.LeaseResult_End{End: &statev1.End{State: statev1.DeliveryState_DELIVERY_STATE_DEAD, Reason: "refused"}}}
	done := func() *statev1.LeaseResult {
		return &statev1.LeaseResult{Result: &statev1.LeaseResult_Done{Done: &statev1.Done{Reply: []byte("{}")}}}
	}
	want(t, "a retry is no result", finish(1, &statev1.LeaseResult{Result: &statev1.LeaseResult_Retry{Retry: &statev1.RetryLater{}}}).Result, false)
	want(t, "dead is one", finish(1, dead).Result, true)
	old := leaseEntry(t, s, "kommo/1/a", "=1")
	want(t, "of the delivery", old.GetEntry().GetResult().GetDelivery(), uint32(1))
	want(t, "nobody asked for the other's", finish(2, done()).Result, false)

	settle := func(delivery int, what string) {
		c, err := s.Call(ctx, "kommo/1/a")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Settle(ctx, c, c.Deliveries[delivery-1], &statev1.Action{What: what, Delivery: uint32(delivery), Reason: "why"}, 0); err != nil {
			t.Fatal(err)
		}
	}
	settle(1, "retry")
	want(t, "after a retry there is another", finish(1, done()).Result, true)
	c, err := s.Call(ctx, "kommo/1/a")
	if err != nil {
		t.Fatal(err)
	}
	in := item("kommo/1/a", "r1", c.Version, "c2")
	in.Entry = old.GetEntry()
	want(t, "which outdates the first", statuses(commit(t, s, in)), "[STALE]")
	now := leaseEntry(t, s, "kommo/1/a", "=1")
	want(t, "its reply", string(now.GetEntry().GetResult().GetReply()), "{}")
	in.Entry = now.GetEntry()
	want(t, "decided", statuses(commit(t, s, in)), "[OK]")
	want(t, "nothing open", ttl(t, s, "kommo/1/a") > 0, true)

	third := item("kommo/1/a", "i3", "c2", "c3")
	third.Deliveries = []*statev1.Delivery{{Number: 3, Destination: "kommo/1", ResultWanted: true}}
	commit(t, s, third)
	settle(3, "discard")
	if leaseEntry(t, s, "kommo/1/a", "=3") == nil {
		t.Error("discarding is no result")
	}
	want(t, "the call waits for its input", ttl(t, s, "kommo/1/a") < 0, true)
}

// What its rules ask for is longer than any call is kept, for every script that ends the last open thing.
func testRetention(t *testing.T, s *Store) {
	const long = 100 * time.Hour
	it := item("kommo/1/a", "i1", "", "c1")
	it.RetentionMs = long.Milliseconds()
	it.Deliveries = []*statev1.Delivery{{Number: 1, Destination: "kommo/1"}, {Number: 2, Destination: "kommo/1"}}
	commit(t, s, it)
	pinned := func(what string) { t.Helper(); want(t, what, ttl(t, s, "kommo/1/a") > long-time.Minute, true) }
	for i, result := range []*statev1.LeaseResult{{Result: &statev1.LeaseResult_Done{Done: &statev1.Done{}}},
		{Result: &statev1.LeaseResult_End{End: &statev1.End{State: statev1.DeliveryState_DELIVERY_STATE_DEAD}}}} {
		work, _, err := s.Lease(ctx, "kommo/1", []string{"kommo/1/a"})
		if err != nil || len(work) != 1 {
			t.Fatalf("%v %v", work, err)
		}
		result.Call, result.Destination, result.Delivery, result.Token = "kommo/1/a", "kommo/1", uint32(i+1), work[0].GetToken()
		if _, errs := s.Complete(ctx, []*statev1.LeaseResult{result}); errs[0] != nil {
			t.Fatal(errs[0])
		}
	}
	want(t, "what is dead waits", ttl(t, s, "kommo/1/a") < 0, true)
	c := mustCall(t, s, "kommo/1/a")
	if _, err := s.Settle(ctx, c, c.Deliveries[1], &statev1.Action{What: "discard", Reason: "test"}, 0); err != nil {
		t.Fatal(err)
	}
	pinned("after settle")
	commit(t, s, item("kommo/1/a", "i2", mustCall(t, s, "kommo/1/a").Version, ""))
	pinned("after a commit that asks for nothing")

	it = item("kommo/1/b", "i1", "", "c1")
	it.RetentionMs, it.Deliveries = long.Milliseconds(), []*statev1.Delivery{{Number: 1, Destination: "kommo/1"}}
	commit(t, s, it)
	work, _, err := s.Lease(ctx, "kommo/1", []string{"kommo/1/b"})
	if err != nil || len(work) != 1 {
		t.Fatalf("%v %v", work, err)
	}
	_, errs := s.Complete(ctx, []*statev1.LeaseResult{{Call: "kommo/1/b", Destination: "kommo/1", Delivery: 1, Token: work[0].GetToken(),
		Result: &statev1.LeaseResult_Done{Done: &statev1.Done{}}}})
	if errs[0] != nil {
		t.Fatal(errs[0])
	}
	want(t, "after complete", ttl(t, s, "kommo/1/b") > long-time.Minute, true)
	commit(t, s, item("ameyo/1", "i1", "", "c1"))
	want(t, "any other call", ttl(t, s, "ameyo/1") < long, true)
}

func mustCall(t *testing.T, s *Store, key string) *Call {
	t.Helper()
	c, err := s.Call(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What is said of work that cannot be read goes to the log: it does not show the number that some calls are named by.
func TestUnreadableWork(t *testing.T) {
	for name, w := range map[string]*statev1.LeaseWork{
		"delivery": {Call: "kommo-number/9001/3055550142"},
		"entry":    {Call: "kommo-number/9001/3055550142", Entry: &statev1.Entry{Timer: messageName + "m1"}},
	} {
		reply := []any{"1", "\xff", "0", "", "0", "", ""}
		if w.Entry != nil {
			reply = []any{"id", "0", "\xff", ""}
		}
		if err := readWork(reply, w, 0); err == nil || !strings.Contains(err.Error(), "******0142") || strings.Contains(err.Error(), "3055550142") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
