package protocol

import (
	"encoding/json"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	statev1 "callrelay/gen/callrelay/state/v1"
)

// errorInfo are the statuses in a payload.
func errorInfo(payload []byte) string {
	var envelope map[string]struct{ ErrorInfo1, ErrorInfo2 string }
	if json.Unmarshal(payload, &envelope) != nil {
		return " unreadable"
	}
	for _, p := range envelope {
		if p.ErrorInfo1 != "" {
			return " " + p.ErrorInfo1 + " " + p.ErrorInfo2
		}
	}
	return ""
}

// ended are the letters of deliveries that are over.
const ended = "dxecna"

// structure is G.
func (x *explorer) structure(before, after *image) {
	call := after.call
	open := 0
	for n := 1; call[strconv.Itoa(n)] != ""; n++ {
		state := call[fmt.Sprint(n, "s")]
		if !strings.Contains(ended, state) {
			open++
		}
		if was := before.call[fmt.Sprint(n, "s")]; was != "" && strings.Contains(ended, was) && was != state {
			x.fail("G: delivery %d was %q and became %q", n, was, state)
		}
		if was := before.call[strconv.Itoa(n)]; was != "" && was != call[strconv.Itoa(n)] {
			x.fail("G: delivery %d was rewritten", n)
		}
	}
	if state := call[fmt.Sprint(x.reported, "s")]; x.reported != 0 && !strings.Contains(ended, state) {
		x.fail("H: delivery %d was reported as delivered, and is %q", x.reported, state)
	}
	line := strings.Fields(call["q:"+destination])
	if len(line) != open {
		x.fail("G: %d deliveries are not done, and the line is %q", open, line)
	}
	due, leased := len(after.due) > 0, len(after.leases) > 0
	switch {
	case len(line) == 0 && (due || leased):
		x.fail("G: nothing is in the line, but due %v or leased %v", after.due, after.leases)
	case len(line) > 0 && due == leased:
		x.fail("G: the head of the line must be due or leased: due %v, leased %v", after.due, after.leases)
	case leased && after.leases[callKey] != call[line[0]+"t"]:
		x.fail("G: the lease %v is not that of the head %q", after.leases, call[line[0]+"t"])
	case leased != (len(line) > 0 && call[line[0]+"s"] == "l"):
		x.fail("G: leased %v, but the head %v is %q", after.leases, line, call[line[0]+"s"])
	}
	for field := range call {
		if strings.HasPrefix(field, "t:") {
			open++
		}
	}
	if call["o"] != strconv.Itoa(open) && !(open == 0 && call["o"] == "") {
		x.fail("G: %d things are open, and the call says %q", open, call["o"])
	}
	if len(call) > 0 && after.ttl != (open == 0) {
		x.fail("G: %d things are open, time to live: %t", open, after.ttl)
	}
}

// commits is A and F.
func (x *explorer) commits(before, after *image) {
	if x.committed == "" {
		return
	}
	if x.fixed && before.call["v"] != after.call["v"] {
		x.fail("F: the version changed from %q to %q", before.call["v"], after.call["v"])
	}
	if x.committed == timerInput {
		return // it has no entry of its own
	}
	times := 0
	for field, value := range after.call {
		piece := &statev1.Journal{}
		if field[0] != 'j' || field == "jn" || field == "jb" {
			continue
		}
		if err := proto.Unmarshal([]byte(value), piece); err != nil {
			x.fail("journal: %v", err)
		}
		for _, e := range piece.GetEntries() {
			if e.GetReceived() != nil && e.GetRequestId() == x.committed {
				times++
			}
		}
	}
	if _, known := after.call["i:"+x.committed]; !known || times != 1 {
		x.fail("A: %s was acknowledged; its input id is there: %t, the journal has it %d times", x.committed, known, times)
	}
}

func (x *explorer) delivery(body string) *statev1.Delivery {
	d := &statev1.Delivery{}
	if err := proto.Unmarshal([]byte(body), d); err != nil {
		x.fail("delivery: %v", err)
	}
	return d
}

// end is B: nothing more can happen without a fault.
func (x *explorer) end(n *node, im *image) {
	for _, in := range n.inputs {
		if !in.done {
			x.fail("B: %s was never acknowledged", in.id())
		}
	}
	for number := 1; im.call[strconv.Itoa(number)] != ""; number++ {
		if state := im.call[fmt.Sprint(number, "s")]; state != "d" {
			x.fail("B: delivery %d is %q", number, state)
		}
	}
	if len(im.due)+len(im.leases)+len(im.rules)+len(im.timers)+len(im.letters) > 0 || !im.ttl {
		x.fail("B: something is left: %+v", im)
	}
	if got := strings.Join(n.arrived, ","); !slices.Contains(x.sc.want, got) {
		x.fail("B: TopS.II has %q, want one of %q", got, x.sc.want)
	}
}

// key names a state: two with the same key have the same future. Tokens, which are random, are named by their order; moments
// and the journal are left out, since no step depends on them.
func (x *explorer) key(n *node, im *image) uint64 {
	var h maphash.Hash
	h.SetSeed(x.hash)
	names := map[string]string{}
	name := func(token string) string {
		if token != "" && names[token] == "" {
			names[token] = "T" + strconv.Itoa(len(names))
		}
		return names[token]
	}
	say := func(parts ...string) {
		for _, p := range parts {
			_, _ = h.WriteString(p)
			_ = h.WriteByte(0)
		}
	}
	for _, field := range slices.Sorted(maps.Keys(im.call)) {
		value := im.call[field]
		last := field[len(field)-1]
		switch digit := field[0] >= '0' && field[0] <= '9'; {
		case field[0] == 'j', digit && (last == 'f' || last == 'z' || last == 'y'):
			continue
		case digit && last == 't':
			value = name(value)
		case digit && last >= '0' && last <= '9':
			d := x.delivery(value)
			value = d.GetEndpoint() + d.GetRequestId() + string(d.GetPayload())
		}
		say(field, value)
	}
	say(fmt.Sprint(len(im.due), len(im.rules), im.ttl, n.faults, n.passed))
	for _, leases := range []map[string]string{im.leases, im.timers} {
		for _, member := range slices.Sorted(maps.Keys(leases)) {
			say(member, name(leases[member]))
		}
	}
	for _, in := range n.inputs {
		say(in.id(), fmt.Sprint(in.done, in.decided))
		if in.item != nil {
			say(in.item.GetExpectedVersion(), in.item.GetCommitId(), string(in.item.GetRecord()), fmt.Sprint(in.item.GetOutcome().GetDuplicate()))
		}
	}
	if n.timer != nil {
		say("timer", n.timer.entry.GetTimerId(), name(n.timer.entry.GetToken()), fmt.Sprint(n.timer.decided))
		if n.timer.item != nil {
			say(n.timer.item.GetExpectedVersion(), n.timer.item.GetCommitId())
		}
	}
	say(fmt.Sprint(n.effects, n.arrived))
	for _, f := range n.flight {
		say(fmt.Sprint("flight", f.consumer, f.number, name(f.token), f.uncertain, f.stale))
	}
	for _, w := range n.unsent {
		say(fmt.Sprint("unsent", w.number, name(w.token)))
	}
	for _, c := range n.consumers {
		say("consumer")
		for _, it := range c.items {
			say(fmt.Sprint(it.number, name(it.token), it.uncertain, it.phase, it.stale, it.result))
		}
	}
	return h.Sum64()
}
