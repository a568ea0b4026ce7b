package kommo

import (
	"reflect"
	"slices"
	"strconv"
	"time"
)

// Names of timers.
const (
	// timerClaim: the window has had its time (K2).
	timerClaim = "claim"
	// timerCheck: look for what may have arrived (K10), or try a change again.
	timerCheck = "check"
	// timerPoll: ask Kommo for the entity of a parked call again (K9).
	timerPoll = "poll"
	// timerPark: the waiting for a contact is over (K9).
	timerPark = "park"
)

// minTimerMS is how soon a timer may be due.
const minTimerMS = 1

// outbox gathers the effects of one decision.
type outbox struct {
	cfg     *Config
	in      Input
	at, now int64
	effects Effects
	// key is the record's own; the counters are in it.
	key                       string
	nextDelivery, nextMessage *uint32
}

func newOutbox(cfg *Config, in Input, nowMS int64) outbox {
	o := outbox{cfg: cfg, in: in, at: in.ReceivedMS, now: nowMS}
	switch {
	case o.at == 0:
		o.at = nowMS
	case in.Timer != "":
		o.now = max(nowMS, o.at) // a timer is never before its time, whoever's clock said so
	}
	return o
}

// queue adds a delivery and returns its number.
func (o *outbox) queue(d NewDelivery) uint32 {
	number := max(*o.nextDelivery, 1)
	*o.nextDelivery = number + 1
	d.Number, d.Destination = number, AccountKey(o.cfg.AccountID)
	o.effects.Deliveries = append(o.effects.Deliveries, d)
	return number
}

// send adds a message. The number in its id is given once, because the record is changed by one input at a time.
func (o *outbox) send(to string, in Input) {
	number := max(*o.nextMessage, 1)
	*o.nextMessage = number + 1
	o.effects.Messages = append(o.effects.Messages, Message{ID: o.key + ">" + strconv.FormatUint(uint64(number), 10), To: to, Input: in})
}

// timer sets a timer, in place of an earlier one of its name.
func (o *outbox) timer(name string, dueMS int64) {
	o.forget(name)
	o.effects.SetTimers = append(o.effects.SetTimers, Timer{Name: name, InMS: max(dueMS-o.now, minTimerMS)})
}

// cancel ends timers, set or not. The one that this input came from has ended already.
func (o *outbox) cancel(names ...string) {
	for _, name := range names {
		o.forget(name)
		if name != o.in.Timer {
			o.effects.CancelTimers = append(o.effects.CancelTimers, name)
		}
	}
}

func (o *outbox) forget(name string) {
	o.effects.SetTimers = slices.DeleteFunc(o.effects.SetTimers, func(t Timer) bool { return t.Name == name })
	o.effects.CancelTimers = slices.DeleteFunc(o.effects.CancelTimers, func(n string) bool { return n == name })
}

func (o *outbox) journal(facts ...Fact) { o.effects.Facts = append(o.effects.Facts, facts...) }

// settled says whether there is something to be written.
func (o *outbox) settled(before, after any) {
	e := &o.effects
	e.Changed = len(e.Deliveries)+len(e.SetTimers)+len(e.CancelTimers)+len(e.Messages) > 0 || !reflect.DeepEqual(before, after)
}

// backoff is the pause after so many tries in vain, in milliseconds: twice as long each time, at most an hour.
func backoff(first time.Duration, tries uint32) int64 {
	return min(first.Milliseconds()<<min(tries, 20), time.Hour.Milliseconds())
}

