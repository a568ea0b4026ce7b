// Package kommo is the rules of call logging in Kommo: Decide says what a source of a call, a timer, the result of a
// delivery or a message means for one call, DecideNumber the same for one client's number of which Kommo knows nothing.
// Its specification is spec/kommo.md (rules K1 to K11); what nobody could confirm about Kommo is in unconfirmed.go.
//
// It owns the order of the three sources, the claim by the call-result window, the one incoming lead per unknown
// number, parking, looking up what may have arrived, and every JSON body that is sent to Kommo.
//
// It does not own the reading of requests, the storing of records, tokens, limits and retries, nor any clock, file or
// network: it is pure, and a test keeps it so.
//
// One call is written by one record, so it cannot be written twice. One number has one record, so its incoming lead
// cannot be created twice. The two speak in messages: a call that Kommo has no entity for asks its number (Unknown) and
// touches nothing until the answer (Answer) is there.
package kommo

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// Call is what is known of one call of one account. The zero value with its ID is a call nobody heard of. It maps to
// KommoCall in proto/callrelay/state/v1/kommo.proto. Times are Unix milliseconds.
type Call struct {
	// ID is the call's id within the account; it is what Kommo gets as uniq. The caller sets it from the record's key.
	ID    string
	Phase Phase
	// Voip is what the VoIP side said; nil = nothing yet. VoipMS is when.
	Voip   *Facts
	VoipMS int64
	// Window is what the call-result window said; nil = nothing yet.
	Window *Window
	// Recording is the PBX's id of the recording; empty = none known. Dropped: nobody can hear it any more (K9).
	Recording   string
	RecordingMS int64
	Dropped     bool

	// Rev counts what changed of the facts that a note shows; WrittenRev is the one that Kommo has.
	// FactMS is when they last changed.
	Rev, WrittenRev uint32
	FactMS          int64
	// Entity is where the call is, NoteID its note (0 = not known), once Phase is Written.
	Entity Entity
	NoteID int64
	// Inbound is the direction with which it was written.
	Inbound bool

	// Post is the number of the delivery that writes the call, Look of the look-up, Patch of the change under way; 0 = none.
	Post, Look, Patch uint32
	// PostRev and PatchRev are the revisions that they carry, PostMS is when Kommo was last asked to find the entity.
	PostRev, PatchRev uint32
	PostMS            int64
	// PostTo is the entity on which Post puts a note; none: Kommo chooses. JoinUID is the uid of the incoming lead, where it is
	// one that the call joins.
	PostTo  Entity
	JoinUID string
	// Resting: the next try of a look-up or change waits for the timer.
	Resting bool
	// Tries counts what was done in vain, for the pause before the next try.
	Tries uint32

	// Ask is the number of the latest question to the number's record; Asked: an answer, or another one, is still to come. AskRev
	// is the revision of what an incoming lead made of the question has.
	Ask    uint32
	Asked  bool
	AskRev uint32

	// ClaimVoid: the entity that the manager chose does not exist.
	ClaimVoid bool
	// Popped: a card was shown (K11).
	Popped bool

	// RequestID and Traceparent are those of the source for which the next delivery goes out.
	RequestID   string
	Traceparent string
	// NextDelivery and NextMessage number on; 0 counts as 1.
	NextDelivery, NextMessage uint32
}

// Number is what is known of a client's number for which Kommo had no entity, in one account: which calls wait, and the
// incoming lead. It maps to KommoNumber in proto/callrelay/state/v1/kommo.proto. Times are Unix milliseconds.
type Number struct {
	// Digits are those of Digits. The caller sets them from the record's key.
	Digits string
	Phase  NumberPhase
	// Waiting are the calls that have asked, oldest first, each at most once, without the Creator.
	Waiting []Unknown
	// Creator is the call whose incoming lead is under way, in any phase but Idle and Verifying.
	Creator *Unknown
	// Lead is the incoming lead, as long as nothing says that it is gone; nil = none.
	Lead *Lead
	// Contact: one appeared while a lead was under way.
	Contact bool
	// Post is the number of the delivery that adds the lead, Look of the look-up under way.
	Post, Look uint32
	Tries      uint32
	// NextDelivery and NextMessage number on; 0 counts as 1.
	NextDelivery, NextMessage uint32
}

