package diagnose

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
)

// The facts of one request r1 unless said otherwise.
func entry(request string, fact any) *statev1.JournalEntry {
	e := &statev1.JournalEntry{AtMs: 1000, RequestId: request}
	switch f := fact.(type) {
	case *statev1.Received:
		e.Fact = &statev1.JournalEntry_Received{Received: f}
	case *statev1.Decided:
		e.Fact = &statev1.JournalEntry_Decided{Decided: f}
	case *statev1.Rejected:
		e.Fact = &statev1.JournalEntry_Rejected{Rejected: f}
	case *statev1.Duplicate:
		e.Fact = &statev1.JournalEntry_Duplicate{Duplicate: f}
	case *statev1.Attempt:
		e.Fact = &statev1.JournalEntry_Attempt{Attempt: f}
	case *statev1.Phone1Fact:
		e.Fact = &statev1.JournalEntry_Phone1{Phone1: f}
	case *statev1.Action:
		e.Fact = &statev1.JournalEntry_Action{Action: f}
	case *statev1.PbxCard:
		e.Fact = &statev1.JournalEntry_Card{Card: f}
	case *statev1.Undecided:
		e.Fact = &statev1.JournalEntry_Undecided{Undecided: f}
	case string:
		e.Fact = &statev1.JournalEntry_Note{Note: f}
	}
	return e
}

func end() *statev1.Received { return &statev1.Received{Source: "ameyo.call_end"} }
func decided() *statev1.Decided {
	return &statev1.Decided{Rule: "1", Flow: "createCallEnd", Deliveries: []uint32{1}}
}

const (
	queued   = statev1.DeliveryState_DELIVERY_STATE_QUEUED
	leased   = statev1.DeliveryState_DELIVERY_STATE_LEASED
	arrived  = statev1.DeliveryState_DELIVERY_STATE_DELIVERED
	dead     = statev1.DeliveryState_DELIVERY_STATE_DEAD
	expired  = statev1.DeliveryState_DELIVERY_STATE_EXPIRED
	dropped  = statev1.DeliveryState_DELIVERY_STATE_DISCARDED
	disabled = statev1.DeliveryState_DELIVERY_STATE_SEND_DISABLED
	asked    = statev1.DeliveryState_DELIVERY_STATE_ASKED
)

// sent is a call end whose delivery is in a state after an attempt.
func sent(state statev1.DeliveryState, attempt *statev1.Attempt) Call {
	c := Call{Key: "ameyo/1", Journal: []*statev1.JournalEntry{entry("r1", end()), entry("r1", decided())},
		Deliveries: []*statev1.Delivery{{Number: 1, Destination: "topsii", Endpoint: "createCallEnd", State: state, RequestId: "r1", Attempts: 1, Reason: "why"}}}
	if attempt != nil {
		attempt.Delivery = 1
		c.Journal = append(c.Journal, entry("r1", attempt))
	}
	return c
}

func facts(facts ...any) Call {
	c := Call{Key: "ameyo/1"}
	for _, f := range facts {
		c.Journal = append(c.Journal, entry("r1", f))
	}
	return c
}

func with(c Call, change func(*Call)) Call { change(&c); return c }

func waitingCall(now int64) Call {
	c := facts(end(), &statev1.Decided{Rule: "4", Flow: "wait for phone 2"}, &statev1.Phone1Fact{What: "stored", Status: "BUSY"})
	c.NowMS = now
	c.Record = &statev1.Record{Gates: []*statev1.Gate{{Key: "g", Owner: "r1", WaitingPhone2: true}},
		Phone1: []*statev1.Phone1{{Gate: "g", RequestId: "r1", Status: "BUSY", ExpiresMs: 600_000}}}
	return c
}

