package pbx

import (
	"cmp"
	"slices"

	"callrelay/callback"
)

// stillUpUS: a leg that was up within 5 s before a service leg's hangup was answered as far as the caller cares (P12).
const stillUpUS = 5_000_000

// missed registers the missed call of the CallID, at most one, once the call is settled (P11, P12, P18).
func (d *decision) missed() {
	if d.call.Missed != 0 || !d.settled() || d.doubt {
		return
	}
	service := slices.ContainsFunc(d.call.Legs, func(l Leg) bool { return l.service() })
	if !service {
		if d.cfg.DirectMissed {
			d.directMissed()
		}
		return
	}
	var chosen *Leg
	for i := range d.call.Legs {
		l := &d.call.Legs[i]
		if !l.service() || l.Hangup.Bridged != "no" {
			continue
		}
		if why := d.answeredAfterAll(l); why != "" {
			d.outcome(l, "P12", "not missed: "+why)
			continue
		}
		if _, ok := d.missedNumber(l); !ok {
			d.outcome(l, "P6", "ignored: a local call")
			continue
		}
		if chosen == nil || beats(l, chosen) {
			chosen = l
		}
	}
	if chosen != nil {
		number, _ := d.missedNumber(chosen)
		d.registerMissed(chosen, "P11", number)
	}
}

// beats: a queue beats an IVR, of two queues the last one counts.
func beats(a, b *Leg) bool {
	if a.Type != b.Type {
		return a.Type == Queue
	}
	return cmp.Or(cmp.Compare(a.Hangup.AtUS, b.Hangup.AtUS), cmp.Compare(a.SubCallID, b.SubCallID)) > 0
}

// answeredAfterAll says why a service leg that was left without an answer is no missed call; empty: it is one.
func (d *decision) answeredAfterAll(service *Leg) string {
	began := service.Hangup.AtUS - service.Hangup.DurationUS
	for i := range d.call.Legs {
		l := &d.call.Legs[i]
		switch {
		case l.service():
			if l.Hangup.Bridged == "yes" && l.Hangup.AtUS >= service.Hangup.AtUS {
				return "somebody answered in " + l.Extension
			}
		case !d.counts(l) && !d.mayCount(l):
		case l.answeredUS() >= began, !l.Hangup.seen(), l.Hangup.AtUS >= service.Hangup.AtUS-stillUpUS:
			if !d.counts(l) {
				return l.Extension + " may have answered"
			}
			return l.Extension + " answered"
		}
	}
	return ""
}

// counts says that a leg means that a caller was answered: an incoming one, or a forwarding to the outside.
func (d *decision) counts(l *Leg) bool {
	return d.withCaller(l) && (l.answered() == yes || l.answered() == perhaps && l.Delivery != 0)
}

// mayCount says that only the answer event is missing: the leg hung up as answered, after talk. A loser of parallel ringing
// may say ANSWER, too, but has not talked.
func (d *decision) mayCount(l *Leg) bool {
	return d.withCaller(l) && l.answered() == perhaps && l.Hangup.DurationUS > 0
}

func (d *decision) withCaller(l *Leg) bool {
	return !l.service() && (d.flow(l) == callback.PbxIn || l.transfered())
}

// missedNumber is whom a service leg leaves without an answer. Behind an extension that passed a caller on, it is the
// caller of the leg before; else the call is a local one.
func (d *decision) missedNumber(service *Leg) (number string, ok bool) {
	if !d.cfg.Local(service.Hangup.Caller) || d.cfg.KeepLocal {
		return service.Hangup.Caller, true
	}
	var before *Leg
	for i := range d.call.Legs {
		l := &d.call.Legs[i]
		if n, where := d.party(l); l.service() || where != outside || d.flow(l) != callback.PbxIn || l.beganUS() > service.Hangup.AtUS {
			continue
		} else if before == nil || order(l, before) > 0 {
			before, number = l, n
		}
	}
	return number, before != nil
}

// directMissed registers a call that rang on phones only, and nowhere was answered (P18).
func (d *decision) directMissed() {
	if slices.ContainsFunc(d.call.Legs, func(l Leg) bool {
		return d.counts(&l) || l.answered() == perhaps || !l.Hangup.seen() && l.Asked == nil
	}) {
		return // answered, or nobody knows
	}
	id := d.firstRang()
	if i := slices.IndexFunc(d.call.Legs, func(l Leg) bool { return l.SubCallID == id }); i >= 0 {
		number, _ := d.party(&d.call.Legs[i])
		d.registerMissed(&d.call.Legs[i], "P18", number)
	}
}

// firstRang is the SubCallID of the phone leg from outside that rang first; empty: none did.
func (d *decision) firstRang() string {
	var first *Leg
	for i := range d.call.Legs {
		l := &d.call.Legs[i]
		if _, where := d.party(l); l.service() || where != outside || d.flow(l) != callback.PbxIn {
			continue
		}
		if first == nil || order(l, first) < 0 {
			first = l
		}
	}
	if first == nil {
		return ""
	}
	return first.SubCallID
}

// bridged doubts a call in which a queue or IVR saw an answer that no leg shows (P11).
func (d *decision) bridged() {
	if !d.settled() || slices.ContainsFunc(d.call.Legs, func(l Leg) bool { return d.counts(&l) }) {
		return
	}
	for i := range d.call.Legs {
		if l := &d.call.Legs[i]; l.service() && l.Hangup.Bridged == "yes" && !d.cfg.Local(l.Hangup.Caller) {
			d.doubtful(l, "it says that somebody answered, but no answered leg is known")
		}
	}
}

// lentLegs decides the outgoing legs of callbacks that callrelay did not start, when all else is decided (P13).
func (d *decision) lentLegs() {
	if !d.settled() || d.doubt {
		return
	}
	gave := d.call.Missed != 0 || slices.ContainsFunc(d.call.Legs, func(l Leg) bool { return l.Delivery != 0 && !d.lent(&l) })
	for i := range d.call.Legs {
		l := &d.call.Legs[i]
		switch {
		case l.service() || l.Delivery != 0 || !d.lent(l):
		case gave:
			d.outcome(l, "P13", "ignored: the extension only lent its identity to a callback")
		default:
			d.leg(l)
		}
	}
}
