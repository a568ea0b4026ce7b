package ameyo

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"callrelay/callback"
)

// minTimerMS is how soon a timer may be due, in milliseconds. It matters for callbacks that come late out of a spool: a
// phone 2 waiting behind its phone 1 in there is decided before the record is given up.
const minTimerMS = 10_000

// earlyMS is how much earlier than its record expires a timer may come, in milliseconds: another state process may have set it, by a
// clock that is a little behind.
const earlyMS = 500

// Decide says what an input means for a call: the call as it is then, and what follows. It changes none of its
// arguments; slices of the returned call may be shared with the given one.
//
// Gates and phone-1 records are judged by when the input was received; nowMS, the store's clock in Unix milliseconds,
// only says how long a timer has to run. cfg must have passed Check.
func Decide(cfg *Config, call Call, in Input, nowMS int64) (Call, Effects) {
	d := decision{cfg: cfg, call: call, in: in, at: in.ReceivedMS, now: nowMS}
	d.effects.RequestID = in.RequestID
	switch {
	case in.CallStart != nil:
		d.callStart(in.CallStart)
	case in.CallEnd != nil:
		d.callEnd(in.CallEnd)
	default:
		if d.at == 0 {
			d.at = nowMS
		}
		d.timer(in.Timer)
	}
	if d.effects.Changed {
		d.prune()
	}
	return d.call, d.effects
}

// decision is one run of Decide.
type decision struct {
	cfg     *Config
	call    Call
	in      Input
	at, now int64
	effects Effects
}

// change must come before the first change of the call: from here on its slices are our own.
func (d *decision) change() {
	if d.effects.Changed {
		return
	}
	d.effects.Changed = true
	d.call.Gates = append(make([]Gate, 0, len(d.call.Gates)+1), d.call.Gates...)
	d.call.Phone1 = slices.Clone(d.call.Phone1)
	d.call.Deliveries = slices.Clip(d.call.Deliveries)
}

func (d *decision) journal(facts ...Fact) { d.effects.Facts = append(d.effects.Facts, facts...) }

func (d *decision) notes(notes []string) {
	for _, note := range notes {
		d.journal(Note(note))
	}
}

func (d *decision) callStart(c *callback.CallStart) {
	d.notes(c.Notes)
	gate := Gate{Key: startKey(c), Owner: d.in.RequestID, ReceivedMS: d.at}
	if d.duplicate(gate, false) {
		return
	}
	d.change()
	left := d.cfg.CallStartMaxAge.Milliseconds()
	if left > 0 {
		left = max(left-(d.now-d.at), 1) // the time in a spool counts
	}
	number := d.queue(NewDelivery{
		Endpoint: FlowCallStart,
		Payload:  callStartPayload(c),
		Gate:     gate.Key,
		MaxAgeMS: left,
	})
	d.take(gate, number)
	d.journal(Decided{Rule: RuleStart, Flow: FlowCallStart, Deliveries: []uint32{number}})
}

func (d *decision) callEnd(c *callback.CallEnd) {
	d.notes(c.Notes)
	gate := Gate{
		Key: endKey(c), Owner: d.in.RequestID, ReceivedMS: d.at,
		Connected: c.Connected, DialIndex: c.DialIndex, Disposition: c.Disposition,
	}
	status, known := d.cfg.Rules.status(c.Disposition, c.HangupCause)
	if !known {
		d.journal(Note(fmt.Sprintf("hangupCauseCode %s is not in the cause table", c.HangupCause)))
	}
	record := d.call.readable(c.CustomerID, gate.Key, d.at)
	phones := c.Phones
	if record >= 0 {
		phones = max(phones, 2)
	}
	row := d.cfg.Rules.row(d.cfg.Profile, c.Connected, c.Disposition != "", c.DialIndex, phones)
	if d.duplicate(gate, row.action == wait) {
		return
	}
	d.change()
	d.expireIfDue(c.CustomerID)
	decided := Decided{Rule: row.rule, DialIndex: c.DialIndex, Phones: phones}
	if row.action == wait {
		d.wait(c, gate, status, decided)
		return
	}
	d.send(c, gate, row, status, record, decided)
}

