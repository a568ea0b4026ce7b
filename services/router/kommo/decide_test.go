package kommo

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

const minute, hour = 60_000, 3600_000

// TestRules goes through the rules of the specification one by one: what is journaled, where the call ends, and what
// was sent.
func TestRules(t *testing.T) {
	onChosen := Entity{"lead", 777}
	tests := []struct {
		rule string
		run  func(w *world)
		// want is what is journaled of all records, in order.
		want string
		// entity is the type of what has the call, or the phase in which it has none.
		entity string
		sent   string
	}{
		{"K1 a repeat sends nothing", func(w *world) {
			w.appear(digits, false)
			w.input("a", voip(Inbound, ""))
			w.pass(minute)
			w.input("a", voip(Inbound, ""))
		}, "Call event sent, Call event created, Already created", "contact", "calls"},
		{"K1 the first report counts", func(w *world) {
			w.appear(digits, false)
			w.input("a", voip(Inbound, ""))
			other := voip(Inbound, "")
			other.Voip.Duration = 5
			w.input("a", other)
			w.pass(minute)
			if e := w.crm.event("a"); e.length != 73 {
				w.t.Errorf("duration %d", e.length)
			}
		}, "Call event sent, Call event created", "contact", "calls"},
		{"K1, K7 a dialer's later attempt is answered", func(w *world) {
			w.appear(digits, false)
			w.input("a", attempt(StatusBusy))
			w.pass(hour)
			w.input("a", attempt(StatusAnswered))
			if w.last.Duplicate {
				w.t.Errorf("a duplicate")
			}
			w.pass(minute)
			w.input("a", attempt(StatusNoAnswer))
			w.pass(minute)
			if e := w.crm.event("a"); e.length != 73 {
				w.t.Errorf("duration %d", e.length)
			}
		}, "Call event sent, Call event created, Already created, Call event update sent, Call event updated, Already created", "contact", "calls notes.patch"},
		{"K1, K9 a later attempt is answered while it waits for a contact", func(w *world) {
			w.cfg.PollFirst = 0
			w.input("a", attempt(StatusBusy))
			w.pass(17 * hour)
			w.input("a", attempt(StatusAnswered))
			w.pass(17 * hour)
			if c := w.call("a"); c.Phase != Parked {
				w.t.Errorf("%+v", c)
			}
			w.appear(digits, false)
			w.pass(hour)
			if e := w.crm.event("a"); e == nil || e.length != 73 {
				w.t.Errorf("%+v", e)
			}
		}, "Call event sent, No entity found by number, Waits for a contact, Call event sent, No entity found by number, Waits for a contact, " +
			"Call event sent, Call event created", "contact", "calls"},
		{"K1, K9 and after that", func(w *world) {
			w.input("a", attempt(StatusBusy))
			w.pass(19 * hour)
			w.seen()
			clear(w.crm.requests)
			w.appear(digits, false)
			w.input("a", attempt(StatusAnswered))
			w.pass(minute)
		}, "Call event sent, Call event created", "contact", "calls"},
		{"K2 it waits for the window", func(w *world) {
			w.appear(digits, false)
			w.input("a", voip(Inbound, ""))
			w.pass(4999)
			if len(w.crm.events) > 0 {
				w.t.Errorf("it did not wait")
			}
			w.pass(1)
		}, "Call event sent, Call event created", "contact", "calls"},
		{"K2 an open window holds it", func(w *world) {
			w.appear(digits, false)
			w.input("a", window(WindowOpened, Inbound, Entity{}, ""))
			w.pass(20 * minute) // the call itself is long
			w.input("a", voip(Inbound, ""))
			w.pass(15*minute - 1)
			if len(w.crm.events) > 0 {
				w.t.Errorf("it did not wait")
			}
			w.pass(1)
		}, "Call event sent, Call event created", "contact", "calls"},
		{"K4 claimed", func(w *world) {
			w.appear(digits, false)
			w.input("a", voip(Inbound, ""))
			w.pass(4000)
			w.input("a", window(WindowOpened, Inbound, Entity{}, ""))
			w.pass(5 * minute)
			w.input("a", window(WindowSaved, Inbound, onChosen, "will buy"))
			w.pass(minute)
		}, "Call event sent, Call event created", "lead", "notes.create"},
		{"K4 a window alone", func(w *world) {
			w.input("a", window(WindowSaved, Inbound, onChosen, "will buy"))
			w.pass(minute)
		}, "Call event sent, Call event created", "lead", "notes.create"},
		{"K4 the VoIP side after a window alone", func(w *world) {
			w.input("a", window(WindowSaved, Inbound, onChosen, "will buy"))
			w.pass(minute)
			w.input("a", voip(Inbound, "rec"))
			w.pass(minute)
			if e := w.crm.event("a"); e.length != 73 || e.result != "will buy" || e.link == "" {
				w.t.Errorf("%+v", e)
			}
		}, "Call event sent, Call event created, Already created, Call event update sent, Call event updated", "lead", "notes.create notes.patch"},
		{"K4 nowhere", func(w *world) {
			w.appear(digits, false)
			w.input("a", window(WindowSaved, Inbound, missing, "will buy"))
			w.pass(minute)
		}, "Call event sent, Call event sent, Call event created", "contact", "calls notes.create"},
		{"K5 inbound", func(w *world) {
			w.input("a", voip(Inbound, "rec"))
			w.pass(minute)
		}, "Call event sent, No entity found by number, Incoming lead sent, Incoming lead created, Incoming lead created", "lead", "calls unsorted.sip"},
		{"K5 inbound with a result", func(w *world) {
			w.input("a", voip(Inbound, "rec"))
			w.input("a", window(WindowSaved, Inbound, Entity{}, "will buy"))
			w.pass(minute)
		}, "Call event sent, No entity found by number, Incoming lead sent, Incoming lead created, Incoming lead created, " +
			"Call event update sent, Call event updated", "lead", "calls notes.patch unsorted.sip"},
		{"K5 outbound", func(w *world) {
			w.input("a", voip(Outbound, "rec"))
			w.pass(minute)
		}, "Call event sent, No entity found by number, Waits for a contact", "parked", "calls"},
		{"K5 incoming leads off", func(w *world) {
			w.crm.unsortedOff = true
			w.input("a", voip(Inbound, "rec"))
			w.pass(minute)
			if w.notices != 1 {
				w.t.Errorf("%d notices", w.notices)
			}
		}, "Call event sent, No entity found by number, Incoming lead sent, Waits for a contact", "parked", "calls unsorted.sip"},
		{"K6 a second call joins", func(w *world) {
			w.input("b", voip(Inbound, "rec"))
			w.pass(minute)
			w.seen()
			clear(w.crm.requests)
			w.input("a", voip(Inbound, "rec"))
			w.pass(minute)
		}, "Call event sent, No entity found by number, Joins the incoming lead, Call event sent, Call event created", "lead", "calls notes.create"},
		{"K6 the lead is old but there", func(w *world) {
			w.input("b", voip(Inbound, "rec"))
			w.pass(hour)
			w.seen()
			clear(w.crm.requests)
			w.input("a", voip(Inbound, "rec"))
			w.pass(minute)
		}, "Call event sent, No entity found by number, Looking for the call event, Joins the incoming lead, Call event sent, Call event created",
			"lead", "calls lookup.uniq notes.create"},
		{"K6 the lead was declined", func(w *world) {
			w.input("b", voip(Inbound, "rec"))
			w.pass(hour)
			w.close(w.crm.leads[0], false, false)
			w.seen()
			clear(w.crm.requests)
			w.input("a", voip(Inbound, "rec"))
			w.pass(minute)
		}, "Call event sent, No entity found by number, Looking for the call event, Incoming lead sent, Incoming lead created, Incoming lead created",
			"lead", "calls lookup.uniq unsorted.sip"},
		{"K6 no notes on open leads", func(w *world) {
			w.crm.notesOnLeads = false
			w.input("b", voip(Inbound, ""))
			w.pass(minute / 2)
			w.seen()
			w.input("a", voip(Inbound, ""))
			w.pass(2 * minute)
			if phase := w.call("a").Phase; phase != Parked {
				w.t.Errorf("phase %d", phase)
			}
			w.close(w.crm.leads[0], true, true)
			w.pass(minute)
		}, "Call event sent, No entity found by number, Joins the incoming lead, Call event sent, No entity found by number, Waits for a contact, " +
			"Call event sent, Call event created", "contact", "calls notes.create unsorted.sip"},
		{"K7 recording after the note", func(w *world) {
			w.appear(digits, false)
			w.input("a", voip(Inbound, ""))
			w.pass(minute)
			w.input("a", Input{Recording: "rec"})
			w.pass(minute)
			if e := w.crm.event("a"); e.link != "https://relay.example/voip/9001/get_call_record/a" {
				w.t.Errorf("%+v", e)
			}
		}, "Call event sent, Call event created, Call event update sent, Call event updated", "contact", "calls notes.patch"},
		{"K7 another entity after the note", func(w *world) {
			w.appear(digits, false)
			w.input("a", voip(Inbound, ""))
			w.pass(minute)
			w.input("a", window(WindowSaved, Inbound, onChosen, "will buy"))
			if got, want := w.replies[0], (WindowReply{Conflict: true, Entity: w.crm.event("a").entity}); got != want {
				w.t.Errorf("answered %+v, want %+v", got, want)
			}
			w.pass(minute)
			if e := w.crm.event("a"); e.result != "will buy" {
				w.t.Errorf("%+v", e)
			}
		}, "Call event sent, Call event created, Already created, Call event update sent, Call event updated", "contact", "calls notes.patch"},
		{"K8 cancelled", func(w *world) {
			w.appear(digits, false)
			w.input("a", voip(Inbound, ""))
			w.input("a", window(WindowOpened, Inbound, Entity{}, ""))
			w.input("a", window(WindowCancelled, Inbound, onChosen, "no"))
			w.settle() // at once
			if e := w.crm.event("a"); e.result != "" {
				w.t.Errorf("%+v", e)
			}
		}, "Call event sent, Call event created", "contact", "calls"},
		{"K8 cancelled alone", func(w *world) {
			w.input("a", window(WindowOpened, Inbound, Entity{}, ""))
			w.input("a", window(WindowCancelled, Inbound, onChosen, "no"))
			w.pass(20 * hour)
		}, "", "collecting", ""},
		{"K9 a contact appears", func(w *world) {
			w.input("a", voip(Outbound, "rec"))
			w.pass(5 * hour)
			clear(w.crm.requests)
			w.seen()
			w.appear(digits, true)
			w.settle()
		}, "Call event sent, Call event created", "contact", "calls"},
		{"K9 polled", func(w *world) {
			w.input("a", voip(Outbound, "rec"))
			w.pass(minute)
			w.appear(digits, false)
			w.pass(10 * minute)
		}, "Call event sent, No entity found by number, Waits for a contact, Call event sent, Call event created", "contact", "calls"},
		{"K9 no contact", func(w *world) {
			w.cfg.PollFirst = 0
			w.input("a", voip(Outbound, "rec"))
			w.pass(18*hour - 1)
			if c := w.call("a"); c.Phase != Parked || c.Dropped {
				w.t.Errorf("%+v", c)
			}
			w.pass(1)
			w.appear(digits, true)
			w.pass(hour)
			if c := w.call("a"); !c.Dropped {
				w.t.Errorf("%+v", c)
			}
		}, "Call event sent, No entity found by number, Waits for a contact, Call event sent, no_entity", "no entity", "calls"},
		{"K9 a last poll, though the time was over before it could not join a lead", func(w *world) {
			w.input("b", voip(Inbound, ""))
			w.pass(minute)
			w.input("a", voip(Inbound, "rec"))
			w.fire(1 << 62)
			w.deliver(w.record(CallKey(account, "a")), arrives)
			w.crm.notesOnLeads = false
			w.appear(digits, false)
			w.now += 19 * hour // its question takes so long
			w.seen()
			clear(w.crm.requests)
			w.settle()
		}, "Looking for the call event, Joins the incoming lead, Call event sent, No entity found by number, Call event sent, Call event created",
			"contact", "calls lookup.uniq notes.create"},
		{"K9 a recording alone", func(w *world) {
			w.input("a", Input{Recording: "rec"})
			w.pass(18*hour + 1)
			if c := w.call("a"); !c.Dropped {
				w.t.Errorf("%+v", c)
			}
		}, "no_entity", "collecting", ""},
		{"K9 the contact of an incoming lead counts", func(w *world) {
			w.input("a", voip(Outbound, "rec"))
			w.pass(minute)
			w.input("b", voip(Inbound, ""))
			w.pass(minute)
			if e := w.crm.event("a"); e == nil || e.link == "" || e.entity != w.crm.event("b").entity {
				w.t.Errorf("%+v", e)
			}
		}, "Call event sent, No entity found by number, Waits for a contact, Call event sent, No entity found by number, Incoming lead sent, " +
			"Incoming lead created, Incoming lead created, Joins the incoming lead, Call event sent, Call event created", "lead", "calls notes.create unsorted.sip"},
		{"K10 it had arrived", func(w *world) {
			w.appear(digits, false)
			w.input("a", voip(Inbound, ""))
			w.fire(1 << 62)
			w.deliver(w.records[len(w.records)-1], arrivesLost)
			w.pass(minute)
		}, "Call event sent, Looking for the call event, Call event created", "contact", "calls lookup.uniq"},
		{"K10 nobody can say: a person retries it", func(w *world) {
			w.appear(digits, false)
			w.input("a", voip(Inbound, ""))
			w.fire(1 << 62)
			r := w.record(CallKey(account, "a"))
			post := r.line[0]
			w.deliver(r, lost)
			w.tooMany(r)
			w.pass(100 * hour)
			if c := w.call("a"); c.Phase != Failed || len(r.timers)+len(r.line) != 0 {
				w.t.Errorf("%+v", c)
			}
			r.line = append(r.line, post)
			w.settle()
		}, "Call event sent, Looking for the call event, Create call event error, Call event created", "contact", "calls"},
		{"K10 nobody can say about a lead: a person retries it", func(w *world) {
			w.input("a", voip(Inbound, ""))
			w.fire(1 << 62)
			w.deliver(w.record(CallKey(account, "a")), arrives)
			w.take(0)
			n := w.record(NumberKey(account, digits))
			post := n.line[0]
			w.deliver(n, lost)
			w.tooMany(n)
			w.pass(hour)
			if c := w.call("a"); c.Phase != Stuck || n.number.Phase != Refused {
				w.t.Errorf("%+v %+v", c, n.number)
			}
			n.line = append(n.line, post)
			w.settle()
		}, "Call event sent, No entity found by number, Incoming lead sent, Looking for the call event, Create call event error, Create call event error, " +
			"Incoming lead created, Incoming lead created", "lead", "calls unsorted.sip"},
		{"K10 it had not arrived", func(w *world) {
			w.appear(digits, false)
			w.input("a", voip(Inbound, ""))
			w.fire(1 << 62)
			w.deliver(w.records[len(w.records)-1], lost)
			w.pass(minute)
		}, "Call event sent, Looking for the call event, Call event sent, Call event created", "contact", "calls lookup.uniq"},
		{"a refused call waits for a person", func(w *world) {
			w.appear(digits, false)
			w.input("a", voip(Inbound, ""))
			w.fire(1 << 62)
			r := w.records[len(w.records)-1]
			w.deliver(r, refused)
			w.input("a", window(WindowSaved, Inbound, onChosen, "will buy"))
			w.pass(hour)
			if len(w.crm.events) != 0 || !w.replies[0].Pending {
				w.t.Errorf("%+v", w.replies)
			}
			w.retry(r)
			w.pass(minute)
		}, "Call event sent, Create call event error, Call event created, Call event update sent, Call event updated", "contact", "calls notes.patch"},
		{"a refused lead holds all calls of its number", func(w *world) {
			for _, id := range []string{"a", "b"} {
				w.input(id, voip(Inbound, ""))
			}
			for w.fire(1 << 62) {
			}
			for _, r := range w.records {
				w.deliver(r, arrives)
			}
			for len(w.messages) > 0 {
				w.take(0)
			}
			number := w.record(NumberKey(account, digits))
			w.deliver(number, refused)
			w.pass(hour)
			if len(w.crm.events) != 0 || w.call("a").Phase != Stuck || w.call("b").Phase != Stuck {
				w.t.Errorf("%+v %+v", w.call("a"), w.call("b"))
			}
			w.retry(number)
			w.pass(minute)
		}, "Call event sent, Call event sent, No entity found by number, No entity found by number, Incoming lead sent, " +
			"Create call event error, Create call event error, Create call event error, Incoming lead created, Incoming lead created, " +
			"Joins the incoming lead, Call event sent, Call event created", "lead", "calls notes.create unsorted.sip"},
		{"a refused lead does not hold outgoing calls", func(w *world) {
			w.input("b", voip(Inbound, ""))
			w.fire(1 << 62)
			w.deliver(w.record(CallKey(account, "b")), arrives)
			w.take(0)
			w.deliver(w.record(NumberKey(account, digits)), refused)
			w.seen()
			clear(w.crm.requests)
			w.input("a", voip(Outbound, ""))
			w.pass(minute)
			w.appear(digits, false)
			w.pass(10 * minute)
		}, "Create call event error, Call event sent, No entity found by number, Waits for a contact, Call event sent, Call event created", "contact", "calls"},
		{"a withheld number", func(w *world) {
			in := voip(Inbound, "rec")
			in.Voip.Phone = "anonymous"
			w.input("a", in)
			w.pass(17 * hour)
			w.seen()
			w.input("a", window(WindowSaved, Inbound, onChosen, ""))
			w.settle()
		}, "Call event sent, Call event created", "lead", "notes.create"},
	}
	for _, test := range tests {
		t.Run(test.rule, func(t *testing.T) {
			w := newWorld(t)
			test.run(w)
			if got := w.seen(); got != test.want {
				t.Errorf("journal\n%s\nwant\n%s", got, test.want)
			}
			phases := map[Phase]string{Collecting: "collecting", Parked: "parked", NoEntity: "no entity"}
			got := phases[w.call("a").Phase]
			if e := w.crm.event("a"); e != nil {
				got = e.entity.Type
			}
			if got != test.entity {
				t.Errorf("it is at %q, want %q", got, test.entity)
			}
			var sent []string
			for endpoint := range w.crm.requests {
				sent = append(sent, endpoint)
			}
			slices.Sort(sent)
			if got := strings.Join(sent, " "); got != test.sent {
				t.Errorf("sent %q, want %q", got, test.sent)
			}
		})
	}
}

