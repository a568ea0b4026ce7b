package topsii_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"callrelay/services/upstream/internal/delivery"
	"callrelay/services/upstream/internal/topsii"
)

const key = "0123456789abcdef0123456789abcdef"

const payload = `{"predictiveCallCreateCallEnd":{"callId":99999999,"targetTel":"03000000001","errorInfo":"a+b&c=d \u00e9 %"}}`

func client(base string, change func(*topsii.Options)) *topsii.Client {
	options := topsii.Options{
		BaseURL: base, PathPrefix: "/fasthelp5-server/service/callmanage/predictiveCallApiService/", APIKey: key,
		Connect: 5 * time.Second, Total: 10 * time.Second, Concurrency: 8,
	}
	if change != nil {
		change(&options)
	}
	return topsii.New(options)
}

// expect sends one createCallEnd and checks what it came to. No reason may hold the key or a phone number.
func expect(t *testing.T, c *topsii.Client, want delivery.Outcome, reason string) delivery.Answer {
	t.Helper()
	answer := c.Send(t.Context(), "createCallEnd", []byte(payload))
	if answer.Outcome != want {
		t.Errorf("outcome %v (%s), want %v", answer.Outcome, answer.Reason, want)
	}
	if !strings.Contains(answer.Reason, reason) {
		t.Errorf("reason %q, want %q in it", answer.Reason, reason)
	}
	if strings.Contains(answer.Reason, key) || strings.Contains(answer.Reason, "03000000001") {
		t.Errorf("reason %q tells too much", answer.Reason)
	}
	return answer
}

func TestRequestLooksAsSpecified(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.String() != "/fasthelp5-server/service/callmanage/predictiveCallApiService/createCallEnd.json" {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		if got := r.Header.Get("Content-Type"); got != "application/x-www-form-urlencoded" {
			t.Errorf("Content-Type %q", got)
		}
		if got := r.Header["X-Fasthelp-Api-Key"]; len(got) != 1 || got[0] != key {
			t.Errorf("key %q", got)
		}
		body, _ := io.ReadAll(r.Body)
		if r.ContentLength != int64(len(body)) {
			t.Errorf("content length %d of %d", r.ContentLength, len(body))
		}
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		if err := r.ParseForm(); err != nil || len(r.PostForm) != 1 || r.PostForm.Get("jsonData") != payload {
			t.Errorf("form %v, error %v", r.PostForm, err)
		}
		_, _ = io.WriteString(w, `{"result":"success"}`)
	}))
	defer server.Close()
	for _, base := range []string{server.URL, server.URL + "/"} {
		answer := expect(t, client(base, nil), delivery.Delivered, "")
		if answer.HTTPCode != 200 || answer.Result != "success" || string(answer.Body) != `{"result":"success"}` {
			t.Errorf("answer %+v", answer)
		}
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	var requests atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		w.Header().Set("Location", "https://elsewhere.example/x")
		w.WriteHeader(http.StatusTemporaryRedirect)
	}))
	defer server.Close()
	expect(t, client(server.URL, nil), delivery.Hold, "https://elsewhere.example")
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestUnknownEndpointIsDead(t *testing.T) {
	answer := client("http://127.0.0.1:1", nil).Send(t.Context(), "createEverything", nil)
	if answer.Outcome != delivery.Dead || !strings.Contains(answer.Reason, "createEverything") {
		t.Errorf("%+v", answer)
	}
}

func TestConnectionsAreReused(t *testing.T) {
	var connections atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"result":"success"}`)
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	c := client(server.URL, nil)
	for range 10 {
		expect(t, c, delivery.Delivered, "")
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("%d connections for 10 requests, one after the other", n)
	}
}

func TestAnswerIsReadWithinBounds(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"result":"success","more":"`)
		for { // without end, as far as the client reads
			if _, err := io.WriteString(w, strings.Repeat("x", 1<<10)); err != nil {
				return
			}
		}
	}))
	defer server.Close()
	answer := expect(t, client(server.URL, nil), delivery.Transport, "not one of TopS.II")
	if len(answer.Body) != 1<<10 {
		t.Errorf("%d bytes kept", len(answer.Body))
	}
}

// listener answers each connection with handle.
func listener(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = conn.Close() })
			go handle(conn)
		}
	}()
	return l.Addr().String()
}

// readRequest reads a request to its end and says nothing.
func readRequest(conn net.Conn) {
	var seen strings.Builder
	buffer := make([]byte, 4096)
	for !strings.Contains(seen.String(), "jsonData=") {
		n, err := conn.Read(buffer)
		if err != nil {
			return
		}
		seen.Write(buffer[:n])
	}
}

