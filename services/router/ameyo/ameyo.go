// Package ameyo is the rules of the Ameyo dialer and TopS.II: Decide says what a callback, or a timer that came due,
// means for a call, and which deliveries, timers and journal facts follow. Its specification is spec/ameyo-topsii.md.
//
// It owns the decision table with its cause table and status overrides (Rules), the dedupe gates, the phone-1 records
// and TopS.II's payloads.
//
// It does not own the reading of callbacks (callrelay/callback), the storing of calls, the sending of deliveries, nor
// any clock, file or network: it is pure, and a test keeps it so. A call changes only by what Decide returns and by
// the results of its deliveries, which the store writes.
package ameyo

import (
	"errors"
	"fmt"
	"time"

	"callrelay/callback"
)

// Call is what the rules know of one call. The zero value is a call nobody heard of. It maps one to one to Record in
// proto/callrelay/state/v1/record.proto, plus the parts of its deliveries that decide the state of a gate.
type Call struct {
	// Gates in the order in which they were taken, each key at most once.
	Gates []Gate
	// Phone1 holds per customer at most one record and one late mark.
	Phone1 []Phone1
	// NextDelivery is the number of the next delivery; 0 counts as 1.
	NextDelivery uint32
	// Deliveries belong to the store and are only read. Decide appends those that it queues, so that the next input can
	// be decided on the returned call before anything was committed.
	Deliveries []Delivery
}

// Gate is the dedupe gate of one callback. Its status is not stored: it follows from the owner's deliveries and from
// the phone-1 record, so it cannot disagree with them (see Call.status). Times are Unix milliseconds.
type Gate struct {
	Key string
	// Owner is the request id of the callback that owns the gate.
	Owner string
	// Deliveries are the numbers of the owner's deliveries.
	Deliveries []uint32
	// Connected, DialIndex and Disposition are what the owner said, to recognise news and differing repeats.
	Connected   bool
	DialIndex   uint32
	Disposition string
	ReceivedMS  int64
	// ProcessedMS is when a gate without deliveries became processed; 0 while WaitingPhone2.
	ProcessedMS int64
	// WaitingPhone2: rule 4 stored a phone-1 record whose end (taken, replaced, expired) is not journaled yet.
	WaitingPhone2 bool
}

// Phone1 is a phone-1 record or, with LateMark, the mark that absorbs one late phone 1. Times are Unix milliseconds.
type Phone1 struct {
	CustomerID string
	Status     string
	// CallTime has the form of callback.TimeLayout.
	CallTime string
	// Gate is the key of the phone-1 callback's gate; of a mark, that of the phone-2 callback that left it.
	Gate string
	// TakenBy is the key of the gate that took the record, or whose callback the mark absorbed; empty: not taken.
	TakenBy    string
	ReceivedMS int64
	// ExpiresMS: received before this, a callback can still take it.
	ExpiresMS int64
	LateMark  bool
	// Traceparent and RequestID are those of the callback that left it.
	Traceparent string
	RequestID   string
}

// DeliveryState has the numbers of callrelay.state.v1.DeliveryState.
type DeliveryState int32

// The states of a delivery. It is final from Delivered on, though a person may put dead, asked and expired ones back.
const (
	Queued       DeliveryState = 1
	Leased       DeliveryState = 2
	Delivered    DeliveryState = 3
	Dead         DeliveryState = 4
	Expired      DeliveryState = 5
	Discarded    DeliveryState = 6
	SendDisabled DeliveryState = 7
	Asked        DeliveryState = 8
)

// Delivery is what the rules need to know of a delivery of the call.
type Delivery struct {
	Number uint32
	State  DeliveryState
	// Uncertain: an attempt may have arrived though no definite answer came.
	Uncertain bool
	// FinalMS is when it became final, Unix milliseconds; 0 = it is not.
	FinalMS   int64
	RequestID string
}

// Input is what is to be decided: exactly one of CallStart, CallEnd and Timer is set.
type Input struct {
	// RequestID and Traceparent are the callback's; empty for a timer.
	RequestID   string
	Traceparent string
	// ReceivedMS is when the callback was received, Unix milliseconds; for a timer, when it came due (0 = now).
	ReceivedMS int64
	CallStart  *callback.CallStart
	CallEnd    *callback.CallEnd
	// Timer is the name of a timer of the call that came due.
	Timer string
}

// Effects are what follows from an input. They become true together with the new call, or not at all.
type Effects struct {
	Deliveries   []NewDelivery
	SetTimers    []Timer
	CancelTimers []string
	// Facts for the journal, in order; the fact that the callback was received is the caller's to write before them.
	Facts []Fact
	// RequestID is whom the facts belong to: the callback's, or for a timer that of the callback that set it.
	RequestID string
	// Duplicate is the answer to the dialer.
	Duplicate bool
	// Changed: the call differs. Else only the facts are to be written; there may be none (a timer that is out of date).
	Changed bool
}

// NewDelivery is a delivery to queue.
type NewDelivery struct {
	Number uint32
	// Destination is always "topsii"; Endpoint is createCallStart, createCallEnd or createNotAnswer.
	Destination string
	Endpoint    string
	// Payload is the JSON of the form field jsonData.
	Payload []byte
	// Gate is the key of the gate it serves.
	Gate string
	// RequestID and Traceparent are those of the callback that it is for.
	RequestID   string
	Traceparent string
	// Link is the trace of the phone-1 callback whose status the payload carries; empty when there is none.
	Link string
	// MaxAgeMS: superseded when older than this, in milliseconds; 0 = never.
	MaxAgeMS int64
}

