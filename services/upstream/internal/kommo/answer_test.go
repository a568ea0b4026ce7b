package kommo

import (
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// TestClassify has every row of what an answer means (facts/kommo.md, 1.6 and 7).
func TestClassify(t *testing.T) {
	now := time.Date(2026, 3, 6, 13, 20, 5, 0, time.UTC)
	const (
		unknown    = `{"_total_items":0,"errors":[{"title":"Entity not found","status":263,"detail":"x"}],"_embedded":{"calls":[]}}`
		validation = `{"validation-errors":[{"request_id":"0","errors":[{"code":"NotBlank","path":"phone","detail":"This value should not be blank."}]}],"title":"Bad Request","status":400,"detail":"Request validation failed"}`
	)
	header := func(v string) http.Header { return http.Header{"Retry-After": {v}} }
	for name, c := range map[string]struct {
		endpoint string
		reads    bool
		response
		want   kind
		reason string // part of it
		after  time.Duration
	}{
		"a call":                      {endpoint: Calls, response: response{status: 200, body: []byte(`{"_total_items":1,"errors":[]}`)}, want: done},
		"a popup":                     {endpoint: EventsPopup, response: response{status: 202, body: []byte(`{}`)}, want: done},
		"a popup, no body":            {endpoint: EventsPopup, response: response{status: 202}, want: done},
		"an empty list":               {endpoint: lookup, reads: true, response: response{status: 204}, want: done},
		"a success, cut off":          {endpoint: Calls, response: response{status: 200, body: []byte(`{"_emb`), readErr: "cut"}, want: uncertain, reason: "cut off"},
		"a list, cut off":             {endpoint: lookup, reads: true, response: response{status: 200, readErr: "cut"}, want: unavailable},
		"200 of somebody else":        {endpoint: Calls, response: response{status: 200, body: []byte(`<html>`)}, want: uncertain, reason: "not one of Kommo"},
		"200, nobody has the number":  {endpoint: Calls, response: response{status: 200, body: []byte(unknown)}, want: notFound},
		"nobody has the number":       {endpoint: Calls, response: response{status: 400, body: []byte(unknown)}, want: notFound, reason: "no entity"},
		"the same, without status":    {endpoint: Calls, response: response{status: 400, body: []byte(`{"errors":[{"title":"Entity not found"}]}`)}, want: notFound},
		"the same, only status":       {endpoint: Calls, response: response{status: 400, body: []byte(`{"errors":[{"title":"?","status":263}]}`)}, want: notFound},
		"the same, no list of errors": {endpoint: Calls, response: response{status: 400, body: []byte(`{"title":"Entity not found","errors":{}}`)}, want: notFound},
		"malformed":                   {endpoint: Calls, response: response{status: 400, body: []byte(validation)}, want: invalid, reason: "phone: This value should not be blank. (NotBlank)"},
		"malformed, and not found":    {endpoint: Calls, response: response{status: 400, body: []byte(strings.Replace(validation, `"title":`, `"errors":[{"title":"Entity not found"}],"title":`, 1))}, want: invalid},
		"an empty body":               {endpoint: Calls, response: response{status: 400, body: []byte(`{"title":"Bad Request","detail":"empty body"}`)}, want: invalid, reason: "empty body"},
		"400 of somebody else":        {endpoint: Calls, response: response{status: 400, body: []byte(`<html>`)}, want: invalid, reason: "HTTP 400"},
		"missing rights":              {endpoint: Calls, response: response{status: 400, body: []byte(`{"title":"Bad Request","code":244}`)}, want: held, reason: "rights"},
		"missing rights, in words":    {endpoint: Calls, response: response{status: 400, body: []byte(`{"detail":"Forbidden (code 244)"}`)}, want: held},
		"not found, in a search":      {endpoint: lookup, reads: true, response: response{status: 400, body: []byte(unknown)}, want: invalid},
		"401":                         {endpoint: Calls, response: response{status: 401, body: []byte(`{"hint":"Token has been revoked"}`)}, want: unauthorized, reason: "Token has been revoked"},
		"402":                         {endpoint: Calls, response: response{status: 402}, want: held, reason: "not paid"},
		"403 in plain text":           {endpoint: Calls, response: response{status: 403, body: []byte("Forbidden")}, want: held, reason: "blocked"},
		"301":                         {endpoint: Calls, response: response{status: 301}, want: held, reason: "redirect"},
		"404, a page":                 {endpoint: Calls, response: response{status: 404, body: []byte("<html>")}, want: held, reason: "renamed"},
		"404 of calls":                {endpoint: Calls, response: response{status: 404, body: []byte(`{"title":"Not Found"}`)}, want: held},
		"404 of a note":               {endpoint: NotesPatch, response: response{status: 404, body: []byte(`{"title":"Not Found"}`)}, want: notFound},
		"404 of an entity":            {endpoint: NotesCreate, response: response{status: 404, body: []byte(`{"title":"Not Found"}`)}, want: notFound},
		"404 of a note, a page":       {endpoint: NotesPatch, response: response{status: 404, body: []byte(`<html>`)}, want: held},
		"405":                         {endpoint: Calls, response: response{status: 405}, want: invalid},
		"408":                         {endpoint: Calls, response: response{status: 408}, want: uncertain},
		"422":                         {endpoint: Calls, response: response{status: 422, body: []byte(`{"detail":"limit 250 per page"}`)}, want: invalid, reason: "limit 250"},
		"429":                         {endpoint: Calls, response: response{status: 429, body: []byte(`{"retry_after":300}`)}, want: limited, after: 5 * time.Minute, reason: "5m0s"},
		"429 in plain text":           {endpoint: Calls, response: response{status: 429, body: []byte(`Too many`)}, want: limited, after: 5 * time.Minute},
		"429, a header":               {endpoint: Calls, response: response{status: 429, header: header("120"), body: []byte(`{"retry_after":300}`)}, want: limited, after: 2 * time.Minute},
		"429 until 13:25":             {endpoint: Calls, response: response{status: 429, header: header("Fri, 06 Mar 2026 13:25:05 GMT")}, want: limited, after: 5 * time.Minute},
		"429 for ages":                {endpoint: Calls, response: response{status: 429, body: []byte(`{"retry_after":1e18}`)}, want: limited, after: 24 * time.Hour},
		"429 for less than nothing":   {endpoint: Calls, response: response{status: 429, header: header("-5")}, want: limited, after: 5 * time.Minute},
		"500":                         {endpoint: Calls, response: response{status: 500}, want: uncertain, reason: "HTTP 500"},
		"503, come back":              {endpoint: Calls, response: response{status: 503, header: header("9")}, want: uncertain, after: 9 * time.Second},
		"504":                         {endpoint: NotesCreate, response: response{status: 504}, want: uncertain},
		"a read, 502":                 {endpoint: lookup, reads: true, response: response{status: 502}, want: unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			got := classify(c.endpoint, c.reads, c.response, now)
			if got.kind != c.want || !strings.Contains(got.reason, c.reason) || got.after != c.after {
				t.Errorf("kind %d (%s) after %v; want %d (%s) after %v", got.kind, got.reason, got.after, c.want, c.reason, c.after)
			}
			if (got.reason == "") != (c.want == done) {
				t.Errorf("reason %q", got.reason)
			}
		})
	}
}

