package rpc

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"google.golang.org/grpc"

	statev1 "callrelay/gen/callrelay/state/v1"
)

// pipeToBatches is a pipe to Batches in the same process, which answer each item.
func pipeToBatches(tb testing.TB) *Pipe[*statev1.CommitItem, *statev1.CommitAnswer] {
	stop := make(chan struct{})
	_, conns, _ := start(tb, &probe{stream: func(s grpc.ServerStream) error {
		return Batches(&grpc.GenericServerStream[statev1.CommitRequest, statev1.CommitResponse]{ServerStream: s}, stop, 4,
			func(_ context.Context, req *statev1.CommitRequest) *statev1.CommitResponse {
				resp := &statev1.CommitResponse{NowMs: 1, Answers: make([]*statev1.CommitAnswer, len(req.GetItems()))}
				for i, item := range req.GetItems() {
					resp.Answers[i] = &statev1.CommitAnswer{Id: item.GetId()}
				}
				return resp
			})
	}})
	p := NewPipe(PipeConfig[*statev1.CommitItem, *statev1.CommitAnswer]{
		Open: func(ctx context.Context) (PipeStream[*statev1.CommitItem, *statev1.CommitAnswer], error) {
			s, err := openStream(ctx, conns["in process"])
			stream := &grpc.GenericClientStream[statev1.CommitRequest, statev1.CommitResponse]{ClientStream: s}
			return PipeStream[*statev1.CommitItem, *statev1.CommitAnswer]{
				Send: func(items []*statev1.CommitItem) error { return stream.Send(&statev1.CommitRequest{Items: items}) },
				Recv: func() ([]*statev1.CommitAnswer, error) {
					resp, err := stream.Recv()
					return resp.GetAnswers(), err
				},
			}, err
		},
		SetID:    func(item *statev1.CommitItem, id uint64) { item.Id = id },
		ID:       (*statev1.CommitAnswer).GetId,
		MaxBatch: 64, MaxMessages: 2, MaxItems: 4096,
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { p.Run(ctx) })
	tb.Cleanup(func() {
		close(stop)
		cancel()
		running.Wait()
	})
	return p
}

// One item over a Pipe to Batches in the same process and its answer back, one at a time and many at once. What the peer makes
// of it, a message and an answer, is in it.
func BenchmarkPipe(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprint("callers=", callers), func(b *testing.B) {
			p := pipeToBatches(b)
			b.ReportAllocs()
			b.ResetTimer()
			var asking sync.WaitGroup
			for i := range callers {
				asking.Go(func() {
					item := &statev1.CommitItem{Call: "ameyo/1"}
					for range b.N/callers + min(1, max(0, b.N%callers-i)) {
						if _, err := p.Do(b.Context(), item); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			asking.Wait()
		})
	}
}

// What an item over a Pipe and its answer allocate, alone in their messages; three are the peer's.
func TestAllocations(t *testing.T) {
	p := pipeToBatches(t)
	item := &statev1.CommitItem{Call: "ameyo/1"}
	got := testing.AllocsPerRun(1000, func() {
		if _, err := p.Do(t.Context(), item); err != nil {
			t.Fatal(err)
		}
	})
	if got > 11 {
		t.Errorf("%v allocations, at most 11 wanted", got)
	}
}