// NumberPhase is what happens to the incoming lead of a number.
type NumberPhase int32

// The phases of a number.
const (
	// Idle: nothing is under way.
	Idle NumberPhase = 0
	// Creating: the request is queued or under way.
	Creating NumberPhase = 1
	// Seeking: it may have arrived or not; it is looked for (K10).
	Seeking NumberPhase = 2
	// Verifying: it is asked whether the lead is still there.
	Verifying NumberPhase = 3
	// Refused: Kommo refused it, or nobody can say whether it arrived. The dead delivery waits for a person.
	Refused NumberPhase = 4
)

// Lead is an incoming lead.
type Lead struct {
	UID string
	// Entity takes the notes of calls that join it.
	Entity Entity
	// Uniq is the call that is in it, Phone its number.
	Uniq, Phone string
	// SeenMS is when it was known to be there.
	SeenMS int64
}

// Phase is where a call is on its way into Kommo.
type Phase int32

// The phases of a call.
const (
	// Collecting: its sources are waited for (K2).
	Collecting Phase = 0
	// Adding: a request that writes it is queued or under way.
	Adding Phase = 1
	// Checking: that request may have arrived or not; it is looked for (K10).
	Checking Phase = 2
	// Asking: Kommo knows no entity, and the number's record was asked.
	Asking Phase = 3
	// Parked: there is no entity; a contact is waited for (K9).
	Parked Phase = 4
	// Written: it is in Kommo.
	Written Phase = 5
	// NoEntity: the time of waiting for a contact is over.
	NoEntity Phase = 6
	// Failed: Kommo refused it, or nobody can say whether it arrived. The dead delivery waits for a person.
	Failed Phase = 7
	// Stuck: Kommo refused the incoming lead of its number. The dead delivery of the number's record waits for a person.
	Stuck Phase = 8
	// Discarded: a person decided against it, or sending is switched off.
	Discarded Phase = 9
)

// Direction says who called.
type Direction string

// The directions, in Kommo's words.
const (
	Inbound  Direction = "inbound"
	Outbound Direction = "outbound"
)

// Entity is something in Kommo that a call can be put on. The zero value is none.
type Entity struct {
	// Type is "lead", "contact", "company" or "customer".
	Type string
	ID   int64
}

// Facts are what a source says of a call that ended.
type Facts struct {
	Direction Direction
	// Phone is the client's number in either direction; empty: it was withheld.
	Phone string
	// Duration in seconds; 0 for a call that nobody answered.
	Duration int64
	Status   Status
	// StartedMS is when the call began, Unix milliseconds; 0 = unknown.
	StartedMS int64
	// User is the Kommo user who spoke; 0 = unknown. UserName is shown where the user is not known, e.g. an extension.
	User     int64
	UserName string
	// DID is the number that the client called.
	DID string
}

// Window is what is known of the call-result window.
type Window struct {
	// OpenedMS is when it was first heard of, Unix milliseconds.
	OpenedMS int64
	// State is WindowOpened, WindowSaved or WindowCancelled.
	State  WindowState
	Facts  Facts
	Entity Entity
	Result string
}

// WindowState says what the manager did.
type WindowState int32

// The states of the window.
const (
	WindowOpened    WindowState = 1
	WindowSaved     WindowState = 2
	WindowCancelled WindowState = 3
)

// Input is what happened: exactly one of Voip, Window, Recording, Ringing, Result, Timer, Unknown, Answer and Contact is
// set. Unknown and Contact are for numbers, Answer and the first four for calls.
type Input struct {
	// RequestID and Traceparent are those of the request that it came with; empty for timers, results and messages.
	RequestID   string
	Traceparent string
	// ReceivedMS is when it was received, Unix milliseconds; 0 = now.
	ReceivedMS int64

	Voip      *Voip
	Window    *Window
	Recording string
	Ringing   *Ringing
	Result    *Result
	Timer     string
	Unknown   *Unknown
	Answer    *Answer
	// Contact: a contact with this number appeared, or changed.
	Contact bool
}

// Voip is the report of the VoIP side.
type Voip struct {
	Facts
	// Recording is the id of the recording, where the report has it.
	Recording string
}

