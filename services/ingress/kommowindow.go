package ingress

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"callrelay/callback"
	errorsv1 "callrelay/gen/callrelay/errors/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
	"callrelay/platform/accounts"
	"callrelay/platform/config"
	"callrelay/platform/errkind"
)

// kommoWindow is where the call-result window in Kommo sends what a manager does. Its page is of another origin: a browser asks first.
const (
	kommoWindow    = "POST /v1/kommo/{account_id}/call-results"
	kommoPreflight = "OPTIONS /v1/kommo/{account_id}/call-results"
)

const (
	// maxWindow bounds a body, in bytes: 5000 characters of text, however they are written.
	maxWindow = 64 << 10
	// maxWidgetToken bounds the header, in bytes, and maxWidgetLife how long a token may last. Kommo's last half an hour.
	maxWidgetToken = 4 << 10
	maxWidgetLife  = 24 * time.Hour
	// widgetLeeway is how far Kommo's clock may be off.
	widgetLeeway = 30 * time.Second
)

// kommoApp is the integration whose widget has the window. Upstream reads the same settings.
type kommoApp struct {
	ID          string        `env:"KOMMO_CLIENT_ID" desc:"The Kommo integration's id; empty: only long-lived tokens work, and no call-result window."`
	Secret      config.Secret `env:"KOMMO_CLIENT_SECRET" desc:"The Kommo integration's secret, with which Kommo also signs the tokens of the call-result window."`
	RedirectURI string        `env:"KOMMO_REDIRECT_URI" desc:"The Kommo integration's redirect address, exactly as it is configured there."`
}

// complete says whether tokens can be checked.
func (a *kommoApp) complete() bool { return a.ID != "" && a.Secret != "" && a.RedirectURI != "" }

// windowTokens checks the tokens of the window.
type windowTokens struct {
	client string
	key    []byte
	parser *jwt.Parser
}

// tokens is nil where the settings are not complete. Kommo makes tokens for scheme and host of the redirect address.
func (a *kommoApp) tokens() (*windowTokens, error) {
	u, err := url.Parse(a.RedirectURI)
	if a.RedirectURI != "" && (err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "") {
		return nil, errors.New("KOMMO_REDIRECT_URI: must be an absolute http or https address")
	}
	if !a.complete() {
		return nil, nil
	}
	return &windowTokens{a.ID, []byte(a.Secret.Reveal()), jwt.NewParser(jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}),
		jwt.WithAudience(u.Scheme+"://"+u.Host), jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(widgetLeeway))}, nil
}

// widgetClaims are those of a one-time token of Kommo (facts/kommo.md 6.5). The account and the user are the manager's. Kommo's example
// has numbers; a number as text would be one, too.
type widgetClaims struct {
	jwt.RegisteredClaims
	ClientUUID string      `json:"client_uuid"`
	AccountID  json.Number `json:"account_id"`
	UserID     json.Number `json:"user_id"`
}

// user is the manager; 0 = the token does not say.
func (c *widgetClaims) user() int64 {
	id, err := c.UserID.Int64()
	if err != nil {
		return 0
	}
	return max(id, 0)
}

// claims are those of a token for an account whose host is known, or empty. An error says what is wrong with it, and shows nothing of it.
func (t *windowTokens) claims(token string, account int64, host string, now time.Time) (*widgetClaims, error) {
	if len(token) > maxWidgetToken {
		return nil, fmt.Errorf("it is longer than %d bytes", maxWidgetToken)
	}
	c := &widgetClaims{}
	_, err := t.parser.ParseWithClaims(token, c, func(*jwt.Token) (any, error) { return t.key, nil })
	switch {
	case errors.Is(err, jwt.ErrTokenMalformed): // the rest of the message may show parts of it
		return nil, jwt.ErrTokenMalformed
	case err != nil:
		return nil, err
	case c.ClientUUID != t.client:
		return nil, errors.New("client_uuid is not that of our integration")
	case c.AccountID.String() != strconv.FormatInt(account, 10):
		return nil, errors.New("account_id is not that of the path")
	case host != "" && c.Issuer != "https://"+host:
		return nil, errors.New("iss is not the account's address")
	case c.ID == "":
		return nil, errors.New("it has no jti")
	case c.ExpiresAt.Sub(now) > maxWidgetLife:
		return nil, fmt.Errorf("it lasts longer than %v", maxWidgetLife)
	}
	return c, nil
}

