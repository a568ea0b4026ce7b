package kommo

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	statev1 "callrelay/gen/callrelay/state/v1"
)

const (
	// renewTime is how long one renewal may take, and how long nobody else may begin one. No request starts that might
	// outlive it, so that two never hold the same refresh token.
	renewTime = 2 * time.Minute
	// sessionLife is how long credentials are used without looking whether somebody changed them.
	sessionLife = time.Minute
	// poll is how often somebody who waits for another process's renewal looks.
	poll = 250 * time.Millisecond
)

// Codes of notices.
const (
	noticeRevoked = "revoked" // nothing can be sent until somebody connects the account again
	noticeRefused = "refused"
	noticeInstall = "install_failed"
)

// credentials are what is sealed.
type credentials struct {
	AccessToken string `json:"access_token,omitempty"`
	// RefreshToken is empty for a long-lived access token.
	RefreshToken string `json:"refresh_token,omitempty"`
	// Code is an authorization code that was not exchanged yet.
	Code string `json:"code,omitempty"`
	// Install is the installation these tokens came from.
	Install string `json:"install,omitempty"`
}

// session is an account as it was read: never changed, only replaced.
type session struct {
	record      *statev1.Account
	host        string
	credentials credentials
	ends        time.Time // of the access token; zero = it does not end
	read        time.Time
}

func (s *session) ending(within time.Duration) bool {
	return !s.ends.IsZero() && time.Until(s.ends) < within
}

// revoked is why nothing can be sent until a person connects the account again; empty = something can.
func (s *session) revoked() string {
	for _, n := range s.record.GetNotices() {
		if n.GetCode() == noticeRevoked || n.GetCode() == noticeRefused {
			return n.GetText()
		}
	}
	return ""
}

// load reads an account; nil = it is not connected.
func (c *Client) load(ctx context.Context, id string) (*session, error) {
	answer, err := c.options.Accounts.GetAccount(ctx, &statev1.GetAccountRequest{Id: id})
	if err != nil || answer.GetAccount() == nil {
		return nil, err
	}
	return c.unseal(answer.GetAccount())
}

func (c *Client) unseal(record *statev1.Account) (*session, error) {
	s := &session{record: record, host: record.GetHost(), read: time.Now()}
	if record.GetExpires() {
		s.ends = s.read.Add(time.Duration(record.GetExpiresInMs()) * time.Millisecond)
	}
	plain, err := c.options.Keys.Open(record.GetCredentials(), record.GetId())
	if err == nil {
		err = json.Unmarshal(plain, &s.credentials)
	}
	if err != nil {
		return nil, fmt.Errorf("the credentials of %s cannot be opened (SECRETS_KEY): %w", record.GetId(), err)
	}
	return s, nil
}

// errGone: the account was disconnected meanwhile.
var errGone = errors.New("the account is not connected any more")

// update changes an account by compare-and-set, again and again until it is written or change says that there is nothing to
// do. A put whose outcome is unknown is repeated verbatim.
func (c *Client) update(ctx context.Context, s *session, change func(*statev1.Account, *credentials) bool) (*session, error) {
	for {
		record, secret := proto.CloneOf(s.record), s.credentials
		record.ExpiresInMs = time.Until(s.ends).Milliseconds()
		if !change(record, &secret) {
			return s, nil
		}
		plain, err := json.Marshal(secret)
		if err != nil {
			return nil, err
		}
		record.Credentials, record.Version = c.options.Keys.Seal(plain, record.GetId()), rand.Text()
		answer, err := c.put(ctx, &statev1.PutAccountRequest{Account: record, ExpectedVersion: s.record.GetVersion()})
		switch {
		case err != nil:
			return nil, err
		case answer.GetWritten():
			return c.unseal(record)
		case answer.GetCurrent() == nil:
			return nil, errGone
		}
		if s, err = c.unseal(answer.GetCurrent()); err != nil {
			return nil, err
		}
	}
}

// put repeats a put until state answers it or ctx ends: new tokens that are not stored would be lost with this process.
func (c *Client) put(ctx context.Context, req *statev1.PutAccountRequest) (*statev1.PutAccountResponse, error) {
	for {
		answer, err := c.options.Accounts.PutAccount(ctx, req)
		if err == nil || sleep(ctx, poll) != nil {
			return answer, err
		}
	}
}

