// Package explain says what callbacks would do: it reads them as people have them (URLs, log lines, dumps), asks the rules,
// and compares the answers of several rules, or of the old PHP relay's logs.
//
// It owns the forms in which a callback can be pasted and the wording of the answer. It decides nothing itself
// (callrelay/services/router/ameyo) and has no effect: no I/O, no clock.
package explain

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"callrelay/callback"
	"callrelay/services/router/ameyo"
)

// Rules are rules under the name that they are shown by.
type Rules struct {
	Name   string
	Config *ameyo.Config
}

// Answer is what a callback would do.
type Answer struct {
	// Source is SourceStart or SourceEnd; Call is the call's key. Both are empty when nothing could be read.
	Source, Call string
	// Field and Refused say why it would be refused.
	Field, Refused string
	// Notes say what was read differently from what was sent.
	Notes []string
	// Decisions, one per rules.
	Decisions []Decision
}

// Decision is what one set of rules says.
type Decision struct {
	Rules string
	// Rule, Reason, Flow, ErrorInfo... as in the journal; Flow is "duplicate" for a repeat.
	Rule, Reason, Flow string
	Phone1StateUsed    bool
	// Payloads that would be sent, and how.
	Payloads [][]byte
	// Gate and Of are the status and the owner of the gate that suppresses a duplicate.
	Gate, Of string
}

// FlowDuplicate is Decision.Flow of a repeat.
const FlowDuplicate = "duplicate"

// Differs says whether two rules decide differently.
func (a *Answer) Differs() bool {
	return slices.ContainsFunc(a.Decisions, func(d Decision) bool {
		first := a.Decisions[0]
		return d.Flow != first.Flow || !slices.EqualFunc(d.Payloads, first.Payloads, bytes.Equal)
	})
}

// Session decides callbacks one after the other: each sees what those before it left behind, as if everything that they
// queued had been delivered at once.
type Session struct {
	rules   []Rules
	options callback.Options
	calls   []map[string]ameyo.Call // by rules, by call
	stored  func(call string) (ameyo.Call, error)
	inputs  int
}

// NewSession begins with the stored calls, or with calls of which nothing is known when stored is nil.
func NewSession(rules []Rules, options callback.Options, stored func(call string) (ameyo.Call, error)) *Session {
	s := &Session{rules: rules, options: options, stored: stored}
	for range rules {
		s.calls = append(s.calls, map[string]ameyo.Call{})
	}
	return s
}

// Explain says what the callback would do if it were received at the moment (Unix milliseconds). The error is about the
// stored call.
func (s *Session) Explain(text string, atMS int64) (Answer, error) {
	source, params, err := Parse(text)
	if err != nil {
		return Answer{Refused: err.Error()}, nil
	}
	return s.Decide(source, params, "", atMS)
}

// Decide is Explain of a callback that is read already. The id names it in duplicate_of of later ones; empty: a number.
func (s *Session) Decide(source string, params callback.Params, id string, atMS int64) (Answer, error) {
	s.inputs++
	if id == "" {
		id = fmt.Sprintf("callback %d", s.inputs)
	}
	in := ameyo.Input{RequestID: id, ReceivedMS: atMS}
	a := Answer{Source: source}
	var callID string
	var err error
	if source == SourceStart {
		var start callback.CallStart
		start, err = callback.DecodeCallStart(params, s.options)
		in.CallStart, callID, a.Notes = &start, start.CallID, start.Notes
	} else {
		var end callback.CallEnd
		end, err = callback.DecodeCallEnd(params, s.options)
		in.CallEnd, callID, a.Notes = &end, end.CallID, end.Notes
	}
	if field, ok := errors.AsType[*callback.FieldError](err); ok {
		a.Field, a.Refused = field.Field, field.Message
		return a, nil
	}
	a.Call = callback.CallKey(callback.Ameyo, callID)
	for i, rules := range s.rules {
		call, ok := s.calls[i][a.Call]
		if !ok && s.stored != nil {
			if call, err = s.stored(a.Call); err != nil {
				return a, err
			}
		}
		next, effects := ameyo.Decide(rules.Config, call, in, atMS)
		s.calls[i][a.Call] = delivered(next, effects, atMS)
		a.Decisions = append(a.Decisions, decision(rules.Name, in, effects))
	}
	return a, nil
}

// delivered is the call after everything that was queued has arrived.
func delivered(call ameyo.Call, effects ameyo.Effects, atMS int64) ameyo.Call {
	call.Deliveries = slices.Clone(call.Deliveries)
	for i := range call.Deliveries {
		for _, n := range effects.Deliveries {
			if d := &call.Deliveries[i]; d.Number == n.Number {
				d.State, d.FinalMS = ameyo.Delivered, atMS
			}
		}
	}
	return call
}

func decision(name string, in ameyo.Input, effects ameyo.Effects) Decision {
	d := Decision{Rules: name}
	for _, fact := range effects.Facts {
		switch f := fact.(type) {
		case ameyo.Decided:
			if f.Rule == ameyo.RuleExpiry {
				continue
			}
			d.Rule, d.Flow, d.Phone1StateUsed = f.Rule, f.Flow, f.Phone1StateUsed
			if in.CallEnd != nil {
				d.Reason = ameyo.Reason(in.CallEnd, f.Phones)
			} else {
				d.Reason = "a call start"
			}
		case ameyo.Duplicate:
			d.Flow, d.Gate, d.Of = FlowDuplicate, f.Gate, f.Of
			d.Reason = fmt.Sprintf("it repeats %s, whose gate is %s", f.Of, f.Gate)
		}
	}
	for _, n := range effects.Deliveries {
		d.Payloads = append(d.Payloads, n.Payload)
	}
	return d
}