// Every way in which a call can stop, in every step: the step, how bad it is, and the finding that leads there.
func TestEveryWayToStop(t *testing.T) {
	answer := func(message, sub string) *statev1.Attempt {
		return &statev1.Attempt{HttpCode: 200, Result: "fail", MessageCode: message, SubMessageCode: sub, Next: "dead"}
	}
	hold := func(a *statev1.Attempt) *statev1.Attempt { a.Next = "hold"; return a }
	for _, c := range []struct {
		name  string
		call  Call
		level operatorv1.Level
		step  Step
		code  string
	}{
		{"refused for a field", facts(&statev1.Received{}, &statev1.Rejected{Status: 400, Field: "customerCRTId", Message: "customerCRTId is required"}), failed, Inputs, "inputs_refused"},
		{"refused for its method", facts(&statev1.Received{}, &statev1.Rejected{Status: 405, Message: "use GET"}), failed, Inputs, "inputs_method"},
		{"the rules failed", facts(end(), &statev1.Undecided{Reason: "x"}), failed, Inputs, "inputs_panicked"},
		{"the rules failed, as older relays write it", facts(end(), "undecided: x"), failed, Inputs, "inputs_panicked"},
		{"something was unreadable", with(sent(arrived, nil), func(c *Call) { c.Journal = append(c.Journal, entry("r1", "phoneList is not JSON")) }), note, Inputs, "inputs_odd"},

		{"nothing is stored", Call{Key: "ameyo/1"}, failed, Received, "received_nothing"},
		{"nothing is stored, but something is spooled", Call{Key: "ameyo/1", Spooled: 3}, waiting, Received, "received_spooled"},
		{"only the start", facts(&statev1.Received{Source: "ameyo.call_start"}), note, Received, "received_start_only"},
		{"no start", sent(arrived, nil), note, Received, "received_no_start"},
		{"recorded late", facts(&statev1.Received{Source: "ameyo.call_end", AgeMs: 61_000}), note, Received, "received_late"},
		{"the journal is full", with(facts(end()), func(c *Call) { c.JournalDropped = true }), note, Received, "received_journal_full"},

		{"a repeat", with(facts(end()), func(c *Call) {
			c.Journal = append(c.Journal, entry("r2", end()), entry("r2", &statev1.Duplicate{Of: "r1", Gate: "processed"}))
		}), note, Dedupe, "dedupe_repeat"},
		{"a repeat that differs", facts(end(), &statev1.Duplicate{Of: "r0", Gate: "processed", Differs: true}), note, Dedupe, "dedupe_differs"},
		{"replaced", facts(end(), &statev1.Action{What: "superseded", RequestId: "r2"}), note, Dedupe, "dedupe_superseded"},

		{"waits for phone 2", waitingCall(1000), waiting, Phone1, "phone1_waiting"},
		{"about to expire", waitingCall(700_000), waiting, Phone1, "phone1_overdue"},
		{"phone 2 never came", facts(end(), &statev1.Phone1Fact{What: "stored", Status: "BUSY"}, &statev1.Phone1Fact{What: "expired", Status: "BUSY"}), failed, Phone1, "phone1_expired"},
		{"phone 1 was sent alone", with(sent(arrived, nil), func(c *Call) {
			c.Journal[1] = entry("r1", &statev1.Phone1Fact{What: "expired", Status: "BUSY"})
			c.Journal = append(c.Journal, entry("r1", &statev1.Decided{Rule: "phone1-expiry", ErrorInfo1: "BUSY", Deliveries: []uint32{1}}))
		}), note, Phone1, "phone1_expired_sent"},
		{"phone 2 came after all", with(sent(arrived, nil), func(c *Call) {
			c.Journal = append([]*statev1.JournalEntry{entry("r0", &statev1.Phone1Fact{What: "expired", Status: "BUSY"})}, c.Journal...)
		}), note, Received, "received_no_start"},
		{"phone 2 came first", facts(end(), &statev1.Decided{Rule: "5", ErrorInfo1: "UNKNOWN", ErrorInfo2: "BUSY"}), note, Phone1, "phone1_unknown"},
		{"a late phone 1", facts(end(), &statev1.Phone1Fact{What: "absorbed"}), note, Phone1, "phone1_absorbed"},
		{"dialled anew", facts(end(), &statev1.Phone1Fact{What: "replaced"}), note, Phone1, "phone1_replaced"},
		{"combined", facts(end(), &statev1.Decided{Rule: "5", ErrorInfo1: "BUSY", ErrorInfo2: "BUSY", Phone1StateUsed: true}), ok, Phone1, "phone1_used"},

		{"waits for its turn", sent(queued, nil), waiting, UpstreamSend, "send_queued"},
		{"waits for one before it", with(sent(leased, nil), func(c *Call) {
			c.Deliveries = append(c.Deliveries, &statev1.Delivery{Number: 2, Destination: "topsii", Endpoint: "createCallEnd", State: queued, RequestId: "r1"})
		}), waiting, UpstreamSend, "send_behind"},
		{"one before it is over", with(sent(dropped, nil), func(c *Call) {
			c.Deliveries = append(c.Deliveries, &statev1.Delivery{Number: 2, Destination: "topsii", Endpoint: "createCallEnd", State: queued, RequestId: "r1"})
		}), waiting, UpstreamSend, "send_queued"},
		{"nothing leaves", with(sent(queued, nil), func(c *Call) { c.Stuck = map[string]string{"topsii": "the circuit breaker is open"} }), waiting, UpstreamSend, "send_stuck"},
		{"is being sent", sent(leased, nil), waiting, UpstreamSend, "send_sending"},
		{"tried again", sent(queued, &statev1.Attempt{Next: "retry", Error: "connection refused"}), waiting, UpstreamSend, "send_retrying"},
		{"held", with(sent(queued, nil), func(c *Call) { c.Holds = map[string]string{"topsii": "maintenance"} }), failed, UpstreamSend, "send_held"},
		{"sending is disabled", sent(disabled, &statev1.Attempt{Next: "send_disabled"}), failed, UpstreamSend, "send_disabled"},
		{"never answered", sent(dead, &statev1.Attempt{Next: "dead", Error: "connection refused"}), failed, UpstreamSend, "send_dead"},
		{"answered by a proxy only", sent(dead, &statev1.Attempt{HttpCode: 502, Next: "dead"}), failed, UpstreamSend, "send_dead"},
		{"too old", sent(expired, nil), failed, UpstreamSend, "send_expired"},
		{"nobody knows", sent(asked, &statev1.Attempt{Next: "ask", Uncertain: true}), failed, UpstreamSend, "send_asked"},
		{"perhaps twice", with(sent(arrived, nil), func(c *Call) { c.Deliveries[0].Uncertain, c.Deliveries[0].Attempts = true, 2 }), note, UpstreamSend, "send_maybe_twice"},
		{"given up by a person", sent(dropped, nil), note, UpstreamSend, "send_discarded"},
		{"a newer state", sent(99, nil), failed, UpstreamSend, "send_unknown_state"},

		{"no such call", sent(dead, answer("WTYP0010", "WPRDEXTC3201")), failed, UpstreamAnswer, "no_such_call"},
		{"no such staff", sent(dead, answer("WTYP0010", "WPRDEXTC3202")), failed, UpstreamAnswer, "no_such_staff"},
		{"staff not logged in", sent(dead, answer("WTYP0010", "WPRDEXTC3203")), failed, UpstreamAnswer, "staff_not_logged_in"},
		{"another logical error", sent(dead, answer("WTYP0010", "WPRDEXTC9999")), failed, UpstreamAnswer, "logical_error"},
		{"licence", sent(queued, hold(answer("WTYP0020", ""))), failed, UpstreamAnswer, "licence"},
		{"key", sent(queued, hold(answer("WTYP0030", ""))), failed, UpstreamAnswer, "api_key"},
		{"key, by HTTP", sent(queued, &statev1.Attempt{HttpCode: 401, Next: "hold"}), failed, UpstreamAnswer, "api_key"},
		{"address", sent(queued, &statev1.Attempt{HttpCode: 404, Next: "hold"}), failed, UpstreamAnswer, "address"},
		{"redirect", sent(queued, &statev1.Attempt{HttpCode: 302, Next: "hold"}), failed, UpstreamAnswer, "address"},
		{"application error", sent(dead, answer("ETYP0040", "")), failed, UpstreamAnswer, "app_error"},
		{"application error, tried again", sent(queued, &statev1.Attempt{HttpCode: 200, Result: "fail", MessageCode: "ETYP0040", Next: "retry"}), waiting, UpstreamAnswer, "app_error_retrying"},
		{"put back by a person", sent(queued, answer("WTYP0010", "WPRDEXTC3203")), waiting, UpstreamSend, "send_queued"},
		{"accepted", sent(arrived, &statev1.Attempt{HttpCode: 200, Result: "success", Next: "delivered"}), ok, UpstreamAnswer, "answer_ok"},
	} {
		r := Diagnose(c.call)
		found := false
		for _, s := range r.GetSteps() {
			for _, f := range s.GetFindings() {
				found = found || s.GetStep() == string(c.step) && f.GetCode() == c.code && f.GetLevel() == c.level
			}
		}
		if !found {
			t.Errorf("%s: no %s %s in %v", c.name, c.level, c.code, r)
		}
		if c.level >= waiting && (r.GetLevel() != c.level && r.GetLevel() < c.level || r.GetStep() != string(c.step) && r.GetLevel() == c.level && c.code != "send_retrying" && c.code != "app_error_retrying") {
			t.Errorf("%s: stopped at %s %s", c.name, r.GetStep(), r.GetLevel())
		}
		if c.level < failed && r.GetLevel() == failed {
			t.Errorf("%s: needs a person at %s", c.name, r.GetStep())
		}
	}
}

