package prove

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"callrelay/sim/dialer"
)

// ack is one 200 for a callback.
type ack struct {
	requestID string
	duplicate bool
	door      int // which ingress answered
	at        time.Time
}

// sending is one callback that the dialer wants acknowledged, with all its repetitions: they are the same request.
type sending struct {
	callback dialer.Callback
	first    time.Time // when it was first sent
	acks     []ack
	doors    map[int]bool // every ingress that was tried
	// refused is an answer that no repetition can mend, in words.
	refused string
}

// call is one call of the dialer or of the cloud PBX.
type call struct {
	id  int64
	key string
	// pbxID and registrations are of a call of the cloud PBX: its id there, and how many must come of it.
	pbxID         string
	registrations int

	mu       sync.Mutex
	order    []*sending // in the order in which they were first sent
	sendings map[string]*sending
}

// load is the dialer: it starts calls at a rate and sends each callback until it is acknowledged, as a dialer's retry does.
type load struct {
	doors  []string
	client *http.Client

	mu     sync.Mutex
	calls  []*call
	recent []repeatable // the last ones that were acknowledged, a ring
	next   int
	acks   []time.Time
	waits  []time.Duration // from the first sending until the 200

	open     atomic.Int64 // callbacks that are not acknowledged yet
	accepted atomic.Int64 // acknowledgements
	running  sync.WaitGroup
}

// repeatable is a callback that can be repeated later.
type repeatable struct {
	call     *call
	callback dialer.Callback
}

const (
	recentLimit = 64
	// openLimit bounds the calls under way: a relay that is away for long is not sent everything at once afterwards.
	openLimit = 5000
	// firstPause and longestPause are those between two tries of the dialer.
	firstPause, longestPause = 50 * time.Millisecond, time.Second
	dialTimeout              = 5 * time.Second
)

func newLoad(doors []string) *load {
	return &load{doors: doors, client: &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}, Timeout: dialTimeout}}
}

// scenarios are what the calls are drawn from: as they come, repeated, in a wrong order, and both.
func scenarios() []dialer.Scenario {
	var all []dialer.Scenario
	for _, s := range dialer.Scenarios {
		all = append(all, s, dialer.Repeated(s), dialer.Reordered(s), dialer.Repeated(dialer.Reordered(s)))
	}
	return all
}

// run starts calls until ctx ends; what is open then goes on until patience ends.
func (l *load) run(ctx, patience context.Context, seed uint64, rate float64) {
	var (
		rng   = rand.New(rand.NewPCG(seed, 0x6c6f6164))
		maker = dialer.New(seed)
		play  = scenarios()
		pbxs  = newPbx(seed)
		begin = time.Now()
		sent  float64 // callbacks so far
	)
	for {
		var c *call
		var callbacks []dialer.Callback
		if rng.IntN(onePbxIn) == 0 {
			c, callbacks = pbxs(rng.IntN(1<<20), rng.IntN(2) == 0)
		} else {
			callbacks = play[rng.IntN(len(play))](maker)
			id, _ := strconv.ParseInt(callbacks[0].CallID, 10, 64) // the dialer's ids are numbers
			c = newCall(id, callKey(id))
		}
		together := rng.IntN(5) == 0 // all callbacks of the call at the same instant
		pauses := make([]time.Duration, len(callbacks))
		for i := range pauses {
			pauses[i] = time.Duration(rng.IntN(40)) * time.Millisecond
		}
		due := begin.Add(time.Duration(sent / rate * float64(time.Second)))
		sent += float64(len(callbacks))
		if !pause(ctx, max(0, time.Until(due))) {
			return
		}
		for l.open.Load() > openLimit {
			if !pause(ctx, 10*time.Millisecond) {
				return
			}
		}
		l.mu.Lock()
		l.calls = append(l.calls, c)
		l.mu.Unlock()
		l.open.Add(int64(len(callbacks)))
		l.running.Go(func() { l.play(patience, c, callbacks, together, pauses) })
	}
}

func newCall(id int64, key string) *call {
	return &call{id: id, key: key, sendings: map[string]*sending{}}
}

func (l *load) play(ctx context.Context, c *call, callbacks []dialer.Callback, together bool, pauses []time.Duration) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for i, cb := range callbacks {
		if together {
			wg.Go(func() { l.send(ctx, c, cb) })
			continue
		}
		l.send(ctx, c, cb)
		if !pause(ctx, pauses[i]) {
			l.open.Add(-int64(len(callbacks) - i - 1)) // never sent
			return
		}
	}
}

// repeat sends some of the callbacks that were acknowledged last once more.
func (l *load) repeat(ctx context.Context, rng *rand.Rand, n int) {
	l.mu.Lock()
	some := slices.Clone(l.recent)
	l.mu.Unlock()
	rng.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
	for _, r := range some[:min(n, len(some))] {
		l.open.Add(1)
		l.running.Go(func() { l.send(ctx, r.call, r.callback) })
	}
}

// send sends a callback until it is acknowledged. A call stays with its ingress while that answers, as a balancer pins it.
func (l *load) send(ctx context.Context, c *call, cb dialer.Callback) {
	defer l.open.Add(-1)
	s := c.begin(cb)
	from := time.Now()
	wait := firstPause
	for try := 0; ; try++ {
		door := (int(c.id) + try) % len(l.doors)
		c.tried(s, door)
		answer := l.try(ctx, cb.URL(l.doors[door]))
		switch {
		case answer.status == http.StatusOK && answer.RequestID != "":
			a := ack{requestID: answer.RequestID, duplicate: answer.Duplicate, door: door, at: time.Now()}
			c.mu.Lock()
			s.acks = append(s.acks, a)
			c.mu.Unlock()
			l.took(repeatable{c, cb}, a.at, a.at.Sub(from))
			return
		case answer.status >= 400 && answer.status < 500:
			c.mu.Lock()
			s.refused = fmt.Sprintf("%d %s", answer.status, answer.Message)
			c.mu.Unlock()
			return
		}
		if !pause(ctx, wait) {
			return
		}
		wait = min(2*wait, longestPause)
	}
}

func (c *call) begin(cb dialer.Callback) *sending {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sendings[cb.Query]
	if s == nil {
		s = &sending{callback: cb, first: time.Now(), doors: map[int]bool{}}
		c.sendings[cb.Query] = s
		c.order = append(c.order, s)
	}
	return s
}

func (c *call) tried(s *sending, door int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.doors[door] = true
}

func (l *load) took(r repeatable, at time.Time, wait time.Duration) {
	l.accepted.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acks, l.waits = append(l.acks, at), append(l.waits, wait)
	if len(l.recent) < recentLimit {
		l.recent = append(l.recent, r)
		return
	}
	l.recent[l.next%recentLimit] = r
	l.next++
}

type answer struct {
	status    int
	RequestID string `json:"requestId"`
	Duplicate bool   `json:"duplicate"`
	Message   string `json:"message"`
}

func (l *load) try(ctx context.Context, url string) (a answer) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return answer{status: http.StatusBadRequest, Message: err.Error()}
	}
	resp, err := l.client.Do(req)
	if err != nil {
		return answer{}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil || json.Unmarshal(body, &a) != nil {
		return answer{}
	}
	a.status = resp.StatusCode
	return a
}

// finish waits until everything is acknowledged, or patience ended.
func (l *load) finish() {
	l.running.Wait()
	l.client.CloseIdleConnections()
}
