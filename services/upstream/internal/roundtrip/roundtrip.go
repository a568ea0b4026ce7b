// Package roundtrip is what all clients need to know of one HTTP request beside its answer: whether it left, what its error
// means in words, and when its server wants the next one. It makes no request itself, and does not know what any answer means.
package roundtrip

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"callrelay/platform/telemetry"
)

// maxWords bounds an error's text, in bytes.
const maxWords = 300

// Watch returns the context with which to make one request, and what says afterwards whether it may have left: from the moment
// it has a connection, for a cancelled one can still be on its way into the socket while RoundTrip already returned. net/http
// tries another connection only after writing nothing, and then asks for one again, which takes the mark back.
func Watch(ctx context.Context) (watched context.Context, left *atomic.Bool) {
	left = new(atomic.Bool)
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn: func(string) { left.Store(false) },
		GotConn: func(httptrace.GotConnInfo) { left.Store(true) },
	}), left
}

// Words turns an error of the transport into something for people, with what could be a phone number masked. limit is how long
// the request might take, in words.
func Words(err error, limit string) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "not within " + limit
	case errors.Is(err, context.Canceled):
		return "this relay was stopped meanwhile"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was cut"
	}
	return telemetry.MaskDigits(Bounded(err.Error(), maxWords))
}

// Bounded makes text from outside at most n bytes of valid UTF-8.
func Bounded(text string, n int) string {
	return strings.ToValidUTF8(text[:min(len(text), n)], "")
}

// RetryAfter reads a Retry-After header: seconds or an HTTP date, 0 to most, since a mistaken date must not stop anything for
// weeks. It is false when there is none that can be read.
func RetryAfter(header http.Header, now time.Time, most time.Duration) (wait time.Duration, given bool) {
	value := header.Get("Retry-After")
	if value == "" {
		return 0, false
	}
	if seconds, err := strconv.Atoi(value); err == nil {
		wait = time.Duration(min(seconds, int(most/time.Second))) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		wait = at.Sub(now)
	} else {
		return 0, false
	}
	return min(max(wait, 0), most), true
}
