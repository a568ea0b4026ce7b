package rpc

import (
	"context"
	"iter"
	"sync"

	"google.golang.org/grpc"
)

// Messages yields what the client of a long stream sends, until it closes its side, the stream breaks, or stop is closed: a
// stopping service ends its streams itself, or it would have to wait for its clients.
func Messages[Req any](stream interface{ Recv() (*Req, error) }, stop <-chan struct{}) iter.Seq[*Req] {
	return func(yield func(*Req) bool) {
		in, left := make(chan *Req), make(chan struct{})
		defer close(left)
		go func() { // ends when the handler has returned: then Recv fails
			defer close(in)
			for {
				req, err := stream.Recv()
				if err != nil {
					return
				}
				select {
				case in <- req:
				case <-left:
					return
				}
			}
		}()
		for {
			select {
			case <-stop:
				return
			case req, ok := <-in:
				if !ok || !yield(req) {
					return
				}
			}
		}
	}
}

// Batches serves a stream in which each message is answered by one message. Up to inFlight messages are handled at the
// same time; answers may overtake each other. It returns when Messages ends and everything is answered.
func Batches[Req, Resp any](stream grpc.BidiStreamingServer[Req, Resp], stop <-chan struct{}, inFlight int, handle func(context.Context, *Req) *Resp) error {
	var (
		slots = make(chan struct{}, inFlight)
		wg    sync.WaitGroup
		send  sync.Mutex
	)
	defer wg.Wait()
	for req := range Messages(stream, stop) {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			resp := handle(stream.Context(), req)
			send.Lock()
			defer send.Unlock()
			_ = stream.Send(resp) // a broken stream ends Messages too
		})
	}
	return nil
}