// Timer is a timer to set. It replaces the one of its name.
type Timer struct {
	Name string
	// InMS is how long after the commit it is due, in milliseconds; at least 1.
	InMS int64
}

// Fact is a fact for the journal: Decided, Duplicate, Phone1Fact or Note.
type Fact interface{ fact() }

// Decided says what the rules chose.
type Decided struct {
	// Rule is the number of the rule in the specification's table; RuleStart for a call start, RuleExpiry for a phone-1
	// record that expired with PHONE1_EXPIRY=send.
	Rule string
	// Flow is one of the constants Flow...
	Flow      string
	DialIndex uint32
	// Phones counts those that the callback names, and at least 2 when there is a phone-1 record.
	Phones uint32
	// ErrorInfo1 of a createCallEnd is its errorInfo.
	ErrorInfo1 string
	ErrorInfo2 string
	// Phone1StateUsed: the status of the phone-1 record is in the payload.
	Phone1StateUsed bool
	// Deliveries are the numbers of those that were queued.
	Deliveries []uint32
	// RequestID is the request that it is about; "" = Effects.RequestID.
	RequestID string
}

// Duplicate says that the callback repeats an earlier one.
type Duplicate struct {
	// Of is the request id of the gate's owner.
	Of string
	// Gate is one of the constants Gate...
	Gate string
	// Differs: dial index or disposition are not those of the first.
	Differs bool
	Key     string
	// Flow is what the owner led to: the endpoint of its delivery, or FlowWait.
	Flow string
}

// Phone1Fact says what became of a phone-1 record, or that a late phone 1 was absorbed.
type Phone1Fact struct {
	// What is one of the constants Phone1...
	What       string
	CustomerID string
	Status     string
	CallTime   string
	// RequestID is that of the callback that left the record.
	RequestID string
}

// Note is something worth knowing that changed nothing, in words.
type Note string

func (Decided) fact()    {}
func (Duplicate) fact()  {}
func (Phone1Fact) fact() {}
func (Note) fact()       {}

// What Decided.Rule says besides the numbers of the table.
const (
	RuleStart  = "start"
	RuleExpiry = "phone1-expiry"
)

// What Decided.Flow says. The first three are also the endpoints of deliveries.
const (
	FlowCallStart = "createCallStart"
	FlowCallEnd   = "createCallEnd"
	FlowNotAnswer = "createNotAnswer"
	FlowWait      = "wait for phone 2"
	FlowAbsorb    = "absorb late phone 1"
)

// What Duplicate.Gate says.
const (
	GateProcessing    = "processing"
	GateProcessed     = "processed"
	GateWaitingPhone2 = "waiting_phone2"
)

// What Phone1Fact.What says.
const (
	Phone1Stored   = "stored"
	Phone1Replaced = "replaced"
	Phone1Taken    = "taken"
	Phone1Expired  = "expired"
	Phone1Absorbed = "absorbed"
)

// Destination is where all deliveries of this package go.
const Destination = "topsii"

// Config is the configuration of the rules.
type Config struct {
	// Rules is the decision table with cause table and overrides (AMEYO_RULES_FILE).
	Rules *Rules
	// Profile names the part of the decision table to use (AMEYO_PROFILE).
	Profile string
	// DedupeTTL is how long a processed gate suppresses repeats (REQUEST_DEDUPE_TTL_SECONDS); 0 = not at all.
	DedupeTTL time.Duration
	// Phone1TTL is how long a phone-1 record and a late mark last (PHONE1_STATE_TTL_SECONDS).
	Phone1TTL time.Duration
	// Phone1Expiry is what happens to a record that phone 2 never took: "drop" or "send" (PHONE1_EXPIRY).
	Phone1Expiry string
	// Zone is that of the times sent to TopS.II (TIMEZONE); nil is Asia/Tokyo.
	Zone *time.Location
	// CallStartMaxAge is the age from which a call start is superseded (CALL_START_MAX_AGE_SECONDS); 0 = never.
	CallStartMaxAge time.Duration
}

// Values of Config.Phone1Expiry.
const (
	ExpiryDrop = "drop"
	ExpirySend = "send"
)

// DefaultConfig returns the defaults of the specification.
func DefaultConfig() *Config {
	return &Config{
		Rules:        DefaultRules(),
		Profile:      "seed",
		DedupeTTL:    300 * time.Second,
		Phone1TTL:    600 * time.Second,
		Phone1Expiry: ExpiryDrop,
	}
}

// Check reports everything that is wrong with the configuration. Decide needs one that passed.
func (c *Config) Check() error {
	var errs []error
	if c.Rules == nil {
		errs = append(errs, errors.New("there are no rules"))
	} else if _, ok := c.Rules.profiles[c.Profile]; !ok {
		errs = append(errs, fmt.Errorf("AMEYO_PROFILE %q is not a profile of %s: want one of %v", c.Profile, c.Rules.name, c.Rules.Profiles()))
	}
	if c.DedupeTTL < 0 {
		errs = append(errs, errors.New("REQUEST_DEDUPE_TTL_SECONDS must not be negative"))
	}
	if c.Phone1TTL <= 0 {
		errs = append(errs, errors.New("PHONE1_STATE_TTL_SECONDS must be positive"))
	}
	if c.Phone1Expiry != ExpiryDrop && c.Phone1Expiry != ExpirySend {
		errs = append(errs, fmt.Errorf("PHONE1_EXPIRY %q: want %s or %s", c.Phone1Expiry, ExpiryDrop, ExpirySend))
	}
	if c.CallStartMaxAge < 0 {
		errs = append(errs, errors.New("CALL_START_MAX_AGE_SECONDS must not be negative"))
	}
	return errors.Join(errs...)
}
