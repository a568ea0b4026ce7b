package ingress

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/protobuf/encoding/prototext"

	"callrelay/callback/pbxtable"
	routerv1 "callrelay/gen/callrelay/router/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/accounts"
	"callrelay/platform/config"
)

const (
	phoneToken = "f2a8vdrfae0s1ku5d2rj3iximjf3twyz"
	oldToken   = "bd8e4091b2abed48387a0efc2c86c82b"
	queueToken = "617ad7ee1f02aa6b3e60f12a978d68ba"
)

const pbxTable = `{"integrations":[{"id":"acme","prefix":"0003","extension_len":3,
	"webhook":{"url":"https://crm.example/","secret":"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"},"extensions":[
	{"id":"33301","name":"0003*101","type":"phone","user":"u101","tokens":["` + phoneToken + `","` + oldToken + `"]},
	{"id":"33334","name":"0003*700","type":"queue","tokens":["` + queueToken + `"]}]}]}`

// kept is a table as state keeps it.
func kept(t *testing.T, table string) []*statev1.Account {
	t.Helper()
	all, err := pbxtable.Parse([]byte(table))
	if err != nil {
		t.Fatal(err)
	}
	var list []*statev1.Account
	for _, n := range all {
		settings, err := json.Marshal(pbxtable.Stored{Integration: n.Hashed()})
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, &statev1.Account{Id: pbxtable.AccountPrefix + n.ID, Version: rand.Text(), Settings: settings})
	}
	return list
}

// servePbx is serveService with a table.
func servePbx(t *testing.T, f *fakeRouter, table string, env map[string]string) (string, *Service) {
	t.Helper()
	front, s := serveService(t, f, env)
	s.integrations.take(accounts.List{Accounts: kept(t, table), NowMS: time.Now().UnixMilli()})
	return front.URL, s
}

// askPbx sends a request and returns its answer without the request id.
func askPbx(t *testing.T, method, address, contentType, body string) (status int, answer string, header http.Header) {
	t.Helper()
	about := map[string]string{}
	if contentType != "" {
		about["Content-Type"] = contentType
	}
	resp, text := sendBody(t, method, address, about, body)
	return resp.StatusCode, regexp.MustCompile(`"requestId":"[A-Z2-7]{26}"`).ReplaceAllString(text, `"requestId":"ID"`), resp.Header
}

