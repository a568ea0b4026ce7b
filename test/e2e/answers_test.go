package e2e

import (
	"strconv"
	"strings"
	"testing"
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	"callrelay/sim/topsii"
)

// impatient are settings with which every answer of TopS.II plays out within moments.
var impatient = []string{"RETRY_BASE=20ms", "RETRY_MAX=100ms", "APP_ERROR_MAX_ATTEMPTS=3", "DELIVERY_MAX_ATTEMPTS=4", "PROBE_INTERVAL=100ms",
	"TOPSII_TIMEOUT=2s", "TOPSII_CONNECT_TIMEOUT=2s", "BREAKER_FAILURES=1000"}

// Every answer of the specification's table (spec/ameyo-topsii.md, HTTP out) that concerns one delivery: what becomes of it,
// what the operator reads, and whether the corrected repeat of its callback passes afterwards.
func TestAnswersToADelivery(t *testing.T) {
	t.Parallel()
	r := startWith(t, append([]string{"CALL_START_MAX_AGE_SECONDS=1"}, impatient...))
	state := r.operator()
	logical := func(code string) topsii.Fault {
		return topsii.Fault{Kind: topsii.Fail, MessageCode: "WTYP0010", SubMessageCode: code}
	}
	rows := []struct {
		name      string
		fault     topsii.Fault
		state     string
		attempts  uint32
		held      int  // at TopS.II, before any repeat
		uncertain bool // an attempt may have arrived
		reads     []string
	}{
		{"3201", logical("WPRDEXTC3201"), "dead", 1, 0, false, []string{"the call does not exist in TopS.II", "check callId"}},
		{"3202", logical("WPRDEXTC3202"), "dead", 1, 0, false, []string{"cannot identify the staff", "check predictiveStaffId"}},
		{"3203", logical("WPRDEXTC3203"), "dead", 1, 0, false, []string{"the staff is not logged in"}},
		{"another logical error", logical("WPRDEXTC9999"), "dead", 1, 0, false, []string{"refuses it for good", "WPRDEXTC9999"}},
		{"application error", topsii.Fault{Kind: topsii.Fail, MessageCode: "ETYP0040"}, "dead", 3, 0, false,
			[]string{"given up after 3 application errors", "ETYP0040"}},
		{"another fail", topsii.Fault{Kind: topsii.Fail, MessageCode: "XTYP0001"}, "dead", 3, 0, false, []string{"given up after 3 application errors", "XTYP0001"}},
		{"application error that passes", topsii.Fault{Kind: topsii.Fail, MessageCode: "ETYP0040", Times: 2}, "delivered", 3, 1, false,
			[]string{`"ETYP0040"`, "-> retry"}},
		{"HTTP 500 for ever", topsii.Fault{Kind: topsii.HTTP, Status: 500}, "dead", 4, 0, false, []string{"given up after 4 attempts", "HTTP 500"}},
		{"HTTP 503 with Retry-After", topsii.Fault{Kind: topsii.HTTP, Status: 503, RetryAfter: "2", Times: 1}, "delivered", 2, 1, false,
			[]string{"HTTP 503", "-> retry in 2s"}},
		{"not JSON", topsii.Fault{Kind: topsii.NonJSON, Times: 1}, "delivered", 2, 1, false, []string{"not one of TopS.II"}},
		{"cut after it arrived", topsii.Fault{Kind: topsii.Cut, Effect: true, Times: 1}, "delivered", 2, 2, true,
			[]string{"the connection was cut", "IT MAY HAVE ARRIVED -> retry"}},
		{"half an answer", topsii.Fault{Kind: topsii.Partial, Times: 1}, "delivered", 2, 1, true, []string{"answer was cut off", "IT MAY HAVE ARRIVED -> retry"}},
		{"hang", topsii.Fault{Kind: topsii.Hang, Times: 1}, "delivered", 2, 1, true, []string{"not within 2s (TOPSII_TIMEOUT)", "IT MAY HAVE ARRIVED -> retry"}},
		{"cut for ever", topsii.Fault{Kind: topsii.Cut}, "dead", 4, 0, true, []string{"given up after 4 attempts", "the connection was cut"}},
	}
	const first = 2000
	for i, row := range rows {
		row.fault.CallID = int64(first + i)
		r.fault(row.fault)
		r.accepted(r.end(connectedEnd(first + i)...))
	}
	t.Run("order", func(t *testing.T) { order(t, r, state) }) // while those above wait
	for i, row := range rows {
		d := r.becomes(state, first+i, 1, row.state)
		if d.GetAttempts() != row.attempts || d.GetUncertain() != row.uncertain {
			t.Errorf("%s: %d attempts, want %d; uncertain %v, want %v", row.name, d.GetAttempts(), row.attempts, d.GetUncertain(), row.uncertain)
		}
		says(t, row.name, r.run(done, "call", strconv.Itoa(first+i)), row.reads...)
		if got := r.registered(first + i); len(got) != row.held {
			t.Errorf("%s: TopS.II holds %v, want %d", row.name, got, row.held)
		}
	}
	if h := r.held(first + 8); len(h) == 1 { // Retry-After, by the simulator's clock
		if at := r.stored(state, first+8).GetDeliveries()[0].GetFacts().GetCreatedMs(); h[0].At.UnixMilli()-at < 2000 {
			t.Errorf("Retry-After: 2 was not obeyed: sent again after %d ms", h[0].At.UnixMilli()-at)
		}
	}
	letters := r.run(done, "deliveries", "--in", "dead", "--destination", "topsii")
	r.noFaults()
	for i, row := range rows {
		listed := false
		for line := range strings.Lines(letters) {
			if strings.HasPrefix(line, key(first+i)+" ") {
				listed = true
				says(t, "deliveries", line, append([]string{"createCallEnd", "dead"}, row.reads...)...)
			}
		}
		if listed != (row.state == "dead") {
			t.Errorf("%s: listed as dead: %v", row.name, listed)
		}
		released := row.state == "dead" && !row.uncertain
		repeat := r.end(append(connectedEnd(first+i), "userId", "agent2")...)
		if repeat.Status != 200 || repeat.Duplicate == released {
			t.Errorf("%s: the repeat is answered %d %s", row.name, repeat.Status, repeat.Body)
		}
		if released {
			r.becomes(state, first+i, 2, "delivered")
			if got := r.registered(first + i); len(got) != 1 || !strings.Contains(got[0], "agent2") {
				t.Errorf("%s: after the corrected repeat TopS.II holds %v", row.name, got)
			}
		}
	}
}

