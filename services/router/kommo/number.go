package kommo

import "slices"

// maxWaiting bounds how many calls of one number wait for a contact at once; those beyond it poll by themselves.
const maxWaiting = 1000

// minLeadMS is the age below which a lead that somebody was told is not there is not asked for: Kommo itself may lag.
const minLeadMS = 60_000

// DecideNumber is Decide for the record of a number. Nothing that an account sets for itself changes what it decides, so no number has
// to wait for an account that is away.
//
// What makes it one lead (K6): one record, one delivery at a time, and a call that was told anything but AnswerLead with
// Included will never be in a lead that is created later. So a call is told nothing while the lead with it in it may
// still come to be.
func DecideNumber(cfg *Config, number Number, in Input, nowMS int64) (Number, Effects) {
	before := number
	d := numberDecision{outbox: newOutbox(cfg, in, nowMS), Number: &number}
	d.key, d.nextDelivery, d.nextMessage = NumberKey(cfg.AccountID, number.Digits), &number.NextDelivery, &number.NextMessage
	switch {
	case in.Unknown != nil:
		d.unknown(in.Unknown)
	case in.Result != nil:
		d.result(in.Result)
	case in.Contact:
		d.contact()
	case in.Timer == timerCheck && d.Phase == Seeking && d.Look == 0:
		d.lookUp(d.Creator)
	}
	d.step()
	d.settled(before, number)
	return number, d.effects
}

// numberDecision is one run of DecideNumber.
type numberDecision struct {
	outbox
	*Number
}

func (d *numberDecision) unknown(u *Unknown) {
	same := func(w Unknown) bool { return w.Call == u.Call }
	d.Waiting = slices.DeleteFunc(slices.Clone(d.Waiting), func(w Unknown) bool {
		return same(w) || w.Waits && w.UntilMS <= d.now
	})
	if len(d.Waiting) >= maxWaiting {
		d.answer(u, Answer{Kind: AnswerPark, Reason: "too many calls of this number wait"})
		return
	}
	d.Waiting = append(d.Waiting, *u)
	if d.Phase == Refused && !u.Waits {
		d.answer(u, Answer{Kind: AnswerStuck, Reason: "the incoming lead of this number was refused, or not sent in time: a person has to retry or discard it"})
	}
	if d.Lead != nil && d.Lead.UID == u.Refused && d.now >= d.Lead.SeenMS+minLeadMS {
		d.seen(0) // somebody was told that it is not there
	}
}

// seen notes when the lead was known to be there.
func (d *numberDecision) seen(atMS int64) {
	lead := *d.Lead
	lead.SeenMS = atMS
	d.Lead = &lead
}

// park tells a call that there will be no lead with it in it.
func (d *numberDecision) park(w *Unknown, reason string) {
	d.answer(w, Answer{Kind: AnswerPark, Reason: reason})
	w.LeadBody, w.Waits = nil, true
}

func (d *numberDecision) answer(u *Unknown, a Answer) {
	a.Ask = u.Ask
	d.send(CallKey(d.cfg.AccountID, u.Call), Input{Answer: &a})
}

// step does what is to be done as things are now.
func (d *numberDecision) step() {
	if d.Phase != Idle || len(d.Waiting) == 0 {
		return
	}
	if d.Lead != nil {
		d.join()
		return
	}
	i := slices.IndexFunc(d.Waiting, func(w Unknown) bool { return len(w.LeadBody) > 0 })
	if i < 0 {
		d.parkRefused()
		return
	}
	creator := d.Waiting[i]
	d.Waiting = slices.Delete(slices.Clone(d.Waiting), i, i+1)
	d.Creator = &creator
	d.create()
}

// parkRefused answers who could not join a lead that is gone by now and wants none of its own.
func (d *numberDecision) parkRefused() {
	d.Waiting = slices.Clone(d.Waiting)
	for i := range d.Waiting {
		if w := &d.Waiting[i]; !w.Waits {
			d.park(w, "")
		}
	}
}

// join lets those who wait join the lead, once it is sure that it is there.
func (d *numberDecision) join() {
	if !slices.ContainsFunc(d.Waiting, func(w Unknown) bool { return w.Refused != d.Lead.UID || !w.Waits }) {
		return
	}
	if d.now >= d.Lead.SeenMS+d.cfg.LeadFresh.Milliseconds() {
		d.Phase = Verifying
		d.lookUp(&Unknown{Call: d.Lead.Uniq, Phone: d.Lead.Phone, RequestID: d.Waiting[0].RequestID, Traceparent: d.Waiting[0].Traceparent})
		return
	}
	var rest []Unknown
	for i := range d.Waiting {
		w := d.Waiting[i]
		if w.Refused != d.Lead.UID {
			d.answer(&w, Answer{Kind: AnswerLead, UID: d.Lead.UID, Entity: d.Lead.Entity})
			continue
		}
		if !w.Waits {
			d.park(&w, "Kommo does not let it join the incoming lead")
		}
		rest = append(rest, w)
	}
	d.Waiting = rest
}

func (d *numberDecision) create() {
	c := d.Creator
	d.Phase, d.Look = Creating, 0
	d.Post = d.queue(NewDelivery{Endpoint: EndpointLead, Payload: c.LeadBody, RequestID: c.RequestID, Traceparent: c.Traceparent})
	d.journal(CallOutcome{Name: OutcomeLeadSent, Deliveries: []uint32{d.Post}})
}

