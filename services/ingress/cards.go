package ingress

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	ingressv1 "callrelay/gen/callrelay/ingress/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/config"
	"callrelay/platform/errkind"
	"callrelay/platform/rpc"
)

// cardsConfig is what can be set of caller cards.
type cardsConfig struct {
	Secret config.Secret `env:"CARDS_SECRET" desc:"Signs the tokens with which CRM pages watch caller cards (docs/cards.md): at least 32 characters, the same in every ingress. Empty: cards are not served over HTTP."`
}

func (c *cardsConfig) problems() []error {
	if n := len(c.Secret.Reveal()); n > 0 && n < 32 {
		return []error{fmt.Errorf("CARDS_SECRET: must be at least 32 characters (openssl rand -base64 32), not %d", n)}
	}
	return nil
}

// The routes of caller cards; they are not the operator's. Pages of any origin may watch, with a token; only servers make tokens.
const (
	cardsWatchPath = "/v1/cards:watch"
	cardsTokenPath = "/v1/cards:token"
)

const (
	// cardsLost is after how long without state watchers are told that nothing is known. A state process that is replaced
	// by another one takes less.
	cardsLost = 2 * time.Second
	// cardsSilent is how long state may be silent; it tells all cards every few seconds.
	cardsSilent = 15 * time.Second
	// cardsRetry is the pause between tries to reach state.
	cardsRetry = 200 * time.Millisecond
	// cardsWrite is how long one message to a watcher may take.
	cardsWrite = 10 * time.Second
)

// cardServer tells users of CRMs what happens on their phones.
type cardServer struct {
	ingressv1.UnimplementedCardServiceServer
	s    *Service
	view *cardView
}

// run follows state until ctx ends, from the first integration on.
func (c *cardServer) run(ctx context.Context, state statev1.CardServiceClient) {
	var lost *time.Timer
	for ctx.Err() == nil {
		if known := c.s.integrations.known.Load(); lost == nil && known != nil && len(known.secrets) > 0 {
			lost = time.AfterFunc(cardsLost, c.view.lost)
			defer lost.Stop()
		}
		if lost != nil && c.follow(ctx, state, lost) {
			lost.Reset(cardsLost)
		}
		select {
		case <-ctx.Done():
		case <-time.After(cardsRetry):
		}
	}
}

// follow takes what state tells until the stream breaks, and says whether it told anything.
func (c *cardServer) follow(ctx context.Context, state statev1.CardServiceClient, lost *time.Timer) (told bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := state.WatchCards(ctx, &statev1.WatchCardsRequest{})
	if err != nil {
		return false
	}
	var open []*statev1.CallCard
	for {
		m, err := stream.Recv()
		switch {
		case err != nil:
			return told
		case !m.GetAll():
			c.view.change(m.GetCards())
		case m.GetMore():
			open = append(open, m.GetCards()...)
		default:
			c.view.list(append(open, m.GetCards()...))
			open, told = nil, true
			lost.Reset(cardsSilent)
		}
	}
}

// find refuses users that no extension belongs to.
func (c *cardServer) find(integration, user string) (cardUser, error) {
	of, known := cardUser{integration, user}, c.s.integrations.known.Load()
	switch {
	case integration == "":
		return of, errkind.Invalid("integration", "integration is required: an id of callrelay integrations list")
	case user == "":
		return of, errkind.Invalid("user", "user is required: the user of an extension of the integration")
	case known == nil:
		return of, errUnknownYet
	case !known.users[of]:
		return of, errkind.NotFound("no extension of the integration belongs to that user (callrelay integrations list ID)")
	}
	return of, nil
}

// join begins to watch. Watchers take at most half of the connections, so that callbacks always find one.
func (c *cardServer) join(of cardUser) (*cardWatcher, error) {
	if w := c.view.join(of, c.s.cfg.MaxConnections/2); w != nil {
		return w, nil
	}
	e := errkind.Unavailable(nil, "too many watch cards: this user in more than %d places, or all together (INGRESS_MAX_CONNECTIONS)", maxWatchers)
	e.RetryAfter = 10 * time.Second
	return nil, e
}

