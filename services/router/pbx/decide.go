package pbx

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"time"

	"callrelay/callback"
)

// Limits of a call. A queue that rings twenty agents for minutes makes a leg of every try.
const (
	// keepLegs is how many legs are kept whatever they are; beyond it those that rang in vain are forgotten, oldest first.
	keepLegs = 64
	// maxLegs is how many are kept at all; where none can be forgotten, events of further legs are journaled and change
	// nothing.
	maxLegs = 512
)

// Decide says what an input means for a call: the call as it is then, and what follows. It changes none of its
// arguments. nowMS is the store's clock, Unix milliseconds. cfg must have passed Check.
//
// Events only add facts; every decision is made anew from all facts. So the same events in any order, with any
// repetition, lead to the same registrations and the same visible cards, as long as they come before the call is settled:
// what was registered stays, even if a later event would have led elsewhere (that is journaled).
func Decide(cfg *Config, call Call, in Input, nowMS int64) (Call, Effects) {
	d := decision{cfg: cfg, call: call, in: in, now: nowMS}
	d.call.Legs = slices.Clone(call.Legs)
	news := false
	switch {
	case in.Event != nil:
		news = d.event(in.Event)
	case in.Started != "":
		if !slices.Contains(call.Started, in.Started) {
			d.call.Started = append(slices.Clip(call.Started), in.Started)
		}
	case in.History != nil:
		d.history(in.History)
	default:
		d.now = max(d.now, in.ReceivedMS)
		if in.Timer == TimerName {
			d.call.WakeMS = 0
		}
	}
	d.quiet(news)
	d.decide()
	if d.reconcile() {
		d.decide() // what was in doubt ends now
	}
	d.recordings()
	d.cards()
	d.prune()
	d.wake()
	d.effects.RequestID = cmp.Or(in.RequestID, d.call.RequestID)
	d.effects.Changed = !reflect.DeepEqual(d.call, call)
	if !d.effects.Changed {
		return call, d.effects
	}
	return d.call, d.effects
}

// decision is one run of Decide.
type decision struct {
	cfg     *Config
	call    Call
	in      Input
	now     int64
	effects Effects
	// settlesMS is when the call is settled; 0: a leg is open.
	settlesMS int64
	// doubt: the PBX's history has to be asked before anything else is decided.
	doubt bool
}

// decide decides whatever the facts allow. What depends on the other legs comes last.
func (d *decision) decide() {
	d.legs()
	d.bridged()
	d.missed()
	d.lentLegs()
}

func (d *decision) journal(facts ...Fact) { d.effects.Facts = append(d.effects.Facts, facts...) }

func (d *decision) note(format string, args ...any) { d.journal(Note(fmt.Sprintf(format, args...))) }

// event adds what an event says and tells whether that was anything new.
func (d *decision) event(e *callback.PbxEvent) bool {
	for _, note := range e.Notes {
		d.journal(Note(note))
	}
	service := d.in.Type == Queue || d.in.Type == IVR
	switch {
	case service && e.Kind != callback.PbxHangup:
		d.note("%s on the %s %s changes nothing: of a queue or IVR only the hangup counts", e.Kind, d.in.Type, d.in.Extension)
		return false
	case !service && d.in.Type != Phone:
		d.note("%s on %s changes nothing: it is no phone, queue or IVR", e.Kind, d.in.Extension)
		return false
	}
	i := slices.IndexFunc(d.call.Legs, func(l Leg) bool { return l.SubCallID == e.SubCallID })
	if i < 0 {
		if len(d.call.Legs) == maxLegs {
			d.note("the call has more than %d legs: %s of leg %s changes nothing", maxLegs, e.Kind, e.SubCallID)
			return false
		}
		i = len(d.call.Legs)
		d.call.Legs = append(d.call.Legs, Leg{SubCallID: e.SubCallID, ExtensionID: d.in.ExtensionID, Extension: d.in.Extension, Type: d.in.Type})
	}
	l := &d.call.Legs[i]
	if l.ExtensionID != d.in.ExtensionID {
		d.note("%s of leg %s came with the token of %s, its first event with that of %s", e.Kind, e.SubCallID, d.in.Extension, l.Extension)
		return false
	}
	l.WantRecording = l.WantRecording || d.in.WantRecording
	said := Said{
		AtUS: cmp.Or(e.AtUS, d.in.ReceivedMS*1000), ReceivedMS: d.in.ReceivedMS, RequestID: d.in.RequestID,
		Flow: e.Flow, Status: e.Status, Caller: e.Caller, Called: e.Called, Remote: e.Remote, DID: e.DID,
		CallerExtensionID: e.CallerExtensionID, CalledExtensionID: e.CalledExtensionID, CallBackID: e.CallBackID, Bridged: e.Bridged,
		Transfered: e.Transfered, HasDuration: e.HasDuration, DurationUS: e.DurationUS, RecordID: e.RecordID,
	}
	known := map[string]*Said{callback.PbxDial: &l.Dial, callback.PbxAnswer: &l.Answer, callback.PbxHangup: &l.Hangup}[e.Kind]
	if e.AtUS == 0 && known.seen() {
		said.AtUS = known.AtUS // a repeat without a time
	}
	first, repeat := known.RequestID, known.seen()
	news := known.say(said)
	switch {
	case news && repeat:
		d.note("%s of leg %s was repeated with other content", e.Kind, e.SubCallID)
	case !news:
		d.effects.Duplicate = true
		d.journal(Duplicate{Of: first, Key: e.Kind + " " + e.SubCallID})
	}
	if news {
		d.call.CallID, d.call.RequestID, d.call.Traceparent = e.CallID, d.in.RequestID, d.in.Traceparent
	}
	return news
}

