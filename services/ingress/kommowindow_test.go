package ingress

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	errorsv1 "callrelay/gen/callrelay/errors/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/accounts"
)

const windowSecret = "client-secret"

func windowEnv() map[string]string {
	return map[string]string{"KOMMO_CLIENT_ID": "client", "KOMMO_CLIENT_SECRET": windowSecret, "KOMMO_REDIRECT_URI": "https://relay.example/v1/kommo/oauth/callback"}
}

// serveWindow is serveService with the account 9001 connected.
func serveWindow(t *testing.T, f *fakeRouter) string {
	t.Helper()
	front, s := serveService(t, f, windowEnv())
	s.kommoHosts.take(accounts.List{Accounts: []*statev1.Account{{Id: "kommo/9001", Host: "acme.kommo.com"}, {Id: "kommo/9002", Host: "other.kommo.com"}}})
	return front.URL
}

// windowToken is a token with some claims changed; nil: left out.
func windowToken(method jwt.SigningMethod, secret any, change jwt.MapClaims) string {
	now := time.Now().Unix()
	claims := jwt.MapClaims{"iss": "https://acme.kommo.com", "aud": "https://relay.example", "jti": "t1", "iat": now, "nbf": now, "exp": now + 1800,
		"account_id": 9001, "user_id": 8, "subdomain": "acme", "client_uuid": "client"}
	maps.Copy(claims, change)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	text, err := jwt.NewWithClaims(method, claims).SignedString(secret)
	if err != nil {
		panic(err)
	}
	return text
}

func goodToken(change jwt.MapClaims) string {
	return windowToken(jwt.SigningMethodHS256, []byte(windowSecret), change)
}

// windowAnswer is what the widget gets.
type windowAnswer struct {
	Status             int
	Success, Duplicate bool
	Message, Field     string
	RequestID          string
	Entity             struct {
		Type string
		ID   int64
	}
	Header http.Header
}

