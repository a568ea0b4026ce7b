package callback

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Pbx is the source of calls that a cloud PBX reports.
const Pbx = "pbx"

// Kinds of PBX events (spec/pbx.md, Events in). PbxDial is a dial-in or dial-out; PbxEvent.Flow says which.
const (
	PbxDial        = "dial"
	PbxAnswer      = "answer"
	PbxHangup      = "hangup"
	PbxAgentLogin  = "agent-login"
	PbxAgentLogout = "agent-logout"
)

// Values of PbxEvent.Flow.
const (
	PbxIn  = "in"
	PbxOut = "out"
)

// PbxAnswered is the CallStatus of a successful leg.
const PbxAnswered = "ANSWER"

// PbxEvent is a decoded event of one leg (SubCallID) of one call (CallID), or of a queue agent. Texts may be empty:
// the PBX leaves out what it does not know.
type PbxEvent struct {
	// Kind is one of the constants Pbx...
	Kind string
	// AtUS is EventTime in microseconds since 1970; 0 when it was not given or cannot be read.
	AtUS int64
	// CallID is opaque, at most 128 bytes without control characters; not empty but for agents.
	CallID string
	// SubCallID is the same of a leg.
	SubCallID string
	// Flow is PbxIn, PbxOut or empty.
	Flow string
	// Status is CallStatus in capitals.
	Status string
	// Caller, Called and Remote are CallerIDNum, CalledNumber and RemoteNumber without '@' and what follows.
	Caller, Called, Remote string
	// DID is CalledDID.
	DID string
	// CallerExtensionID and CalledExtensionID are as they came; only numeric ones count (spec/pbx.md, P9).
	CallerExtensionID, CalledExtensionID string
	CallBackID                           string
	// Bridged is "yes", "no" or empty.
	Bridged string
	// Transfered says that a forwarding made the leg.
	Transfered bool
	// HasDuration says that Duration was given and readable; DurationUS is it, in microseconds.
	HasDuration bool
	DurationUS  int64
	// RecordID is RecID.
	RecordID string
	// Agent and AgentStatus are agent_id and agent_status of an agent event.
	Agent, AgentStatus string
	// Notes are worth journaling, in words: what could not be read. They hold no phone numbers.
	Notes []string
}

// pbxNames are the parameters of a PBX event that count, as the PBX writes them.
var pbxNames = []string{
	"EventType", "EventTime", "CallID", "SubCallID", "CallFlow", "CallStatus", "CallerIDNum", "CalledNumber", "CalledDID",
	"CallerExtensionID", "CalledExtensionID", "RemoteNumber", "CallBackID", "Bridged", "Transfered", "Duration", "RecID",
	"agent_id", "agent_status",
}

// PbxParams keeps the parameters of a PBX event that count, with the names that the PBX documents: it compares them
// without regard to case. Of a repeated one the last counts; the order is that of pbxNames.
func PbxParams(p Params) Params {
	kept := make(Params, 0, min(len(p), len(pbxNames)))
	for _, name := range pbxNames {
		for _, param := range slices.Backward(p) {
			if strings.EqualFold(param.Name, name) || name == "Transfered" && strings.EqualFold(param.Name, "Transferred") {
				if value := strings.Trim(param.Value, phpSpace); value != "" {
					kept = append(kept, Param{name, value})
				}
				break
			}
		}
	}
	return kept
}

// maxPbxID bounds CallID and SubCallID, in bytes; captured ones have 32 and 38.
const maxPbxID = 128

// maxPbxDuration bounds Duration: more than a week of talk is a mistake.
const maxPbxDuration = 7 * 24 * time.Hour

// DecodePbxEvent decodes an event of the PBX (spec/pbx.md, Events in). Names of parameters, kinds, flows and flags are
// compared without regard to case; any parameter but EventType, CallID and SubCallID may be absent, and one that cannot
// be read counts as absent, with a note. The error is a *FieldError and says what makes the event useless; what could be
// read is returned with it, so that it can be journaled with its call.
func DecodePbxEvent(p Params) (PbxEvent, error) {
	d := decoder{params: PbxParams(p)}
	var e PbxEvent
	e.CallID = d.pbxID("CallID")
	e.SubCallID = d.pbxID("SubCallID")
	d.pbxKind(&e)
	if e.Kind == PbxAgentLogin || e.Kind == PbxAgentLogout {
		e.Agent, e.AgentStatus = d.pbxValue("agent_id"), d.pbxValue("agent_status")
	} else {
		for _, id := range []struct{ name, value string }{{"CallID", e.CallID}, {"SubCallID", e.SubCallID}} {
			if id.value == "" {
				d.refuse(id.name, "is required")
			}
		}
	}
	e.AtUS = d.pbxTime()
	e.Status = strings.ToUpper(d.pbxValue("CallStatus"))
	e.Caller, e.Called, e.Remote = d.pbxNumber("CallerIDNum"), d.pbxNumber("CalledNumber"), d.pbxNumber("RemoteNumber")
	e.DID = d.pbxValue("CalledDID")
	e.CallerExtensionID, e.CalledExtensionID = d.pbxValue("CallerExtensionID"), d.pbxValue("CalledExtensionID")
	e.CallBackID = d.pbxValue("CallBackID")
	if bridged := strings.ToLower(d.pbxValue("Bridged")); bridged == "yes" || bridged == "no" {
		e.Bridged = bridged
	} else if bridged != "" {
		d.note("Bridged is neither yes nor no and counts as absent")
	}
	e.Transfered = strings.EqualFold(d.pbxValue("Transfered"), "yes")
	e.DurationUS, e.HasDuration = d.pbxDuration()
	e.RecordID = d.pbxValue("RecID")
	e.Notes = d.notes
	if d.err != nil {
		return e, d.err
	}
	return e, nil
}