func TestPbxEvents(t *testing.T) {
	f := &fakeRouter{answer: accept}
	front, _ := servePbx(t, f, pbxTable, map[string]string{"AMEYO_PATH_SECRET": "0123456789abcdef"})
	const form, taken = "application/x-www-form-urlencoded", `{"success":true,"requestId":"ID"}`
	const event = "EventType=dial-in&CallID=c&SubCallID=s&CallerIDNum=%2B7999&EventTime=1767000000000000"
	const on = `extension_id:"33301" integration:"acme" extension:"0003*101" type:"phone"`
	for _, test := range []struct {
		name, method, path, contentType, body string
		status                                int
		answer                                string
		fields                                []string // of the event
		query                                 string
	}{
		{"GET", "GET", phoneToken + "?" + event, "", "", 200, taken, []string{`event_type:"dial-in"`, `caller_id_num:"+7999"`}, event},
		{"the other token", "GET", oldToken + "?" + event, "", "", 200, taken, []string{`event_type:"dial-in"`}, event},
		{"form", "POST", phoneToken, form, event, 200, taken, []string{`event_type:"dial-in"`, `caller_id_num:"+7999"`}, event},
		{"form with a charset", "POST", phoneToken, form + "; charset=utf-8", event, 200, taken, []string{`call_id:"c"`}, event},
		{"form of no known type", "POST", phoneToken, "", event, 200, taken, []string{`call_id:"c"`}, event},
		{"query and form", "POST", phoneToken + "?EventType=answer&RecID=r", form, "EventType=hangup", 200, taken, []string{`event_type:"hangup"`, `rec_id:"r"`},
			"EventType=answer&RecID=r&EventType=hangup"},
		{"names in any case", "GET", phoneToken + "?eventtype=Hangup&SUBCALLID=s&agent_ID=7", "", "", 200, taken, []string{`event_type:"Hangup"`, `sub_call_id:"s"`, `agent_id:"7"`}, "eventtype=Hangup&SUBCALLID=s&agent_ID=7"},
		{"a token among the parameters", "GET", phoneToken + "?token=x&CallID=c", "", "", 200, taken, []string{`call_id:"c"`}, "token=x&CallID=c"},
		{"bad escapes and bytes", "GET", phoneToken + "?CallID=%zz;%ff", "", "", 200, taken, []string{`call_id:"%zz;\xef\xbf\xbd"`}, "CallID=%zz;%ff"},
		{"JSON", "POST", phoneToken, "application/json", `{"EventType":"dial-in"}`, 200, taken, nil, `{"EventType":"dial-in"}`},
		{"nothing", "POST", phoneToken, form, "", 200, taken, nil, ""},
		{"another method", "PUT", phoneToken, form, event, 405, `{"success":false,"message":"use GET or POST","requestId":"ID"}`, nil, ""},
		{"a long query", "GET", phoneToken + "?x=" + strings.Repeat("x", maxQuery), "", "", 414, `{"success":false,"message":"the query is longer than 16384 bytes","requestId":"ID"}`, nil, "x=" + strings.Repeat("x", maxQuery-2)},
		{"a long form", "POST", phoneToken, form, strings.Repeat("x", maxQuery+1), 413, `{"success":false,"message":"the form is longer than 16384 bytes","requestId":"ID"}`, nil, strings.Repeat("x", maxQuery)},
		{"an unknown token", "GET", phoneToken + "x?" + event, "", "", 404, "404 page not found\n", nil, ""},
		{"no token", "POST", "", form, event, 404, "404 page not found\n", nil, ""},
		{"more path", "GET", phoneToken + "/x", "", "", 404, "404 page not found\n", nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := len(f.items)
			status, answer, header := askPbx(t, test.method, front+pbxPath+test.path, test.contentType, test.body)
			if status != test.status || answer != test.answer {
				t.Errorf("%d %s, want %d %s", status, answer, test.status, test.answer)
			}
			if status == 404 {
				if len(f.items) != before || header.Get("X-Request-Id") != "" {
					t.Errorf("something was recorded of an unknown token")
				}
				return
			}
			poll(t, 5*time.Second, "router was told", func() bool { return f.last().GetRequestId() == header.Get("X-Request-Id") })
			item := f.last()
			text := prototext.MarshalOptions{}.Format(item)
			if strings.Contains(text, phoneToken) || strings.Contains(text, oldToken) {
				t.Errorf("the token got to router: %s", text)
			}
			if string(item.GetQuery()) != test.query {
				t.Errorf("query %.100q, want %.100q", item.GetQuery(), test.query)
			}
			if test.status != 200 {
				if r := item.GetRefused(); int(r.GetStatus()) != test.status || r.GetPath() != "/ext-event/acme-phone-33301" {
					t.Errorf("recorded as %v", r)
				}
				return
			}
			e := item.GetPbxEvent()
			if e.GetExtensionId() != "33301" || e.GetIntegration() != "acme" || e.GetExtension() != "0003*101" || e.GetType() != "phone" {
				t.Errorf("%v, want %s", e, on)
			}
			said := strings.Join(strings.Fields(prototext.MarshalOptions{EmitASCII: false}.Format(e.GetEvent())), " ")
			for _, field := range test.fields {
				if !strings.Contains(strings.ReplaceAll(said, ": ", ":"), strings.ReplaceAll(field, `\xef\xbf\xbd`, "\uFFFD")) {
					t.Errorf("%s is not in %s", field, said)
				}
			}
		})
	}
}

