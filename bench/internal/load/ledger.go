// Package load is the dialer of the benchmark: it sends distinct callbacks over kept connections, in a closed loop or at a
// rate, and keeps of each callback when it was due, sent, acknowledged and delivered.
//
// It owns the load, its clock and what is measured of it. It starts nothing and knows no relay: whoever receives deliveries
// calls Ledger.Delivered. It is not package dialer of the simulators, whose callbacks are of all kinds and whose client is
// net/http: here one callback must cost next to nothing, because the load shares the processors with what it measures.
package load

import (
	"math"
	"slices"
	"sync/atomic"
	"time"
)

// firstCall is the call id of the first callback, so that all are of one length.
const firstCall = 100_000_000_000

const (
	chunkSize = 1 << 13
	maxChunks = 1 << 14 // 134 million callbacks
)

// entry is one callback; times are since the ledger was made, never 0 once they are known.
type entry struct {
	due, sent, acked time.Duration // written by the lane that sends it
	delivered        atomic.Int64
}

// Ledger is everything that is known of the callbacks of one relay.
type Ledger struct {
	epoch  time.Time
	chunks [maxChunks]atomic.Pointer[[chunkSize]entry]
	next   atomic.Int64
	room   chan struct{} // holds one token for each callback in the backlog, while a Load bounds it

	accepted, refused, delivered, doubled atomic.Int64
}

// NewLedger returns an empty one, for a backlog of at most so many callbacks.
func NewLedger(backlog int) *Ledger {
	return &Ledger{epoch: time.Now(), room: make(chan struct{}, backlog)}
}

// Counts are sums since the ledger was made.
type Counts struct {
	Accepted, Refused int64
	Delivered         int64 // each callback once
	Doubled           int64 // deliveries beyond the first of a callback
}

// Counts returns the sums of now.
func (l *Ledger) Counts() Counts {
	return Counts{Accepted: l.accepted.Load(), Refused: l.refused.Load(), Delivered: l.delivered.Load(), Doubled: l.doubled.Load()}
}

// Now is the ledger's time.
func (l *Ledger) Now() time.Duration { return l.since(time.Now()) }

func (l *Ledger) since(t time.Time) time.Duration { return max(1, t.Sub(l.epoch)) }

// take makes a callback and returns its number.
func (l *Ledger) take() (int64, *entry) {
	n := l.next.Add(1) - 1
	at := &l.chunks[n/chunkSize]
	if at.Load() == nil {
		at.CompareAndSwap(nil, new([chunkSize]entry))
	}
	return n, &at.Load()[n%chunkSize]
}

// Delivered says that the delivery of a call arrived.
func (l *Ledger) Delivered(callID int64, at time.Time) {
	n := callID - firstCall
	if n < 0 || n >= l.next.Load() {
		return
	}
	if !l.chunks[n/chunkSize].Load()[n%chunkSize].delivered.CompareAndSwap(0, int64(l.since(at))) {
		l.doubled.Add(1)
		return
	}
	l.delivered.Add(1)
	l.leave()
}

// leave takes a callback out of the bounded backlog, if there is one.
func (l *Ledger) leave() {
	select {
	case <-l.room:
	default:
	}
}

// Latencies of the callbacks that were due in a window, sorted. Those that have no answer, or no delivery, are left out of
// that list. Both are counted from the moment the callback was due. Late is how late the generator sent.
type Latencies struct {
	Ack, Delivery, Late []time.Duration
}

// Latencies returns those of the window. No load may be running.
func (l *Ledger) Latencies(from, to time.Duration) Latencies {
	var out Latencies
	for n := range l.next.Load() {
		e := &l.chunks[n/chunkSize].Load()[n%chunkSize]
		if e.due < from || e.due >= to || e.sent == 0 {
			continue
		}
		out.Late = append(out.Late, e.sent-e.due)
		if e.acked > 0 {
			out.Ack = append(out.Ack, e.acked-e.due)
		}
		if at := time.Duration(e.delivered.Load()); at > 0 {
			out.Delivery = append(out.Delivery, at-e.due)
		}
	}
	for _, list := range [][]time.Duration{out.Ack, out.Delivery, out.Late} {
		slices.Sort(list)
	}
	return out
}

// Percentile of sorted latencies, 0 < p <= 100, by nearest rank; 0 when there are none.
func Percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(float64(len(sorted)) * p / 100))
	return sorted[min(max(rank, 1), len(sorted))-1]
}
