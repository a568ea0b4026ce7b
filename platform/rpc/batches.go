package rpc

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"
)

// Batches serves a stream in which each message is answered by one message. Up to inFlight messages are handled at the
// same time; answers may overtake each other. It returns when the client has closed its side and everything is answered.
func Batches[Req, Resp any](stream grpc.BidiStreamingServer[Req, Resp], inFlight int, handle func(context.Context, *Req) *Resp) error {
	var (
		slots = make(chan struct{}, inFlight)
		wg    sync.WaitGroup
		send  sync.Mutex
	)
	defer wg.Wait()
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			resp := handle(stream.Context(), req)
			send.Lock()
			defer send.Unlock()
			_ = stream.Send(resp) // a broken stream ends Recv too
		})
	}
}
