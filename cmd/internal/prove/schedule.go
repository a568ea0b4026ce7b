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

// faultEvery is how often something happens, where the time is enough for every kind once; else every kind comes once, closer together.
const faultEvery = 3 * time.Second

// schedule shares the time out: first all kinds in an order drawn from the seed, then all again in another order, and so on.
// A slot's fault begins within its first fifth and is over by its middle, so that recovery can be seen; now and then, where
// there is time, upstream is frozen for longer than a lease lasts.
func schedule(seed uint64, total time.Duration, replicas int) []fault {
	rng := rand.New(rand.NewPCG(seed, 0x70726f7665))
	slots := max(len(kinds()), int(total/faultEvery))
	slot := total / time.Duration(slots)
	var out, round []fault
	for i := range slots {
		if len(round) == 0 {
			round = kinds()
			rng.Shuffle(len(round), func(a, b int) { round[a], round[b] = round[b], round[a] })
		}
		f := round[0]
		round = round[1:]
		f.at = time.Duration(i)*slot + time.Duration(rng.Int64N(int64(slot/5)))
		f.replica, f.effect = rng.IntN(replicas), rng.IntN(2) == 0
		if long := rng.Int64N(int64(slot / 10)); f.what != kill && f.what != restart {
			f.length = slot/5 + time.Duration(long)
			if f.target == upstreamTarget && slot >= faultEvery {
				f.length = leaseTime + time.Second
			}
		}
		if f.target == redisTarget {
			f.replica = 0
		}
		out = append(out, f)
	}
	// A long one moves everything after it.
	for i := 1; i < len(out); i++ {
		if end := out[i-1].at + out[i-1].length + slot/5; out[i].at < end {
			out[i].at = end
		}
	}
	return out
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
