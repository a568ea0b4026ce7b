package kommo

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"callrelay/platform/telemetry"
	"callrelay/services/upstream/internal/delivery"
	"callrelay/services/upstream/internal/roundtrip"
)

var _ delivery.Sender = (*Account)(nil)

// noteGet is the endpoint of reading one note, beside those of deliveries.
const noteGet = "notes.get"

// paths of the endpoints, for people and requests; %s is the collection.
var paths = map[string]string{
	Calls: "/api/v4/calls", NotesCreate: "/api/v4/%s/%d/notes", NotesPatch: "/api/v4/%s/notes/%d",
	UnsortedSIP: "/api/v4/leads/unsorted/sip", EventsPopup: "/api/v2/events", LookupUniq: "/api/v4/{entities}/notes",
}

// URL is where an endpoint's requests go.
func (a *Account) URL(endpoint string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	host := "<account " + a.key() + ">"
	if a.session != nil {
		host = a.session.host
	}
	return a.client.url(host, cmp.Or(paths[endpoint], "/"+clip(endpoint)))
}

// Send carries out one delivery.
func (a *Account) Send(ctx context.Context, endpoint string, payload []byte) delivery.Answer {
	return a.carry(ctx, endpoint, payload, false, false)
}

// SendAgain carries out a delivery that may have arrived before: it is looked for first, and sent only when it is
// definitely not there. Where that is too much for us, a person who looked and retried it (looked) is believed. A card is not
// shown a second time.
func (a *Account) SendAgain(ctx context.Context, endpoint string, payload []byte, looked bool) delivery.Answer {
	return a.carry(ctx, endpoint, payload, true, looked)
}

func (a *Account) carry(ctx context.Context, endpoint string, payload []byte, again, looked bool) delivery.Answer {
	op, err := parse(endpoint, payload)
	if err != nil {
		return delivery.Answer{Outcome: delivery.Dead, Reason: "the payload is not one for Kommo: " + roundtrip.Bounded(err.Error(), 300)}
	}
	ctx, cancel := context.WithTimeout(ctx, a.client.options.Total)
	defer cancel()
	if again {
		switch endpoint {
		case EventsPopup:
			return delivery.Answer{Outcome: delivery.Dead, Reason: "the card may have been shown, and is not shown twice"}
		case Calls, NotesCreate, UnsortedSIP:
			reply, r := a.find(ctx, op.path)
			if r.kind == done && reply.Outcome == OK {
				return a.answer(r, reply)
			}
			switch {
			case r.kind == done, r.kind == tooMany && looked:
			case r.kind == tooMany:
				r.reason = "it may have arrived, and cannot be looked for: " + r.reason + "; look in Kommo whether it is there, then discard it or, if it is not, retry it"
				return a.answer(r, Reply{})
			default:
				// Whatever kept us from looking: what may have arrived stays uncertain, for state keeps that mark.
				r.reason = "it may have arrived, and looking for it failed: " + r.reason
				return a.answer(r, Reply{})
			}
		}
	}
	reply, r := a.do(ctx, op)
	return a.answer(r, reply)
}

// answer is a result in delivery's words.
func (a *Account) answer(r result, reply Reply) delivery.Answer {
	answer := delivery.Answer{Outcome: outcomes[r.kind], Reason: r.reason, HTTPCode: r.status, Body: r.body[:min(len(r.body), keptBody)], RetryAfter: r.after}
	switch r.kind {
	case notFound:
		reply = Reply{Outcome: NotFound}
	case uncertain:
		answer.RetryAfter = max(answer.RetryAfter, a.client.options.Unconfirmed.Settle)
	}
	if answer.Outcome == delivery.Delivered {
		answer.Reason, answer.Result = "", string(reply.Outcome)
		answer.Reply, _ = json.Marshal(reply) // numbers and strings always encode
	}
	return answer
}

// do carries out one operation.
func (a *Account) do(ctx context.Context, op operation) (Reply, result) {
	q := call{endpoint: op.endpoint, method: http.MethodPost, path: paths[op.endpoint], body: op.body}
	switch op.endpoint {
	case LookupUniq:
		reply, r := a.find(ctx, op.path)
		if r.kind == tooMany {
			return Reply{Outcome: TooMany}, result{kind: done}
		}
		return reply, r
	case NotesPatch:
		return a.patch(ctx, op)
	case NotesCreate:
		q.path = fmt.Sprintf(q.path, collections[op.path.EntityType], op.path.EntityID)
	}
	reply, r := Reply{}, a.request(ctx, q)
	if op.endpoint == EventsPopup {
		r = r.ofCard()
	}
	if r.kind == done || r.kind == notFound {
		reply, r = created(op, r)
	}
	if op.endpoint == UnsortedSIP && r.kind == invalid {
		return a.unsortedRefused(ctx, r)
	}
	return reply, r
}

