package delivery

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/sony/gobreaker/v2"
)

func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes []string
		b := newBreaker(BreakerSettings{Failures: 3, Open: 10 * time.Second, Probes: 2}, func(from, to string) { changes = append(changes, from+" to "+to) })
		room := func(want int) {
			t.Helper()
			if got, _ := b.room(32); got != want {
				t.Errorf("room for %d, want %d", got, want)
			}
		}
		request := func(failed, probe bool) {
			t.Helper()
			p, _, ok := b.allow()
			if !ok || p.probe != probe {
				t.Fatalf("allowed %v, probe %v", ok, p.probe)
			}
			p.done(failed)
		}
		denied := func(longest time.Duration) {
			t.Helper()
			if _, wait, ok := b.allow(); ok || wait <= 0 || wait > longest {
				t.Errorf("allowed %v, wait %v; want denied for at most %v", ok, wait, longest)
			}
		}
		pass := func(d time.Duration) { <-time.After(d) }
		paused := func(age, want time.Duration) {
			t.Helper()
			if got := b.paused(age).Round(time.Second); got != want {
				t.Errorf("%v of the last %v do not count, want %v", got, age, want)
			}
		}

		request(true, false)
		request(true, false)
		request(false, false) // only failures in a row open it
		request(true, false)
		request(true, false)
		room(32)
		request(true, false)
		room(0)
		denied(10*time.Second + time.Millisecond)
		pass(4 * time.Second)
		denied(6*time.Second + time.Millisecond)
		_, again := b.room(32)
		pass(again)
		room(2)
		first, _, _ := b.allow()
		second, _, _ := b.allow()
		denied(time.Second) // no third probe
		first.done(false)
		room(2)
		second.done(true)
		room(0)
		paused(time.Hour, 10*time.Second)
		pass(11 * time.Second)
		request(false, true)
		request(false, true)
		room(32)
		paused(time.Hour, 21*time.Second)
		pass(time.Minute)
		paused(time.Hour, 21*time.Second)
		paused(70*time.Second, 10*time.Second)
		paused(time.Minute, 0)

		want := []string{"closed to open", "open to half-open", "half-open to open", "open to half-open", "half-open to closed"}
		if len(changes) != len(want) {
			t.Fatalf("changes %v, want %v", changes, want)
		}
		for i := range want {
			if changes[i] != want[i] {
				t.Errorf("change %d is %q, want %q", i, changes[i], want[i])
			}
		}
	})
}

// A request that says nothing neither opens the breaker nor closes it, and gives back its place among the probes.
func TestBreakerVoid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(BreakerSettings{Failures: 2, Open: time.Second, Probes: 1}, func(string, string) {})
		request := func(end func(permit)) {
			t.Helper()
			p, _, ok := b.allow()
			if !ok {
				t.Fatal("not allowed")
			}
			end(p)
		}
		failed := func(p permit) { p.done(true) }
		for range 5 {
			request(permit.void)
		}
		request(failed)
		request(permit.void)
		request(failed)
		_, again := b.room(1)
		<-time.After(again)
		for range 5 {
			if request(permit.void); b.circuit.State() != gobreaker.StateHalfOpen {
				t.Errorf("a probe that says nothing makes it %v", b.circuit.State())
			}
		}
		if request(func(p permit) { p.done(false) }); b.circuit.State() != gobreaker.StateClosed {
			t.Errorf("a probe that is well makes it %v", b.circuit.State())
		}
	})
}
