package pbx

import (
	"time"

	"callrelay/callback"
)

// CardTime is how long a card may be open without a further change; 0: it is not open. Decide ends each card before, by the
// timer of its leg; this is for a call of which nothing more is decided.
func (c *Config) CardTime(card Card) time.Duration {
	switch card.State {
	case CardRinging:
		return c.MaxRing + time.Minute
	case CardInCall:
		return c.MaxTalk + time.Minute
	}
	return 0
}

// cards shows, changes and ends the cards of all legs (P1, P2, P8). What is to be seen follows from the facts alone.
func (d *decision) cards() {
	for i := range d.call.Legs {
		l := &d.call.Legs[i]
		want := d.card(l)
		want.Version = l.Card.Version
		if want == l.Card || !want.Open() && !l.Card.Open() {
			continue // nobody sees a difference; a late dial-in after a hangup ends here (P14)
		}
		want.Version++
		l.Card = want
		change := CardChange{ID: l.SubCallID, Card: want}
		d.effects.Cards = append(d.effects.Cards, change)
		d.journal(change)
	}
}

// card is what is to be seen of a leg now.
func (d *decision) card(l *Leg) Card {
	number, where := d.party(l)
	flow := d.flow(l)
	want := l.Card
	if !l.Card.Open() {
		want.User = d.cfg.Users[l.Extension]
	}
	want.Direction, want.Number, want.DID, want.Extension, want.TakenBy = flow, number, l.did(), l.Extension, ""
	hidden := l.service() || want.User == "" || where != outside || flow == "" || d.lent(l) || flow == callback.PbxOut && l.transfered()
	switch {
	case hidden, d.closed(l):
		want = l.Card
		want.State, want.TakenBy = CardEnded, ""
	case l.Answer.seen():
		want.State = CardInCall
	case flow == callback.PbxIn && d.takenBy(l) != "":
		want.State, want.TakenBy = CardTaken, d.takenBy(l)
	default:
		want.State = CardRinging
	}
	return want
}

// Rings says that a phone begins to ring for somebody outside: of each leg that is the first state of its card, or it never
// is. Nobody rings who was answered, has hung up or was taken by another by then.
func (c CardChange) Rings() bool {
	return c.Version == 1 && c.State == CardRinging && c.Direction == callback.PbxIn
}

// takenBy is the extension that answered the call while this leg of it was ringing (P2). A leg that rings later, after a
// transfer, is not taken.
func (d *decision) takenBy(ringing *Leg) string {
	var by *Leg
	for i := range d.call.Legs {
		l := &d.call.Legs[i]
		if l.service() || !l.Answer.seen() || d.flow(l) != callback.PbxIn || ringing.beganUS() > l.Answer.AtUS {
			continue
		}
		if by == nil || l.Answer.AtUS < by.Answer.AtUS || l.Answer.AtUS == by.Answer.AtUS && l.SubCallID < by.SubCallID {
			by = l
		}
	}
	if by == nil {
		return ""
	}
	return by.Extension
}