// unsortedRefused finds out whether an incoming lead was refused because the account has them switched off: the answer to
// it does not say so in any documented way.
func (a *Account) unsortedRefused(ctx context.Context, refused result) (Reply, result) {
	about, r := a.about(ctx)
	if r.kind == done && about.UnsortedOn != nil && !*about.UnsortedOn {
		refused.kind = done
		return Reply{Outcome: UnsortedOff}, refused
	}
	return Reply{}, refused
}

// created reads what was made out of an answer of success. One that does not say what it made may have made nothing
// (Kommo names refused items in "errors", with HTTP 200), so it is looked for; unless it says that it made nothing, and why.
func created(op operation, r result) (Reply, result) {
	var answer struct {
		Total    *int              `json:"_total_items"`
		Errors   []json.RawMessage `json:"errors"` // of any shape
		Embedded struct {
			Calls []struct {
				ID         int64  `json:"id"`
				EntityID   int64  `json:"entity_id"`
				EntityType string `json:"entity_type"`
			} `json:"calls"`
			Notes    []identified `json:"notes"`
			Unsorted []incoming   `json:"unsorted"`
		} `json:"_embedded"`
	}
	reply := Reply{Outcome: OK}
	if op.endpoint == EventsPopup {
		return reply, r // a card is not worth asking for
	}
	_ = json.Unmarshal(r.body, &answer) // what can be read counts
	e, made := answer.Embedded, false
	switch {
	case op.endpoint == Calls && len(e.Calls) > 0:
		reply.NoteID, reply.EntityID, reply.EntityType = e.Calls[0].ID, e.Calls[0].EntityID, e.Calls[0].EntityType
		made = reply.NoteID != 0 || reply.EntityID != 0
	case op.endpoint == NotesCreate && len(e.Notes) > 0:
		reply.NoteID, reply.EntityID, reply.EntityType = e.Notes[0].ID, op.path.EntityID, op.path.EntityType
		made = reply.NoteID != 0
	case op.endpoint == UnsortedSIP && len(e.Unsorted) > 0:
		reply = e.Unsorted[0].reply()
		made = reply.UID != "" || reply.LeadID != 0
	}
	switch {
	case made:
		r.kind = done // whatever else it says was not found
		return reply, r
	case r.kind == notFound:
	case answer.Total != nil && *answer.Total == 0 && len(answer.Errors) > 0:
		r.kind, r.reason = invalid, "Kommo took nothing of it: "+telemetry.MaskDigits(roundtrip.Bounded(string(answer.Errors[0]), 500))
	default:
		r.kind, r.reason = uncertain, "Kommo says yes, but not what it made"
	}
	return Reply{}, r
}

// patch changes a note. The id may be one that is not a note's (unconfirmed.go), so the note is changed only when it carries
// the call's uniq; else it is looked for.
func (a *Account) patch(ctx context.Context, op operation) (Reply, result) {
	p := op.path
	collection := collections[p.EntityType]
	if p.Uniq != "" && (p.NoteID == 0 || !a.client.options.Unconfirmed.CallIDIsNoteID) {
		note, r := a.note(ctx, collection, p.NoteID)
		if r.kind != done && r.kind != notFound {
			return Reply{}, r
		}
		if r.kind == notFound || note.Params.Uniq != p.Uniq {
			found, r := a.noteOf(ctx, entity{p.EntityType, p.EntityID}, p.Uniq)
			if r.kind != done || found == 0 {
				return Reply{Outcome: NotFound}, r
			}
			p.NoteID = found
		}
	}
	r := a.request(ctx, call{endpoint: NotesPatch, method: http.MethodPatch, path: fmt.Sprintf(paths[NotesPatch], collection, p.NoteID), body: op.body})
	return Reply{Outcome: OK, NoteID: p.NoteID, EntityType: p.EntityType, EntityID: p.EntityID}, r
}