// kommoHosts are those of the accounts that are connected.
type kommoHosts struct {
	known atomic.Pointer[map[int64]string]
}

func (h *kommoHosts) take(list accounts.List) {
	hosts := map[int64]string{}
	for _, a := range list.Accounts {
		if id, err := accountID(strings.TrimPrefix(a.GetId(), kommoAccounts)); err == nil {
			hosts[id] = a.GetHost()
		}
	}
	h.known.Store(&hosts)
}

// of is the host of an account; empty: it is not known.
func (h *kommoHosts) of(account int64) string {
	if known := h.known.Load(); known != nil {
		return (*known)[account]
	}
	return ""
}

// kommoAccounts begins the ids of Kommo accounts where state keeps them.
const kommoAccounts = "kommo/"

// share lets pages of the account itself, and no others, read the answer.
func (h *kommoHosts) share(w http.ResponseWriter, r *http.Request) (shared bool) {
	header := w.Header()
	header.Add("Vary", "Origin")
	account, err := accountID(r.PathValue("account_id"))
	host := h.of(account)
	origin := r.Header.Get("Origin")
	if err != nil || host == "" || origin != "https://"+host {
		return false
	}
	header.Set("Access-Control-Allow-Origin", origin)
	header.Set("Access-Control-Expose-Headers", "X-Request-Id, Retry-After")
	return true
}

// kommoPreflight answers a browser that asks whether a page may send.
func (s *Service) kommoPreflight(w http.ResponseWriter, r *http.Request) {
	if !s.kommoHosts.share(w, r) {
		writeError(w, &refusal{status: http.StatusForbidden, message: "only pages of the account itself may send call results"}, "")
		return
	}
	w.Header().Set("Access-Control-Allow-Methods", http.MethodPost)
	w.Header().Set("Access-Control-Allow-Headers", "X-Auth-Token, Content-Type, X-Requested-With")
	w.Header().Set("Access-Control-Max-Age", "600")
	w.WriteHeader(http.StatusNoContent)
}

