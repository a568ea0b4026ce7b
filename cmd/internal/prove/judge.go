package prove

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	"callrelay/sim/topsii"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// delivered is something that TopS.II had to get.
type delivered struct {
	sending *sending  // the callback that it is for
	at      time.Time // when TopS.II got it first; zero: never
	// uncertain and doubled count how often it got it again: with and without the relay having marked an attempt as one
	// that may have arrived.
	uncertain, doubled int
}

// verdict is what became of one call.
type verdict struct {
	deliveries []delivered
	// unrecorded are acknowledged callbacks that the relay knows nothing of.
	unrecorded []*sending
	// problems in words: lost, doubled, wrong order, and what else must not be.
	problems []string
	// open: the relay is not done with the call; judged again later.
	open bool
	// unanswered counts callbacks that were never acknowledged.
	unanswered int
	// requests counts those in the call's journal.
	requests int64
}

// judge compares what the dialer was promised with what the relay wrote down and what TopS.II has.
func judge(c *call, stored *operatorv1.Call, held []topsii.Held) verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	var v verdict
	v.answers(c.order, stored)
	position := map[*sending]int{} // of a callback's first entry in the journal
	requests := map[string]*sending{}
	var m model
	var want []wanted
	for i, request := range receivedOf(stored) {
		s := c.sendings[string(request.query)]
		if s == nil {
			v.say("the journal has a callback that was never sent: %s", request.query)
			continue
		}
		if requests[request.id] != nil {
			v.say("request %s was taken twice", request.id)
		}
		requests[request.id] = s
		v.requests++
		if _, known := position[s]; !known {
			position[s] = i
		}
		if due := m.take(string(request.query)); due != nothing {
			want = append(want, wanted{due, s})
		}
	}
	v.recorded(c.order, func(s *sending, requestID string) bool { return requests[requestID] == s })
	v.orderOfAcks(c.order, position)
	v.undelivered(stored)
	got := map[string][]time.Time{}
	for _, h := range held {
		identity := identify(h.Endpoint, h.Payload)
		got[identity] = append(got[identity], h.At)
	}
	v.compare(want, got, uncertainOf(stored, func(d *operatorv1.Delivery) string {
		return identify(d.GetFacts().GetEndpoint(), []byte(d.GetPayload()))
	}))
	for identity, times := range got { // what compare left
		v.say("DOUBLED: TopS.II got %s %d times, which no callback asked for", identity, len(times))
		v.deliveries = append(v.deliveries, delivered{sending: c.order[0], at: times[0], doubled: len(times)})
	}
	return v
}

// wanted is what TopS.II has to get for a callback.
type wanted struct {
	identity string
	sending  *sending
}

// compare takes out of got what was wanted, in the order in which it was accepted. marks counts the attempts that may have arrived.
func (v *verdict) compare(want []wanted, got map[string][]time.Time, marks map[string]int) {
	last := time.Time{}
	for _, w := range want {
		times := got[w.identity]
		delete(got, w.identity)
		d := delivered{sending: w.sending}
		if len(times) == 0 {
			v.open = true
			v.say("LOST: TopS.II never got %s", w.identity)
			v.deliveries = append(v.deliveries, d)
			continue
		}
		d.at = times[0]
		again := len(times) - 1
		d.uncertain = min(again, marks[w.identity])
		if d.doubled = again - d.uncertain; d.doubled > 0 {
			v.say("DOUBLED: TopS.II got %s %d times, and only %d attempts are marked as ones that may have arrived", w.identity, len(times), marks[w.identity])
		}
		if d.at.Before(last) {
			v.say("WRONG ORDER: TopS.II got %s before what was accepted earlier", w.identity)
		}
		last = d.at
		v.deliveries = append(v.deliveries, d)
	}
}

func (v *verdict) say(format string, args ...any) {
	v.problems = append(v.problems, fmt.Sprintf(format, args...))
}

func (v *verdict) answers(order []*sending, stored *operatorv1.Call) {
	for _, s := range order {
		if s.refused != "" {
			v.say("a well-formed callback was refused: %s", s.refused)
		}
		if len(s.acks) == 0 {
			v.unanswered++
		}
	}
	if stored.GetJournalDropped() > 0 {
		v.say("the journal is not complete")
	}
}

// recorded: the relay knows each request that it acknowledged.
func (v *verdict) recorded(order []*sending, known func(s *sending, requestID string) bool) {
	for _, s := range order {
		for _, a := range s.acks {
			if !known(s, a.requestID) {
				v.unrecorded, v.open = append(v.unrecorded, s), true
				v.say("LOST: %s was acknowledged as request %s, which the relay does not know", s.callback.Kind, a.requestID)
				break
			}
		}
	}
}

// undelivered says which deliveries are not delivered yet: nothing here ends one otherwise.
func (v *verdict) undelivered(stored *operatorv1.Call) {
	for _, d := range stored.GetDeliveries() {
		if d.GetState() != "delivered" {
			v.open = true
			v.say("delivery %d is not delivered but %s %s", d.GetFacts().GetNumber(), d.GetState(), d.GetFacts().GetReason())
		}
	}
}

