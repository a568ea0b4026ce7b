package kommo

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const host = "acme.kommo.com"

// world is a simulator with one account and a clock that stands still.
type world struct {
	*testing.T
	sim *Server
	acc *Account
	now time.Time
}

func start(t *testing.T, cfg Config) *world {
	w := &world{T: t, now: time.Date(2026, 3, 6, 12, 0, 0, 0, time.UTC)}
	cfg.Now = func() time.Time { return w.now }
	if cfg.Accounts == nil {
		cfg.Accounts = []AccountConfig{{ID: 9001, Host: host, Token: "long"}}
	}
	if cfg.PerSecond == 0 {
		cfg.PerSecond = -1
	}
	w.sim = New(cfg)
	w.acc = w.sim.Account(9001)
	return w
}

// call makes a request and returns its status and body.
func (w *world) call(method, path, token, body string) (int, object) {
	w.Helper()
	r := httptest.NewRequest(method, "http://"+w.acc.View().Host+path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	rec := httptest.NewRecorder()
	w.sim.ServeHTTP(rec, r)
	var v object
	if rec.Body.Len() > 0 && json.Unmarshal(rec.Body.Bytes(), &v) != nil {
		v = object{"text": rec.Body.String()}
	}
	return rec.Code, v
}

// at walks through objects and, by index, arrays.
func at(v any, path ...any) any {
	for _, step := range path {
		switch step := step.(type) {
		case string:
			o, _ := v.(object)
			v = o[step]
		case int:
			l, _ := v.([]any)
			if step >= len(l) {
				return nil
			}
			v = l[step]
		}
	}
	return v
}

const call = `[{"direction":"inbound","duration":73,"source":"relay","phone":"+1 305 555 0142","uniq":"u1","call_status":4,"request_id":"job-9912"}]`

// TestCallsFindTheirEntity has each row of the matching rules.
func TestCallsFindTheirEntity(t *testing.T) {
	for name, c := range map[string]struct {
		cfg    Config
		make   func(a *Account) (want int64)
		status int
	}{
		"a contact": {make: func(a *Account) int64 { return a.Add("contact", "Ann", []string{"13055550142"}) }, status: 200},
		"one active lead": {make: func(a *Account) int64 {
			ann := a.Add("contact", "Ann", []string{"3055550142"})
			lost := a.Add("lead", "old", nil, ann)
			a.Change(lost, func(e *Entity) { e.StatusID = 143 })
			return a.Add("lead", "new", nil, ann)
		}, status: 200},
		"two active leads": {make: func(a *Account) int64 {
			ann := a.Add("contact", "Ann", []string{"3055550142"})
			a.Add("lead", "one", nil, ann)
			a.Add("lead", "two", nil, ann)
			return ann
		}, status: 200},
		"only won leads": {make: func(a *Account) int64 {
			ann := a.Add("contact", "Ann", []string{"3055550142"})
			a.Change(a.Add("lead", "won", nil, ann), func(e *Entity) { e.StatusID = 142 })
			return ann
		}, status: 200},
		"the oldest contact": {make: func(a *Account) int64 {
			ann := a.Add("contact", "Ann", []string{"3055550142"})
			a.Add("contact", "Bob", []string{"3055550142"})
			return ann
		}, status: 200},
		"a company": {make: func(a *Account) int64 { return a.Add("company", "ACME", []string{"3055550142"}) }, status: 200},
		"contact before company": {make: func(a *Account) int64 {
			a.Add("company", "ACME", []string{"3055550142"})
			return a.Add("contact", "Ann", []string{"3055550142"})
		}, status: 200},
		"company before contact": {cfg: Config{CompanyFirst: true}, make: func(a *Account) int64 {
			a.Add("contact", "Ann", []string{"3055550142"})
			return a.Add("company", "ACME", []string{"3055550142"})
		}, status: 200},
		"only nine digits agree": {make: func(a *Account) int64 { a.Add("contact", "Ann", []string{"1055550142"}); return 0 }, status: 400},
		"a deleted contact": {make: func(a *Account) int64 {
			a.Change(a.Add("contact", "Ann", []string{"3055550142"}), func(e *Entity) { e.Deleted = true })
			return 0
		}, status: 400},
		"nobody": {make: func(*Account) int64 { return 0 }, status: 400},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, c.cfg)
			want := c.make(w.acc)
			status, got := w.call("POST", "/api/v4/calls", "long", call)
			if status != c.status {
				t.Fatalf("%d %v", status, got)
			}
			if want == 0 {
				if at(got, "errors", 0, "title") != "Entity not found" || len(w.acc.View().Notes) != 0 {
					t.Errorf("%v", got)
				}
				return
			}
			one := at(got, "_embedded", "calls", 0)
			if at(one, "entity_id") != float64(want) || at(one, "request_id") != "job-9912" || at(got, "_total_items") != 1.0 {
				t.Errorf("%v, want entity %d", got, want)
			}
			if v := w.acc.View(); v.Calls["u1"] != 1 || v.Notes[0].EntityID != want || float64(v.Notes[0].ID) != at(one, "id") {
				t.Errorf("holds %+v", v.Notes)
			}
		})
	}
}

