package kommo

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// serve answers a request that was let in. Called with the lock held.
func (a *Account) serve(r request) *reply {
	switch r.op {
	case "calls":
		return a.postCalls(r)
	case "unsorted.sip":
		return a.postUnsorted(r)
	case "unsorted.list":
		return a.listUnsorted(r)
	case "unsorted.get", "unsorted.accept", "unsorted.decline":
		return a.oneUnsorted(r)
	case "notes.create":
		return a.postNotes(r)
	case "notes.patch", "notes.get":
		return a.oneNote(r)
	case "notes.list":
		return a.listNotes(r)
	case "events.popup":
		return a.postEvents(r)
	case "account":
		return a.getAccount(r)
	case "webhooks.create":
		return a.postWebhook(r)
	}
	if kind, verb, _ := strings.Cut(r.op, "."); singular[kind] != "" {
		switch verb {
		case "list":
			return a.listEntities(r, singular[kind])
		case "create":
			return a.postEntities(r, singular[kind])
		case "get":
			if e := a.entity(number(r.parts[3])); e != nil && e.Type == singular[kind] {
				return ok(a.entityAnswer(e, true))
			}
		}
	}
	return problem(http.StatusNotFound, "Not Found")
}

// items reads an array of objects; each keeps its request_id, by default its index.
func items(r request) ([]object, *reply) {
	var all []object
	if err := json.Unmarshal(r.body, &all); err != nil || len(all) == 0 {
		return nil, problem(http.StatusBadRequest, "Request validation failed: expected a JSON array with at least one item.")
	}
	if len(all) > maxPage {
		return nil, problem(http.StatusUnprocessableEntity, "limit 250 per page")
	}
	for i, item := range all {
		if text(item["request_id"]) == "" {
			item["request_id"] = strconv.Itoa(i)
		}
	}
	return all, nil
}

func (a *Account) self(path string, args ...any) object {
	return object{"self": object{"href": "https://" + a.host + fmt.Sprintf(path, args...)}}
}

// postCalls: Kommo finds the entity by the phone. What finds none is not added, and nothing is queued.
func (a *Account) postCalls(r request) *reply {
	all, refused := items(r)
	if refused != nil {
		return refused
	}
	for _, c := range all {
		id := text(c["request_id"])
		for _, field := range []string{"direction", "source", "phone"} {
			if s, is := c[field].(string); !is || s == "" {
				return invalid(id, "NotBlank", field, "This value should not be blank.")
			}
		}
		if c["direction"] != "inbound" && c["direction"] != "outbound" {
			return invalid(id, "NotSupportedChoice", "direction", "The value you selected is not a valid choice.")
		}
		if d, is := c["duration"].(float64); !is || d < 0 {
			return invalid(id, "InvalidType", "duration", "This value should be of type int.")
		}
		for _, field := range []string{"call_result", "call_status"} {
			if v, there := c[field]; there && v == nil {
				return invalid(id, "InvalidType", field, "This value should not be null.")
			}
		}
		if s, there := c["call_status"].(float64); there && (s < 1 || s > 8) {
			return invalid(id, "NotSupportedChoice", "call_status", "The value you selected is not a valid choice.")
		}
	}
	calls, errs := []object{}, []object{}
	for _, c := range all {
		e := a.match(text(c["phone"]), 10, a.server.cfg.CompanyFirst)
		if e == nil {
			errs = append(errs, object{"title": "Entity not found", "detail": "Entity not found", "status": 263, "request_id": text(c["request_id"])})
			continue
		}
		params := object{}
		for _, key := range []string{"uniq", "duration", "source", "link", "phone", "call_result", "call_status", "call_responsible"} {
			if v, there := c[key]; there {
				params[key] = v
			}
		}
		n := a.note(e, map[any]string{"inbound": "call_in", "outbound": "call_out"}[c["direction"]], params, c, r.op)
		id := n.ID
		if a.server.cfg.CallIDsAreNotNotes {
			id = a.server.id()
		}
		collection := plural(e.Type)
		calls = append(calls, object{"id": id, "entity_id": e.ID, "entity_type": e.Type, "account_id": a.id, "request_id": text(c["request_id"]),
			"_embedded": object{"entity": object{"id": e.ID, "_links": a.self("/api/v4/%s/%d", collection, e.ID)}}})
	}
	answer := ok(object{"_total_items": len(calls), "errors": errs, "_embedded": object{"calls": calls}})
	if len(calls) == 0 {
		answer.status, answer.contentType = http.StatusBadRequest, "application/problem+json"
	}
	return answer
}

func plural(kind string) string {
	for many, one := range singular {
		if one == kind {
			return many
		}
	}
	return ""
}

