package prove

import (
	"fmt"
	"math/rand/v2"
	"time"

	"callrelay/sim/topsii"
)

// target is what a fault hits.
type target string

const (
	ingressTarget  target = "ingress"
	routerTarget   target = "router"
	stateTarget    target = "state"
	upstreamTarget target = "upstream"
	redisTarget    target = "redis"
	topsiiTarget   target = "TopS.II"
)

// services in the order of their start.
var services = []target{stateTarget, routerTarget, upstreamTarget, ingressTarget}

// What is done to a process.
const (
	kill    = "kill -9"
	freeze  = "freeze"  // SIGSTOP, later SIGCONT
	restart = "restart" // SIGTERM: it ends in order and is started again
)

// What TopS.II does in a brown-out.
const (
	refuses   = "503"
	hangs     = "hang"
	fails     = "fail"        // HTTP 200 with an application error
	keyFails  = "key refused" // HTTP 200 with a refused API key, which holds the destination
	cuts      = "cut"
	slowBytes = "slow bytes"
)

// fault is one entry of the schedule.
type fault struct {
	target target
	what   string
	// replica of the target that is hit, from 0.
	replica int
	at      time.Duration // since the load began
	length  time.Duration // 0 for what is over at once: kill and restart
	// effect says which of the requests that TopS.II does not answer are registered all the same.
	effect bool
}

// kind names the fault in the table.
func (f fault) kind() string { return string(f.target) + " " + f.what }

// kinds are all faults there are, without times.
func kinds() []fault {
	var all []fault
	for _, s := range services {
		for _, what := range []string{kill, freeze, restart} {
			all = append(all, fault{target: s, what: what})
		}
	}
	all = append(all, fault{target: redisTarget, what: kill}, fault{target: redisTarget, what: freeze})
	for _, what := range []string{refuses, hangs, fails, keyFails, cuts, slowBytes} {
		all = append(all, fault{target: topsiiTarget, what: what})
	}
	return all
}

// faultEvery is how often something happens, where the time is enough for every kind once; else every kind comes once, closer
// together.
const faultEvery = 3 * time.Second

// schedule shares the time out: first all kinds in an order drawn from the seed, then all again in another order, and so on.
// A slot's fault begins within its first fifth and is over by its middle, so that recovery can be seen. From a minute on what
// is frozen stays so for longer than others wait for it.
func schedule(seed uint64, total time.Duration, replicas int) []fault {
	rng := rand.New(rand.NewPCG(seed, 0x70726f7665))
	slots, longer := max(len(kinds()), int(total/faultEvery)), func(fault) time.Duration { return 0 }
	if total >= time.Minute {
		longer = patience
	}
	perRound := time.Duration(0)
	for _, f := range kinds() {
		perRound += longer(f)
	}
	rounds := (slots + len(kinds()) - 1) / len(kinds())
	slot := (total - time.Duration(rounds)*perRound) / time.Duration(slots)
	var out, round []fault
	begin := time.Duration(0)
	for range slots {
		if len(round) == 0 {
			round = kinds()
			rng.Shuffle(len(round), func(a, b int) { round[a], round[b] = round[b], round[a] })
		}
		f := round[0]
		round = round[1:]
		f.at = begin + time.Duration(rng.Int64N(int64(slot/5)))
		begin += slot
		length := slot/5 + time.Duration(rng.Int64N(int64(slot/10)))
		replica, effect := rng.IntN(replicas), rng.IntN(2) == 0
		switch f.target {
		case topsiiTarget:
			f.effect = effect
		case redisTarget:
		default:
			f.replica = replica
		}
		if f.what != kill && f.what != restart {
			f.length = length
		}
		f.length += longer(f)
		begin += longer(f)
		out = append(out, f)
	}
	return out
}

// patience is how long others wait for what is frozen: upstream's leases end, callbacks get no answer in time.
func patience(f fault) time.Duration {
	switch {
	case f.what != freeze:
		return 0
	case f.target == upstreamTarget:
		return leaseTime
	default:
		return ackBudget
	}
}

// latency is that of TopS.II on a good day: without any, nothing would ever be under way when something is killed.
var latency = topsii.Fault{Kind: topsii.Delay, Delay: 25 * time.Millisecond}

// brownOut are the faults for the simulator: some requests that get no answer are registered, others are not.
func (f fault) brownOut() []topsii.Fault {
	var b topsii.Fault
	switch f.what {
	case refuses:
		return []topsii.Fault{{Kind: topsii.HTTP, Status: 503}}
	case fails:
		return []topsii.Fault{{Kind: topsii.Fail, MessageCode: "ETYP0040"}}
	case keyFails:
		return []topsii.Fault{{Kind: topsii.Fail, MessageCode: "WTYP0030"}}
	case hangs:
		b.Kind = topsii.Hang
	case cuts:
		b.Kind = topsii.Cut
	case slowBytes: // some slower than TOPSII_TIMEOUT; they register all the same
		slow := topsii.Fault{Kind: topsii.SlowBody, Pace: 2 * time.Millisecond}
		slower := topsii.Fault{Kind: topsii.SlowBody, Pace: topsiiTimeout / 10, Endpoint: topsii.CallEnd}
		return []topsii.Fault{slow, slower}
	}
	registered := b
	b.Effect, registered.Effect, registered.Endpoint = f.effect, !f.effect, topsii.CallEnd
	return []topsii.Fault{b, registered}
}

func (f fault) String() string {
	s := fmt.Sprintf("%s %s", f.target, f.what)
	if f.replica > 0 {
		s = fmt.Sprintf("%s-%d %s", f.target, f.replica+1, f.what)
	}
	if f.length > 0 {
		s += fmt.Sprintf(" for %v", f.length.Round(10*time.Millisecond))
	}
	return s
}
