package router

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	errorsv1 "callrelay/gen/callrelay/errors/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/config"
	"callrelay/platform/errkind"
	"callrelay/services/router/kommo"
)

// connected makes the engine know account 9001, and 9002 whose settings are wrong.
func connected(t *testing.T, e *engine) {
	t.Helper()
	cfg, err := config.LoadFrom[Config](nil)
	if err != nil {
		t.Fatal(err)
	}
	e.kommo.config = cfg.Kommo
	rules, err := cfg.Kommo.account(9001, nil)
	_, problem := cfg.Kommo.account(9002, []byte(`{"pipeline":1}`))
	if err != nil || problem == nil || !strings.Contains(problem.Error(), "pipeline") {
		t.Fatal(err, problem)
	}
	e.kommo.accounts.Store(&map[int64]kommoAccount{9001: {rules: rules}, 9002: {problem: problem}})
}

func report(id string, account int64) *routerv1.RouteItem {
	return &routerv1.RouteItem{RequestId: id, BudgetMs: 10_000, Callback: &routerv1.RouteItem_KommoCall{KommoCall: &routerv1.KommoCall{
		AccountId: account, CallId: "a", Direction: "inbound", Phone: "+13055550142", Duration: 7}}}
}

// A report is decided once; what cannot be decided is refused in words, or kept where that may change by itself.
func TestKommoReports(t *testing.T) {
	e, f := newTestEngine(t)
	if a := e.send(report("r0", 9001)); a.GetError().GetKind() != errorsv1.Kind_KIND_UNAVAILABLE {
		t.Errorf("accounts not known yet: %v", a)
	}
	spooled := report("r0", 9001)
	if spooled.Spooled = true; e.send(spooled).GetError().GetKind() != errorsv1.Kind_KIND_UNAVAILABLE || len(f.calls) != 0 {
		t.Error("a spooled report must wait, not end as undecided")
	}
	connected(t, e)
	for i, want := range []bool{false, true} {
		if a := e.send(report("r"+string(rune('1'+i)), 9001)); a.GetError() != nil || a.GetDuplicate() != want {
			t.Errorf("report %d: %v", i, a)
		}
	}
	c := f.calls["kommo/9001/a"].commits[0]
	if len(c.GetSetTimers()) != 1 || c.GetRetentionMs() != 3*365*24*time.Hour.Milliseconds() {
		t.Errorf("timers %v, kept for %d ms", c.GetSetTimers(), c.GetRetentionMs())
	}
	for account, kind := range map[int64]errorsv1.Kind{9002: errorsv1.Kind_KIND_UNAVAILABLE, 9003: errorsv1.Kind_KIND_NOT_FOUND} {
		if a := e.send(report("r9", account)); a.GetError().GetKind() != kind {
			t.Errorf("account %d: %v", account, a)
		}
	}
	for age, waits := range map[time.Duration]bool{0: true, 59 * time.Minute: true, 61 * time.Minute: false} {
		before := len(f.calls)
		late := report("late", 9003)
		late.Spooled, late.AgeMs = true, age.Milliseconds()
		if a := e.send(late); (a.GetError().GetKind() == errorsv1.Kind_KIND_UNAVAILABLE) != waits || (len(f.calls) == before) != waits {
			t.Errorf("acknowledged %v ago, the account is not connected: %v", age, a)
		}
	}
	bad := report("r9", 9001)
	bad.GetKommoCall().Direction = "up"
	if a := e.send(bad); a.GetError().GetField() != "direction" {
		t.Errorf("direction: %v", a)
	}
}