// Ringing asks for a card (K11).
type Ringing struct {
	Phone string
	Users []int64
}

// Result is the final result of a delivery.
type Result struct {
	Delivery uint32
	Endpoint string
	Outcome  Outcome
	Reply    Reply
	// Reason in words where it is not OK.
	Reason string
}

// Reply is what Kommo said; what it did not say is empty.
type Reply struct {
	Entity Entity
	NoteID int64
	// UID, LeadID and ContactID are those of an incoming lead.
	UID       string
	LeadID    int64
	ContactID int64
}

// Outcome is how a delivery ended.
type Outcome string

// How a delivery can end.
const (
	OK Outcome = "ok"
	// NotFound: Kommo has no such entity, note or uniq.
	NotFound Outcome = "not_found"
	// UnsortedOff: incoming leads are switched off in the account.
	UnsortedOff Outcome = "unsorted_off"
	// TooMany: the look-up cannot say; a person has to look.
	TooMany Outcome = "too_many"
	// Unknown outcome: it may have arrived.
	Uncertain Outcome = "uncertain"
	// Dead: Kommo refused it, or it was tried too often. A person may retry it, and then there is another result.
	Dead Outcome = "dead"
	// Dropped: a person discarded it, sending is switched off, or it is too old. There is no other result.
	Dropped Outcome = "dropped"
)

// Unknown is a call's question to the record of its number: Kommo has no entity for it.
type Unknown struct {
	// Call is its id, Ask the number of the question.
	Call string
	Ask  uint32
	// LeadBody is the body of a request for an incoming lead with the call in it; empty: none may be created for it.
	LeadBody []byte
	// Waits: the call needs no answer; it waits for a contact or for an incoming lead to join.
	Waits bool
	// Refused is the uid of an incoming lead that Kommo would not let it join.
	Refused string
	// UntilMS is when it no longer waits for a contact, Unix milliseconds.
	UntilMS int64
	// Phone is the number as the call has it.
	Phone       string
	RequestID   string
	Traceparent string
}

// Answer is what a call is told about its number.
type Answer struct {
	Kind AnswerKind
	Ask  uint32
	// Entity is where the call is to be noted, UID the incoming lead's. Included: the call is in it already, on Entity.
	Entity   Entity
	UID      string
	Included bool
	NoteID   int64
	Reason   string
}

// AnswerKind is what an Answer says.
type AnswerKind string

// What an Answer can say.
const (
	// AnswerLead: there is an incoming lead.
	AnswerLead AnswerKind = "lead"
	// AnswerPark: there will be none for this call; wait for a contact.
	AnswerPark AnswerKind = "park"
	// AnswerStuck: Kommo refused the lead; a person has to look.
	AnswerStuck AnswerKind = "stuck"
	// AnswerDiscarded: a person decided against the lead.
	AnswerDiscarded AnswerKind = "discarded"
	// AnswerContact: a contact with the number appeared.
	AnswerContact AnswerKind = "contact"
)

// Effects are what follows from an input. They become true together with the new record, or not at all.
type Effects struct {
	Deliveries   []NewDelivery
	SetTimers    []Timer
	CancelTimers []string
	Messages     []Message
	// Facts for the journal, in order.
	Facts []Fact
	// Notices are for the account's people.
	Notices []Notice
	// Reply is for the call-result window.
	Reply WindowReply
	// Duplicate: it was known already.
	Duplicate bool
	// Changed: the record differs. Else only the facts are to be written.
	Changed bool
}

// NewDelivery is a request for Kommo's client (services/upstream/internal/kommo).
type NewDelivery struct {
	Number uint32
	// Destination is the AccountKey.
	Destination string
	// Endpoint is one of the constants Endpoint...
	Endpoint    string
	Payload     []byte
	RequestID   string
	Traceparent string
	// MaxAgeMS: useless when older than this, in milliseconds; 0 = never.
	MaxAgeMS int64
}

// Timer is a timer to set. It replaces the one of its name.
type Timer struct {
	Name string
	// InMS is how long after the commit it is due, in milliseconds; at least 1.
	InMS int64
}

// Message is an input for another record, which takes it once however often it comes: its id is the input's id there.
type Message struct {
	// ID is unique for ever: the sender's key and a number of its own.
	ID string
	// To is the key of the record (CallKey, NumberKey).
	To    string
	Input Input
}