// TestOneLead: fifty calls from one unknown number, as close together as they can be, are one incoming lead (K6).
func TestOneLead(t *testing.T) {
	for _, together := range []bool{true, false} {
		w := newWorld(t)
		for i := range 50 {
			w.input(fmt.Sprint("call", i), voip(Inbound, "rec"))
			if !together {
				w.pass(7 * minute)
			}
		}
		w.pass(minute)
		if len(w.crm.leads) != 1 || len(w.crm.events) != 50 {
			t.Errorf("%d leads, %d calls", len(w.crm.leads), len(w.crm.events))
		}
		for _, e := range w.crm.events {
			if e.entity.ID != w.crm.leads[0].id || e.link == "" {
				t.Errorf("%+v", e)
			}
		}
	}
}

// TestPopup: one card per leg, and only while it rings (K11).
func TestPopup(t *testing.T) {
	ring := Input{Ringing: &Ringing{Phone: "+13055550142", Users: []int64{8800123}}}
	w := newWorld(t)
	w.input("a", ring)
	w.input("a", ring)
	if !w.last.Duplicate {
		t.Errorf("the second is no duplicate")
	}
	w.settle()
	if w.crm.requests[EndpointPopup] != 1 {
		t.Errorf("%v", w.crm.requests)
	}
	w.input("b", Input{Ringing: &Ringing{Phone: "+13055550142"}})
	w.input("c", voip(Inbound, ""))
	w.input("c", ring)
	ring.RequestID, ring.ReceivedMS = "late", w.now-10_000
	w.commit(CallKey(account, "d"), "late", ring)
	w.settle()
	if w.crm.requests[EndpointPopup] != 1 {
		t.Errorf("cards without users, after the call and long after the ringing: %v", w.crm.requests)
	}
	ring.ReceivedMS = w.now - 9_000
	w.commit(CallKey(account, "e"), "late", ring)
	if d := w.last.Deliveries; len(d) != 1 || d[0].MaxAgeMS != 1000 {
		t.Errorf("%+v", d)
	}
	w.cfg.PopupMaxAge, ring.RequestID, ring.ReceivedMS = 0, "off", w.now
	if w.commit(CallKey(account, "f"), "off", ring); len(w.last.Deliveries) != 0 {
		t.Errorf("switched off: %+v", w.last.Deliveries)
	}
}