// send queues the delivery of a row and takes the phone-1 record in the same step.
func (d *decision) send(c *callback.CallEnd, gate Gate, row *row, status string, record int, decided Decided) {
	stored, link := "", ""
	if row.errorInfo.usesPhone1() && record >= 0 {
		stored, link = d.call.Phone1[record].Status, d.call.Phone1[record].Traceparent
		decided.Phone1StateUsed = true
	}
	delivery := NewDelivery{Gate: gate.Key, Link: link}
	if row.action == createCallEnd {
		decided.Flow, decided.ErrorInfo1 = FlowCallEnd, stored
		delivery.Payload = callEndPayload(c, d.orReceived(c.StartTime, c.ConnectedTime), d.orReceived(c.EndTime), stored)
	} else {
		decided.Flow, decided.ErrorInfo1 = FlowNotAnswer, status
		if row.errorInfo == infoPhone1Status {
			decided.ErrorInfo1, decided.ErrorInfo2 = cmp.Or(stored, unknown), status
		}
		delivery.Payload = notAnswerPayload(c.CallID, d.orReceived(c.CallTime), decided.ErrorInfo1, decided.ErrorInfo2)
	}
	delivery.Endpoint = decided.Flow
	number := d.queue(delivery)
	decided.Deliveries = []uint32{number}
	d.journal(decided)
	switch {
	case record >= 0:
		d.takeRecord(record, gate.Key)
	case row.errorInfo.usesPhone1():
		d.leaveMark(c.CustomerID, gate)
	}
	d.take(gate, decided.Deliveries...)
}

// wait stores a phone-1 status, unless phone 2 was here before it.
func (d *decision) wait(c *callback.CallEnd, gate Gate, status string, decided Decided) {
	fact := Phone1Fact{CustomerID: c.CustomerID, Status: status, CallTime: d.orReceived(c.CallTime), RequestID: d.in.RequestID}
	if i := d.call.phone1(c.CustomerID, true); i >= 0 && d.call.Phone1[i].TakenBy == "" && d.at < d.call.Phone1[i].ExpiresMS {
		d.call.Phone1[i].TakenBy = gate.Key
		gate.ProcessedMS = d.at
		d.take(gate)
		decided.Flow, fact.What = FlowAbsorb, Phone1Absorbed
		d.journal(decided, fact)
		return
	}
	decided.Flow, fact.What = FlowWait, Phone1Stored
	d.journal(decided)
	if i := d.call.phone1(c.CustomerID, false); i >= 0 {
		if g := d.waitingGate(i); g >= 0 {
			d.journal(d.call.Phone1[i].fact(Phone1Replaced))
			d.settle(g, d.at)
		}
	}
	d.journal(fact)
	record := d.newPhone1(c.CustomerID, gate)
	record.Status, record.CallTime = status, fact.CallTime
	d.call.Phone1 = slices.DeleteFunc(d.call.Phone1, func(p Phone1) bool { return p.CustomerID == c.CustomerID })
	d.call.Phone1 = append(d.call.Phone1, record)
	gate.WaitingPhone2 = true
	d.take(gate)
	timer := Timer{Name: timerPrefix + c.CustomerID, InMS: max(record.ExpiresMS-d.now, minTimerMS)}
	d.effects.SetTimers = append(d.effects.SetTimers, timer)
	// That of a record which just expired has the same name, and what a commit both sets and cancels is gone.
	d.effects.CancelTimers = slices.DeleteFunc(d.effects.CancelTimers, func(name string) bool { return name == timer.Name })
}

// takeRecord marks the record as the taker's, unless it is already.
func (d *decision) takeRecord(i int, key string) {
	p := &d.call.Phone1[i]
	if p.TakenBy != "" {
		return
	}
	if g := d.waitingGate(i); g >= 0 {
		d.settle(g, d.at)
	}
	p.TakenBy = key
	d.effects.CancelTimers = append(d.effects.CancelTimers, timerPrefix+p.CustomerID)
	d.journal(p.fact(Phone1Taken))
}

// leaveMark leaves the mark that absorbs one late phone 1. A callback sent again after its delivery died finds the mark
// it left, absorbed or not, and leaves no second one.
func (d *decision) leaveMark(customer string, gate Gate) {
	if i := d.call.phone1(customer, true); i >= 0 {
		if d.call.Phone1[i].Gate == gate.Key {
			return
		}
		d.call.Phone1 = slices.Delete(d.call.Phone1, i, i+1)
	}
	mark := d.newPhone1(customer, gate)
	mark.LateMark = true
	d.call.Phone1 = append(d.call.Phone1, mark)
}