func (d *numberDecision) lookUp(u *Unknown) {
	d.Look = d.queue(NewDelivery{Endpoint: EndpointLookup, Payload: lookupPayload(u.Call, u.Phone, Entity{}),
		RequestID: u.RequestID, Traceparent: u.Traceparent})
	d.journal(CallOutcome{Name: OutcomeLooking, Deliveries: []uint32{d.Look}})
}

func (d *numberDecision) result(r *Result) {
	switch {
	case r.Delivery != 0 && r.Delivery == d.Post && d.Creator != nil:
		d.posted(r)
	case r.Delivery != 0 && r.Delivery == d.Look && d.Phase == Verifying:
		d.verified(r)
	case r.Delivery != 0 && r.Delivery == d.Look && d.Phase == Seeking:
		d.Look = 0
		switch {
		case r.Outcome == OK:
			d.created(r)
		case r.Outcome == NotFound && d.now < d.Creator.UntilMS+d.cfg.UpdateFor.Milliseconds():
			d.create()
		case r.Outcome == NotFound:
			d.giveBack(reasonNever)
		case r.Outcome == TooMany:
			d.giveBack(reasonTooManyLeads)
		default:
			d.rest()
		}
	case r.Outcome == OK && r.Endpoint == EndpointLead:
		d.journal(Note("a request that was believed lost arrived after all: there may be two incoming leads of this number"))
	}
}

// posted takes the result of the request that adds the lead.
func (d *numberDecision) posted(r *Result) {
	switch {
	case r.Outcome == OK:
		d.created(r)
	case d.Phase == Seeking: // it is looked for already
		if r.Outcome == Dropped {
			d.Post = 0 // nobody can retry it any more
		}
	case r.Outcome == Uncertain:
		d.Phase, d.Look = Seeking, 0
		d.rest()
	case r.Outcome == UnsortedOff:
		d.off()
	case r.Outcome == Dropped:
		d.discard(r.Reason)
	default:
		d.refuse(r.Reason)
	}
}

// reasonTooManyLeads is reasonTooMany of an incoming lead. One that is accepted or declined cannot get a second beside it.
const reasonTooManyLeads = "it may have arrived, and there is too much in Kommo to look for it: look there; if it is there, accept or decline it and discard the delivery, else retry it"

// giveBack leaves the lead to a person, unless one discarded the delivery meanwhile.
func (d *numberDecision) giveBack(reason string) {
	if d.Post == 0 {
		d.discard(reason)
		return
	}
	d.refuse(reason)
}

// discard gives the lead up, as a person decided.
func (d *numberDecision) discard(reason string) {
	d.answer(d.Creator, Answer{Kind: AnswerDiscarded, Reason: reason})
	d.free()
}

// refuse leaves the lead to a person, who can retry or discard the delivery.
func (d *numberDecision) refuse(reason string) {
	d.Phase = Refused
	d.journal(CallOutcome{Name: OutcomeCreateError, Reason: reason})
	for _, u := range slices.Concat([]Unknown{*d.Creator}, d.Waiting) {
		if !u.Waits {
			d.answer(&u, Answer{Kind: AnswerStuck, Reason: reason})
		}
	}
}

func (d *numberDecision) rest() {
	d.timer(timerCheck, d.now+backoff(d.cfg.LookFirst, d.Tries))
	d.Tries++
}

// created ends the way of a lead into Kommo.
func (d *numberDecision) created(r *Result) {
	event := r.Reply.place(d.cfg.Unconfirmed.EventOnto)
	d.Lead = &Lead{UID: r.Reply.UID, Entity: r.Reply.place(d.cfg.Unconfirmed.JoinOnto), Uniq: d.Creator.Call, Phone: d.Creator.Phone, SeenMS: d.now}
	d.journal(CallOutcome{Name: OutcomeLeadCreated, Entity: event})
	d.answer(d.Creator, Answer{Kind: AnswerLead, UID: d.Lead.UID, Entity: event, NoteID: r.Reply.NoteID, Included: true})
	d.cancel(timerCheck)
	d.Contact = false
	d.free()
}

// free ends what was under way.
func (d *numberDecision) free() {
	d.Phase, d.Creator, d.Post, d.Look, d.Tries = Idle, nil, 0, 0, 0
}

// off: the account takes no incoming leads. All calls wait for a contact.
func (d *numberDecision) off() {
	d.effects.Notices = append(d.effects.Notices, Notice{NoticeUnsortedOff,
		"Incoming leads are switched off in Kommo: calls from unknown numbers wait 18 hours for a contact and then end as no_entity. Switch them on in the settings of the pipeline."})
	d.Waiting = append([]Unknown{*d.Creator}, d.Waiting...)
	d.free()
	for i := range d.Waiting {
		if w := &d.Waiting[i]; !w.Waits {
			d.park(w, "incoming leads are switched off in the account")
		}
	}
	if d.Contact {
		d.contact()
	}
}

// contact tells all who wait that there is a contact now; whoever may still be in a lead hears of that instead.
func (d *numberDecision) contact() {
	d.Contact = d.Creator != nil
	for i := range d.Waiting {
		d.answer(&d.Waiting[i], Answer{Kind: AnswerContact})
	}
	d.Waiting = nil
}

// verified takes the answer to whether the lead is still there. Who cannot know says yes: a note that does not find it
// comes back.
func (d *numberDecision) verified(r *Result) {
	d.Phase, d.Look = Idle, 0
	if r.Outcome == NotFound {
		d.Lead = nil
		return
	}
	d.seen(d.now)
}
