package ingress

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"callrelay/callback"
	"callrelay/callback/pbxtable"
	routerv1 "callrelay/gen/callrelay/router/v1"
	upstreamv1 "callrelay/gen/callrelay/upstream/v1"
	"callrelay/platform/config"
)

// kommoPath begins the routes of Kommo. These and those of the call-result window are all of them; docs/routes.md has them too.
const (
	kommoPath     = "/v1/kommo/"
	kommoCalls    = "POST /v1/kommo/{account_id}/calls"
	kommoRedirect = "GET /v1/kommo/oauth/callback"
)

const (
	// redirectTime is how long an installation may take to be kept: Kommo's redirect waits 3 seconds.
	redirectTime = 2 * time.Second
	// signedTolerance is how far the time of a signature may be off.
	signedTolerance = 5 * time.Minute
)

// kommoConfig is what can be set of the calls of VoIP services.
type kommoConfig struct {
	UpstreamAddr string        `env:"UPSTREAM_GRPC_ADDR" envDefault:"127.0.0.1:9083" desc:"Where upstream serves gRPC, for the command line and for Kommo's install redirect."`
	Secrets      config.Secret `env:"KOMMO_CALLS_SECRETS" desc:"Who may report calls for a Kommo account: e.g. 9001=whsec_... with the base64 of 24 to 64 random bytes, several separated by commas. It signs by Standard Webhooks or is sent as bearer token. Empty: nobody may."`
	App          kommoApp
}

// kommoSecret is that of one account.
type kommoSecret struct {
	text string
	key  []byte
}

// secrets reads KOMMO_CALLS_SECRETS. An error never shows one.
func (c *kommoConfig) secrets() (map[int64]kommoSecret, error) {
	secrets, n := map[int64]kommoSecret{}, 0
	var errs []error
	for entry := range strings.SplitSeq(c.Secrets.Reveal(), ",") {
		n++
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		id, text, _ := strings.Cut(entry, "=")
		account, err := accountID(strings.TrimPrefix(id, "kommo/"))
		key, errKey := pbxtable.Secret(text).Key()
		_, again := secrets[account]
		if err != nil || errKey != nil || again {
			errs = append(errs, fmt.Errorf("KOMMO_CALLS_SECRETS: entry %d: want different accounts, each as ACCOUNT=whsec_ and the base64 of 24 to 64 random bytes", n))
			continue
		}
		secrets[account] = kommoSecret{text, key}
	}
	return secrets, errors.Join(errs...)
}

func accountID(text string) (int64, error) {
	id, err := strconv.ParseInt(text, 10, 64)
	if err == nil && (id <= 0 || text != strconv.FormatInt(id, 10)) {
		err = errors.New("not the id of an account")
	}
	return id, err
}

// authentic says whether the request knows the secret: as bearer token, or by a signature of Standard Webhooks.
func (s kommoSecret) authentic(h http.Header, body []byte, now time.Time) bool {
	if token, ok := strings.CutPrefix(h.Get("Authorization"), "Bearer "); ok {
		return subtle.ConstantTimeCompare([]byte(token), []byte(s.text)) == 1
	}
	id, at := h.Get("Webhook-Id"), h.Get("Webhook-Timestamp")
	seconds, err := strconv.ParseInt(at, 10, 64)
	if off := now.Sub(time.Unix(seconds, 0)); id == "" || err != nil || off > signedTolerance || off < -signedTolerance {
		return false
	}
	mac := hmac.New(sha256.New, s.key)
	fmt.Fprintf(mac, "%s.%s.%s", id, at, body)
	want := []byte("v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	for _, signature := range strings.Fields(h.Get("Webhook-Signature")) {
		if hmac.Equal([]byte(signature), want) {
			return true
		}
	}
	return false
}

