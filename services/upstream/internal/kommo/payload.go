package kommo

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// The endpoints of deliveries to the destination "kommo/<account id>". The name is agreed with the rules (services/router/kommo).
const (
	// Calls posts one call (POST /api/v4/calls); Kommo chooses the entity. Reply: Note, Entity; or NotFound.
	Calls = "calls"
	// NotesCreate adds a call note to the entity in the path. Reply: Note, Entity; or NotFound.
	NotesCreate = "notes.create"
	// NotesPatch changes the call note in the path; the body has the complete params. Reply: Note, Entity; or NotFound.
	NotesPatch = "notes.patch"
	// UnsortedSIP adds an incoming lead. Reply: UID, Lead, Contact; or UnsortedOff.
	UnsortedSIP = "unsorted.sip"
	// EventsPopup shows a card to users (POST /api/v2/events). It gets one attempt.
	EventsPopup = "events.popup"
	// LookupUniq finds a call note or incoming lead by its uniq and phone. Reply: Note and Entity, or UID, Lead and Contact; or NotFound or TooMany.
	LookupUniq = "lookup.uniq"
)

var endpoints = []string{Calls, NotesCreate, NotesPatch, UnsortedSIP, EventsPopup, LookupUniq}

// Payload of a delivery: either this wrapper (an object with "path" or "body"), or the body alone.
//
//	calls         [{"direction":"inbound","phone":"+1305...","uniq":"...",...}]                    the body alone
//	unsorted.sip  [{"source_uid":"...","metadata":{"uniq":"...","phone":"..."},"_embedded":{...}}]  the body alone
//	events.popup  {"add":[{"type":"phone_call","phone_number":"...","users":[8800123]}]}            the body alone
//	notes.create  {"path":{"entity_type":"lead","entity_id":410022},"body":{"note_type":"call_in","params":{...}}}
//	notes.patch   {"path":{"entity_type":"lead","entity_id":410022,"note_id":5550001,"uniq":"..."},"body":{"note_type":"call_in","params":{...}}}
//	lookup.uniq   {"path":{"uniq":"...","phone":"+1305..."}}
//
// Kommo's collections take arrays: where a body is one object it is sent as an array of one. One delivery is one item.
type Payload struct {
	Path *Path           `json:"path"`
	Body json.RawMessage `json:"body"`
}

// Path is what a request needs beside its body.
type Path struct {
	// EntityType is lead, contact, company or customer (the word of Kommo's answers).
	EntityType string `json:"entity_type"`
	EntityID   int64  `json:"entity_id"`
	// NoteID may be wrong or 0: a note is only changed when it carries Uniq, else it is looked for.
	NoteID int64 `json:"note_id"`
	// Uniq is the call's id in params.uniq and metadata.uniq.
	Uniq string `json:"uniq"`
	// Phone is the client's number.
	Phone string `json:"phone"`
}

// Outcome says what a finished delivery came to.
type Outcome string

const (
	// OK: it is in Kommo.
	OK Outcome = "ok"
	// NotFound: Kommo has no entity (calls, notes.create), no such note (notes.patch) or no such uniq (lookup.uniq).
	NotFound Outcome = "not_found"
	// UnsortedOff: incoming leads are switched off in the account.
	UnsortedOff Outcome = "unsorted_off"
	// TooMany: there is more than lookup.uniq looks through; a person has to.
	TooMany Outcome = "too_many"
)

// Reply is what the rules learn of a delivered delivery; the JSON of delivery.Answer.Reply. Ids that are not known are left out.
type Reply struct {
	Outcome    Outcome `json:"outcome"`
	NoteID     int64   `json:"note_id,omitempty"`
	EntityType string  `json:"entity_type,omitempty"`
	EntityID   int64   `json:"entity_id,omitempty"`
	// UID, LeadID and ContactID belong to an incoming lead.
	UID       string `json:"uid,omitempty"`
	LeadID    int64  `json:"lead_id,omitempty"`
	ContactID int64  `json:"contact_id,omitempty"`
}

// collections are the words of Kommo's paths by those of its answers.
var collections = map[string]string{"lead": "leads", "contact": "contacts", "company": "companies", "customer": "customers"}

