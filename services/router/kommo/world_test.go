package kommo

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// tester is what testing.T and rapid.T have in common.
type tester interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// epoch is 2026-11-20 11:24:25 UTC.
const epoch = 1795173865000

const account = 9001

func testConfig() *Config {
	cfg := DefaultConfig(account)
	cfg.Link = func(callID string) string { return "https://relay.example/voip/9001/get_call_record/" + callID }
	return cfg
}

// crm is a model of Kommo: what these rules rely on and nothing else.
type crm struct {
	t        tester
	contacts map[string]int64 // by digits
	leads    []*crmLead
	events   []*crmEvent
	// unsortedOff: the account takes no incoming leads. notesOnLeads: an open incoming lead takes notes. lateEvents: the call
	// event of an incoming lead cannot be changed before somebody accepts it.
	unsortedOff, notesOnLeads, lateEvents bool
	next                                  int64
	// requests counts by endpoint.
	requests map[string]int
}

type crmLead struct {
	uid     string
	id      int64
	contact int64
	digits  string
	uniq    string
	// open until accepted or declined; gone: declined.
	open, gone bool
}

// crmEvent is one call that people see in Kommo.
type crmEvent struct {
	uniq   string
	entity Entity
	note   int64
	link   string
	result string
	length int64
	lead   *crmLead // it is part of the incoming lead
}

func (k *crm) id() int64 {
	k.next++
	return 1000 + k.next
}

// add adds an event. Those of a lead that was declined are gone with it: a call whose lead is declined before the relay knows that it
// had arrived gets another, since nothing in Kommo says that there was one.
func (k *crm) add(e *crmEvent) *crmEvent {
	if e.note == 0 {
		e.note = k.id()
	}
	k.events = slices.DeleteFunc(k.events, func(other *crmEvent) bool { return other.uniq == e.uniq && other.lead != nil && other.lead.gone })
	for _, other := range k.events {
		if other.uniq == e.uniq {
			k.t.Fatalf("call %s is in Kommo twice: on %v and on %v", e.uniq, other.entity, e.entity)
		}
	}
	k.events = append(k.events, e)
	return e
}

func (k *crm) exists(e Entity) bool {
	if e == (Entity{"lead", 777}) {
		return true
	}
	for _, l := range k.leads {
		if e == (Entity{"lead", l.id}) || e == (Entity{"contact", l.contact}) {
			return !l.gone && (k.notesOnLeads || !l.open)
		}
	}
	return e.Type == "contact" && slices.Contains(slices.Collect(maps.Values(k.contacts)), e.ID)
}

func (k *crm) event(uniq string) *crmEvent {
	if i := slices.IndexFunc(k.events, func(e *crmEvent) bool { return e.uniq == uniq }); i >= 0 {
		return k.events[i]
	}
	return nil
}

