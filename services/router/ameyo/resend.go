package ameyo

import (
	"fmt"
	"slices"

	"callrelay/callback"
)

// Refusal is why a callback is not sent again, for people. NeedsForce: it would be, if asked to regardless.
type Refusal struct {
	Message    string
	NeedsForce bool
}

func (r *Refusal) Error() string { return r.Message }

// Resend decides a callback in place of the request `of` of the same call: that one's gates, waiting record and mark become
// the new request's in the same step, so that nothing of it can be sent beside the new one and a late repeat of it stays a
// duplicate. It is decided as of in.ReceivedMS, which is when the first one was received.
//
// The error is a *Refusal: while a delivery of the request is under way always; else without force where the CRM has, or
// may have, what the request led to, and where another request holds the gate.
func Resend(cfg *Config, call Call, in Input, of string, force bool, nowMS int64) (Call, Effects, error) {
	gate, customer := Gate{}, ""
	if in.CallStart != nil {
		gate.Key = startKey(in.CallStart)
	} else {
		gate.Key, gate.Connected, customer = endKey(in.CallEnd), in.CallEnd.Connected, in.CallEnd.CustomerID
	}
	key := gate.Key
	if err := call.resendable(gate, of, in.ReceivedMS); err != nil && (!force || !err.NeedsForce) {
		return call, Effects{}, err
	}

	d := decision{cfg: cfg, call: call, in: in, at: in.ReceivedMS, now: nowMS}
	d.change()
	var replaced, aside []Gate
	d.call.Gates = slices.DeleteFunc(d.call.Gates, func(g Gate) bool {
		switch {
		case g.Owner == of:
			replaced = append(replaced, g)
		case g.Key == key && !g.like(gate):
			aside = append(aside, g)
		}
		return g.Owner == of || g.Key == key
	})
	ours := func(key string) bool {
		return key != "" && slices.ContainsFunc(replaced, func(g Gate) bool { return g.Key == key })
	}
	var cancel []string
	d.call.Phone1 = slices.DeleteFunc(d.call.Phone1, func(p Phone1) bool {
		waiting := p.RequestID == of && !p.LateMark && p.TakenBy == ""
		if waiting {
			cancel = append(cancel, timerPrefix+p.CustomerID)
		}
		return waiting
	})
	for i := range d.call.Phone1 {
		p := &d.call.Phone1[i]
		switch {
		case p.LateMark && ours(p.TakenBy):
			p.TakenBy = "" // it absorbs the same phone 1 again
		case ours(p.TakenBy):
			p.TakenBy = key // and the same status is read again
		}
		if p.LateMark && ours(p.Gate) && p.CustomerID == customer {
			p.Gate = key
		}
	}

	next, effects := Decide(cfg, d.call, in, nowMS)
	effects.Changed = true
	for i := range effects.Deliveries {
		if n := &effects.Deliveries[i]; n.MaxAgeMS > 0 { // a person wants it now, however old it is
			n.MaxAgeMS = cfg.CallStartMaxAge.Milliseconds()
		}
	}
	for _, name := range cancel {
		if !slices.ContainsFunc(effects.SetTimers, func(t Timer) bool { return t.Name == name }) && !slices.Contains(effects.CancelTimers, name) {
			effects.CancelTimers = append(effects.CancelTimers, name)
		}
	}
	var deliveries []uint32
	for _, n := range effects.Deliveries {
		if n.RequestID == in.RequestID {
			deliveries = append(deliveries, n.Number)
		}
	}
	next.Gates = slices.Insert(next.Gates, 0, aside...)
	for _, g := range replaced {
		if g.like(gate) {
			continue
		}
		g.Owner, g.Deliveries, g.WaitingPhone2 = in.RequestID, deliveries, false
		g.ProcessedMS = max(nowMS, g.ProcessedMS)
		next.Gates = append(next.Gates, g)
	}
	return next, effects, nil
}

// resendable is nil when nothing of the request is or may be with the CRM.
func (c *Call) resendable(gate Gate, of string, at int64) *Refusal {
	var force *Refusal
	needs := func(format string, a ...any) {
		if force == nil {
			force = &Refusal{Message: fmt.Sprintf(format, a...), NeedsForce: true}
		}
	}
	for i := range c.Deliveries {
		d := &c.Deliveries[i]
		switch {
		case d.RequestID != of:
		case d.State < Delivered:
			return &Refusal{Message: fmt.Sprintf("delivery %d of it is still under way: wait, or discard it first", d.Number)}
		case d.State == Delivered:
			needs("delivery %d of it was delivered", d.Number)
		case d.State == Asked || d.Uncertain:
			needs("delivery %d of it may have been delivered: look in the CRM first", d.Number)
		case d.State == Discarded:
			needs("delivery %d of it was discarded by a person", d.Number)
		}
	}
	for i := range c.Phone1 {
		if p := &c.Phone1[i]; p.RequestID == of && !p.LateMark && p.TakenBy != "" {
			needs("its phone-1 status was sent together with phone 2")
		}
	}
	for i := range c.Gates {
		g := &c.Gates[i]
		if g.Key != gate.Key || g.Owner == of || gate.Connected && !g.Connected {
			continue
		}
		if status, _ := c.status(g, at); status == "" {
			continue
		}
		for _, n := range g.Deliveries {
			if d := c.delivery(n); d != nil && d.State < Delivered {
				return &Refusal{Message: fmt.Sprintf("request %s was accepted for the same callback and its delivery %d is still under way", g.Owner, n)}
			}
		}
		needs("request %s was accepted for the same callback", g.Owner)
	}
	return force
}

// Name returns the name that the rules were read under.
func (r *Rules) Name() string { return r.name }

// Reason says in words which inputs of the table a call end meets, with the phones as the call's record makes them.
func Reason(c *callback.CallEnd, phones uint32) string {
	combination := 0
	if c.Connected {
		combination |= isConnected
	}
	if c.Disposition != "" {
		combination |= isGiven
	}
	if c.DialIndex >= 1 {
		combination |= isPhone2
	}
	if phones >= 2 {
		combination |= isManyPhones
	}
	return describe(combination)
}
