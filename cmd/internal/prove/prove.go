// Package prove runs the relay's own crash test: a private instance in separate processes with its own Redis and simulators,
// under load of a dialer and a cloud PBX, while each service and Redis in turn is killed, frozen and restarted and TopS.II
// browns out. It then holds what they were promised against what TopS.II and the PBX's webhook have, and against the relay's
// own accounting.
//
// It owns the instance (started, hit and ended here, loopback only), the schedule of faults, the load, and the verdict: what
// is lost, doubled, uncertain or out of order. It knows the relay only from outside: HTTP in, HTTP out, signals, and the
// journal over gRPC. It does not know how the relay keeps its promise.
package prove

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"callrelay/callback"
	operatorv1 "callrelay/gen/callrelay/operator/v1"
	"callrelay/platform/rpc"
)

// Options of Run.
type Options struct {
	// For is how long load and faults last; 10 s to 1 h.
	For time.Duration
	// Seed makes the same callbacks and the same schedule of faults again.
	Seed uint64
	// Rate of callbacks per second, 1 to 5000; repeats and retries come on top.
	Rate float64
	// Replicas of each service, 1 to 4.
	Replicas int
	// BinDir has the services' programs.
	BinDir string
	// Program is how callrelay was called, for the hints.
	Program string
	// Progress gets one line now and then; on a terminal it is written over.
	Progress io.Writer
	Terminal bool
}

func (o Options) check() error {
	switch {
	case o.For < 10*time.Second || o.For > time.Hour:
		return fmt.Errorf("--for %v: must be 10s to 1h", o.For)
	case !(o.Rate >= 1 && o.Rate <= 5000):
		return fmt.Errorf("--rate %v: must be 1 to 5000 callbacks per second", o.Rate)
	case o.Replicas < 1 || o.Replicas > 4:
		return fmt.Errorf("--replicas %d: must be 1 to 4", o.Replicas)
	}
	return nil
}

// drainLimit is how long the relay may take, after the last fault, until everything is acknowledged and delivered. A lease
// that was lost with the last fault ends after leaseTime.
const drainLimit = 60 * time.Second

// repeatsPerFault is how many acknowledged callbacks are sent again while a fault lasts, and as many after it.
const repeatsPerFault = 8

// window is the time of a fault as it was.
type window struct {
	fault      fault
	begin, end time.Time
}

// Run makes the proof. The result says whether it holds; an error says that it could not be made.
func Run(ctx context.Context, o Options) (result *Result, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "callrelay-prove-")
	if err != nil {
		return nil, err
	}
	defer func() {
		switch {
		case result.Holds() || ctx.Err() != nil:
			err = errors.Join(err, os.RemoveAll(dir))
		case result == nil:
			err = fmt.Errorf("%w; the logs are in %s", err, filepath.Join(dir, "logs"))
		}
	}()
	effects := &times{}
	c, err := startCluster(ctx, o, dir, effects.add)
	defer c.stop()
	if err != nil {
		return nil, err
	}
	conn, err := rpc.Dial(c.states)
	if err != nil {
		return nil, err
	}
	defer conn.Close()

	l := newLoad(c.ingresses)
	windows, err := storm(ctx, o, c, l, effects)
	if err != nil {
		return nil, err
	}
	say := progress(o)
	operator := operatorv1.NewOperatorServiceClient(conn)
	limit, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	judging := func(open int) {
		say("load is over; %d callbacks accepted, %d calls not delivered yet", l.accepted.Load(), open)
	}
	verdicts, bad := judgeAll(limit, operator, c, l.calls, judging)
	miscounted := accounted(ctx, operator, verdicts)
	if len(miscounted) > 0 && ctx.Err() == nil { // a callback that the dialer gave up and repeated may have been spooled until now
		verdicts, bad = judgeAll(limit, operator, c, l.calls, judging)
		miscounted = accounted(ctx, operator, verdicts)
	}
	if ctx.Err() != nil {
		return nil, errors.New("interrupted")
	}
	result = newResult(o, c, l, windows, verdicts, effects.all(), miscounted)
	if !result.Holds() {
		result.Dir = dir
		err = keep(dir, l.calls, verdicts, bad)
	}
	return result, err
}

