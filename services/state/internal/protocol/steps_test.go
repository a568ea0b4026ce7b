package protocol

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/services/state/internal/store"
)

// timerInput stands for the input id of the timer.
const timerInput = "timer"

// expiry is how much later than everything else the phone-1 record's end is, in milliseconds.
const expiry = 700_000

// possible is everything that can happen next.
func (x *explorer) possible(n *node, im *image) (all []step) {
	of := func(k kind) adder {
		return func(do func(n *node), format string, args ...any) {
			all = append(all, step{name: fmt.Sprintf(format, args...), kind: k, do: do})
		}
	}
	redis, local := of(writes), of(local)
	fault := func(add func(func(n *node), string, ...any), do func(n *node), format string, args ...any) {
		if n.faults > 0 {
			add(func(n *node) { n.faults--; do(n) }, "! "+format, args...)
		}
	}
	x.inputs(n, redis, of(reads), local, fault)
	if len(x.sc.late) > 0 {
		x.timers(n, im, redis, of(reads), local, fault)
	}
	x.state(n, im, redis, fault)
	for c := range n.consumers {
		x.consumer(c, n, im, redis, local, fault)
	}
	return all
}

type (
	adder  = func(do func(n *node), format string, args ...any)
	faulty = func(add func(func(n *node), string, ...any), do func(n *node), format string, args ...any)
)

// inputs are the dialer and the routers.
func (x *explorer) inputs(n *node, redis, reads, local adder, fault faulty) {
	for i, in := range n.inputs {
		late := slices.Contains(x.sc.late, in.callback)
		if in.done || late && !n.passed {
			continue
		}
		again := func(n *node) { // the dialer did not get its 200
			n.inputs[i].done = true
			n.inputs = append(n.inputs, input{callback: in.callback, try: x.tries(n, in.callback)})
		}
		if in.item == nil {
			local(func(n *node) { x.decide(&n.inputs[i], &statev1.CallState{}) }, "%s: decided as the first of its call", in.id())
			reads(func(n *node) { x.decide(&n.inputs[i], x.load()) }, "%s: loaded and decided", in.id())
			continue
		}
		fault(local, again, "%s: router crashes before the commit, the dialer sends again", in.id())
		fault(local, func(n *node) {
			n.inputs = append(n.inputs, input{callback: in.callback, try: x.tries(n, in.callback)})
		}, "%s: the dialer does not wait and sends again meanwhile", in.id())
		for c := -1; c < len(n.consumers); c++ {
			if c >= 0 && (!x.wants(n, c) || len(in.item.GetDeliveries()) == 0) {
				continue
			}
			to := "to nobody"
			if c >= 0 {
				to = fmt.Sprint("to consumer ", c)
			}
			redis(func(n *node) {
				answer, got := x.commit(n.inputs[i].item, n.inputs[i].id(), c)
				x.hand(n, c, got)
				if answer.GetStatus() == statev1.CommitStatus_COMMIT_STATUS_CONFLICT {
					x.decide(&n.inputs[i], answer.GetCurrent())
					return
				}
				n.inputs[i].done, n.inputs[i].item = true, nil
			}, "%s: commit, leased %s", in.id(), to)
			fault(redis, func(n *node) {
				_, got := x.commit(n.inputs[i].item, n.inputs[i].id(), c)
				n.unsent = append(n.unsent, got...)
			}, "%s: commit, leased %s, redis' answer is lost", in.id(), to)
			fault(redis, func(n *node) {
				_, _ = x.commit(n.inputs[i].item, n.inputs[i].id(), c)
				n.flight, n.unsent = nil, nil
			}, "%s: commit, leased %s, state crashes", in.id(), to)
			fault(redis, func(n *node) {
				_, got := x.commit(n.inputs[i].item, n.inputs[i].id(), c)
				x.hand(n, c, got)
				again(n)
			}, "%s: commit, leased %s, router crashes before the answer, the dialer sends again", in.id(), to)
		}
	}
}

// tries is how often the dialer has sent a callback.
func (x *explorer) tries(n *node, callback int) (count int) {
	for _, in := range n.inputs {
		if in.callback == callback {
			count++
		}
	}
	return count
}

