package rpc

import (
	"sync"
	"sync/atomic"
)

// Workers runs functions in goroutines that wait for the next one instead of ending: handling a callback needs a deep stack,
// and to grow one for each costs more than much of the work.
type Workers struct {
	next    chan func()
	keep    int64
	idle    atomic.Int64
	running sync.WaitGroup
}

// NewWorkers keeps up to so many idle goroutines until Close.
func NewWorkers(keep int) *Workers { return &Workers{next: make(chan func()), keep: int64(keep)} }

// Go runs f, at once.
func (w *Workers) Go(f func()) {
	w.running.Add(1)
	select {
	case w.next <- f:
	default:
		go w.work(f)
	}
}

func (w *Workers) work(f func()) {
	for {
		f()
		w.running.Done()
		if w.idle.Add(1) > w.keep {
			w.idle.Add(-1)
			return
		}
		next, ok := <-w.next
		w.idle.Add(-1)
		if !ok {
			return
		}
		f = next
	}
}

// Close waits for what runs and ends the idle goroutines. Nothing may be started any more.
func (w *Workers) Close() {
	w.running.Wait()
	close(w.next)
}
