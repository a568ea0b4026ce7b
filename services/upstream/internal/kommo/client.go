// Package kommo is the client of Kommo (ex-amoCRM): its API as far as calls need it, and OAuth.
//
// It owns how a request looks, whose token it carries, when it may leave, whether it left, and what each answer means
// (classify). A write whose outcome is unknown is looked for before it is sent again (lookup.go). Tokens are renewed by
// exactly one process and kept by state, sealed (tokens.go). What is not confirmed about Kommo is in unconfirmed.go.
// It does not know what a call means (services/router/kommo), and it does not count attempts: that is package delivery's.
package kommo

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/seal"
	"callrelay/services/upstream/internal/roundtrip"
)

const (
	// maxBody bounds how much of an answer is read: a page of 250 notes stays below it.
	maxBody = 4 << 20
	// keptBody is how much of an answer is kept for people.
	keptBody = 1 << 10
	// Destination and an account's id are the name of its queue, and of its record in state.
	Destination = "kommo/"
)

// Options says how to reach Kommo, and how patient to be.
type Options struct {
	// Accounts and Limits are state's.
	Accounts statev1.AccountServiceClient
	Limits   statev1.LimitServiceClient
	// Keys seal credentials at rest.
	Keys *seal.Keys
	// ClientID, ClientSecret and RedirectURI are the integration's. Empty: only long-lived tokens work.
	ClientID, ClientSecret, RedirectURI string
	// Domains are Kommo's: an account's host is directly below one of them. Nothing is sent anywhere else.
	Domains []string
	// BaseURL replaces https://<host> for a simulator; the host travels as the Host header. Empty: none.
	BaseURL string
	// Connect bounds getting a connection, Request one request with it, Total all that one delivery needs.
	Connect, Request, Total time.Duration
	// PerSecond is how many requests may arrive in any second at one account, and from one outgoing address, all replicas together.
	PerSecond int
	// Address names the outgoing address whose limit is shared.
	Address string
	// RefreshBefore its end an access token is renewed.
	RefreshBefore time.Duration
	// Unconfirmed has what is not known about Kommo.
	Unconfirmed Unconfirmed
	// Trace puts tracing around the transport; nil = none.
	Trace func(http.RoundTripper) http.RoundTripper
	Log   *slog.Logger
}

// Client speaks to Kommo for all accounts. It is safe for concurrent use.
type Client struct {
	options   Options
	transport http.RoundTripper
	work      sync.WaitGroup // renewals under way
	wake      chan struct{}  // an installation waits

	mu       sync.Mutex
	accounts map[int64]*Account
}

// New makes a client. It opens no connection.
func New(options Options) *Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	c := &Client{options: options, wake: make(chan struct{}, 1), accounts: map[int64]*Account{}, transport: &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dial(&net.Dialer{Timeout: options.Connect}),
		TLSHandshakeTimeout: options.Connect,
		MaxIdleConnsPerHost: 8,
		MaxIdleConns:        256,
		// A request that meets a server closing its idle connection is uncertain, so such meetings must be rare.
		IdleConnTimeout: 4 * time.Second,
		Protocols:       protocols,
	}}
	if options.Trace != nil {
		c.transport = options.Trace(c.transport)
	}
	return c
}

// dial makes connections that forget what they have not sent when they are closed: a request that was given up must not
// leave later.
func dial(dialer *net.Dialer) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		if tcp, ok := conn.(*net.TCPConn); ok {
			err = tcp.SetLinger(0)
		}
		return conn, err
	}
}

// Account is the way to one account; whether it exists shows when it is used.
func (c *Client) Account(id int64) *Account {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.accounts[id]
	if a == nil {
		a = &Account{client: c, id: id}
		c.accounts[id] = a
	}
	return a
}

// Account makes the requests of one account; it is a delivery.Sender.
type Account struct {
	client *Client
	id     int64

	mu      sync.Mutex
	session *session // as it was last read; nil = not yet
}

// key is the account's record in state, and its queue.
func (a *Account) key() string { return Destination + strconv.FormatInt(a.id, 10) }

// call is one request.
type call struct {
	endpoint string // for classify
	method   string
	path     string
	query    url.Values
	body     []byte
}

func (q call) reads() bool { return q.method == http.MethodGet }

