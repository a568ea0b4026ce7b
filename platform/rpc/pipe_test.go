package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	errorsv1 "callrelay/gen/callrelay/errors/v1"
	"callrelay/platform/errkind"
)

type question struct {
	id   uint64
	text string
}

type reply struct {
	id   uint64
	text string
}

// peer is the other side of a pipe: it gets messages and answers when told.
type peer struct {
	mu       sync.Mutex
	opened   int
	messages [][]*question
	answers  chan []reply
	broken   chan struct{}
	refuse   bool
}

func (p *peer) open(ctx context.Context) (PipeStream[*question, reply], error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.opened++
	if p.refuse {
		return PipeStream[*question, reply]{}, errors.New("refused")
	}
	answers, broken := make(chan []reply, 100), make(chan struct{})
	p.answers, p.broken = answers, broken
	return PipeStream[*question, reply]{
		Send: func(items []*question) error {
			select {
			case <-broken:
				return io.EOF
			default:
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			p.messages = append(p.messages, items)
			return nil
		},
		Recv: func() ([]reply, error) {
			select {
			case a := <-answers:
				return a, nil
			case <-broken:
				return nil, io.EOF
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
	}, nil
}

func (p *peer) sizes() (out []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.messages {
		out = append(out, len(m))
	}
	return out
}

// answer answers message i.
func (p *peer) answer(i int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []reply
	for _, q := range p.messages[i] {
		out = append(out, reply{q.id, "re " + q.text})
	}
	p.answers <- out
}

// inBubble runs a test with a pipe in fake time.
func inBubble(t *testing.T, messages, items int, test func(t *testing.T, p *Pipe[*question, reply], other *peer)) {
	synctest.Test(t, func(t *testing.T) {
		other := &peer{}
		p := NewPipe(PipeConfig[*question, reply]{
			Open: other.open, SetID: func(q *question, id uint64) { q.id = id }, ID: func(r reply) uint64 { return r.id },
			MaxBatch: 4, MaxMessages: messages, MaxItems: items,
		})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); p.Run(ctx) }()
		synctest.Wait()
		test(t, p, other)
		cancel()
		<-done
	})
}

// ask calls Do in a goroutine; the result is there after synctest.Wait.
func ask(p *Pipe[*question, reply], ctx context.Context, text string) *string {
	result := new(string)
	go func() {
		answer, err := p.Do(ctx, &question{text: text})
		if *result = answer.text; err != nil {
			*result = errkind.From(err).Kind.String()
		}
	}()
	return result
}

// A call on an idle pipe goes at once and alone; what comes while messages are under way goes together with the next one.
func TestPipeBatchesWhatWaits(t *testing.T) {
	inBubble(t, 1, 100, func(t *testing.T, p *Pipe[*question, reply], other *peer) {
		var results []*string
		for i := range 7 {
			results = append(results, ask(p, context.Background(), fmt.Sprint(i)))
			synctest.Wait()
		}
		if got := fmt.Sprint(other.sizes()); got != "[1]" {
			t.Errorf("messages before the first answer: %s", got)
		}
		other.answer(0)
		synctest.Wait()
		other.answer(1)
		synctest.Wait()
		other.answer(2)
		synctest.Wait()
		if got := fmt.Sprint(other.sizes()); got != "[1 4 2]" {
			t.Errorf("messages: %s", got)
		}
		for i, r := range results {
			if *r != fmt.Sprint("re ", i) {
				t.Errorf("call %d got %q", i, *r)
			}
		}
	})
}

// A stream that breaks ends what was sent as UNAVAILABLE; what was not sent goes over the next stream.
func TestPipeReconnects(t *testing.T) {
	inBubble(t, 1, 100, func(t *testing.T, p *Pipe[*question, reply], other *peer) {
		sent := ask(p, context.Background(), "sent")
		synctest.Wait()
		waiting := ask(p, context.Background(), "waiting")
		synctest.Wait()
		close(other.broken)
		synctest.Wait()
		if *sent != errorsv1.Kind_KIND_UNAVAILABLE.String() || *waiting != "" {
			t.Errorf("sent: %q, waiting: %q", *sent, *waiting)
		}
		<-time.After(time.Second) // fake time: the pause before reconnecting
		synctest.Wait()
		other.answer(1)
		synctest.Wait()
		if *waiting != "re waiting" {
			t.Errorf("waiting: %q", *waiting)
		}
	})
}

// Reconnecting has a bound: no spinning against a peer that refuses.
func TestPipeDoesNotSpin(t *testing.T) {
	inBubble(t, 1, 100, func(t *testing.T, p *Pipe[*question, reply], other *peer) {
		other.refuse = true
		close(other.broken)
		<-time.After(time.Minute) // fake time
		synctest.Wait()
		if other.opened > 70 {
			t.Errorf("%d tries in a minute", other.opened)
		}
		if p.Connected() {
			t.Error("says that it is connected")
		}
	})
}

// Calls that nobody waits for any more keep none back that comes behind them.
func TestPipePassesWhoGaveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := &peer{refuse: true}
		p := NewPipe(PipeConfig[*question, reply]{
			Open: other.open, SetID: func(q *question, id uint64) { q.id = id }, ID: func(r reply) uint64 { return r.id },
			MaxBatch: 4, MaxItems: 100,
		})
		short, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		for i := range 20 {
			ask(p, short, fmt.Sprint(i))
		}
		<-short.Done()
		synctest.Wait()
		live := ask(p, context.Background(), "live")
		synctest.Wait()
		other.refuse = false
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); p.Run(ctx) }()
		synctest.Wait()
		if got := fmt.Sprint(other.sizes()); got != "[1]" {
			t.Fatalf("messages: %s", got)
		}
		other.answer(0)
		synctest.Wait()
		if *live != "re live" {
			t.Errorf("got %q", *live)
		}
		stop()
		<-done
	})
}

// A peer that stands still makes callers wait, at most until their own end; it does not make memory grow.
func TestPipeIsBounded(t *testing.T) {
	inBubble(t, 0, 3, func(t *testing.T, p *Pipe[*question, reply], other *peer) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		for i := range 10 {
			ask(p, ctx, fmt.Sprint(i))
		}
		synctest.Wait()
		<-time.After(2 * time.Second) // fake time
		synctest.Wait()
		if len(p.sent)+len(p.waiting) > 3 {
			t.Errorf("%d sent and %d waiting calls are kept", len(p.sent), len(p.waiting))
		}
		later, cancelLater := context.WithTimeout(context.Background(), time.Second)
		defer cancelLater()
		refused := ask(p, later, "later")
		<-time.After(2 * time.Second) // fake time
		synctest.Wait()
		if *refused != errorsv1.Kind_KIND_UNAVAILABLE.String() {
			t.Errorf("got %q", *refused)
		}
		for i := range other.sizes() {
			other.answer(i)
		}
		synctest.Wait()
		after := ask(p, context.Background(), "after")
		synctest.Wait()
		other.answer(len(other.sizes()) - 1)
		synctest.Wait()
		if *after != "re after" {
			t.Errorf("after the peer went on: %q", *after)
		}
	})
}

// Idle workers take the next function; Close ends them.
func TestWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorkers(2)
		var mu sync.Mutex
		ran := 0
		for range 3 {
			for range 5 {
				w.Go(func() { mu.Lock(); ran++; mu.Unlock() })
			}
			synctest.Wait()
		}
		if ran != 15 {
			t.Errorf("%d ran", ran)
		}
		if kept := w.idle.Load(); kept != 2 {
			t.Errorf("%d are kept", kept)
		}
		w.Close()
	})
}