// Decide says what an input means for a call: the call as it is then, and what follows. It changes none of its
// arguments. nowMS is the store's clock in Unix milliseconds. cfg must have passed Check.
func Decide(cfg *Config, call Call, in Input, nowMS int64) (Call, Effects) {
	before := call
	d := decision{outbox: newOutbox(cfg, in, nowMS), Call: &call}
	d.key, d.nextDelivery, d.nextMessage = CallKey(cfg.AccountID, call.ID), &call.NextDelivery, &call.NextMessage
	if in.RequestID != "" && in.Ringing == nil {
		call.RequestID, call.Traceparent = in.RequestID, in.Traceparent
	}
	shown := call.shown()
	switch {
	case in.Voip != nil:
		d.voip(in.Voip)
	case in.Window != nil:
		d.window(in.Window)
	case in.Recording != "":
		d.recording(in.Recording)
	case in.Ringing != nil:
		d.ringing(in.Ringing)
	case in.Result != nil:
		d.result(in.Result)
	case in.Answer != nil:
		d.answer(in.Answer)
	case in.Timer != "":
		d.timerDue(in.Timer)
	}
	if call.shown() != shown {
		call.Rev++
		call.FactMS = d.at
	}
	d.step()
	d.settled(before, call)
	return call, d.effects
}

// decision is one run of Decide.
type decision struct {
	outbox
	*Call
}

// shown is what a note shows of a call.
type shown struct {
	phone, userName, did, result string
	duration, user               int64
	status                       Status
	recording                    bool
}

func (c *Call) shown() shown {
	f := c.facts()
	return shown{f.Phone, f.UserName, f.DID, c.resultText(), f.Duration, f.User, f.Status, c.Recording != "" && !c.Dropped}
}

// facts are those of the VoIP side, completed by the window's; without a VoIP side the window's.
func (c *Call) facts() *Facts {
	var f Facts
	seen := c.VoipMS
	switch {
	case c.Voip != nil:
		f = *c.Voip
		if c.Window != nil && f.User == 0 {
			f.User = c.Window.Facts.User
		}
		if c.Window != nil && f.Phone == "" {
			f.Phone = c.Window.Facts.Phone
		}
	case c.Window != nil:
		f, seen = c.Window.Facts, c.Window.OpenedMS
	}
	if f.StartedMS == 0 && seen != 0 {
		f.StartedMS = seen - f.Duration*1000
	}
	return &f
}

// endMS is when the call ended, as far as it is known.
func (c *Call) endMS() int64 {
	if c.Voip == nil && c.Window == nil {
		return c.RecordingMS
	}
	f := c.facts()
	return f.StartedMS + f.Duration*1000
}

func (c *Call) resultText() string {
	if c.Window == nil || c.Window.State != WindowSaved {
		return ""
	}
	return c.Window.Result
}

// result is the manager's text, as long as Kommo takes it.
func (c *Call) result(cfg *Config) string {
	text := c.resultText()
	if runes := []rune(text); len(runes) > cfg.Unconfirmed.ResultMax {
		return string(runes[:cfg.Unconfirmed.ResultMax])
	}
	return text
}

func (c *Call) link(cfg *Config) string {
	if c.Recording == "" || c.Dropped {
		return ""
	}
	return cfg.Link(c.ID)
}

// claim is the entity that the manager chose, if it can be used.
func (c *Call) claim() Entity {
	if c.Window == nil || c.Window.State != WindowSaved || c.ClaimVoid {
		return Entity{}
	}
	return c.Window.Entity
}

// due is when the call is to be written (K2); ok is false when nobody reported one.
func (c *Call) due(cfg *Config) (ms int64, ok bool) {
	switch {
	case c.Window != nil && c.Window.State == WindowSaved:
		return 0, true
	case c.Voip == nil:
		return 0, false
	case c.Window == nil:
		return c.VoipMS + cfg.ClaimDelay.Milliseconds(), true
	case c.Window.State == WindowOpened:
		return max(c.VoipMS, c.Window.OpenedMS) + cfg.WindowMax.Milliseconds(), true
	}
	return 0, true
}