// order is what one call's start does to its end and to other calls.
func order(t *testing.T, r *relay, state operatorv1.OperatorServiceClient) {
	begins := func(call int) {
		t.Helper()
		r.accepted(r.begin("cs_unique_id", strconv.Itoa(call), "userId", "agent1", "phone", "03000000001"))
	}
	starts := func(call int, f topsii.Fault) {
		f.CallID, f.Endpoint = int64(call), topsii.CallStart
		r.fault(f)
		begins(call)
	}
	const waits, dies, late, punctual, others = 2100, 2101, 2102, 2103, 2110
	// It is too old for its popup when its turn comes again, but its end waits behind it, and that needs it.
	starts(waits, topsii.Fault{Kind: topsii.HTTP, Status: 503, RetryAfter: "1", Times: 2})
	r.accepted(r.end(connectedEnd(waits)...))
	starts(dies, topsii.Fault{Kind: topsii.Fail, MessageCode: "ETYP0040"})
	r.accepted(r.end(connectedEnd(dies)...))
	starts(late, topsii.Fault{Kind: topsii.HTTP, Status: 503, RetryAfter: "5", Times: 1})
	begins(punctual)
	concurrently(50, 16, func(i int) { r.accepted(r.end(connectedEnd(others + i)...)) })

	r.becomes(state, waits, 2, "delivered")
	h := r.held(waits)
	if len(h) != 2 || h[0].Endpoint != topsii.CallStart || h[1].Endpoint != topsii.CallEnd {
		t.Fatalf("TopS.II got %v, want the start and then the end", h)
	}
	if d := r.stored(state, waits).GetDeliveries(); d[0].GetFacts().GetAttempts() != 3 || d[1].GetFacts().GetAttempts() != 1 {
		t.Errorf("the start took %d attempts and the end %d, want 3 and 1", d[0].GetFacts().GetAttempts(), d[1].GetFacts().GetAttempts())
	}
	for i := range 50 {
		if other := r.held(others + i); len(other) != 1 || !other[0].At.Before(h[0].At) {
			t.Errorf("call %d waited for another one: %v", others+i, other)
		}
	}
	r.becomes(state, dies, 1, "dead")
	r.becomes(state, dies, 2, "delivered")
	if h := r.held(dies); len(h) != 1 || h[0].Endpoint != topsii.CallEnd {
		t.Errorf("TopS.II got %v, want the end alone", h)
	}
	r.becomes(state, punctual, 1, "delivered")
	d := r.becomes(state, late, 1, "expired")
	if age := d.GetFinalMs() - d.GetCreatedMs(); age < 1000 || age > 4000 || len(r.held(late)) != 0 {
		t.Errorf("a start of at most 1 s ended after %d ms; TopS.II holds %v", age, r.held(late))
	}
	says(t, "deliveries", r.run(done, "deliveries", "--in", "expired"), key(late), "too late for createCallStart")
}