func (d *decision) newPhone1(customer string, gate Gate) Phone1 {
	return Phone1{
		CustomerID: customer, Gate: gate.Key, ReceivedMS: d.at, ExpiresMS: d.at + d.cfg.Phone1TTL.Milliseconds(),
		Traceparent: d.in.Traceparent, RequestID: d.in.RequestID,
	}
}

func (p *Phone1) fact(what string) Phone1Fact {
	return Phone1Fact{What: what, CustomerID: p.CustomerID, Status: p.Status, CallTime: p.CallTime, RequestID: p.RequestID}
}

func (d *decision) timer(name string) {
	if customer, ok := strings.CutPrefix(name, timerPrefix); ok {
		d.expireIfDue(customer)
	}
}

// expireIfDue ends the customer's phone-1 record if its time has passed, nobody took it and this was not done before.
// Callbacks do it too, so that it makes no difference whether they or the timer are decided first.
//
// A dropped record stays readable for callbacks that were received before it expired and are decided only now.
func (d *decision) expireIfDue(customer string) {
	i, at := d.call.phone1(customer, false), d.at
	if d.in.Timer != "" {
		at += earlyMS
	}
	if i < 0 || at < d.call.Phone1[i].ExpiresMS {
		return
	}
	g := d.waitingGate(i)
	if g < 0 {
		return
	}
	d.change()
	p := &d.call.Phone1[i]
	if d.in.Timer == "" {
		d.effects.CancelTimers = append(d.effects.CancelTimers, timerPrefix+customer)
	} else {
		d.effects.RequestID = p.RequestID
	}
	d.journal(p.fact(Phone1Expired))
	d.settle(g, p.ExpiresMS)
	if d.cfg.Phone1Expiry != ExpirySend {
		return
	}
	number := d.queue(NewDelivery{
		Endpoint:    FlowNotAnswer,
		Payload:     notAnswerPayload(keyCallID(p.Gate), p.CallTime, p.Status, ""),
		Gate:        p.Gate,
		RequestID:   p.RequestID,
		Traceparent: p.Traceparent,
	})
	d.call.Gates[g].Deliveries = []uint32{number}
	p.TakenBy = takenByExpiry
	d.journal(Decided{Rule: RuleExpiry, Flow: FlowNotAnswer, ErrorInfo1: p.Status, Phone1StateUsed: true, Deliveries: []uint32{number}, RequestID: p.RequestID})
}

// waitingGate returns the index of the gate that waits for the end of the record, or -1.
func (d *decision) waitingGate(record int) int {
	p := &d.call.Phone1[record]
	return slices.IndexFunc(d.call.Gates, func(g Gate) bool { return g.WaitingPhone2 && p.leftBy(&g) })
}

// settle ends the waiting of a gate.
func (d *decision) settle(gate int, at int64) {
	d.call.Gates[gate].WaitingPhone2, d.call.Gates[gate].ProcessedMS = false, at
}

// duplicate says that a gate with its key suppresses the callback, the newest such gate first, and journals that. waits: the
// callback would only store a phone-1 status (spec/ameyo-topsii.md, Dedupe gate).
func (d *decision) duplicate(gate Gate, waits bool) bool {
	for i := range slices.Backward(d.call.Gates) {
		g := &d.call.Gates[i]
		status, suppresses := d.suppresses(g, gate, waits)
		if g.Key != gate.Key || !suppresses {
			continue
		}
		d.effects.Duplicate = true
		d.journal(Duplicate{
			Of: g.Owner, Gate: status, Key: g.Key,
			Differs: g.DialIndex != gate.DialIndex || g.Disposition != gate.Disposition,
			Flow:    g.flow(),
		})
		return true
	}
	return false
}

// suppresses says whether the callback of a gate with the key of g is a repeat, and what g is then.
func (d *decision) suppresses(g *Gate, gate Gate, waits bool) (status string, yes bool) {
	status, since := d.call.status(g, d.at)
	switch {
	case status == "",
		status == GateProcessed && d.at >= since+d.cfg.DedupeTTL.Milliseconds(),
		status == GateWaitingPhone2 && !waits,
		len(g.Deliveries) == 0 && gate.DialIndex > g.DialIndex && !waits, // phone 1 sent nothing: its phone 2 is no repeat of it
		gate.Connected && !g.Connected:
		return status, false
	}
	return status, true
}

// flow is what the gate's owner led to.
func (g *Gate) flow() string {
	switch {
	case strings.HasPrefix(g.Key, startNamespace):
		return FlowCallStart
	case g.Connected:
		return FlowCallEnd
	case len(g.Deliveries) > 0:
		return FlowNotAnswer
	}
	return FlowWait
}