func (a *Account) note(e *Entity, kind string, params, from object, op string) *Note {
	now := a.server.cfg.Now().Unix()
	n := &Note{ID: a.server.id(), EntityType: e.Type, EntityID: e.ID, NoteType: kind, Params: params,
		CreatedAt: now, UpdatedAt: now, CreatedBy: integer(from["created_by"]), From: op}
	if at := integer(from["created_at"]); at != 0 {
		n.CreatedAt = at
	}
	a.notes = append(a.notes, n)
	return n
}

func (a *Account) noteAnswer(n *Note) object {
	return object{"id": n.ID, "entity_id": n.EntityID, "note_type": n.NoteType, "params": n.Params, "created_at": n.CreatedAt,
		"updated_at": n.UpdatedAt, "created_by": n.CreatedBy, "account_id": a.id,
		"_links": a.self("/api/v4/%s/notes/%d", plural(n.EntityType), n.ID)}
}

// postNotes adds call notes to entities of one kind.
func (a *Account) postNotes(r request) *reply {
	all, refused := items(r)
	if refused != nil {
		return refused
	}
	kind := singular[r.parts[2]]
	entities := make([]*Entity, len(all))
	for i, n := range all {
		id := text(n["request_id"])
		entity := integer(n["entity_id"])
		if r.parts[3] != "notes" {
			entity = number(r.parts[3])
		}
		if n["note_type"] != "call_in" && n["note_type"] != "call_out" {
			return invalid(id, "NotSupportedChoice", "note_type", "The value you selected is not a valid choice.")
		}
		if _, is := n["params"].(object); !is {
			return invalid(id, "NotBlank", "params", "This value should not be blank.")
		}
		if entities[i] = a.entity(entity); entities[i] == nil || entities[i].Type != kind || entities[i].Deleted {
			return problem(http.StatusNotFound, "Entity not found")
		}
	}
	made := []object{}
	for i, n := range all {
		note := a.note(entities[i], text(n["note_type"]), n["params"].(object), n, r.op)
		made = append(made, object{"id": note.ID, "entity_id": note.EntityID, "request_id": text(n["request_id"]),
			"_links": a.self("/api/v4/%s/notes/%d", r.parts[2], note.ID)})
	}
	return ok(object{"_links": a.self("%s", r.URL.Path), "_embedded": object{"notes": made}})
}

// oneNote reads or changes a note. A PATCH replaces the params.
func (a *Account) oneNote(r request) *reply {
	i := slices.IndexFunc(a.notes, func(n *Note) bool { return n.ID == number(r.parts[4]) && n.EntityType == singular[r.parts[2]] })
	if i < 0 {
		return problem(http.StatusNotFound, "Note not found")
	}
	n := a.notes[i]
	if r.op == "notes.get" {
		return ok(a.noteAnswer(n))
	}
	var change struct {
		NoteType string `json:"note_type"`
		Params   object `json:"params"`
	}
	if err := json.Unmarshal(r.body, &change); err != nil {
		return problem(http.StatusBadRequest, "The body is not a JSON object.")
	}
	if change.NoteType != n.NoteType || change.Params == nil {
		return invalid("0", "NotBlank", "params", "note_type and params are required.")
	}
	if a.server.cfg.MergeParams {
		for key, v := range n.Params {
			if _, there := change.Params[key]; !there {
				change.Params[key] = v
			}
		}
	}
	n.Params, n.UpdatedAt = change.Params, a.server.cfg.Now().Unix()
	n.Patches++
	return ok(object{"id": n.ID, "entity_id": n.EntityID, "updated_at": n.UpdatedAt, "_links": a.self("%s", r.URL.Path)})
}

func (a *Account) listNotes(r request) *reply {
	q := r.URL.Query()
	kind, types := singular[r.parts[2]], q["filter[note_type][]"]
	found := []object{}
	for _, n := range slices.Backward(a.notes) {
		if n.EntityType == kind && (r.parts[3] == "notes" || number(r.parts[3]) == n.EntityID) && (len(types) == 0 || slices.Contains(types, n.NoteType)) &&
			n.UpdatedAt >= number(q.Get("filter[updated_at][from]")) {
			found = append(found, a.noteAnswer(n))
		}
	}
	return a.page("notes", found, r)
}

func (a *Account) page(name string, found []object, r request) *reply {
	q := r.URL.Query()
	at, limit := max(1, number(q.Get("page"))), number(q.Get("limit"))
	if limit < 1 {
		limit = 50
	}
	return list(name, found, int(min(at, 1<<20)), int(min(limit, maxPage)), "https://"+a.host+r.URL.Path)
}

