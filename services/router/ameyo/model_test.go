package ameyo

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"callrelay/callback"
)

// model is the specification once more, written as a story: every gate has a status that events change, nothing is
// derived, and the rules are plain conditions. It shares no code with the package but the words of the summaries.
// Seconds are milliseconds here too, so that nothing is converted.
type model struct {
	hangupSignal, send bool
	gates              map[string][]*modelGate // oldest first; a connected one and one that is not do not replace each other
	records            map[string]*modelRecord
	marks              map[string]*modelMark
	// served is the gate of each delivery, by number; owners are request ids.
	served map[uint32]*modelGate
	said   []string
}

type modelGate struct {
	status      string // "processing", "processed", "open"; "waiting" as long as record says so
	since       int64
	received    int64 // by the owner; nothing is processed before it was received
	record      *modelRecord
	owner       string
	connected   bool
	index       uint32
	disposition string
	silent      bool // it stored or absorbed a phone-1 status, and nothing was sent
}

// close ends the waiting for the record. A gate that was told to be processed already stays so.
func (g *modelGate) close(r *modelRecord, at int64) {
	if g.status != "waiting" {
		return
	}
	g.status, g.since = "processed", max(at, g.received)
	if r.told {
		g.since = r.until
	}
}

type modelRecord struct {
	status, taker string
	until         int64
	taken, told   bool // told: its end was journaled
	gate          *modelGate
}

type modelMark struct {
	by    string
	until int64
	used  bool
}

func (m *model) say(format string, args ...any) {
	m.said = append(m.said, fmt.Sprintf(format, args...))
}

// suppressed says whether a gate stops a callback, and as what.
func (m *model) suppressed(g *modelGate, at int64, connected, storesOnly bool, index uint32) string {
	if connected && !g.connected || g.silent && !storesOnly && index > g.index {
		return ""
	}
	status, since := g.status, g.since
	if status == "waiting" && at >= g.record.until {
		status, since = "processed", g.record.until
	}
	switch {
	case status == "processing":
		return "processing"
	case status == "waiting" && storesOnly:
		return "waiting_phone2"
	case status == "processed" && at < since+300_000:
		return "processed"
	}
	return ""
}

func (m *model) duplicate(key string, at int64, connected, storesOnly bool, index uint32, disposition string) bool {
	for _, g := range slices.Backward(m.gates[key]) {
		as := m.suppressed(g, at, connected, storesOnly, index)
		if as == "" {
			continue
		}
		differs := ""
		if g.index != index || g.disposition != disposition {
			differs = "!"
		}
		m.say("dup%s:%s:%s", differs, as, g.owner)
		return true
	}
	return false
}

func (m *model) take(key string, gate *modelGate) {
	m.gates[key] = append(slices.DeleteFunc(m.gates[key], func(g *modelGate) bool { return g.connected == gate.connected }), gate)
}

func (m *model) start(key, owner string, number uint32, at int64) {
	if m.duplicate(key, at, false, false, 0, "") {
		return
	}
	m.say("start:createCallStart")
	m.served[number] = &modelGate{status: "processing", owner: owner}
	m.take(key, m.served[number])
}

// expire is a record's time passing, noticed by its timer or by a callback. It returns the deliveries it queued.
func (m *model) expire(customer string, at int64, number uint32) uint32 {
	r := m.records[customer]
	if r == nil || r.taken || r.told || at < r.until {
		return 0
	}
	r.told = true
	m.say("expired=%s", r.status)
	if !m.send {
		return 0
	}
	m.say("phone1-expiry:createNotAnswer(%s)", r.status)
	r.taken, r.taker = true, "nobody"
	r.gate.status, r.gate.silent = "processing", false
	m.served[number] = r.gate
	return 1
}