func askWindow(t *testing.T, method, address, token, origin, body string) (a windowAnswer) {
	t.Helper()
	about := map[string]string{"X-Auth-Token": token}
	if origin != "" {
		about["Origin"] = origin
	}
	resp, text := sendBody(t, method, address, about, body)
	if resp.Header.Get("Content-Type") == "application/json" {
		if err := json.Unmarshal([]byte(text), &a); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	a.Status, a.Header = resp.StatusCode, resp.Header
	return a
}

const savedBody = `{"state":"saved","call_id":"a","direction":"inbound","phone":"+13055550142","duration":7,"entity":{"type":"lead","id":9},"result":"will buy"}`

// Only a token that Kommo made for this integration and account, and that is still good, reaches router.
func TestKommoWindowTokens(t *testing.T) {
	f := &fakeRouter{answer: accept}
	path := serveWindow(t, f) + "/v1/kommo/9001/call-results"
	now := time.Now().Unix()
	for name, test := range map[string]struct {
		token string
		says  string // empty: it is taken
	}{
		"good":                    {goodToken(nil), ""},
		"numbers as text":         {goodToken(jwt.MapClaims{"account_id": "9001", "user_id": "8"}), ""},
		"a clock that is off":     {goodToken(jwt.MapClaims{"exp": now - 10, "nbf": now + 10, "iat": now + 10}), ""},
		"nobody":                  {goodToken(jwt.MapClaims{"user_id": nil}), ""},
		"none":                    {"", "malformed"},
		"no token":                {"x", "malformed"},
		"too long":                {goodToken(jwt.MapClaims{"subdomain": strings.Repeat("x", maxWidgetToken)}), "longer"},
		"another secret":          {windowToken(jwt.SigningMethodHS256, []byte("x"), nil), "signature"},
		"another algorithm":       {windowToken(jwt.SigningMethodHS512, []byte(windowSecret), nil), "signing method HS512"},
		"no algorithm":            {windowToken(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil), "signing method none"},
		"over":                    {goodToken(jwt.MapClaims{"exp": now - 40}), "expired"},
		"without end":             {goodToken(jwt.MapClaims{"exp": nil}), "exp"},
		"for ever":                {goodToken(jwt.MapClaims{"exp": now + 90_000}), "lasts"},
		"not yet":                 {goodToken(jwt.MapClaims{"nbf": now + 40}), "not valid yet"},
		"from later":              {goodToken(jwt.MapClaims{"iat": now + 40}), "before issued"},
		"for somebody else":       {goodToken(jwt.MapClaims{"aud": "https://else.example"}), "audience"},
		"for nobody":              {goodToken(jwt.MapClaims{"aud": nil}), "aud"},
		"of another integration":  {goodToken(jwt.MapClaims{"client_uuid": "else"}), "client_uuid"},
		"of another account":      {goodToken(jwt.MapClaims{"account_id": 9002}), "account_id"},
		"of another host":         {goodToken(jwt.MapClaims{"iss": "https://other.kommo.com"}), "iss"},
		"without an id":           {goodToken(jwt.MapClaims{"jti": nil}), "jti"},
		"an account that is none": {goodToken(jwt.MapClaims{"account_id": "x"}), "malformed"},
	} {
		before := len(f.items)
		a := askWindow(t, "POST", path, test.token, "", savedBody)
		if taken := test.says == ""; (a.Status == 200) != taken || (len(f.items) > before) != taken {
			t.Errorf("%s: %d %s, %d items", name, a.Status, a.Message, len(f.items)-before)
		} else if !taken && (a.Status != 401 || !strings.Contains(a.Message, test.says)) {
			t.Errorf("%s: %d %s, want %q", name, a.Status, a.Message, test.says)
		}
	}
	if a := askWindow(t, "POST", strings.Replace(path, "9001", "09001", 1), goodToken(nil), "", savedBody); a.Status != 401 {
		t.Errorf("not the id of an account: %d %s", a.Status, a.Message)
	}

	unset := serve(t, f, map[string]string{"KOMMO_CLIENT_SECRET": windowSecret})
	if a := askWindow(t, "POST", unset.URL+"/v1/kommo/9001/call-results", goodToken(nil), "", savedBody); a.Status != 404 || !strings.Contains(a.Message, "KOMMO_CLIENT_ID") {
		t.Errorf("not set up: %d %s", a.Status, a.Message)
	}
}

// The same token and body is one request, however often it comes; another body is another, and the token is named to router by what
// gives it away to nobody.
func TestKommoWindowRequests(t *testing.T) {
	f := &fakeRouter{answer: accept}
	path := serveWindow(t, f) + "/v1/kommo/9001/call-results"
	first := askWindow(t, "POST", path, goodToken(nil), "", savedBody)
	item := f.last()
	m := item.GetKommoWindow()
	if first.RequestID == "" || first.RequestID != item.GetRequestId() || first.RequestID != first.Header.Get("X-Request-Id") {
		t.Errorf("request %q, to router %q, in the header %q", first.RequestID, item.GetRequestId(), first.Header.Get("X-Request-Id"))
	}
	want := &routerv1.KommoWindow{AccountId: 9001, CallId: "a", State: "saved", Direction: "inbound", Phone: "+13055550142", Duration: 7, UserId: 8,
		EntityType: "lead", EntityId: 9, Result: "will buy", Token: m.GetToken(), TokenForMs: m.GetTokenForMs()}
	if m.String() != want.String() || !strings.HasPrefix(m.GetToken(), "kommo/9001/") || len(m.GetToken()) > 128 || strings.Contains(m.GetToken(), "t1") {
		t.Errorf("to router %v", m)
	}
	if left := time.Duration(m.GetTokenForMs()) * time.Millisecond; left < 29*time.Minute || left > 31*time.Minute {
		t.Errorf("the token is remembered for %v", left)
	}
	if q := string(item.GetQuery()); !strings.Contains(q, "state=saved") || !strings.Contains(q, "entity=lead%2F9") || !strings.HasSuffix(q, "&result=will+buy") {
		t.Errorf("query %s", q)
	}
	again := askWindow(t, "POST", path, goodToken(jwt.MapClaims{"exp": time.Now().Unix() + 1700}), "", savedBody)
	other := askWindow(t, "POST", path, goodToken(nil), "", strings.Replace(savedBody, "will buy", "will not", 1))
	if token := f.last().GetKommoWindow().GetToken(); again.RequestID != first.RequestID || other.RequestID == first.RequestID || token != m.GetToken() {
		t.Errorf("requests %s, %s, %s; tokens %s, %s", first.RequestID, again.RequestID, other.RequestID, m.GetToken(), token)
	}
	if next := askWindow(t, "POST", path, goodToken(jwt.MapClaims{"jti": "t2"}), "", savedBody); next.RequestID == first.RequestID || f.last().GetKommoWindow().GetToken() == m.GetToken() {
		t.Error("another token is the same request")
	}
}

// What router says becomes the answer.
func TestKommoWindowAnswers(t *testing.T) {
	f := &fakeRouter{}
	path := serveWindow(t, f) + "/v1/kommo/9001/call-results"
	long := `{"state":"saved","call_id":"a","direction":"inbound","result":"` + strings.Repeat("é", 5000) + `"}`
	for i, test := range []struct {
		body   string
		answer *routerv1.RouteAnswer
		want   string
	}{
		{savedBody, &routerv1.RouteAnswer{}, "200 true false  lead 0"},
		{savedBody, &routerv1.RouteAnswer{Duplicate: true}, "200 true true  lead 0"},
		{savedBody, &routerv1.RouteAnswer{Window: &routerv1.WindowReply{Pending: true}}, "202 true false  lead 0"},
		{savedBody, &routerv1.RouteAnswer{Window: &routerv1.WindowReply{Conflict: true, EntityType: "lead", EntityId: 7}}, "409 false false  lead 7"},
		{savedBody, &routerv1.RouteAnswer{Duplicate: true, Window: &routerv1.WindowReply{Conflict: true, EntityType: "lead", EntityId: 7}}, "409 false true  lead 7"},
		{savedBody, &routerv1.RouteAnswer{Error: &errorsv1.Error{Kind: errorsv1.Kind_KIND_FORBIDDEN, Message: "used"}}, "401 false false  lead 0"},
		{savedBody, &routerv1.RouteAnswer{Error: &errorsv1.Error{Kind: errorsv1.Kind_KIND_NOT_FOUND, Message: "not connected"}}, "404 false false  lead 0"},
		{savedBody, &routerv1.RouteAnswer{Error: &errorsv1.Error{Kind: errorsv1.Kind_KIND_UNAVAILABLE}}, "200 true false  lead 0"}, // spooled
		{long, &routerv1.RouteAnswer{}, "200 true false  lead 0"},
		{strings.Replace(savedBody, "inbound", "up", 1), &routerv1.RouteAnswer{}, "400 false false direction lead 0"},
		{strings.Replace(savedBody, `"a"`, `"b`+strings.Repeat("x", maxWindow)+`"`, 1), &routerv1.RouteAnswer{}, "413 false false  lead 0"},
	} {
		f.mu.Lock()
		f.answer = func(item *routerv1.RouteItem) *routerv1.RouteAnswer {
			if item.GetKommoWindow() == nil || item.GetSpooled() {
				return &routerv1.RouteAnswer{}
			}
			return &routerv1.RouteAnswer{Error: test.answer.GetError(), Duplicate: test.answer.GetDuplicate(), Window: test.answer.GetWindow()}
		}
		f.mu.Unlock()
		a := askWindow(t, "POST", path, goodToken(jwt.MapClaims{"jti": fmt.Sprint("t", i)}), "", test.body)
		entity := a.Entity
		if entity.Type == "" {
			entity.Type = "lead"
		}
		if got := fmt.Sprintf("%d %v %v %s %s %d", a.Status, a.Success, a.Duplicate, a.Field, entity.Type, entity.ID); got != test.want || a.RequestID == "" || a.Message == "" {
			t.Errorf("%d: %s %q, want %s", i, got, a.Message, test.want)
		}
	}
}

// Pages of the account itself may send and read the answer, whatever it is; no others.
func TestKommoWindowOrigins(t *testing.T) {
	f := &fakeRouter{answer: accept}
	front := serveWindow(t, f)
	for origin, allowed := range map[string]bool{
		"https://acme.kommo.com": true, "": false, "null": false, "*": false, "http://acme.kommo.com": false, "https://acme.kommo.com:444": false,
		"https://acme.kommo.com.evil.example": false, "https://other.kommo.com": false, "https://kommo.com": false,
	} {
		want := ""
		if allowed {
			want = origin
		}
		asked := askWindow(t, "OPTIONS", front+"/v1/kommo/9001/call-results", "", origin, "")
		if got := asked.Header.Get("Access-Control-Allow-Origin"); got != want || (asked.Status == 204) != allowed || asked.Header.Get("Vary") != "Origin" {
			t.Errorf("%q: %d, allowed for %q", origin, asked.Status, got)
		}
		if got := asked.Header.Get("Access-Control-Allow-Headers"); strings.Contains(got, "X-Auth-Token") != allowed {
			t.Errorf("%q may send %q", origin, got)
		}
		for token, status := range map[string]int{goodToken(nil): 200, "x": 401} {
			a := askWindow(t, "POST", front+"/v1/kommo/9001/call-results", token, origin, savedBody)
			if got := a.Header.Get("Access-Control-Allow-Origin"); a.Status != status || got != want {
				t.Errorf("%q: %d, allowed for %q", origin, a.Status, got)
			}
		}
	}
	if a := askWindow(t, "OPTIONS", front+"/v1/kommo/9003/call-results", "", "https://", ""); a.Status != 403 || a.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("an account that is not connected: %d", a.Status)
	}
	if a := askWindow(t, "GET", front+"/v1/kommo/9001/call-results", "", "", ""); a.Status != 405 {
		t.Errorf("GET: %d", a.Status)
	}
}
