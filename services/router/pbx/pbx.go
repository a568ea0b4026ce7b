// Package pbx is the rules of a cloud PBX's extension events: Decide says what an event, or a timer that came due, means
// for a call (a CallID with its legs), and which registrations, caller cards, timers and journal facts follow. Its
// specification is spec/pbx.md, rules P1 to P19.
//
// A call is the facts that its events gave, merged so that neither their order nor their repetition matters. Everything
// else follows from the facts and the time: which legs are answered, local, forwarded; which cards are visible; what is
// to be registered. What was registered is remembered and never taken back.
//
// It does not own the reading of events (callrelay/callback), the storing of calls, the sending of deliveries, the
// streaming of cards, nor any clock, file or network: it is pure, and a test keeps it so.
package pbx

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"callrelay/callback"
)

// Config is the configuration of one integration: its PBX and the rules' times and switches.
type Config struct {
	// Integration is the id of the integration.
	Integration string
	// Destination takes the registrations.
	Destination string
	// Prefix begins the names of this PBX's extensions, before the star: 3 to 6 digits.
	Prefix string
	// ExtensionLen is the number of digits after the star, 2 to 4.
	ExtensionLen int
	// Users are the CRM users of the extensions by name; empty where none is mapped. Every extension of the table is in it.
	Users map[string]string
	// Services are the names of the queues and IVRs by id, whose hangups are to come.
	Services map[string]string
	// KeepLocal processes calls between extensions too (P6).
	KeepLocal bool
	// DirectMissed registers missed calls that came through no queue or IVR (P18).
	DirectMissed bool
	// InferAnswer takes a hangup that says ANSWER for an answer, though the answer event was lost (P4; PBX_INFER_ANSWER).
	InferAnswer bool
	// History says that somebody can ask the PBX's call history (P15, P16).
	History bool
	// Grace is how long after the last known leg closed a call is settled (PBX_GRACE).
	Grace time.Duration
	// MaxRing and MaxTalk end legs whose hangup never came (P15; PBX_MAX_RING, PBX_MAX_TALK).
	MaxRing, MaxTalk time.Duration
	// MaxWait ends the stay of a caller in a queue or IVR whose hangup never came (PBX_MAX_WAIT).
	MaxWait time.Duration
}

// DefaultConfig returns the defaults of the specification, without a PBX.
func DefaultConfig() Config {
	return Config{DirectMissed: true, Grace: 5 * time.Second, MaxRing: 120 * time.Second, MaxTalk: 4 * time.Hour, MaxWait: 30 * time.Minute}
}

// Check reports everything that is wrong with the configuration. Decide needs one that passed.
func (c *Config) Check() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.Integration != "", "an integration must have an id")
	check(c.Destination != "", "destination is required: where registrations go")
	check(len(c.Prefix) >= 3 && len(c.Prefix) <= 6 && digits(c.Prefix), "prefix must be 3 to 6 digits, not %q", c.Prefix)
	check(c.ExtensionLen >= 2 && c.ExtensionLen <= 4, "extension_len must be 2 to 4, not %d", c.ExtensionLen)
	check(c.Grace >= time.Second && c.Grace <= time.Minute, "PBX_GRACE must be 1s to 1m, not %v", c.Grace)
	check(c.MaxRing >= 10*time.Second, "PBX_MAX_RING must be at least 10s, not %v", c.MaxRing)
	check(c.MaxTalk >= time.Minute, "PBX_MAX_TALK must be at least 1m, not %v", c.MaxTalk)
	check(c.MaxWait >= time.Minute, "PBX_MAX_WAIT must be at least 1m, not %v", c.MaxWait)
	return errors.Join(errs...)
}