// A message is at its call before its sender forgets it, once however often it comes; one that cannot be read is recorded
// there and ends too.
func TestKommoMessagesAreRelayed(t *testing.T) {
	e, f := newTestEngine(t)
	connected(t, e)
	body, err := kommoMessage(kommo.Input{RequestID: "r1", Voip: &kommo.Voip{Facts: kommo.Facts{Direction: kommo.Outbound, Phone: "1", UserName: "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	f.before = func(item *statev1.CommitItem) bool {
		order = append(order, item.GetCall())
		return false
	}
	entry := func(n, to string, body []byte) *statev1.Entry {
		id := "ameyo/1>r1>" + n
		return &statev1.Entry{Timer: ">" + id, TimerId: "c1", Message: &statev1.Message{Id: id, To: to, Body: body}}
	}
	relay := func(en *statev1.Entry) error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		return e.entry(ctx, "ameyo/1", en, nil)
	}
	for range 2 {
		if err := relay(entry("9001", "kommo/9001/ameyo:1", body)); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(order[:2], " "); got != "kommo/9001/ameyo:1 ameyo/1" {
		t.Errorf("committed at %s", got)
	}
	if c := f.calls["kommo/9001/ameyo:1"]; len(c.commits) != 1 || c.version == "" {
		t.Errorf("%d commits", len(c.commits))
	} else if c := c.commits[0]; strings.Join(c.GetTerms(), " ") != "x" || strings.Join(c.GetPhones(), " ") != "1" {
		t.Errorf("found by %v and %v", c.GetTerms(), c.GetPhones())
	}
	sender := f.calls["ameyo/1"].commits[0]
	if sender.GetEntry().GetTimer() != ">ameyo/1>r1>9001" || sender.GetCommitId() != "" || len(sender.GetJournal()) != 0 {
		t.Errorf("the sender's commit: %v", sender)
	}
	if err := relay(entry("poison", "kommo/9001/b", []byte("\xff"))); err == nil || tryAgain(err) {
		t.Errorf("poison: %v", err)
	}
	if c := f.calls["kommo/9001/b"].commits[0]; len(c.GetMoves()) != 0 {
		t.Errorf("what is no request is counted as one: %v", c.GetMoves())
	}
	journal := &statev1.Journal{}
	if err := proto.Unmarshal(f.calls["kommo/9001/b"].commits[0].GetJournal(), journal); err != nil || journal.GetEntries()[0].GetUndecided() == nil {
		t.Errorf("%v %v", err, journal)
	}
	if n := len(f.calls["ameyo/1"].commits); n != 2 {
		t.Errorf("the sender has %d commits, want one for each message", n)
	}
	if err := relay(entry("9003", "kommo/9003/c", body)); !tryAgain(err) || errkind.From(err) == nil || f.calls["kommo/9003/c"] != nil {
		t.Errorf("an account that is not connected: %v", err)
	}
}

// A number's record waits for no account: messages, results and timers are decided while it is away or its settings cannot be used,
// however long that lasts. Given up, each would leave the number, and all calls that ask it, waiting for ever.
func TestKommoNumbersWaitForNoAccount(t *testing.T) {
	for _, account := range []int64{9002, 9003} {
		e, f := newTestEngine(t)
		connected(t, e)
		e.entryMaxAge = 24 * time.Hour
		number, call := kommo.NumberKey(account, "3055550142"), kommo.CallKey(account, "a")
		given := func(at string, entry *statev1.Entry) *statev1.CommitItem {
			t.Helper()
			entry.TimerId, entry.WaitingMs = "c1", (25 * time.Hour).Milliseconds()
			if answer := e.entryDue(t.Context(), &statev1.LeaseWork{Call: at, Entry: entry}); len(answer.GetResults()) != 0 {
				t.Fatalf("account %d: it waits: %v", account, answer.GetResults())
			}
			commits := f.calls[number].commits
			return commits[len(commits)-1]
		}
		body, err := kommoMessage(kommo.Input{Unknown: &kommo.Unknown{Call: "a", Ask: 1, Phone: "+13055550142", LeadBody: []byte("[]")}})
		if err != nil {
			t.Fatal(err)
		}
		sent := given(call, &statev1.Entry{Timer: ">m1", Message: &statev1.Message{Id: "m1", To: number, Body: body}}).GetDeliveries()
		if len(sent) != 1 || sent[0].GetEndpoint() != kommo.EndpointLead {
			t.Fatalf("account %d: sent %v", account, sent)
		}
		f.calls[number].deliveries = 1
		told := given(number, &statev1.Entry{Timer: "=1", Result: &statev1.DeliveryResult{Delivery: 1, Reply: []byte(`{"outcome":"ok","uid":"u","lead_id":7}`)}}).GetMessages()
		if len(told) != 1 || told[0].GetTo() != call {
			t.Errorf("account %d: told %v", account, told)
		}
		if c := given(number, &statev1.Entry{Timer: "check"}); len(c.GetJournal()) != 0 {
			t.Errorf("account %d: its timer is undecided", account)
		}
	}
}

// What cannot be processed is tried again, later and later, for DELIVERY_MAX_AGE; then it is recorded as undecided, a message at
// the call that it is for, and nobody waits for it any more.
func TestEntriesAreGivenUp(t *testing.T) {
	for _, test := range []struct {
		call string
		give func(*statev1.Entry)
		at   string // where it is recorded
	}{
		{"kommo/9003/a", func(e *statev1.Entry) {}, "kommo/9003/a"},
		{"kommo/9003/a", func(e *statev1.Entry) { e.Result = &statev1.DeliveryResult{Delivery: 1} }, "kommo/9003/a"},
		{"kommo/9002/a", func(e *statev1.Entry) {}, "kommo/9002/a"}, // its settings cannot be used
		{"ameyo/1", func(e *statev1.Entry) { e.Message = &statev1.Message{Id: "m1", To: "kommo/9003/a"} }, "kommo/9003/a"},
	} {
		e, f := newTestEngine(t)
		connected(t, e)
		e.entryMaxAge = 24 * time.Hour
		for waiting, again := range map[time.Duration]time.Duration{0: time.Second, 7 * time.Second: 7 * time.Second, 24 * time.Hour: 30 * time.Second, 24*time.Hour + time.Second: 0} {
			entry := &statev1.Entry{Timer: "t", TimerId: "c1", WaitingMs: waiting.Milliseconds()}
			test.give(entry)
			answer := e.entryDue(t.Context(), &statev1.LeaseWork{Call: test.call, Entry: entry})
			if got := answer.GetResults(); again == 0 {
				if len(got) != 0 {
					t.Errorf("%s: after %v it is still tried: %v", test.call, waiting, got)
				}
			} else if len(got) != 1 || got[0].GetRetry().GetInMs() != again.Milliseconds() {
				t.Errorf("%s: after %v again in %v", test.call, waiting, got)
			}
		}
		journal := &statev1.Journal{}
		if c := f.calls[test.at]; c == nil || len(c.commits) != 1 || proto.Unmarshal(c.commits[0].GetJournal(), journal) != nil ||
			!strings.Contains(journal.GetEntries()[0].GetUndecided().GetReason(), "DELIVERY_MAX_AGE") || len(c.commits[0].GetMoves()) != 0 {
			t.Errorf("%s: recorded %v", test.call, journal)
		}
		if c := f.calls[test.call]; c == nil || len(c.commits) != 1 || c.commits[0].GetEntry().GetTimer() != "t" {
			t.Errorf("%s: its entry did not end", test.call)
		}
	}
}
