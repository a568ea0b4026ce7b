package kommo

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"callrelay/services/upstream/internal/roundtrip"
)

// Bounds of a look-up. What does not fit is tooMany: nothing is sent again before a person has looked. Each entity is a request,
// and all of them have KOMMO_TIMEOUT.
const (
	pageSize    = 250
	maxPages    = 4  // of notes of one entity, or of incoming leads
	maxEntities = 30 // that share the number, their leads included
)

// lookup is the endpoint name of reads, for classify.
const lookup = "lookup"

type entity struct {
	kind string
	id   int64
}

// note is a call note as far as it is looked at.
type note struct {
	ID     int64 `json:"id"`
	Params struct {
		Uniq string `json:"uniq"`
	} `json:"params"`
}

// find looks for a call by its uniq: among the call notes of the entity in the path, of those that have the phone and of
// their leads, then among the incoming leads (spec/kommo.md, K10). Done with OK or NotFound; any other kind says why it
// could not be found out, tooMany that looking again is no use.
func (a *Account) find(ctx context.Context, p Path) (Reply, result) {
	if p.Uniq == "" {
		return Reply{}, result{kind: held, reason: "the call has no uniq by which it could be found"}
	}
	var entities []entity
	if p.EntityID > 0 && collections[p.EntityType] != "" {
		entities = append(entities, entity{p.EntityType, p.EntityID})
	}
	if lastDigits(p.Phone) != "" {
		owners, r := a.owners(ctx, p.Phone)
		if r.kind != done {
			return Reply{}, r
		}
		for _, o := range owners {
			if !slices.Contains(entities, o) {
				entities = append(entities, o)
			}
		}
	}
	for _, e := range entities {
		id, r := a.noteOf(ctx, e, p.Uniq)
		if r.kind != done {
			return Reply{}, r
		}
		if id != 0 {
			return Reply{Outcome: OK, NoteID: id, EntityType: e.kind, EntityID: e.id}, r
		}
	}
	return a.unsortedOf(ctx, p.Uniq)
}

// owners are the contacts and companies that have the number, by its last ten digits, and their leads. The search compares
// some other number of digits, so what it finds is checked.
func (a *Account) owners(ctx context.Context, phone string) ([]entity, result) {
	var owners []entity
	last := result{kind: done}
	for _, kind := range []string{"contact", "company"} { // that calls go to companies, too, is not confirmed
		found, r := a.search(ctx, kind, phone)
		if last = r; r.kind != done {
			return nil, r
		}
		owners = append(owners, found...)
	}
	if len(owners) > maxEntities {
		return nil, result{kind: tooMany, reason: fmt.Sprintf("%d entities share the number, more than can be looked through", len(owners))}
	}
	return owners, last
}

// search is owners of one kind.
func (a *Account) search(ctx context.Context, kind, phone string) ([]entity, result) {
	type owner struct {
		ID     int64 `json:"id"`
		Fields []struct {
			Code   string `json:"field_code"`
			Values []struct {
				Value json.RawMessage `json:"value"`
			} `json:"values"`
		} `json:"custom_fields_values"`
		Embedded struct {
			Leads []identified `json:"leads"`
		} `json:"_embedded"`
	}
	collection := collections[kind]
	r := a.get(ctx, "/api/v4/"+collection, url.Values{"query": {lastDigits(phone)}, "with": {"leads"}, "limit": {strconv.Itoa(pageSize)}})
	owners, r := list[owner](r, collection)
	if r.kind != done {
		return nil, r
	}
	if len(owners) >= pageSize {
		return nil, result{kind: tooMany, reason: "too many entities have a number like this one"}
	}
	var found []entity
	for _, e := range owners {
		has := false
		for _, f := range e.Fields {
			for _, v := range f.Values {
				has = has || f.Code == "PHONE" && lastDigits(string(v.Value)) == lastDigits(phone)
			}
		}
		if !has {
			continue
		}
		found = append(found, entity{kind, e.ID})
		for _, lead := range e.Embedded.Leads {
			found = append(found, entity{"lead", lead.ID})
		}
	}
	return found, r
}

