package e2e

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"callrelay/callback"
	"callrelay/sim/pbx"
)

const pbxKey = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// crm is a CRM with a webhook that checks signatures.
type crm struct {
	t      *testing.T
	server *httptest.Server
	mu     sync.Mutex
	// calls are the registrations by call id; ids are the messages that came.
	calls map[string][]registered
	ids   map[string]int
}

type registered struct {
	Type string
	Data struct {
		CallID    string `json:"call_id"`
		SubCallID string `json:"sub_call_id"`
		Direction string
		Status    string
		Number    string
		Extension string
		User      string
		Missed    bool
		DurationS int64 `json:"duration_s"`
	}
}

func newCRM(t *testing.T) *crm {
	c := &crm{t: t, calls: map[string][]registered{}, ids: map[string]int{}}
	c.server = httptest.NewServer(c)
	t.Cleanup(c.server.Close)
	return c
}

func (c *crm) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	key, _ := base64.StdEncoding.DecodeString(pbxKey)
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", r.Header.Get("Webhook-Id"), r.Header.Get("Webhook-Timestamp"), body)
	if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); err != nil || r.Header.Get("Webhook-Signature") != want {
		c.t.Errorf("signature %s, want %s (%v)", r.Header.Get("Webhook-Signature"), want, err)
	}
	var doc registered
	if err := json.Unmarshal(body, &doc); err != nil {
		c.t.Errorf("%s: %v", body, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls[doc.Data.CallID] = append(c.calls[doc.Data.CallID], doc)
	c.ids[r.Header.Get("Webhook-Id")]++
}

func (c *crm) of(call string) []registered {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[call]
}

const pbxPhoneToken = "bd8e4091b2abed48387a0efc2c86c82b"

// pbxTable writes a table of one PBX, whose calls are registered with the CRM.
func pbxTable(t *testing.T, c *crm) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pbx.json")
	table := `{"integrations":[{"id":"acme","prefix":"0003","extension_len":3,
		"webhook":{"url":"` + c.server.URL + `","secret":"whsec_` + pbxKey + `","allow_private":["127.0.0.0/8"]},"extensions":[
		{"id":"33301","name":"0003*101","type":"phone","user":"u101","tokens":["` + pbxPhoneToken + `"]},
		{"id":"33302","name":"0003*102","type":"phone","user":"u102","tokens":["617ad7ee1f02aa6b3e60f12a978d68ba"]},
		{"id":"33334","name":"0003*700","type":"queue","tokens":["ecc83e271b7707dc16465d0c681aadad"]}]}]}`
	if err := os.WriteFile(path, []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (r *relay) pbxEvent(e pbx.Event) {
	r.t.Helper()
	var err error
	r.untilTaken(e.Params.Get("EventType"), func() (int, string) {
		if _, err = pbx.Send(context.Background(), r.http, r.url, e); err != nil && strings.HasPrefix(err.Error(), "503 ") {
			return http.StatusServiceUnavailable, "1"
		}
		return 0, ""
	})
	if err != nil {
		r.t.Errorf("%s of %s: %v", e.Params.Get("EventType"), e.Extension.Name, err)
	}
}

// Calls of a cloud PBX, whose events come in any order and repeated, are registered once, with the process killed between
// their events and the grace after them.
func TestPbxCalls(t *testing.T) {
	for _, mode := range []string{"one process", "four processes"} {
		t.Run(mode, func(t *testing.T) {
			c := newCRM(t)
			var args []string
			if mode == "four processes" {
				args = append(args, "--split")
			}
			path := pbxTable(t, c)
			r := startWith(t, []string{"PBX_INTEGRATIONS=" + path, "PBX_GRACE=2s"}, args...)
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
			var calls []pbx.Call
			for i := range 4 * len(pbx.Scenarios) {
				call, err := p.Call(pbx.Scenarios[i%len(pbx.Scenarios)])
				if err != nil {
					t.Fatal(err)
				}
				calls = append(calls, call)
			}
			concurrently(len(calls), 8, func(i int) {
				events := calls[i].Events
				if i >= len(pbx.Scenarios) {
					r.t.Helper()
					events = shuffledOf(p, events)
				}
				for _, e := range events {
					r.pbxEvent(e)
				}
			})
			r.kill() // what waits for the grace outlives it
			r.launch()
			r.eventually(30*time.Second, "all calls are registered", func() bool {
				for _, call := range calls {
					if len(c.of(call.ID)) < call.Registered {
						return false
					}
				}
				return true
			})
			// A repeat of everything changes nothing.
			for _, e := range calls[1].Events {
				r.pbxEvent(e)
			}
			for i, call := range calls {
				if got := c.of(call.ID); len(got) != call.Registered && c.resent() == 0 {
					t.Errorf("%s: registered %+v, want %d", pbx.Scenarios[i%len(pbx.Scenarios)], got, call.Registered)
				}
			}
			if got := c.of(calls[1].ID); len(got) > 0 && (!got[0].Data.Missed || got[0].Data.Extension != "0003*700") {
				t.Errorf("missed: %+v", got)
			}
			r.pbxTells(c, calls)
		})
	}
}

var shuffling sync.Mutex

func shuffledOf(p *pbx.PBX, events []pbx.Event) []pbx.Event {
	shuffling.Lock()
	defer shuffling.Unlock()
	return p.Repeat(p.Reorder(events))
}

// resent counts messages that came more than once: after a kill an attempt is uncertain and is made again, by its id.
func (c *crm) resent() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, times := range c.ids {
		n += times - 1
	}
	return n
}

// pbxTells checks what operators see: the story of a call, what could not be understood, and no token anywhere.
func (r *relay) pbxTells(c *crm, calls []pbx.Call) {
	r.t.Helper()
	key := callback.PbxCallKey("acme", calls[0].ID)
	story := r.run(done, "call", key)
	says(r.t, "call", story, "received pbx.dial", "card of u101: ringing, in ", "card of u101: in_call", "card of u101: ended", "rule P3: registered as incoming, answered, leg 33301-", "webhook:acme call.registered", "delivered")
	number := calls[0].Events[0].Params.Get("CallerIDNum")
	text := story + r.run(done, "call", key, "--json")

	resp, err := r.http.Post(r.url+"/ext-event/"+pbxPhoneToken, "application/json", strings.NewReader(`{"no":"form"}`))
	if err != nil {
		r.t.Fatal(err)
	}
	resp.Body.Close()
	odd := r.run(done, "call", "request/"+resp.Header.Get("X-Request-Id"))
	says(r.t, "what cannot be understood", odd, "cannot be understood: EventType is required", "phone 0003*101 (33301) of acme")
	resp, err = r.http.Get(r.url + "/ext-event/" + pbxPhoneToken[:31] + "x?EventType=dial-in")
	if err != nil {
		r.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 404 {
		r.t.Errorf("an unknown token: %d", resp.StatusCode)
	}
	text += odd + r.output.tail(1<<20)
	if strings.Contains(text, pbxPhoneToken) || strings.Contains(text, number) {
		r.t.Errorf("a token or a number shows:\n%s", text)
	}
}

// Integrations change while everything runs: a token that was replaced ends everywhere, and nothing that Redis keeps opens a door.
func TestIntegrations(t *testing.T) {
	for _, mode := range []string{"one process", "four processes"} {
		t.Run(mode, func(t *testing.T) {
			c := newCRM(t)
			var args []string
			if mode == "four processes" {
				args = append(args, "--split")
			}
			r := startWith(t, []string{"PBX_GRACE=1s"}, args...)
			ask := func(token string) (status int) {
				r.untilTaken("hangup", func() (int, string) {
					resp, err := r.http.Get(r.url + "/ext-event/" + token + "?EventType=hangup&CallID=x&SubCallID=y")
					if err != nil {
						t.Fatal(err)
					}
					resp.Body.Close()
					status = resp.StatusCode
					return status, resp.Header.Get("Retry-After")
				})
				return status
			}
			until := func(what, token string, want int) {
				t.Helper()
				r.eventually(5*time.Second, what, func() bool { return ask(token) == want })
			}
			if got := ask(pbxPhoneToken); got != 404 {
				t.Errorf("a token that nobody made: %d", got)
			}
			until("the sample of --sim is there", "5d7f0c1b9a2e48d6b3c4f1e08a7d6952", 200)

			path := pbxTable(t, c)
			says(t, "import", r.run(done, "integrations", "import", path), "pbx/acme is stored")
			until("an imported token works", pbxPhoneToken, 200)
			out := r.run(done, "integrations", "rotate", "acme", "0003*101")
			says(t, "rotate", out, "This is shown only once", "The earlier URLs of the extension end at")
			_, rest, _ := strings.Cut(out, "/ext-event/")
			fresh, _, _ := strings.Cut(rest, "\n")
			until("the new token works", fresh, 200)
			if got := ask(pbxPhoneToken); got != 200 {
				t.Errorf("the old one within the overlap: %d", got)
			}
			says(t, "list", r.run(done, "integrations", "list", "acme"), "33301", "0003*101", "u101")
			out = r.run(done, "integrations", "rotate", "acme", "33301", "--overlap", "0")
			_, rest, _ = strings.Cut(out, "/ext-event/")
			last, _, _ := strings.Cut(rest, "\n")
			until("the newest token works", last, 200)
			until("a leaked token ends", fresh, 404)

			// Calls go to where the integration says now.
			other := newCRM(t)
			table, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			moved := strings.NewReplacer(c.server.URL, other.server.URL, pbxPhoneToken, last).Replace(string(table))
			if err := os.WriteFile(path, []byte(moved), 0o600); err != nil {
				t.Fatal(err)
			}
			r.run(done, "integrations", "import", path)
			extensions, err := pbx.Extensions([]byte(moved), "acme")
			if err != nil {
				t.Fatal(err)
			}
			p, err := pbx.New(1, extensions, time.Now().Add(-time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			var called time.Time
			r.eventually(20*time.Second, "a call is registered at the new address", func() bool {
				other.mu.Lock()
				registered := len(other.calls) > 0
				other.mu.Unlock()
				if registered || time.Since(called) < 2*time.Second {
					return registered // the last call still has its grace
				}
				called = time.Now()
				call, err := p.Call("answered")
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range call.Events {
					r.pbxEvent(e)
				}
				return false
			})

			// All dies; nobody needs to say anything again.
			r.kill()
			r.launch()
			if got := ask(last); got != 200 {
				t.Errorf("after a restart: %d", got)
			}
			says(t, "disconnect", r.run(done, "integrations", "disconnect", "pbx/acme"), "pbx/acme is disconnected")
			until("the tokens of what is disconnected end", last, 404)

			r.interrupt()
			err = filepath.WalkDir(filepath.Join(r.dataDir), func(path string, d os.DirEntry, err error) error {
				if err != nil || d.IsDir() || d.Name() == "sim-pbx.json" {
					return err
				}
				data, err := os.ReadFile(path)
				for _, word := range []string{pbxPhoneToken, fresh, last, pbxKey} {
					if strings.Contains(string(data), word) {
						t.Errorf("%s holds a token or a secret", path)
					}
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			r.launch()
		})
	}
}
