// Package webhook posts registered calls to a CRM of any kind, as JSON signed by Standard Webhooks (docs/webhook.md).
//
// It owns how a request looks, whether it left, which addresses may be reached, and what each answer means. It makes
// exactly one request per Send and does not retry, wait or count: that is package delivery's.
package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"syscall"
	"time"

	"callrelay/services/upstream/internal/delivery"
	"callrelay/services/upstream/internal/roundtrip"
)

const (
	// keptBody is how much of an answer is read and kept for people.
	keptBody = 1 << 10
	// maxRetryAfter bounds what a Retry-After may ask for.
	maxRetryAfter = time.Hour
)

// Options says where to post and how patient to be.
type Options struct {
	URL string
	// Key signs what is posted.
	Key []byte
	// AllowPrivate are networks that may be reached although they are private.
	AllowPrivate []netip.Prefix
	// Connect bounds getting a connection (name, TCP, TLS each), Total the whole request with it.
	Connect, Total time.Duration
	// Concurrency is how many idle connections are kept.
	Concurrency int
	// Trace puts tracing around the transport; nil = none.
	Trace func(http.RoundTripper) http.RoundTripper
}

// Client sends deliveries to one address. It is safe for concurrent use.
type Client struct {
	options   Options
	transport http.RoundTripper
	now       func() time.Time
}

var _ delivery.Sender = (*Client)(nil)

// errForbidden is for addresses that are not to be reached.
var errForbidden = errors.New("the address is private, local or reserved, and not in allow_private")

// New makes a client. It opens no connection. No proxy is used: it would reach what this must not.
func New(options Options) *Client {
	c := &Client{options: options, now: time.Now}
	dialer := &net.Dialer{Timeout: options.Connect, Control: c.control}
	c.transport = &http.Transport{
		DialContext:         dialer.DialContext,
		TLSHandshakeTimeout: options.Connect,
		MaxIdleConnsPerHost: options.Concurrency,
		MaxIdleConns:        options.Concurrency,
		IdleConnTimeout:     4 * time.Second, // as topsii: a request that meets a closing connection is uncertain
		ForceAttemptHTTP2:   true,
	}
	if options.Trace != nil {
		c.transport = options.Trace(c.transport)
	}
	return c
}

// control looks at every address that is about to be connected to, after its name was resolved: a name that changes what
// it stands for gets no further.
func (c *Client) control(_, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil || !c.allowed(to.Addr().Unmap()) {
		return errForbidden
	}
	return nil
}

// reserved are networks that are not the internet's, beside those that netip knows.
var reserved = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("2001::/32"),
}

func (c *Client) allowed(to netip.Addr) bool {
	has := func(network netip.Prefix) bool { return network.Contains(to) }
	return slices.ContainsFunc(c.options.AllowPrivate, has) ||
		to.IsGlobalUnicast() && !to.IsPrivate() && !slices.ContainsFunc(reserved, has)
}

// URL is where everything is posted to, without its query, which may hold a secret.
func (c *Client) URL(string) string {
	u, err := url.Parse(c.options.URL)
	if err != nil {
		return ""
	}
	u.RawQuery, u.User = "", nil
	return u.String()
}

// Send posts one document. It uses the transport itself, not http.Client: no redirect is followed, no request repeated.
func (c *Client) Send(ctx context.Context, _ string, payload []byte) delivery.Answer {
	ctx, cancel := context.WithTimeout(ctx, c.options.Total)
	defer cancel()
	ctx, left := roundtrip.Watch(ctx)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.options.URL, bytes.NewReader(payload))
	if err != nil {
		return delivery.Answer{Outcome: delivery.Hold, Reason: "the webhook's address cannot be used, check webhook.url"}
	}
	request.GetBody = nil // without it nothing is sent a second time by itself
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "callrelay")
	id, at := messageID(payload), strconv.FormatInt(c.now().Unix(), 10)
	request.Header.Set("Webhook-Id", id)
	request.Header.Set("Webhook-Timestamp", at)
	request.Header.Set("Webhook-Signature", "v1,"+sign(c.options.Key, id, at, payload))

	answer, err := c.transport.RoundTrip(request)
	if err != nil {
		return c.unanswered(err, left.Load())
	}
	defer answer.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(answer.Body, keptBody)) // its status is what counts
	return classify(answer.StatusCode, answer.Header, body, c.now())
}

// messageID is the same for every attempt of a delivery, and for no other: a document names its call and leg.
func messageID(payload []byte) string {
	sum := sha256.Sum256(payload)
	return "msg_" + base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:20])
}

// sign is the signature of Standard Webhooks, version 1.
func sign(key []byte, id, at string, payload []byte) string {
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", id, at, payload)
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// unanswered says what it means that no answer came.
func (c *Client) unanswered(err error, left bool) delivery.Answer {
	if errors.Is(err, errForbidden) {
		return delivery.Answer{Outcome: delivery.Hold, Reason: "webhook.url leads to an address that must not be reached: " + errForbidden.Error()}
	}
	if !left {
		return delivery.Answer{Outcome: delivery.Unsent, Reason: "the webhook cannot be reached, nothing was sent: " + c.words(err)}
	}
	return delivery.Answer{Outcome: delivery.Uncertain, Reason: "the request may have reached the webhook, but no answer came: " + c.words(err)}
}

func (c *Client) words(err error) string {
	return roundtrip.Words(err, c.options.Total.String()+" (WEBHOOK_TIMEOUT)")
}

// classify is the table of docs/webhook.md: what an answer means.
func classify(status int, header http.Header, body []byte, now time.Time) delivery.Answer {
	answer := delivery.Answer{HTTPCode: status, Body: body}
	answer.RetryAfter, _ = roundtrip.RetryAfter(header, now, maxRetryAfter)
	switch {
	case status >= 200 && status < 300:
		answer.Outcome = delivery.Delivered
	case status >= 300 && status < 400:
		answer.Outcome = delivery.Hold
		answer.Reason = fmt.Sprintf("the webhook answers with a redirect (HTTP %d), which is never followed: check webhook.url", status)
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		answer.Outcome = delivery.Hold
		answer.Reason = fmt.Sprintf("the webhook refuses us (HTTP %d): check webhook.secret on both sides", status)
	case status == http.StatusNotFound, status == http.StatusGone, status == http.StatusMethodNotAllowed:
		answer.Outcome = delivery.Hold
		answer.Reason = fmt.Sprintf("the webhook is not at this address (HTTP %d): check webhook.url", status)
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly, status == http.StatusTooManyRequests, status >= 500:
		answer.Outcome = delivery.Transport
		answer.Reason = fmt.Sprintf("the webhook or something in front of it cannot work now (HTTP %d)", status)
	default:
		answer.Outcome = delivery.Dead
		answer.Reason = fmt.Sprintf("the webhook refuses this document for good (HTTP %d)", status)
	}
	return answer
}