// noteOf is the call note of an entity that carries the uniq; 0 = there is none.
func (a *Account) noteOf(ctx context.Context, e entity, uniq string) (int64, result) {
	for page := 1; page <= maxPages; page++ {
		notes, r := list[note](a.request(ctx, call{endpoint: noteGet, method: http.MethodGet, path: fmt.Sprintf("/api/v4/%s/%d/notes", collections[e.kind], e.id), query: url.Values{
			"filter[note_type][]": {"call_in", "call_out"}, "order[id]": {"desc"}, "limit": {strconv.Itoa(pageSize)}, "page": {strconv.Itoa(page)}}}), "notes")
		if r.kind == notFound {
			return 0, result{kind: done} // the entity is gone, and its notes
		}
		if r.kind != done {
			return 0, r
		}
		for _, n := range notes {
			if n.Params.Uniq == uniq {
				return n.ID, r
			}
		}
		if len(notes) < pageSize {
			return 0, r
		}
	}
	return 0, result{kind: tooMany, reason: fmt.Sprintf("a %s has more than %d call notes, too many to look through", e.kind, maxPages*pageSize)}
}

// note reads one note.
func (a *Account) note(ctx context.Context, collection string, id int64) (note, result) {
	var n note
	if id == 0 {
		return n, result{kind: notFound}
	}
	r := a.request(ctx, call{endpoint: noteGet, method: http.MethodGet, path: fmt.Sprintf(paths[NotesPatch], collection, id)})
	return n, decode(r, &n)
}

// incoming is an incoming lead.
type incoming struct {
	UID      string `json:"uid"`
	Metadata struct {
		Uniq string `json:"uniq"`
	} `json:"metadata"`
	Embedded struct {
		Leads    []identified `json:"leads"`
		Contacts []identified `json:"contacts"`
	} `json:"_embedded"`
}

type identified struct {
	ID int64 `json:"id"`
}

func (i incoming) reply() Reply {
	reply := Reply{Outcome: OK, UID: i.UID}
	if len(i.Embedded.Leads) > 0 {
		reply.LeadID = i.Embedded.Leads[0].ID
		reply.EntityType, reply.EntityID = "lead", reply.LeadID
	}
	if len(i.Embedded.Contacts) > 0 {
		reply.ContactID = i.Embedded.Contacts[0].ID
	}
	return reply
}

// unsortedOf is the incoming lead that carries the uniq.
func (a *Account) unsortedOf(ctx context.Context, uniq string) (Reply, result) {
	for page := 1; page <= maxPages; page++ {
		r := a.get(ctx, "/api/v4/leads/unsorted", url.Values{"filter[category][]": {"sip"}, "order[created_at]": {"desc"},
			"limit": {strconv.Itoa(pageSize)}, "page": {strconv.Itoa(page)}})
		leads, r := list[incoming](r, "unsorted")
		if r.kind != done {
			return Reply{}, r
		}
		for _, u := range leads {
			if u.Metadata.Uniq == uniq {
				return u.reply(), r
			}
		}
		if len(leads) < pageSize {
			return Reply{Outcome: NotFound}, r
		}
	}
	return Reply{}, result{kind: tooMany, reason: fmt.Sprintf("there are more than %d incoming leads, too many to look through", maxPages*pageSize)}
}

// About is what an account says about itself.
type About struct {
	ID         int64  `json:"id"`
	Name       string `json:"name"`
	Subdomain  string `json:"subdomain"`
	UnsortedOn *bool  `json:"is_unsorted_on"`
}

func (a *Account) about(ctx context.Context) (about About, r result) {
	r = a.get(ctx, "/api/v4/account", url.Values{"with": {"is_unsorted_on"}})
	return about, decode(r, &about)
}

// get reads something.
func (a *Account) get(ctx context.Context, path string, query url.Values) result {
	return a.request(ctx, call{endpoint: lookup, method: http.MethodGet, path: path, query: query})
}

// list is a page of a collection. Nothing is what 204 and an empty list say; an answer without its list says nothing.
func list[T any](r result, name string) ([]T, result) {
	var page struct {
		Embedded map[string]json.RawMessage `json:"_embedded"`
	}
	if r = decode(r, &page); r.kind != done || r.status == http.StatusNoContent {
		return nil, r
	}
	var items []T
	if err := json.Unmarshal(page.Embedded[name], &items); err != nil || items == nil {
		r.kind, r.reason = unavailable, "Kommo's answer is not what is documented: there is no list of "+name
	}
	return items, r
}

func decode(r result, into any) result {
	if r.kind == done && len(r.body) > 0 {
		if err := json.Unmarshal(r.body, into); err != nil {
			r.kind, r.reason = unavailable, "Kommo's answer is not what is documented: "+roundtrip.Bounded(err.Error(), 200)
		}
	}
	return r
}
