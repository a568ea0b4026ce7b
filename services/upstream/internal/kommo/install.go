package kommo

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/errkind"
)

const (
	installs    = "kommo-install/"
	codeLife    = 20 * time.Minute // of an authorization code
	noticeLife  = 24 * time.Hour   // of what is said about an installation that failed
	maxInstalls = 200
	maxCode     = 4096
	// sweepEvery is how often tokens and installations are looked at.
	sweepEvery = time.Minute
	// stopTime is how long a renewal may go on when the process stops.
	stopTime = 2 * time.Second
)

// Install keeps an authorization code; it is exchanged afterwards, because Kommo waits at most 3 seconds and never comes
// back. host is the redirect's referer, clientID its client_id (may be empty). The same code again is the same installation.
func (c *Client) Install(ctx context.Context, host, code, clientID string) error {
	switch {
	case c.options.ClientID == "":
		return errkind.Refused("no Kommo integration is configured (KOMMO_CLIENT_ID)")
	case !c.kommos(host):
		return errkind.Invalid("referer", "referer must be the host of a Kommo account, e.g. acme.%s", c.options.Domains[0])
	case code == "" || len(code) > maxCode:
		return errkind.Invalid("code", "code must be 1 to %d bytes", maxCode)
	case clientID != "" && clientID != c.options.ClientID:
		return errkind.Invalid("client_id", "client_id is not that of our integration")
	}
	waiting, err := c.options.Accounts.ListAccounts(ctx, &statev1.ListAccountsRequest{Prefix: installs})
	if err != nil {
		return err
	}
	if len(waiting.GetAccounts()) >= maxInstalls {
		return errkind.Limited(time.Minute, "%d installations are waiting already", maxInstalls)
	}
	sum := sha256.Sum256([]byte(code))
	id := installs + hex.EncodeToString(sum[:16])
	plain, err := json.Marshal(credentials{Code: code})
	if err != nil {
		return err
	}
	_, err = c.options.Accounts.PutAccount(ctx, &statev1.PutAccountRequest{Account: &statev1.Account{Id: id, Version: rand.Text(), Host: host,
		Credentials: c.options.Keys.Seal(plain, id), Expires: true, ExpiresInMs: codeLife.Milliseconds()}})
	if err == nil {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
	return err
}

// Connect keeps a long-lived access token: the simple way for one's own account. It answers the account's id.
func (c *Client) Connect(ctx context.Context, host, token string) (int64, error) {
	if !c.kommos(host) {
		return 0, errkind.Invalid("host", "host must be that of a Kommo account, e.g. acme.%s", c.options.Domains[0])
	}
	if token == "" || len(token) > maxCode || strings.ContainsAny(token, " \t\r\n") {
		return 0, errkind.Invalid("token", "token must be 1 to %d bytes without white space", maxCode)
	}
	about, r := c.who(ctx, host, token)
	if r.kind != done {
		return 0, errkind.Refused("the account cannot be connected: %s", r.reason)
	}
	return about.ID, c.connect(ctx, about.ID, host, credentials{AccessToken: token}, 0)
}

// Disconnect forgets an account and its credentials; NOT_FOUND: there is no such account, or no more.
func (c *Client) Disconnect(ctx context.Context, id int64) error {
	key := Destination + strconv.FormatInt(id, 10)
	for {
		found, err := c.options.Accounts.GetAccount(ctx, &statev1.GetAccountRequest{Id: key})
		if err != nil {
			return err
		}
		if found.GetAccount() == nil {
			return notConnected(id)
		}
		answer, err := c.options.Accounts.DeleteAccount(ctx, &statev1.DeleteAccountRequest{Id: key, ExpectedVersion: found.GetAccount().GetVersion()})
		if err != nil || answer.GetDeleted() {
			return err
		}
	}
}

// Configure replaces the settings of an account, which this package does not look into.
func (c *Client) Configure(ctx context.Context, id int64, settings []byte) error {
	s, err := c.load(ctx, Destination+strconv.FormatInt(id, 10))
	if err == nil && s == nil {
		err = errGone
	}
	if err == nil {
		_, err = c.update(ctx, s, func(record *statev1.Account, _ *credentials) bool {
			record.Settings = settings
			return true
		})
	}
	if errors.Is(err, errGone) {
		return notConnected(id)
	}
	return err
}

func notConnected(id int64) error { return errkind.NotFound("Kommo account %d is not connected", id) }

// who asks an account for its id, with a token that belongs to no stored account yet.
func (c *Client) who(ctx context.Context, host, token string) (about About, r result) {
	r = decode(c.round(ctx, host, call{endpoint: lookup, method: http.MethodGet, path: "/api/v4/account"},
		func(h http.Header) { h.Set("Authorization", "Bearer "+token) }), &about)
	if r.kind == done && about.ID <= 0 {
		r.kind, r.reason = unavailable, "Kommo's answer does not name the account"
	}
	return about, r
}

// connect stores an account's credentials, in place of what it had. life 0 = they do not end.
func (c *Client) connect(ctx context.Context, id int64, host string, secret credentials, life time.Duration) error {
	key := Destination + strconv.FormatInt(id, 10)
	s, err := c.load(ctx, key)
	if err != nil {
		return err
	}
	if s == nil {
		s = &session{record: &statev1.Account{Id: key}}
	}
	_, err = c.update(ctx, s, func(record *statev1.Account, now *credentials) bool {
		if secret.Install != "" && now.Install == secret.Install {
			return false // this installation is there; its tokens may have been renewed since
		}
		*now = secret
		record.Host, record.Notices = host, nil
		record.Expires, record.ExpiresInMs = life > 0, life.Milliseconds()
		return true
	})
	if errors.Is(err, errGone) {
		return errkind.Unavailable(err, "the account was disconnected at the same moment; try again")
	}
	return err
}

// Run renews tokens before they end and finishes installations, until ctx ends. Any number of processes may do so.
func (c *Client) Run(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		c.Sweep(ctx)
		select {
		case <-ctx.Done():
			c.finishWork()
			return
		case <-c.wake:
		case <-tick.C:
		}
	}
}

