package kommo

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

const codeLife = 20 * time.Minute

// grant is one pair of tokens. previous works until the new tokens are used.
type grant struct {
	refresh, previous string
	access            map[string]time.Time // access token -> its end
	newest            string
	revoked           bool
}

// Code is an authorization code as the redirect carries it: single use, 20 minutes.
func (a *Account) Code() string {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	if a.codes == nil {
		a.codes = map[string]time.Time{}
	}
	code := "def50200" + rand.Text()
	a.codes[code] = a.server.cfg.Now().Add(codeLife)
	return code
}

// Revoke ends all tokens, as uninstalling does.
func (a *Account) Revoke() {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	a.longLived = ""
	for _, g := range a.grants {
		g.revoked = true
	}
}

// Rename gives the account another host; nothing answers at the old one.
func (a *Account) Rename(host string) {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	a.host = host
}

// Refreshes counts token replies to refresh grants.
func (a *Account) Refreshes() int {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	return a.refreshes
}

// authorize refuses a request without a valid access token, and everything of an unpaid account.
func (a *Account) authorize(r request) *reply {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if token == "" || !a.knows(token) {
		return problem(http.StatusUnauthorized, "Unauthorized")
	}
	if a.unpaid {
		return problem(http.StatusPaymentRequired, "Your account has not been paid.")
	}
	return nil
}

func (a *Account) knows(token string) bool {
	if token == a.longLived {
		return true
	}
	for _, g := range a.grants {
		if ends, ok := g.access[token]; ok && !g.revoked && a.server.cfg.Now().Before(ends) {
			if token == g.newest {
				g.previous = "" // the new one is used
			}
			return true
		}
	}
	return false
}

// oauth answers the two routes that take no bearer. a is nil where the host is nobody's.
func (s *Server) oauth(a *Account, r request) *reply {
	if r.op == "oauth.subdomain" {
		return s.subdomain(r)
	}
	if a == nil {
		return page(http.StatusNotFound)
	}
	var said struct {
		ClientID     string `json:"client_id"`
		ClientSecret string `json:"client_secret"`
		GrantType    string `json:"grant_type"`
		Code         string `json:"code"`
		RefreshToken string `json:"refresh_token"`
		RedirectURI  string `json:"redirect_uri"`
	}
	if err := json.Unmarshal(r.body, &said); err != nil {
		return problem(http.StatusBadRequest, "The body is not JSON.")
	}
	if said.ClientID != s.cfg.ClientID || said.ClientSecret != s.cfg.ClientSecret || said.RedirectURI != s.cfg.RedirectURI {
		return oauthProblem(http.StatusBadRequest, "Client authentication failed", "Check client_id, client_secret and redirect_uri.")
	}
	switch said.GrantType {
	case "authorization_code":
		ends, known := a.codes[said.Code]
		delete(a.codes, said.Code)
		if !known || !s.cfg.Now().Before(ends) {
			return oauthProblem(http.StatusBadRequest, "Authorization code has been revoked", "Check the `code` parameter.")
		}
		g := &grant{access: map[string]time.Time{}}
		a.grants = append(a.grants, g)
		return a.issue(g)
	case "refresh_token":
		for _, g := range a.grants {
			if g.revoked || said.RefreshToken == "" || said.RefreshToken != g.refresh && said.RefreshToken != g.previous {
				continue
			}
			a.refreshes++
			g.previous = said.RefreshToken
			if s.cfg.StrictRotation {
				g.previous = ""
			}
			return a.issue(g)
		}
		return oauthProblem(http.StatusUnauthorized, "Token has been revoked", "The refresh token is invalid.")
	}
	return oauthProblem(http.StatusBadRequest, "Check the `grant_type` parameter", "The grant type is unknown.")
}

func (a *Account) issue(g *grant) *reply {
	life := a.server.cfg.TokenLife
	g.newest = "eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9." + base64.RawURLEncoding.EncodeToString(mustJSON(object{
		"aud": a.server.cfg.ClientID, "jti": rand.Text(), "account_id": a.id, "base_domain": "kommo.com", "api_domain": apiDomain})) + ".c2ln"
	g.refresh = "def502" + rand.Text()
	g.access[g.newest] = a.server.cfg.Now().Add(life)
	return &reply{status: http.StatusOK, contentType: "application/json", body: mustJSON(object{
		"token_type": "Bearer", "expires_in": int64(life / time.Second), "access_token": g.newest, "refresh_token": g.refresh})}
}

// subdomain says where an account is now, to who has a refresh token of it.
func (s *Server) subdomain(r request) *reply {
	token := r.Header.Get("X-Refresh-Token")
	for _, a := range s.accounts {
		for _, g := range a.grants {
			if token != "" && !g.revoked && (g.refresh == token || g.previous == token) {
				sub, domain, _ := strings.Cut(a.host, ".")
				return ok(object{"id": a.id, "subdomain": sub, "domain": a.host, "top_level_domain": domain[strings.LastIndex(domain, ".")+1:]})
			}
		}
	}
	return oauthProblem(http.StatusUnauthorized, "Token has been revoked", "The refresh token is invalid.")
}

func oauthProblem(status int, hint, detail string) *reply {
	return &reply{status: status, contentType: "application/problem+json", body: mustJSON(object{
		"hint": hint, "title": http.StatusText(status), "type": "https://httpstatus.es/" + http.StatusText(status), "status": status, "detail": detail})}
}
