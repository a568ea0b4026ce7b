package webhook

import (
	"context"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"callrelay/services/upstream/internal/delivery"
)

func options(address string, allow ...string) Options {
	o := Options{URL: address, Key: []byte("0123456789abcdef0123456789abcdef"), Connect: time.Second, Total: 2 * time.Second, Concurrency: 2}
	for _, network := range allow {
		o.AllowPrivate = append(o.AllowPrivate, netip.MustParsePrefix(network))
	}
	return o
}

// TestSignature is the example of the Standard Webhooks specification's reference libraries.
func TestSignature(t *testing.T) {
	key, err := base64.StdEncoding.DecodeString("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	if got := sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []byte(`{"test": 2432232314}`)); got != "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=" {
		t.Error(got)
	}
}

func TestSend(t *testing.T) {
	var mu sync.Mutex // the handler's goroutine may outlive the answer
	var got *http.Request
	var body string
	status := 204
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		got, body = r, string(b)
		if status == 0 {
			hijacked, _, _ := w.(http.Hijacker).Hijack()
			_ = hijacked.Close()
			return
		}
		w.Header().Set("Location", "/other")
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(status)
	}))
	defer server.Close()
	c := New(options(server.URL+"/hook?key=secret", "127.0.0.0/8"))
	c.now = func() time.Time { return time.Unix(1614265330, 0) }
	if got := c.URL(""); got != server.URL+"/hook" {
		t.Errorf("for people: %s", got)
	}
	for want, codes := range map[delivery.Outcome][]int{
		delivery.Delivered: {200, 204}, delivery.Hold: {301, 401, 403, 404, 405, 410}, delivery.Transport: {408, 425, 429, 500, 503},
		delivery.Dead: {400, 409, 413, 422}, delivery.Uncertain: {0},
	} {
		for _, code := range codes {
			mu.Lock()
			status = code
			mu.Unlock()
			answer := c.Send(context.Background(), "call.registered", []byte(`{"a":1}`))
			if answer.Outcome != want || answer.HTTPCode != code || (answer.Reason == "") != (want == delivery.Delivered) || code > 0 && answer.RetryAfter != 7*time.Second {
				t.Errorf("%d: %+v, want outcome %d", code, answer, want)
			}
		}
	}
	mu.Lock()
	status = 200
	mu.Unlock()
	c.Send(context.Background(), "call.registered", []byte(`{"a":1}`))
	mu.Lock()
	first := got.Header.Get("Webhook-Id")
	want := "v1," + sign(c.options.Key, first, "1614265330", []byte(`{"a":1}`))
	if got.Method != "POST" || got.URL.RequestURI() != "/hook?key=secret" || body != `{"a":1}` || got.Header.Get("Webhook-Signature") != want ||
		got.Header.Get("Webhook-Timestamp") != "1614265330" || got.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s %s %v %s", got.Method, got.URL, got.Header, body)
	}
	mu.Unlock()
	c.Send(context.Background(), "call.registered", []byte(`{"a":2}`))
	mu.Lock()
	defer mu.Unlock()
	if other := got.Header.Get("Webhook-Id"); other == first || !strings.HasPrefix(other, "msg_") {
		t.Errorf("ids %s and %s of two documents", first, other)
	}
}

// TestGuard: nothing private, local or reserved is reached, whatever name leads there, unless it is allowed.
func TestGuard(t *testing.T) {
	listen, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listen.Close()
	go func() {
		if _, err := listen.Accept(); err == nil {
			t.Error("it was reached")
		}
	}()
	_, port, _ := net.SplitHostPort(listen.Addr().String())
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"} {
		answer := New(options("http://"+host+":"+port)).Send(context.Background(), "", nil)
		if answer.Outcome != delivery.Hold || !strings.Contains(answer.Reason, "must not be reached") {
			t.Errorf("%s: %+v", host, answer)
		}
	}
	guard := New(options("http://x", "10.1.0.0/16"))
	for address, want := range map[string]bool{
		"8.8.8.8": true, "2606:4700::1111": true, "10.1.2.3": true,
		"10.2.2.3": false, "192.168.1.1": false, "172.16.0.1": false, "127.0.0.1": false, "169.254.169.254": false, "100.64.0.1": false,
		"0.0.0.0": false, "255.255.255.255": false, "224.0.0.1": false, "198.18.0.1": false,
		"::1": false, "::": false, "fe80::1": false, "fc00::1": false, "ff02::1": false, "64:ff9b::a00:1": false, "2002:a00:1::": false,
	} {
		if got := guard.allowed(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s allowed: %v", address, got)
		}
	}
}

func TestUnsent(t *testing.T) {
	listen, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listen.Addr().String()
	listen.Close()
	if answer := New(options("http://"+address, "127.0.0.0/8")).Send(context.Background(), "", nil); answer.Outcome != delivery.Unsent {
		t.Errorf("%+v", answer)
	}
}
