// Package lanes lets one at a time through of those that share a key: the callbacks of a call, in ingress as far as their
// acknowledgement, in router as far as their commit.
package lanes

import (
	"context"
	"sync"
)

// Lanes let one of a key through at a time, in the order in which they came; other keys are not delayed. The zero value works.
type Lanes struct {
	mu sync.Mutex
	m  map[string]*lane
}

type lane struct {
	turn  chan struct{} // holds one token while nobody is in the lane
	users int
}

// Enter waits for the key's lane. Leave must be called when there is no error; else it is the cause of ctx' end.
func (l *Lanes) Enter(ctx context.Context, key string) (leave func(), err error) {
	l.mu.Lock()
	if l.m == nil {
		l.m = map[string]*lane{}
	}
	one := l.m[key]
	if one == nil {
		one = &lane{turn: make(chan struct{}, 1)}
		one.turn <- struct{}{}
		l.m[key] = one
	}
	one.users++
	l.mu.Unlock()
	select {
	case <-one.turn: // blocked receivers are served first come, first served
		return func() {
			one.turn <- struct{}{}
			l.left(key, one)
		}, nil
	case <-ctx.Done():
		l.left(key, one)
		return nil, context.Cause(ctx)
	}
}

func (l *Lanes) left(key string, one *lane) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if one.users--; one.users == 0 {
		delete(l.m, key)
	}
}
