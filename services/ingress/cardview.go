package ingress

import (
	"maps"
	"slices"
	"strings"
	"sync"

	ingressv1 "callrelay/gen/callrelay/ingress/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
)

// cardUser is whose cards they are.
type cardUser struct{ integration, user string }

// cardView is every open card, as state tells it, and who watches them. State's complete lists, some seconds apart, put right
// whatever was missed; between two of them a change counts only if it is newer than what is known of its card.
type cardView struct {
	mu    sync.Mutex
	live  bool
	cards map[string]*ingressv1.Card
	users map[string]cardUser // card -> whose
	open  map[cardUser]map[string]*ingressv1.Card
	// ended are the last versions of cards that ended since the last list but one: an older change may still come.
	ended, endedBefore map[string]uint32

	watchers map[cardUser][]*cardWatcher
	watching int
}

func newCardView() *cardView {
	return &cardView{cards: map[string]*ingressv1.Card{}, users: map[string]cardUser{}, open: map[cardUser]map[string]*ingressv1.Card{},
		ended: map[string]uint32{}, watchers: map[cardUser][]*cardWatcher{}}
}

// maxPending is how many cards may have changed before a watcher that is too slow is told all open ones instead.
const maxPending = 32

// maxWatchers bounds the watchers of one user: the tabs of a browser.
const maxWatchers = 32

// cardWatcher is what somebody who watches has to be told next. Nobody waits for him.
type cardWatcher struct {
	user    cardUser
	wake    chan struct{}
	all     bool // the open cards
	lost    bool // that nothing is known
	told    bool // was told so
	pending []*ingressv1.Card
}

func (w *cardWatcher) ring() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func openState(state string) bool { return state == "ringing" || state == "in_call" }

// cardOf is a card as users see it; nil when it belongs to no PBX call.
func cardOf(c *statev1.CallCard) (*ingressv1.Card, cardUser) {
	from := c.GetCard()
	parts := strings.SplitN(c.GetCall(), "/", 3)
	if len(parts) != 3 || from.GetUser() == "" {
		return nil, cardUser{}
	}
	return &ingressv1.Card{Id: parts[2] + "/" + from.GetId(), State: from.GetState(), Version: from.GetVersion(), Direction: from.GetDirection(),
		Number: from.GetNumber(), Did: from.GetDid(), Extension: from.GetExtension(), TakenBy: from.GetTakenBy(), Call: c.GetCall(),
		AtMs: c.GetAtMs()}, cardUser{parts[1], from.GetUser()}
}

func cardKey(of cardUser, card *ingressv1.Card) string { return of.integration + "/" + card.GetId() }

// change takes changed cards.
func (v *cardView) change(changed []*statev1.CallCard) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, c := range changed {
		card, of := cardOf(c)
		if card == nil {
			continue
		}
		key := cardKey(of, card)
		if card.GetVersion() > max(v.cards[key].GetVersion(), v.ended[key], v.endedBefore[key]) {
			v.put(key, of, card)
		}
	}
}

// list takes all open cards: what is not among them has ended.
func (v *cardView) list(open []*statev1.CallCard) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ended, v.endedBefore = map[string]uint32{}, v.ended
	there := map[string]bool{}
	for _, c := range open {
		card, of := cardOf(c)
		if card == nil {
			continue
		}
		key := cardKey(of, card)
		there[key] = true
		if known := v.cards[key]; known.GetVersion() != card.GetVersion() || v.users[key] != of {
			v.put(key, of, card)
		}
	}
	for key := range v.cards {
		if !there[key] {
			v.end(key)
		}
	}
	v.live = true
	for _, of := range v.watchers {
		for _, w := range of {
			if w.lost || w.told {
				w.lost, w.told, w.all, w.pending = false, false, true, nil
				w.ring()
			}
		}
	}
}

// lost says that state does not tell what happens.
func (v *cardView) lost() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.live = false
	for _, of := range v.watchers {
		for _, w := range of {
			w.lost, w.all, w.pending = true, false, nil
			w.ring()
		}
	}
}

func (v *cardView) put(key string, of cardUser, card *ingressv1.Card) {
	if v.cards[key] != nil && v.users[key] != of {
		v.end(key)
	}
	if openState(card.GetState()) {
		v.cards[key], v.users[key] = card, of
		if v.open[of] == nil {
			v.open[of] = map[string]*ingressv1.Card{}
		}
		v.open[of][key] = card
	} else {
		v.forget(key)
		v.ended[key] = card.GetVersion()
	}
	v.tell(of, card)
}

// end ends a card whose own end was not told.
func (v *cardView) end(key string) {
	old, of := v.cards[key], v.users[key]
	v.forget(key)
	v.tell(of, &ingressv1.Card{Id: old.GetId(), State: "ended", Version: old.GetVersion() + 1, Direction: old.GetDirection(), Number: old.GetNumber(),
		Did: old.GetDid(), Extension: old.GetExtension(), Call: old.GetCall(), AtMs: old.GetAtMs()})
}

func (v *cardView) forget(key string) {
	of := v.users[key]
	delete(v.cards, key)
	delete(v.users, key)
	if delete(v.open[of], key); len(v.open[of]) == 0 {
		delete(v.open, of)
	}
}

func (v *cardView) tell(of cardUser, card *ingressv1.Card) {
	for _, w := range v.watchers[of] {
		switch i := slices.IndexFunc(w.pending, func(p *ingressv1.Card) bool { return p.GetId() == card.GetId() }); {
		case w.lost || w.told || w.all: // all of them follow anyway
		case i >= 0:
			w.pending[i] = card
		case len(w.pending) == maxPending:
			w.all, w.pending = true, nil
		default:
			w.pending = append(w.pending, card)
		}
		w.ring()
	}
}

// join begins to watch: the open cards come first. It is refused when too many do.
func (v *cardView) join(of cardUser, most int) *cardWatcher {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.watching >= most || len(v.watchers[of]) >= maxWatchers {
		return nil
	}
	w := &cardWatcher{user: of, wake: make(chan struct{}, 1), all: v.live, lost: !v.live}
	w.ring()
	v.watchers[of] = append(v.watchers[of], w)
	v.watching++
	return w
}

func (v *cardView) leave(w *cardWatcher) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.watching--
	rest := slices.DeleteFunc(v.watchers[w.user], func(o *cardWatcher) bool { return o == w })
	if v.watchers[w.user] = rest; len(rest) == 0 {
		delete(v.watchers, w.user)
	}
}

// next is what the watcher has to be told; nil: nothing.
func (v *cardView) next(w *cardWatcher) *ingressv1.WatchCardsResponse {
	v.mu.Lock()
	defer v.mu.Unlock()
	var r *ingressv1.WatchCardsResponse
	switch {
	case w.lost:
		w.lost, w.told = false, true
		return &ingressv1.WatchCardsResponse{Lost: true}
	case w.all:
		r = &ingressv1.WatchCardsResponse{All: true}
		for _, key := range slices.Sorted(maps.Keys(v.open[w.user])) {
			r.Cards = append(r.Cards, v.open[w.user][key])
		}
	case len(w.pending) > 0:
		r = &ingressv1.WatchCardsResponse{Cards: w.pending}
	}
	w.all, w.pending = false, nil
	return r
}
