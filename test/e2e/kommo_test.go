package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"callrelay/sim/kommo"
	"callrelay/sim/pbx"
)

const kommoSecret = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="

// withKommo is a relay with the account 9001 connected by Kommo's install redirect.
func withKommo(t *testing.T, env ...string) (*relay, *kommo.Account, *kommo.Server) {
	t.Helper()
	simulator := kommo.New(kommo.Config{})
	account := simulator.Account(9001)
	api := httptest.NewServer(simulator)
	t.Cleanup(api.Close)
	r := startWith(t, append([]string{"SECRETS_KEY=test:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", "KOMMO_BASE_URL=" + api.URL,
		"KOMMO_CLIENT_ID=client", "KOMMO_CLIENT_SECRET=secret", "KOMMO_REDIRECT_URI=https://relay.example/v1/kommo/oauth/callback",
		"KOMMO_SETTLE=200ms", "RETRY_BASE=50ms", "KOMMO_CALLS_SECRETS=9001=" + kommoSecret, "KOMMO_CLAIM_DELAY=1s",
		// What a killed process had under way comes back soon.
		"LEASE_TIME=10s", "KOMMO_REQUEST_TIMEOUT=3s", "KOMMO_TIMEOUT=5s", "TOPSII_CONNECT_TIMEOUT=1s", "TOPSII_TIMEOUT=4s", "WEBHOOK_TIMEOUT=4s"}, env...))
	resp, err := r.http.Get(r.url + "/v1/kommo/oauth/callback?client_id=client&referer=acme.kommo.com&code=" + account.Code())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("the redirect is answered %d", resp.StatusCode)
	}
	t.Cleanup(func() {
		if v := account.View(); v.Limited != 0 {
			t.Errorf("Kommo said %d times that there are too many requests", v.Limited)
		}
	})
	r.eventually(60*time.Second, "the account is connected", func() bool {
		a, ok := r.reportCall(map[string]any{"call_id": "connected?", "direction": "inbound", "duration": -1, "phone": "1"}, kommoSecret)
		return ok && a.Status == 400 && a.Field == "duration" && r.knows(9001)
	})
	return r, account, simulator
}

// knows says whether router knows the account: a withheld number is parked and reaches nobody.
func (r *relay) knows(account int64) bool {
	a, ok := r.reportCall(map[string]any{"call_id": fmt.Sprint("probe-", account), "direction": "inbound"}, kommoSecret)
	return ok && a.Status == 200
}

func (r *relay) reportCall(body map[string]any, secret string) (a answer, ok bool) {
	text, err := json.Marshal(body)
	if err != nil {
		r.t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPost, r.url+"/v1/kommo/9001/calls", bytes.NewReader(text))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	resp, err := r.http.Do(req)
	if err != nil {
		return a, false
	}
	defer resp.Body.Close()
	err = json.NewDecoder(resp.Body).Decode(&a)
	a.Status = resp.StatusCode
	return a, err == nil
}

// reported sends a report until it is acknowledged, as a VoIP service does.
func (r *relay) reported(body map[string]any) {
	r.eventually(60*time.Second, "the report is acknowledged", func() bool {
		a, ok := r.reportCall(body, kommoSecret)
		return ok && a.Status == 200
	})
}