// TestPoison: what Kommo never answers is sent anew for three days, and then left to a person, who can retry it.
func TestPoison(t *testing.T) {
	for _, contact := range []bool{true, false} {
		w := newWorld(t)
		r, bad := w.record(CallKey(account, "a")), EndpointCalls
		if contact {
			w.appear(digits, false)
		} else {
			r, bad = w.record(NumberKey(account, digits)), EndpointLead
		}
		w.input("a", voip(Inbound, ""))
		var post NewDelivery
		sent := 0
		for end := w.now + 30*24*hour; w.now < end; {
			switch {
			case len(w.messages) > 0:
				w.take(0)
			case len(r.line) > 0 && r.line[0].Endpoint == bad:
				sent, post = sent+1, r.line[0]
				w.deliver(r, lost)
			case len(r.line) > 0:
				w.deliver(r, arrives)
			case len(w.record(CallKey(account, "a")).line) > 0:
				w.deliver(w.record(CallKey(account, "a")), arrives)
			default:
				if !w.fire(end) {
					end = w.now
				}
			}
		}
		if c := w.call("a"); sent < 50 || sent > 110 || !contact && c.Phase != Stuck || contact && (c.Phase != Failed || c.Post != post.Number) {
			t.Errorf("contact %t: sent %d times, %+v", contact, sent, c)
		}
		r.line = append(r.line, post)
		w.settle()
		if c := w.call("a"); c.Phase != Written {
			t.Errorf("retried: %+v", c)
		}
	}
}