// quiet notes since when all known legs are closed, and when the call is settled: the grace after, or PBX_MAX_WAIT after as
// long as a queue or IVR may hold the caller.
func (d *decision) quiet(news bool) {
	switch {
	case len(d.call.Legs) == 0, slices.ContainsFunc(d.call.Legs, func(l Leg) bool { return !d.closed(&l) }):
		d.call.QuietMS = 0
	case d.call.QuietMS == 0 || news:
		d.call.QuietMS = d.now
	}
	if d.call.QuietMS == 0 {
		return
	}
	graceMS := d.call.QuietMS + d.cfg.Grace.Milliseconds()
	d.settlesMS = graceMS
	if by := d.heldBy(); by != "" {
		d.settlesMS = d.call.QuietMS + d.cfg.MaxWait.Milliseconds()
		if d.in.Timer != "" && d.now >= graceMS && !d.settled() {
			d.note("the caller may still be in %s, whose hangup has not come: whether the call was missed is decided when it comes, or after %v", by, d.cfg.MaxWait)
		}
	}
}

// heldBy names a queue or IVR that may hold the caller: it rang phones in vain, and its hangup, all that it ever says, has
// not come. It rings nobody for as long as all are busy; such a pause is not the end of the call.
func (d *decision) heldBy() string {
	for i := range d.call.Legs {
		from := d.call.Legs[i].from()
		if by := d.cfg.Services[from]; by != "" && !slices.ContainsFunc(d.call.Legs, func(l Leg) bool {
			return l.ExtensionID == from || l.from() == from && l.answered() == yes
		}) {
			return by
		}
	}
	return ""
}

// settled: what was not said by now is not waited for.
func (d *decision) settled() bool { return d.settlesMS != 0 && d.now >= d.settlesMS }

// legs decides every leg that is not registered yet, but those that may have lent their identity.
func (d *decision) legs() {
	for i := range d.call.Legs {
		if l := &d.call.Legs[i]; !l.service() && l.Delivery == 0 && !d.lent(l) {
			d.leg(l)
		}
	}
}

// leg decides one leg of a phone that is over.
func (d *decision) leg(l *Leg) {
	flow, settled := d.flow(l), d.settled()
	_, where := d.party(l)
	switch {
	case !d.closed(l):
	case flow == "" && !settled, !l.Dial.seen() && !settled: // P3: what is missing may still come
	case flow == "":
		d.outcome(l, "P3", "nothing says whether it came in or went out")
	case flow == callback.PbxOut && l.internalForwarding():
		d.outcome(l, "P9", "ignored: a forwarding between extensions")
	case where == local && flow == callback.PbxOut:
		d.outcome(l, "P8", "ignored: a call to an extension")
	case where == local, where == unknown && !d.outsideCall(l):
		d.outcome(l, "P6", "ignored: a local call")
	case where == unknown:
		d.doubtful(l, "its dial-in was lost, and with it whose call was passed on to it")
	case !l.Hangup.seen() && l.Asked == nil:
		d.doubtful(l, "it never hung up")
	default:
		d.over(l, flow)
	}
}

