// Package contest starts each contender in turn, loads it, and says what came out as figures.
//
// It owns the contenders' processes, the simulated CRM behind them and the order of what is measured. How callbacks are sent
// and timed is package load; what figures of several rounds mean together is package report.
package contest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"callrelay/bench/internal/baseline"
	"callrelay/bench/internal/load"
	"callrelay/bench/internal/proc"
	"callrelay/sim/topsii"
)

// Contender is one relay with one setting.
type Contender struct {
	Name string

	kind    string // bare, memory, asynq, floor or callrelay
	fsync   string // Redis' appendfsync
	split   bool
	tracing []string // environment; nil: off
}

// Contenders returns those whose names match, in the order in which they are run.
func Contenders(only *regexp.Regexp) []Contender {
	all := []Contender{{Name: "bare", kind: "bare"}, {Name: "memory", kind: "memory"}, {Name: "asynq/everysec", kind: "asynq", fsync: "everysec"},
		{Name: "floor/everysec", kind: "floor", fsync: "everysec"}, {Name: "floor/always", kind: "floor", fsync: "always"}}
	for _, processes := range []string{"one", "four"} {
		for _, fsync := range []string{"everysec", "always"} {
			for _, tracing := range []struct {
				name string
				env  []string
			}{
				{"off", nil},
				{"sampled", []string{"OTEL_TRACES_SAMPLER=parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG=0.1"}},
				{"full", []string{"OTEL_TRACES_SAMPLER=always_on"}},
			} {
				all = append(all, Contender{Name: "callrelay/" + processes + "/" + fsync + "/" + tracing.name, kind: "callrelay",
					fsync: fsync, split: processes == "four", tracing: tracing.env})
			}
		}
	}
	return slices.DeleteFunc(all, func(c Contender) bool { return !only.MatchString(c.Name) })
}

// Settings are the same for all contenders.
type Settings struct {
	Bin  string // folder of callrelay's programs
	Dir  string // folder for data, on the disk that is to be measured
	Self string // this program, which is also the baseline relays: Self serve <kind> ...

	WarmUp, Duration, HeldFor time.Duration
	Lanes                     int
	Backlog                   int           // of the sustained rate
	Singles                   int           // callbacks on an idle relay
	Rate                      float64       // of the open loop; 0: a quarter of the sustained rate
	Stored                    int           // calls to store before everything is measured a second time; 0: once only
	Soak                      time.Duration // how long callrelay runs at Rate while its memory and goroutines are watched; 0: not at all
	Slow                      bool          // also a CRM that takes SlowAnswer for each delivery
	Profile                   string        // folder for CPU profiles of callrelay; empty: none
}

// stand is a contender that runs, with everything around it.
type stand struct {
	Settings
	c      Contender
	dir    string
	ledger *load.Ledger
	sim    *topsii.Server
	spans  *spanSink
	addr   string            // of the relay, for callbacks
	state  string            // of callrelay's state, for hold and release
	debug  map[string]string // address of /debug/pprof by process
	redis  string            // socket of its Redis, if it has one
	ready  time.Duration     // from its start until it takes callbacks
	close  []func()          // what is to be ended with it
}