// voip takes the report of the VoIP side. The first one counts, unless a later attempt was answered.
func (d *decision) voip(v *Voip) {
	if d.Phase == Written {
		d.journal(CallOutcome{Name: OutcomeAlreadyCreated, Entity: d.Entity})
	}
	known := d.Voip != nil
	if again := known && d.Voip.answeredBy(&v.Facts); again || !known {
		facts := v.Facts
		d.Voip, d.VoipMS, known = &facts, d.at, false
		if again {
			d.journal(Note("a later attempt was answered; it counts instead of the one reported before"))
		}
		if again && (d.Phase == Parked || d.Phase == NoEntity) {
			d.Phase, d.Asked = Collecting, false // it waits for a contact on its own account
		}
	} else if *d.Voip != v.Facts {
		d.journal(Note("the VoIP side reported this call before, in other words; the first report counts"))
	}
	if v.Recording != "" && d.Call.Recording == "" {
		d.recording(v.Recording)
		known = false
	}
	d.effects.Duplicate = known
}

// answeredBy says whether a report is of a later attempt that was answered, after one that was not: a dialer dials with one
// call id until somebody answers.
func (f *Facts) answeredBy(later *Facts) bool {
	return f.Direction == Outbound && later.Direction == Outbound && f.Status != StatusAnswered && later.Status == StatusAnswered
}

// window takes what the call-result window said. What was saved stays saved: a cancel or opening that comes after it is
// another order of arrival.
func (d *decision) window(w *Window) {
	next := *w
	if old := d.Window; old == nil {
		next.OpenedMS = d.at
	} else {
		next.OpenedMS = old.OpenedMS
		if next.State == WindowOpened || old.State == WindowSaved && next.State == WindowCancelled {
			d.effects.Duplicate = true
			return
		}
		if next.Entity == (Entity{}) {
			next.Entity = old.Entity
		} else if next.Entity != old.Entity {
			d.ClaimVoid = false
		}
		if next.Result == "" {
			next.Result = old.Result
		}
		d.effects.Duplicate = next == *old
	}
	d.Call.Window = &next
	if next.State != WindowSaved || next.Entity == (Entity{}) {
		return
	}
	switch d.Phase {
	case Written:
		if next.Entity != d.Entity {
			d.effects.Reply = WindowReply{Conflict: true, Entity: d.Entity}
			d.journal(CallOutcome{Name: OutcomeAlreadyCreated, Entity: d.Entity, Reason: "the manager chose another entity afterwards; a note cannot be moved"})
		}
	case Adding, Checking, Asking, Failed, Stuck:
		d.effects.Reply.Pending = d.PostTo != next.Entity
	}
}

func (d *decision) recording(id string) {
	switch {
	case d.Dropped:
		d.journal(CallOutcome{Name: OutcomeNoEntity, Reason: "the recording came after the waiting for a contact was over"})
	case d.Call.Recording == "":
		d.Call.Recording, d.RecordingMS = id, d.at
	default:
		d.effects.Duplicate = true
		if d.Call.Recording != id {
			d.journal(Note("the call has another recording already; the first counts"))
		}
	}
}

// ringing sends a card, once (K11).
func (d *decision) ringing(r *Ringing) {
	left := d.cfg.PopupMaxAge.Milliseconds() - (d.now - d.at)
	switch {
	case d.Popped:
		d.effects.Duplicate = true
	case len(r.Users) == 0 || r.Phone == "" || left <= 0 || d.Phase != Collecting || d.Voip != nil:
		d.journal(Note("no card: nobody to show it to, no number, or the ringing is over"))
	default:
		d.Popped = true
		number := d.queue(NewDelivery{Endpoint: EndpointPopup, Payload: popupPayload(r), MaxAgeMS: left,
			RequestID: d.in.RequestID, Traceparent: d.in.Traceparent})
		d.journal(CallOutcome{Name: OutcomePopup, Deliveries: []uint32{number}})
	}
}

// step does what is to be done as things are now.
func (d *decision) step() {
	switch d.Phase {
	case Collecting:
		switch at, ok := d.due(d.cfg); {
		case ok && at <= d.now:
			d.post()
		case ok:
			d.timer(timerClaim, at)
		case d.Call.Recording != "" && !d.Dropped:
			d.timer(timerPark, d.endMS()+d.cfg.ParkFor.Milliseconds())
		}
	case Parked, NoEntity:
		if d.claim() != (Entity{}) {
			d.post()
		}
	case Written:
		if d.Rev > d.WrittenRev && d.Patch == 0 && !d.Resting {
			d.patch()
		}
	}
}

