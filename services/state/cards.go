package state

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
)

const (
	// cardsEvery is how often watchers are told all open cards: whatever they missed lasts no longer.
	cardsEvery = 5 * time.Second
	// cardsWaiting is how many changes may wait for a watcher, in commits; one that is slower is told all open cards instead.
	cardsWaiting = 1024
	// cardsPart bounds one message.
	cardsPart = 1000
)

// cardFeed hands changed cards to whoever watches, after they were committed. The path of a callback only puts them into
// memory.
type cardFeed struct {
	mu       sync.Mutex
	watchers []*cardWatcher
}

type cardWatcher struct {
	changes chan []*statev1.CallCard
	missed  atomic.Bool
}

func (f *cardFeed) tell(cards []*statev1.CallCard) {
	if len(cards) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.watchers {
		select {
		case w.changes <- cards:
		default:
			w.missed.Store(true)
		}
	}
}

func (f *cardFeed) join() *cardWatcher {
	w := &cardWatcher{changes: make(chan []*statev1.CallCard, cardsWaiting)}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers = append(f.watchers, w)
	return w
}

func (f *cardFeed) leave(w *cardWatcher) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers = slices.DeleteFunc(f.watchers, func(o *cardWatcher) bool { return o == w })
}

type cards struct {
	statev1.UnimplementedCardServiceServer
	*Service
}

// WatchCards tells all open cards and each change. A change is told only after it was written, so a list that is read later
// has it.
func (s *cards) WatchCards(_ *statev1.WatchCardsRequest, stream statev1.CardService_WatchCardsServer) error {
	w := s.cards.join()
	defer s.cards.leave(w)
	tick := time.NewTicker(cardsEvery)
	defer tick.Stop()
	for {
		for w.missed.Store(false); len(w.changes) > 0; {
			<-w.changes // what is read now has it
		}
		ctx, cancel := context.WithTimeout(stream.Context(), redisTimeout)
		open, err := s.store.Cards(ctx)
		cancel()
		if err != nil {
			return unavailable(err)
		}
		for more := true; more; {
			part := open[:min(len(open), cardsPart)]
			open = open[len(part):]
			more = len(open) > 0
			if err := stream.Send(&statev1.WatchCardsResponse{Cards: part, All: true, More: more}); err != nil {
				return err
			}
		}
		for again := false; !again; {
			select {
			case <-stream.Context().Done():
				return nil
			case <-s.stopping:
				return nil
			case changed := <-w.changes:
				if err := stream.Send(&statev1.WatchCardsResponse{Cards: changed}); err != nil {
					return err
				}
				again = w.missed.Load()
			case <-tick.C:
				again = true
			}
		}
	}
}