// notice tells a person what is wrong with the account, once, unless somebody connected it again meanwhile.
func (a *Account) notice(ctx context.Context, s *session, code, text string) {
	c := a.client
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.options.Request)
	defer cancel()
	now, err := c.update(ctx, s, func(record *statev1.Account, now *credentials) bool {
		known := slices.ContainsFunc(record.GetNotices(), func(n *statev1.Notice) bool { return n.GetCode() == code })
		if known || now.AccessToken != s.credentials.AccessToken {
			return false
		}
		record.Notices = append(record.Notices, &statev1.Notice{Code: code, Text: text})
		return true
	})
	if err == nil {
		a.use(now)
	}
	c.options.Log.Error("kommo account", "account", a.key(), "notice", code, "text", text, "error", err)
}

// open is a session with which a request can be made.
func (a *Account) open(ctx context.Context) (*session, *result) {
	a.mu.Lock()
	s := a.session
	a.mu.Unlock()
	if s == nil || time.Since(s.read) > sessionLife || s.ending(a.client.options.Total) || s.revoked() != "" {
		var err error
		if s, err = a.reload(ctx); err != nil {
			return nil, &result{kind: unsent, reason: "the account cannot be read, nothing was sent: " + a.client.words(err)}
		}
	}
	switch {
	case s == nil || s.credentials.AccessToken == "":
		return nil, &result{kind: held, reason: "the Kommo account " + a.key() + " is not connected"}
	case s.revoked() != "":
		return nil, &result{kind: held, reason: s.revoked()}
	case s.ending(a.client.options.Total):
		return a.renewed(ctx, s)
	}
	return s, nil
}

func (a *Account) reload(ctx context.Context) (*session, error) {
	s, err := a.client.load(ctx, a.key())
	if err == nil {
		a.use(s)
	}
	return s, err
}

func (a *Account) use(s *session) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.session = s
}

// renewed is a session with another access token than the one that ended or was refused. A renewal that has begun goes on
// when its caller leaves: its reply must not be lost.
func (a *Account) renewed(ctx context.Context, stale *session) (*session, *result) {
	type outcome struct {
		s      *session
		failed *result
	}
	ended := make(chan outcome, 1)
	a.client.work.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewTime)
		defer cancel()
		s, failed := a.renew(ctx, stale.credentials.AccessToken)
		if failed == nil {
			a.use(s)
		}
		ended <- outcome{s, failed}
	})
	select {
	case o := <-ended:
		return o.s, o.failed
	case <-ctx.Done():
		return nil, &result{kind: unsent, reason: "the access token is still being renewed, nothing was sent"}
	}
}

// renew makes this process the only one that renews the account's tokens, or waits for the one that does.
func (a *Account) renew(ctx context.Context, stale string) (*session, *result) {
	c, token := a.client, rand.Text()
	for {
		asked := time.Now()
		lease, err := c.options.Accounts.AcquireAccount(ctx, &statev1.AcquireAccountRequest{Id: a.key(), Token: token, ForMs: renewTime.Milliseconds()})
		if err != nil {
			return nil, &result{kind: unsent, reason: "the tokens cannot be renewed now, nothing was sent: " + c.words(err)}
		}
		if lease.GetAcquired() {
			s, failed := a.renewAlone(ctx, asked, stale)
			c.release(ctx, a.key(), token)
			return s, failed
		}
		if s, err := c.load(ctx, a.key()); err == nil && s != nil && s.credentials.AccessToken != stale {
			return s, nil
		}
		if sleep(ctx, poll) != nil {
			return nil, &result{kind: unsent, reason: "another process renews the tokens and is not done yet, nothing was sent"}
		}
	}
}

// release gives a lease back; one that cannot be given back ends by itself.
func (c *Client) release(ctx context.Context, id, token string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tellTime)
	defer cancel()
	_, _ = c.options.Accounts.ReleaseAccount(ctx, &statev1.ReleaseAccountRequest{Id: id, Token: token})
}