func (d *decision) request(endpoint string, payload []byte, name string, entity Entity) uint32 {
	number := d.queue(NewDelivery{Endpoint: endpoint, Payload: payload, RequestID: d.RequestID, Traceparent: d.Traceparent})
	d.journal(CallOutcome{Name: name, Entity: entity, Deliveries: []uint32{number}})
	return number
}

// post writes the call: onto what the manager chose (K4), onto the incoming lead that it joins (K6), or where Kommo puts
// it (K3).
func (d *decision) post() {
	if claim := d.claim(); claim != (Entity{}) {
		d.PostTo, d.JoinUID = claim, ""
	} else if d.JoinUID == "" {
		d.PostTo = Entity{}
	}
	endpoint, payload := EndpointCalls, []byte(nil)
	switch {
	case d.PostTo != (Entity{}):
		endpoint, payload = EndpointNote, notePayload(d.cfg, d.Call, d.PostTo)
	case Digits(d.facts().Phone) == "":
		d.park("the call has no number")
		return
	default:
		payload, d.PostMS = callsPayload(d.cfg, d.Call), d.now
	}
	d.Phase, d.PostRev, d.Look = Adding, d.Rev, 0
	d.Inbound = d.facts().Direction == Inbound
	d.Post = d.request(endpoint, payload, OutcomeSent, d.PostTo)
	d.cancel(timerClaim, timerPoll)
}

// written ends the way into Kommo; the note has the facts of the revision.
func (d *decision) written(name string, entity Entity, note int64, revision uint32) {
	d.Phase, d.Entity, d.NoteID, d.WrittenRev = Written, entity, note, revision
	d.Tries, d.Resting, d.JoinUID = 0, false, ""
	d.journal(CallOutcome{Name: name, Entity: entity})
	d.cancel(timerClaim, timerCheck, timerPoll, timerPark)
}

// patch brings the note up to date (K7).
func (d *decision) patch() {
	d.PatchRev = d.Rev
	d.Patch = d.request(EndpointPatch, patchPayload(d.cfg, d.Call), OutcomeUpdateSent, d.Entity)
}

func (d *decision) timerDue(name string) {
	switch name {
	case timerCheck:
		switch d.Phase {
		case Checking:
			if d.Look == 0 {
				d.Look = d.request(EndpointLookup, lookupPayload(d.ID, d.facts().Phone, d.PostTo), OutcomeLooking, d.PostTo)
			}
		case Written:
			d.Resting = false
		}
	case timerPoll:
		if d.Phase == Parked {
			d.post()
		}
	case timerPark:
		// One that is under way decides by itself.
		if over := d.now >= d.endMS()+d.cfg.ParkFor.Milliseconds(); over && d.Phase == Parked {
			d.park("")
		} else if _, reported := d.due(d.cfg); over && d.Phase == Collecting && !reported {
			d.Dropped = true
			d.journal(CallOutcome{Name: OutcomeNoEntity, Reason: "there was a recording, but nobody reported its call"})
		}
	}
}

// noEntity ends the waiting for a contact (K9).
func (d *decision) noEntity() {
	d.Phase, d.Dropped = NoEntity, true
	d.journal(CallOutcome{Name: OutcomeNoEntity, Reason: "no contact with the number appeared in time"})
	d.cancel(timerPoll, timerPark)
}

func (d *decision) result(r *Result) {
	switch {
	case r.Delivery != 0 && r.Delivery == d.Post && slices.Contains([]Phase{Adding, Checking, Failed}, d.Phase):
		d.posted(r)
	case r.Delivery != 0 && r.Delivery == d.Look && d.Phase == Checking:
		d.looked(r)
	case r.Delivery != 0 && r.Delivery == d.Patch:
		d.patched(r)
	case r.Endpoint == EndpointPatch && r.Outcome != Dead && r.Outcome != Dropped:
		// A person retried an old change: it may have put old facts over newer ones, or not have found the note again.
		d.Rev++
		d.FactMS = d.now
	case r.Outcome == OK && (r.Endpoint == EndpointCalls || r.Endpoint == EndpointNote) && r.Delivery != d.Post:
		d.journal(Note("a request that was believed lost arrived after all: the call may be in Kommo twice"))
	}
}