// Each call is reported three times at the same moment, with Kommo failing and the relay killed in between: each is there
// once, on the contact whose number it has. CALLS makes it more; Kommo takes 7 requests a second.
func TestKommoCallsAreLoggedOnce(t *testing.T) {
	n := 40
	if text := os.Getenv("CALLS"); text != "" {
		n, _ = strconv.Atoi(text)
	}
	r, account, simulator := withKommo(t)
	phone := func(i int) string { return fmt.Sprintf("+1305555%04d", i) }
	contacts := map[int64]string{}
	for i := range n {
		contacts[account.Add("contact", fmt.Sprint("Ann ", i), []string{phone(i)})] = fmt.Sprint("call-", i)
	}
	for _, f := range []kommo.Fault{{Kind: kommo.Cut, Effect: true, Endpoint: "calls", Times: 2}, {Kind: kommo.HTTP, Status: 502, Endpoint: "calls", Times: 2}} {
		if err := simulator.AddFault(f); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for i := 0; i < n && t.Failed(); i++ {
			if account.View().Calls[fmt.Sprint("call-", i)] != 1 {
				t.Log(r.callrelay("call", fmt.Sprint("kommo/9001/call-", i)))
				break
			}
		}
	})
	began := time.Now()
	concurrently(3*n, 48, func(i int) {
		r.reported(map[string]any{"call_id": fmt.Sprint("call-", i/3), "direction": "inbound", "phone": phone(i / 3), "duration": 7, "status": "answered"})
	})
	for round := range 2 {
		r.eventually(time.Duration(60+n)*time.Second, "some are logged", func() bool { return len(account.View().Calls) > round*n/3 })
		r.kill()
		r.launch()
	}
	r.eventually(time.Duration(60+n)*time.Second, "all are logged", func() bool { return len(account.View().Calls) >= n })
	t.Logf("%d calls logged in %v by %d requests, and %d to look for them", n, time.Since(began).Round(time.Second), simulator.Requests("calls"), simulator.Requests("contacts.list")+simulator.Requests("companies.list")+simulator.Requests("notes.list")+simulator.Requests("unsorted.list"))
	known := 0
	r.eventually(time.Duration(60+n)*time.Second, "the relay knows it of all", func() bool {
		for ; known < n; known++ {
			if out, err := r.callrelay("call", fmt.Sprint("kommo/9001/call-", known)); err != nil || !strings.Contains(out, "Call event created") {
				return false
			}
		}
		return true
	})
	v := account.View()
	if len(v.Notes) != n {
		t.Errorf("%d notes of %d calls", len(v.Notes), n)
	}
	for _, note := range v.Notes {
		if uniq := note.Params["uniq"]; contacts[note.EntityID] != uniq {
			t.Errorf("%v is on %s %d", uniq, note.EntityType, note.EntityID)
		}
	}
}

// Fifty calls from a number that Kommo does not know, within a second, give one incoming lead and fifty call events.
func TestKommoOneLead(t *testing.T) {
	r, account, _ := withKommo(t)
	const n = 50
	concurrently(n, n, func(i int) {
		r.reported(map[string]any{"call_id": fmt.Sprint("call-", i), "direction": "inbound", "phone": "+13055550142", "duration": 7, "status": "answered"})
	})
	r.eventually(60*time.Second, "the lead is there", func() bool { return len(account.View().Unsorted) > 0 })
	r.kill()
	r.launch()
	r.eventually(150*time.Second, "all are logged", func() bool { return len(account.View().Calls) >= n-1 })
	account.Decide(account.View().Unsorted[0].UID, true) // the first one's call event is in the lead, and shows when it is accepted
	r.eventually(60*time.Second, "the last one too", func() bool { return len(account.View().Calls) >= n })
	v := account.View()
	if len(v.Unsorted) != 1 || len(v.Calls) != n {
		t.Errorf("%d leads, %d calls", len(v.Unsorted), len(v.Calls))
	}
	for uniq, times := range v.Calls {
		if times != 1 {
			t.Errorf("%s is there %d times", uniq, times)
		}
	}
}

// A call of the dialer goes to TopS.II and, as ROUTES says, to Kommo; each once.
func TestKommoDialer(t *testing.T) {
	r, account, _ := withKommo(t, "ROUTES=ameyo=kommo/9001")
	contact := account.Add("contact", "Ann", []string{"03000000001"})
	for range 3 {
		r.end(connectedEnd(71)...)
	}
	r.eventually(60*time.Second, "it is in Kommo", func() bool { return account.View().Calls["ameyo:71"] > 0 })
	r.eventually(10*time.Second, "it is in TopS.II", func() bool { return r.effects() == 1 })
	if v := account.View(); len(v.Notes) != 1 || v.Notes[0].EntityID != contact || v.Notes[0].NoteType != "call_out" {
		t.Errorf("%+v", v.Notes)
	}
}

