package kommo

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"strings"
	"time"
)

// widgetTokenLife is how long a one-time token lasts (facts/kommo.md 6.5).
const widgetTokenLife = 30 * time.Minute

// WidgetToken is a one-time token as Kommo gives it to a widget of the integration for a request of the user's: the header
// X-Auth-Token.
func (a *Account) WidgetToken(user int64) string { return a.SignWidgetToken(a.WidgetClaims(user)) }

// WidgetClaims are those of a WidgetToken, for tests that change them.
func (a *Account) WidgetClaims(user int64) map[string]any {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	now, sub := a.server.cfg.Now(), a.host
	if i := strings.IndexByte(sub, '.'); i >= 0 {
		sub = sub[:i]
	}
	redirect, err := url.Parse(a.server.cfg.RedirectURI)
	if err != nil {
		redirect = &url.URL{}
	}
	return object{"iss": "https://" + a.host, "aud": redirect.Scheme + "://" + redirect.Host, "jti": rand.Text(), "iat": now.Unix(), "nbf": now.Unix(),
		"exp": now.Add(widgetTokenLife).Unix(), "account_id": a.id, "subdomain": sub, "client_uuid": a.server.cfg.ClientID, "user_id": user, "is_admin": false}
}

// SignWidgetToken signs claims as Kommo does.
func (a *Account) SignWidgetToken(claims map[string]any) string {
	text := base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"JWT","alg":"HS256"}`)) + "." + base64.RawURLEncoding.EncodeToString(mustJSON(claims))
	mac := hmac.New(sha256.New, []byte(a.server.cfg.ClientSecret))
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