func (m *model) end(key, customer, owner string, c *callback.CallEnd, status string, number uint32, at int64) {
	r := m.records[customer]
	readable := r != nil && (r.taken && r.taker == key || !r.taken && at < r.until)
	several := c.Phones >= 2 || readable
	rule := 0
	switch {
	case c.Connected && c.DialIndex == 0:
		rule = 1
	case c.Connected:
		rule = 2
	case !several:
		rule = 3
	case c.DialIndex > 0:
		rule = 5
	case m.hangupSignal && c.Disposition != "":
		rule = 3
	default:
		rule = 4
	}
	if m.duplicate(key, at, c.Connected, rule == 4, c.DialIndex, c.Disposition) {
		return
	}
	number += m.expire(customer, at, number)
	gate := &modelGate{status: "processing", owner: owner, received: at, connected: c.Connected, index: c.DialIndex, disposition: c.Disposition}
	if rule == 4 {
		m.storePhone1(key, customer, gate, status, at)
		return
	}
	phone1 := ""
	if readable {
		phone1 = r.status
	}
	switch rule {
	case 1:
		m.say("1:createCallEnd")
	case 2:
		m.say("2:createCallEnd%s", map[bool]string{true: "(" + phone1 + ")"}[readable])
	case 3:
		m.say("3:createNotAnswer(%s)", status)
	case 5:
		if !readable {
			phone1 = "UNKNOWN"
		}
		m.say("5:createNotAnswer(%s,%s)", phone1, status)
	}
	if readable && !r.taken {
		m.say("taken=%s", r.status)
		r.taken, r.taker = true, key
		r.gate.close(r, at)
	}
	if !readable && (rule == 2 || rule == 5) && (m.marks[customer] == nil || m.marks[customer].by != key) {
		m.marks[customer] = &modelMark{by: key, until: at + 600_000}
	}
	m.take(key, gate)
	m.served[number] = gate
}

func (m *model) storePhone1(key, customer string, gate *modelGate, status string, at int64) {
	gate.silent = true
	if mark := m.marks[customer]; mark != nil && !mark.used && at < mark.until {
		mark.used = true
		m.say("4:absorb late phone 1 absorbed=%s", status)
		gate.status, gate.since = "processed", at
		m.take(key, gate)
		return
	}
	m.say("4:wait for phone 2")
	if r := m.records[customer]; r != nil && !r.taken {
		if !r.told {
			m.say("replaced=%s", r.status)
		}
		r.gate.close(r, at)
	}
	m.say("stored=%s", status)
	gate.status, gate.record = "waiting", &modelRecord{status: status, until: at + 600_000, gate: gate}
	m.take(key, gate)
	m.records[customer] = gate.record
	delete(m.marks, customer)
}

// result is the store telling what became of a delivery.
func (m *model) result(number uint32, state DeliveryState, uncertain bool, at int64) {
	g := m.served[number]
	switch {
	case state == Queued || state == Leased:
		g.status = "processing"
	case state == Dead && !uncertain:
		g.status = "open"
	default:
		g.status, g.since = "processed", at
	}
}

// TestModel lets callbacks of two customers come in any order and number, late and repeated, while deliveries end in
// every way, are retried by hand, and timers fire late or for nothing; everything decided must be what the model says.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { runModel(t) })
}

