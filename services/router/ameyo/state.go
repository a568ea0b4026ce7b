package ameyo

import (
	"net/url"
	"slices"
	"strings"

	"callrelay/callback"
)

// Keys of gates (spec/ameyo-topsii.md, Dedupe gate). All parts but the last are escaped, so different callbacks never
// share a key; call starts have a namespace of their own.

// startNamespace begins the gate keys of call starts.
const startNamespace = "start/"

func startKey(c *callback.CallStart) string {
	return startNamespace + c.CallID + "/" + url.QueryEscape(c.StaffID) + "/" + c.TargetTel
}

func endKey(c *callback.CallEnd) string {
	return "end/" + c.CallID + "/" + url.QueryEscape(c.CustomerID) + "/" + c.AttemptID
}

// keyCallID returns the call id in the key of a gate.
func keyCallID(key string) string {
	_, rest, _ := strings.Cut(key, "/")
	id, _, _ := strings.Cut(rest, "/")
	return id
}

// takenByExpiry is Phone1.TakenBy of a record that was sent alone when it expired. It is no key of a gate.
const takenByExpiry = "expired"

// timerPrefix and the customer's id make the name of the timer at which a phone-1 record expires.
const timerPrefix = "phone1:"

// like says that one of the two takes the place of the other. A connected result and one that was not have a gate each: when
// the delivery of one dies, the other is still known to have arrived.
func (g Gate) like(other Gate) bool { return g.Key == other.Key && g.Connected == other.Connected }

// phone1 returns the index of the customer's phone-1 record, or of the late mark, or -1.
func (c *Call) phone1(customer string, lateMark bool) int {
	return slices.IndexFunc(c.Phone1, func(p Phone1) bool { return p.CustomerID == customer && p.LateMark == lateMark })
}

// delivery returns the delivery with the number, or nil.
func (c *Call) delivery(number uint32) *Delivery {
	// Deliveries are numbered from 1 without gaps, so nearly always this one.
	if i := int(number) - 1; i >= 0 && i < len(c.Deliveries) && c.Deliveries[i].Number == number {
		return &c.Deliveries[i]
	}
	for i := range c.Deliveries {
		if c.Deliveries[i].Number == number {
			return &c.Deliveries[i]
		}
	}
	return nil
}

// readable returns the index of the customer's phone-1 record if a callback with the gate key that was received at the
// moment may read its status, or -1: before the record expires until somebody takes it, and the taker for ever, so that
// its callback sent again reads the same (spec/ameyo-topsii.md, Phone-1 record).
func (c *Call) readable(customer, key string, at int64) int {
	i := c.phone1(customer, false)
	if i < 0 {
		return -1
	}
	if p := &c.Phone1[i]; p.TakenBy == key || p.TakenBy == "" && at < p.ExpiresMS {
		return i
	}
	return -1
}

// status derives the status of a gate for a callback received at the moment: GateProcessing, GateWaitingPhone2,
// GateProcessed and since when, or "" when the gate was released (spec/ameyo-topsii.md, Dedupe gate).
func (c *Call) status(g *Gate, at int64) (status string, since int64) {
	if len(g.Deliveries) == 0 {
		return c.undeliveredStatus(g, at)
	}
	arrived := false
	for _, number := range g.Deliveries {
		d := c.delivery(number)
		switch {
		case d == nil:
			// The store forgot it; the gate must neither stay closed for ever nor open at once.
			arrived, since = true, max(since, g.ReceivedMS)
		case d.State < Delivered:
			return GateProcessing, 0
		default:
			arrived = arrived || d.State != Dead || d.Uncertain
			since = max(since, d.FinalMS)
		}
	}
	if !arrived {
		return "", 0
	}
	return GateProcessed, since
}

func (c *Call) undeliveredStatus(g *Gate, at int64) (status string, since int64) {
	if i := slices.IndexFunc(c.Phone1, func(p Phone1) bool { return p.leftBy(g) }); i >= 0 {
		if at < c.Phone1[i].ExpiresMS {
			return GateWaitingPhone2, 0
		}
		return GateProcessed, c.Phone1[i].ExpiresMS
	}
	return GateProcessed, max(g.ProcessedMS, g.ReceivedMS)
}

// leftBy says that the owner of the gate left the record and that nobody took it.
func (p *Phone1) leftBy(g *Gate) bool {
	return !p.LateMark && p.TakenBy == "" && p.Gate == g.Key && p.RequestID == g.Owner
}