// TestPbxShare: what is beyond a token's share waits in the spool, goes to router at the rate of the share, and what is too much
// for that is refused. No other token notices, not even another one of the same extension.
func TestPbxShare(t *testing.T) {
	f := &fakeRouter{answer: accept}
	front, s := servePbx(t, f, pbxTable, map[string]string{"PBX_TOKEN_RATE": "0.001", "PBX_TOKEN_BURST": "3", "PBX_TOKEN_SPOOL": "2"})
	send := func(token, query string, want int) {
		t.Helper()
		status, answer, header := askPbx(t, "GET", front+pbxPath+token+"?"+query, "", "")
		if status != want || (status == 429) != (header.Get("Retry-After") != "") {
			t.Errorf("%d %s, want %d; Retry-After %q", status, answer, want, header.Get("Retry-After"))
		}
	}
	for i := range 3 {
		send(phoneToken, fmt.Sprint("CallID=within", i), 200)
	}
	send(phoneToken, "CallID=waits1", 200)
	send(phoneToken, "CallID=waits2", 200)
	send(phoneToken, "CallID=toomuch", 429)
	send(phoneToken, "x="+strings.Repeat("x", maxQuery), 429) // and is not recorded
	for i := range 3 {
		send(oldToken, fmt.Sprint("CallID=old", i), 200)
		send(queueToken, fmt.Sprint("CallID=queue", i), 200)
	}
	routed := func() (calls []string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, item := range f.items {
			if len(item.GetShare()) > 0 {
				t.Error("the share got to router")
			}
			calls = append(calls, item.GetPbxEvent().GetEvent().GetCallId())
		}
		slices.Sort(calls)
		return calls
	}
	within := []string{"old0", "old1", "old2", "queue0", "queue1", "queue2", "within0", "within1", "within2"}
	if got := routed(); !slices.Equal(got, within) {
		t.Errorf("router has %q, want %q", got, within)
	}
	if n := s.spool.spool.Stats().Items; n != 2 {
		t.Errorf("%d wait, want 2", n)
	}

	// With room in the share again, what waits goes before what comes; then all is as before. A new table changes nothing of it.
	shareOf := func() *share { return s.integrations.known.Load().share(sha256.Sum256([]byte(phoneToken))) }
	before := shareOf()
	s.integrations.take(accounts.List{Accounts: kept(t, pbxTable), NowMS: time.Now().UnixMilli()})
	if shareOf() != before {
		t.Error("a new table begins all shares anew")
	}
	limit := before.limit
	limit.SetBurst(1000)
	limit.SetLimit(rate.Inf)
	poll(t, 10*time.Second, "what waited is with router", func() bool {
		return slices.Equal(routed(), slices.Insert(slices.Clone(within), 6, "waits1", "waits2")) && s.spool.spool.Empty()
	})
	send(phoneToken, "CallID=zz", 200)
	if got := routed(); got[len(got)-1] != "zz" || !s.spool.spool.Empty() {
		t.Errorf("router has %q", got)
	}
}

// Who comes while others wait waits behind them; places that are given back twice are not more.
func TestShare(t *testing.T) {
	s := &share{limit: rate.NewLimiter(rate.Inf, 1), room: 1}
	if s.over() || !s.wait() || !s.over() || s.wait() {
		t.Errorf("%d wait", s.waiting.Load())
	}
	s.left()
	s.left() // one of an earlier process
	if s.over() || !s.wait() || s.wait() {
		t.Errorf("%d wait", s.waiting.Load())
	}
}