// finishWork lets renewals that are under way end: a reply that is lost costs one more request.
func (c *Client) finishWork() {
	done := make(chan struct{})
	go func() { c.work.Wait(); close(done) }()
	t := time.NewTimer(stopTime)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

// Sweep looks once at every account and installation.
func (c *Client) Sweep(ctx context.Context) {
	all, err := c.options.Accounts.ListAccounts(ctx, &statev1.ListAccountsRequest{Prefix: "kommo"})
	if err != nil {
		if ctx.Err() == nil {
			c.options.Log.Warn("kommo accounts cannot be read", "error", err)
		}
		return
	}
	for _, record := range all.GetAccounts() {
		if ctx.Err() != nil {
			return
		}
		s, err := c.unseal(record)
		if err != nil {
			c.options.Log.Error("kommo account", "error", err)
			continue
		}
		if strings.HasPrefix(record.GetId(), installs) {
			c.finish(ctx, s)
			continue
		}
		if id, err := strconv.ParseInt(strings.TrimPrefix(record.GetId(), Destination), 10, 64); err == nil {
			c.look(ctx, c.Account(id), s)
		}
	}
}

// look renews what ends soon, and seals again what an older key sealed.
func (c *Client) look(ctx context.Context, a *Account, s *session) {
	if s.revoked() == "" && s.credentials.RefreshToken != "" && s.ending(c.options.RefreshBefore) {
		if _, failed := a.renewed(ctx, s); failed != nil {
			c.options.Log.Warn("kommo tokens are not renewed yet", "account", a.key(), "reason", failed.reason)
		}
		return
	}
	if !c.options.Keys.Current(s.record.GetCredentials()) {
		if _, err := c.update(ctx, s, func(record *statev1.Account, _ *credentials) bool {
			return !c.options.Keys.Current(record.GetCredentials())
		}); err != nil {
			c.options.Log.Warn("kommo credentials are not sealed with the first key yet", "account", a.key(), "error", err)
		}
	}
}

// finish takes an installation the rest of its way. Each step is stored before the next, so that any process can go on:
// code -> tokens, stored in the installation -> the account's id, asked with them -> the account -> no installation.
func (c *Client) finish(ctx context.Context, s *session) {
	id, token := s.record.GetId(), rand.Text()
	asked := time.Now()
	lease, err := c.options.Accounts.AcquireAccount(ctx, &statev1.AcquireAccountRequest{Id: id, Token: token, ForMs: renewTime.Milliseconds()})
	if err != nil || !lease.GetAcquired() {
		return // another process does it, or the next sweep
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewTime)
	defer cancel()
	defer c.release(ctx, id, token)
	if s, err = c.load(ctx, id); err != nil || s == nil {
		return
	}
	if err := c.finishAlone(ctx, asked, s); err != nil {
		c.options.Log.Warn("kommo installation is not finished yet", "installation", id, "host", s.host, "error", c.words(err))
	}
}

func (c *Client) finishAlone(ctx context.Context, asked time.Time, s *session) error {
	id := s.record.GetId()
	if len(s.record.GetNotices()) > 0 {
		if s.ending(0) {
			return c.drop(ctx, s)
		}
		return nil
	}
	if s.credentials.AccessToken == "" {
		t, r := c.grant(ctx, asked, s.host, "authorization_code", s.credentials.Code)
		switch {
		case r.kind == unsent || r.kind == limited || r.kind == uncertain && !s.ending(0):
			// A code whose reply was lost may still work; when it does not, Kommo says so.
			return errors.New(r.reason)
		case r.kind != done:
			return c.failed(ctx, s, r.reason)
		}
		var err error
		if s, err = c.update(ctx, s, func(record *statev1.Account, now *credentials) bool {
			if now.AccessToken != "" {
				return false
			}
			*now = credentials{AccessToken: t.AccessToken, RefreshToken: t.RefreshToken}
			record.Expires, record.ExpiresInMs = true, t.ExpiresIn*1000
			return true
		}); err != nil {
			return err
		}
	}
	about, r := c.who(ctx, s.host, s.credentials.AccessToken)
	switch r.kind {
	case done:
	case unauthorized, held, invalid:
		return c.failed(ctx, s, r.reason)
	default:
		return errors.New(r.reason)
	}
	secret := s.credentials
	secret.Install = id
	if err := c.connect(ctx, about.ID, s.host, secret, max(time.Until(s.ends), time.Second)); err != nil {
		return err
	}
	c.options.Log.Info("kommo account connected", "account", about.ID, "host", s.host)
	return c.drop(ctx, s)
}

// failed leaves a notice for a person, for a day.
func (c *Client) failed(ctx context.Context, s *session, reason string) error {
	text := fmt.Sprintf("the installation of %s failed: %s; install the integration again", s.host, reason)
	c.options.Log.Error("kommo installation", "installation", s.record.GetId(), "text", text)
	_, err := c.update(ctx, s, func(record *statev1.Account, now *credentials) bool {
		*now = credentials{}
		record.Notices = []*statev1.Notice{{Code: noticeInstall, Text: text}}
		record.Expires, record.ExpiresInMs = true, noticeLife.Milliseconds()
		return true
	})
	return err
}

func (c *Client) drop(ctx context.Context, s *session) error {
	_, err := c.options.Accounts.DeleteAccount(ctx, &statev1.DeleteAccountRequest{Id: s.record.GetId(), ExpectedVersion: s.record.GetVersion()})
	return err
}