// do does what a request asks for.
func (k *crm) do(endpoint string, payload []byte) (Outcome, Reply) {
	k.requests[endpoint]++
	var w struct {
		Path path
		Body noteBody
	}
	unwrap := func(v any) {
		if err := json.Unmarshal(payload, v); err != nil || strings.Contains(string(payload), "null") {
			k.t.Fatalf("%s %s: %v", endpoint, payload, err)
		}
	}
	switch endpoint {
	case EndpointCalls:
		var calls []callBody
		unwrap(&calls)
		contact, ok := k.contacts[Digits(calls[0].Phone)]
		if !ok {
			return NotFound, Reply{}
		}
		e := k.add(&crmEvent{uniq: calls[0].Uniq, entity: Entity{"contact", contact}, link: calls[0].Link, result: calls[0].Result, length: calls[0].Duration})
		return OK, Reply{Entity: e.entity, NoteID: e.note}
	case EndpointNote:
		unwrap(&w)
		to := Entity{w.Path.EntityType, w.Path.EntityID}
		if !k.exists(to) {
			return NotFound, Reply{}
		}
		e := k.add(&crmEvent{uniq: w.Body.Params.Uniq, entity: to, link: w.Body.Params.Link, result: w.Body.Params.Result, length: w.Body.Params.Duration})
		return OK, Reply{Entity: e.entity, NoteID: e.note}
	case EndpointPatch:
		unwrap(&w)
		e := k.event(w.Body.Params.Uniq)
		if e == nil || e.entity != (Entity{w.Path.EntityType, w.Path.EntityID}) || e.lead != nil && (e.lead.gone || e.lead.open && k.lateEvents) {
			return NotFound, Reply{}
		}
		e.link, e.result, e.length = w.Body.Params.Link, w.Body.Params.Result, w.Body.Params.Duration
		return OK, Reply{Entity: e.entity, NoteID: e.note}
	case EndpointLead:
		var leads []leadBody
		unwrap(&leads)
		if k.unsortedOff {
			return UnsortedOff, Reply{}
		}
		m := leads[0].Metadata
		l := &crmLead{uid: fmt.Sprint("u", k.id()), id: k.id(), contact: k.id(), digits: Digits(m.Phone), uniq: m.Uniq, open: true}
		for _, other := range k.leads {
			if other.open && other.digits == l.digits {
				k.t.Fatalf("two incoming leads of one number: with %s and with %s", other.uniq, l.uniq)
			}
		}
		k.leads = append(k.leads, l)
		k.add(&crmEvent{uniq: m.Uniq, entity: Entity{"lead", l.id}, link: m.Link, length: m.Duration, lead: l})
		return OK, Reply{UID: l.uid, LeadID: l.id, ContactID: l.contact}
	case EndpointLookup:
		unwrap(&w)
		for _, l := range k.leads {
			if l.uniq == w.Path.Uniq && !l.gone {
				return OK, Reply{UID: l.uid, LeadID: l.id, ContactID: l.contact}
			}
		}
		if e := k.event(w.Path.Uniq); e != nil && (e.lead == nil || !e.lead.gone) {
			return OK, Reply{Entity: e.entity, NoteID: e.note}
		}
		return NotFound, Reply{}
	}
	return OK, Reply{}
}

// record is a call or a number with everything that the store keeps beside it.
type record struct {
	key    string
	call   *Call
	number *Number
	// seen are the ids of its inputs; a repeat is harmless.
	seen map[string]bool
	// line are the deliveries to go out, head first; dead ones wait for a person.
	line, dead []NewDelivery
	timers     map[string]int64
	results    int
	// undecided: an input was given up, because the account was away for too long.
	undecided bool
}

// world is an account: its records, Kommo, a clock, and messages under way.
type world struct {
	t        tester
	cfg      *Config
	crm      *crm
	now      int64
	records  []*record
	messages []Message
	sent     []Message // every message ever, to repeat
	inputs   int
	last     Effects
	facts    []string
	notices  int
	// appearedMS is when there was a contact for the first time.
	appearedMS int64
	replies    []WindowReply
	// givesUp: the next result, timer or answer of a call is too old before the account is back.
	givesUp bool
}

func newWorld(t tester) *world {
	w := &world{t: t, cfg: testConfig(), now: epoch,
		crm: &crm{t: t, contacts: map[string]int64{}, notesOnLeads: true, requests: map[string]int{}}}
	if err := w.cfg.Check(); err != nil {
		t.Fatalf("%v", err)
	}
	return w
}

func (w *world) record(key string) *record {
	for _, r := range w.records {
		if r.key == key {
			return r
		}
	}
	_, id, number, ok := ParseKey(key)
	if !ok {
		w.t.Fatalf("key %q", key)
	}
	r := &record{key: key, seen: map[string]bool{}, timers: map[string]int64{}}
	if number {
		r.number = &Number{Digits: id}
	} else {
		r.call = &Call{ID: id}
	}
	w.records = append(w.records, r)
	return r
}

func (w *world) call(id string) *Call { return w.record(CallKey(account, id)).call }

