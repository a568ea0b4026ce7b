package e2e

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"callrelay/callback"
	"callrelay/sim/pbx"
)

const (
	cardsSecret = "a-secret-of-the-tests-that-is-long-enough"
	crmSecret   = "whsec_" + pbxKey
)

// cardsRelay runs a relay with three phones of acme and one of umbrella, and returns their events' extensions by name.
func cardsRelay(t *testing.T, args ...string) (*relay, map[string]pbx.Extension) {
	t.Helper()
	c := newCRM(t)
	hook := `"webhook":{"url":"` + c.server.URL + `","secret":"` + crmSecret + `","allow_private":["127.0.0.0/8"]}`
	table := `{"integrations":[{"id":"acme","prefix":"0003","extension_len":3,` + hook + `,"extensions":[
		{"id":"1","name":"0003*101","type":"phone","user":"u101","tokens":["bd8e4091b2abed48387a0efc2c86c82b"]},
		{"id":"2","name":"0003*102","type":"phone","user":"u102","tokens":["617ad7ee1f02aa6b3e60f12a978d68ba"]},
		{"id":"3","name":"0003*103","type":"phone","user":"u103","tokens":["2b1c0d9e8f7a6b5c4d3e2f1a0b9c8d7e"]},
		{"id":"4","name":"0003*700","type":"queue","tokens":["ecc83e271b7707dc16465d0c681aadad"]}]},
		{"id":"umbrella","prefix":"0009","extension_len":3,"webhook":{"url":"` + c.server.URL + `","secret":"whsec_AAAAq8r8GKYqrTwjUPD8ILPZIo2LaLaS","allow_private":["127.0.0.0/8"]},"extensions":[
		{"id":"1","name":"0009*101","type":"phone","user":"u101","tokens":["0f1e2d3c4b5a69788796a5b4c3d2e1f0"]}]}]}`
	path := filepath.Join(t.TempDir(), "pbx.json")
	if err := os.WriteFile(path, []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	r := startWith(t, []string{"PBX_INTEGRATIONS=" + path, "PBX_GRACE=1s", "CARDS_SECRET=" + cardsSecret}, args...)
	phones := map[string]pbx.Extension{}
	for _, integration := range []string{"acme", "umbrella"} {
		extensions, err := pbx.Extensions([]byte(table), integration)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range extensions {
			phones[x.Name] = x
		}
	}
	return r, phones
}

// event is one event of a leg of a call, from outside to the extension.
func event(x pbx.Extension, call, leg, kind string, more ...string) pbx.Event {
	v := url.Values{"EventType": {kind}, "CallFlow": {"in"}, "CallID": {call}, "SubCallID": {leg}, "CallerIDNum": {"+79991234567"},
		"CalledNumber": {x.Name}, "CalledDID": {"78120000001"}}
	for i := 0; i < len(more); i += 2 {
		v.Set(more[i], more[i+1])
	}
	return pbx.Event{Extension: x, Params: v}
}

// token asks for a token as the CRM does.
func (r *relay) cardToken(bearer, body string) (status int, token string) {
	r.t.Helper()
	req, err := http.NewRequest(http.MethodPost, r.url+"/v1/cards:token", strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+bearer)
	resp, err := r.http.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct{ Token string }
	_ = json.NewDecoder(resp.Body).Decode(&answer)
	return resp.StatusCode, answer.Token
}

// page is a page of the CRM that watches: what it shows, and all that it was told.
type page struct {
	mu    sync.Mutex
	shows map[string]string // card -> state
	told  []string
	lists int
	cut   context.CancelFunc
	ended chan struct{}
}

type shown struct {
	ID, State, TakenBy, Number string
	Version                    int
}

// watch opens a page with a token. It keeps what it shows over a reconnect, as a page does.
func (r *relay) watch(token string, p *page) *page {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+"/v1/cards:watch?token="+url.QueryEscape(token), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		r.t.Fatalf("watch: %s", resp.Status)
	}
	if p == nil {
		p = &page{shows: map[string]string{}}
	}
	p.cut, p.ended = cancel, make(chan struct{})
	go func() {
		defer close(p.ended)
		defer resp.Body.Close()
		name := ""
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			line := lines.Text()
			if after, ok := strings.CutPrefix(line, "event: "); ok {
				name = after
			}
			if data, ok := strings.CutPrefix(line, "data: "); ok {
				p.take(name, data)
			}
		}
	}()
	r.t.Cleanup(func() { cancel(); <-p.ended })
	return p
}

func (p *page) take(name, data string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = append(p.told, name+" "+data)
	set := func(c shown) {
		if delete(p.shows, c.ID); c.State == "ringing" || c.State == "in_call" {
			p.shows[c.ID] = c.State
		}
	}
	switch name {
	case "cards":
		var all struct{ Cards []shown }
		_ = json.Unmarshal([]byte(data), &all)
		p.shows = map[string]string{}
		p.lists++
		for _, c := range all.Cards {
			set(c)
		}
	case "card":
		var c shown
		_ = json.Unmarshal([]byte(data), &c)
		set(c)
	}
}

func (p *page) showing(want ...string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	var got []string
	for id, state := range p.shows {
		got = append(got, id+" "+state)
	}
	slices.Sort(got)
	return p.lists > 0 && slices.Equal(got, want)
}

func (p *page) heard(part string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Contains(strings.Join(p.told, "\n"), part)
}