// posted takes the result of the request that writes the call.
func (d *decision) posted(r *Result) {
	switch {
	case r.Outcome == OK:
		d.written(OutcomeCreated, r.Reply.Entity, r.Reply.NoteID, d.PostRev)
	case r.Outcome == NotFound:
		d.cancel(timerCheck)
		d.notFound()
	case d.Phase == Checking: // it is looked for already
		if r.Outcome == Dropped {
			d.Post = 0 // nobody can retry it any more
		}
	case r.Outcome == Uncertain:
		d.Phase, d.Look = Checking, 0
		d.rest()
	case r.Outcome == Dropped:
		d.Phase = Discarded
		d.journal(CallOutcome{Name: OutcomeDiscarded, Reason: r.Reason})
	default:
		d.fail(r.Reason)
	}
}

// fail leaves the call to a person, who can retry or discard the delivery.
func (d *decision) fail(reason string) {
	d.Phase = Failed
	d.journal(CallOutcome{Name: OutcomeCreateError, Reason: reason})
}

// What a person is told: why it cannot go on by itself, and what to do.
const (
	reasonNever   = "it is not in Kommo, which does not answer it: find out why, then retry or discard the delivery"
	reasonTooMany = "it may have arrived, and there is too much in Kommo to look for it: look there, then discard the delivery or, if it is not there, retry it"
)

// rest lets some time pass before the next look-up or change.
func (d *decision) rest() {
	d.timer(timerCheck, d.now+backoff(d.cfg.LookFirst, d.Tries))
	d.Tries++
}

// looked takes the result of the look-up for what may have arrived.
func (d *decision) looked(r *Result) {
	d.Look = 0
	switch {
	case r.Outcome == OK:
		d.written(OutcomeCreated, r.Reply.place(d.cfg.Unconfirmed.EventOnto), r.Reply.NoteID, d.PostRev)
	case r.Outcome == NotFound && d.now < d.FactMS+d.cfg.UpdateFor.Milliseconds():
		d.post()
	case r.Outcome == NotFound:
		d.giveBack(reasonNever)
	case r.Outcome == TooMany:
		d.giveBack(reasonTooMany)
	default:
		d.rest()
	}
}

// giveBack leaves the call to a person, unless one discarded the delivery meanwhile.
func (d *decision) giveBack(reason string) {
	if d.Post != 0 {
		d.fail(reason)
		return
	}
	d.Phase = Discarded
	d.journal(CallOutcome{Name: OutcomeDiscarded, Reason: reason})
}

// place is where a reply says that a call is; of an incoming lead, the entity of the kind.
func (r *Reply) place(kind string) Entity {
	switch {
	case r.Entity != (Entity{}):
		return r.Entity
	case r.LeadID != 0 && (kind == "lead" || r.ContactID == 0):
		return Entity{"lead", r.LeadID}
	case r.ContactID != 0:
		return Entity{"contact", r.ContactID}
	}
	return Entity{}
}

// patched takes the result of a change.
func (d *decision) patched(r *Result) {
	d.Patch = 0
	switch {
	case r.Outcome == OK:
		d.WrittenRev, d.Tries = d.PatchRev, 0
		if r.Reply.NoteID != 0 {
			d.NoteID = r.Reply.NoteID
		}
		d.journal(CallOutcome{Name: OutcomeUpdated, Entity: d.Entity})
	case (r.Outcome == NotFound || r.Outcome == Uncertain) && d.now < d.FactMS+d.cfg.UpdateFor.Milliseconds():
		// The note of an incoming lead may not be there before it is accepted.
		d.Resting = true
		d.rest()
	default:
		d.WrittenRev = d.PatchRev
		d.journal(CallOutcome{Name: OutcomeUpdateError, Entity: d.Entity, Reason: r.Reason})
	}
}

