// Package lanes lets one at a time through of those that share a key: the callbacks of a call, in ingress as far as their
// acknowledgement, in router as far as their commit.
package lanes

import (
	"context"
	"slices"
	"sync"
)

// Lanes let one of a key through at a time, in the order in which they came; other keys are not delayed. The zero value works.
type Lanes struct {
	mu sync.Mutex
	m  map[string][]chan struct{} // a key is there while somebody is in its lane; with it, who waits
}

// Enter waits for the key's lane. Leave must be called when there is no error; else it is the cause of ctx' end.
func (l *Lanes) Enter(ctx context.Context, key string) (leave func(), err error) {
	leave = func() { l.leave(key) }
	l.mu.Lock()
	waiting, busy := l.m[key]
	if !busy {
		if l.m == nil {
			l.m = map[string][]chan struct{}{}
		}
		l.m[key] = nil
		l.mu.Unlock()
		return leave, nil
	}
	turn := make(chan struct{})
	l.m[key] = append(waiting, turn)
	l.mu.Unlock()
	select {
	case <-turn:
		return leave, nil
	case <-ctx.Done():
		if !l.giveUp(key, turn) {
			leave() // its turn had come
		}
		return nil, context.Cause(ctx)
	}
}

// leave lets in who has waited longest.
func (l *Lanes) leave(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	waiting := l.m[key]
	if len(waiting) == 0 {
		delete(l.m, key)
		return
	}
	close(waiting[0])
	l.m[key] = waiting[1:]
}

// giveUp waits no longer, and reports whether it still did.
func (l *Lanes) giveUp(key string, turn chan struct{}) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.m[key], turn)
	if i >= 0 {
		l.m[key] = slices.Delete(l.m[key], i, i+1)
	}
	return i >= 0
}