// TestDiscardedWhileLookedFor: what nobody can retry any more is not left to somebody who would have to.
func TestDiscardedWhileLookedFor(t *testing.T) {
	w := newWorld(t)
	w.input("a", voip(Inbound, ""))
	w.fire(1 << 62)
	r := w.record(CallKey(account, "a"))
	w.deliver(r, lost)
	w.result(r, Result{Delivery: 1, Endpoint: EndpointCalls, Outcome: Dropped, Reason: "test call"})
	w.tooMany(r)
	if c := w.call("a"); c.Phase != Discarded {
		t.Errorf("%+v", c)
	}
	w = newWorld(t)
	w.input("a", voip(Inbound, ""))
	w.fire(1 << 62)
	w.deliver(w.record(CallKey(account, "a")), arrives)
	w.take(0)
	n := w.record(NumberKey(account, digits))
	w.deliver(n, lost)
	w.result(n, Result{Delivery: 1, Endpoint: EndpointLead, Outcome: Dropped, Reason: "test call"})
	w.tooMany(n)
	w.settle()
	if c := w.call("a"); c.Phase != Discarded || n.number.Phase != Idle {
		t.Errorf("%+v %+v", c, n.number)
	}
}

// TestDiscarded: what a person decided against is not tried again, and frees the number for the next call.
func TestDiscarded(t *testing.T) {
	w := newWorld(t)
	w.appear(digits, false)
	w.input("a", voip(Inbound, ""))
	w.fire(1 << 62)
	r := w.record(CallKey(account, "a"))
	w.deliver(r, refused)
	r.dead = nil
	w.result(r, Result{Delivery: 1, Endpoint: EndpointCalls, Outcome: Dropped, Reason: "test call"})
	w.input("a", window(WindowSaved, Inbound, chosen, "will buy"))
	w.pass(20 * hour)
	if c := w.call("a"); c.Phase != Discarded || len(w.crm.events) != 0 {
		t.Errorf("%+v", c)
	}

	w = newWorld(t)
	w.input("a", voip(Inbound, ""))
	w.input("b", voip(Inbound, ""))
	for w.fire(1 << 62) {
	}
	w.deliver(w.record(CallKey(account, "a")), arrives)
	w.deliver(w.record(CallKey(account, "b")), arrives)
	w.take(0)
	w.take(0)
	n := w.record(NumberKey(account, digits))
	n.line = nil
	w.result(n, Result{Delivery: 1, Endpoint: EndpointLead, Outcome: Dropped, Reason: "test call"})
	w.pass(minute)
	if a, b := w.call("a"), w.call("b"); a.Phase != Discarded || b.Phase != Written || len(w.crm.leads) != 1 {
		t.Errorf("%+v %+v", a, b)
	}
}