// Fact is a fact for the journal: CallOutcome or Note.
type Fact interface{ fact() }

// CallOutcome says what became of the call or what is done about it.
type CallOutcome struct {
	// Name is one of the constants Outcome...
	Name   string
	Entity Entity
	// Deliveries are the numbers of those that were queued.
	Deliveries []uint32
	Reason     string
}

// Note is something worth knowing, in words.
type Note string

func (CallOutcome) fact() {}
func (Note) fact()        {}

// What CallOutcome.Name says. AlreadyCreated and CreateError are the seed's words.
const (
	OutcomeSent           = "Call event sent"
	OutcomeCreated        = "Call event created"
	OutcomeAlreadyCreated = "Already created"
	OutcomeCreateError    = "Create call event error"
	OutcomeUpdateSent     = "Call event update sent"
	OutcomeUpdated        = "Call event updated"
	OutcomeUpdateError    = "Update call event error"
	OutcomeLooking        = "Looking for the call event"
	OutcomeNoContact      = "No entity found by number"
	OutcomeLeadSent       = "Incoming lead sent"
	OutcomeLeadCreated    = "Incoming lead created"
	OutcomeLeadJoined     = "Joins the incoming lead"
	OutcomeParked         = "Waits for a contact"
	OutcomeNoEntity       = "no_entity"
	OutcomeDiscarded      = "Discarded"
	OutcomePopup          = "Card sent"
)

// Notice is something that a person should know about the account.
type Notice struct {
	Code string
	Text string
}

// NoticeUnsortedOff is the code of the notice that incoming leads are switched off.
const NoticeUnsortedOff = "incoming_leads_off"

// WindowReply is what the call-result window is answered.
type WindowReply struct {
	// Conflict: the call is on Entity and stays there (409).
	Conflict bool
	Entity   Entity
	// Pending: the call is being written, and the choice of an entity may come too late (202).
	Pending bool
}

// Config has the settings of one account.
type Config struct {
	AccountID int64
	// SourceName is how the VoIP service is called in Kommo. SourceFormat puts it together with the number that the client
	// called, where there is one: {name} and {did}.
	SourceName   string
	SourceFormat string
	PipelineID   int64
	WidgetCode   string
	// ResponsibleUser is the Kommo user for calls whose user is not known; 0 = none.
	ResponsibleUser int64
	// Link gives the address of a call's recording; it must always give the same. Required.
	Link func(callID string) string

	// ClaimDelay is how long a call from the VoIP side waits for the window (KOMMO_CLAIM_DELAY).
	ClaimDelay time.Duration
	// WindowMax is how long an open window holds it (KOMMO_WINDOW_MAX).
	WindowMax time.Duration
	// ParkFor is how long after its end a call or recording waits for a contact.
	ParkFor time.Duration
	// PollFirst is the pause before the first poll of a parked call, twice as long each time; 0 = no polls, only webhooks.
	PollFirst time.Duration
	// LookFirst is the pause before an uncertain request is looked for, and before a change in vain is tried again; twice as long
	// each time, at most an hour. Kommo must be done with the request by then (KOMMO_SETTLE).
	LookFirst time.Duration
	// UpdateFor is how long after its last fact a call that cannot be found is tried to be changed, or to be written.
	UpdateFor time.Duration
	// LeadFresh is how long an incoming lead is believed to be open without asking.
	LeadFresh time.Duration
	// PopupMaxAge is the age from which a ringing card is useless; 0: none is shown.
	PopupMaxAge time.Duration

	Unconfirmed Unconfirmed
}

// DefaultConfig returns the defaults of the specification for an account.
func DefaultConfig(accountID int64) *Config {
	return &Config{
		AccountID:    accountID,
		SourceName:   "callrelay",
		SourceFormat: "{name} / {did}",
		WidgetCode:   "callrelay",
		ClaimDelay:   5 * time.Second,
		WindowMax:    15 * time.Minute,
		ParkFor:      18 * time.Hour,
		PollFirst:    10 * time.Minute,
		LookFirst:    10 * time.Second,
		UpdateFor:    72 * time.Hour,
		LeadFresh:    10 * time.Minute,
		PopupMaxAge:  10 * time.Second,
		Unconfirmed:  defaultUnconfirmed(),
	}
}