func runModel(t *rapid.T) {
	m := &model{
		hangupSignal: rapid.Bool().Draw(t, "hangupSignal"), send: rapid.Bool().Draw(t, "send"),
		gates: map[string][]*modelGate{}, records: map[string]*modelRecord{}, marks: map[string]*modelMark{}, served: map[uint32]*modelGate{},
	}
	w := newWorld(t, func(c *Config) {
		if m.hangupSignal {
			hangupSignal(c)
		}
		if m.send {
			expirySend(c)
		}
	})
	timers := map[string]int64{}
	settle := func() {
		if got, want := w.summary(), strings.Join(m.said, " "); got != want {
			t.Fatalf("decided %q, want %q\n%+v", got, want, w.call)
		}
		m.said = nil
		for _, timer := range w.last.SetTimers {
			timers[timer.Name] = w.now + timer.InMS
		}
		for _, name := range w.last.CancelTimers { // last, as a commit does
			delete(timers, name)
		}
		for customer, r := range m.records {
			if _, armed := timers["phone1:"+customer]; armed != (!r.taken && !r.told) {
				t.Fatalf("customer %s: timer armed: %t, record %+v", customer, armed, r)
			}
		}
	}
	// received is now, or earlier for what waited in a spool.
	received := func() int64 {
		return w.now - rapid.SampledFrom([]int64{0, 0, 0, 1, 1000, 250_000, 700_000}).Draw(t, "late")
	}
	t.Repeat(map[string]func(*rapid.T){
		"pass": func(t *rapid.T) {
			w.now += rapid.SampledFrom([]int64{1, 1000, 100_000, 299_999, 300_000, 599_999, 600_000}).Draw(t, "ms")
		},
		"start": func(t *rapid.T) {
			c := callback.CallStart{CallID: "1", StaffID: rapid.SampledFrom([]string{"u", "v"}).Draw(t, "staff"), TargetTel: "5"}
			in := w.input()
			in.CallStart, in.ReceivedMS = &c, received()
			number := max(w.call.NextDelivery, 1)
			w.decide(in)
			m.start("start "+c.StaffID, in.RequestID, number, in.ReceivedMS)
			settle()
		},
		"end": func(t *rapid.T) {
			c := callback.CallEnd{
				CallID: "1", CustomerID: rapid.SampledFrom([]string{"k", "k", "k", "l"}).Draw(t, "customer"),
				AttemptID: rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, "attempt"),
				DialIndex: uint32(rapid.IntRange(0, 1).Draw(t, "index")), Phones: uint32(rapid.IntRange(1, 2).Draw(t, "phones")),
			}
			status := ""
			switch rapid.IntRange(0, 4).Draw(t, "kind") {
			case 0:
				c.Connected, c.Disposition, c.CustomerCRTID, c.StaffID, c.TargetTel = true, "CONNECTED", "x", "u", "5"
			case 1:
				c.HangupCause, status = "486", "BUSY"
			default:
				status = rapid.SampledFrom([]string{"BUSY", "NO_ANSWER"}).Draw(t, "disposition")
				c.Disposition = status
			}
			in := w.input()
			in.CallEnd, in.ReceivedMS = &c, received()
			number := max(w.call.NextDelivery, 1)
			w.decide(in)
			m.end("end "+c.CustomerID+" "+c.AttemptID, c.CustomerID, in.RequestID, &c, status, number, in.ReceivedMS)
			settle()
		},
		"timer": func(t *rapid.T) {
			customer := rapid.SampledFrom([]string{"k", "l"}).Draw(t, "customer")
			if due, ok := timers["phone1:"+customer]; ok && w.now >= due {
				delete(timers, "phone1:"+customer)
			} else if ok && w.now+earlyMS >= m.records[customer].until {
				return // due by its record, but set for later: the store would not let it fire
			}
			number := max(w.call.NextDelivery, 1)
			w.timer("phone1:" + customer)
			m.expire(customer, w.now+earlyMS, number)
			settle()
		},
		"result": func(t *rapid.T) {
			if len(w.call.Deliveries) == 0 {
				return
			}
			d := rapid.SampledFrom(w.call.Deliveries).Draw(t, "delivery")
			if !current(m, m.served[d.Number]) && d.State >= Delivered {
				return // superseded: the store refuses to retry it
			}
			var states []DeliveryState
			switch d.State {
			case Queued, Leased:
				states = []DeliveryState{Queued, Leased, Delivered, Dead, Dead, Expired, Discarded, SendDisabled, Asked}
			case Dead, Asked, Expired:
				states = []DeliveryState{Queued}
			default:
				return
			}
			state := rapid.SampledFrom(states).Draw(t, "state")
			uncertain := d.Uncertain || state == Asked || rapid.IntRange(0, 3).Draw(t, "uncertain") == 0
			w.result(d.Number, state, uncertain)
			m.result(d.Number, state, uncertain, w.now)
		},
	})
}

// current says that the gate is still its owner's.
func current(m *model, g *modelGate) bool {
	for _, gates := range m.gates {
		if gates[len(gates)-1] == g {
			return true
		}
	}
	return false
}