func TestConfigCheck(t *testing.T) {
	if err := (&Config{Unconfirmed: Unconfirmed{}}).Check(); err == nil {
		t.Fatal("an empty configuration passed")
	} else {
		for _, word := range []string{"account_id", "source_name", "source_format", "widget_code", "link", "KOMMO_WINDOW_MAX", "join_lead", "join_onto", "event_onto", "sip_phone", "result_max"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%q is not named in: %v", word, err)
			}
		}
	}
	cfg := testConfig()
	cfg.ClaimDelay, cfg.Unconfirmed.SIPFrom = -time.Second, "nobody"
	if err := cfg.Check(); err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("%v", err)
	}
}

func TestKeys(t *testing.T) {
	for _, test := range []struct {
		key     string
		account int64
		id      string
		number  bool
	}{
		{"kommo/9001/ameyo:193421", 9001, "ameyo:193421", false},
		{"kommo/9001/missed:a/b", 9001, "missed:a/b", false},
		{"kommo-number/9001/3055550142", 9001, "3055550142", true},
		{"kommo/x/1", 0, "", false}, {"kommo/01/1", 0, "", false}, {"kommo/-1/1", 0, "", false}, {"kommo/9001", 0, "", false},
		{"kommo/9001/", 0, "", false}, {"ameyo/193421", 0, "", false}, {"9001/1", 0, "", false}, {"kommo-number/", 0, "", false},
	} {
		id, call, number, ok := ParseKey(test.key)
		if ok != (test.id != "") || ok && (id != test.account || call != test.id || number != test.number) {
			t.Errorf("%q: %d %q %t %t", test.key, id, call, number, ok)
		}
		if made := map[bool]string{false: CallKey(id, call), true: NumberKey(id, call)}[number]; ok && made != test.key {
			t.Errorf("%q became %q", test.key, made)
		}
	}
	for phone, want := range map[string]string{"+1 (305) 555-0142": "3055550142", "03-5550-142": "035550142", "anonymous": "", "": "", "１２": ""} {
		if got := Digits(phone); got != want {
			t.Errorf("%q: %q, want %q", phone, got, want)
		}
	}
}

