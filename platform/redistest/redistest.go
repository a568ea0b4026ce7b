// Package redistest runs real Redis servers for tests: one, one with replicas and sentinels, or a cluster of three. It owns their processes and data, which
// end with the test. A test fails, and is not skipped, where redis-server is not installed (`make test` installs it).
package redistest

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
)

// Server is one running redis-server.
type Server struct {
	Addr string
	dir  string
	args []string
	env  []string
	mu   sync.Mutex
	cmd  *exec.Cmd
}

// Client speaks to the server. It is closed with the test.
func (s *Server) Client(t testing.TB) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1, DialerRetries: 1, Protocol: 2})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Dir is where its data is.
func (s *Server) Dir() string { return s.dir }

// URL is its address as REDIS_URL.
func (s *Server) URL() string { return "redis://" + s.Addr + "/0" }

// Start runs a server with the durability settings of a relay, except that it does not wait for the disk.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return start(t, nil, args...)
}

func start(t testing.TB, env []string, args ...string) *Server {
	t.Helper()
	s := &Server{Addr: fmt.Sprintf("127.0.0.1:%d", freePort(t)), dir: t.TempDir(), env: env}
	_, port, _ := net.SplitHostPort(s.Addr)
	s.args = append([]string{"--port", port, "--bind", "127.0.0.1", "--dir", s.dir, "--save", "", "--appendonly", "yes",
		"--appendfsync", "everysec", "--maxmemory-policy", "noeviction", "--logfile", filepath.Join(s.dir, "redis.log"),
		"--hash-max-listpack-entries", "256", "--hash-max-listpack-value", "8192"}, args...)
	s.Up(t)
	t.Cleanup(s.Kill)
	return s
}

// StartReplica runs a replica of the server and returns when it follows.
func (s *Server) StartReplica(t testing.TB, args ...string) *Server {
	t.Helper()
	host, port, _ := net.SplitHostPort(s.Addr)
	r := Start(t, append([]string{"--replicaof", host + " " + port, "--repl-diskless-sync-delay", "0"}, args...)...)
	client := r.Client(t)
	Poll(t, 20*time.Second, "the replica follows", func() bool {
		return strings.Contains(client.Info(context.Background(), "replication").Val(), "master_link_status:up")
	})
	return r
}

// StartSentinels runs three sentinels that watch the server, notice its death after downAfter, and agree by two. It returns
// their REDIS_URL when they know each other and so many replicas.
func (s *Server) StartSentinels(t testing.TB, replicas int, downAfter time.Duration) string {
	t.Helper()
	const name, sentinels = "relay", 3
	host, port, _ := net.SplitHostPort(s.Addr)
	var addrs []string
	for range sentinels {
		dir, own := t.TempDir(), freePort(t)
		conf := filepath.Join(dir, "sentinel.conf") // the sentinel writes into it
		text := fmt.Sprintf("port %d\nbind 127.0.0.1\ndir %s\nlogfile %s/sentinel.log\nsentinel monitor %s %s %s 2\n"+
			"sentinel down-after-milliseconds %s %d\nsentinel failover-timeout %s 10000\n",
			own, dir, dir, name, host, port, name, downAfter.Milliseconds(), name)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("redis-sentinel", conf)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatalf("redis-sentinel does not start: %v (make test installs it)", err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		addrs = append(addrs, fmt.Sprintf("127.0.0.1:%d", own))
	}
	for _, addr := range addrs {
		c := redis.NewSentinelClient(&redis.Options{Addr: addr, MaxRetries: -1})
		defer c.Close()
		Poll(t, 20*time.Second, "the sentinels know each other and the replicas", func() bool {
			m := c.Master(context.Background(), name).Val()
			return m["num-other-sentinels"] == fmt.Sprint(sentinels-1) && m["num-slaves"] == fmt.Sprint(replicas)
		})
	}
	q := url.Values{"addr": addrs[1:], "master_name": {name}}
	return "redis://" + addrs[0] + "?" + q.Encode()
}

// Up starts the server again, after Kill, on the same data.
func (s *Server) Up(t testing.TB) {
	t.Helper()
	s.Launch(t)
	logging.Disable() // it would print that the server is not there yet
	client := redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1, DialerRetries: 1})
	defer client.Close()
	Poll(t, 10*time.Second, "redis-server answers", func() bool { return client.Ping(context.Background()).Err() == nil })
}

// Launch is Up that does not wait until the server answers; args are further settings, for this run.
func (s *Server) Launch(t testing.TB, args ...string) {
	t.Helper()
	s.mu.Lock()
	s.cmd = exec.Command("redis-server", append(slices.Clone(s.args), args...)...)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.cmd.Env = append(os.Environ(), s.env...)
	err := s.cmd.Start()
	s.mu.Unlock()
	if err != nil {
		t.Fatalf("redis-server does not start: %v (make test installs it)", err)
	}
}

// Kill ends the server as a crash would (SIGKILL).
func (s *Server) Kill() { s.signal(syscall.SIGKILL, true) }

// Stop freezes the server (SIGSTOP); Continue lets it run again.
func (s *Server) Stop() { s.signal(syscall.SIGSTOP, false) }

// Continue ends Stop.
func (s *Server) Continue() { s.signal(syscall.SIGCONT, false) }

func (s *Server) signal(sig syscall.Signal, wait bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	_ = syscall.Kill(-s.cmd.Process.Pid, sig) // its group: a rewrite of the append-only file is a process of its own
	if wait {
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// StartCluster runs three masters without replicas and returns their REDIS_URL.
func StartCluster(t testing.TB) string {
	t.Helper()
	const nodes, slots = 3, 16384
	var addrs []string
	for range nodes {
		addrs = append(addrs, Start(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "5000").Addr)
	}
	ctx := context.Background()
	for i, addr := range addrs {
		c := redis.NewClient(&redis.Options{Addr: addr})
		defer c.Close()
		if err := c.ClusterAddSlotsRange(ctx, i*slots/nodes, (i+1)*slots/nodes-1).Err(); err != nil {
			t.Fatal(err)
		}
		host, port, _ := net.SplitHostPort(addrs[0])
		if err := c.ClusterMeet(ctx, host, port).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, addr := range addrs {
		c := redis.NewClient(&redis.Options{Addr: addr})
		defer c.Close()
		Poll(t, 20*time.Second, "the cluster is complete", func() bool {
			info := c.ClusterInfo(ctx).Val()
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d", nodes))
		})
	}
	q := url.Values{"addr": addrs[1:]}
	return "redis://" + addrs[0] + "?" + q.Encode()
}

// Poll waits until the condition holds and fails the test when it does not in time.
func Poll(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// freePort finds a port that is free together with that of the cluster bus (port + 10000), both below the range from which
// the system takes ports for connections.
func freePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := 20000 + (os.Getpid()*37+nextPort())%2700
		if free(port) && free(port+10000) {
			return port
		}
	}
	t.Fatal("no free port found")
	return 0
}

func free(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return false
	}
	return l.Close() == nil
}

var (
	portMu   sync.Mutex
	lastPort int
)

func nextPort() int {
	portMu.Lock()
	defer portMu.Unlock()
	lastPort++
	return lastPort
}