// What is registered of calls of a cloud PBX goes to the CRM's webhook and, as ROUTES says, to Kommo: each leg and each missed call
// once, on the contact that has the number, with the relay killed between the events and the grace after them.
func TestKommoPbx(t *testing.T) {
	c := newCRM(t)
	path := pbxTable(t, c)
	r, account, _ := withKommo(t, "ROUTES=pbx/acme=kommo/9001", "PBX_INTEGRATIONS="+path, "PBX_GRACE=2s")
	table, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	extensions, err := pbx.Extensions(table, "")
	if err != nil {
		t.Fatal(err)
	}
	p, err := pbx.New(1, extensions, time.Now().Add(-time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	type client struct {
		contact int64
		call    pbx.Call
	}
	wanted, clients := 0, map[string]client{}
	for _, scenario := range pbx.Scenarios {
		call, err := p.Call(scenario)
		if err != nil {
			t.Fatal(err)
		}
		for _, field := range []string{"CallerIDNum", "CalledNumber"} {
			if number := call.Events[0].Params.Get(field); strings.HasPrefix(number, "+7") {
				clients[number] = client{account.Add("contact", scenario, []string{number}), call}
			}
		}
		wanted += call.Registered
		for range 2 {
			for _, e := range call.Events {
				r.pbxEvent(e)
			}
		}
	}
	r.kill()
	r.launch()
	r.eventually(90*time.Second, "all are in Kommo", func() bool { return len(account.View().Calls) >= wanted })
	v := account.View()
	if len(v.Calls) != wanted || len(v.Notes) != wanted || len(v.Unsorted) != 0 {
		t.Errorf("%d calls, %d notes, %d leads, want %d", len(v.Calls), len(v.Notes), len(v.Unsorted), wanted)
	}
	for _, note := range v.Notes {
		of := clients[fmt.Sprint(note.Params["phone"])]
		if of.contact == 0 || note.EntityID != of.contact {
			t.Errorf("%v is on %s %d", note.Params, note.EntityType, note.EntityID)
		}
		if uniq := fmt.Sprint(note.Params["uniq"]); uniq != "missed:"+of.call.ID && !strings.HasPrefix(uniq, "333") {
			t.Errorf("uniq %s of call %s", uniq, of.call.ID)
		}
	}
	r.eventually(30*time.Second, "all are registered", func() bool {
		for _, of := range clients {
			if len(c.of(of.call.ID)) < of.call.Registered {
				return false
			}
		}
		return true
	})
}

// A refusal names the field, and a stranger learns nothing.
func TestKommoRefusals(t *testing.T) {
	r, _, _ := withKommo(t)
	for _, test := range []struct {
		body   map[string]any
		secret string
		status int
		field  string
	}{
		{map[string]any{"call_id": "a", "direction": "inbound"}, "wrong", 401, ""},
		{map[string]any{"direction": "inbound"}, kommoSecret, 400, "call_id"},
		{map[string]any{"call_id": "a\tb", "direction": "inbound"}, kommoSecret, 400, "call_id"},
		{map[string]any{"call_id": "a", "direction": "sideways"}, kommoSecret, 400, "direction"},
		{map[string]any{"call_id": "a", "direction": "inbound", "duration": "7"}, kommoSecret, 400, "duration"},
		{map[string]any{"call_id": "a", "direction": "inbound", "colour": "red"}, kommoSecret, 400, "colour"},
	} {
		a, ok := r.reportCall(test.body, test.secret)
		if !ok || a.Status != test.status || a.Field != test.field {
			t.Errorf("%v: %d %q %s", test.body, a.Status, a.Field, a.Message)
		}
	}
}
