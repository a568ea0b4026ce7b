package delivery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/telemetry"
)

// provenAfter is how long a stream lasts before the log says that state is connected: one without Redis ends at once.
const provenAfter = time.Second

// closeTimeout bounds how long state may take to end a stream that we ended.
const closeTimeout = 2 * time.Second

// stream runs one Lease stream. It returns nil when we ended it: everything is done, or credit had to be withdrawn,
// which the protocol allows only by ending the stream. heard reports whether state said anything.
func (c *Consumer) stream(ctx context.Context) (heard bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.state.Lease(ctx)
	if err != nil {
		return false, err
	}
	c.begin()

	var received atomic.Bool
	// The reader has ended whenever this function returns: no two streams are read at once.
	ended := make(chan error, 1)
	go func() {
		for {
			message, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			received.Store(true)
			c.take(message)
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	message, opened := &statev1.LeaseRequest{Destination: c.cfg.Destination}, time.Now()
	for {
		if !c.connected && time.Since(opened) >= provenAfter {
			c.log.Info("connected to state")
			c.connected = true
		}
		last, again := c.compose(message)
		if message.Destination != "" || message.Credit > 0 || len(message.Results) > 0 || message.Standing != nil {
			if err := stream.Send(message); err != nil {
				return received.Load(), broken(<-ended) // the reader has the reason
			}
			if message.Destination != "" {
				c.setDown(nil)
			}
			message = &statev1.LeaseRequest{}
		}
		if last {
			_ = stream.CloseSend()
			select {
			case err := <-ended:
				if errors.Is(err, io.EOF) {
					err = nil
				}
				return received.Load(), err
			case <-time.After(closeTimeout):
				cancel()
				<-ended
				return received.Load(), fmt.Errorf("state did not end the lease stream within %v", closeTimeout)
			}
		}
		timer.Reset(again)
		select {
		case <-c.wake:
		case <-timer.C:
		case err := <-ended:
			return received.Load(), broken(err)
		}
	}
}

// broken is the error of a stream that we did not end.
func broken(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("state ended the lease stream")
	}
	return err
}

// begin forgets what belonged to the stream before: its credit, and which results it carried.
func (c *Consumer) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.credits, c.toldAt = nil, time.Time{}
	c.sent = map[uint64]*item{}
	for _, it := range c.items {
		it.id, it.due = 0, time.Time{}
		if it.result != nil {
			c.unsent[it] = true
		}
	}
}

// compose fills in the results that are due and credit for free workers. last: the stream is to be ended after the
// message. again: look again after this long, unless woken.
func (c *Consumer) compose(message *statev1.LeaseRequest) (last bool, again time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	again = time.Hour
	// While state works on a message, results and credit gather for the next one.
	busy := len(c.sent) > 0
	for it := range c.unsent {
		if busy {
			break // the answer wakes us
		}
		if it.due.After(now) {
			again = min(again, it.due.Sub(now))
			continue
		}
		if len(message.Results) == maxResults {
			again = 0
			break
		}
		delete(c.unsent, it)
		c.lastID++
		it.id = c.lastID
		if it.result.GetId() != 0 { // sent before, and state may still have it
			it.result = proto.CloneOf(it.result)
		}
		it.result.Id = it.id
		c.sent[it.id] = it
		message.Results = append(message.Results, it.result)
	}
	if c.stopping {
		return len(c.credits) > 0 || len(c.items) == 0, again
	}
	// A lease counts from the moment its credit was sent, so old credit brings leases that must be handed back. Replace it
	// when half of the time in which a request may start has passed.
	fresh := (c.cfg.LeaseTime - c.cfg.SendTimeout) / 2
	if len(c.credits) > 0 && now.Sub(c.credits[0]) >= fresh {
		return true, again
	}
	message.Standing, again = c.standing(now, again)
	// Credit that the share does not allow any more is withdrawn, so that others may use it.
	allowed := c.share.current(now)
	if len(c.credits) > 0 && c.running+len(c.credits) > allowed {
		return true, again
	}
	limit, change := c.breaker.room(allowed)
	if change > 0 {
		again = min(again, change)
	}
	// Every credit may start work at once, and every result has room.
	free := min(limit-c.running, backlogPerWorker*c.cfg.Workers-len(c.items)) - len(c.credits)
	for range free {
		c.credits = append(c.credits, now)
		message.Credit++
	}
	if len(c.credits) > 0 {
		again = min(again, fresh-now.Sub(c.credits[0]))
	}
	return false, again
}

// take handles what state says.
func (c *Consumer) take(message *statev1.LeaseResponse) {
	c.mu.Lock()
	defer c.mu.Unlock()
	used := len(c.credits) + c.running
	for _, answer := range message.Answers {
		c.answered(answer)
	}
	for _, work := range message.Work {
		c.lease(work)
	}
	// Work that only turned credit into running requests gives nothing to say.
	if len(message.Answers) > 0 || len(c.credits)+c.running != used {
		c.poke()
	}
}

// answered settles a result, or has it sent again.
func (c *Consumer) answered(answer *statev1.LeaseAnswer) {
	it := c.sent[answer.Id]
	delete(c.sent, answer.Id)
	if it == nil || it.id != answer.Id {
		return // sent again since: that one's answer counts
	}
	if answer.Error == nil {
		if answer.Superseded {
			c.log.Info("result superseded", "call", telemetry.MaskCall(it.key.call), "delivery", it.key.number)
		}
		delete(c.items, it.key)
		return
	}
	if it.refusals == 0 {
		c.log.Warn("state did not take a result, sending it until it does",
			"call", telemetry.MaskCall(it.key.call), "delivery", it.key.number, "error", answer.Error.Message)
	}
	it.id = 0
	c.unsent[it] = true
	it.due = time.Now().Add(min(100*time.Millisecond<<min(it.refusals, 10), 30*time.Second))
	it.refusals++
}

// lease starts work, unless that would be a second request for the same delivery.
func (c *Consumer) lease(work *statev1.LeaseWork) {
	// Work that came without credit has the zero time and so is handed back.
	var leased time.Time
	if len(c.credits) > 0 {
		leased, c.credits = c.credits[0], c.credits[1:]
	}
	if work.Delivery == nil {
		c.log.Error("state leased something that is no delivery", "call", telemetry.MaskCall(work.Call))
		return
	}
	k := key{work.Call, work.Delivery.Number}
	if old := c.items[k]; old != nil {
		if old.result == nil {
			// Its request is running; the result will go under the newest token.
			old.token = work.Token
			return
		}
		if old.result.GetDone() != nil {
			// The CRM has it, and state accepts that from any token.
			old.id, old.due = 0, time.Time{}
			c.unsent[old] = true
			return
		}
		// The old lease is over, and its result with it.
		delete(c.sent, old.id)
		delete(c.unsent, old)
	}
	it := &item{key: k, work: work, leased: leased, token: work.Token}
	c.items[k] = it
	if c.stopping {
		it.result = c.result(it, nil, handBack(0))
		it.result.Token = it.token
		c.unsent[it] = true
		return
	}
	c.running++
	c.workers.Go(func() { c.work(it) })
}

// work does one leased delivery and puts its result up for sending.
func (c *Consumer) work(it *item) {
	result := c.deliver(it)
	c.mu.Lock()
	c.running--
	result.Token = it.token
	it.result = result
	c.unsent[it] = true
	if result.GetRetry() == nil {
		delete(c.appErrors, it.key)
	}
	c.mu.Unlock()
	c.poke()
}