// orderOfAcks: what was acknowledged before another callback of its call was sent was also accepted before it. Promised for
// callbacks that go through one ingress (spec: a balancer pins a source to a replica).
func (v *verdict) orderOfAcks(order []*sending, position map[*sending]int) {
	for _, early := range order {
		for _, late := range order {
			if len(early.acks) == 0 || len(late.acks) == 0 || !early.acks[0].at.Before(late.first) {
				continue
			}
			if len(late.doors) != 1 || !late.doors[early.acks[0].door] {
				continue
			}
			before, known := position[early]
			after, both := position[late]
			if known && both && after < before {
				v.say("WRONG ORDER: %s was acknowledged before %s was sent, and was accepted after it", early.callback.Kind, late.callback.Kind)
			}
		}
	}
}

type receivedRequest struct {
	id    string
	query []byte
}

func receivedOf(stored *operatorv1.Call) (all []receivedRequest) {
	for _, e := range stored.GetJournal() {
		if r := e.GetFact().GetReceived(); r != nil {
			all = append(all, receivedRequest{e.GetFact().GetRequestId(), r.GetQuery()})
		}
	}
	return all
}

// judgeAll judges calls until each is done or ctx ends, and returns the last verdicts, with what is stored of each call that
// has a problem. said is told how many are still open.
func judgeAll(ctx context.Context, state operatorv1.OperatorServiceClient, c *cluster, calls []*call, said func(open int)) ([]verdict, map[*call]*operatorv1.Call) {
	verdicts := make([]verdict, len(calls))
	bad := map[*call]*operatorv1.Call{}
	open := make([]int, len(calls))
	for i := range calls {
		open[i] = i
	}
	for {
		var mu sync.Mutex
		var still []int
		var wg sync.WaitGroup
		next := make(chan int)
		for range 8 {
			wg.Go(func() {
				for i := range next {
					one := calls[i]
					stored, err := ask(state, one.key)
					var v verdict
					if one.isPbx() {
						v = judgePbx(one, stored, c.webhook.of(one.pbxID))
					} else {
						v = judge(one, stored, c.topsii.ByCall(one.id))
					}
					if err != nil {
						v.open = true
						v.say("the relay cannot be asked: %v", err)
					}
					mu.Lock()
					verdicts[i] = v
					delete(bad, one)
					if len(v.problems) > 0 {
						bad[one] = stored
					}
					if v.open || len(v.problems) > 0 { // what looks wrong may be half done
						still = append(still, i)
					}
					mu.Unlock()
				}
			})
		}
		for _, i := range open {
			next <- i
		}
		close(next)
		wg.Wait()
		said(len(still))
		slices.Sort(still)
		if open = still; len(open) == 0 || !pause(ctx, 500*time.Millisecond) {
			return verdicts, bad
		}
	}
}

// spoolEmpties is how long the spool may still have something when every call has ended.
const spoolEmpties = time.Minute

// accounted asks the relay to count, when everything is done: by its counters, and again by its journals. Both have to come to
// what was seen of each call.
func accounted(ctx context.Context, state operatorv1.OperatorServiceClient, verdicts []verdict) (problems []string) {
	ctx, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	// What was spooled although it was committed, too, may still be there, and ingress reports every few seconds.
	a, err := state.GetAccounting(ctx, &operatorv1.GetAccountingRequest{Check: true})
	for until := time.Now().Add(spoolEmpties); err == nil && a.GetSpooled() > 0 && time.Now().Before(until) && pause(ctx, time.Second); {
		a, err = state.GetAccounting(ctx, &operatorv1.GetAccountingRequest{Check: true})
	}
	if err != nil {
		return []string{fmt.Sprintf("the relay cannot be asked for its accounting: %v", err)}
	}
	requests := int64(0)
	for _, v := range verdicts {
		requests += v.requests
	}
	if a.GetReceived() != requests || a.GetCheckedRequests() != requests || a.GetWaiting() != 0 {
		problems = append(problems, fmt.Sprintf("ACCOUNTING: %d requests in the journals of all calls; %d counted, %d compared, %d of them waiting",
			requests, a.GetReceived(), a.GetCheckedRequests(), a.GetWaiting()))
	}
	for _, d := range a.GetDifferences() {
		problems = append(problems, fmt.Sprintf("ACCOUNTING: %s: %d counted, %d journaled, e.g. %s", d.GetBucket(), d.GetCounted(), d.GetJournaled(), d.GetRequestId()))
	}
	return problems
}

func ask(state operatorv1.OperatorServiceClient, key string) (*operatorv1.Call, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	stored, err := state.GetCall(ctx, &operatorv1.GetCallRequest{Call: key})
	if status.Code(err) == codes.NotFound {
		return nil, nil
	}
	return stored, err
}