func (x *explorer) load() *statev1.CallState {
	states, errs := x.store.Load(context.Background(), []string{callKey})
	if errs[0] != nil {
		x.fail("load: %v", errs[0])
	}
	return states[0]
}

func (x *explorer) decide(in *input, state *statev1.CallState) {
	callback := proto.CloneOf(x.sc.callbacks[in.callback])
	callback.RequestId, callback.Query = in.id(), []byte(in.id())
	received := x.now
	if slices.Contains(x.sc.late, in.callback) {
		received += expiry
	}
	item, err := x.decider.Callback(callback, state, received, received)
	if err != nil {
		x.fail("%s cannot be decided: %v", in.id(), err)
	}
	in.decided++
	if item.CommitId != "" {
		item.CommitId = fmt.Sprintf("%s.%d", in.id(), in.decided) // not by chance, so that equal states are equal
	}
	in.item = item
}

// commit writes one item, leased to a consumer if that is not -1.
func (x *explorer) commit(item *statev1.CommitItem, input string, c int) (*statev1.CommitAnswer, []work) {
	tokens := make([]string, len(item.GetDeliveries()))
	if c >= 0 && len(tokens) > 0 {
		tokens[0] = "at " + item.GetCommitId()
	}
	answers, places, errs := x.store.Commit(context.Background(), []*statev1.CommitItem{proto.CloneOf(item)}, [][]string{tokens})
	if errs[0] != nil {
		x.fail("commit: %v", errs[0])
	}
	status := answers[0].GetStatus()
	x.fixed = status != statev1.CommitStatus_COMMIT_STATUS_OK || item.GetOutcome().GetDuplicate()
	if status == statev1.CommitStatus_COMMIT_STATUS_OK || status == statev1.CommitStatus_COMMIT_STATUS_EARLIER {
		x.committed = input
	}
	var got []work
	for i, place := range places[0] {
		if place == store.Leased {
			got = append(got, work{item.GetDeliveries()[i].GetNumber(), tokens[i], false})
		}
	}
	return answers[0], got
}

// hand puts leased work on its way.
func (x *explorer) hand(n *node, c int, got []work) {
	for _, w := range got {
		n.flight = append(n.flight, flight{work: w, consumer: c})
	}
}

// timers: the phone-1 record's time passes, its timer is leased, decided and committed.
func (x *explorer) timers(n *node, im *image, redis, reads, local adder, fault faulty) {
	if !n.passed && len(im.rules) > 0 {
		redis(func(n *node) {
			n.passed = true
			z := im.rules[0]
			z.Score = 1
			if err := x.client.ZAdd(context.Background(), x.keys[3], z).Err(); err != nil {
				x.fail("redis: %v", err)
			}
		}, "phone 1 expires")
	}
	if n.timer == nil {
		if n.passed && len(im.rules) > 0 {
			redis(func(n *node) {
				got, _, err := x.store.Lease(context.Background(), store.Rules, []string{im.rules[0].Member.(string)})
				if err != nil || len(got) != 1 {
					x.fail("a due timer is not leased: %v %v", got, err)
				}
				n.timer = &timer{entry: got[0].GetEntry()}
			}, "the timer is leased")
		}
		for member, token := range im.timers { // a timer's lease that nobody has
			redis(func(*node) { x.giveback(store.Rules, member, token) }, "the timer's lease is given back")
		}
		return
	}
	fault(local, func(n *node) { n.timer = nil }, "router crashes with the timer")
	if n.timer.item == nil {
		reads(func(n *node) { x.decideTimer(n.timer, x.load()) }, "the timer is decided")
		return
	}
	redis(func(n *node) {
		answer, _ := x.commit(n.timer.item, timerInput, -1)
		if answer.GetStatus() == statev1.CommitStatus_COMMIT_STATUS_CONFLICT {
			x.decideTimer(n.timer, answer.GetCurrent())
			return
		}
		n.timer = nil
	}, "the timer is committed")
	fault(redis, func(n *node) { x.commit(n.timer.item, timerInput, -1) }, "the timer is committed, the answer is lost")
}