// All that waits for its share fills a part of the spool; the rest is for callbacks while router is away.
func TestPbxShareOfTheSpool(t *testing.T) {
	f := &fakeRouter{answer: func(*routerv1.RouteItem) *routerv1.RouteAnswer { return nil }}
	front, s := servePbx(t, f, pbxTable, map[string]string{"PBX_TOKEN_RATE": "0.001", "PBX_TOKEN_BURST": "1", "PBX_TOKEN_SPOOL": "1000",
		"SPOOL_MAX_ITEMS": "50"})
	s.spool.away.Store(true)
	for i, want := range []int{200, 200, 200, 200, 200, 429} { // the first is within its share; of 50 items 5 are the part
		if status, answer, _ := askPbx(t, "GET", front+pbxPath+phoneToken+"?CallID="+fmt.Sprint(i), "", ""); status != want {
			t.Errorf("event %d: %d %s, want %d", i, status, answer, want)
		}
	}
	s.spool.away.Store(true)
	if status, answer, _ := askPbx(t, "GET", front+pbxPath+queueToken+"?CallID=other", "", ""); status != 200 {
		t.Errorf("another token: %d %s", status, answer)
	}
}

// TestPbxTokens: tokens come, end and go with the table, whether state tells it or the copy on disk does.
func TestPbxTokens(t *testing.T) {
	f := &fakeRouter{answer: accept}
	dir := t.TempDir()
	front, s := serveService(t, f, map[string]string{"SPOOL_DIR": dir})
	ask := func(token string, want int) {
		t.Helper()
		if status, answer, _ := askPbx(t, "GET", front.URL+pbxPath+token+"?CallID=c", "", ""); status != want {
			t.Errorf("%d %s, want %d", status, answer, want)
		}
	}
	// Nothing is known: neither can a token be told from nonsense, nor may an event be lost as if nobody had sent it.
	ask(phoneToken, 503)
	ask("nonsense", 503)

	now := time.Now()
	ending := `"tokens":["` + phoneToken + `"],"ending":[{"token":"` + oldToken + `","until":"` + now.Add(time.Hour).UTC().Format(time.RFC3339) + `"}]`
	rotated := kept(t, strings.Replace(pbxTable, `"tokens":["`+phoneToken+`","`+oldToken+`"]`, ending, 1))
	told := accounts.List{Accounts: append(rotated, &statev1.Account{Id: "pbx/broken", Settings: []byte("{")}), NowMS: now.UnixMilli()}
	s.integrations.take(told)
	ask(phoneToken, 200)
	ask(oldToken, 200)
	ask(queueToken, 200)
	ask("nonsense", 404)
	told.NowMS += time.Hour.Milliseconds() // by state's clock, which is the one that counts
	s.integrations.take(told)
	ask(phoneToken, 200)
	ask(oldToken, 404)
	s.integrations.take(accounts.List{NowMS: now.UnixMilli()})
	ask(phoneToken, 404)

	// A start without state knows what was known last.
	if err := s.integrations.save(told); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(s.integrations.path)
	if err != nil || bytes.Contains(data, []byte(phoneToken)) || bytes.Contains(data, []byte("whsec_")) {
		t.Errorf("the copy: %v %q", err, data)
	}
	again := newIntegrations(s.cfg.Pbx, dir, s.tel.Log())
	again.load()
	if event, err := again.event(phoneToken); err != nil || event.row.ExtensionID != "33301" {
		t.Errorf("the copy has %v, %v", event, err)
	}
	if err := os.WriteFile(s.integrations.path, []byte("\xff"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := newIntegrations(s.cfg.Pbx, dir, s.tel.Log())
	if broken.load(); broken.known.Load() != nil {
		t.Error("a broken copy was taken for a table")
	}
}

// TestPbxConfig: what is wrong is said.
func TestPbxConfig(t *testing.T) {
	_, err := config.LoadFrom[Config](map[string]string{"PBX_TOKEN_RATE": "-1", "PBX_TOKEN_BURST": "0", "PBX_TOKEN_SPOOL": "-1"})
	for _, want := range []string{"PBX_TOKEN_RATE:", "PBX_TOKEN_BURST:", "PBX_TOKEN_SPOOL:"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}