// kommoHandler serves what VoIP services and Kommo itself send.
func (s *Service) kommoHandler() (http.Handler, error) {
	secrets, err := s.cfg.Kommo.secrets()
	tokens, wrong := s.cfg.Kommo.App.tokens()
	if err = errors.Join(err, wrong); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle(kommoCalls, s.traced(s.identified(func(ctx context.Context, w http.ResponseWriter, r *http.Request, req *request) {
		s.kommoCall(ctx, w, r, req, secrets)
	})))
	mux.Handle(kommoWindow, s.traced(s.identified(func(ctx context.Context, w http.ResponseWriter, r *http.Request, req *request) {
		s.kommoResult(ctx, w, r, req, tokens)
	})))
	mux.HandleFunc(kommoPreflight, s.kommoPreflight)
	mux.Handle(kommoRedirect, s.identified(s.kommoInstall))
	return mux, nil
}

// readBody reads a body of at most so many bytes.
func readBody(r *http.Request, most int) ([]byte, *refusal) {
	body, err := io.ReadAll(io.LimitReader(r.Body, int64(most)+1))
	switch {
	case err != nil:
		return nil, &refusal{status: http.StatusBadRequest, message: "the body was cut off"}
	case len(body) > most:
		return nil, &refusal{status: http.StatusRequestEntityTooLarge, message: fmt.Sprintf("the body is longer than %d bytes", most)}
	}
	return body, nil
}

// kommoCall takes one report. Only what its sender signed is recorded.
func (s *Service) kommoCall(ctx context.Context, w http.ResponseWriter, r *http.Request, req *request, secrets map[int64]kommoSecret) {
	body, e := readBody(r, maxQuery)
	if e != nil {
		writeError(w, e, req.id)
		return
	}
	account, err := accountID(r.PathValue("account_id"))
	secret, known := secrets[account]
	if err != nil || !known || !secret.authentic(r.Header, body, req.received) {
		s.strangers.noticed(ctx, "kommo", req.peer)
		writeError(w, &refusal{status: http.StatusUnauthorized,
			message: "sign the report with the account's secret (Standard Webhooks) or send it as bearer token; see KOMMO_CALLS_SECRETS"}, req.id)
		return
	}
	c, malformed := callback.DecodeKommoCall(body)
	req.query = []byte(url.Values{"account_id": {strconv.FormatInt(account, 10)}, "call_id": {c.CallID}, "direction": {c.Direction}, "phone": {c.Phone},
		"duration": {strconv.FormatInt(c.Duration, 10)}, "status": {c.Status}, "started_at": {strconv.FormatInt(c.StartedAt, 10)},
		"user_id": {strconv.FormatInt(c.UserID, 10)}, "user": {c.User}, "did": {c.DID}}.Encode())
	m := &routerv1.KommoCall{AccountId: account, CallId: c.CallID, Direction: c.Direction, Phone: c.Phone, Duration: c.Duration, Status: c.Status,
		StartedAt: c.StartedAt, UserId: c.UserID, User: c.User, Did: c.DID}
	if len(req.query) > maxQuery {
		req.query = req.query[:maxQuery]
	}
	ack, err := s.callbacks.accept(ctx, req, callback.CallKey("kommo", r.PathValue("account_id")+"/"+c.CallID), malformed,
		&routerv1.RouteItem{Callback: &routerv1.RouteItem_KommoCall{KommoCall: m}})
	if err != nil {
		writeError(w, refusalOf(err), req.id)
		return
	}
	answer, _ := ackWriter{}.Marshal(ack)
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer)
}

// kommoInstall takes the redirect with which Kommo ends an installation. It is answered once the code is kept; it is exchanged
// afterwards, and only with a host below KOMMO_DOMAINS.
func (s *Service) kommoInstall(ctx context.Context, w http.ResponseWriter, r *http.Request, _ *request) {
	ctx, cancel := context.WithTimeout(ctx, redirectTime)
	defer cancel()
	q := r.URL.Query()
	_, err := upstreamv1.NewKommoServiceClient(s.upstream).Install(ctx, &upstreamv1.InstallRequest{
		Code: q.Get("code"), Referer: q.Get("referer"), ClientId: q.Get("client_id")})
	if err != nil {
		e := refusalOf(err)
		s.tel.Log().Warn("a Kommo installation was not taken", "field", e.field, "error", e.message)
		writeError(w, e, "")
		return
	}
	writeText(w, http.StatusOK, "callrelay is being connected; you can close this window")
}
