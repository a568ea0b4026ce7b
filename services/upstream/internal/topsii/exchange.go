package topsii

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"
)

// exchange is what one request needs. To make all of it anew for each, contexts above all, was a third of what a delivery
// allocates: that of a request that ended well serves the next one.
type exchange struct {
	// ctx is that of the requests. It ends with parent, and when one took too long.
	parent, ctx context.Context
	cancel      context.CancelCauseFunc
	late        *time.Timer
	// left: the request may have left, as it may from the moment it has a connection: a cancelled one can still be on its way
	// into the socket while RoundTrip already returned. net/http tries another connection only after writing nothing, and
	// then asks for one again, which takes the mark back.
	left atomic.Bool
	// written: net/http has read the whole form. ended: the whole answer was read. After both it uses nothing of this.
	written atomic.Bool
	ended   bool

	request *http.Request
	form    []byte
	reader  bytes.Reader // of form
	limit   io.LimitedReader
	answer  bytes.Buffer
}

// begin returns an exchange whose requests end with ctx, or after the longest time that one may take.
func (c *Client) begin(ctx context.Context) *exchange {
	select {
	case x := <-c.idle:
		if x.parent == ctx {
			x.late.Reset(c.options.Total)
			return x
		}
		x.cancel(nil)
	default:
	}
	x := &exchange{parent: ctx}
	ctx, x.cancel = context.WithCancelCause(ctx)
	x.late = time.AfterFunc(c.options.Total, func() { x.cancel(context.DeadlineExceeded) })
	x.ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn:      func(string) { x.left.Store(false); x.written.Store(false) },
		GotConn:      func(httptrace.GotConnInfo) { x.left.Store(true) },
		WroteRequest: func(httptrace.WroteRequestInfo) { x.written.Store(true) },
	})
	return x
}

// end keeps an exchange for the next request, unless net/http may still use something of it.
func (c *Client) end(x *exchange) {
	if x.ended && x.written.Load() && x.late.Stop() {
		select {
		case c.idle <- x:
			return
		default:
		}
	}
	x.late.Stop()
	x.cancel(nil)
}

// post is the request with a payload. A RoundTripper changes neither a request nor its header, so all share theirs.
func (x *exchange) post(e *endpoint, payload []byte) *http.Request {
	x.left.Store(false)
	x.written.Store(false)
	x.ended = false
	x.form = appendForm(x.form[:0], payload)
	x.reader.Reset(x.form)
	if x.request == nil {
		x.request = e.request.WithContext(x.ctx)
		x.request.Body = io.NopCloser(&x.reader)
		x.request.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(x.form)), nil }
	}
	x.request.URL = e.request.URL
	x.request.ContentLength = int64(len(x.form))
	return x.request
}

// read reads an answer, up to maxBody. The next one overwrites what it returns.
func (x *exchange) read(body io.Reader) ([]byte, error) {
	x.limit = io.LimitedReader{R: body, N: maxBody}
	x.answer.Reset()
	_, err := x.answer.ReadFrom(&x.limit)
	x.ended = err == nil && x.limit.N > 0
	return x.answer.Bytes(), err
}

// appendForm appends the body of a request: the payload as the value of jsonData, escaped as url.QueryEscape does it, which
// makes four strings of it on the way.
func appendForm(form, payload []byte) []byte {
	const hex = "0123456789ABCDEF"
	form = append(form, "jsonData="...)
	for _, b := range payload {
		switch {
		case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9', b == '-', b == '_', b == '.', b == '~':
			form = append(form, b)
		case b == ' ':
			form = append(form, '+')
		default:
			form = append(form, '%', hex[b>>4], hex[b&15])
		}
	}
	return form
}