// What was replaced does not stop a call any more.
func TestReplacedIsNoReason(t *testing.T) {
	c := sent(dead, &statev1.Attempt{HttpCode: 200, MessageCode: "WTYP0010", Next: "dead"})
	if r := Diagnose(c); r.GetLevel() != failed {
		t.Fatal(r)
	}
	c.Journal = append(c.Journal, entry("r1", &statev1.Action{What: "superseded", RequestId: "r2"}))
	if r := Diagnose(c); r.GetLevel() != note {
		t.Errorf("stopped at %s %s", r.GetStep(), r.GetLevel())
	}
}

// Both languages are there for every text, with the same words to fill in, and every text is used.
func TestTexts(t *testing.T) {
	var source []byte
	for _, name := range []string{"diagnose.go", "kommo.go", "pbx.go"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		source = append(source, text...)
	}
	word := regexp.MustCompile(`\{[a-z]+\}`)
	count := func(s string) map[string]int {
		n := map[string]int{}
		for _, w := range word.FindAllString(s, -1) {
			n[w]++
		}
		return n
	}
	for code, x := range texts {
		if !strings.Contains(string(source), `"`+code+`"`) {
			t.Errorf("%s is never said", code)
		}
		for _, pair := range [][2]string{{x.en, x.ja}, {x.adviceEN, x.adviceJA}} {
			if (pair[0] == "") != (pair[1] == "") {
				t.Errorf("%s: one language is missing", code)
			}
			a, b := count(pair[0]), count(pair[1])
			for w := range a {
				if b[w] == 0 {
					t.Errorf("%s: %s is not in the Japanese text", code, w)
				}
			}
			for w := range b {
				if a[w] == 0 {
					t.Errorf("%s: %s is not in the English text", code, w)
				}
			}
		}
	}
	for _, step := range append(pbxSteps, steps...) {
		if titles[step].en == "" || titles[step].ja == "" {
			t.Errorf("%s has no title", step)
		}
	}
}

