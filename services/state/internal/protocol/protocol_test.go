// Package protocol checks the commit protocol exhaustively for small cases: every order of the steps in which two callbacks
// of a call are decided, committed, leased, sent and completed, with a crash, a lost answer or a delay at any step.
//
// The rules (router.Decider, the real ones) and the scripts (store, on a real Redis) are played step by step by one
// goroutine; nothing runs by itself and no time passes but by a step. What surrounds them is written here as small as it can
// be: a dialer that sends again, routers that repeat a commit verbatim, consumers as services/upstream has them, LEASE_TIME.
// It does not check those services' own code, nor who gets work (package dispatch): both have their tests, and
// `callrelay prove` runs them together.
//
// What must hold, whatever happens (the numbers are those of the rules in ARCHITECTURE.md):
//
//	A  An acknowledged callback is in the call: its input id, and its entry in the journal (2).
//	B  When nothing is left to do, every callback was acknowledged, every delivery is delivered, nothing is leased, due or
//	   counted as open, the call has a time to live, and TopS.II has exactly what the callbacks ask for, by their order (10, 13).
//	C  A delivery is sent a second time only if an earlier attempt could have arrived, and then its lease says so (8).
//	D  No two requests for the same delivery are under way at the same time (6, 7).
//	E  A delivery is sent only when all before it of its call have ended (9).
//	F  A duplicate, and an input that was committed before, never change the version (2).
//	G  After every step the stored parts fit together: the head of the line is either due or leased, and nothing else is; open
//	   counts the deliveries and timers that are not done; a delivery that ended never changes again (10).
//	H  That TopS.II has a delivery is believed from whoever says it, however old the lease (6).
package protocol

import (
	"context"
	"flag"
	"fmt"
	"hash/maphash"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"callrelay/callback"
	callbackv1 "callrelay/gen/callrelay/callback/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/redistest"
	"callrelay/services/router"
	"callrelay/services/state/internal/store"
)

const destination = "topsii"

var callKey = callback.CallKey(callback.Ameyo, "1")

// scenario is two callbacks of one call.
type scenario struct {
	name      string
	callbacks []*routerv1.RouteItem
	// late callbacks are received after the phone-1 record expired; without any, time does not pass.
	late []int
	// want are the endpoints that TopS.II may have in the end, by the order of delivery.
	want []string
}

func scenarios() []scenario {
	end := func(index, crt, disposition string) *routerv1.RouteItem {
		return &routerv1.RouteItem{Callback: &routerv1.RouteItem_AmeyoCallEnd{AmeyoCallEnd: &callbackv1.AmeyoCallEnd{
			UniqueId: "1", CustomerId: "c", CustomerCrtId: crt, SystemDisposition: disposition, ShareablePhonesDialIndex: index,
			PhoneList: `["0900000001","0900000002"]`, UserId: "u", DialledPhone: "0900000001", CallTime: "2026-03-06 09:00:00"}}}
	}
	start := &routerv1.RouteItem{Callback: &routerv1.RouteItem_AmeyoCallStart{AmeyoCallStart: &callbackv1.AmeyoCallStart{
		CsUniqueId: "1", UserId: "u", Phone: "0900000001"}}}
	return []scenario{
		{name: "a callback and its repeat",
			callbacks: []*routerv1.RouteItem{end("0", "a", "CONNECTED"), end("0", "a", "CONNECTED")}, want: []string{"createCallEnd"}},
		{name: "phone 1 and phone 2",
			callbacks: []*routerv1.RouteItem{end("0", "a", "BUSY"), end("1", "b", "NO_ANSWER")},
			want:      []string{"createNotAnswer BUSY NO_ANSWER", "createNotAnswer UNKNOWN NO_ANSWER"}},
		{name: "both phones with one attempt id",
			callbacks: []*routerv1.RouteItem{end("0", "a", "BUSY"), end("1", "a", "NO_ANSWER")},
			want:      []string{"createNotAnswer BUSY NO_ANSWER", "createNotAnswer UNKNOWN NO_ANSWER"}},
		{name: "two deliveries in their order",
			callbacks: []*routerv1.RouteItem{start, end("0", "a", "CONNECTED")},
			want:      []string{"createCallStart,createCallEnd", "createCallEnd,createCallStart"}},
		{name: "phone 2 after phone 1 expired", late: []int{1},
			callbacks: []*routerv1.RouteItem{end("0", "a", "BUSY"), end("1", "b", "NO_ANSWER")},
			want:      []string{"createNotAnswer UNKNOWN NO_ANSWER"}},
	}
}