// Where the destination is at fault and not the delivery, it is held and keeps everything, burns nothing, says why, and
// goes on by itself once a probe succeeds.
func TestDestinationAtFault(t *testing.T) {
	t.Parallel()
	r := startWith(t, impatient)
	state := r.operator()
	faults := []struct {
		fault topsii.Fault
		reads string
	}{
		{topsii.Fault{Kind: topsii.Fail, MessageCode: "WTYP0020"}, "no licence for this (WTYP0020)"},
		{topsii.Fault{Kind: topsii.Fail, MessageCode: "WTYP0030"}, "does not accept the API key (WTYP0030)"},
		{topsii.Fault{Kind: topsii.HTTP, Status: 401}, "HTTP 401"},
		{topsii.Fault{Kind: topsii.HTTP, Status: 403}, "HTTP 403"},
		{topsii.Fault{Kind: topsii.HTTP, Status: 404}, "nothing at this address (HTTP 404)"},
		{topsii.Fault{Kind: topsii.Redirect, Location: "https://login.example/?next=1"}, "redirect to https://login.example (HTTP 302)"},
	}
	const first, each = 2500, 5
	began := time.Now()
	for i, f := range faults {
		r.fault(f.fault)
		concurrently(each, each, func(n int) { r.accepted(r.end(connectedEnd(first + i*each + n)...)) })
		// The first refusal holds it; the next fault is met by a probe.
		r.eventually(20*time.Second, "topsii is held because of "+f.reads, func() bool {
			d := r.destination(state)
			return d.GetHeld() && strings.Contains(d.GetHoldReason(), f.reads)
		})
	}
	calls := each * len(faults)
	says(t, "destinations", r.run(done, "destinations"), "topsii", faults[len(faults)-1].reads)
	if d := r.destination(state); d.GetWaiting()+d.GetSending() != int64(calls) || d.GetDead() != 0 {
		t.Errorf("not everything is kept: %v", d)
	}
	for n := range calls {
		if d := r.stored(state, first+n).GetDeliveries(); len(d) != 1 || d[0].GetFacts().GetAttempts() != 0 || d[0].GetFacts().GetUncertain() {
			t.Errorf("call %d: %v", first+n, d)
		}
	}
	// What was under way at the first refusal, and then one probe at a time, not the backlog.
	if n, most := r.stats().Requests, each+1+int64(time.Since(began)/(100*time.Millisecond)); n > most {
		t.Errorf("%d requests to a destination that is held, want at most %d", n, most)
	}
	r.noFaults()
	r.eventually(20*time.Second, "all are delivered by themselves", func() bool { return r.effects() >= int64(calls) })
	r.eventually(20*time.Second, "it is not held any more", func() bool { return !r.destination(state).GetHeld() })
	if s := r.stats(); r.effects() != int64(calls) || len(s.Outcomes[topsii.Unknown]) != 0 {
		t.Errorf("delivered %d of %d; a redirect was followed: %v", r.effects(), calls, s.Outcomes[topsii.Unknown])
	}
}