// Check reports everything that is wrong with the configuration. Decide needs one that passed.
func (c *Config) Check() error {
	var errs []error
	need := func(ok bool, problem string) {
		if !ok {
			errs = append(errs, errors.New(problem))
		}
	}
	need(c.AccountID > 0, "account_id must be a positive number")
	need(c.SourceName != "", "source_name is required")
	need(strings.Contains(c.SourceFormat, "{name}") && strings.Contains(c.SourceFormat, "{did}"), "source_format must contain {name} and {did}")
	need(c.PipelineID >= 0, "pipeline_id must not be negative")
	need(c.WidgetCode != "", "widget_code is required")
	need(c.ResponsibleUser >= 0, "responsible_user_id must not be negative")
	need(c.Link != nil, "there is no link to recordings")
	need(c.ClaimDelay >= 0 && c.ClaimDelay <= MaxClaimDelay, "KOMMO_CLAIM_DELAY must be 0 to 1h")
	need(c.WindowMax > 0, "KOMMO_WINDOW_MAX must be positive")
	need(c.ParkFor > 0, "the time a call waits for a contact must be positive")
	need(c.PollFirst >= 0, "the pause between polls must not be negative")
	need(c.LookFirst > 0, "the pause before a look-up must be positive")
	need(c.UpdateFor > 0, "the time that a call or change is tried must be positive")
	need(c.LeadFresh >= 0, "the time an incoming lead is believed to be open must not be negative")
	need(c.PopupMaxAge >= 0 && c.PopupMaxAge <= MaxPopupAge, "popup_max_age must be 0 to 60 seconds")
	errs = append(errs, c.Unconfirmed.check())
	return errors.Join(errs...)
}

// MaxClaimDelay bounds ClaimDelay: a call that is not in Kommo after an hour is a lost call to whoever looks for it.
const MaxClaimDelay = time.Hour

// MaxPopupAge bounds PopupMaxAge: no phone rings for longer.
const MaxPopupAge = time.Minute

// AccountPrefix begins the keys of accounts, and so those of their calls.
const AccountPrefix = "kommo/"

const numberPrefix = "kommo-number/"

// AccountKey is how an account is called where state keeps it; its queue has the same name.
func AccountKey(accountID int64) string {
	return AccountPrefix + strconv.FormatInt(accountID, 10)
}

// ParseAccount reads an AccountKey.
func ParseAccount(key string) (accountID int64, ok bool) {
	id, ok := strings.CutPrefix(key, AccountPrefix)
	accountID, err := strconv.ParseInt(id, 10, 64)
	return accountID, ok && err == nil && accountID > 0 && key == AccountKey(accountID)
}

// CallKey is the key of the record of a call.
func CallKey(accountID int64, callID string) string {
	return AccountKey(accountID) + "/" + callID
}

// RingKey is the key of the record of a leg's card. It is not the leg's own, which takes part in the order of what is sent
// for a call, is found as a call, and is kept for years.
func RingKey(accountID int64, callID string) string { return CallKey(accountID, "ring:"+callID) }

// NumberKey is the key of the record of a number, given by its Digits.
func NumberKey(accountID int64, digits string) string {
	return numberPrefix + strconv.FormatInt(accountID, 10) + "/" + digits
}

// ParseKey reads a key of this package: of a call, or of a number.
func ParseKey(key string) (accountID int64, id string, number, ok bool) {
	rest, number := strings.CutPrefix(key, numberPrefix)
	if !number {
		if rest, ok = strings.CutPrefix(key, AccountPrefix); !ok {
			return 0, "", false, false
		}
	}
	account, id, _ := strings.Cut(rest, "/")
	accountID, ok = ParseAccount(AccountPrefix + account)
	return accountID, id, number, ok && id != ""
}

// Digits are the last ten digits of a number, by which Kommo compares; fewer where it has fewer, none where it has none.
func Digits(phone string) string {
	digits := strings.Map(func(r rune) rune {
		if '0' <= r && r <= '9' {
			return r
		}
		return -1
	}, phone)
	return digits[max(0, len(digits)-10):]
}
