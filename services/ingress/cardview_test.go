package ingress

import (
	"fmt"
	"maps"
	"testing"

	"pgregory.net/rapid"

	ingressv1 "callrelay/gen/callrelay/ingress/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
)

// A page shows what is open: changes may be lost, repeated and in any order, watchers slow, and state away; after the next
// complete list everybody who reads what there is for him shows the open cards of his user, no other, and none that ended.
func TestPagesShowWhatIsOpen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := newCardView()
		type pageOf struct {
			user  string
			w     *cardWatcher
			shows map[string]uint32
		}
		var pages []*pageOf
		read := func(p *pageOf) {
			for m := v.next(p.w); m != nil; m = v.next(p.w) {
				if m.GetAll() {
					p.shows = map[string]uint32{}
				}
				for _, c := range m.GetCards() {
					if c.GetNumber() != p.user {
						t.Fatalf("%s sees a card of %s", p.user, c.GetNumber())
					}
					if c.GetVersion() < p.shows[c.GetId()] {
						t.Fatalf("%s goes back from version %d to %d", c.GetId(), p.shows[c.GetId()], c.GetVersion())
					}
					if delete(p.shows, c.GetId()); openState(c.GetState()) {
						p.shows[c.GetId()] = c.GetVersion()
					}
				}
			}
		}
		user := rapid.SampledFrom([]string{"a", "b"})
		truth := map[string]*statev1.CallCard{} // the last version of each card
		var told []*statev1.CallCard            // what was published and may still arrive
		list := func() (open []*statev1.CallCard) {
			for _, c := range truth {
				if openState(c.GetCard().GetState()) {
					open = append(open, c)
				}
			}
			return open
		}
		t.Repeat(map[string]func(*rapid.T){
			"commit": func(t *rapid.T) {
				leg := fmt.Sprint(rapid.IntRange(0, 40).Draw(t, "leg"))
				old := truth[leg].GetCard()
				who := old.GetUser()
				if who == "" {
					who = user.Draw(t, "user")
				}
				c := &statev1.CallCard{Call: "pbx/acme/C", Card: &statev1.PbxCard{Id: leg, User: who, Number: who, Version: old.GetVersion() + 1,
					State: rapid.SampledFrom([]string{"ringing", "in_call", "taken", "ended"}).Draw(t, "state")}}
				truth[leg] = c
				told = append(told, c)
			},
			"tell": func(t *rapid.T) {
				if len(told) > 0 {
					i := rapid.IntRange(0, len(told)-1).Draw(t, "which")
					v.change([]*statev1.CallCard{told[i]})
					if rapid.Bool().Draw(t, "once") {
						told = append(told[:i], told[i+1:]...)
					}
				}
			},
			"list": func(*rapid.T) { v.list(list()); told = nil },
			"lost": func(*rapid.T) { v.lost() },
			"join": func(t *rapid.T) {
				who := user.Draw(t, "user")
				if w := v.join(cardUser{"acme", who}, 8); w != nil {
					pages = append(pages, &pageOf{who, w, map[string]uint32{}})
				}
			},
			"read": func(t *rapid.T) {
				if len(pages) > 0 {
					read(pages[rapid.IntRange(0, len(pages)-1).Draw(t, "page")])
				}
			},
			"leave": func(t *rapid.T) {
				if len(pages) > 0 {
					v.leave(pages[0].w)
					pages = pages[1:]
				}
			},
		})
		v.list(list())
		for _, p := range pages {
			read(p)
			want := map[string]uint32{}
			for leg, c := range truth {
				if c.GetCard().GetUser() == p.user && openState(c.GetCard().GetState()) {
					want["C/"+leg] = c.GetCard().GetVersion()
				}
			}
			if !maps.Equal(p.shows, want) {
				t.Fatalf("%s shows %v, want %v", p.user, p.shows, want)
			}
			if len(p.w.pending) > 0 {
				t.Fatal("something waits")
			}
		}
		for _, p := range pages {
			v.leave(p.w)
		}
		if v.watching != 0 || len(v.watchers) != 0 {
			t.Fatalf("%d watch", v.watching)
		}
	})
}

// A watcher that reads nothing holds a bounded part, and harms nobody.
func TestSlowPage(t *testing.T) {
	v := newCardView()
	v.list(nil)
	of := cardUser{"acme", "a"}
	slow := v.join(of, 1)
	if v.join(of, 1) != nil {
		t.Error("one too many was let in")
	}
	v.next(slow)
	for i := range 10 * maxPending {
		v.change([]*statev1.CallCard{{Call: "pbx/acme/C", Card: &statev1.PbxCard{Id: fmt.Sprint(i), User: "a", State: "ringing", Version: 1}}})
	}
	if len(slow.pending) > maxPending {
		t.Errorf("%d wait", len(slow.pending))
	}
	var m *ingressv1.WatchCardsResponse = v.next(slow)
	if !m.GetAll() || len(m.GetCards()) != 10*maxPending || v.next(slow) != nil {
		t.Errorf("told %v with %d cards", m.GetAll(), len(m.GetCards()))
	}
}
