package ingress

import (
	"bufio"
	"net/http"
	"strings"
	"testing"
	"time"

	"callrelay/platform/accounts"
)

// Pages of any origin may watch with a token, and read why they may not; tokens are made by servers, never by a page.
func TestCardsOfOtherOrigins(t *testing.T) {
	front, s := servePbx(t, &fakeRouter{answer: accept}, pbxTable, map[string]string{"CARDS_SECRET": strings.Repeat("s", 32)})
	s.cards.view.list(nil)
	const page, secret = "https://crm.example", "Bearer whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	ask := func(method, path, body string, header ...string) *http.Response {
		t.Helper()
		req, err := http.NewRequest(method, front+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	token := signCardToken([]byte(strings.Repeat("s", 32)), cardUser{"acme", "u101"}, time.Now().Add(time.Hour))
	const user = `{"integration":"acme","user":"u101"}`
	for _, test := range []struct {
		name   string
		resp   *http.Response
		status int
		origin string // who may read the answer
	}{
		{"asks whether it may", ask("OPTIONS", cardsWatchPath, "", "Origin", page, "Access-Control-Request-Method", "GET", "Access-Control-Request-Headers", "authorization"), 204, "*"},
		{"no token", ask("GET", cardsWatchPath, "", "Origin", page), 401, "*"},
		{"another method", ask("POST", cardsWatchPath, "", "Origin", page), 405, "*"},
		{"token in the URL", ask("GET", cardsWatchPath+"?token="+token, "", "Origin", page, "Last-Event-ID", "C/leg/3"), 200, "*"},
		{"token in a header", ask("GET", cardsWatchPath, "", "Origin", page, "Authorization", "Bearer "+token), 200, "*"},
		{"a page asks whether it may make one", ask("OPTIONS", cardsTokenPath, "", "Origin", page, "Access-Control-Request-Method", "POST"), 405, ""},
		{"a page makes one", ask("POST", cardsTokenPath, user, "Origin", page, "Sec-Fetch-Site", "cross-site", "Content-Type", "application/json", "Authorization", secret), 403, ""},
		{"a page sends a form", ask("POST", cardsTokenPath, user, "Content-Type", "text/plain", "Authorization", secret), 415, ""},
		{"a server makes one", ask("POST", cardsTokenPath, user, "Content-Type", "application/json", "Authorization", secret), 200, ""},
	} {
		h := test.resp.Header
		if test.resp.StatusCode != test.status || h.Get("Access-Control-Allow-Origin") != test.origin || h.Get("Access-Control-Allow-Credentials") != "" || h.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %s %v, want %d and origin %q", test.name, test.resp.Status, h, test.status, test.origin)
		}
		switch test.resp.StatusCode {
		case 204:
			if h.Get("Access-Control-Allow-Methods") != "GET" || !strings.Contains(h.Get("Access-Control-Allow-Headers"), "Authorization") {
				t.Errorf("%s: %v", test.name, h)
			}
		case 200:
			if test.origin == "*" {
				lines := bufio.NewScanner(test.resp.Body)
				for lines.Scan() && !strings.HasPrefix(lines.Text(), "event: ") {
				}
				if h.Get("Content-Type") != "text/event-stream" || lines.Text() != "event: cards" {
					t.Errorf("%s: %q %v", test.name, lines.Text(), h)
				}
			}
		}
	}
}

// A user whom no extension belongs to any more gets neither token nor stream.
func TestCardsFollowTheTable(t *testing.T) {
	_, s := servePbx(t, &fakeRouter{answer: accept}, pbxTable, map[string]string{})
	if _, err := s.cards.find("acme", "u101"); err != nil {
		t.Error(err)
	}
	s.integrations.take(accounts.List{Accounts: kept(t, strings.Replace(pbxTable, "u101", "u102", 1))})
	if _, err := s.cards.find("acme", "u101"); err == nil {
		t.Error("u101 is found, and has no extension any more")
	}
	if _, err := s.cards.find("acme", "u102"); err != nil {
		t.Error(err)
	}
}