func (x *explorer) decideTimer(t *timer, state *statev1.CallState) {
	entry := proto.CloneOf(t.entry)
	item, err := x.decider.Timer(callKey, entry, state, x.now+expiry)
	if err != nil {
		x.fail("the timer cannot be decided: %v", err)
	}
	t.decided++
	if item.CommitId != "" {
		item.CommitId = fmt.Sprintf("timer.%d", t.decided)
	}
	t.item = item
}

// wants says whether a consumer has credit. Of several that have nothing at all the first stands for all.
func (x *explorer) wants(n *node, c int) bool {
	idle := func(c int) bool {
		return len(n.consumers[c].items) == 0 && !slices.ContainsFunc(n.flight, func(f flight) bool { return f.consumer == c })
	}
	if c > 0 && idle(c) && idle(c-1) {
		return false
	}
	return n.consumers[c].free() && !slices.ContainsFunc(n.flight, func(f flight) bool { return f.consumer == c })
}

// state leases what is due, gives back what it could not hand out, and ends leases after LEASE_TIME.
func (x *explorer) state(n *node, im *image, redis adder, fault faulty) {
	for _, due := range im.due {
		member := due.Member.(string)
		for c := range n.consumers {
			if !x.wants(n, c) {
				continue
			}
			redis(func(n *node) { x.hand(n, c, x.lease(member)) }, "lease to consumer %d", c)
			fault(redis, func(*node) { x.lease(member) }, "lease to consumer %d, it never arrives", c)
		}
	}
	for i, w := range n.unsent {
		redis(func(n *node) {
			n.unsent = slices.Delete(n.unsent, i, i+1)
			x.complete(w, item{phase: known, result: handedBack})
		}, "state gives back %d, which it never sent", w.number)
	}
	if len(n.flight)+len(n.unsent) > 0 {
		fault(redis, func(n *node) { n.flight, n.unsent = nil, nil }, "state crashes")
	}
	for member, token := range im.leases {
		has := func(w work) bool { return w.token == token }
		held, running := false, false
		for _, f := range n.flight {
			held = held || has(f.work)
		}
		for _, w := range n.unsent {
			held = held || has(w)
		}
		for _, c := range n.consumers {
			for _, i := range c.items {
				// Who has a result for the delivery reports it long before LEASE_TIME is over.
				held, running = held || i.number == head(im), running || has(i.work) && i.phase == requested
			}
		}
		giveback := func(n *node) {
			for i := range n.flight {
				n.flight[i].stale = n.flight[i].stale || has(n.flight[i].work)
			}
			for c := range n.consumers {
				for i := range n.consumers[c].items {
					it := &n.consumers[c].items[i]
					it.stale = it.stale || has(it.work)
				}
			}
			x.giveback(destination, member, token)
		}
		switch {
		case running: // a request takes less than LEASE_TIME, and none starts without that much left
		case held:
			fault(redis, giveback, "whoever has a lease is slow: given back after LEASE_TIME")
		default:
			redis(giveback, "a lease that nobody has is given back after LEASE_TIME")
		}
	}
}

// head is the number of the delivery whose turn it is.
func head(im *image) uint32 {
	first, _, _ := strings.Cut(im.call["q:"+destination], " ")
	n, _ := strconv.ParseUint(first, 10, 32)
	return uint32(n)
}

func (x *explorer) lease(member string) (got []work) {
	leased, _, err := x.store.Lease(context.Background(), destination, []string{member})
	if err != nil {
		x.fail("lease: %v", err)
	}
	for _, w := range leased {
		got = append(got, work{w.GetDelivery().GetNumber(), w.GetToken(), w.GetDelivery().GetUncertain()})
	}
	return got
}

func (x *explorer) giveback(destination, member, token string) {
	lost := []store.Lost{{Ref: store.Ref{Destination: destination, Member: member}, Token: token}}
	if _, errs := x.store.Giveback(context.Background(), lost, true); errs[0] != nil {
		x.fail("giveback: %v", errs[0])
	}
}

