package store

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/redistest"
)

// sender follows the protocol of Share as upstream does.
type sender struct {
	req   *statev1.ShareRequest
	share int32
	uses  int32 // requests that run now
}

func newSender(name, instance string, limit int32) *sender {
	return &sender{req: &statev1.ShareRequest{Destination: dest, Name: name, Instance: instance, Limit: limit, Wanted: true, ForMs: 60_000}}
}

func (d *sender) ask(t interface{ Fatal(...any) }, s *Store, lost bool) (taken bool) {
	d.req.Held = max(d.share, d.uses)
	share, taken, err := s.Share(ctx, d.req)
	if err != nil {
		t.Fatal(err)
	}
	if !lost && !taken {
		d.share, d.req.Known = share, true
	}
	return taken
}

func testShare(t *testing.T, s *Store) {
	rounds := func(n int, all ...*sender) {
		for range n {
			for _, d := range all {
				if d.ask(t, s, false) {
					t.Fatalf("the name of %v is taken", d.req)
				}
			}
		}
	}
	want := func(what string, d *sender, share int32) {
		t.Helper()
		if d.share != share {
			t.Errorf("%s: %s has %d, want %d", what, d.req.GetName(), d.share, share)
		}
	}
	a, b, c := newSender("a", "a1", 32), newSender("b", "b1", 32), newSender("c", "c1", 32)
	rounds(1, a)
	want("alone", a, 32)
	a.uses = 30
	rounds(1, b)
	want("the first still has all", b, 0)
	rounds(2, a, b)
	want("told to use less", a, 16)
	want("30 still run at the first", b, 2)
	a.uses = 10
	rounds(2, a, b)
	want("they have ended", b, 16)
	rounds(4, a, b, c)
	if a.share+b.share+c.share != 32 || min(a.share, b.share, c.share) != 10 {
		t.Errorf("of 32 they have %d, %d and %d", a.share, b.share, c.share)
	}

	// After a crash the next process takes the place of the one before it at once; that one, if it lives, is told.
	again := newSender("b", "b2", 32)
	rounds(1, again)
	want("after a restart", again, b.share)
	if !b.ask(t, s, false) {
		t.Error("two processes go by one name, and neither is told")
	}
	// One that gives up leaves the rest to the others, once nothing runs there.
	a.req.Wanted, a.uses = false, 6
	rounds(3, a, again, c)
	want("ended", a, 0)
	if again.share+c.share != 26 {
		t.Errorf("6 still run, and the others have %d and %d of 32", again.share, c.share)
	}
	a.uses = 0
	rounds(3, a, again, c)
	want("the others' half", again, 16)
	// The smallest limit holds.
	c.req.Limit = 5
	rounds(3, again, c)
	if again.share+c.share != 5 || min(again.share, c.share) != 2 {
		t.Errorf("of 5 they have %d and %d", again.share, c.share)
	}
	// Who is silent for too long has nothing any more.
	c.req.ForMs = 2_000
	redistest.Poll(t, 10*time.Second, "the silent one's share comes back", func() bool {
		c.ask(t, s, false)
		return c.share == 5
	})
}

// However many ask, in whatever order, with answers that get lost: what they use together never exceeds the smallest limit.
func TestSharesNeverExceedTheLimit(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	rapid.Check(t, func(t *rapid.T) {
		if err := s.client.Del(ctx, keyShares(dest)).Err(); err != nil {
			t.Fatal(err)
		}
		limit := rapid.Int32Range(1, 12).Draw(t, "limit")
		var all []*sender
		for i := range rapid.IntRange(1, 4).Draw(t, "senders") {
			all = append(all, newSender(fmt.Sprint("s", i), "1", limit))
		}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			d := rapid.SampledFrom(all).Draw(t, "sender")
			if rapid.IntRange(0, 3).Draw(t, "step") == 0 {
				d.req.Wanted = rapid.Bool().Draw(t, "wanted")
				d.ask(t, s, rapid.IntRange(0, 4).Draw(t, "lost") == 0)
			} else if d.uses = rapid.Int32Range(0, limit).Draw(t, "uses"); d.uses > d.share {
				d.uses = d.share // what runs may end, and what starts needs room
			}
			sum := int32(0)
			for _, d := range all {
				sum += max(d.share, d.uses)
			}
			if sum > limit {
				t.Fatalf("%d may run of %d: %v", sum, limit, all)
			}
		}
		for range 6 {
			for _, d := range all {
				d.req.Wanted, d.uses = true, 0
				d.ask(t, s, false)
			}
		}
		sum, least, most := int32(0), limit, int32(0)
		for _, d := range all {
			sum, least, most = sum+d.share, min(least, d.share), max(most, d.share)
		}
		if sum != limit || most-least > 1 {
			t.Fatalf("of %d they come to have %v", limit, all)
		}
	})
}