// postUnsorted adds incoming leads of calls. They are invisible to searches until somebody accepts them.
func (a *Account) postUnsorted(r request) *reply {
	all, refused := items(r)
	if refused != nil {
		return refused
	}
	if a.unsortedOff {
		return problem(http.StatusBadRequest, "Incoming leads are disabled.")
	}
	for _, item := range all {
		for _, field := range []string{"source_uid", "source_name"} {
			if text(item[field]) == "" {
				return invalid(text(item["request_id"]), "NotBlank", field, "This value should not be blank.")
			}
		}
		metadata, _ := item["metadata"].(object)
		for _, field := range []string{"uniq", "phone", "from", "service_code"} {
			if text(metadata[field]) == "" {
				return invalid(text(item["request_id"]), "NotBlank", "metadata."+field, "This value should not be blank.")
			}
		}
		if link, there := metadata["link"]; there && text(link) == "" {
			return invalid(text(item["request_id"]), "NotBlank", "metadata.link", "This value should not be blank.")
		}
	}
	made := []object{}
	for _, item := range all {
		metadata := item["metadata"].(object)
		embedded, _ := item["_embedded"].(object)
		u := &Unsorted{UID: fmt.Sprintf("%032x", a.server.id()), State: "open", CreatedAt: a.server.cfg.Now().Unix(), Pipeline: integer(item["pipeline_id"]), Metadata: metadata}
		a.unsorted = append(a.unsorted, u)
		lead := a.addUnsorted("lead", first(embedded["leads"]))
		u.LeadID = lead.ID
		entities := object{"leads": []object{{"id": lead.ID, "_links": a.self("/api/v4/leads/%d", lead.ID)}}, "contacts": []object{}, "companies": []object{}}
		for kind, to := range map[string]*int64{"contacts": &u.ContactID, "companies": &u.CompanyID} {
			if given := first(embedded[kind]); given != nil {
				e := a.addUnsorted(singular[kind], given)
				*to = e.ID
				lead.Links = append(lead.Links, e.ID)
				entities[kind] = []object{{"id": e.ID, "_links": a.self("/api/v4/%s/%d", kind, e.ID)}}
			}
		}
		if metadata["is_call_event_needed"] != false {
			a.note(lead, "call_in", object{"uniq": metadata["uniq"], "phone": metadata["phone"], "duration": metadata["duration"],
				"link": metadata["link"], "source": item["source_name"]}, item, r.op)
		}
		made = append(made, object{"uid": u.UID, "account_id": a.id, "request_id": text(item["request_id"]),
			"_links": a.self("/api/v4/leads/unsorted/%s", u.UID), "_embedded": entities})
	}
	return ok(object{"_total_items": len(made), "_links": a.self("%s", r.URL.Path), "_embedded": object{"unsorted": made}})
}

func (a *Account) addUnsorted(kind string, given object) *Entity {
	e := &Entity{ID: a.server.id(), Type: kind, Name: text(given["name"]), Phones: phones(given), Unsorted: true, StatusID: map[string]int64{"lead": 1}[kind]}
	a.entities = append(a.entities, e)
	return e
}

func (a *Account) unsortedAnswer(u *Unsorted) object {
	embedded := object{"leads": []object{{"id": u.LeadID}}, "contacts": []object{}, "companies": []object{}}
	if u.ContactID != 0 {
		embedded["contacts"] = []object{{"id": u.ContactID}}
	}
	return object{"uid": u.UID, "category": "sip", "created_at": u.CreatedAt, "pipeline_id": u.Pipeline, "metadata": u.Metadata,
		"account_id": a.id, "_links": a.self("/api/v4/leads/unsorted/%s", u.UID), "_embedded": embedded}
}

func (a *Account) listUnsorted(r request) *reply {
	found := []object{}
	for _, u := range slices.Backward(a.unsorted) {
		if u.State == "open" {
			found = append(found, a.unsortedAnswer(u))
		}
	}
	if r.URL.Query().Get("order[created_at]") != "desc" {
		slices.Reverse(found)
	}
	return a.page("unsorted", found, r)
}

func (a *Account) oneUnsorted(r request) *reply {
	if r.op != "unsorted.get" {
		if u := a.decide(r.parts[4], r.op == "unsorted.accept"); u != nil {
			return ok(a.unsortedAnswer(u))
		}
		return problem(http.StatusNotFound, "Not Found")
	}
	for _, u := range a.unsorted {
		if u.UID == r.parts[4] && u.State == "open" {
			return ok(a.unsortedAnswer(u))
		}
	}
	return problem(http.StatusNotFound, "Not Found")
}

