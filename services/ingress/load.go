package ingress

import (
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"callrelay/platform/errkind"
)

// load bounds the requests under way, whichever way they came in.
type load struct {
	max int64
	now atomic.Int64
}

func (l *load) enter() bool {
	if l.now.Add(1) > l.max {
		l.leave()
		return false
	}
	return true
}

func (l *load) leave() { l.now.Add(-1) }

func tooMany() *errkind.Error {
	e := errkind.Unavailable(nil, "too many requests at once; send the callback again")
	e.RetryAfter = time.Second
	return e
}

// connections closes idle connections while all are taken, so that those who only hold theirs keep nobody out.
type connections struct {
	max int

	mu   sync.Mutex
	open int
	idle map[net.Conn]struct{}
}

// state is the server's ConnState.
func (c *connections) state(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	var closing []net.Conn
	switch state {
	case http.StateNew:
		if c.open++; c.open >= c.max {
			for idle := range c.idle {
				if closing = append(closing, idle); len(closing) > c.max/16 {
					break
				}
			}
		}
	case http.StateActive:
		delete(c.idle, conn)
	case http.StateIdle:
		if c.idle[conn] = struct{}{}; c.open >= c.max {
			closing = append(closing, conn)
		}
	case http.StateHijacked: // still open: its new owner says when it is closed
		delete(c.idle, conn)
	case http.StateClosed:
		delete(c.idle, conn)
		c.open--
	}
	for _, one := range closing {
		delete(c.idle, one)
	}
	c.mu.Unlock()
	for _, one := range closing {
		_ = one.Close()
	}
}
