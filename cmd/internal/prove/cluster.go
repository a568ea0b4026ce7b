package prove

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"callrelay/cmd/internal/privateredis"
	"callrelay/cmd/internal/supervise"
	"callrelay/sim/topsii"
)

// Times of the private relay. They are those of the specification made short, in the same relation, so that a minute is
// enough to see what follows from a lease that ran out.
const (
	topsiiTimeout = 2 * time.Second
	leaseTime     = 9 * time.Second
	ackBudget     = 2 * time.Second
	concurrency   = 32 // requests to TopS.II at once, of all upstream processes together
	apiKey        = "prove-prove-prove-prove-prove-00"
)

var settings = map[string]string{
	"INDEX_ENV": "TEST", "TEST_API_KEY": apiKey, "ENABLE_REAL_SEND": "true", "TOPSII_CONCURRENCY": fmt.Sprint(concurrency),
	"TOPSII_CONNECT_TIMEOUT": "1s", "TOPSII_TIMEOUT": topsiiTimeout.String(), "KOMMO_TIMEOUT": topsiiTimeout.String(), "KOMMO_REQUEST_TIMEOUT": topsiiTimeout.String(), "WEBHOOK_TIMEOUT": topsiiTimeout.String(),
	"LEASE_TIME": leaseTime.String(), "SECRETS_KEY": "prove:" + base64.StdEncoding.EncodeToString([]byte(apiKey)),
	"ACK_BUDGET": ackBudget.String(), "RETRY_BASE": "100ms", "RETRY_MAX": "1s", "BREAKER_OPEN": "500ms", "PROBE_INTERVAL": "500ms",
	// A brown-out must not be the end of a delivery here: everything has to arrive.
	"DELIVERY_MAX_ATTEMPTS": "100000", "APP_ERROR_MAX_ATTEMPTS": "100000",
	// All calls come from three extensions here, so their fair share is not what is looked at.
	"PBX_GRACE": pbxGrace.String(), "PBX_TOKEN_RATE": "100000", "PBX_TOKEN_BURST": "100000", "WEBHOOK_CONCURRENCY": fmt.Sprint(webhookConcurrency),
	"REQUEST_DEDUPE_TTL_SECONDS": "3600", "PHONE1_STATE_TTL_SECONDS": "3600",
	"JOURNAL_LIMIT": "1048576", "METRICS_ADDR": "127.0.0.1:0",
}

// process is one service process, started again whenever it ends.
type process struct {
	name     string
	addr     string // gRPC
	keeper   *supervise.Keeper
	launches atomic.Int64
	hits     atomic.Int64 // how often a fault ended it
	logPath  string
}

// cluster is the private instance: Redis, the services as processes, TopS.II in this process.
type cluster struct {
	dir       string
	log       *slog.Logger
	logFile   *os.File
	redis     *privateredis.Server
	topsii    *topsii.Server
	webhook   *webhook
	http      []*http.Server
	processes map[target][]*process
	states    string   // addresses, as rpc.Dial takes them
	ingresses []string // http://host:port
}

// startCluster starts everything and returns when callbacks are taken.
func startCluster(ctx context.Context, o Options, dir string, onEffect func(at time.Time)) (*cluster, error) {
	c := &cluster{dir: dir, processes: map[target][]*process{}}
	err := os.MkdirAll(filepath.Join(dir, "logs"), 0o700)
	if err == nil {
		c.logFile, err = os.Create(filepath.Join(dir, "logs", "prove.log"))
	}
	if err != nil {
		return c, err
	}
	c.log = slog.New(slog.NewJSONHandler(c.logFile, nil))
	if c.redis, err = privateredis.Start(ctx, privateredis.Options{DataDir: filepath.Join(dir, "data"), Log: c.log}); err != nil {
		return c, err
	}
	c.topsii = topsii.New(topsii.Config{APIKey: apiKey, KeepPayloads: true, MaxHeld: 10_000_000, OnEffect: func(_ string, _ int64, at time.Time) { onEffect(at) }})
	if err := c.topsii.SetFault(latency); err != nil {
		return c, err
	}
	c.webhook = &webhook{onEffect: onEffect, got: map[string]map[string][]time.Time{}}
	sim, err := c.serve(c.topsii)
	if err != nil {
		return c, err
	}
	hook, err := c.serve(c.webhook)
	if err != nil {
		return c, err
	}
	if err := pbxTable(c.table(), hook+"/calls"); err != nil {
		return c, err
	}
	return c, c.startServices(ctx, o, sim)
}

