package contest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"callrelay/bench/internal/load"
	"callrelay/bench/internal/proc"
	"callrelay/bench/internal/report"
	"callrelay/sim/topsii"
)

const (
	// SlowAnswer is how long the slow CRM takes for each delivery, and SlowRate what it is loaded with.
	SlowAnswer = 200 * time.Millisecond
	SlowRate   = 1000
	// idleGap is how long a relay is left alone before each single callback.
	idleGap = 10 * time.Millisecond
	// stalled is how long without a delivery means that what is missing is lost.
	stalled = 10 * time.Second
)

// Measure runs one contender once and returns its figures: those of a new relay, and with Settings.Stored those of the same
// relay with so many calls stored.
func Measure(ctx context.Context, set Settings, c Contender) (runs []report.Run, err error) {
	s, err := start(ctx, set, c)
	defer s.stop()
	if err == nil {
		runs, err = s.measure(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Name, err)
	}
	return runs, nil
}

func (s *stand) measure(ctx context.Context) ([]report.Run, error) {
	f, err := s.figures(ctx)
	if err != nil {
		return nil, err
	}
	f["ready_ms"] = ms(s.ready)
	runs := []report.Run{{Name: s.c.Name, Figures: f}}
	if s.Stored == 0 || s.c.kind != "callrelay" {
		return runs, nil
	}
	if err := s.ledger.Run(ctx, load.Load{Addr: s.addr, Lanes: s.Lanes, Bounded: true, Count: s.Stored}); err != nil {
		return nil, err
	}
	if _, err := s.drain(ctx); err != nil {
		return nil, err
	}
	if f, err = s.figures(ctx); err != nil {
		return nil, err
	}
	return append(runs, report.Run{Name: fmt.Sprintf("%s, %d stored", s.c.Name, s.Stored), Figures: f}), nil
}

// figures measures everything once.
func (s *stand) figures(ctx context.Context) (report.Figures, error) {
	f := report.Figures{}
	stored, err := s.redisMemory(ctx)
	if err != nil {
		return nil, err
	}
	before := s.ledger.Counts()
	for _, part := range []func(context.Context, report.Figures) error{s.idle, s.sustained, s.open, s.held, s.slow, s.soak} {
		if err := part(ctx, f); err != nil {
			return nil, err
		}
	}
	after, err := s.redisMemory(ctx)
	if err != nil {
		return nil, err
	}
	now := s.ledger.Counts()
	f["accepted"], f["refused"] = float64(now.Accepted-before.Accepted), float64(now.Refused-before.Refused)
	if s.delivers() {
		f["doubled"] = float64(now.Doubled - before.Doubled) // what is lost is an error of drain
	}
	if s.c.kind == "callrelay" {
		f["redis_bytes_per_call"] = (after - stored) / f["accepted"]
	}
	return f, nil
}

func (s *stand) delivers() bool { return s.c.kind != "bare" }

// idle sends single callbacks to a relay that does nothing else, in turn with single script calls to its Redis.
func (s *stand) idle(ctx context.Context, f report.Figures) error {
	single, err := s.ledger.Single(s.addr)
	if err != nil {
		return err
	}
	defer single.Close()
	script := func() error { return nil }
	if s.redis != "" {
		client := s.redisClient()
		defer client.Close()
		sha, err := client.ScriptLoad(ctx, `return redis.call("SET", KEYS[1], ARGV[1], "PX", 1000)`).Result()
		if err != nil {
			return err
		}
		value := strings.Repeat("x", 300)
		script = func() error { return client.EvalSha(ctx, sha, []string{"bench"}, value).Err() }
	}
	var scripts []time.Duration
	from := s.ledger.Now()
	for range s.Singles {
		if err := wait(ctx, idleGap); err != nil {
			return err
		}
		began := time.Now()
		if err := script(); err != nil {
			return err
		}
		scripts = append(scripts, time.Since(began))
		if err := wait(ctx, idleGap); err != nil {
			return err
		}
		if err := single.Send(); err != nil {
			return err
		}
		if _, err := s.drain(ctx); err != nil {
			return err
		}
	}
	latencies := s.ledger.Latencies(from, s.ledger.Now())
	put(f, "idle.ack", latencies.Ack)
	if s.delivers() {
		put(f, "idle.delivery", latencies.Delivery)
	}
	if s.redis != "" {
		slices.Sort(scripts)
		put(f, "idle.script", scripts)
		f["idle.ack_scripts"] = f["idle.ack_p50_ms"] / f["idle.script_p50_ms"]
	}
	return nil
}

