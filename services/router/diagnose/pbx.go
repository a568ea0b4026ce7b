package diagnose

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
)

// The steps of a call of a cloud PBX, in their order.
const (
	Events     Step = "events"
	Understood Step = "understood"
	Decided    Step = "decided"
	Registered Step = "registered"
	Delivered  Step = "delivered"
)

// Words by which these findings know router's notes.
const (
	NotUnderstood      = "cannot be understood"
	IntegrationDeleted = "was deleted: nothing more is decided of this call"
)

var pbxSteps = []Step{Events, Understood, Decided, Registered, Delivered}

// isPbx says that the checklist of a cloud PBX is the right one: for its calls, and for requests of its extensions.
func isPbx(call Call) bool {
	if strings.HasPrefix(call.Key, "pbx/") {
		return true
	}
	for _, e := range call.Journal {
		if strings.HasPrefix(e.GetReceived().GetSource(), "pbx.") {
			return true
		}
	}
	return false
}

// pbx walks the steps of a call of a cloud PBX.
func (d *diagnosis) pbx() {
	f := d.pbxEntries()
	if f.events == 0 {
		d.find(Events, failed, "pbx_nothing", about{})
	} else {
		d.find(Events, ok, "pbx_events", about{f.last, 0, []string{"count", fmt.Sprint(f.events)}})
	}
	if d.call.JournalDropped {
		d.find(Events, note, "received_journal_full", about{})
	}
	odd := len(d.findings[Understood]) > 0
	if f.repeats > 0 {
		d.find(Understood, note, "pbx_repeats", about{words: []string{"count", fmt.Sprint(f.repeats)}})
	}
	for _, id := range f.legOrder {
		switch leg := f.legs[id]; {
		case strings.HasPrefix(leg.GetFlow(), "unreconciled"):
			d.find(Decided, failed, "pbx_unreconciled", about{words: pbxWords(leg)})
		case len(leg.GetDeliveries()) == 0:
			d.find(Decided, ok, "pbx_left_out", about{words: pbxWords(leg)})
		default:
			d.find(Decided, ok, "pbx_decided", about{words: pbxWords(leg)})
		}
	}
	for _, id := range f.cardOrder {
		if c := f.cards[id]; c.GetState() == "ringing" || c.GetState() == "in_call" {
			d.find(Decided, waiting, "pbx_in_progress", about{words: []string{"leg", id, "state", strings.ReplaceAll(c.GetState(), "_", " "), "extension", c.GetExtension()}})
		}
	}
	if f.events > 0 && !odd && len(d.findings[Decided]) == 0 {
		d.find(Decided, waiting, "pbx_not_yet", about{})
	}
	for _, one := range d.call.Deliveries {
		d.pbxDelivery(one)
	}
}

// pbxFound is what the entries of a journal say together.
type pbxFound struct {
	events, repeats int
	last            string // request of the last event
	// legs have the last decision about each leg, cards its last card; their orders are those of the first.
	legs                map[string]*statev1.Decided
	cards               map[string]*statev1.PbxCard
	legOrder, cardOrder []string
}

// pbxEntries looks at each entry, and finds what a step can be told from it alone.
func (d *diagnosis) pbxEntries() pbxFound {
	found := pbxFound{legs: map[string]*statev1.Decided{}, cards: map[string]*statev1.PbxCard{}}
	for _, e := range d.call.Journal {
		request := e.GetRequestId()
		switch f := e.GetFact().(type) {
		case *statev1.JournalEntry_Received:
			found.events, found.last = found.events+1, request
			if age := time.Duration(f.Received.GetAgeMs()) * time.Millisecond; age >= late {
				d.find(Events, note, "received_late", about{request, 0, []string{"age", age.Round(time.Second).String()}})
			}
		case *statev1.JournalEntry_Rejected:
			found.events, found.last = found.events+1, request
			d.find(Understood, failed, "pbx_refused", about{request, 0, []string{"status", fmt.Sprint(f.Rejected.GetStatus()), "message", f.Rejected.GetMessage()}})
		case *statev1.JournalEntry_Undecided:
			d.find(Understood, failed, "pbx_panicked", about{request, 0, []string{"message", f.Undecided.GetReason()}})
		case *statev1.JournalEntry_Duplicate:
			found.repeats++
		case *statev1.JournalEntry_Note:
			d.pbxNote(request, f.Note)
		case *statev1.JournalEntry_Card:
			id := f.Card.GetId()
			if found.cards[id] == nil {
				found.cardOrder = append(found.cardOrder, id)
			}
			found.cards[id] = f.Card
		case *statev1.JournalEntry_Decided:
			if len(f.Decided.GetDeliveries()) > 0 {
				d.find(Registered, ok, "pbx_registered", about{request, f.Decided.GetDeliveries()[0], pbxWords(f.Decided)})
			}
			leg := f.Decided.GetLeg()
			if found.legs[leg] == nil {
				found.legOrder = append(found.legOrder, leg)
			}
			found.legs[leg] = f.Decided
		}
	}
	return found
}

func (d *diagnosis) pbxNote(request, text string) {
	a := about{request, 0, []string{"note", text}}
	switch {
	case strings.Contains(text, NotUnderstood):
		d.find(Understood, failed, "pbx_not_understood", a)
	case strings.HasSuffix(text, IntegrationDeleted):
		d.find(Decided, failed, "pbx_no_integration", a)
	default:
		d.find(Understood, note, "pbx_odd", a)
	}
}

func pbxWords(f *statev1.Decided) []string {
	return []string{"rule", f.GetRule(), "what", f.GetFlow(), "leg", f.GetLeg()}
}

// pbxDelivery looks at one registration with the CRM.
func (d *diagnosis) pbxDelivery(one *statev1.Delivery) {
	last := d.lastAttempt(one)
	hold, held := d.call.Holds[one.GetDestination()]
	reason := cmp.Or(one.GetReason(), last.GetError())
	level, code := failed, "send_unknown_state"
	switch one.GetState() {
	case statev1.DeliveryState_DELIVERY_STATE_QUEUED:
		switch {
		case held:
			reason, code = cmp.Or(hold, reason), "send_held"
		case last.GetNext() == "retry":
			reason = cmp.Or(last.GetError(), reason)
			level, code = waiting, "send_retrying"
		default:
			d.waits(Delivered, one, about{one.GetRequestId(), one.GetNumber(), []string{"endpoint", one.GetEndpoint(), "destination", one.GetDestination()}})
			return
		}
	case statev1.DeliveryState_DELIVERY_STATE_LEASED:
		level, code = waiting, "send_sending"
	case statev1.DeliveryState_DELIVERY_STATE_DELIVERED:
		level, code = ok, "pbx_delivered"
	case statev1.DeliveryState_DELIVERY_STATE_DEAD:
		code = "pbx_dead"
	case statev1.DeliveryState_DELIVERY_STATE_EXPIRED:
		code = "send_expired"
	case statev1.DeliveryState_DELIVERY_STATE_DISCARDED:
		level, code = note, "send_discarded"
	case statev1.DeliveryState_DELIVERY_STATE_ASKED:
		code = "pbx_asked"
	}
	d.find(Delivered, level, code, about{one.GetRequestId(), one.GetNumber(), []string{"endpoint", one.GetEndpoint(),
		"destination", one.GetDestination(), "reason", reason, "attempts", fmt.Sprint(one.GetAttempts())}})
}
