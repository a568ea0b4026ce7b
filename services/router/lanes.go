package router

import (
	"context"
	"sync"
)

// lanes let one input of a call through at a time, in the order in which they came; other calls are not delayed.
type lanes struct {
	mu sync.Mutex
	m  map[string]*lane
}

type lane struct {
	turn  chan struct{} // holds one token while nobody is in the lane
	users int
}

// enter waits for the call's lane. Leave must be called when there is no error.
func (l *lanes) enter(ctx context.Context, call string) (leave func(), err error) {
	l.mu.Lock()
	one := l.m[call]
	if one == nil {
		one = &lane{turn: make(chan struct{}, 1)}
		one.turn <- struct{}{}
		l.m[call] = one
	}
	one.users++
	l.mu.Unlock()
	select {
	case <-one.turn: // blocked receivers are served first come, first served
		return func() {
			one.turn <- struct{}{}
			l.left(call, one)
		}, nil
	case <-ctx.Done():
		l.left(call, one)
		return nil, context.Cause(ctx)
	}
}

func (l *lanes) left(call string, one *lane) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if one.users--; one.users == 0 {
		delete(l.m, call)
	}
}
