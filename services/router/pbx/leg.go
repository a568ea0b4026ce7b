package pbx

import (
	"cmp"
	"slices"

	"callrelay/callback"
)

// say takes what an event says, merged with what earlier ones of its kind said of the leg. Merging commutes and a repeat
// adds nothing, so order and repetition leave no trace: the earliest time, the smallest of different texts.
func (s *Said) say(e Said) (news bool) {
	if !s.seen() {
		*s = e
		return true
	}
	m := Said{
		AtUS: min(s.AtUS, e.AtUS), ReceivedMS: s.ReceivedMS, RequestID: s.RequestID,
		Flow: text(s.Flow, e.Flow), Caller: text(s.Caller, e.Caller), Called: text(s.Called, e.Called),
		Remote: text(s.Remote, e.Remote), DID: text(s.DID, e.DID),
		CallerExtensionID: text(s.CallerExtensionID, e.CallerExtensionID), CalledExtensionID: text(s.CalledExtensionID, e.CalledExtensionID),
		CallBackID: text(s.CallBackID, e.CallBackID), RecordID: text(s.RecordID, e.RecordID),
		Status: status(s.Status, e.Status), Bridged: max(s.Bridged, e.Bridged),
		Transfered: s.Transfered || e.Transfered, HasDuration: s.HasDuration || e.HasDuration, DurationUS: max(s.DurationUS, e.DurationUS),
	}
	news = m != *s
	*s = m
	return news
}

// text chooses between two texts of repeated events.
func text(a, b string) string {
	if a == "" || b != "" && b < a {
		return b
	}
	return a
}

// status chooses between two: one that is not ANSWER must never be registered as successful (P10).
func status(a, b string) string {
	if a == callback.PbxAnswered {
		return cmp.Or(b, a)
	}
	if b == callback.PbxAnswered {
		return cmp.Or(a, b)
	}
	return text(a, b)
}

func (l *Leg) service() bool { return l.Type == Queue || l.Type == IVR }

// first returns the first given text, of the dialling, the hangup, the answer: the answer may name the answering
// extension where the others name the caller.
func (l *Leg) first(field func(*Said) string) string {
	return cmp.Or(field(&l.Dial), field(&l.Hangup), field(&l.Answer))
}

func (l *Leg) did() string        { return l.first(func(s *Said) string { return s.DID }) }
func (l *Leg) callBackID() string { return l.first(func(s *Said) string { return s.CallBackID }) }
func (l *Leg) from() string {
	return l.first(func(s *Said) string { return s.CallerExtensionID })
}
func (l *Leg) transfered() bool {
	return l.Dial.Transfered || l.Answer.Transfered || l.Hangup.Transfered
}

func (l *Leg) recordID() string {
	if l.Hangup.RecordID == "" && l.Asked != nil {
		return l.Asked.RecordID
	}
	return l.Hangup.RecordID
}

// durationUS is how long was talked.
func (l *Leg) durationUS() int64 {
	if !l.Hangup.seen() && l.Asked != nil {
		return l.Asked.DurationUS
	}
	return l.Hangup.DurationUS
}

// beganUS is when the leg began: when it was dialled, else EventTime minus Duration.
func (l *Leg) beganUS() int64 {
	switch {
	case l.Dial.seen():
		return l.Dial.AtUS
	case l.Hangup.seen():
		return l.Hangup.AtUS - l.Hangup.DurationUS
	}
	return l.Answer.AtUS
}

// answeredUS is when an answered leg was answered.
func (l *Leg) answeredUS() int64 {
	switch {
	case l.Answer.seen():
		return l.Answer.AtUS
	case l.Hangup.seen():
		return l.Hangup.AtUS - l.Hangup.DurationUS
	}
	return l.Dial.AtUS
}

// flow is callback.PbxIn or PbxOut, or empty when nothing says it.
func (d *decision) flow(l *Leg) string {
	flow := l.first(func(s *Said) string { return s.Flow })
	switch {
	case flow != "":
		return flow
	case l.first(func(s *Said) string { return s.Called }) == l.Extension:
		return callback.PbxIn
	case l.first(func(s *Said) string { return s.Caller }) == l.Extension:
		return callback.PbxOut
	}
	return ""
}

// What is known of a leg's far side.
type side int

const (
	unknown side = iota // an extension, but a lost dial-in may have named the number behind it
	local
	outside
)

// party returns the number that a leg is a call with, and which side it is on (P6, P7, P8).
func (d *decision) party(l *Leg) (number string, where side) {
	if d.flow(l) == callback.PbxOut {
		number = l.first(func(s *Said) string { return s.Called })
		if d.cfg.Local(number) && !d.cfg.KeepLocal {
			return number, local
		}
		return number, outside
	}
	if number = l.first(func(s *Said) string { return s.Remote }); number != "" && !d.cfg.Local(number) {
		return number, outside
	}
	if l.Asked != nil && l.Asked.Number != "" && !d.cfg.Local(l.Asked.Number) {
		return l.Asked.Number, outside
	}
	number = cmp.Or(l.Dial.Caller, l.Hangup.Caller)
	if number == "" && !l.Dial.seen() && !l.Hangup.seen() {
		number = l.Answer.Caller
	}
	switch {
	case !d.cfg.Local(number):
		return number, outside
	case d.cfg.KeepLocal:
		return number, outside
	case !l.Dial.seen():
		return number, unknown
	}
	return number, local
}

// internalForwarding says that forwarding between two extensions made the leg (P9).
func (l *Leg) internalForwarding() bool {
	return l.transfered() && digits(l.from()) &&
		digits(l.first(func(s *Said) string { return s.CalledExtensionID }))
}

// lent says that the leg carries the id of a callback that is not ours: perhaps the extension only lent its identity (P13).
func (d *decision) lent(l *Leg) bool {
	id := l.callBackID()
	return id != "" && d.flow(l) == callback.PbxOut && !l.transfered() && !slices.Contains(d.call.Started, id)
}

type certainty int

const (
	no certainty = iota
	perhaps
	yes
)

// answered says whether a leg was answered (P4, P10).
func (l *Leg) answered() certainty {
	switch {
	case l.Hangup.seen() && l.Hangup.Status != "" && l.Hangup.Status != callback.PbxAnswered:
		return no
	case l.Answer.seen():
		return yes
	case l.Asked != nil && l.Asked.Answered:
		return yes
	case l.Asked != nil, l.Hangup.Status == "":
		return no
	case l.Hangup.HasDuration && l.Hangup.DurationUS == 0:
		return no // hung up because another one answered
	}
	return perhaps
}

// deadlineMS is when a leg without a hangup counts as over (P15).
func (d *decision) deadlineMS(l *Leg) int64 {
	if l.Answer.seen() {
		return l.Answer.ReceivedMS + d.cfg.MaxTalk.Milliseconds()
	}
	return l.Dial.ReceivedMS + d.cfg.MaxRing.Milliseconds()
}

func (d *decision) closed(l *Leg) bool {
	return l.Hangup.seen() || l.Asked != nil || d.now >= d.deadlineMS(l)
}
