package baseline

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Floor is what remains of callrelay when everything is left out that makes it one: a callback is answered when it is in
// Redis, and what became of its delivery is written, each by a script of three commands, as many in a pipeline as wait. It has
// no services, rules, leases, journal, search or repeats after a crash: what callrelay costs beyond it is what those cost.
type Floor struct {
	crm    *CRM
	redis  *redis.Client
	takes  chan *floorCall
	queue  chan *floorCall
	closes chan *floorCall
}

type floorCall struct {
	key     string
	payload []byte
	taken   chan error
}

var (
	// KEYS call, queue; ARGV id, payload, journal, now. Returns 0 for a repeat.
	floorTake = redis.NewScript(`
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'payload', ARGV[2], 'journal', ARGV[3], 'state', 'leased', 'at', ARGV[4])
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
return 1`)
	// KEYS call, queue; ARGV id, retention (ms), journal.
	floorClose = redis.NewScript(`
redis.call('HSET', KEYS[1], 'state', 'done', 'closed', ARGV[3])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1`)
	// floorJournal is as long as a journal entry.
	floorJournal = strings.Repeat("j", 200)
)

const floorQueue = "queue"

// NewFloor starts a relay on the Redis at a unix socket. It delivers until the process ends.
func NewFloor(ctx context.Context, crm *CRM, socket string) (*Floor, error) {
	f := &Floor{crm: crm, redis: redis.NewClient(&redis.Options{Network: "unix", Addr: socket, MaxRetries: -1, Protocol: 2}),
		takes: make(chan *floorCall, Workers), queue: make(chan *floorCall, 1<<20), closes: make(chan *floorCall, Workers)}
	for _, script := range []*redis.Script{floorTake, floorClose} {
		if err := script.Load(ctx, f.redis).Err(); err != nil {
			return nil, err
		}
	}
	for range 2 { // pipelines of each kind at a time
		go f.take()
		go f.finish()
	}
	for range Workers {
		go f.deliver()
	}
	return f, nil
}

// Close ends the connection to Redis.
func (f *Floor) Close() error { return f.redis.Close() }

func (f *Floor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key, payload, err := read(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	call := &floorCall{key, payload, make(chan error, 1)}
	f.takes <- call
	if err := <-call.taken; err != nil {
		unavailable(w, err)
		return
	}
	answer(w, ack)
}

func (f *Floor) take() {
	for {
		calls := waiting(f.takes)
		now := time.Now().UnixMilli()
		answers := f.pipeline(floorTake, calls, func(c *floorCall) []any { return []any{c.key, c.payload, floorJournal, now} })
		for i, c := range calls {
			if first, err := answers[i].Bool(); err != nil {
				c.taken <- err
			} else {
				if first {
					f.queue <- c
				}
				c.taken <- nil
			}
		}
	}
}

func (f *Floor) deliver() {
	for c := range f.queue {
		for f.crm.Deliver(context.Background(), c.payload) != nil {
			<-time.After(time.Second)
		}
		f.closes <- c
	}
}

func (f *Floor) finish() {
	for {
		f.pipeline(floorClose, waiting(f.closes), func(c *floorCall) []any {
			return []any{c.key, (72 * time.Hour).Milliseconds(), floorJournal}
		})
	}
}

// pipeline runs a script for each call; an error is in its answer.
func (f *Floor) pipeline(script *redis.Script, calls []*floorCall, args func(*floorCall) []any) []*redis.Cmd {
	ctx, pipe, answers := context.Background(), f.redis.Pipeline(), make([]*redis.Cmd, len(calls))
	for i, c := range calls {
		answers[i] = script.EvalSha(ctx, pipe, []string{"call:" + c.key, floorQueue}, args(c)...)
	}
	_, _ = pipe.Exec(ctx)
	return answers
}

// waiting waits for a call and returns it with those behind it.
func waiting(from chan *floorCall) []*floorCall {
	calls := []*floorCall{<-from}
	for len(calls) < Workers {
		select {
		case c := <-from:
			calls = append(calls, c)
		default:
			return calls
		}
	}
	return calls
}