// postEvents shows a card: contact first, then company, by the last eight digits.
func (a *Account) postEvents(r request) *reply {
	var said struct {
		Add []struct {
			Type  string `json:"type"`
			Phone any    `json:"phone_number"`
			Users []any  `json:"users"`
		} `json:"add"`
	}
	if err := json.Unmarshal(r.body, &said); err != nil || len(said.Add) == 0 {
		return problem(http.StatusBadRequest, "Expected an object with add.")
	}
	shown := []object{}
	for _, e := range said.Add {
		if e.Type != "phone_call" || text(e.Phone) == "" {
			return problem(http.StatusBadRequest, "type must be phone_call and phone_number is required.")
		}
		p := Popup{Phone: text(e.Phone), Users: e.Users}
		item := object{"element_id": nil, "element_type": nil, "uid": fmt.Sprintf("%032x", a.server.id()), "phone_number": p.Phone}
		if found := a.match(p.Phone, 8, false); found != nil {
			p.ElementID = found.ID
			item["element_id"], item["element_type"] = found.ID, map[string]int{"contact": 1, "lead": 2, "company": 3}[found.Type]
		}
		a.popups = append(a.popups, p)
		shown = append(shown, item)
	}
	answer := ok(object{"_links": a.self("%s", r.URL.Path), "_embedded": object{"items": shown}})
	answer.status = http.StatusAccepted
	return answer
}

func (a *Account) getAccount(r request) *reply {
	sub, _, _ := strings.Cut(a.host, ".")
	answer := object{"id": a.id, "name": sub, "subdomain": sub, "current_user_id": 8800123, "country": "US", "currency": "USD", "_links": a.self("%s", r.URL.RequestURI())}
	answer["is_unsorted_on"] = !a.unsortedOff
	return ok(answer)
}

// listEntities: query is a search over the filled fields; of numbers it compares the last seven digits.
func (a *Account) listEntities(r request, kind string) *reply {
	q := r.URL.Query()
	query, ids := q.Get("query"), q["filter[id][]"]
	found := []object{}
	for _, e := range a.entities {
		hit := query == "" || strings.Contains(e.Name, query) || last(query, 7) != "" &&
			slices.ContainsFunc(e.Phones, func(p string) bool { return last(p, 7) == last(query, 7) })
		if e.Type == kind && !e.Deleted && !e.Unsorted && hit && (len(ids) == 0 || slices.Contains(ids, text(e.ID))) {
			found = append(found, a.entityAnswer(e, strings.Contains(q.Get("with"), "leads")))
		}
	}
	return a.page(plural(kind), found, r)
}

func (a *Account) entityAnswer(e *Entity, withLeads bool) object {
	answer := object{"id": e.ID, "name": e.Name, "account_id": a.id, "_links": a.self("/api/v4/%s/%d", plural(e.Type), e.ID)}
	if e.Type == "lead" {
		answer["status_id"], answer["is_deleted"] = e.StatusID, e.Deleted
		return answer
	}
	answer["custom_fields_values"] = nil
	if len(e.Phones) > 0 {
		values := []object{}
		for _, p := range e.Phones {
			values = append(values, object{"value": p, "enum_id": 1, "enum_code": "WORK"})
		}
		answer["custom_fields_values"] = []object{{"field_id": 2, "field_name": "Phone", "field_code": "PHONE", "field_type": "multitext", "values": values}}
	}
	embedded := object{"tags": []object{}}
	if withLeads {
		leads := []object{}
		for _, lead := range a.entities {
			if lead.Type == "lead" && !lead.Deleted && slices.Contains(lead.Links, e.ID) {
				leads = append(leads, object{"id": lead.ID, "_links": a.self("/api/v4/leads/%d", lead.ID)})
			}
		}
		embedded["leads"] = leads
	}
	answer["_embedded"] = embedded
	return answer
}

func (a *Account) postEntities(r request, kind string) *reply {
	all, refused := items(r)
	if refused != nil {
		return refused
	}
	made := []object{}
	for _, item := range all {
		e := a.add(kind, text(item["name"]), phones(item))
		embedded, _ := item["_embedded"].(object)
		for _, linked := range []string{"contacts", "companies"} {
			if one := first(embedded[linked]); one != nil {
				e.Links = append(e.Links, integer(one["id"]))
			}
		}
		made = append(made, object{"id": e.ID, "request_id": text(item["request_id"]), "_links": a.self("/api/v4/%s/%d", plural(kind), e.ID)})
	}
	return ok(object{"_links": a.self("%s", r.URL.Path), "_embedded": object{plural(kind): made}})
}

// phones are the values of the custom field PHONE.
func phones(given object) (found []string) {
	fields, _ := given["custom_fields_values"].([]any)
	for _, f := range fields {
		field, _ := f.(object)
		if field["field_code"] != "PHONE" {
			continue
		}
		values, _ := field["values"].([]any)
		for _, v := range values {
			value, _ := v.(object)
			found = append(found, text(value["value"]))
		}
	}
	return found
}

func first(v any) object {
	all, _ := v.([]any)
	if len(all) == 0 {
		return nil
	}
	one, _ := all[0].(object)
	return one
}

func text(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return fmt.Sprint(v)
}

func integer(v any) int64 {
	f, _ := v.(float64)
	return int64(f)
}

func number(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}
