package rpc

import (
	"context"
	"runtime"
	"sync"
	"time"

	"callrelay/platform/errkind"
)

// Pipe carries many small calls over one bidirectional stream. A message holds what was waiting when it was sent: one item
// when the stream is quiet, up to MaxBatch under load. Batching is never by a timer.
//
// When the stream breaks, the calls that were sent end as UNAVAILABLE (their outcome is unknown), those that were not sent
// wait for the next stream until their own context ends.
type Pipe[Q, A any] struct {
	cfg PipeConfig[Q, A]

	mu      sync.Mutex
	send    func([]Q) error // of the stream that is up; nil = there is none
	sending bool            // somebody is in send
	waiting []*pipeCall[Q, A]
	sent    map[uint64]*pipeCall[Q, A]
	open    int // messages without all their answers
	lastID  uint64
	wake    chan struct{} // capacity 1: something to send, or a message was answered
	room    chan struct{} // capacity MaxItems: one for each call in waiting or sent
}

// PipeConfig says how a Pipe speaks its protocol.
type PipeConfig[Q, A any] struct {
	// Open starts a stream that lives until ctx ends.
	Open func(ctx context.Context) (PipeStream[Q, A], error)
	// SetID writes the id into an item; ID reads it from an answer.
	SetID func(item Q, id uint64)
	ID    func(answer A) uint64
	// MaxBatch bounds the items of a message.
	MaxBatch int
	// MaxMessages bounds the messages that are not completely answered; 0 = no bound. With a bound, batches grow while
	// the other side is busy. Only for protocols that answer a message at once.
	MaxMessages int
	// MaxItems bounds the calls under way; more wait in Do.
	MaxItems int
}

// PipeStream is one stream. Send and Recv run concurrently, each in one goroutine.
type PipeStream[Q, A any] struct {
	Send func(items []Q) error
	Recv func() ([]A, error)
}

type pipeCall[Q, A any] struct {
	ctx     context.Context
	item    Q
	answer  A
	err     error
	done    chan struct{}
	message *pipeMessage
}

type pipeMessage struct{ unanswered int }

// NewPipe returns a pipe that works once Run runs.
func NewPipe[Q, A any](cfg PipeConfig[Q, A]) *Pipe[Q, A] {
	return &Pipe[Q, A]{
		cfg:  cfg,
		sent: map[uint64]*pipeCall[Q, A]{},
		wake: make(chan struct{}, 1),
		room: make(chan struct{}, cfg.MaxItems),
	}
}

// Do sends an item and waits for its answer. An error is UNAVAILABLE or the context's: in both cases the outcome is unknown.
func (p *Pipe[Q, A]) Do(ctx context.Context, item Q) (A, error) {
	var none A
	select {
	case p.room <- struct{}{}:
	default:
		select {
		case p.room <- struct{}{}:
		case <-ctx.Done():
			return none, context.Cause(ctx)
		}
	}
	c := &pipeCall[Q, A]{ctx: ctx, item: item, done: make(chan struct{})}
	p.mu.Lock()
	p.waiting = append(p.waiting, c)
	idle := len(p.waiting) == 1 && len(p.sent) == 0
	p.mu.Unlock()
	if idle {
		p.flush() // saves waking another goroutine; cannot block, since nothing else is under way
	} else {
		p.signal()
	}
	select {
	case <-c.done:
		return c.answer, c.err
	case <-ctx.Done():
		// The answer, if one comes, finds nobody. Until then the call keeps its room: a peer that stands still makes
		// callers wait, not memory grow.
		return none, context.Cause(ctx)
	}
}

func (p *Pipe[Q, A]) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run keeps one stream open until ctx ends, reconnecting after 50 ms to 1 s.
func (p *Pipe[Q, A]) Run(ctx context.Context) {
	const first, longest = 50 * time.Millisecond, time.Second
	pause := first
	for ctx.Err() == nil {
		started := time.Now()
		err := p.stream(ctx)
		p.fail(err)
		if time.Since(started) > longest {
			pause = first
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
			pause = min(2*pause, longest)
		}
	}
}

// Connected says whether there is a stream.
func (p *Pipe[Q, A]) Connected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.send != nil
}

func (p *Pipe[Q, A]) connect(send func([]Q) error) {
	p.mu.Lock()
	p.send = send
	p.mu.Unlock()
}

// stream runs one stream until it breaks.
func (p *Pipe[Q, A]) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s, err := p.cfg.Open(ctx)
	if err != nil {
		return err
	}
	p.connect(s.Send)
	defer p.connect(nil)
	received := make(chan struct{})
	go func() {
		defer close(received)
		for {
			answers, err := s.Recv()
			if err != nil {
				cancel(err)
				return
			}
			p.answered(answers)
		}
	}()
	defer func() { cancel(nil); <-received }()
	for {
		for p.flush() {
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.wake:
		}
		runtime.Gosched() // whoever is about to add to this message does it now
	}
}

// flush sends one message of what waits, unless somebody is sending. It reports whether it did.
func (p *Pipe[Q, A]) flush() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sending || p.send == nil {
		return false
	}
	send, items := p.send, p.takeLocked()
	if len(items) == 0 {
		return false
	}
	p.sending = true
	p.mu.Unlock()
	err := send(items) // after an error Recv fails too, which ends these calls
	p.mu.Lock()
	p.sending = false
	if len(p.waiting) > 0 {
		p.signal()
	}
	return err == nil
}

// takeLocked moves waiting calls to sent, as far as the bounds allow.
func (p *Pipe[Q, A]) takeLocked() []Q {
	if p.cfg.MaxMessages > 0 && p.open >= p.cfg.MaxMessages {
		return nil
	}
	n, items := 0, make([]Q, 0, min(len(p.waiting), p.cfg.MaxBatch))
	message := &pipeMessage{}
	for ; n < len(p.waiting) && len(items) < p.cfg.MaxBatch; n++ {
		c := p.waiting[n]
		if c.ctx.Err() != nil {
			<-p.room
			continue // nobody waits for it any more, and it was never sent
		}
		p.lastID++
		p.cfg.SetID(c.item, p.lastID)
		c.message = message
		p.sent[p.lastID] = c
		items = append(items, c.item)
	}
	clear(p.waiting[:n])
	if n == len(p.waiting) {
		p.waiting = p.waiting[:0]
	} else {
		p.waiting = p.waiting[n:]
	}
	if message.unanswered = len(items); message.unanswered > 0 {
		p.open++
	}
	return items
}

func (p *Pipe[Q, A]) answered(answers []A) {
	p.mu.Lock()
	for _, a := range answers {
		id := p.cfg.ID(a)
		c, ok := p.sent[id]
		if !ok {
			continue
		}
		delete(p.sent, id)
		if c.message.unanswered--; c.message.unanswered == 0 {
			p.open--
		}
		c.answer = a
		close(c.done)
		<-p.room
	}
	more := len(p.waiting) > 0
	p.mu.Unlock()
	if more {
		p.signal()
	}
}

// fail ends all calls that were sent over a broken stream.
func (p *Pipe[Q, A]) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, c := range p.sent {
		delete(p.sent, id)
		c.err = errkind.Unavailable(err, "the connection broke before the answer came")
		close(c.done)
		<-p.room
	}
	p.open = 0
}
