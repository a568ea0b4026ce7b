package kommo

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"callrelay/services/upstream/internal/roundtrip"
)

// Finding is what a check found out about one thing.
type Finding struct {
	Fact, Found string
	// OK is false where something has to be done before calls can be delivered.
	OK bool
}

// nobody's number: no country code and no network begins so.
const nobody = "0000000000"

// Check makes harmless requests to the account and says what it found about each fact that is not confirmed
// (unconfirmed.go, facts/kommo.md 11). It reads, and sends two calls that Kommo must refuse.
func (a *Account) Check(ctx context.Context) []Finding {
	var all []Finding
	add := func(fact string, ok bool, format string, args ...any) {
		all = append(all, Finding{fact, fmt.Sprintf(format, args...), ok})
	}
	about, r := a.about(ctx)
	if r.kind != done {
		add("account", false, "%s", r.reason)
		return all
	}
	add("account", about.ID == a.id, "%s answers, account %d", about.Subdomain, about.ID)
	if s, failed := a.open(ctx); failed == nil {
		if s.ends.IsZero() {
			add("access token", true, "long-lived: when it ends shows only when it is refused")
		} else {
			add("access token", true, "ends in %v and is renewed before", time.Until(s.ends).Round(time.Minute))
		}
	}
	switch {
	case about.UnsortedOn == nil:
		add("incoming leads", true, "the account does not say whether they are switched on (is_unsorted_on)")
	case *about.UnsortedOn:
		add("incoming leads", true, "switched on")
	default:
		add("incoming leads", false, "switched off: calls from unknown numbers are parked; switch them on in Kommo")
	}
	a.checkSearch(ctx, add)
	a.checkNotes(ctx, add)
	a.checkRefusals(ctx, add)
	add("not asked", true, "scope of the limit, Retry-After, equal uniq, merged params of a PATCH, sides of an incoming lead: only writing or abuse would show")
	return all
}

type adder func(fact string, ok bool, format string, args ...any)

// checkSearch: how many digits does the search of contacts compare?
func (a *Account) checkSearch(ctx context.Context, add adder) {
	type contact struct {
		ID     int64 `json:"id"`
		Fields []struct {
			Code   string `json:"field_code"`
			Values []struct {
				Value string `json:"value"`
			} `json:"values"`
		} `json:"custom_fields_values"`
	}
	contacts, r := list[contact](a.get(ctx, "/api/v4/contacts", url.Values{"limit": {"50"}}), "contacts")
	if r.kind != done {
		add("search of contacts", false, "%s", r.reason)
		return
	}
	for _, c := range contacts {
		for _, f := range c.Fields {
			if f.Code != "PHONE" || len(f.Values) == 0 || len(lastDigits(f.Values[0].Value)) < 10 {
				continue
			}
			digits := lastDigits(f.Values[0].Value)
			var found []string
			for _, n := range []int{10, 8, 7} {
				hits, r := list[contact](a.get(ctx, "/api/v4/contacts", url.Values{"query": {digits[10-n:]}, "limit": {"250"}}), "contacts")
				if r.kind != done {
					add("search of contacts", false, "%s", r.reason)
					return
				}
				if slices.ContainsFunc(hits, func(hit contact) bool { return hit.ID == c.ID }) {
					found = append(found, fmt.Sprint(n))
				}
			}
			add("search of contacts", slices.Contains(found, "10"), "a contact is found by the last %s digits of its number", strings.Join(found, ", "))
			return
		}
	}
	add("search of contacts", true, "no contact with a number to try it on")
}

// checkNotes: what do call notes keep, and can one be read by its id (which is how a change makes sure of its note)?
func (a *Account) checkNotes(ctx context.Context, add adder) {
	type kept struct {
		ID     int64                      `json:"id"`
		Params map[string]json.RawMessage `json:"params"`
	}
	for _, collection := range []string{"leads", "contacts"} {
		notes, r := list[kept](a.get(ctx, "/api/v4/"+collection+"/notes", url.Values{"filter[note_type][]": {"call_in", "call_out"}, "limit": {"10"}, "order[id]": {"desc"}}), "notes")
		if r.kind != done {
			add("call notes", false, "%s", r.reason)
			return
		}
		if len(notes) == 0 {
			continue
		}
		n := notes[0]
		keys := make([]string, 0, len(n.Params))
		for key := range n.Params {
			keys = append(keys, key)
		}
		slices.Sort(keys)
		add("call notes", true, "a note keeps %s", strings.Join(keys, ", "))
		if _, r := a.note(ctx, collection, n.ID); r.kind != done {
			add("note by id", false, "%s", r.reason)
		} else {
			add("note by id", true, "can be read")
		}
		return
	}
	add("call notes", true, "there is none to look at")
}

// checkRefusals: are the two 400 told apart? One call is malformed, the other of a number that nobody has.
func (a *Account) checkRefusals(ctx context.Context, add adder) {
	post := func(body string) result {
		return a.request(ctx, call{endpoint: Calls, method: http.MethodPost, path: paths[Calls], body: []byte(body)})
	}
	r := post(`[{"direction":"none"}]`)
	add("malformed call", r.kind == invalid, "HTTP %d: %s", r.status, r.reason)
	owners, r := a.owners(ctx, nobody)
	if r.kind != done || len(owners) > 0 {
		add("unknown number", true, "not asked: somebody may have the number %s", nobody)
		return
	}
	r = post(`[{"direction":"outbound","duration":0,"source":"callrelay check","phone":"` + nobody + `","uniq":"callrelay-check"}]`)
	add("unknown number", r.kind == notFound, "HTTP %d: %s", r.status, strings.TrimSpace(r.reason+" "+roundtrip.Bounded(string(r.body), 200)))
}
