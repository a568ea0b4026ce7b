package ingress

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"

	"callrelay/platform/config"
)

const (
	phoneToken = "f2a8vdrfae0s1ku5d2rj3iximjf3twyz"
	oldToken   = "bd8e4091b2abed48387a0efc2c86c82b"
	queueToken = "617ad7ee1f02aa6b3e60f12a978d68ba"
)

// integrations writes a table of one PBX and returns its path.
func integrations(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pbx.json")
	table := `{"integrations":[{"id":"acme","prefix":"0003","extension_len":3,
		"webhook":{"url":"https://crm.example/","secret":"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"},"extensions":[
		{"id":"33301","name":"0003*101","type":"phone","user":"u101","tokens":["` + phoneToken + `","` + oldToken + `"]},
		{"id":"33334","name":"0003*700","type":"queue","tokens":["` + queueToken + `"]}]}]}`
	if err := os.WriteFile(path, []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// askPbx sends a request and returns its answer without the request id.
func askPbx(t *testing.T, method, address, contentType, body string) (status int, answer string, header http.Header) {
	t.Helper()
	request, err := http.NewRequest(method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, regexp.MustCompile(`"requestId":"[A-Z2-7]{26}"`).ReplaceAllString(string(text), `"requestId":"ID"`), resp.Header
}

func TestPbxEvents(t *testing.T) {
	f := &fakeRouter{answer: accept}
	front := serve(t, f, map[string]string{"PBX_INTEGRATIONS": integrations(t), "AMEYO_PATH_SECRET": "0123456789abcdef"})
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
			status, answer, header := askPbx(t, test.method, front.URL+pbxPath+test.path, test.contentType, test.body)
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

// TestPbxShare: one token's flood is refused and harms no other.
func TestPbxShare(t *testing.T) {
	f := &fakeRouter{answer: accept}
	front := serve(t, f, map[string]string{"PBX_INTEGRATIONS": integrations(t), "PBX_TOKEN_RATE": "0.001", "PBX_TOKEN_BURST": "3"})
	for i, want := range []int{200, 200, 200, 429} {
		status, _, header := askPbx(t, "GET", front.URL+pbxPath+phoneToken+"?CallID=c", "", "")
		if status != want || (status == 429) != (header.Get("Retry-After") != "") {
			t.Errorf("event %d: %d, want %d; Retry-After %q", i, status, want, header.Get("Retry-After"))
		}
	}
	if status, _, _ := askPbx(t, "GET", front.URL+pbxPath+oldToken+"?CallID=c", "", ""); status != 429 {
		t.Errorf("the other token of the same extension has a share of its own: %d", status)
	}
	if status, _, _ := askPbx(t, "GET", front.URL+pbxPath+queueToken+"?CallID=c", "", ""); status != 200 {
		t.Errorf("another extension: %d", status)
	}
}

// TestPbxConfig: what is wrong is said, without tokens.
func TestPbxConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pbx.json")
	data, err := os.ReadFile(integrations(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.ReplaceAll(data, []byte(queueToken), []byte(phoneToken)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = config.LoadFrom[Config](map[string]string{"PBX_INTEGRATIONS": path, "PBX_TOKEN_RATE": "-1", "PBX_TOKEN_BURST": "0"})
	for _, want := range []string{"PBX_INTEGRATIONS: integrations[0] (acme): extensions[1]: tokens[0] is there twice", "PBX_TOKEN_RATE:", "PBX_TOKEN_BURST:"} {
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), phoneToken) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	if _, err := config.LoadFrom[Config](map[string]string{"PBX_INTEGRATIONS": "/nowhere"}); err == nil {
		t.Error("a file that is not there")
	}
}