// WatchCards tells one user's cards over gRPC.
func (c *cardServer) WatchCards(req *ingressv1.WatchCardsRequest, stream ingressv1.CardService_WatchCardsServer) error {
	of, err := c.find(req.GetIntegration(), req.GetUser())
	if err != nil {
		return err
	}
	w, err := c.join(of)
	if err != nil {
		return err
	}
	defer c.view.leave(w)
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case <-c.s.serving.Done():
			return nil
		case <-w.wake:
			if m := c.view.next(w); m != nil {
				if err := stream.Send(m); err != nil {
					return err
				}
			}
		}
	}
}

// CreateToken makes a token for one user's cards.
func (c *cardServer) CreateToken(ctx context.Context, req *ingressv1.CreateTokenRequest) (*ingressv1.CreateTokenResponse, error) {
	of, err := c.find(req.GetIntegration(), req.GetUser())
	if err != nil {
		return nil, err
	}
	key := c.s.cfg.Cards.Secret.Reveal()
	if key == "" {
		return nil, errNoCards
	}
	if req.GetTtlS() < 0 || req.GetTtlS() > int64(maxCardTime/time.Second) {
		return nil, errkind.Invalid("ttlS", "ttlS must be 1 to %d seconds; 0 means %d", maxCardTime/time.Second, defaultCardTime/time.Second)
	}
	ttl := cmp.Or(time.Duration(req.GetTtlS())*time.Second, defaultCardTime)
	end := time.Now().Add(ttl).Truncate(time.Second)
	c.s.tel.Log().InfoContext(ctx, "a token for caller cards was made", "integration", of.integration, "user", of.user, "until", end)
	return &ingressv1.CreateTokenResponse{Token: signCardToken([]byte(key), of, end), ExpiresMs: end.UnixMilli()}, nil
}

var errNoCards = errkind.NotFound("caller cards are not served over HTTP: CARDS_SECRET is not set")