// serve runs a simulator until stop, and returns its address.
func (c *cluster) serve(h http.Handler) (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	// What is cut on purpose is not worth a line each time.
	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	c.http = append(c.http, server)
	go func() { _ = server.Serve(listener) }() // ends with Close
	return "http://" + listener.Addr().String(), nil
}

// table is where the integrations of the cloud PBX are written down.
func (c *cluster) table() string { return filepath.Join(c.dir, "pbx.json") }

func (c *cluster) startServices(ctx context.Context, o Options, sim string) error {
	free, err := freeAddrs((len(services) + 1) * o.Replicas)
	if err != nil {
		return err
	}
	doors, free := free[:o.Replicas], free[o.Replicas:]
	addr, lists := map[target][]string{}, map[target]string{}
	for _, s := range services {
		addr[s], free = free[:o.Replicas], free[o.Replicas:]
		lists[s] = strings.Join(addr[s], ",")
	}
	c.states = lists[stateTarget]
	for _, s := range services {
		for i := range o.Replicas {
			name := fmt.Sprintf("%s-%d", s, i+1)
			env := map[string]string{
				"REDIS_URL": c.redis.URL(), "TEST_BASE_URL": sim, "PBX_INTEGRATIONS": c.table(), "DATA_DIR": filepath.Join(c.dir, name),
				"STATE_GRPC_ADDR": lists[stateTarget], "ROUTER_GRPC_ADDR": lists[routerTarget], "INGRESS_HTTP_ADDR": doors[i],
			}
			env[strings.ToUpper(string(s))+"_GRPC_ADDR"] = addr[s][i]
			if err := os.MkdirAll(env["DATA_DIR"], 0o700); err != nil {
				return err
			}
			p, err := c.start(o, name, string(s), env)
			if err != nil {
				return err
			}
			p.addr = addr[s][i]
			c.processes[s] = append(c.processes[s], p)
		}
	}
	for _, door := range doors {
		c.ingresses = append(c.ingresses, "http://"+door)
	}
	return c.ready(ctx)
}

func (c *cluster) start(o Options, name, program string, own map[string]string) (*process, error) {
	p := &process{name: name, logPath: filepath.Join(c.dir, "logs", name+".log")}
	env := os.Environ()
	env = keepOnly(env, "PATH", "HOME", "TMPDIR", "GORACE", "GOMAXPROCS") // no setting of the relay that runs here
	for _, set := range []map[string]string{settings, own} {
		for k, v := range set {
			env = append(env, k+"="+v)
		}
	}
	launch := func() (*supervise.Process, error) {
		out, err := os.OpenFile(p.logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return nil, err
		}
		defer out.Close()
		cmd := exec.Command(filepath.Join(o.BinDir, program))
		cmd.Env, cmd.Stdout, cmd.Stderr = env, out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} // see up/split.go
		process, err := supervise.Start(cmd)
		if err == nil {
			p.launches.Add(1)
		}
		return process, err
	}
	first, err := launch()
	if err != nil {
		return nil, fmt.Errorf("%s (make build makes it): %w", program, err)
	}
	p.keeper = supervise.Keep(name, c.log, first, launch)
	return p, nil
}

func keepOnly(env []string, names ...string) (kept []string) {
	for _, e := range env {
		for _, name := range names {
			if strings.HasPrefix(e, name+"=") {
				kept = append(kept, e)
			}
		}
	}
	return kept
}

// startLimit bounds the start of everything; on a busy machine it takes seconds.
const startLimit = time.Minute