// over decides a leg with an outside number that is over.
func (d *decision) over(l *Leg, flow string) {
	forwarded := flow == callback.PbxOut && l.transfered()
	answered, inferred := l.answered(), false
	if answered == perhaps {
		switch {
		case !d.settled():
			return // the answer event may still come
		case d.inferred(l):
			answered, inferred = yes, true
		default:
			d.doubtful(l, "it hung up as answered, but no answer was seen")
			return
		}
	}
	switch {
	case forwarded && !d.settled(): // the caller may still become known
	case forwarded && answered == yes:
		d.registerLeg(l, "P19", statusForwarded, inferred)
	case forwarded:
		d.outcome(l, "P19", "ignored: nobody answered the forwarding")
	case answered == yes:
		d.registerLeg(l, "P3", statusAnswered, inferred)
	case flow == callback.PbxIn:
		d.outcome(l, "P10", "not answered: "+cmp.Or(l.Hangup.Status, "no answer"))
	case l.Hangup.Status != "" && l.Hangup.Status != callback.PbxAnswered, d.settled(): // else the answer event may still come (P5)
		d.registerLeg(l, "P10", unsuccessful(l.Hangup.Status), false)
	}
}

// inferred says that a hangup may stand for the answer event that was lost (P4).
func (d *decision) inferred(l *Leg) bool {
	if !d.cfg.InferAnswer || l.Hangup.DurationUS <= 0 {
		return false
	}
	return !slices.ContainsFunc(d.call.Legs, func(o Leg) bool { return o.SubCallID != l.SubCallID && !o.service() && o.answered() != no })
}

// outsideCall says that the leg, whose caller is an extension, may still be a call with somebody outside: it came through
// a public number, or another leg of the call is with somebody outside.
func (d *decision) outsideCall(l *Leg) bool {
	return l.did() != "" || slices.ContainsFunc(d.call.Legs, func(o Leg) bool {
		if o.SubCallID == l.SubCallID {
			return false
		}
		_, where := d.party(&o)
		return where == outside && !o.service()
	})
}

// doubtful wants the history asked about a leg, or ends it unreconciled when that was in vain.
func (d *decision) doubtful(l *Leg, why string) {
	if d.call.History.GivenUp {
		d.outcome(l, "P15", "unreconciled: "+why)
	}
	d.doubt = d.doubt || d.settled() && !d.call.History.GivenUp
}

// outcome journals once what becomes of a leg that is not registered.
func (d *decision) outcome(l *Leg, rule, what string) {
	if text := rule + " " + what; l.Outcome != text {
		l.Outcome = text
		d.journal(Decided{Rule: rule, What: what, Leg: l.SubCallID})
	}
}

// reconcile asks the history while anything is in doubt. It reports whether it gave up just now: after the third try, or
// because nobody can ask (P15).
func (d *decision) reconcile() bool {
	if d.doubt {
		d.doubt = false
		return d.ask(&d.call.History, time.Minute, 10*time.Minute, time.Hour)
	}
	if d.settled() && !d.call.History.GivenUp {
		d.call.History = Ask{}
	}
	return false
}

// ask puts a question when it is due and reports whether it was just given up.
func (d *decision) ask(a *Ask, after ...time.Duration) (gaveUp bool) {
	switch {
	case a.GivenUp:
		return false
	case !d.cfg.History:
		*a = Ask{GivenUp: true}
		return true
	case a.SinceMS == 0:
		*a = Ask{SinceMS: d.now, DueMS: d.now + after[0].Milliseconds()}
	case d.now < a.DueMS:
	case int(a.Tries) == len(after):
		*a = Ask{GivenUp: true}
		return true
	default:
		a.Tries++
		d.effects.Ask = &AskHistory{CallID: d.call.CallID, Try: a.Tries}
		d.note("asking the PBX's history, try %d", a.Tries)
		a.DueMS = d.now + 10*time.Minute.Milliseconds() // for the answer to the last try
		if int(a.Tries) < len(after) {
			a.DueMS = a.SinceMS + after[a.Tries].Milliseconds()
		}
	}
	return false
}