// commit decides an input and makes its effects true, unless it was committed before.
func (w *world) commit(key, id string, in Input) {
	w.t.Helper()
	r := w.record(key)
	if r.seen[id] {
		return
	}
	r.seen[id] = true
	if w.givesUp && r.call != nil && (in.Result != nil || in.Timer != "" || in.Answer != nil) {
		w.givesUp, r.undecided = false, true
		return
	}
	var e Effects
	if r.call != nil {
		next, effects := decideTwice(w, *r.call, in, Decide, w.cfg)
		r.call, e = &next, effects
	} else {
		next, effects := decideTwice(w, *r.number, in, DecideNumber, w.otherSettings())
		r.number, e = &next, effects
	}
	for _, name := range e.CancelTimers {
		delete(r.timers, name)
	}
	for _, timer := range e.SetTimers {
		if timer.Name == in.Timer || slices.Contains(e.CancelTimers, timer.Name) || timer.InMS < 1 {
			w.t.Errorf("timer %+v set by %+v, cancelled %v", timer, in, e.CancelTimers)
		}
		r.timers[timer.Name] = w.now + timer.InMS
	}
	if in.Timer != "" && slices.Contains(e.CancelTimers, in.Timer) {
		w.t.Errorf("timer %s is cancelled by itself", in.Timer)
	}
	for _, d := range e.Deliveries {
		if d.Destination != "kommo/9001" || !json.Valid(d.Payload) {
			w.t.Errorf("delivery %+v", d)
		}
	}
	r.line = append(r.line, e.Deliveries...)
	w.messages = append(w.messages, e.Messages...)
	w.sent = append(w.sent, e.Messages...)
	w.last, w.notices = e, w.notices+len(e.Notices)
	for _, fact := range e.Facts {
		if o, ok := fact.(CallOutcome); ok {
			w.facts = append(w.facts, o.Name)
		}
	}
	if in.Window != nil {
		w.replies = append(w.replies, e.Reply)
	}
}

// otherSettings are those of another account with the same id. A number is decided the same with them, so it need not wait for an
// account that is away, and never is in a phase of which the end is given up.
func (w *world) otherSettings() *Config {
	cfg := *w.cfg
	cfg.PipelineID, cfg.WidgetCode, cfg.ResponsibleUser, cfg.SourceName, cfg.SourceFormat, cfg.ClaimDelay = 31337, "other", 7, "other", "{did}{name}", time.Hour
	return &cfg
}

// decideTwice checks what holds for every input: nothing given is changed, and the same comes out twice, the second time with
// another configuration.
func decideTwice[R any](w *world, before R, in Input, decide func(*Config, R, Input, int64) (R, Effects), second *Config) (R, Effects) {
	w.t.Helper()
	asGiven := deepCopy(before)
	next, effects := decide(w.cfg, before, in, w.now)
	again, same := decide(second, before, in, w.now)
	if !reflect.DeepEqual(any(before), asGiven) {
		w.t.Fatalf("%+v changed what it was given", in)
	}
	if !reflect.DeepEqual(next, again) || !reflect.DeepEqual(effects, same) {
		w.t.Fatalf("%+v decided twice, two results", in)
	}
	if !effects.Changed && !reflect.DeepEqual(next, before) {
		w.t.Fatalf("%+v changed the record and did not say so", in)
	}
	return next, effects
}

// deepCopy copies a record with what it points to.
func deepCopy(record any) any {
	switch r := record.(type) {
	case Call:
		r.Voip, r.Window = copied(r.Voip), copied(r.Window)
		return r
	case Number:
		r.Waiting, r.Creator, r.Lead = slices.Clone(r.Waiting), copied(r.Creator), copied(r.Lead)
		return r
	}
	panic("neither a call nor a number")
}

func copied[T any](p *T) *T {
	if p == nil {
		return nil
	}
	c := *p
	return &c
}

// input gives a source's input to a call.
func (w *world) input(call string, in Input) {
	w.t.Helper()
	w.inputs++
	in.RequestID, in.ReceivedMS = fmt.Sprint("r", w.inputs), w.now
	w.commit(CallKey(account, call), in.RequestID, in)
}

// How a request can end, seen from here.
const (
	arrives     = iota // and its answer too
	lost               // timeout; it did not arrive
	arrivesLost        // timeout; it did arrive
	refused            // 400/422, or tried too often
	notAnswered        // 429, 5xx, 401: nothing happened, upstream will try again
	endings
)

// deliver sends the head of a line.
func (w *world) deliver(r *record, ending int) {
	w.t.Helper()
	d := r.line[0]
	result := Result{Delivery: d.Number, Endpoint: d.Endpoint}
	switch ending {
	case arrives, arrivesLost:
		result.Outcome, result.Reply = w.crm.do(d.Endpoint, d.Payload)
		if ending == arrivesLost {
			result.Outcome, result.Reply, result.Reason = Uncertain, Reply{}, "timeout"
		}
	case lost:
		result.Outcome, result.Reason = Uncertain, "timeout"
	case refused:
		result.Outcome, result.Reason = Dead, "Kommo refused it"
		r.dead = append(r.dead, d)
	case notAnswered:
		return
	}
	r.line = r.line[1:]
	w.result(r, result)
}