// Whatever is stored: six steps in order, each with findings whose words are all filled in, and the verdict is the first of
// the worst.
func TestAnyJournal(t *testing.T) {
	word := regexp.MustCompile(`\{[a-z]+\}`)
	rapid.Check(t, func(t *rapid.T) {
		states := rapid.SampledFrom([]statev1.DeliveryState{0, queued, leased, arrived, dead, expired, dropped, disabled, asked, 99})
		var call Call
		call.Key = "ameyo/1"
		facts := []any{end(), decided(), &statev1.Rejected{Status: 400, Field: "f"}, &statev1.Duplicate{Of: "r1", Differs: true}, &statev1.Phone1Fact{What: "expired"},
			&statev1.Attempt{Delivery: 1, HttpCode: 200, MessageCode: "WTYP0010", Next: "dead"}, &statev1.Attempt{Delivery: 2, Next: "hold", HttpCode: 302},
			&statev1.Action{What: "superseded", RequestId: "r3"}, &statev1.Undecided{Reason: "x"}, "note", nil}
		for range rapid.IntRange(0, 8).Draw(t, "entries") {
			call.Journal = append(call.Journal, entry(rapid.SampledFrom([]string{"r1", "r2", ""}).Draw(t, "request"), rapid.SampledFrom(facts).Draw(t, "fact")))
		}
		for n := range rapid.Uint32Range(0, 3).Draw(t, "deliveries") {
			call.Deliveries = append(call.Deliveries, &statev1.Delivery{Number: n + 1, State: states.Draw(t, "state"), RequestId: "r1"})
		}
		r := Diagnose(call)
		if len(r.GetSteps()) != len(steps) {
			t.Fatalf("%d steps", len(r.GetSteps()))
		}
		var worst operatorv1.Level
		first := ""
		for i, s := range r.GetSteps() {
			if s.GetStep() != string(steps[i]) || len(s.GetFindings()) == 0 {
				t.Fatalf("step %d: %v", i, s)
			}
			for _, f := range s.GetFindings() {
				if f.GetLevel() > s.GetLevel() {
					t.Fatalf("%v is worse than its step", f)
				}
				if text := f.GetWhy().String() + f.GetAdvice().String(); word.MatchString(text) {
					t.Fatalf("not filled in: %s", text)
				}
			}
			if s.GetLevel() > worst {
				worst, first = s.GetLevel(), s.GetStep()
			}
		}
		if r.GetLevel() != worst || r.GetStep() != first {
			t.Fatalf("verdict %s %s, want %s %s", r.GetStep(), r.GetLevel(), first, worst)
		}
	})
}