// Local says that a number is an extension of this PBX: a name in the table, the own prefix with 2 to 4 digits, or a bare
// number of the table. Another prefix is outside.
func (c *Config) Local(number string) bool {
	if _, ok := c.Users[number]; ok {
		return true
	}
	if prefix, rest, star := strings.Cut(number, "*"); star {
		return prefix == c.Prefix && len(rest) >= 2 && len(rest) <= 4 && digits(rest)
	}
	_, ok := c.Users[c.Prefix+"*"+number]
	return ok && len(number) == c.ExtensionLen
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// Call is what the rules know of one call. The zero value is a call nobody heard of.
type Call struct {
	CallID string
	// Legs in the order in which they were first heard of, each SubCallID once.
	Legs []Leg
	// Started are the ids of callbacks that callrelay itself started (P13).
	Started []string
	// NextDelivery is the number of the next delivery; 0 counts as 1.
	NextDelivery uint32
	// Missed is the number of the delivery that registered the missed call; 0: none did.
	Missed uint32
	// QuietMS is since when every known leg is closed; 0: one is open. Grace later the call is settled, or MaxWait later
	// while a queue or IVR may hold the caller.
	QuietMS int64
	// History is the asking for what events did not say (P15), Recording that for recordings that were late (P16).
	History, Recording Ask
	// WakeMS is when the timer is due; 0: none is set.
	WakeMS int64
	// RequestID and Traceparent are those of the last event that said something new.
	RequestID, Traceparent string
}

// Leg is one attempt on one extension: a SubCallID.
type Leg struct {
	SubCallID string
	// ExtensionID, Extension (its name) and Type are those of the token that the events came with.
	ExtensionID, Extension, Type string
	// Dial (in or out), Answer and Hangup are what the events said; a zero AtUS: there was none yet.
	Dial, Answer, Hangup Said
	// Asked is what the PBX's history said; nil: nothing.
	Asked *HistoryLeg
	// Delivery is the number of the delivery that registered the leg; 0: none did.
	Delivery uint32
	// Recorded says that the registration, or one after it, carried a recording.
	Recorded bool
	// WantRecording says that the extension gave recordings lately (P16).
	WantRecording bool
	// Outcome is what the journal says of the leg.
	Outcome string
	// Card is the last one shown; Version 0: none was.
	Card Card
}

// Types of extensions whose events count.
const (
	Phone = "phone"
	Queue = "queue"
	IVR   = "ivr"
)

// Said is what events of one kind said of a leg, merged.
type Said struct {
	// AtUS is EventTime, in microseconds since 1970, or when the event was received.
	AtUS int64
	// ReceivedMS is when the first was received, Unix milliseconds; RequestID its request.
	ReceivedMS int64
	RequestID  string

	Flow, Status                         string
	Caller, Called, Remote, DID          string
	CallerExtensionID, CalledExtensionID string
	CallBackID, Bridged                  string
	Transfered                           bool
	HasDuration                          bool
	DurationUS                           int64
	RecordID                             string
}

func (s *Said) seen() bool { return s.AtUS != 0 }

// Card is a caller card: what a CRM user shall see of a leg. Its id is the leg's SubCallID.
type Card struct {
	User string
	// State is one of the constants Card...
	State string
	// Direction is callback.PbxIn or callback.PbxOut.
	Direction   string
	Number, DID string
	Extension   string
	// TakenBy is the extension that took the call, with CardTaken.
	TakenBy string
	// Version counts the changes of the card from 1.
	Version uint32
}

// States of a card. CardTaken and CardEnded are not to be seen any more (CardTaken may say who took the call).
const (
	CardRinging = "ringing"
	CardInCall  = "in_call"
	CardTaken   = "taken"
	CardEnded   = "ended"
)

// Open says that the card is to be seen.
func (c Card) Open() bool { return c.State == CardRinging || c.State == CardInCall }

// Ask is a question to the PBX's call history, put a few times.
type Ask struct {
	// SinceMS is when the need arose, DueMS when the next try, or the end, is due; 0: nothing is asked.
	SinceMS, DueMS int64
	Tries          uint32
	// GivenUp: no answer came, or nobody can ask; this stands.
	GivenUp bool
}

// Input is what is to be decided: exactly one of Event, Started, History and Timer is set.
type Input struct {
	// RequestID and Traceparent are the event's; empty for all else.
	RequestID, Traceparent string
	// ReceivedMS is when the event was received, Unix milliseconds; of a timer, when it came due (0 = now).
	ReceivedMS int64
	Event      *callback.PbxEvent
	// ExtensionID, Extension (its name) and Type say whose token the event came with.
	ExtensionID, Extension, Type string
	// WantRecording says that the extension gave a recording within the last 7 days (P16).
	WantRecording bool
	// Started is the id of a callback that callrelay started in this call.
	Started string
	// History is what the PBX's call history says of the call.
	History []HistoryLeg
	// Timer is the name of the timer that came due.
	Timer string
}

// HistoryLeg is one leg in the PBX's call history, which knows no SubCallID; legs of one extension are in their order.
type HistoryLeg struct {
	ExtensionID string
	Flow        string
	// Number is the far side, where the history names it.
	Number     string
	Answered   bool
	DurationUS int64
	RecordID   string
}

// Effects are what follows from an input. They become true together with the new call, or not at all.
type Effects struct {
	Deliveries []NewDelivery
	// Cards are those that changed.
	Cards []CardChange
	// Ask is a question to the PBX's history that is to be put now; nil: none.
	Ask *AskHistory
	// SetTimerMS is how long after the commit the timer (TimerName) is due, in milliseconds, 0: it stays as it is.
	SetTimerMS  int64
	CancelTimer bool
	// Facts for the journal, in order; the fact that the event was received is the caller's to write before them.
	Facts []Fact
	// RequestID is whom the facts belong to.
	RequestID string
	// Duplicate: the event says nothing new.
	Duplicate bool
	// Changed: the call differs. Else only the facts are to be written.
	Changed bool
}

// TimerName names the one timer of a call.
const TimerName = "pbx"

// NewDelivery is a delivery to queue.
type NewDelivery struct {
	Number uint32
	// Destination is the integration's; Endpoint is EndpointCall or EndpointRecording.
	Destination, Endpoint string
	// Payload is the JSON document of docs/webhook.md.
	Payload []byte
	// RequestID and Traceparent are those of the last event.
	RequestID, Traceparent string
}

// Endpoints of deliveries: the types of docs/webhook.md.
const (
	EndpointCall      = "call.registered"
	EndpointRecording = "call.recording"
)

// CardChange is a card as it shall be from now on.
type CardChange struct {
	ID string
	Card
}

// AskHistory asks for the history of the call.
type AskHistory struct {
	CallID string
	// Try counts from 1.
	Try uint32
}

// Fact is a fact for the journal: Decided, Duplicate, CardChange or Note.
type Fact interface{ fact() }

// Decided says what the rules chose for a leg or, without one, for the call.
type Decided struct {
	// Rule is P1 to P19.
	Rule string
	// What was chosen, in words.
	What string
	Leg  string
	// Delivery that was queued; 0: none.
	Delivery uint32
	// RequestID is the request that it is about; "" = Effects.RequestID.
	RequestID string
}

// Duplicate says that the event repeats an earlier one.
type Duplicate struct {
	// Of is the request id of the first.
	Of string
	// Key is the kind of the event and its SubCallID.
	Key string
}

// Note is something worth knowing, in words.
type Note string

func (Decided) fact()    {}
func (Duplicate) fact()  {}
func (CardChange) fact() {}
func (Note) fact()       {}