// tooMany lets the look-up of a record come due, and Kommo hold too much for it.
func (w *world) tooMany(r *record) {
	w.t.Helper()
	for len(r.line) == 0 && w.fire(1<<62) {
	}
	look := r.line[0]
	r.line = r.line[1:]
	if look.Endpoint != EndpointLookup {
		w.t.Fatalf("%s, not a look-up", look.Endpoint)
	}
	w.result(r, Result{Delivery: look.Number, Endpoint: look.Endpoint, Outcome: TooMany})
}

func (w *world) result(r *record, result Result) {
	w.t.Helper()
	r.results++
	w.commit(r.key, fmt.Sprintf("d%d:%d", result.Delivery, r.results), Input{Result: &result})
}

// take gives a message to its record, and once more.
func (w *world) take(i int) {
	w.t.Helper()
	m := w.messages[i]
	w.messages = slices.Delete(slices.Clone(w.messages), i, i+1)
	w.commit(m.To, m.ID, m.Input)
	w.commit(m.To, m.ID, m.Input)
}

// fire lets the next timer come due, if it is due by then.
func (w *world) fire(by int64) bool {
	w.t.Helper()
	var record *record
	name, due := "", by+1
	for _, r := range w.records {
		for _, n := range slices.Sorted(maps.Keys(r.timers)) {
			if r.timers[n] < due {
				record, name, due = r, n, r.timers[n]
			}
		}
	}
	if record == nil {
		return false
	}
	w.now = max(w.now, due)
	delete(record.timers, name)
	w.inputs++
	w.commit(record.key, fmt.Sprint("t", w.inputs), Input{Timer: name, ReceivedMS: w.now})
	return true
}

// settle lets messages and deliveries come to rest.
func (w *world) settle() {
	w.t.Helper()
	for steps := 0; ; steps++ {
		if steps > 20_000 {
			w.t.Fatalf("it never comes to rest")
		}
		if len(w.messages) > 0 {
			w.take(0)
			continue
		}
		i := slices.IndexFunc(w.records, func(r *record) bool { return len(r.line) > 0 })
		if i < 0 {
			return
		}
		w.deliver(w.records[i], arrives)
	}
}

// pass lets time pass; everything that comes due happens.
func (w *world) pass(ms int64) {
	w.t.Helper()
	end := w.now + ms
	w.settle()
	for w.fire(end) {
		w.settle()
	}
	w.now = end
}

// retry puts back what is dead, as a person does.
func (w *world) retry(r *record) {
	r.line = append(r.line, r.dead[0])
	r.dead = r.dead[1:]
}

// appear makes a contact, and tells the rules if there is a webhook.
func (w *world) appear(digits string, webhook bool) {
	w.t.Helper()
	if w.crm.contacts[digits] == 0 {
		w.crm.contacts[digits] = w.crm.id()
	}
	if w.appearedMS == 0 {
		w.appearedMS = w.now
	}
	if webhook {
		w.inputs++
		w.commit(NumberKey(account, digits), fmt.Sprint("r", w.inputs), Input{Contact: true})
	}
}

// accept or decline the open incoming lead of a number.
func (w *world) close(l *crmLead, accept, webhook bool) {
	w.t.Helper()
	l.open = false
	if !accept {
		l.gone = true
		return
	}
	if w.crm.contacts[l.digits] == 0 {
		w.crm.contacts[l.digits] = l.contact
	}
	w.appear(l.digits, webhook)
}

// attempt is a dialer's report of an attempt that ended just now.
func attempt(status Status) Input {
	in := voip(Outbound, "")
	in.Voip.Status, in.Voip.StartedMS = status, 0
	if status != StatusAnswered {
		in.Voip.Duration = 0
	}
	return in
}

// seen are the outcomes journaled since the last time, in order.
func (w *world) seen() string {
	all := strings.Join(w.facts, ", ")
	w.facts = nil
	return all
}
