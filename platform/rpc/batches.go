package rpc

import (
	"context"
	"sync"

	"google.golang.org/grpc"
)

// Receive hands each message that the client of a long stream sends to handle, one after the other, until that returns
// false, the client closes its side, the stream breaks, or stop is closed: a stopping service ends its streams itself, or it
// would have to wait for its clients. No message is handled after it has returned.
func Receive[Req any](stream interface{ Recv() (*Req, error) }, stop <-chan struct{}, handle func(*Req) (more bool)) {
	var (
		mu    sync.Mutex // held while a message is handled
		ended bool
		done  = make(chan struct{})
	)
	go func() { // ends when the handler of the stream has returned: then Recv fails
		defer close(done)
		for {
			req, err := stream.Recv()
			if err != nil {
				return
			}
			mu.Lock()
			if ended {
				mu.Unlock()
				return
			}
			more := handle(req)
			mu.Unlock()
			if !more {
				return
			}
		}
	}()
	select {
	case <-stop:
		mu.Lock()
		ended = true
		mu.Unlock()
	case <-done:
	}
}

// Batches serves a stream in which each message is answered by one message. Up to inFlight messages are handled at the
// same time; answers may overtake each other. It returns when Receive ends and everything is answered.
func Batches[Req, Resp any](stream grpc.BidiStreamingServer[Req, Resp], stop <-chan struct{}, inFlight int, handle func(context.Context, *Req) *Resp) error {
	var (
		messages = make(chan *Req)
		workers  sync.WaitGroup
		send     sync.Mutex
	)
	for range inFlight {
		workers.Go(func() {
			for req := range messages {
				resp := handle(stream.Context(), req)
				send.Lock()
				_ = stream.Send(resp) // a broken stream ends Receive too
				send.Unlock()
			}
		})
	}
	Receive(stream, stop, func(req *Req) bool {
		messages <- req
		return true
	})
	close(messages)
	workers.Wait()
	return nil
}

// Gather sends what is added in batches. Whoever adds to an idle one sends for itself, at once; what is added meanwhile by
// others goes with the next batch.
type Gather[T any] struct {
	// Send is called by one goroutine at a time.
	Send func([]T)
	// Max bounds a batch.
	Max int

	mu      sync.Mutex
	waiting []T
	sending bool
}

// Add sends x, or leaves it to whoever is sending.
func (g *Gather[T]) Add(x T) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting = append(g.waiting, x)
	if g.sending {
		return
	}
	g.sending = true
	for len(g.waiting) > 0 {
		n := min(len(g.waiting), g.Max)
		batch := g.waiting[:n:n]
		g.waiting = g.waiting[n:]
		g.mu.Unlock()
		g.Send(batch)
		g.mu.Lock()
	}
	g.waiting = nil
	g.sending = false
}