// TestRefusals has the shapes of errors.
func TestRefusals(t *testing.T) {
	w := start(t, Config{})
	lead := w.acc.Add("lead", "L", nil)
	for name, c := range map[string]struct {
		method, path, token, body string
		status                    int
		field                     string // of the validation error, or else detail
	}{
		"no token":           {"GET", "/api/v4/account", "", "", 401, "Unauthorized"},
		"wrong token":        {"GET", "/api/v4/account", "other", "", 401, "Unauthorized"},
		"no phone":           {"POST", "/api/v4/calls", "long", `[{"direction":"inbound","duration":1,"source":"s"}]`, 400, "phone"},
		"null call_result":   {"POST", "/api/v4/calls", "long", `[{"direction":"inbound","duration":1,"source":"s","phone":"1","call_result":null}]`, 400, "call_result"},
		"a wrong direction":  {"POST", "/api/v4/calls", "long", `[{"direction":"in","duration":1,"source":"s","phone":"1"}]`, 400, "direction"},
		"no array":           {"POST", "/api/v4/calls", "long", `{}`, 400, "expected a JSON array"},
		"too many":           {"POST", "/api/v4/calls", "long", "[" + strings.Repeat("{},", 250) + "{}]", 422, "250"},
		"a note of no type":  {"POST", "/api/v4/leads/notes", "long", fmt.Sprintf(`[{"entity_id":%d,"note_type":"x","params":{}}]`, lead), 400, "note_type"},
		"a note on nothing":  {"POST", "/api/v4/leads/notes", "long", `[{"entity_id":1,"note_type":"call_in","params":{}}]`, 404, "Entity"},
		"a lead without uid": {"POST", "/api/v4/leads/unsorted/sip", "long", `[{"source_name":"n"}]`, 400, "source_uid"},
		"an empty link": {"POST", "/api/v4/leads/unsorted/sip", "long",
			`[{"source_uid":"u","source_name":"n","metadata":{"uniq":"u","phone":"1","from":"1","service_code":"c","link":""}}]`, 400, "metadata.link"},
		"no such route":        {"GET", "/api/v4/notes", "long", "", 404, "Not Found"},
		"reading calls":        {"GET", "/api/v4/calls", "long", "", 404, "Not Found"},
		"a popup of something": {"POST", "/api/v2/events", "long", `{"add":[{"type":"mail"}]}`, 400, "phone_call"},
	} {
		t.Run(name, func(t *testing.T) {
			status, got := w.call(c.method, c.path, c.token, c.body)
			said := text(at(got, "validation-errors", 0, "errors", 0, "path"))
			if said == "" {
				said = text(got["detail"])
			}
			if status != c.status || !strings.Contains(said, c.field) {
				t.Errorf("%d %v", status, got)
			}
		})
	}
	if v := w.acc.View(); len(v.Notes)+len(v.Unsorted)+len(v.Popups) != 0 {
		t.Errorf("a refused request had an effect: %+v", v)
	}
}

