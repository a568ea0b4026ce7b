// Package topsii is the client of TopS.II's predictive call API (FastHelp Web API).
//
// It owns how a request looks, whether it left, and what each answer means (classify, the answer table of the
// specification). It makes exactly one request per Send and does not retry, wait or count: that is package delivery's.
package topsii

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"callrelay/services/upstream/internal/delivery"
	"callrelay/services/upstream/internal/roundtrip"
)

// maxBody bounds how much of an answer is read. TopS.II's own are below 1 KB.
const maxBody = 64 << 10

// endpoints are the calls of the API.
var endpoints = []string{"createCallStart", "createCallEnd", "createNotAnswer"}

// Options says where TopS.II is and how patient to be.
type Options struct {
	// BaseURL and PathPrefix, joined by one slash, and the endpoint with ".json" are the URL.
	BaseURL, PathPrefix string
	// APIKey goes into the X-FastHelp-API-Key header and nowhere else.
	APIKey string
	// Connect bounds getting a connection (name, TCP, TLS each), Total the whole request with it.
	Connect, Total time.Duration
	// Concurrency is how many idle connections are kept.
	Concurrency int
	// Trace puts tracing around the transport; nil = none.
	Trace func(http.RoundTripper) http.RoundTripper
}

// Client sends deliveries to TopS.II. It is safe for concurrent use.
type Client struct {
	options   Options
	transport http.RoundTripper
	// requests are, by endpoint, what is the same in each request: all but context and body. unusable says why there are none.
	requests map[string]*http.Request
	unusable error
}

var _ delivery.Sender = (*Client)(nil)

// New makes a client. It opens no connection.
func New(options Options) *Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	client := &Client{options: options, requests: map[string]*http.Request{}, transport: &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: options.Connect}).DialContext,
		TLSHandshakeTimeout: options.Connect,
		MaxIdleConnsPerHost: options.Concurrency,
		MaxIdleConns:        options.Concurrency,
		// Shorter than the keep-alive of any common server (Apache closes after 5 s). A request that meets a server
		// closing its idle connection is uncertain, so such meetings must be rare.
		IdleConnTimeout: 4 * time.Second,
		Protocols:       protocols,
		// Answers are below 1 KB.
		DisableCompression: true,
	}}
	if options.Trace != nil {
		client.transport = options.Trace(client.transport)
	}
	for _, endpoint := range endpoints {
		request, err := http.NewRequest(http.MethodPost, client.URL(endpoint), nil)
		if err != nil {
			client.unusable = err
			break
		}
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		request.Header.Set("X-FastHelp-API-Key", options.APIKey)
		request.Header.Set("User-Agent", "callrelay")
		client.requests[endpoint] = request
	}
	return client
}

// URL is where an endpoint's requests go.
func (c *Client) URL(endpoint string) string {
	return strings.TrimRight(c.options.BaseURL, "/") + "/" + strings.TrimLeft(c.options.PathPrefix, "/") + endpoint + ".json"
}

// Send posts one payload. It uses the transport itself, not http.Client: no redirect is followed, no request repeated.
func (c *Client) Send(ctx context.Context, endpoint string, payload []byte) delivery.Answer {
	if !slices.Contains(endpoints, endpoint) {
		return delivery.Answer{Outcome: delivery.Dead, Reason: fmt.Sprintf("TopS.II has no endpoint %q", clip(endpoint))}
	}
	if c.unusable != nil {
		return delivery.Answer{Outcome: delivery.Hold, Reason: "the address of TopS.II cannot be used, check the base URL: " + c.words(c.unusable)}
	}
	ctx, cancel := context.WithTimeout(ctx, c.options.Total)
	defer cancel()

	ctx, left := roundtrip.Watch(ctx)
	// A RoundTripper changes neither the request nor its header, so all requests share theirs.
	request := c.requests[endpoint].WithContext(ctx)
	form := "jsonData=" + url.QueryEscape(string(payload))
	request.ContentLength = int64(len(form))
	request.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(form)), nil }
	request.Body, _ = request.GetBody()

	answer, err := c.transport.RoundTrip(request)
	if err != nil {
		return c.unanswered(err, left.Load())
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxBody))
	r := response{status: answer.StatusCode, header: answer.Header, body: body}
	if err != nil {
		r.readErr = c.words(err)
	}
	return classify(r, time.Now())
}

// unanswered says what it means that no answer came.
func (c *Client) unanswered(err error, left bool) delivery.Answer {
	if !left {
		return delivery.Answer{Outcome: delivery.Unsent, Reason: "TopS.II cannot be reached, nothing was sent: " + c.words(err)}
	}
	return delivery.Answer{Outcome: delivery.Uncertain, Reason: "the request may have reached TopS.II, but no answer came: " + c.words(err)}
}

func (c *Client) words(err error) string {
	return roundtrip.Words(err, c.options.Total.String()+" (TOPSII_TIMEOUT)")
}