// renewAlone renews the tokens that are stored, if they are still those that ended. New ones are used only once stored.
func (a *Account) renewAlone(ctx context.Context, asked time.Time, stale string) (*session, *result) {
	c := a.client
	s, err := c.load(ctx, a.key())
	switch {
	case err != nil:
		return nil, &result{kind: unsent, reason: "the account cannot be read, nothing was sent: " + c.words(err)}
	case s == nil:
		return nil, &result{kind: held, reason: errGone.Error()}
	case s.credentials.AccessToken != stale:
		return s, nil // somebody else did it
	case s.credentials.RefreshToken == "":
		text := "Kommo does not accept the long-lived access token: it ended or was revoked; make a new one and connect the account again"
		a.notice(ctx, s, noticeRevoked, text)
		return nil, &result{kind: held, reason: text}
	case s.revoked() != "":
		return nil, &result{kind: held, reason: s.revoked()}
	}
	used := s.credentials.RefreshToken
	host, tokens, r := c.refresh(ctx, asked, s)
	switch r.kind {
	case done:
	case unauthorized, invalid:
		text := "Kommo does not renew the access" + strings.TrimPrefix(r.reason, "Kommo does not accept the access token") + "; connect the account again"
		a.notice(ctx, s, noticeRevoked, text)
		return nil, &result{kind: held, status: r.status, reason: text}
	case held, limited:
		return nil, &r
	default:
		// Whatever became of the refresh, the delivery's own request did not leave.
		return nil, &result{kind: unsent, status: r.status, after: r.after, reason: "the access token cannot be renewed now, nothing was sent: " + r.reason}
	}
	s, err = c.update(ctx, s, func(record *statev1.Account, now *credentials) bool {
		if now.RefreshToken != used {
			return false // connected again meanwhile: those tokens are newer
		}
		now.AccessToken, now.RefreshToken = tokens.AccessToken, tokens.RefreshToken
		record.Host, record.Expires, record.ExpiresInMs = host, true, tokens.ExpiresIn*1000
		return true
	})
	if err != nil {
		return nil, &result{kind: unsent, reason: "new tokens could not be stored, so they are not used: " + c.words(err)}
	}
	return s, nil
}

// tokens is Kommo's answer to a grant.
type tokens struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
	// ExpiresIn is in seconds.
	ExpiresIn int64 `json:"expires_in"`
}

// refresh asks for new tokens. Where the reply was lost it asks once more with the same refresh token, which works until the
// new ones are used. Where the account is not found at its host, it asks where it went.
func (c *Client) refresh(ctx context.Context, asked time.Time, s *session) (host string, t tokens, r result) {
	ask := func(host string) (tokens, result) {
		t, r := c.grant(ctx, asked, host, "refresh_token", s.credentials.RefreshToken)
		if r.kind == uncertain {
			t, r = c.grant(ctx, asked, host, "refresh_token", s.credentials.RefreshToken)
		}
		return t, r
	}
	t, r = ask(s.host)
	if r.status != http.StatusUnauthorized && r.status != http.StatusNotFound {
		return s.host, t, r
	}
	if moved := c.whereabouts(ctx, s); moved != "" && moved != s.host {
		c.options.Log.Info("kommo account has another host", "account", s.record.GetId(), "host", moved)
		t, r = ask(moved)
		return moved, t, r
	}
	return s.host, t, r
}

// grant exchanges a code or refresh token. asked is when the lease was asked for: nothing is sent that might outlive it.
func (c *Client) grant(ctx context.Context, asked time.Time, host, kind, value string) (t tokens, r result) {
	if time.Since(asked)+c.options.Request > renewTime {
		return t, result{kind: unsent, reason: "the time for it ran out"}
	}
	ctx, cancel := context.WithDeadline(ctx, asked.Add(renewTime))
	defer cancel()
	field := "refresh_token"
	if kind == "authorization_code" {
		field = "code"
	}
	body, err := json.Marshal(map[string]string{"client_id": c.options.ClientID, "client_secret": c.options.ClientSecret,
		"grant_type": kind, field: value, "redirect_uri": c.options.RedirectURI})
	if err != nil {
		return t, result{kind: held, reason: err.Error()}
	}
	r = c.round(ctx, host, call{endpoint: "oauth", method: http.MethodPost, path: "/oauth2/access_token", body: body}, func(http.Header) {})
	if r.kind == done && (json.Unmarshal(r.body, &t) != nil || t.AccessToken == "" || t.RefreshToken == "" || t.ExpiresIn <= 0) {
		r.kind, r.reason = uncertain, "Kommo's answer has no tokens"
	}
	r.body = nil // it may hold tokens
	return t, r
}

// whereabouts asks the host that knows every account where this one is now; empty = it does not say.
func (c *Client) whereabouts(ctx context.Context, s *session) string {
	parts := strings.Split(s.credentials.AccessToken, ".")
	if len(parts) != 3 {
		return ""
	}
	var claims struct {
		APIDomain string `json:"api_domain"`
	}
	plain, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(plain, &claims) != nil {
		return ""
	}
	r := c.round(ctx, claims.APIDomain, call{endpoint: "oauth", method: http.MethodGet, path: "/oauth2/account/current/subdomain"},
		func(h http.Header) { h.Set("X-Refresh-Token", s.credentials.RefreshToken) })
	var answer struct {
		Subdomain string `json:"subdomain"`
		Domain    string `json:"domain"`
	}
	if r.kind != done || json.Unmarshal(r.body, &answer) != nil {
		return ""
	}
	host := answer.Domain
	if !strings.HasPrefix(host, answer.Subdomain+".") {
		host = answer.Subdomain + "." + answer.Domain
	}
	return host // round asks nobody who is not Kommo's
}