const maxPayload = 64 << 10

// operation is a payload that was read and checked.
type operation struct {
	endpoint string
	path     Path
	// body is what is sent: an array of one, or the object of notes.patch and events.popup.
	body []byte
}

// parse reads a payload. Its errors name the field and what was expected.
func parse(endpoint string, payload []byte) (operation, error) {
	op := operation{endpoint: endpoint}
	if !slices.Contains(endpoints, endpoint) {
		return op, fmt.Errorf("no endpoint %q; expected one of %v", clip(endpoint), endpoints)
	}
	if len(payload) > maxPayload {
		return op, fmt.Errorf("the payload has %d bytes; at most %d", len(payload), maxPayload)
	}
	body := bytes.TrimSpace(payload)
	var wrapped Payload
	if len(body) > 0 && body[0] == '{' {
		if err := json.Unmarshal(body, &wrapped); err != nil {
			return op, fmt.Errorf("the payload is not the JSON expected: %w", err)
		}
	}
	if wrapped.Path != nil || wrapped.Body != nil {
		body = bytes.TrimSpace(wrapped.Body)
		if wrapped.Path != nil {
			op.path = *wrapped.Path
		}
	}
	switch endpoint {
	case LookupUniq:
		return op, errors.Join(need(op.path.Uniq != "", "path.uniq: the call's uniq is required"),
			need(lastDigits(op.path.Phone) != "" || op.path.EntityID > 0, "path.phone: the client's number is required"))
	case EventsPopup, NotesPatch:
		op.body = body
		if len(body) == 0 || body[0] != '{' || !json.Valid(body) {
			return op, errors.New("body: expected a JSON object")
		}
	default:
		item, err := single(body)
		if err != nil {
			return op, err
		}
		op.body = append(append([]byte{'['}, item...), ']')
		op.path.fill(item)
	}
	if endpoint == NotesCreate || endpoint == NotesPatch {
		return op, errors.Join(
			need(collections[op.path.EntityType] != "", "path.entity_type: expected lead, contact, company or customer, not %q", clip(op.path.EntityType)),
			need(op.path.EntityID > 0, "path.entity_id: the entity's id is required"),
			need(endpoint == NotesCreate || op.path.NoteID > 0 || op.path.Uniq != "", "path.note_id: the note's id or path.uniq is required"))
	}
	return op, nil
}

// single is the one item of a body.
func single(body []byte) (json.RawMessage, error) {
	items := []json.RawMessage{body}
	if len(body) > 0 && body[0] == '[' {
		items = nil
		if err := json.Unmarshal(body, &items); err != nil {
			return nil, fmt.Errorf("body: %w", err)
		}
	}
	if len(items) != 1 {
		return nil, fmt.Errorf("body: expected one item, not %d", len(items))
	}
	if item := bytes.TrimSpace(items[0]); len(item) == 0 || item[0] != '{' || !json.Valid(item) {
		return nil, errors.New("body: expected a JSON object, or an array of one")
	}
	return items[0], nil
}

// fill takes uniq and phone out of a body where the path does not name them: what is looked for after an unknown outcome.
func (p *Path) fill(item []byte) {
	type named struct {
		Uniq  string `json:"uniq"`
		Phone string `json:"phone"`
	}
	var said struct {
		named
		Params   named `json:"params"`
		Metadata named `json:"metadata"`
	}
	_ = json.Unmarshal(item, &said) // a field of another type stays empty; Kommo says what it thinks of it
	for _, n := range []named{said.named, said.Params, said.Metadata} {
		if p.Uniq == "" {
			p.Uniq = n.Uniq
		}
		if p.Phone == "" {
			p.Phone = n.Phone
		}
	}
}

func need(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// lastDigits are the digits by which Kommo compares numbers: the last ten.
func lastDigits(phone string) string {
	digits := make([]byte, 0, len(phone))
	for i := range len(phone) {
		if phone[i] >= '0' && phone[i] <= '9' {
			digits = append(digits, phone[i])
		}
	}
	return string(digits[max(0, len(digits)-10):])
}

// clip bounds a word from outside.
func clip(word string) string { return word[:min(len(word), 64)] }
