package kommo

import (
	"errors"
	"fmt"
	"slices"
)

// Unconfirmed has everything in which these rules rest on something that nobody could confirm about Kommo, as switches.
// Each names its paragraph in facts/kommo.md; what its list in paragraph 11 has besides belongs to Kommo's client.
//
// What needs no switch, because the rules hold either way: whether equal uniqs are merged (1.8; they never send one
// twice without looking), whether the id of a posted call is the id of its note (1.5; changes name the uniq too), whether
// a note's params are merged or replaced (3.3; they are always complete), which entity Kommo prefers (1.4; its answer
// says which it took), and whether an accepted lead's contact is matched at once (2.5; the call asks again).
type Unconfirmed struct {
	// JoinLead is how a second call gets onto an incoming lead that is open (2.5, "whether notes can be added to an unaccepted
	// lead"): JoinByNote, or JoinByWaiting for the contact that there is when the lead was accepted. Where Kommo knows no
	// entity for the note, the call waits by itself.
	JoinLead string
	// JoinOnto is the entity that JoinByNote takes: "lead" or "contact". EventOnto is the one that has the call event which an
	// incoming lead brings with it (2.2).
	JoinOnto, EventOnto string
	// SIPPhone and SIPFrom are what metadata.phone and metadata.from of an incoming lead say (2.3): SIPClient or SIPUser, and
	// SIPFrom may be SIPNothing.
	SIPPhone, SIPFrom string
	// SIPLinkDummy is sent as link of an incoming lead without recording (2.2, a hint that none is refused); empty: no link.
	SIPLinkDummy string
	// SIPResponsible says whether the embedded lead has responsible_user_id (the seed gives one, 2.2 does not list it).
	SIPResponsible bool
	// NoteStatus says whether a note's params have call_status, call_result and call_responsible (3.2: only the SDK has them).
	NoteStatus bool
	// ResultMax is how many characters of call_result are sent (1.2: its limit is unknown).
	ResultMax int
}

// Values of Unconfirmed.
const (
	JoinByNote    = "note"
	JoinByWaiting = "wait"

	SIPClient  = "client"
	SIPUser    = "user"
	SIPNothing = ""
)

func defaultUnconfirmed() Unconfirmed {
	return Unconfirmed{
		JoinLead: JoinByNote, JoinOnto: "lead", EventOnto: "lead", SIPPhone: SIPClient, SIPFrom: SIPClient,
		SIPResponsible: true, NoteStatus: true, ResultMax: 5000,
	}
}

func (u *Unconfirmed) check() error {
	var errs []error
	oneOf := func(name, value string, words ...string) {
		if !slices.Contains(words, value) {
			errs = append(errs, fmt.Errorf("%s %q: want one of %q", name, value, words))
		}
	}
	oneOf("join_lead", u.JoinLead, JoinByNote, JoinByWaiting)
	oneOf("join_onto", u.JoinOnto, "lead", "contact")
	oneOf("event_onto", u.EventOnto, "lead", "contact")
	oneOf("sip_phone", u.SIPPhone, SIPClient, SIPUser)
	oneOf("sip_from", u.SIPFrom, SIPClient, SIPUser, SIPNothing)
	if u.ResultMax < 1 {
		errs = append(errs, errors.New("result_max must be positive"))
	}
	return errors.Join(errs...)
}
