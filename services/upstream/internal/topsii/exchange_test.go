package topsii

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"callrelay/services/upstream/internal/delivery"
)

func TestFormIsEscapedAsInAURL(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		payload := rapid.SliceOf(rapid.Byte()).Draw(t, "payload")
		if got, want := string(appendForm(nil, payload)), "jsonData="+url.QueryEscape(string(payload)); got != want {
			t.Fatalf("%q instead of %q", got, want)
		}
	})
}

// Requests that share an exchange have nothing else in common: neither time, nor words, nor what is known of one before.
func TestExchangeIsUsedAgain(t *testing.T) {
	hang, hung := make(chan struct{}), func(r *http.Request) bool { return strings.Contains(r.FormValue("jsonData"), "hang") }
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hung(r) {
			<-hang
		}
		_, _ = io.WriteString(w, r.FormValue("jsonData"))
	}))
	defer server.Close()
	defer close(hang)
	c := New(Options{BaseURL: server.URL, Connect: 5 * time.Second, Total: 300 * time.Millisecond, Concurrency: 1})
	const success, failure = `{"result":"success"}`, `{"result":"fail","messageCode":"ETYP0040"}`
	long := `{"result":"success","more":"` + strings.Repeat("x", 2000) + `"}` // of which the first keptBody bytes are kept
	var answers []delivery.Answer
	for _, step := range []struct {
		endpoint, answer string
		want             delivery.Outcome
		again            bool // is there an exchange to be used again?
	}{
		{"createCallStart", success, delivery.Delivered, true},
		{"createCallStart", success, delivery.Delivered, true},
		{"createCallStart", failure, delivery.AppError, true},
		{"createCallEnd", failure + " ", delivery.AppError, true},
		{"createCallEnd", `{"result":"success","more":1}`, delivery.Delivered, true},
		{"createCallEnd", success, delivery.Delivered, true},
		{"createCallEnd", long, delivery.Delivered, true},
		{"createCallEnd", long[:keptBody], delivery.Transport, true},
		{"createCallEnd", "hang", delivery.Uncertain, false},
		{"createCallEnd", success, delivery.Delivered, true},
	} {
		answer := c.Send(t.Context(), step.endpoint, []byte(step.answer))
		if answer.Outcome != step.want || (len(c.idle) == 1) != step.again {
			t.Fatalf("%s: %+v, %d exchanges are kept", step.answer, answer, len(c.idle))
		}
		if step.again {
			x := <-c.idle
			if x.late.Stop() || x.ctx.Err() != nil {
				t.Errorf("%s: its time goes on", step.answer)
			}
			c.idle <- x
		}
		if answers = append(answers, answer); step.want == delivery.Uncertain && !strings.Contains(answer.Reason, "not within 300ms") {
			t.Error(answer.Reason)
		}
	}
	for i, want := range []string{success, success, failure, failure + " ", `{"result":"success","more":1}`, success,
		long[:keptBody], long[:keptBody], "", success} {
		if got := string(answers[i].Body); got != want {
			t.Errorf("the body of answer %d became %q", i, got)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if answer := c.Send(ctx, "createCallEnd", nil); answer.Outcome != delivery.Unsent {
		t.Errorf("of a context that had ended: %+v", answer)
	}
}

// An answer can come before the request was read: what net/http still writes is not overwritten by the next request.
func TestAnswerBeforeTheEndOfTheRequest(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = conn.Read(make([]byte, 100))
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 20\r\n\r\n{\"result\":\"success\"}")
				_, _ = io.Copy(io.Discard, conn)
			}()
		}
	}()
	c := New(Options{BaseURL: "http://" + l.Addr().String(), Connect: 5 * time.Second, Total: 5 * time.Second, Concurrency: 1})
	for range 10 {
		if answer := c.Send(t.Context(), "createCallEnd", make([]byte, 1<<20)); answer.Outcome != delivery.Delivered {
			t.Fatalf("%+v", answer)
		}
	}
}