// history takes what the PBX's history says. It knows no SubCallID: the legs of an extension are matched in their order,
// and only when there are as many on both sides.
func (d *decision) history(said []HistoryLeg) {
	type group struct{ extension, flow string }
	ours, theirs := map[group][]int{}, map[group][]HistoryLeg{}
	for i := range d.call.Legs {
		if l := &d.call.Legs[i]; !l.service() {
			g := group{l.ExtensionID, d.flow(l)}
			ours[g] = append(ours[g], i)
		}
	}
	for _, h := range said {
		g := group{h.ExtensionID, h.Flow}
		theirs[g] = append(theirs[g], h)
	}
	for g, legs := range ours {
		if len(theirs[g]) != len(legs) {
			d.note("the PBX's history has %d legs of extension %s (%s), the events have %d: not used", len(theirs[g]), g.extension, g.flow, len(legs))
			continue
		}
		slices.SortFunc(legs, func(a, b int) int { return order(&d.call.Legs[a], &d.call.Legs[b]) })
		for i, n := range legs {
			d.call.Legs[n].Asked = &theirs[g][i]
		}
	}
}

// order is the order in which legs began.
func order(a, b *Leg) int {
	return cmp.Or(cmp.Compare(a.beganUS(), b.beganUS()), cmp.Compare(a.SubCallID, b.SubCallID))
}

// recordings sends recordings that became known after the registration, and asks the history for them (P16).
func (d *decision) recordings() {
	missing := false
	for i := range d.call.Legs {
		l := &d.call.Legs[i]
		if l.service() || l.Delivery == 0 || l.Recorded || l.answered() == no {
			continue
		}
		if id := l.recordID(); id != "" {
			l.Recorded = true
			number := d.queue(EndpointRecording, recordingDocument(d.cfg, &d.call, l))
			d.journal(Decided{Rule: "P16", What: "a late recording", Leg: l.SubCallID, Delivery: number, RequestID: d.call.RequestID})
		} else if l.WantRecording {
			missing = true
		}
	}
	switch {
	case !missing:
		if d.call.Recording.SinceMS != 0 {
			d.call.Recording = Ask{}
		}
	case d.ask(&d.call.Recording, 5*time.Minute, 30*time.Minute, 2*time.Hour):
		d.journal(Decided{Rule: "P16", What: "unreconciled: an answered leg has no recording"})
	}
}

// wake sets the one timer to whatever is due next.
func (d *decision) wake() {
	var next int64
	due := func(at int64) {
		if at > d.now && (next == 0 || at < next) {
			next = at
		}
	}
	for i := range d.call.Legs {
		if l := &d.call.Legs[i]; !d.closed(l) {
			due(d.deadlineMS(l))
		}
	}
	if d.call.QuietMS != 0 {
		due(d.call.QuietMS + d.cfg.Grace.Milliseconds())
		due(d.settlesMS)
	}
	due(d.call.History.DueMS)
	due(d.call.Recording.DueMS)
	switch {
	case next == d.call.WakeMS:
	case next == 0:
		d.effects.CancelTimer = true
	default:
		d.effects.SetTimerMS = next - d.now
	}
	d.call.WakeMS = next
}

// prune forgets legs that rang in vain and that nothing depends on any more. A late repeat of an event of theirs would
// show their card again for as long as a phone rings; there are keepLegs newer legs by then. Where even that leaves no room
// for another leg, which may be the one that answers, the oldest goes that hung up and is not known to have answered.
func (d *decision) prune() {
	excess, full := len(d.call.Legs)-keepLegs, len(d.call.Legs) == maxLegs
	if excess <= 0 {
		return
	}
	firstRang := d.firstRang()
	d.call.Legs = slices.DeleteFunc(d.call.Legs, func(l Leg) bool {
		if l.service() || l.SubCallID == firstRang || d.flow(&l) != callback.PbxIn || !l.Hangup.seen() || l.Delivery != 0 || l.answered() == yes {
			return false
		}
		vain := l.Dial.seen() && l.answered() == no && l.Hangup.Status != ""
		forget := vain && excess > 0 || full
		if forget {
			excess, full = excess-1, false
		}
		return forget
	})
}

// queue numbers and queues a delivery, for the last event that said something new.
func (d *decision) queue(endpoint string, payload []byte) uint32 {
	number := max(d.call.NextDelivery, 1)
	d.call.NextDelivery = number + 1
	d.effects.Deliveries = append(d.effects.Deliveries, NewDelivery{
		Number: number, Destination: d.cfg.Destination, Endpoint: endpoint, Payload: payload,
		RequestID: d.call.RequestID, Traceparent: d.call.Traceparent,
	})
	return number
}