// ready waits until every process listens and every ingress is ready. What ends instead is told with its own words.
func (c *cluster) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for _, s := range services {
		for _, p := range c.processes[s] {
			for {
				conn, err := net.DialTimeout("tcp", p.addr, time.Second)
				if err == nil {
					_ = conn.Close()
					break
				}
				if p.launches.Load() > 2 || !pause(ctx, 20*time.Millisecond) {
					said, _ := os.ReadFile(p.logPath)
					return fmt.Errorf("%s does not start: %s", p.name, bytes.TrimSpace(said[max(0, len(said)-500):]))
				}
			}
		}
	}
	client := &http.Client{Timeout: time.Second}
	for _, door := range c.ingresses {
		for {
			resp, err := client.Get(door + "/readyz")
			if err == nil {
				_ = resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					break
				}
			}
			if !pause(ctx, 20*time.Millisecond) {
				return fmt.Errorf("the private relay did not become ready within %v", startLimit)
			}
		}
	}
	return nil
}

// stop ends everything, what is frozen too. The verdict is out by then: what does not end in time is killed and logged.
func (c *cluster) stop() {
	end := func(name string, pid int, stop func(time.Duration) error) {
		_ = syscall.Kill(pid, syscall.SIGCONT)
		if err := stop(5 * time.Second); err != nil {
			c.log.Warn("stopping "+name, "error", err)
		}
	}
	for _, s := range slices.Backward(services) {
		for _, p := range c.processes[s] {
			end(p.name, p.keeper.PID(), p.keeper.Stop)
		}
	}
	for _, server := range c.http {
		_ = server.Close()
	}
	if c.redis != nil {
		end("redis", c.redis.PID(), c.redis.Stop)
	}
	if c.logFile != nil {
		_ = c.logFile.Close()
	}
}

// begin makes a fault happen; end ends it. A process that an earlier fault ended is waited for, until ctx ends.
func (c *cluster) begin(ctx context.Context, f fault) error {
	if f.target == topsiiTarget {
		c.topsii.ClearFaults()
		var errs []error
		for _, b := range f.brownOut() {
			errs = append(errs, c.topsii.SetFault(b))
		}
		return errors.Join(errs...)
	}
	signal := map[string]syscall.Signal{kill: syscall.SIGKILL, freeze: syscall.SIGSTOP, restart: syscall.SIGTERM}[f.what]
	for {
		err := syscall.Kill(c.pid(f), signal)
		if err == nil && f.what != freeze && f.target != redisTarget {
			c.processes[f.target][f.replica].hits.Add(1)
		}
		if !errors.Is(err, syscall.ESRCH) || !pause(ctx, 10*time.Millisecond) {
			return err
		}
	}
}

// pid of the process that a fault hits.
func (c *cluster) pid(f fault) int {
	if f.target == redisTarget {
		return c.redis.PID()
	}
	return c.processes[f.target][f.replica].keeper.PID()
}

func (c *cluster) end(f fault) {
	switch {
	case f.target == topsiiTarget:
		c.topsii.ClearFaults()
		_ = c.topsii.SetFault(latency) // it is valid
	case f.what == freeze:
		_ = syscall.Kill(c.pid(f), syscall.SIGCONT)
	}
}

// strays are processes that ended although no fault ended them.
func (c *cluster) strays() (problems []string) {
	for _, s := range services {
		for _, p := range c.processes[s] {
			if n := p.launches.Load() - 1 - p.hits.Load(); n > 0 {
				problems = append(problems, fmt.Sprintf("%s ended by itself %d times; its log: %s", p.name, n, p.logPath))
			}
		}
	}
	return problems
}

// freeAddrs finds loopback addresses below the range from which the system takes ports for connections: a service that is
// started again must find its port free.
func freeAddrs(n int) (out []string, err error) {
	for range 10_000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 23_000+rand.IntN(9_000))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		defer l.Close() // only when all are found, or the same would be found twice
		if out = append(out, addr); len(out) == n {
			return out, nil
		}
	}
	return nil, errors.New("no free ports from 23000 to 32000 on 127.0.0.1")
}

// pause is false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