func TestNotes(t *testing.T) {
	for name, merge := range map[string]bool{"replaced": false, "merged": true} {
		t.Run(name, func(t *testing.T) {
			w := start(t, Config{MergeParams: merge})
			lead := w.acc.Add("lead", "L", nil)
			_, got := w.call("POST", "/api/v4/leads/notes", "long", fmt.Sprintf(`[{"entity_id":%d,"note_type":"call_in","params":{"uniq":"u1","phone":"1"}}]`, lead))
			id := at(got, "_embedded", "notes", 0, "id")
			if status, got := w.call("PATCH", fmt.Sprintf("/api/v4/leads/notes/%v", id), "long", `{"note_type":"call_in","params":{"uniq":"u1","call_result":"sold"}}`); status != 200 {
				t.Fatal(status, got)
			}
			n := w.acc.View().Notes[0]
			if n.Params["call_result"] != "sold" || (n.Params["phone"] == "1") != merge || n.Patches != 1 {
				t.Errorf("%+v", n)
			}
			_, got = w.call("GET", fmt.Sprintf("/api/v4/leads/%d/notes?filter[note_type][]=call_in", lead), "long", "")
			if at(got, "_embedded", "notes", 0, "params", "uniq") != "u1" {
				t.Errorf("%v", got)
			}
			if status, got := w.call("GET", fmt.Sprintf("/api/v4/leads/%d/notes?filter[note_type][]=call_out", lead), "long", ""); status != 204 || got != nil {
				t.Errorf("an empty list is %d %v", status, got)
			}
		})
	}
}

const unknown = `[{"source_uid":"relay","source_name":"Relay","metadata":{"uniq":"u9","phone":"+13055550199","from":"+13055550199","service_code":"w","is_call_event_needed":true},
	"_embedded":{"leads":[{"name":"Call"}],"contacts":[{"name":"?","custom_fields_values":[{"field_code":"PHONE","values":[{"value":"+13055550199"}]}]}]}}]`

// An incoming lead is seen by nobody until it is accepted; then its contact is there, and webhooks tell of it.
func TestUnsorted(t *testing.T) {
	var mu sync.Mutex
	var told []url.Values
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		mu.Lock()
		defer mu.Unlock()
		told = append(told, r.PostForm)
	}))
	defer hook.Close()
	w := start(t, Config{})
	w.acc.AddWebhook(hook.URL)
	_, got := w.call("POST", "/api/v4/leads/unsorted/sip", "long", unknown)
	uid := text(at(got, "_embedded", "unsorted", 0, "uid"))
	call9 := strings.ReplaceAll(call, "0142", "0199")
	if status, _ := w.call("POST", "/api/v4/calls", "long", call9); status != 400 {
		t.Errorf("a contact of an open incoming lead was found: %d", status)
	}
	if status, _ := w.call("GET", "/api/v4/contacts?query=3055550199", "long", ""); status != 204 {
		t.Errorf("a contact of an open incoming lead was listed: %d", status)
	}
	if status, got := w.call("GET", "/api/v4/leads/unsorted?order[created_at]=desc", "long", ""); at(got, "_embedded", "unsorted", 0, "metadata", "uniq") != "u9" {
		t.Errorf("%d %v", status, got)
	}
	if !w.acc.Decide(uid, true) || w.acc.Decide(uid, true) {
		t.Error("it is accepted once")
	}
	if status, _ := w.call("POST", "/api/v4/calls", "long", call9); status != 200 {
		t.Errorf("the contact of an accepted lead is not found: %d", status)
	}
	w.sim.Hooks()
	mu.Lock()
	defer mu.Unlock()
	if len(told) != 2 || !slices.ContainsFunc(told, func(f url.Values) bool {
		return f.Get("contacts[add][0][custom_fields][0][values][0][value]") == "+13055550199" && f.Get("account[id]") == "9001"
	}) || !slices.ContainsFunc(told, func(f url.Values) bool { return f.Get("unsorted[delete][0][action]") == "accept" }) {
		t.Errorf("webhooks told %v", told)
	}
	w.acc.SetUnsortedOff(true)
	if status, _ := w.call("POST", "/api/v4/leads/unsorted/sip", "long", unknown); status != 400 {
		t.Errorf("incoming leads are off: %d", status)
	}
	if v := w.acc.View(); len(v.Unsorted) != 1 || v.Calls["u9"] != 1 || v.Unsorted[0].State != "accepted" {
		t.Errorf("holds %+v", v)
	}
}

func TestPopup(t *testing.T) {
	w := start(t, Config{})
	ann := w.acc.Add("contact", "Ann", []string{"+1 999 055 550 142"}) // the same last eight digits
	status, got := w.call("POST", "/api/v2/events", "long", `{"add":[{"type":"phone_call","phone_number":"+44 20 5555 0142","users":[7]}]}`)
	if status != 202 || at(got, "_embedded", "items", 0, "element_id") != float64(ann) || at(got, "_embedded", "items", 0, "element_type") != 1.0 {
		t.Errorf("%d %v", status, got)
	}
	if p := w.acc.View().Popups; len(p) != 1 || p[0].ElementID != ann {
		t.Errorf("%+v", p)
	}
}