// serveToken is CreateToken over HTTP, for operators, and for the integration itself with its webhook's secret.
func (c *cardServer) serveToken(w http.ResponseWriter, r *http.Request, operators *operatorAPI) {
	w.Header().Set("Cache-Control", "no-store")
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		writeError(w, &refusal{status: http.StatusMethodNotAllowed, message: "use POST"}, "")
		return
	}
	if e := fromPage(r); e != nil {
		writeError(w, e, "")
		return
	}
	req := &ingressv1.CreateTokenRequest{}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 4<<10))
	if err == nil {
		err = protojson.Unmarshal(body, req)
	}
	if e := c.mayCreate(r, req.GetIntegration(), operators); e != nil {
		if e.status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Bearer realm="callrelay"`)
		}
		writeError(w, e, "")
		return
	}
	if err != nil {
		writeOperatorError(w, errkind.Invalid("", `the body must be JSON: {"integration":"acme","user":"u101","ttlS":3600}`))
		return
	}
	answer, err := c.CreateToken(r.Context(), req)
	if err != nil {
		writeOperatorError(w, err)
		return
	}
	text, err := protojson.Marshal(answer)
	if err != nil {
		writeOperatorError(w, errkind.Internal(err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(text)
}

// mayCreate is nil for an operator, and for who has the secret of the integration.
func (c *cardServer) mayCreate(r *http.Request, integration string, operators *operatorAPI) *refusal {
	if known := c.s.integrations.known.Load(); known != nil {
		hash := sha256.Sum256([]byte(bearerOf(r)))
		if secret, there := known.secrets[integration]; there && subtle.ConstantTimeCompare(hash[:], secret[:]) == 1 {
			return nil
		}
	}
	caller, e := operators.caller(r)
	if e == nil && caller.Role != rpc.RoleOperator {
		e = &refusal{status: http.StatusForbidden, message: "this needs a token with the role operator, or the integration's own secret"}
	}
	return e
}

// serveWatch is WatchCards as server-sent events.
func (c *cardServer) serveWatch(w http.ResponseWriter, r *http.Request) {
	token := bearerOf(r)
	if token == "" {
		token = r.URL.Query().Get("token") // EventSource sends no headers
	}
	r.URL.RawQuery, r.RequestURI = "", r.URL.Path // nothing that comes later names it
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Access-Control-Allow-Origin", "*") // there are no cookies; who has the token may
	switch r.Method {
	case http.MethodGet:
	case http.MethodOptions:
		header.Set("Access-Control-Allow-Methods", http.MethodGet)
		header.Set("Access-Control-Allow-Headers", "Authorization, Last-Event-ID, Cache-Control")
		w.WriteHeader(http.StatusNoContent)
		return
	default:
		header.Set("Allow", http.MethodGet)
		writeError(w, &refusal{status: http.StatusMethodNotAllowed, message: "use GET"}, "")
		return
	}
	key := c.s.cfg.Cards.Secret.Reveal()
	if key == "" {
		writeOperatorError(w, errNoCards)
		return
	}
	of, end, ok := readCardToken([]byte(key), token, time.Now())
	if !ok {
		if token != "" {
			c.s.strangers.noticed(r.Context(), "cards", c.s.peer(r)) // or an old one: pages stay open
		}
		header.Set("WWW-Authenticate", `Bearer realm="callrelay cards"`)
		writeError(w, &refusal{status: http.StatusUnauthorized, message: "the token is missing or wrong, or its time is over: POST " + cardsTokenPath + " makes one"}, "")
		return
	}
	of, err := c.find(of.integration, of.user)
	var watcher *cardWatcher
	if err == nil {
		watcher, err = c.join(of)
	}
	if err != nil {
		writeOperatorError(w, err)
		return
	}
	// A watcher costs what it needs: the server's own buffers and its goroutine's stack are given back.
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		c.view.leave(watcher)
		writeOperatorError(w, errkind.Internal(err))
		return
	}
	go c.events(conn, watcher, time.Until(end))
}

// eventsHead begins the stream, which ends with its connection.
const eventsHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nX-Accel-Buffering: no\r\n" +
	"Access-Control-Allow-Origin: *\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\nretry: 1000\n\n"

// events writes until the reader leaves, is stuck, or the token's time is over.
func (c *cardServer) events(conn net.Conn, watcher *cardWatcher, ttl time.Duration) {
	defer c.s.connections.state(conn, http.StateClosed)
	defer c.view.leave(watcher)
	defer conn.Close()
	_ = conn.SetDeadline(time.Time{})
	left := make(chan struct{})
	go func() {
		defer close(left)
		var b [1]byte
		for {
			if _, err := conn.Read(b[:]); err != nil {
				return
			}
		}
	}()
	write := func(text string) bool {
		_ = conn.SetWriteDeadline(time.Now().Add(cardsWrite))
		_, err := io.WriteString(conn, text)
		return err == nil
	}
	over := time.NewTimer(ttl)
	defer over.Stop()
	alive := time.NewTicker(sayAlive)
	defer alive.Stop()
	for ok := write(eventsHead); ok; {
		select {
		case <-left:
			return
		case <-c.s.serving.Done():
			return
		case <-over.C:
			return
		case <-alive.C:
			ok = write(":\n\n")
		case <-watcher.wake:
			text, err := cardEvents(c.view.next(watcher))
			ok = err == nil && (text == "" || write(text))
		}
	}
}

// cardEvents is one message as server-sent events: `cards` (all that are open), `card` (one that changed), `lost`.
func cardEvents(m *ingressv1.WatchCardsResponse) (string, error) {
	var b strings.Builder
	switch {
	case m.GetLost():
		return "event: lost\ndata: {}\n\n", nil
	case m.GetAll():
		body, err := cardJSON.Marshal(m)
		return "event: cards\ndata: " + string(body) + "\n\n", err
	}
	for _, card := range m.GetCards() {
		body, err := cardJSON.Marshal(card)
		if err != nil {
			return "", err
		}
		b.WriteString("id: " + oneLine.Replace(card.GetId()) + "/" + strconv.FormatUint(uint64(card.GetVersion()), 10) + "\nevent: card\ndata: " + string(body) + "\n\n")
	}
	return b.String(), nil
}

// oneLine keeps an id, which is from outside, on its line.
var oneLine = strings.NewReplacer("\r", "", "\n", "", "\x00", "")

var cardJSON = protojson.MarshalOptions{EmitUnpopulated: true}