// kommoResult takes what a manager did in the call-result window.
func (s *Service) kommoResult(ctx context.Context, w http.ResponseWriter, r *http.Request, req *request, tokens *windowTokens) {
	s.kommoHosts.share(w, r)
	if tokens == nil {
		s.strangers.tell(ctx, "a call-result window, which needs KOMMO_CLIENT_ID, KOMMO_CLIENT_SECRET and KOMMO_REDIRECT_URI", "kommo", req.peer)
		writeError(w, &refusal{status: http.StatusNotFound,
			message: "no call-result window is set up: KOMMO_CLIENT_ID, KOMMO_CLIENT_SECRET and KOMMO_REDIRECT_URI are needed"}, req.id)
		return
	}
	account, err := accountID(r.PathValue("account_id"))
	var claims *widgetClaims
	if err == nil {
		claims, err = tokens.claims(r.Header.Get("X-Auth-Token"), account, s.kommoHosts.of(account), req.received)
	}
	if err != nil {
		s.strangers.count(ctx, "kommo", "wrong")
		s.strangers.tell(ctx, "a wrong token of the call-result window: "+err.Error(), "kommo", req.peer)
		writeError(w, &refusal{status: http.StatusUnauthorized,
			message: "send the one-time token that Kommo makes for each request of the widget as X-Auth-Token: " + err.Error()}, req.id)
		return
	}
	body, e := readBody(r, maxWindow)
	if e != nil {
		writeError(w, e, req.id)
		return
	}
	token := sha256.Sum256([]byte(claims.ID))
	req.id = windowRequestID(account, token[:], body)
	w.Header().Set("X-Request-Id", req.id)
	c, malformed := callback.DecodeKommoWindow(body)
	m := &routerv1.KommoWindow{AccountId: account, CallId: c.CallID, State: c.State, Direction: c.Direction, Phone: c.Phone, Duration: c.Duration,
		StartedAt: c.StartedAt, UserId: claims.user(), Result: c.Result,
		Token:      kommoAccounts + strconv.FormatInt(account, 10) + "/" + base64.RawURLEncoding.EncodeToString(token[:]),
		TokenForMs: (claims.ExpiresAt.Sub(req.received) + widgetLeeway).Milliseconds() + 1}
	query := url.Values{"account_id": {strconv.FormatInt(account, 10)}, "state": {c.State}, "call_id": {c.CallID}, "direction": {c.Direction}, "phone": {c.Phone},
		"duration": {strconv.FormatInt(c.Duration, 10)}, "started_at": {strconv.FormatInt(c.StartedAt, 10)}, "user_id": {strconv.FormatInt(claims.user(), 10)}}
	if c.Entity != nil {
		m.EntityType, m.EntityId = c.Entity.Type, c.Entity.ID
		query.Set("entity", c.Entity.Type+"/"+strconv.FormatInt(c.Entity.ID, 10))
	}
	req.query = []byte(query.Encode() + "&result=" + url.QueryEscape(c.Result))
	if len(req.query) > maxQuery {
		req.query = req.query[:maxQuery]
	}
	ack, err := s.callbacks.accept(ctx, req, callback.CallKey("kommo", r.PathValue("account_id")+"/"+c.CallID), malformed,
		&routerv1.RouteItem{Callback: &routerv1.RouteItem_KommoWindow{KommoWindow: m}})
	switch e := errkind.From(err); {
	case e != nil && e.Kind == errorsv1.Kind_KIND_FORBIDDEN:
		s.strangers.noticed(ctx, "kommo", req.peer)
		writeError(w, &refusal{status: http.StatusUnauthorized, message: e.Message}, req.id)
	case e != nil:
		writeError(w, refusalOf(e), req.id)
	default:
		writeWindowAnswer(w, ack.GetDuplicate(), req)
	}
}

// windowRequestID is the id of a request that comes with a token which is for one request alone: the same token and body is the same
// request, which state recognises however often it comes and whoever took it before. Nobody without the integration's secret can
// make one.
func windowRequestID(account int64, token, body []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%d\n%s", account, token)
	h.Write(body)
	return base32.StdEncoding.EncodeToString(h.Sum(nil)[:16])[:26]
}

// writeWindowAnswer says that what the manager did is kept, and where the call is if not where he wanted it.
func writeWindowAnswer(w http.ResponseWriter, duplicate bool, req *request) {
	type entity struct {
		Type string `json:"type"`
		ID   int64  `json:"id"`
	}
	status := http.StatusOK
	answer := struct {
		Success   bool    `json:"success"`
		Message   string  `json:"message"`
		Duplicate bool    `json:"duplicate,omitempty"`
		Entity    *entity `json:"entity,omitempty"`
		RequestID string  `json:"requestId"`
	}{true, "Data Received", duplicate, nil, req.id}
	switch reply := req.window; {
	case reply.GetConflict():
		status, answer.Success, answer.Entity = http.StatusConflict, false, &entity{reply.GetEntityType(), reply.GetEntityId()}
		answer.Message = fmt.Sprintf("the call is on %s %d already and stays there; the result is kept", reply.GetEntityType(), reply.GetEntityId())
	case reply.GetPending():
		status = http.StatusAccepted
		answer.Message = "the result is kept; the call is being written just now and may be on another entity"
	}
	text, _ := json.Marshal(answer) // texts and numbers always encode
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(text)
}