// storm is load and faults. It returns when the dialer is done.
func storm(ctx context.Context, o Options, c *cluster, l *load, effects *times) (windows []window, err error) {
	loadCtx, stopLoad := context.WithTimeout(ctx, o.For)
	defer stopLoad()
	patience, giveUp := context.WithTimeout(ctx, o.For+drainLimit)
	defer giveUp()
	begin := time.Now()
	var loading sync.WaitGroup
	loading.Go(func() { l.run(loadCtx, patience, o.Seed, o.Rate) })

	say := progress(o)
	rng := rand.New(rand.NewPCG(o.Seed, 0x72657065617473))
	now := "no fault yet"
	tell := func() {
		say("%3.0fs of %.0fs; %d acknowledged, %d waiting, %d delivered; %s", time.Since(begin).Seconds(), o.For.Seconds(),
			l.accepted.Load(), l.open.Load(), effects.count(), now)
	}
	wait := func(until time.Time) bool {
		for time.Now().Before(until) {
			tell()
			if !pause(loadCtx, min(time.Until(until), 500*time.Millisecond)) {
				return false
			}
		}
		return loadCtx.Err() == nil
	}
	for _, f := range schedule(o.Seed, o.For, o.Replicas) {
		if !wait(begin.Add(f.at)) {
			break
		}
		l.repeat(patience, rng, repeatsPerFault) // the answers meet the fault
		if err := c.begin(loadCtx, f); err != nil && loadCtx.Err() == nil {
			return nil, fmt.Errorf("%v: %w", f, err)
		}
		w := window{fault: f, begin: time.Now()}
		now = f.String()
		l.repeat(patience, rng, repeatsPerFault)
		wait(w.begin.Add(f.length))
		c.end(f)
		w.end = time.Now()
		l.repeat(patience, rng, repeatsPerFault)
		windows = append(windows, w)
	}
	wait(begin.Add(o.For))
	loading.Wait()
	now = "no more faults"
	done := make(chan struct{})
	go func() { defer close(done); l.finish() }()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return windows, ctx.Err()
		case <-tick.C:
			tell()
		}
	}
}

// progress writes a line: over the one before on a terminal, else one every 10 s.
func progress(o Options) func(format string, args ...any) {
	var last time.Time
	return func(format string, args ...any) {
		line := fmt.Sprintf(format, args...)
		switch {
		case o.Progress == nil:
		case o.Terminal:
			fmt.Fprintf(o.Progress, "\r\x1b[K%s", line)
		case time.Since(last) > 10*time.Second:
			last = time.Now()
			fmt.Fprintln(o.Progress, line)
		}
	}
}

// keep writes what is known of the calls that have a problem next to the data.
func keep(dir string, calls []*call, verdicts []verdict, bad map[*call]*operatorv1.Call) error {
	if err := os.MkdirAll(filepath.Join(dir, "calls"), 0o700); err != nil {
		return err
	}
	for i, c := range calls {
		stored, is := bad[c]
		if !is {
			continue
		}
		text := fmt.Sprintf("%s\n%s\n", c.key, lines(verdicts[i].problems))
		for _, s := range c.order {
			text += fmt.Sprintf("\n%s first sent %s %s", s.callback.Kind, s.first.Format(time.RFC3339Nano), s.callback.Query)
			for _, a := range s.acks {
				text += fmt.Sprintf("\n  acknowledged %s as %s, duplicate: %t", a.at.Format(time.RFC3339Nano), a.requestID, a.duplicate)
			}
		}
		text += "\n\n" + protojson.Format(stored) + "\n"
		if err := os.WriteFile(filepath.Join(dir, "calls", url.PathEscape(c.key)+".txt"), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func callKey(id int64) string { return callback.CallKey(callback.Ameyo, fmt.Sprint(id)) }

// times are moments, collected by several goroutines.
type times struct {
	mu   sync.Mutex
	list []time.Time
}

func (t *times) add(at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.list = append(t.list, at)
}

func (t *times) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.list)
}

// all returns them in order.
func (t *times) all() []time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	slices.SortFunc(t.list, time.Time.Compare)
	return t.list
}
