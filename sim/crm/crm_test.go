package crm

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestTake(t *testing.T) {
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	c, err := New(secret)
	if err != nil {
		t.Fatal(err)
	}
	post := func(id, body string, at time.Time, sign string) int {
		r := httptest.NewRequest(http.MethodPost, "/hooks/calls", strings.NewReader(body))
		stamp := strconv.FormatInt(at.Unix(), 10)
		key, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(sign, "whsec_"))
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(id + "." + stamp + "." + body))
		r.Header.Set("Webhook-Id", id)
		r.Header.Set("Webhook-Timestamp", stamp)
		r.Header.Set("Webhook-Signature", "v1,b2xk v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
		w := httptest.NewRecorder()
		c.ServeHTTP(w, r)
		return w.Code
	}
	now := time.Now()
	for i, step := range []struct {
		id, body string
		at       time.Time
		secret   string
		want     int
	}{
		{"msg_1", `{"type":"call.registered"}`, now, secret, 204},
		{"msg_1", `{"type":"call.registered"}`, now, secret, 204}, // again
		{"msg_2", `{}`, now.Add(-time.Hour), secret, 401},
		{"msg_2", `{}`, now, "whsec_AAAA", 401},
		{"", `{}`, now, secret, 401},
		{"msg_3", `{`, now, secret, 422},
		{"msg_4", strings.Repeat(" ", maxBody+1), now, secret, 413},
	} {
		if got := post(step.id, step.body, step.at, step.secret); got != step.want {
			t.Errorf("step %d: %d, want %d", i, got, step.want)
		}
	}
	w := httptest.NewRecorder()
	c.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/hooks/calls", nil))
	if got := strings.TrimSpace(w.Body.String()); got != `{"held":[{"id":"msg_1","body":{"type":"call.registered"}}]}` {
		t.Errorf("held %s", got)
	}
	for i := range kept + 1 {
		post(strconv.Itoa(i), `{}`, now, secret)
	}
	if len(c.held) != kept || len(c.seen) != kept {
		t.Errorf("holds %d, knows %d", len(c.held), len(c.seen))
	}
}