// TestStaleAnswers: what answers an earlier question, or none, changes nothing; else a call that a lead is being made for
// could be written on its own as well.
func TestStaleAnswers(t *testing.T) {
	for _, kind := range []AnswerKind{AnswerLead, AnswerPark, AnswerStuck, AnswerDiscarded, AnswerContact} {
		for _, call := range []Call{
			{ID: "a", Phase: Asking, Asked: true, Ask: 2},
			{ID: "a", Phase: Parked, Ask: 1},
			{ID: "a", Phase: Written, Ask: 1, Rev: 1, WrittenRev: 1},
		} {
			if _, e := Decide(testConfig(), call, Input{Answer: &Answer{Kind: kind, Ask: 1, Entity: chosen, UID: "u"}}, epoch); e.Changed {
				t.Errorf("%s to %+v: %+v", kind, call, e)
			}
		}
	}
}

// TestWaitingEnds: whose time is over is forgotten, without touching the list that was given.
func TestWaitingEnds(t *testing.T) {
	given := []Unknown{{Call: "a", Waits: true, UntilMS: epoch}, {Call: "b", Waits: true, UntilMS: epoch + 1}, {Call: "c", UntilMS: epoch}}
	before := slices.Clone(given)
	next, _ := DecideNumber(testConfig(), Number{Digits: digits, Waiting: given}, Input{Unknown: &Unknown{Call: "d", Waits: true, UntilMS: epoch + 2}}, epoch)
	var calls []string
	for _, u := range next.Waiting {
		calls = append(calls, u.Call)
	}
	if got := strings.Join(calls, " "); got != "b c d" {
		t.Errorf("%s wait", got)
	}
	for i := range given {
		if given[i].Call != before[i].Call {
			t.Errorf("the list that was given is %+v now", given)
		}
	}
}
