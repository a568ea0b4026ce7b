package explain

import (
	"os"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"callrelay/callback"
	"callrelay/services/router/ameyo"
)

func session(changes ...func(*ameyo.Config)) *Session {
	rules := []Rules{{Name: "in force", Config: ameyo.DefaultConfig()}}
	for _, change := range changes {
		cfg := ameyo.DefaultConfig()
		change(cfg)
		rules = append(rules, Rules{Name: "other", Config: cfg})
	}
	return NewSession(rules, callback.Options{}, nil)
}

// The same callback in every form in which people have it.
func TestForms(t *testing.T) {
	const query = "unique_id=193421&customerId=5502&customerCRTId=d336&systemDisposition=BUSY&shareablePhonesDialIndex=0&phoneList=%7B%22phoneList%22%3A%5B%221%22%2C%222%22%5D%7D"
	for name, text := range map[string]string{
		"url in the settings": "http://relay.test/index.php?" + query,
		"clean route":         "https://relay.test:8443/secret-secret-secret/v1/ameyo/call-end?" + query,
		"query":               query,
		"quoted":              `"http://relay.test/index.php?` + query + `"`,
		"copied from a page":  "http://relay.test/index.php?" + strings.ReplaceAll(query, "&", "&amp;"),
		"access log":          `192.0.2.10 - - [20/Nov/2026:20:24:25 +0900] "GET /index.php?` + query + ` HTTP/1.1" 200 61 "-" "curl/7.88.1"`,
		"behind another path": "http://proxy.test/ameyo/cb?" + query,
		"daily log":           `2026-11-20 20:24:25 | [99fe] | incoming_get | Received dialer callback | query={"unique_id":"193421","customerId":"5502","customerCRTId":"d336","systemDisposition":"BUSY","shareablePhonesDialIndex":"0","phoneList":"{\"phoneList\":[\"1\",\"2\"]}"} | client={"uri":"/index.php?x"}`,
		"json":                `{"unique_id":193421,"customerId":"5502","customerCRTId":"d336","systemDisposition":"BUSY","shareablePhonesDialIndex":0,"phoneList":{"phoneList":["1","2"]}}`,
		"print_r":             "Array\n(\n    [unique_id] => 193421\n    [customerId] => 5502\n    [customerCRTId] => d336\n    [systemDisposition] => BUSY\n    [shareablePhonesDialIndex] => 0\n    [phoneList] => {\"phoneList\":[\"1\",\"2\"]}\n)\n",
		"unescaped in a url":  `curl "http://relay.test/index.php?unique_id=193421&customerId=5502&customerCRTId=d336&systemDisposition=BUSY&shareablePhonesDialIndex=0&phoneList=["1","2"]" -v`,
		"unescaped query":     "unique_id=193421&customerId=5502&customerCRTId=d336&systemDisposition=BUSY&shareablePhonesDialIndex=0&phoneList=[\"1\",\"2\"]",
	} {
		a, err := session().Explain(text, 1)
		if err != nil || a.Refused != "" || a.Call != "ameyo/193421" || a.Source != SourceEnd || a.Decisions[0].Rule != "4" || a.Decisions[0].Flow != ameyo.FlowWait {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	a, _ := session().Explain("http://relay.test/call_start.php?cs_unique_id=7&userId=a&phone=1", 1)
	if a.Source != SourceStart || len(a.Decisions[0].Payloads) != 1 || string(a.Decisions[0].Payloads[0]) != `{"predictiveCallCreateCallStart":{"callId":7,"predictiveStaffId":"a","targetTel":"1"}}` {
		t.Errorf("call start: %+v", a)
	}
	for _, text := range []string{"", "hello", "http://relay.test/", "{", "2026-11-20 20:24:25 | [99fe] | incoming_get | x"} {
		if a, _ := session().Explain(text, 1); a.Refused == "" || a.Decisions != nil {
			t.Errorf("%q: %+v, want to be told what can be pasted", text, a)
		}
	}
	if a, _ := session().Explain("unique_id=1&systemDisposition=CONNECTED", 1); a.Field != "customerCRTId" {
		t.Errorf("refused for %q", a.Field)
	}
}

// Callbacks are decided one after the other: phone 2 finds what phone 1 left, and a repeat is one.
func TestOneAfterTheOther(t *testing.T) {
	s := session(func(c *ameyo.Config) { c.Profile = "hangup-signal" })
	const call = `unique_id=1&customerId=2&customerCRTId=3&phoneList=["1","2"]&systemDisposition=`
	first, _ := s.Explain(call+"BUSY&shareablePhonesDialIndex=0", 1000)
	if first.Decisions[0].Flow != ameyo.FlowWait || first.Decisions[1].Flow != ameyo.FlowNotAnswer || !first.Differs() {
		t.Errorf("phone 1: %+v", first)
	}
	second, _ := s.Explain(call+"NO_ANSWER&shareablePhonesDialIndex=1", 2000)
	if d := second.Decisions[0]; !d.Phone1StateUsed || d.Rule != "5" || !strings.Contains(string(d.Payloads[0]), `"errorInfo1":"BUSY","errorInfo2":"NO_ANSWER"`) ||
		!strings.Contains(d.Reason, "phones=2+") {
		t.Errorf("phone 2: %+v", d)
	}
	again, _ := s.Explain(call+"NO_ANSWER&shareablePhonesDialIndex=1", 3000)
	if d := again.Decisions[0]; d.Flow != FlowDuplicate || d.Of != "callback 2" || d.Gate != ameyo.GateProcessed {
		t.Errorf("again: %+v", d)
	}
}

// The sample of the PHP relay's logs: the relay decides every line as the old one did.
func TestSampleOfThePHPRelay(t *testing.T) {
	compared := compare(t, string(read(t)))
	if len(compared) != 7 {
		t.Fatalf("%d callbacks, want 7", len(compared))
	}
	for _, c := range compared {
		if c.Difference != "" {
			t.Errorf("%s %s: %s", c.Line, c.RequestID, c.Difference)
		}
	}
}

// What differs is found, whatever it is.
func TestDifferencesAreFound(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"a payload", `"errorInfo":"PROVIDER_TEMP_FAILURE"}}`, `"errorInfo":"BUSY"}}`, "payloads differ"},
		{"not a repeat", "| dedupe | Skipped duplicate request", "| general | passed", "does not tell"},
		{"not refused", "| response | Skipped error response", "| general | x", "does not tell"},
		{"sent instead of stored", `| state | Stored phone1 status; waiting for phone2`,
			`| upstream_request | Prepared upstream request | payload={"predictiveCallCreateNotAnswer":{"callId":193421,"callTime":"2026-11-20 20:24:25","errorInfo1":"x"}}`, "createNotAnswer; callrelay: wait"},
	} {
		text := strings.ReplaceAll(string(read(t)), c.old, c.new)
		if text == string(read(t)) {
			t.Fatalf("%s: nothing was changed", c.name)
		}
		found := false
		for _, one := range compare(t, text) {
			found = found || strings.Contains(one.Difference, c.want)
		}
		if !found {
			t.Errorf("%s: no difference says %q", c.name, c.want)
		}
	}
}

func read(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/php-relay.txt")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func compare(t *testing.T, text string) []Compared {
	t.Helper()
	var logs Logs
	if err := logs.Read("sample.txt", strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	return logs.Compare(session(), callback.DefaultZone())
}

// No text makes it panic, and whatever is explained is refused or decided by each of the rules.
func TestAnyText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.StringMatching(`(/index\.php\?)?((unique_id|systemDisposition|hangupCauseCode|phoneList|cs_unique_id)=[A-Z0-9%{}"\[\],]{0,12}&?){0,6}`),
			rapid.StringMatching(`2026-11-20 20:24:25 \| \[[a-f0-9]{0,8}\] \| incoming_get \|[ |a-z]{0,10}query=[{}":a-z0-9,]{0,40}`)).Draw(t, "text")
		a, err := session(func(c *ameyo.Config) { c.Profile = "hangup-signal" }).Explain(text, time.Now().UnixMilli())
		if err != nil || (a.Refused == "") == (len(a.Decisions) != 2) {
			t.Fatalf("%+v, %v", a, err)
		}
		var logs Logs
		if err := logs.Read("x", strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
		logs.Compare(session(), time.UTC)
	})
}