// What comes from outside must not break a protobuf string, fill the journal or show a number.
func TestClassifyBoundsWhatComesFromOutside(t *testing.T) {
	body := `{"detail":"number +13055550142 ` + strings.Repeat("\u96fb", 40<<10) + "\xff" + `"}`
	got := classify(Calls, false, response{status: 422, body: []byte(body)}, time.Now())
	if len(got.reason) > 700 || !utf8.ValidString(got.reason) || strings.Contains(got.reason, "3055550142") {
		t.Errorf("%d bytes: %.200q", len(got.reason), got.reason)
	}
}

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		endpoint, payload string
		body              string // sent
		path              Path
		reason            string // of the error; empty: none
	}{
		"a call":        {Calls, `[{"uniq":"u","phone":"1"}]`, `[{"uniq":"u","phone":"1"}]`, Path{Uniq: "u", Phone: "1"}, ""},
		"one object":    {Calls, ` {"uniq":"u","phone":"1"}`, `[{"uniq":"u","phone":"1"}]`, Path{Uniq: "u", Phone: "1"}, ""},
		"wrapped":       {Calls, `{"path":{"phone":"2"},"body":{"uniq":"u","phone":"1"}}`, `[{"uniq":"u","phone":"1"}]`, Path{Uniq: "u", Phone: "2"}, ""},
		"a note":        {NotesCreate, `{"path":{"entity_type":"lead","entity_id":7},"body":{"params":{"uniq":"u","phone":"1"}}}`, `[{"params":{"uniq":"u","phone":"1"}}]`, Path{EntityType: "lead", EntityID: 7, Uniq: "u", Phone: "1"}, ""},
		"a lead":        {UnsortedSIP, `[{"metadata":{"uniq":"u","phone":"1"}}]`, `[{"metadata":{"uniq":"u","phone":"1"}}]`, Path{Uniq: "u", Phone: "1"}, ""},
		"a patch":       {NotesPatch, `{"path":{"entity_type":"company","entity_id":7,"note_id":9},"body":{"params":{}}}`, `{"params":{}}`, Path{EntityType: "company", EntityID: 7, NoteID: 9}, ""},
		"a popup":       {EventsPopup, `{"add":[]}`, `{"add":[]}`, Path{}, ""},
		"a look-up":     {LookupUniq, `{"path":{"uniq":"u","phone":"1"}}`, "", Path{Uniq: "u", Phone: "1"}, ""},
		"odd types":     {Calls, `[{"uniq":5}]`, `[{"uniq":5}]`, Path{}, ""},
		"two":           {Calls, `[{},{}]`, "", Path{}, "expected one item, not 2"},
		"none":          {Calls, `[]`, "", Path{}, "expected one item, not 0"},
		"no JSON":       {Calls, `{"a`, "", Path{}, "payload"},
		"nothing":       {Calls, ``, "", Path{}, "body"},
		"text":          {Calls, `"x"`, "", Path{}, "expected a JSON object"},
		"no entity":     {NotesCreate, `{"path":{"entity_type":"lead"},"body":{}}`, "", Path{}, "path.entity_id"},
		"no such type":  {NotesPatch, `{"path":{"entity_type":"task","entity_id":1,"note_id":1},"body":{}}`, "", Path{}, "path.entity_type"},
		"no note":       {NotesPatch, `{"path":{"entity_type":"lead","entity_id":1},"body":{}}`, "", Path{}, "path.note_id"},
		"no uniq":       {LookupUniq, `{"path":{"phone":"1"}}`, "", Path{}, "path.uniq"},
		"no phone":      {LookupUniq, `{"path":{"uniq":"u"}}`, "", Path{}, "path.phone"},
		"no endpoint":   {"other", `{}`, "", Path{}, "no endpoint"},
		"much too long": {Calls, strings.Repeat(" ", maxPayload+1), "", Path{}, "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			op, err := parse(c.endpoint, []byte(c.payload))
			if c.reason != "" {
				if err == nil || !strings.Contains(err.Error(), c.reason) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil || string(op.body) != c.body || op.path != c.path {
				t.Errorf("%s %+v %v", op.body, op.path, err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{`[{"uniq":"u","phone":"1"}]`, `{"path":{"entity_type":"lead","entity_id":7},"body":{}}`, `{"add":[]}`, `[null]`, `{"body":[1]}`} {
		for _, e := range endpoints {
			f.Add(e, []byte(seed))
		}
	}
	f.Fuzz(func(t *testing.T, endpoint string, payload []byte) {
		op, err := parse(endpoint, payload)
		if err == nil && op.endpoint != LookupUniq && len(op.body) < 2 {
			t.Errorf("%q of %q", op.body, payload)
		}
	})
}

func TestHosts(t *testing.T) {
	c := New(Options{Domains: []string{"kommo.com"}})
	for host, want := range map[string]bool{
		"acme.kommo.com": true, "api-g.kommo.com": true, "a1.kommo.com": true,
		"kommo.com": false, "www.kommo.com": false, ".kommo.com": false, "evil.com": false, "kommo.com.evil.com": false, "evilkommo.com": false,
		"a.b.kommo.com": false, "acme.kommo.com:8080": false, "acme.kommo.com/x": false, "evil.com#.kommo.com": false, "evil.com/.kommo.com": false,
		"user@acme.kommo.com": false, "ACME.kommo.com": false, "-a.kommo.com": false, "": false, strings.Repeat("a", 64) + ".kommo.com": false,
	} {
		if c.kommos(host) != want {
			t.Errorf("%q: %v", host, !want)
		}
	}
}