// A call in Kommo is diagnosed as one: TopS.II has no part in it, and what was passed on inside was not forgotten by a dialer.
func TestKommo(t *testing.T) {
	reported := sent(queued, nil)
	reported.Key, reported.Deliveries[0].Destination = "kommo/9001/a-1", "kommo/9001"
	reported.Journal[0] = entry("r1", &statev1.Received{Source: "kommo.call"})
	passedOn := sent(dead, nil)
	passedOn.Key, passedOn.Journal = "kommo/9001/ameyo:1", passedOn.Journal[1:]
	for want, call := range map[string]Call{"1 callbacks were received": reported, "It came from another call": passedOn} {
		said := Diagnose(call).String()
		if !strings.Contains(said, want) || !strings.Contains(said, "Sending to Kommo") || !strings.Contains(said, "Kommoへの送信") || strings.Contains(said, "TopS.II") {
			t.Errorf("want %q: %s", want, said)
		}
	}
}

// A call that waits for the call-result window is not one of which nothing was to be sent.
func TestKommoWindow(t *testing.T) {
	voip, opened, cancelled := &statev1.KommoFacts{}, &statev1.KommoWindow{State: 1}, &statev1.KommoWindow{State: 3}
	for _, test := range []struct {
		call *statev1.KommoCall
		code string
	}{
		{&statev1.KommoCall{Voip: voip}, "kommo_claim"},
		{&statev1.KommoCall{Voip: voip, Window: opened}, "kommo_window"},
		{&statev1.KommoCall{Window: opened}, "kommo_unreported"},
		{&statev1.KommoCall{Window: cancelled}, "kommo_unreported"},
		{&statev1.KommoCall{Voip: voip, Window: opened, Phase: 5}, "send_nothing"}, // written
		{&statev1.KommoCall{}, "send_nothing"},
		{nil, "send_nothing"},
	} {
		stored := &statev1.KommoRecord{Format: 1}
		if test.call != nil {
			stored.Record = &statev1.KommoRecord_Call{Call: test.call}
		}
		blob, err := proto.Marshal(stored)
		if err != nil {
			t.Fatal(err)
		}
		said := Diagnose(Call{Key: "kommo/9001/a", Record: &statev1.Record{Blobs: map[string][]byte{"kommo": blob}},
			Journal: []*statev1.JournalEntry{entry("r1", &statev1.Received{Source: "kommo.window"})}})
		i := slices.IndexFunc(said.GetSteps(), func(s *operatorv1.DiagnosisStep) bool { return s.GetStep() == string(UpstreamSend) })
		if f := said.GetSteps()[i].GetFindings(); len(f) != 1 || f[0].GetCode() != test.code {
			t.Errorf("%v: %v, want %s", test.call, f, test.code)
		}
	}
}