// start starts a contender; stop has to be called also after an error.
func start(ctx context.Context, set Settings, c Contender) (s *stand, err error) {
	s = &stand{Settings: set, c: c, ledger: load.NewLedger(set.Backlog)}
	if s.dir, err = os.MkdirTemp(set.Dir, "callrelay-bench-"); err != nil {
		return s, err
	}
	s.close = append(s.close, func() { _ = os.RemoveAll(s.dir) })
	s.sim = topsii.New(topsii.Config{APIKey: baseline.APIKey, MaxHeld: 1, OnEffect: func(_ string, callID int64, at time.Time) {
		s.ledger.Delivered(callID, at)
	}})
	crm, err := s.serve(s.sim)
	if err != nil {
		return s, err
	}
	port, err := freePorts(9)
	if err != nil {
		return s, err
	}
	address := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", port+i) }
	s.addr = address(0)

	if c.kind == "asynq" || c.kind == "floor" {
		s.redis = filepath.Join(s.dir, "redis.sock")
		// The settings of callrelay's private Redis.
		if err := s.launch("redis-server", nil, "--port", "0", "--unixsocket", s.redis, "--dir", s.dir, "--save", "",
			"--appendonly", "yes", "--appendfsync", c.fsync, "--maxmemory-policy", "noeviction"); err != nil {
			return s, err
		}
		if err := until(ctx, func() bool { _, err := os.Stat(s.redis); return err == nil }); err != nil {
			return s, fmt.Errorf("redis-server: %w\n%s", err, s.output())
		}
	}
	began := time.Now()
	if c.kind == "callrelay" {
		s.redis, s.state = filepath.Join(s.dir, "redis", "redis.sock"), address(3)
		env := append([]string{"INGRESS_HTTP_ADDR=" + s.addr, "INGRESS_GRPC_ADDR=" + address(1), "ROUTER_GRPC_ADDR=" + address(2),
			"STATE_GRPC_ADDR=" + s.state, "UPSTREAM_GRPC_ADDR=" + address(4), "METRICS_ADDR=" + address(5), "REDIS_APPENDFSYNC=" + c.fsync,
			"INDEX_ENV=TEST", "TEST_BASE_URL=" + crm, "TEST_API_KEY=" + baseline.APIKey, "ENABLE_REAL_SEND=true",
			fmt.Sprint("TOPSII_CONCURRENCY=", baseline.Workers)}, c.tracing...)
		if c.tracing != nil {
			if s.spans, err = newSpanSink(); err != nil {
				return s, err
			}
			s.close = append(s.close, s.spans.server.Stop)
			env = append(env, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+s.spans.addr)
		}
		args := []string{"up", "--data-dir", s.dir}
		s.debug = map[string]string{"callrelay": address(5)}
		if c.split {
			args = append(args, "--split")
			s.debug = map[string]string{"ingress": address(5), "router": address(6), "state": address(7), "upstream": address(8)}
		}
		err = s.launch(filepath.Join(set.Bin, "callrelay"), env, args...)
	} else {
		err = s.launch(set.Self, nil, "serve", "-addr", s.addr, "-crm", crm, "-redis", s.redis, c.kind)
	}
	if err != nil {
		return s, err
	}
	if err := until(ctx, s.takesCallbacks); err != nil {
		return s, fmt.Errorf("%w until it is ready\n%s", err, s.output())
	}
	s.ready = time.Since(began)
	return s, nil
}

func (s *stand) takesCallbacks() bool {
	resp, err := http.Get("http://" + s.addr + "/readyz")
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// stop ends everything that start began.
func (s *stand) stop() {
	for _, end := range slices.Backward(s.close) {
		end()
	}
	_ = proc.KillDescendants() // what did not end in order, and what a killed process left over
}

// serve serves the CRM in this process and returns its URL.
func (s *stand) serve(h http.Handler) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: h}
	go func() { _ = server.Serve(l) }() // ends with Close
	s.close = append(s.close, func() { _ = server.Close() })
	return "http://" + l.Addr().String(), nil
}

// launch starts a child, which ends in order with the stand, and by a signal with this process.
func (s *stand) launch(program string, env []string, args ...string) error {
	log, err := os.OpenFile(filepath.Join(s.dir, "output"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(plainEnvironment(), env...), log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	s.close = append(s.close, func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
		}
	})
	return nil
}

// plainEnvironment is what no contender is configured by.
func plainEnvironment() []string {
	return slices.DeleteFunc(os.Environ(), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return !slices.Contains([]string{"PATH", "HOME", "TMPDIR", "GOMAXPROCS", "GOGC", "GOMEMLIMIT"}, name)
	})
}

// output is the end of what the children printed.
func (s *stand) output() string {
	text, err := os.ReadFile(filepath.Join(s.dir, "output"))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-3000):])
}

// operate runs an operator's command of callrelay.
func (s *stand) operate(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(s.Bin, "callrelay"), args...)
	cmd.Env = append(plainEnvironment(), "STATE_GRPC_ADDR="+s.state)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("callrelay %s: %w\n%s", args[0], err, out)
	}
	return nil
}

// profile writes CPU profiles of the time after the warm-up, if they are wanted.
func (s *stand) profile(ctx context.Context) error {
	if s.Profile == "" {
		return nil
	}
	if err := wait(ctx, s.WarmUp); err != nil {
		return err
	}
	var errs []error
	done := make(chan error)
	for name, addr := range s.debug {
		file := filepath.Join(s.Profile, strings.ReplaceAll(s.c.Name, "/", "-")+"."+name+".pprof")
		go func() {
			done <- download(fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", addr, max(1, int(s.Duration.Seconds()))), file)
		}()
	}
	for range s.debug {
		errs = append(errs, <-done)
	}
	return errors.Join(errs...)
}

func download(url, file string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	return errors.Join(err, f.Close())
}

// freePorts finds n ports in a row that nobody listens on, below those that the system takes for connections.
func freePorts(n int) (first int, err error) {
next:
	for first = 20_000 + os.Getpid()*37%8_000; first < 30_000; first += n {
		for port := first; port < first+n; port++ {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				continue next
			}
			_ = l.Close()
		}
		return first, nil
	}
	return 0, errors.New("no free ports")
}

// wait waits for d, or less when ctx ends, which is its error.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// until waits for a condition, for at most half a minute.
func until(ctx context.Context, ok func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("not within 30s"))
	defer cancel()
	for !ok() {
		if err := wait(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}