// token makes a grant and returns the status and the pair.
func (w *world) token(kind, field, value string) (status int, access, refresh string) {
	status, got := w.call("POST", "/oauth2/access_token", "", fmt.Sprintf(
		`{"client_id":"client","client_secret":"secret","grant_type":%q,%q:%q,"redirect_uri":"https://relay.example/v1/kommo/oauth/callback"}`, kind, field, value))
	return status, text(got["access_token"]), text(got["refresh_token"])
}

func TestOAuth(t *testing.T) {
	w := start(t, Config{})
	code := w.acc.Code()
	status, access, refresh := w.token("authorization_code", "code", code)
	if status != 200 {
		t.Fatal(status)
	}
	if status, _, _ := w.token("authorization_code", "code", code); status != 400 {
		t.Errorf("a code worked twice: %d", status)
	}
	late := w.acc.Code()
	w.now = w.now.Add(codeLife)
	if status, _, _ := w.token("authorization_code", "code", late); status != 400 {
		t.Errorf("a code worked after 20 minutes: %d", status)
	}
	works := func(token string) bool {
		status, _ := w.call("GET", "/api/v4/account", token, "")
		return status == 200
	}
	if !works(access) {
		t.Error("the access token does not work")
	}

	// The reply is lost: the old refresh token works until the new tokens are used.
	_, _, lost := w.token("refresh_token", "refresh_token", refresh)
	status, access2, refresh2 := w.token("refresh_token", "refresh_token", refresh)
	if status != 200 || !works(access2) {
		t.Fatalf("the old refresh token does not work: %d", status)
	}
	for name, old := range map[string]string{"first": refresh, "lost": lost} {
		if status, _, _ := w.token("refresh_token", "refresh_token", old); status != 401 {
			t.Errorf("the %s refresh token works after the new one was used: %d", name, status)
		}
	}
	w.now = w.now.Add(24 * time.Hour)
	if works(access2) {
		t.Error("an access token works after 24 h")
	}

	// Another host.
	w.acc.Rename("acme2.kommo.com")
	r := httptest.NewRequest("GET", "http://"+apiDomain+"/oauth2/account/current/subdomain", nil)
	r.Header.Set("X-Refresh-Token", refresh2)
	rec := httptest.NewRecorder()
	w.sim.ServeHTTP(rec, r)
	if rec.Code != 200 || !strings.Contains(rec.Body.String(), `"domain":"acme2.kommo.com"`) {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	rec = httptest.NewRecorder()
	w.sim.ServeHTTP(rec, httptest.NewRequest("POST", "http://"+host+"/oauth2/access_token", strings.NewReader("{}")))
	if rec.Code != 404 {
		t.Errorf("the old host answers %d", rec.Code)
	}
	w.acc.Revoke()
	if status, _, _ := w.token("refresh_token", "refresh_token", refresh2); status != 401 || works("long") {
		t.Errorf("a revoked token works: %d", status)
	}
}

func TestStrictRotation(t *testing.T) {
	w := start(t, Config{StrictRotation: true})
	_, _, refresh := w.token("authorization_code", "code", w.acc.Code())
	w.token("refresh_token", "refresh_token", refresh)
	if status, _, _ := w.token("refresh_token", "refresh_token", refresh); status != 401 {
		t.Errorf("the old refresh token works: %d", status)
	}
}

// Seven in a second; then 429 with a time; who does not listen is blocked.
func TestLimits(t *testing.T) {
	w := start(t, Config{PerSecond: 7, BlockAfter: 3})
	get := func() (int, object) { return w.call("GET", "/api/v4/account", "long", "") }
	for i := range 14 {
		if status, _ := get(); status != 200 {
			t.Fatalf("request %d: %d", i, status)
		}
		if i == 6 {
			w.now = w.now.Add(time.Second)
		}
	}
	if status, got := get(); status != 429 || got["retry_after"] != 301.0 {
		t.Errorf("%d %v", status, got)
	}
	w.now = w.now.Add(301 * time.Second)
	if status, _ := get(); status != 200 {
		t.Errorf("after the pause: %d", status)
	}
	var last int
	for range 7 + 3 {
		last, _ = get()
	}
	w.now = w.now.Add(time.Hour)
	if status, _ := get(); last != 429 || status != 403 {
		t.Errorf("after the abuse: %d, later %d", last, status)
	}
	w.acc.Unblock()
	if status, _ := get(); status != 200 || w.acc.View().Limited != 5 {
		t.Errorf("unblocked: %d, limited %d", status, w.acc.View().Limited)
	}
	w.acc.SetUnpaid(true)
	if status, _ := get(); status != 402 {
		t.Errorf("unpaid: %d", status)
	}
}

// TestFaults: with an effect the call is there although nobody was told.
func TestFaults(t *testing.T) {
	for name, c := range map[string]struct {
		fault  Fault
		status int // 0: no answer
		notes  int
	}{
		"cut before":       {Fault{Kind: Cut}, 0, 0},
		"cut after":        {Fault{Kind: Cut, Effect: true}, 0, 1},
		"503":              {Fault{Kind: HTTP, Status: 503, RetryAfter: "3"}, 503, 0},
		"504 after":        {Fault{Kind: HTTP, Status: 504, Effect: true}, 504, 1},
		"HTML":             {Fault{Kind: NonJSON}, 200, 0},
		"hollow":           {Fault{Kind: Hollow}, 200, 0},
		"204 after":        {Fault{Kind: Hollow, Status: 204, Effect: true}, 204, 1},
		"slow":             {Fault{Kind: SlowBody}, 200, 1},
		"late":             {Fault{Kind: Delay, DelayMS: 1}, 200, 1},
		"half":             {Fault{Kind: Partial}, 0, 1},
		"hang":             {Fault{Kind: Hang, Effect: true}, 0, 1},
		"another endpoint": {Fault{Kind: Cut, Endpoint: "account"}, 200, 1},
		"another account":  {Fault{Kind: Cut, Account: 5}, 200, 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, Config{})
			w.acc.Add("contact", "Ann", []string{"3055550142"})
			c.fault.Times = 1
			if err := w.sim.AddFault(c.fault); err != nil {
				t.Fatal(err)
			}
			srv := httptest.NewServer(w.sim)
			defer srv.Close()
			client := http.Client{Timeout: 10 * time.Second}
			if c.fault.Kind == Hang {
				client.Timeout = 100 * time.Millisecond
			}
			post := func() int {
				req, _ := http.NewRequest("POST", srv.URL+"/api/v4/calls", strings.NewReader(call))
				req.Header.Set("Authorization", "Bearer long")
				req.Header.Set("Content-Type", "application/json")
				resp, err := client.Do(req)
				if err != nil {
					return 0
				}
				defer resp.Body.Close()
				if _, err := io.ReadAll(resp.Body); err != nil {
					return 0
				}
				return resp.StatusCode
			}
			if got := post(); got != c.status {
				t.Errorf("status %d, want %d", got, c.status)
			}
			if got := w.acc.View().Calls["u1"]; got != c.notes {
				t.Errorf("%d notes, want %d", got, c.notes)
			}
			client.Timeout = 10 * time.Second
			if got := post(); c.fault.Endpoint == "" && got != 200 {
				t.Errorf("a spent fault acts: %d", got)
			}
		})
	}
	if err := New(Config{}).AddFault(Fault{Kind: "typo"}); err == nil {
		t.Error("a fault that does not exist is set")
	}
}

