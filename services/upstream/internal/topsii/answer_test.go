package topsii

import (
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"callrelay/services/upstream/internal/delivery"
)

// TestClassify has every row of the answer table (spec/ameyo-topsii.md, HTTP out).
func TestClassify(t *testing.T) {
	now := time.Date(2026, 3, 6, 13, 20, 5, 0, time.UTC)
	fail := func(code, sub string) string {
		return `{"result":"fail","messageCode":"` + code + `","subMessageCode":"` + sub + `"}`
	}
	for name, c := range map[string]struct {
		response
		want   delivery.Outcome
		reason string // part of it
		after  time.Duration
	}{
		"success":                          {response: response{status: 200, body: []byte(`{"count":-1,"result":"success"}`)}, want: delivery.Delivered},
		"success, other fields mistyped":   {response: response{status: 200, body: []byte(`{"result":"success","messageCode":7}`)}, want: delivery.Delivered},
		"success, but not with status 200": {response: response{status: 202, body: []byte(`{"result":"success"}`)}, want: delivery.Transport, reason: "HTTP 202"},

		"no such call":              {response: response{status: 200, body: []byte(fail("WTYP0010", "WPRDEXTC3201"))}, want: delivery.Dead, reason: "the call does not exist in TopS.II (WPRDEXTC3201): check callId"},
		"no such staff":             {response: response{status: 200, body: []byte(fail("WTYP0010", "WPRDEXTC3202"))}, want: delivery.Dead, reason: "cannot identify the staff (WPRDEXTC3202): check predictiveStaffId"},
		"staff not logged in":       {response: response{status: 200, body: []byte(fail("WTYP0010", "WPRDEXTC3203"))}, want: delivery.Dead, reason: "not logged in to TopS.II (WPRDEXTC3203)"},
		"another logical error":     {response: response{status: 200, body: []byte(fail("WTYP0010", "WPRDEXTC9999"))}, want: delivery.Dead, reason: "WPRDEXTC9999"},
		"logical error, no more":    {response: response{status: 200, body: []byte(`{"result":"fail","messageCode":"WTYP0010"}`)}, want: delivery.Dead, reason: "no sub-code"},
		"licence":                   {response: response{status: 200, body: []byte(fail("WTYP0020", ""))}, want: delivery.Hold, reason: "licence"},
		"API key":                   {response: response{status: 200, body: []byte(fail("WTYP0030", ""))}, want: delivery.Hold, reason: "API key"},
		"401":                       {response: response{status: 401}, want: delivery.Hold, reason: "HTTP 401"},
		"403":                       {response: response{status: 403}, want: delivery.Hold, reason: "HTTP 403"},
		"404":                       {response: response{status: 404}, want: delivery.Hold, reason: "TOPSII_PATH_PREFIX"},
		"301":                       {response: response{status: 301, header: http.Header{"Location": {"https://crm.example.jp/x?key=1"}}}, want: delivery.Hold, reason: "redirect to https://crm.example.jp (HTTP 301)"},
		"302 to nowhere":            {response: response{status: 302}, want: delivery.Hold, reason: "redirect (HTTP 302)"},
		"304":                       {response: response{status: 304}, want: delivery.Hold},
		"401, its body was cut off": {response: response{status: 401, readErr: "the connection was cut"}, want: delivery.Hold},

		"application error":         {response: response{status: 200, body: []byte(fail("ETYP0040", ""))}, want: delivery.AppError, reason: "ETYP0040"},
		"another failure":           {response: response{status: 200, body: []byte(fail("XTYP9999", ""))}, want: delivery.AppError, reason: "XTYP9999"},
		"a failure without a code":  {response: response{status: 200, body: []byte(`{"result":"fail"}`)}, want: delivery.AppError},
		"success written otherwise": {response: response{status: 200, body: []byte(`{"result":"SUCCESS"}`)}, want: delivery.AppError},
		"a code without a result":   {response: response{status: 200, body: []byte(`{"messageCode":"WTYP0030"}`)}, want: delivery.Hold},

		"500":                        {response: response{status: 500}, want: delivery.Transport, reason: "HTTP 500"},
		"502":                        {response: response{status: 502}, want: delivery.Transport},
		"400":                        {response: response{status: 400}, want: delivery.Transport},
		"429, come back in 120 s":    {response: response{status: 429, header: http.Header{"Retry-After": {"120"}}}, want: delivery.Transport, after: 2 * time.Minute},
		"503, come back at 13:25":    {response: response{status: 503, header: http.Header{"Retry-After": {"Fri, 06 Mar 2026 13:25:05 GMT"}}}, want: delivery.Transport, after: 5 * time.Minute},
		"503, come back last year":   {response: response{status: 503, header: http.Header{"Retry-After": {"Thu, 06 Mar 2025 13:25:05 GMT"}}}, want: delivery.Transport},
		"503, come back next year":   {response: response{status: 503, header: http.Header{"Retry-After": {"Sat, 06 Mar 2027 13:25:05 GMT"}}}, want: delivery.Transport, after: time.Hour},
		"503, come back in ages":     {response: response{status: 503, header: http.Header{"Retry-After": {"9999999999"}}}, want: delivery.Transport, after: time.Hour},
		"503, come back before":      {response: response{status: 503, header: http.Header{"Retry-After": {"-5"}}}, want: delivery.Transport},
		"503, come back whenever":    {response: response{status: 503, header: http.Header{"Retry-After": {"soon"}}}, want: delivery.Transport},
		"500, its body was cut off":  {response: response{status: 500, readErr: "the connection was cut"}, want: delivery.Transport},
		"HTML":                       {response: response{status: 200, body: []byte("<html>maintenance</html>")}, want: delivery.Transport, reason: "not one of TopS.II"},
		"nothing":                    {response: response{status: 200}, want: delivery.Transport},
		"JSON of somebody else":      {response: response{status: 200, body: []byte(`{"status":"ok"}`)}, want: delivery.Transport},
		"JSON, but no object":        {response: response{status: 200, body: []byte(`"success"`)}, want: delivery.Transport},
		"success and something more": {response: response{status: 200, body: []byte(`{"result":"success"}<script>`)}, want: delivery.Transport},
		"the answer was cut off":     {response: response{status: 200, body: []byte(`{"result":`), readErr: "the connection was cut"}, want: delivery.Uncertain, reason: "the connection was cut"},
	} {
		t.Run(name, func(t *testing.T) {
			got := classify(c.response, now)
			if got.Outcome != c.want {
				t.Errorf("outcome %v (%s), want %v", got.Outcome, got.Reason, c.want)
			}
			if !strings.Contains(got.Reason, c.reason) {
				t.Errorf("reason %q, want %q in it", got.Reason, c.reason)
			}
			if (got.Reason == "") != (c.want == delivery.Delivered) {
				t.Errorf("reason %q of outcome %v", got.Reason, c.want)
			}
			if got.RetryAfter != c.after {
				t.Errorf("retry after %v, want %v", got.RetryAfter, c.after)
			}
			if got.HTTPCode != c.status || string(got.Body) != string(c.body) {
				t.Errorf("kept %d %q", got.HTTPCode, got.Body)
			}
		})
	}
}

func TestClassifyKeepsWhatTopSIISaid(t *testing.T) {
	got := classify(response{status: 200, body: []byte(`{"result":"fail","messageCode":"WTYP0010","subMessageCode":"WPRDEXTC3201"}`)}, time.Now())
	if got.Result != "fail" || got.MessageCode != "WTYP0010" || got.SubMessageCode != "WPRDEXTC3201" {
		t.Errorf("kept %q %q %q", got.Result, got.MessageCode, got.SubMessageCode)
	}
}

// What comes from outside must not break a protobuf string or fill the journal.
func TestClassifyBoundsWhatComesFromOutside(t *testing.T) {
	long := strings.Repeat("\u96fb", 40<<10)
	got := classify(response{status: 200, body: []byte(`{"result":"fail","messageCode":"` + long + "\xff" + `"}`)}, time.Now())
	if len(got.Body) != keptBody || len(got.MessageCode) > keptWord || len(got.Reason) > 300 {
		t.Errorf("kept %d bytes of body, %d of code, %d of reason", len(got.Body), len(got.MessageCode), len(got.Reason))
	}
	if !utf8.ValidString(got.MessageCode) || !utf8.ValidString(got.Reason) {
		t.Error("invalid UTF-8 passed")
	}
}