// pbxValue returns a value; a longer one than 256 bytes counts as absent, since an event is taken whatever it holds.
func (d *decoder) pbxValue(name string) string {
	value := d.params.Get(name)
	if len(value) > maxValue {
		d.note("%s is longer than %d bytes and counts as absent", name, maxValue)
		return ""
	}
	return value
}

func (d *decoder) pbxID(name string) string {
	value := d.params.Get(name)
	if len(value) > maxPbxID {
		d.refuse(name, fmt.Sprintf("is longer than %d bytes", maxPbxID))
		return ""
	}
	if strings.ContainsFunc(value, unicode.IsControl) {
		d.refuse(name, "must not have control characters")
		return ""
	}
	return value
}

// pbxNumber cuts the domain off a number or extension.
func (d *decoder) pbxNumber(name string) string {
	number, _, _ := strings.Cut(d.pbxValue(name), "@")
	return strings.Trim(number, phpSpace)
}

func (d *decoder) pbxKind(e *PbxEvent) {
	kind := strings.ReplaceAll(strings.ToLower(d.pbxValue("EventType")), "_", "-")
	switch flow := strings.ToLower(d.pbxValue("CallFlow")); flow {
	case PbxIn, PbxOut:
		e.Flow = flow
	case "":
	default:
		d.note("CallFlow is neither in nor out and counts as absent")
	}
	switch kind {
	case "dial-in":
		e.Kind, e.Flow = PbxDial, PbxIn
	case "dial-out":
		e.Kind, e.Flow = PbxDial, PbxOut
	case PbxAnswer, PbxHangup, PbxAgentLogin, PbxAgentLogout:
		e.Kind = kind
	case "":
		d.refuse("EventType", "is required")
	default:
		d.refuse("EventType", "is none of dial-in, dial-out, answer, hangup, agent-login, agent-logout")
	}
}

func (d *decoder) pbxDuration() (us int64, ok bool) {
	value := d.pbxValue("Duration")
	if value == "" {
		return 0, false
	}
	us, err := strconv.ParseInt(value, 10, 64)
	if err != nil || us < 0 || us > maxPbxDuration.Microseconds() {
		d.note("Duration is not a number of microseconds up to a week and counts as absent")
		return 0, false
	}
	return us, true
}

// pbxTime reads EventTime: microseconds since 1970, as documented. Other units are told by their size, and written times
// are understood too, because a wrong guess of the unit would only disturb the order of events.
func (d *decoder) pbxTime() int64 {
	value := d.pbxValue("EventTime")
	if value == "" {
		return 0
	}
	us, ok := parsePbxTime(value)
	// From 2000 to 2100; anything else is a clock that was never set, or another unit.
	if !ok || us < 946_684_800_000_000 || us >= 4_102_444_800_000_000 {
		d.note("EventTime cannot be read and counts as absent")
		return 0
	}
	return us
}

func parsePbxTime(value string) (us int64, ok bool) {
	whole, fraction, pointed := strings.Cut(value, ".")
	if isDigits(whole) && len(whole) <= 19 && (!pointed || isDigits(fraction)) {
		n, err := strconv.ParseInt(whole, 10, 64)
		switch {
		case err != nil:
			return 0, false
		case len(whole) <= 11: // seconds
			part, _ := strconv.ParseInt((fraction + "000000")[:6], 10, 64)
			return n*1_000_000 + part, true
		case len(whole) <= 14: // milliseconds
			return n * 1000, true
		case len(whole) <= 17:
			return n, true
		}
		return n / 1000, true
	}
	if len(value) < len(TimeLayout) {
		return 0, false
	}
	// A plus of an offset may have arrived as a space.
	clock := strings.Replace(value[:len(TimeLayout)], "T", " ", 1) + strings.Replace(value[len(TimeLayout):], " ", "+", 1)
	for _, layout := range []string{"2006-01-02 15:04:05Z07:00", TimeLayout} {
		if t, err := time.Parse(layout, clock); err == nil {
			return t.UnixMicro(), true
		}
	}
	return 0, false
}

// PbxCallKey returns the canonical key of a PBX call, e.g. "pbx/acme/31573def...". The id is opaque and escaped.
func PbxCallKey(integration, callID string) string {
	return CallKey(Pbx+"/"+integration, url.QueryEscape(callID))
}

// PbxSeconds rounds microseconds to seconds, halves up (spec/pbx.md, P5).
func PbxSeconds(us int64) int64 { return (us + 500_000) / 1_000_000 }