// Events in, cards out: to the right user, in every state, over a reconnect and over the death of everything.
func TestCards(t *testing.T) {
	for _, mode := range []string{"one process", "four processes"} {
		t.Run(mode, func(t *testing.T) {
			var args []string
			if mode == "four processes" {
				args = append(args, "--split")
			}
			r, phones := cardsRelay(t, args...)
			users, pages := []string{"u101", "u102", "u103"}, map[string]*page{}
			tokens := map[string]string{}
			for _, user := range users {
				status, token := r.cardToken(crmSecret, `{"integration":"acme","user":"`+user+`"}`)
				if status != http.StatusOK || token == "" {
					t.Fatalf("no token for %s: %d", user, status)
				}
				tokens[user], pages[user] = token, r.watch(token, nil)
			}
			status, foreign := r.cardToken("", `{"integration":"umbrella","user":"u101"}`) // this machine is the operator
			if status != http.StatusOK {
				t.Fatalf("no token for an operator: %d", status)
			}
			other := r.watch(foreign, nil)
			show := func(what, user string, want ...string) {
				t.Helper()
				r.eventually(10*time.Second, what+" at "+user, func() bool { return pages[user].showing(want...) })
			}
			send := func(phone, leg, kind string, more ...string) {
				t.Helper()
				r.pbxEvent(event(phones["0003*"+phone], "C1", leg, kind, more...))
			}
			for _, user := range users {
				show("nothing", user)
			}
			// Three phones ring; one answers; the others are told who.
			send("101", "a", "dial-in")
			send("102", "b", "dial-in")
			send("103", "c", "dial-in")
			show("ringing", "u101", "C1/a ringing")
			show("ringing", "u102", "C1/b ringing")
			show("ringing", "u103", "C1/c ringing")
			send("102", "b", "answer", "CallStatus", "ANSWER")
			show("in call", "u102", "C1/b in_call")
			show("taken", "u101")
			show("taken", "u103")
			if !pages["u101"].heard(`"takenBy":"0003*102"`) && !pages["u101"].heard(`"takenBy": "0003*102"`) {
				t.Errorf("u101 was not told who took it: %v", pages["u101"].told)
			}
			send("101", "a", "hangup", "CallStatus", "CANCEL", "Duration", "0")

			// Everything dies; the page comes back with what is open, wherever.
			r.kill()
			for _, user := range users {
				<-pages[user].ended
			}
			<-other.ended
			r.launch()
			for _, user := range users {
				r.watch(tokens[user], pages[user])
			}
			r.watch(foreign, other)
			show("still in call", "u102", "C1/b in_call")
			show("nothing", "u101")

			// A page that is away while the call ends does not show it for ever.
			pages["u102"].cut()
			<-pages["u102"].ended
			send("102", "b", "hangup", "CallStatus", "ANSWER", "Duration", "1000000")
			r.watch(tokens["u102"], pages["u102"])
			show("ended", "u102")

			// A dial-in that comes too late opens nothing.
			r.pbxEvent(event(phones["0003*103"], "C2", "late", "hangup", "CallStatus", "CANCEL", "Duration", "0"))
			r.pbxEvent(event(phones["0003*103"], "C2", "late", "dial-in"))
			r.pbxEvent(event(phones["0003*103"], "C3", "next", "dial-in")) // behind it, so that there is something to wait for
			show("only the next", "u103", "C3/next ringing")
			if pages["u103"].heard("C2/late") {
				t.Errorf("a late dial-in opened a card: %v", pages["u103"].told)
			}
			r.eventually(10*time.Second, "diagnose says that the call is registered", func() bool {
				out, err := r.callrelay("diagnose", callback.PbxCallKey("acme", "C1"))
				return err == nil && strings.Contains(out, "accepted by the CRM")
			})

			// Nobody sees another one's cards.
			for user, p := range pages {
				for _, leg := range []string{"C1/a", "C1/b", "C1/c"} {
					if own := map[string]string{"u101": "C1/a", "u102": "C1/b", "u103": "C1/c"}[user]; leg != own && p.heard(leg) {
						t.Errorf("%s heard of %s", user, leg)
					}
				}
			}
			if other.heard("C1") || other.heard("C3") {
				t.Errorf("u101 of umbrella heard %v", other.told)
			}
			if log := r.output.tail(1 << 20); strings.Contains(log, tokens["u101"]) || strings.Contains(log, cardsSecret) {
				t.Error("a token shows in the log")
			}
			r.refusesTokens(tokens["u101"])
		})
	}
}

func (r *relay) refusesTokens(good string) {
	r.t.Helper()
	for name, token := range map[string]string{
		"none": "", "nonsense": "abc", "another user's name": strings.Replace(good, "dTEwMQ", "dTEwMg", 1),
		"another signature": good[:len(good)-4] + rand.Text()[:4], "a longer life": strings.Replace(good, ".1", ".9", 1), "the CRM's secret": crmSecret,
	} {
		resp, err := r.http.Get(r.url + "/v1/cards:watch?token=" + url.QueryEscape(token))
		if err != nil {
			r.t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			r.t.Errorf("%s: %s", name, resp.Status)
		}
	}
	_, short := r.cardToken(crmSecret, `{"integration":"acme","user":"u101","ttlS":1}`)
	p := r.watch(short, nil)
	<-p.ended // the stream ends with its token
	resp, err := r.http.Get(r.url + "/v1/cards:watch?token=" + short)
	if err != nil {
		r.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		r.t.Errorf("an expired token: %s", resp.Status)
	}
	for _, c := range []struct {
		name, body string
		status     int
	}{
		{"nobody's user", `{"integration":"acme","user":"u999"}`, 404},
		{"no user", `{"integration":"acme"}`, 400},
		{"too long", `{"integration":"acme","user":"u101","ttlS":43201}`, 400},
		{"no JSON", `{`, 400},
	} {
		if status, _ := r.cardToken(crmSecret, c.body); status != c.status {
			r.t.Errorf("%s: %d, want %d", c.name, status, c.status)
		}
	}
}