var faults = flag.Int("faults", 1, "how many crashes, lost answers and delays there may be; 2 takes many minutes")

func TestEveryInterleaving(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "redis.sock")
	redistest.Start(t, "--unixsocket", socket)
	cfg := router.Config{Profile: "seed", Phone1Expiry: "drop", DedupeSeconds: 3600, Phone1Seconds: 600, Timezone: "Asia/Tokyo"}
	decider, err := router.NewDecider(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i, sc := range scenarios() {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			x := newExplorer(t, fmt.Sprintf("unix://%s?db=%d", socket, i+1), decider, sc)
			n := &node{faults: *faults}
			for cb := range sc.callbacks {
				n.inputs = append(n.inputs, input{callback: cb})
			}
			ways := x.explore(n, x.read())
			t.Logf("%d states, %d steps between them, %d ends; %.2g interleavings, of at most %d steps", len(x.seen), x.steps, x.ends, ways, x.deepest)
			if x.ends == 0 {
				t.Error("no way led to an end")
			}
		})
	}
}

// node is everything outside Redis at one moment.
type node struct {
	inputs    []input
	timer     *timer // a router works on it
	consumers [2]consumer
	flight    []flight // leased, on the way from state to a consumer
	unsent    []work   // leased by a commit whose answer state did not get: state gives it back
	effects   map[uint32]int
	arrived   []string // what TopS.II has, first arrivals only
	faults    int
	passed    bool // the phone-1 record's time is over
}

// input is one callback on its way through a router. A dialer that sends it again makes another one with another request id.
type input struct {
	callback, try int
	item          *statev1.CommitItem // decided, outcome unknown; nil: not yet, or done
	decided       int                 // how often, for the ids of commits
	done          bool                // acknowledged, or nobody waits and nothing goes on
}

func (in input) id() string { return fmt.Sprintf("r%d.%d", in.callback, in.try) }

type timer struct {
	entry   *statev1.Entry
	item    *statev1.CommitItem
	decided int
}

// work is a lease in somebody's hands.
type work struct {
	number    uint32
	token     string
	uncertain bool
}

type flight struct {
	work
	consumer int
	stale    bool // LEASE_TIME is over: no request may start
}

// consumer is upstream (services/upstream/internal/delivery): one request at a time, results until they are answered.
type consumer struct{ items []item }

type item struct {
	work
	phase  phase
	stale  bool
	result result
}

type phase int

const (
	leased    phase = iota // not sent
	requested              // TopS.II has it; its answer is not here
	known                  // there is a result
)

type result int

const (
	delivered result = iota
	maybe            // no definite answer
	unsentAgain
	handedBack
)

func (c consumer) free() bool {
	return !slices.ContainsFunc(c.items, func(i item) bool { return i.phase != known })
}

func (n *node) clone() *node {
	c := *n
	c.inputs, c.flight, c.unsent, c.arrived = slices.Clone(n.inputs), slices.Clone(n.flight), slices.Clone(n.unsent), slices.Clone(n.arrived)
	for i := range c.consumers {
		c.consumers[i].items = slices.Clone(n.consumers[i].items)
	}
	c.effects = maps.Clone(n.effects)
	if n.timer != nil {
		t := *n.timer
		c.timer = &t
	}
	return &c
}

// image is what Redis holds of the call.
type image struct {
	call           map[string]string
	ttl            bool
	due, rules     []redis.Z
	leases, timers map[string]string
	letters        []redis.Z
}

type explorer struct {
	t       *testing.T
	sc      scenario
	store   *store.Store
	client  *redis.Client
	decider *router.Decider
	now     int64 // of every decision
	keys    []string

	hash maphash.Seed
	seen map[uint64]float64 // in how many ways it goes on from a state
	at   *image             // what Redis holds now
	// committed is the input that the last step committed, now or earlier; fixed: it must not have changed the version.
	committed string
	fixed     bool
	// reported is the delivery that the last step reported as delivered.
	reported uint32
	path     []string
	steps    int
	ends     int
	deepest  int
}