// take makes the gate the newest one, in place of the one like it.
func (d *decision) take(gate Gate, deliveries ...uint32) {
	gate.Deliveries = deliveries
	d.call.Gates = append(slices.DeleteFunc(d.call.Gates, gate.like), gate)
}

// queue numbers and queues a delivery, for the callback being decided unless it names another one.
func (d *decision) queue(delivery NewDelivery) uint32 {
	number := max(d.call.NextDelivery, 1)
	d.call.NextDelivery = number + 1
	delivery.Number, delivery.Destination = number, Destination
	if delivery.RequestID == "" {
		delivery.RequestID, delivery.Traceparent = d.in.RequestID, d.in.Traceparent
	}
	d.effects.Deliveries = append(d.effects.Deliveries, delivery)
	d.call.Deliveries = append(d.call.Deliveries, Delivery{Number: number, State: Queued, RequestID: delivery.RequestID})
	return number
}

// orReceived is the first given of the times, else the time of receipt, as TopS.II wants it.
func (d *decision) orReceived(times ...string) string {
	if given := cmp.Or(times...); given != "" {
		return given
	}
	zone := d.cfg.Zone
	if zone == nil {
		zone = callback.DefaultZone()
	}
	return time.UnixMilli(d.at).In(zone).Format(callback.TimeLayout)
}

// A call has one or two gates and phone-1 entries, a dozen after some re-dialling. A dialer that uses one call id again
// and again must not make its record grow without bound, so old entries are forgotten, oldest first:
//
// Beyond keepGates and keepPhone1 those that have no effect any more go: gates that were released or suppress nothing
// any more, records and marks that were taken or expired. What is lost then is only for late comers: a callback out of
// a spool that is older than 64 newer ones of its call, a repeat of a dead delivery that reads UNKNOWN.
//
// Beyond maxGates and maxPhone1 others go too, and that is journaled: a processed gate within its time (a repeat of a
// callback with 1,000 newer ones within 300 s would be sent twice) and a waiting record (its phone 2 reads UNKNOWN).
// Only a gate with an open delivery is never forgotten; it is as large as its delivery.
const (
	keepGates  = 64
	maxGates   = 1024
	keepPhone1 = 32
	maxPhone1  = 512
)

func (d *decision) prune() {
	if excess := len(d.call.Phone1) - keepPhone1; excess > 0 {
		d.dropPhone1(excess, func(i int) bool {
			p := &d.call.Phone1[i]
			return p.TakenBy != "" || d.at >= p.ExpiresMS && d.waitingGate(i) < 0
		})
	}
	if excess := len(d.call.Phone1) - maxPhone1; excess > 0 {
		d.dropPhone1(excess, func(int) bool { return true })
		d.journal(Note(fmt.Sprintf("the call has more than %d phone-1 records: forgot the oldest", maxPhone1)))
	}
	if excess := len(d.call.Gates) - keepGates; excess > 0 {
		d.dropGates(excess, func(status string, since int64) bool {
			return status == "" || status == GateProcessed && d.at >= since+d.cfg.DedupeTTL.Milliseconds()
		})
	}
	if excess := len(d.call.Gates) - maxGates; excess > 0 {
		if d.dropGates(excess, func(status string, _ int64) bool { return status == GateProcessed }) {
			d.journal(Note(fmt.Sprintf("the call has more than %d dedupe gates: forgot the oldest", maxGates)))
		}
	}
}

// dropGates drops at most so many of the gates that may be dropped, oldest first, and says whether there were any.
func (d *decision) dropGates(most int, drop func(status string, since int64) bool) bool {
	kept := d.call.Gates[:0]
	for i := range d.call.Gates {
		g := d.call.Gates[i]
		if most > 0 && !g.WaitingPhone2 && drop(d.call.status(&g, d.at)) {
			most--
			continue
		}
		kept = append(kept, g)
	}
	dropped := len(kept) < len(d.call.Gates)
	d.call.Gates = kept
	return dropped
}

func (d *decision) dropPhone1(most int, drop func(i int) bool) {
	var kept []Phone1
	for i := range d.call.Phone1 {
		if most > 0 && drop(i) {
			most--
			if g := d.waitingGate(i); g >= 0 {
				d.settle(g, d.at)
			}
			continue
		}
		kept = append(kept, d.call.Phone1[i])
	}
	d.call.Phone1 = kept
}