func TestWhatNeverLeftIsUnsent(t *testing.T) {
	t.Run("connection refused", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		expect(t, client("http://"+l.Addr().String(), nil), delivery.Unsent, "connection refused")
	})
	t.Run("no such name", func(t *testing.T) {
		expect(t, client("http://no-such-host.invalid", nil), delivery.Unsent, "cannot be reached")
	})
	t.Run("certificate of an unknown authority", func(t *testing.T) {
		server := httptest.NewUnstartedServer(http.NotFoundHandler())
		server.Config.ErrorLog = nil
		server.TLS = &tls.Config{}
		server.StartTLS()
		defer server.Close()
		expect(t, client(server.URL, nil), delivery.Unsent, "certificate")
	})
	t.Run("TLS that never begins", func(t *testing.T) {
		addr := listener(t, func(net.Conn) {})
		expect(t, client("https://"+addr, func(o *topsii.Options) { o.Connect = 50 * time.Millisecond }), delivery.Unsent, "TLS handshake timeout")
	})
	t.Run("the whole time went by before there was a connection", func(t *testing.T) {
		addr := listener(t, func(net.Conn) {})
		expect(t, client("https://"+addr, func(o *topsii.Options) { o.Total = 50 * time.Millisecond }), delivery.Unsent, "not within 50ms (TOPSII_TIMEOUT)")
	})
}

func TestWhatMayHaveLeftIsUncertain(t *testing.T) {
	t.Run("no answer in time", func(t *testing.T) {
		addr := listener(t, readRequest)
		expect(t, client("http://"+addr, func(o *topsii.Options) { o.Total = 100 * time.Millisecond }), delivery.Uncertain, "not within 100ms (TOPSII_TIMEOUT)")
	})
	t.Run("cut after the request", func(t *testing.T) {
		addr := listener(t, func(conn net.Conn) {
			readRequest(conn)
			_ = conn.Close()
		})
		expect(t, client("http://"+addr, nil), delivery.Uncertain, "the connection was cut")
	})
	t.Run("cut at once", func(t *testing.T) {
		addr := listener(t, func(conn net.Conn) { _ = conn.Close() })
		expect(t, client("http://"+addr, nil), delivery.Uncertain, "")
	})
	t.Run("cut within the answer", func(t *testing.T) {
		addr := listener(t, func(conn net.Conn) {
			readRequest(conn)
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"result\":\"suc")
			_ = conn.Close()
		})
		expect(t, client("http://"+addr, nil), delivery.Uncertain, "the connection was cut")
	})
	t.Run("no end of the answer in time", func(t *testing.T) {
		addr := listener(t, func(conn net.Conn) {
			readRequest(conn)
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"result\":\"suc")
		})
		expect(t, client("http://"+addr, func(o *topsii.Options) { o.Total = 100 * time.Millisecond }), delivery.Uncertain, "not within 100ms")
	})
	t.Run("an answer that is no HTTP", func(t *testing.T) {
		addr := listener(t, func(conn net.Conn) {
			readRequest(conn)
			_, _ = io.WriteString(conn, "SSH-2.0 0312345678\r\n\r\n")
		})
		answer := expect(t, client("http://"+addr, nil), delivery.Uncertain, "malformed HTTP")
		if strings.Contains(answer.Reason, "0312345678") {
			t.Errorf("a phone number is not masked: %q", answer.Reason)
		}
	})
	t.Run("the relay stops meanwhile", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		addr := listener(t, func(conn net.Conn) {
			readRequest(conn)
			cancel()
		})
		answer := client("http://"+addr, nil).Send(ctx, "createCallEnd", []byte(payload))
		if answer.Outcome != delivery.Uncertain || !strings.Contains(answer.Reason, "stopped") {
			t.Errorf("%+v", answer)
		}
	})
}

// A stale connection on which nothing was written must not make a request that then reaches nobody look as if it had left.
func TestSecondConnectionStartsAnew(t *testing.T) {
	steps := roundTripper(func(r *http.Request) (*http.Response, error) {
		trace := httptrace.ContextClientTrace(r.Context())
		trace.GetConn("")
		trace.GotConn(httptrace.GotConnInfo{})
		trace.GetConn("") // net/http takes another one
		return nil, errors.New("connection refused")
	})
	c := client("http://crm.invalid", func(o *topsii.Options) { o.Trace = func(http.RoundTripper) http.RoundTripper { return steps } })
	expect(t, c, delivery.Unsent, "connection refused")
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