func newExplorer(t *testing.T, url string, decider *router.Decider, sc scenario) *explorer {
	s, err := store.Open(store.Config{URL: url, Retention: time.Hour, JournalLimit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	o, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(o)
	t.Cleanup(func() { client.Close() })
	// The keys of services/state/internal/store/keys.go.
	tag := fmt.Sprintf("cr:{%d}:", store.Partition(callKey))
	return &explorer{t: t, sc: sc, store: s, client: client, decider: decider, now: s.Now(), hash: maphash.MakeSeed(), seen: map[uint64]float64{},
		keys: []string{tag + "c:" + callKey, tag + "d:" + destination, tag + "l:" + destination, tag + "d:" + store.Rules, tag + "l:" + store.Rules, tag + "x:" + destination}}
}

// read looks at Redis.
func (x *explorer) read() *image {
	ctx := context.Background()
	p := x.client.Pipeline()
	call, ttl := p.HGetAll(ctx, x.keys[0]), p.PTTL(ctx, x.keys[0])
	due, leases := p.ZRangeWithScores(ctx, x.keys[1], 0, -1), p.HGetAll(ctx, x.keys[2])
	rules, timers := p.ZRangeWithScores(ctx, x.keys[3], 0, -1), p.HGetAll(ctx, x.keys[4])
	letters := p.ZRangeWithScores(ctx, x.keys[5], 0, -1)
	if _, err := p.Exec(ctx); err != nil {
		x.fail("redis: %v", err)
	}
	x.at = &image{call: call.Val(), ttl: ttl.Val() > 0, due: due.Val(), leases: leases.Val(), rules: rules.Val(), timers: timers.Val(), letters: letters.Val()}
	return x.at
}

// restore puts Redis back to what it held.
func (x *explorer) restore(im *image) {
	if x.at == im {
		return
	}
	ctx := context.Background()
	p := x.client.Pipeline()
	p.Del(ctx, x.keys...)
	hash := func(key string, m map[string]string) {
		if len(m) > 0 {
			p.HSet(ctx, key, m)
		}
	}
	list := func(key string, z []redis.Z) {
		if len(z) > 0 {
			p.ZAdd(ctx, key, z...)
		}
	}
	hash(x.keys[0], im.call)
	list(x.keys[1], im.due)
	hash(x.keys[2], im.leases)
	list(x.keys[3], im.rules)
	hash(x.keys[4], im.timers)
	list(x.keys[5], im.letters)
	if im.ttl {
		p.PExpire(ctx, x.keys[0], time.Hour)
	}
	if _, err := p.Exec(ctx); err != nil {
		x.fail("redis: %v", err)
	}
	x.at = im
}

func (x *explorer) fail(format string, args ...any) {
	x.t.Helper()
	x.t.Fatalf("%s\nafter:\n  %s", fmt.Sprintf(format, args...), strings.Join(x.path, "\n  "))
}

// step is one thing that can happen next.
type step struct {
	name string
	kind kind
	do   func(n *node)
}

// kind says what a step does with Redis.
type kind int

const (
	local kind = iota
	reads
	writes
)

// explore takes every step from here, and every step from there, once for each state. It returns in how many ways that goes.
func (x *explorer) explore(n *node, im *image) (ways float64) {
	x.deepest = max(x.deepest, len(x.path))
	steps := x.possible(n, im)
	progress := false
	for _, s := range steps {
		x.steps++
		next := n.clone()
		x.path = append(x.path, s.name)
		nextImage := im
		switch s.kind {
		case local:
			s.do(next)
		case reads:
			x.restore(im)
			s.do(next)
		case writes:
			x.restore(im)
			x.at = nil
			x.committed, x.reported = "", 0
			s.do(next)
			nextImage = x.read()
			x.structure(im, nextImage)
			x.commits(im, nextImage)
		}
		progress = progress || next.faults == n.faults
		key := x.key(next, nextImage)
		if _, seen := x.seen[key]; !seen {
			x.seen[key] = 0
			x.seen[key] = x.explore(next, nextImage)
		}
		ways += x.seen[key]
		x.path = x.path[:len(x.path)-1]
	}
	if !progress {
		x.ends++
		x.end(n, im)
	}
	return max(ways, 1)
}
