package store

import (
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func testLimits(t *testing.T, s *Store) {
	const places = 7
	take := func(name, token string) time.Duration {
		t.Helper()
		wait, err := s.Take(ctx, name, token, places, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return wait
	}
	// However many ask at the same time.
	var taken atomic.Int32
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if wait, err := s.Take(ctx, "many", fmt.Sprint("t", i), places, time.Minute); err != nil {
				t.Error(err)
			} else if wait == 0 {
				taken.Add(1)
			} else if wait != aSecond {
				t.Errorf("nobody gave a place back, and yet one is free in %v", wait)
			}
		})
	}
	wg.Wait()
	if taken.Load() != places {
		t.Fatalf("%d got one of %d places", taken.Load(), places)
	}

	for i := range 2 * places {
		if wait := take("one", fmt.Sprint("t", i/2)); wait != 0 {
			t.Fatalf("place %d, asked for the %dth time: in %v", i/2, i%2+1, wait)
		}
	}
	release := func(name, token string, unused bool) {
		t.Helper()
		if err := s.ReleasePlace(ctx, name, token, unused); err != nil {
			t.Fatal(err)
		}
	}
	release("one", "nobody", false)
	release("one", "t3", false)
	if wait := take("one", "next"); wait <= 0 || wait > aSecond {
		t.Errorf("given back a moment ago, free in %v", wait)
	}
	release("one", "t4", true)
	if wait := take("one", "next"); wait != 0 {
		t.Errorf("given back unused, free in %v", wait)
	}

	for _, d := range []time.Duration{time.Hour, time.Second} {
		if err := s.Pause(ctx, "two", d); err != nil {
			t.Fatal(err)
		}
	}
	if wait := take("two", "a"); wait < 59*time.Minute {
		t.Errorf("in a pause of an hour: %v", wait)
	}
	for name, most := range map[string]time.Duration{"one": time.Minute, "two": time.Hour} {
		if ttl, err := s.client.PTTL(ctx, keyLimit(name)).Result(); err != nil || ttl <= 0 || ttl > most+2*time.Second {
			t.Errorf("it lives for %v, %v", ttl, err)
		}
	}
}

// However requests, answers, failures and crashes come: in no second do more requests arrive than there are places.
func testLimitsArrivals(t *testing.T, s *Store) {
	const (
		patience = 15 * time.Second // then a request is given up
		late     = 4 * time.Second  // it may arrive so long after
		lease    = patience + late + aSecond
	)
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		name, places := fmt.Sprint("run-", runs), rapid.IntRange(1, 7).Draw(rt, "places")
		now := time.UnixMicro(1_800_000_000_000_000)
		limit := func(verb, token string, ends time.Duration) time.Duration {
			wait, err := s.limit(ctx, name, verb, token, ends, places, strconv.FormatInt(now.UnixMicro(), 10))
			if err != nil {
				rt.Fatal(err)
			}
			return wait
		}
		type answer struct {
			at    time.Time
			token string
			ends  time.Duration
		}
		var answers []answer // that are still to come
		var arrivals []time.Time
		moment := func(most time.Duration, what string) time.Duration {
			return time.Duration(rapid.OneOf(rapid.Int64Range(0, 20_000), rapid.Int64Range(0, most.Microseconds())).Draw(rt, what)) * time.Microsecond
		}
		for n := range rapid.IntRange(1, 60).Draw(rt, "requests") {
			token := fmt.Sprint(n)
			for {
				slices.SortFunc(answers, func(a, b answer) int { return a.at.Compare(b.at) })
				for len(answers) > 0 && !answers[0].at.After(now) {
					asked := now
					now = answers[0].at
					limit("release", answers[0].token, answers[0].ends)
					now, answers = asked, answers[1:]
				}
				wait := limit("take", token, lease)
				if wait == 0 {
					break
				}
				now = now.Add(wait)
			}
			way, back := moment(10*time.Second, "way"), moment(30*time.Second, "back")
			switch {
			case rapid.IntRange(0, 9).Draw(rt, "end") == 0: // the process dies
				arrivals = append(arrivals, now.Add(min(way, patience+late)))
			case rapid.IntRange(0, 9).Draw(rt, "unsent") == 0:
				answers = append(answers, answer{now.Add(min(way, patience)), token, 0})
			case way+back > patience: // it is given up, and keeps its place
				arrivals = append(arrivals, now.Add(min(way, patience+late)))
			default:
				arrivals = append(arrivals, now.Add(way))
				answers = append(answers, answer{now.Add(way + back), token, aSecond})
			}
			now = now.Add(moment(3*time.Second, "next"))
		}
		slices.SortFunc(arrivals, time.Time.Compare)
		for i := places; i < len(arrivals); i++ {
			if within := arrivals[i].Sub(arrivals[i-places]); within < time.Second {
				rt.Fatalf("%d requests arrive within %v", places+1, within)
			}
		}
	})
}