// sustained is as fast as it goes with a bounded backlog.
func (s *stand) sustained(ctx context.Context, f report.Figures) error {
	profiled := make(chan error, 1)
	go func() { profiled <- s.profile(ctx) }()
	w, err := s.load(ctx, load.Load{Lanes: s.Lanes, Bounded: s.delivers()}, s.WarmUp)
	if err := errors.Join(err, <-profiled); err != nil {
		return err
	}
	f["sustained.acks_per_s"] = w.perSecond(w.to.Accepted - w.from.Accepted)
	callbacks := w.to.Accepted - w.from.Accepted
	put(f, "sustained.ack", w.Ack)
	if s.delivers() {
		callbacks = w.to.Delivered - w.from.Delivered
		f["sustained.delivered_per_s"] = w.perSecond(callbacks)
		put(f, "sustained.delivery", w.Delivery)
	}
	for name, cpu := range w.cpu() {
		f["cpu_us."+name] = float64(cpu.Microseconds()) / float64(max(1, callbacks))
	}
	for _, m := range []struct {
		name string
		tree []proc.Process
		of   func(proc.Process) int64
	}{
		{"rss_before_mb.", w.from.tree, func(p proc.Process) int64 { return p.RSS }},
		{"rss_mb.", w.to.tree, func(p proc.Process) int64 { return p.RSS }},
		{"peak_mb.", w.to.tree, func(p proc.Process) int64 { return p.Peak }},
	} {
		for _, p := range m.tree {
			f[m.name+processName(p)] += float64(m.of(p)) / (1 << 20)
		}
	}
	if s.spans != nil {
		f["spans_per_callback"] = float64(w.to.spans-w.from.spans) / float64(max(1, callbacks))
	}
	return nil
}

// open is a fixed rate, by the clock.
func (s *stand) open(ctx context.Context, f report.Figures) error {
	rate := s.Rate
	if rate == 0 {
		rate = f["sustained.acks_per_s"] / 4
	}
	w, err := s.load(ctx, load.Load{Lanes: s.Lanes, Rate: rate}, s.WarmUp)
	if err != nil {
		return err
	}
	f["open.rate"] = rate
	f["open.acks_per_s"] = w.perSecond(w.to.Accepted - w.from.Accepted)
	put(f, "open.ack", w.Ack)
	put(f, "open.late", w.Late)
	if s.delivers() {
		put(f, "open.delivery", w.Delivery)
	}
	return nil
}

// held is accepting while nothing may be delivered, and delivering everything afterwards.
func (s *stand) held(ctx context.Context, f report.Figures) error {
	if s.c.kind != "callrelay" || s.HeldFor == 0 {
		return nil
	}
	if err := s.operate(ctx, "hold", "topsii", "--reason", "benchmark"); err != nil {
		return err
	}
	w, err := s.loadOnly(ctx, load.Load{Lanes: s.Lanes}, 0, s.HeldFor)
	if err != nil {
		return err
	}
	f["held.acks_per_s"] = w.perSecond(w.to.Accepted - w.from.Accepted)
	put(f, "held.ack", s.ledger.Latencies(w.from.at, w.to.at).Ack)
	if err := s.operate(ctx, "release", "topsii"); err != nil {
		return err
	}
	f["held.drained_per_s"], err = s.drain(ctx)
	return err
}

// slow is a CRM that takes its time, at a rate that it cannot follow.
func (s *stand) slow(ctx context.Context, f report.Figures) error {
	if !s.Slow || !s.delivers() {
		return nil
	}
	if err := s.sim.SetFault(topsii.Fault{Kind: topsii.Delay, Delay: SlowAnswer}); err != nil {
		return err
	}
	defer s.sim.ClearFaults()
	w, err := s.loadOnly(ctx, load.Load{Lanes: s.Lanes, Rate: SlowRate}, 0, s.Duration)
	if err != nil {
		return err
	}
	f["slow.acks_per_s"] = w.perSecond(w.to.Accepted - w.from.Accepted)
	f["slow.delivered_per_s"] = w.perSecond(w.to.Delivered - w.from.Delivered)
	put(f, "slow.ack", s.ledger.Latencies(w.from.at, w.to.at).Ack)
	f["slow.drained_per_s"], err = s.drain(ctx)
	return err
}

// soak is a fixed rate for long: does anything grow? The first tenth is not looked at.
func (s *stand) soak(ctx context.Context, f report.Figures) error {
	if s.Soak == 0 || s.c.kind != "callrelay" {
		return nil
	}
	rate := s.Rate
	if rate == 0 {
		rate = f["sustained.acks_per_s"] / 4
	}
	first := s.Soak / 10
	var grown error
	early := time.AfterFunc(first, func() { grown = s.sizes(f, "soak_first_") })
	defer early.Stop()
	w, err := s.loadOnly(ctx, load.Load{Lanes: s.Lanes, Rate: rate}, first, s.Soak-first)
	if err := errors.Join(err, grown, s.sizes(f, "soak_last_")); err != nil {
		return err
	}
	f["soak.acks_per_s"], f["soak.minutes"] = w.perSecond(w.to.Accepted-w.from.Accepted), s.Soak.Minutes()
	_, err = s.drain(ctx)
	return err
}