// request makes one request as the account: within the limits, with a token that works; refused for its token it is made
// once more with a new one.
func (a *Account) request(ctx context.Context, q call) result {
	s, failed := a.open(ctx)
	if failed != nil {
		return *failed
	}
	r := a.once(ctx, s, q)
	if r.kind != unauthorized {
		return r
	}
	if s, failed = a.renewed(ctx, s); failed != nil {
		return *failed
	}
	if r = a.once(ctx, s, q); r.kind == unauthorized {
		a.notice(ctx, s, noticeRefused, "Kommo does not accept the access token, not even a new one: connect the account again")
	}
	return r
}

// once makes one request with this session's token.
func (a *Account) once(ctx context.Context, s *session, q call) result {
	return a.client.round(ctx, s.host, q, func(h http.Header) { h.Set("Authorization", "Bearer "+s.credentials.AccessToken) })
}

// round makes one HTTP request, within the limits of its host and of the outgoing address. It uses the transport itself, not
// http.Client: no redirect is followed, no request repeated.
func (c *Client) round(ctx context.Context, host string, q call, header func(http.Header)) result {
	if !c.kommos(host) {
		return result{kind: held, reason: fmt.Sprintf("%q is not an address of Kommo (KOMMO_DOMAINS)", roundtrip.Bounded(host, 100))}
	}
	place, failed := c.admit(ctx, host)
	if failed != nil {
		return *failed
	}
	ctx, cancel := context.WithDeadline(ctx, place.deadline)
	defer cancel()

	ctx, left := roundtrip.Watch(ctx)
	address := c.url(host, q.path)
	if len(q.query) > 0 {
		address += "?" + q.query.Encode()
	}
	var body io.Reader = struct{ io.Reader }{http.NoBody} // of unknown length: net/http repeats no such request, which would need a place of its own
	if q.body != nil {
		body = bytes.NewReader(q.body)
	}
	request, err := http.NewRequestWithContext(ctx, q.method, address, body)
	if err != nil {
		place.release(ctx, true)
		return result{kind: held, reason: "the account's address cannot be used: " + c.words(err)}
	}
	request.Host = host
	request.Header.Set("User-Agent", "callrelay")
	if q.body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	header(request.Header)

	answer, err := c.transport.RoundTrip(request)
	if err == nil || ctx.Err() == nil || !left.Load() {
		// It has arrived, or it never will. One that was given up may still arrive: its place ends by itself.
		defer place.release(ctx, err != nil && !left.Load())
	}
	switch {
	case err != nil && !left.Load():
		return result{kind: unsent, reason: "Kommo cannot be reached, nothing was sent: " + c.words(err)}
	case err != nil && q.reads():
		return result{kind: unavailable, reason: "Kommo did not answer: " + c.words(err)}
	case err != nil:
		return result{kind: uncertain, reason: "the request may have reached Kommo, but no answer came: " + c.words(err)}
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(io.LimitReader(answer.Body, maxBody+1))
	r := response{status: answer.StatusCode, header: answer.Header, body: content}
	if err != nil {
		r.readErr = c.words(err)
	} else if len(content) > maxBody {
		r.readErr = fmt.Sprintf("it is longer than %d bytes", maxBody)
	}
	out := classify(q.endpoint, q.reads(), r, time.Now())
	if out.kind == limited {
		c.pause(ctx, host, out.after)
	}
	return out
}

func (c *Client) url(host, path string) string {
	if c.options.BaseURL != "" {
		return strings.TrimRight(c.options.BaseURL, "/") + path
	}
	return "https://" + host + path
}

// kommos reports whether a host is an account's at Kommo: one label, directly below a domain of Kommo. Only such a host gets
// a token or the client secret.
func (c *Client) kommos(host string) bool {
	for _, domain := range c.options.Domains {
		label, ok := strings.CutSuffix(host, "."+domain)
		if !ok || label == "" || len(label) > 63 || label == "www" {
			continue
		}
		if strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && label[0] != '-' && label[len(label)-1] != '-' {
			return true
		}
	}
	return false
}

func (c *Client) words(err error) string { return roundtrip.Words(err, c.options.Request.String()) }

// sleep waits, unless ctx ends before.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