// notFound: the request that writes the call says that there is no entity for it.
func (d *decision) notFound() {
	switch {
	case d.JoinUID != "":
		d.ask(d.JoinUID, false)
	case d.PostTo != (Entity{}):
		d.ClaimVoid = d.PostTo == d.claim()
		d.journal(Note("the entity that the manager chose is not there"))
		d.post()
	case d.claim() != (Entity{}):
		d.post()
	case d.Asked:
		d.park("")
	case d.facts().Direction == Inbound:
		d.ask("", false)
	default:
		d.ask("", true)
		d.park("")
	}
}

// ask asks the record of the number what to do about a call that Kommo has no entity for (K5, K6). refused is the lead
// that it could not join; with waits it needs no answer.
func (d *decision) ask(refused string, waits bool) {
	d.Ask++
	d.Phase, d.Asked, d.AskRev, d.JoinUID, d.PostTo = Asking, true, d.Rev, "", Entity{}
	u := Unknown{Call: d.ID, Ask: d.Ask, Refused: refused, Waits: waits, UntilMS: d.endMS() + d.cfg.ParkFor.Milliseconds(),
		RequestID: d.RequestID, Traceparent: d.Traceparent, Phone: d.facts().Phone}
	if d.facts().Direction == Inbound {
		u.LeadBody = leadPayload(d.cfg, d.Call)
		if d.resultText() != "" {
			d.AskRev = 0 // an incoming lead has no place for it
		}
	}
	d.journal(CallOutcome{Name: OutcomeNoContact})
	d.send(NumberKey(d.cfg.AccountID, Digits(u.Phone)), Input{Unknown: &u})
}

// answer takes what the record of the number says.
func (d *decision) answer(a *Answer) {
	if a.Included {
		d.Asked = false
		d.Inbound = true
		d.written(OutcomeLeadCreated, a.Entity, a.NoteID, d.AskRev)
		return
	}
	if !d.Asked || a.Ask != d.Call.Ask {
		return
	}
	waiting := d.Phase == Asking || d.Phase == Parked || d.Phase == Stuck
	switch a.Kind {
	case AnswerLead:
		d.Asked = false
		if !waiting {
			return
		}
		if d.claim() == (Entity{}) && d.cfg.Unconfirmed.JoinLead == JoinByWaiting {
			d.ask(a.UID, false)
			return
		}
		d.JoinUID, d.PostTo = a.UID, a.Entity
		d.journal(CallOutcome{Name: OutcomeLeadJoined, Entity: a.Entity})
		d.post()
	case AnswerContact:
		d.Asked = false
		if waiting {
			d.post()
		}
	case AnswerPark:
		if d.Phase == Asking || d.Phase == Stuck {
			d.park(a.Reason)
		}
	case AnswerStuck:
		if d.Phase == Asking {
			d.Phase = Stuck
			d.journal(CallOutcome{Name: OutcomeCreateError, Reason: a.Reason})
		}
	case AnswerDiscarded:
		d.Asked = false
		if waiting {
			d.Phase = Discarded
			d.journal(CallOutcome{Name: OutcomeDiscarded, Reason: a.Reason})
		}
	}
}

// park lets the call wait for a contact until its time is over (K9).
func (d *decision) park(reason string) {
	end := d.endMS() + d.cfg.ParkFor.Milliseconds()
	numbered := Digits(d.facts().Phone) != ""
	if d.now >= end {
		if d.PostMS < end && numbered { // a last poll: a contact may have appeared
			d.post()
		} else {
			d.noEntity()
		}
		return
	}
	d.Phase = Parked
	d.journal(CallOutcome{Name: OutcomeParked, Reason: reason})
	d.timer(timerPark, end)
	if next := d.now + backoff(d.cfg.PollFirst, d.Tries); d.cfg.PollFirst > 0 && next < end && numbered {
		d.timer(timerPoll, next)
		d.Tries++
	}
}