// sizes are what must not grow: memory and goroutines of each process.
func (s *stand) sizes(f report.Figures, prefix string) error {
	tree, err := proc.Tree(os.Getpid())
	if err != nil {
		return err
	}
	for _, p := range tree {
		if name := processName(p); s.debug[name] != "" {
			f[prefix+"mb."+name] += float64(p.RSS) / (1 << 20)
		}
	}
	for name, addr := range s.debug {
		resp, err := http.Get("http://" + addr + "/debug/pprof/goroutine?debug=1")
		if err != nil {
			return err
		}
		var n float64
		_, err = fmt.Fscanf(resp.Body, "goroutine profile: total %g", &n)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			return err
		}
		f[prefix+"goroutines."+name] = n
	}
	return nil
}

// window is what happened between two moments of a load.
type window struct {
	from, to mark
	load.Latencies
}

type mark struct {
	at time.Duration
	load.Counts
	tree  []proc.Process
	spans int64
}

func (s *stand) mark() (m mark, err error) {
	m.at, m.Counts = s.ledger.Now(), s.ledger.Counts()
	if s.spans != nil {
		m.spans = s.spans.spans.Load()
	}
	m.tree, err = proc.Tree(os.Getpid())
	return m, err
}

func (w window) perSecond(n int64) float64 { return float64(n) / (w.to.at - w.from.at).Seconds() }

// cpu is the processor time of each process within the window.
func (w window) cpu() map[string]time.Duration {
	out := map[string]time.Duration{}
	for _, p := range w.to.tree {
		out[processName(p)] += p.CPU
	}
	for _, p := range w.from.tree {
		out[processName(p)] -= p.CPU
	}
	return out
}

// processName is the program's name; the children that are this program are the relay that is compared.
func processName(p proc.Process) string {
	switch {
	case p.PID == os.Getpid():
		return "bench"
	case p.Name == "redis-server" || p.Name == "valkey-server":
		return "redis"
	case p.Parent == os.Getpid() && p.Name != "callrelay":
		return "relay"
	}
	return p.Name
}

// load sends for warm-up and Duration, waits until everything is delivered, and returns what happened in Duration.
func (s *stand) load(ctx context.Context, o load.Load, warmUp time.Duration) (window, error) {
	w, err := s.loadOnly(ctx, o, warmUp, s.Duration)
	if err != nil {
		return w, err
	}
	if _, err := s.drain(ctx); err != nil {
		return w, err
	}
	w.Latencies = s.ledger.Latencies(w.from.at, w.to.at)
	return w, nil
}

// loadOnly is load without waiting for deliveries, and without their latencies.
func (s *stand) loadOnly(ctx context.Context, o load.Load, warmUp, duration time.Duration) (w window, err error) {
	o.Addr = s.addr
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan error, 1)
	go func() {
		err := s.ledger.Run(ctx, o)
		cancel(err)
		ended <- err
	}()
	if err := wait(ctx, warmUp); err != nil {
		return w, err
	}
	if w.from, err = s.mark(); err != nil {
		return w, err
	}
	if err := wait(ctx, duration); err != nil {
		return w, err
	}
	if w.to, err = s.mark(); err != nil {
		return w, err
	}
	cancel(nil)
	return w, <-ended
}

// drain waits until everything accepted is delivered, or nothing is any more, and returns how fast that went.
func (s *stand) drain(ctx context.Context) (perSecond float64, err error) {
	if !s.delivers() {
		return 0, nil
	}
	first, began := s.ledger.Counts().Delivered, time.Now()
	last, progress := first, began
	for {
		c := s.ledger.Counts()
		if c.Delivered >= c.Accepted {
			return float64(c.Delivered-first) / time.Since(began).Seconds(), nil
		}
		if c.Delivered > last {
			last, progress = c.Delivered, time.Now()
		}
		if time.Since(progress) > stalled {
			return 0, fmt.Errorf("%d of %d accepted callbacks are not delivered", c.Accepted-c.Delivered, c.Accepted)
		}
		if err := wait(ctx, time.Millisecond); err != nil {
			return 0, err
		}
	}
}

func (s *stand) redisClient() *redis.Client {
	return redis.NewClient(&redis.Options{Network: "unix", Addr: s.redis, MaxRetries: -1})
}

// redisMemory is what Redis uses, in bytes; 0 without Redis.
func (s *stand) redisMemory(ctx context.Context) (float64, error) {
	if s.redis == "" {
		return 0, nil
	}
	client := s.redisClient()
	defer client.Close()
	info, err := client.InfoMap(ctx, "memory").Result()
	if err != nil {
		return 0, err
	}
	var used float64
	_, err = fmt.Sscan(info["Memory"]["used_memory"], &used)
	return used, err
}

// put writes the percentiles of sorted latencies.
func put(f report.Figures, name string, sorted []time.Duration) {
	f[name+"_p50_ms"], f[name+"_p99_ms"], f[name+"_max_ms"] = ms(load.Percentile(sorted, 50)), ms(load.Percentile(sorted, 99)), ms(load.Percentile(sorted, 100))
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
