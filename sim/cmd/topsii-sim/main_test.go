package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"callrelay/sim/topsii"
)

// It serves, accepts the key it was given, and stops at once though a request hangs.
func TestRun(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, in, "127.0.0.1:0", strings.Repeat("k", 32)) }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	base := strings.TrimSpace(line[strings.Index(line, "http://"):])

	send := func(method, path, key, body string) (string, error) {
		req, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
		if err != nil {
			return "", err
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set(topsii.KeyHeader, key)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	path := topsii.DefaultPathPrefix + topsii.CallStart + ".json"
	form := url.Values{"jsonData": {`{"predictiveCallCreateCallStart":{"callId":1,"predictiveStaffId":"A","targetTel":"03000000001"}}`}}.Encode()
	if got, err := send("POST", path, strings.Repeat("k", 32), form); err != nil || !strings.Contains(got, "success") {
		t.Fatalf("%s %v", got, err)
	}
	if got, err := send("POST", path, strings.Repeat("x", 32), form); err != nil || !strings.Contains(got, "WTYP0030") {
		t.Fatalf("%s %v", got, err)
	}
	if got, err := send("GET", "/sim/held", "", ""); err != nil || !strings.Contains(got, "03000000001") {
		t.Fatalf("%s %v", got, err)
	}

	if got, err := send("PUT", "/sim/fault", "", `{"kind":"hang","effect":true}`); err != nil || !strings.Contains(got, "hang") {
		t.Fatalf("%s %v", got, err)
	}
	hung := make(chan error, 1)
	go func() {
		_, err := send("POST", path, strings.Repeat("k", 32), form)
		hung <- err
	}()
	for held := ""; strings.Count(held, "targetTel") != 2; { // the effect comes before the hanging
		if held, err = send("GET", "/sim/held", "", ""); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	if err := <-hung; err == nil {
		t.Error("the hanging request was answered")
	}
	if err := run(t.Context(), io.Discard, "127.0.0.1:x", ""); err == nil {
		t.Error("a wrong address is accepted")
	}
}