func TestControl(t *testing.T) {
	w := start(t, Config{})
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "/sim/entities", `{"type":"contact","name":"Ann","phones":["3055550142"]}`, 200, `"id"`},
		{"POST", "/sim/entities", `{"type":"thing"}`, 400, "type must be"},
		{"PUT", "/sim/fault", `{"kind":"cut","endpoint":"calls"}`, 200, "cut"},
		{"PUT", "/sim/fault", `{"kind":"none"}`, 400, "no fault"},
		{"GET", "/sim/fault", "", 200, `"acted":0`},
		{"DELETE", "/sim/fault", "", 204, ""},
		{"POST", "/sim/code", "", 200, "def50200"},
		{"POST", "/sim/token?user=7", "", 200, "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9."},
		{"POST", "/sim/accept?uid=x", "", 400, "no incoming lead"},
		{"GET", "/sim/view?account=9001", "", 200, `"Ann"`},
		{"GET", "/sim/view?account=1", "", 400, "no account"},
		{"GET", "/sim/other", "", 404, "there is no"},
	} {
		rec := httptest.NewRecorder()
		w.sim.ServeHTTP(rec, httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)))
		if rec.Code != c.status || !strings.Contains(rec.Body.String(), c.want) {
			t.Errorf("%s %s: %d %s", c.method, c.path, rec.Code, rec.Body)
		}
	}
}
