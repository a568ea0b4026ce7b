package retry_test

import (
	"math"
	"testing"
	"time"

	"callrelay/services/upstream/internal/retry"
)

func TestCeilingDoublesUpToMax(t *testing.T) {
	backoff := retry.Backoff{Base: time.Second, Max: 5 * time.Minute}
	for n, want := range map[int]time.Duration{
		0: time.Second, 1: time.Second, 2: 2 * time.Second, 3: 4 * time.Second, 9: 256 * time.Second,
		10: 5 * time.Minute, 64: 5 * time.Minute, math.MaxInt32: 5 * time.Minute,
	} {
		if got := backoff.Ceiling(n); got != want {
			t.Errorf("Ceiling(%d) = %v, want %v", n, got, want)
		}
	}
	if got := (retry.Backoff{Base: time.Minute, Max: time.Second}).Ceiling(1); got != time.Second {
		t.Errorf("a base above the maximum waits %v, want the maximum", got)
	}
}

func TestDelayIsFullJitter(t *testing.T) {
	backoff := retry.Backoff{Base: time.Second, Max: 5 * time.Minute}
	for _, draw := range []float64{0, 0.25, 0.5, 0.999} {
		want := time.Duration(draw * float64(8*time.Second))
		if got := backoff.Delay(4, func() float64 { return draw }); got != want {
			t.Errorf("Delay(4) with draw %v = %v, want %v", draw, got, want)
		}
	}
}