// complete sends a result to state.
func (x *explorer) complete(w work, it item) {
	r := &statev1.LeaseResult{Call: callKey, Destination: destination, Delivery: w.number, Token: w.token}
	attempt := &statev1.Attempt{Delivery: w.number, Destination: destination}
	again := &statev1.RetryLater{}
	r.Result = &statev1.LeaseResult_Retry{Retry: again}
	switch it.result {
	case delivered:
		x.reported = w.number
		r.Attempt, r.Result = attempt, &statev1.LeaseResult_Done{Done: &statev1.Done{}}
	case maybe:
		attempt.Uncertain, r.Attempt = true, attempt
	case unsentAgain:
		r.Attempt = attempt
	case handedBack:
		again.Uncounted = true
	}
	if _, errs := x.store.Complete(context.Background(), []*statev1.LeaseResult{r}); errs[0] != nil {
		x.fail("complete: %v", errs[0])
	}
}

// consumer receives work, sends, and reports.
func (x *explorer) consumer(c int, n *node, im *image, redis, local adder, fault faulty) {
	for i, f := range n.flight {
		if f.consumer == c {
			local(func(n *node) {
				n.flight = slices.Delete(n.flight, i, i+1)
				n.consumers[c].receive(f)
			}, "consumer %d receives %d", c, f.number)
		}
	}
	items := n.consumers[c].items
	if len(items) > 0 {
		fault(local, func(n *node) {
			n.consumers[c].items = nil
			n.flight = slices.DeleteFunc(n.flight, func(f flight) bool { return f.consumer == c })
		}, "consumer %d crashes", c)
	}
	for i, it := range items {
		set := func(p phase, r result) func(n *node) {
			return func(n *node) { n.consumers[c].items[i].phase, n.consumers[c].items[i].result = p, r }
		}
		switch {
		case it.phase == leased && it.stale:
			local(set(known, handedBack), "consumer %d hands back %d, whose lease is too old", c, it.number)
		case it.phase == leased:
			local(func(n *node) {
				x.arrive(n, im, it.work)
				n.consumers[c].items[i].phase = requested
			}, "consumer %d sends %d", c, it.number)
			fault(local, set(known, unsentAgain), "consumer %d cannot reach TopS.II", c)
		case it.phase == requested:
			local(set(known, delivered), "consumer %d gets TopS.II's answer for %d", c, it.number)
			fault(local, set(known, maybe), "consumer %d gets no answer for %d", c, it.number)
		default:
			redis(func(n *node) {
				n.consumers[c].items = slices.Delete(n.consumers[c].items, i, i+1)
				x.complete(it.work, it)
			}, "consumer %d reports %d", c, it.number)
			fault(redis, func(*node) { x.complete(it.work, it) }, "consumer %d reports %d, the answer is lost", c, it.number)
		}
	}
}

// receive is delivery.Consumer.lease.
func (c *consumer) receive(f flight) {
	for i := range c.items {
		old := &c.items[i]
		switch {
		case old.number != f.number:
			continue
		case old.phase != known:
			old.token = f.token
		case old.result != delivered:
			*old = item{work: f.work, stale: f.stale}
		}
		return
	}
	c.items = append(c.items, item{work: f.work, stale: f.stale})
}

// arrive is a request at TopS.II. It checks C, D and E.
func (x *explorer) arrive(n *node, im *image, w work) {
	if n.effects[w.number] > 0 && !w.uncertain {
		x.fail("C: delivery %d is sent again, and its lease does not say that it may have arrived", w.number)
	}
	for _, c := range n.consumers {
		for _, it := range c.items {
			if it.number == w.number && it.phase == requested {
				x.fail("D: delivery %d is sent while another request for it is under way", w.number)
			}
		}
	}
	for before := uint32(1); before < w.number; before++ {
		if !strings.Contains(ended, im.call[fmt.Sprint(before, "s")]) {
			x.fail("E: delivery %d is sent before %d has ended", w.number, before)
		}
	}
	if n.effects[w.number] == 0 {
		d := x.delivery(im.call[fmt.Sprint(w.number)])
		n.arrived = append(n.arrived, d.GetEndpoint()+errorInfo(d.GetPayload()))
	}
	if n.effects == nil {
		n.effects = map[uint32]int{}
	}
	n.effects[w.number]++
}
