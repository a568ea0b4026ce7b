package state

import (
	"sync"
	"sync/atomic"

	statev1 "callrelay/gen/callrelay/state/v1"
)

// unsureKept bounds what is remembered: at least as many, at most twice as many of each kind.
const unsureKept = 2048

// unsure remembers writes that Redis did not answer. Such a write may stand all the same; then its repeat is answered as known
// already, and nobody would ever tell the daily files, the live tail and the search of it. So they are told when the repeat
// comes to this process. It costs nothing as long as Redis answers. What is forgotten (too much is unanswered, or this process
// ends) is in the journal all the same, and is found by its call.
type unsure[T any] struct {
	some atomic.Bool // whether anything is remembered

	mu         sync.Mutex
	young, old map[string]T
}

func (u *unsure[T]) add(key string, what T) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.young) >= unsureKept {
		u.old, u.young = u.young, nil
	}
	if u.young == nil {
		u.young = map[string]T{}
	}
	u.young[key] = what
	u.some.Store(true)
}

// take forgets what it returns.
func (u *unsure[T]) take(key string) (what T, ok bool) {
	if !u.some.Load() {
		return what, false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if what, ok = u.young[key]; !ok {
		what, ok = u.old[key]
	}
	delete(u.young, key)
	delete(u.old, key)
	u.some.Store(len(u.young)+len(u.old) > 0)
	return what, ok
}

// known is told of a repeat of a commit that was there already. If nobody was told of the first one, they are now.
func (s *Service) known(repeat *statev1.CommitItem) {
	if first, ok := s.unsureCommits.take(repeat.GetInputId()); ok {
		s.committed(first)
		return
	}
	// Mostly they were. But the process that wrote it may have ended before it wrote the index; an entry twice does no harm.
	s.feed.index(s.store.Now(), repeat, false)
}
