package state

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"callrelay/platform/redistest"
)

// maxLines is how much one outage of seconds may say: that Redis is gone, that it is back, what its settings are, that leases
// fail, and each once more for what comes and goes while Redis starts.
const maxLines = 10

// TestRedisFails breaks Redis under load in one way after the other. Each time everything that was acknowledged is
// delivered once and in order, state comes back by itself, reconnects within bounds and says little.
func TestRedisFails(t *testing.T) {
	ctx := context.Background()
	set := func(t *testing.T, c *redis.Client, name, value string) {
		t.Helper()
		if err := c.ConfigSet(ctx, name, value).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, fault := range []struct {
		name string
		args []string // of redis-server
		// harm breaks it, for the time between; mend returns when nothing of the cause is left.
		harm, mend func(t *testing.T, r *redistest.Server, c *redis.Client)
		lasts      time.Duration
		// writes: nothing can be written meanwhile.
		writes bool
		// repeats: deliveries may be leased again (marked uncertain).
		repeats bool
	}{
		{name: "killed and back", lasts: 2 * time.Second, writes: true,
			harm: func(t *testing.T, r *redistest.Server, _ *redis.Client) { r.Kill() },
			mend: func(t *testing.T, r *redistest.Server, _ *redis.Client) { r.Up(t) }},
		{name: "killed and loading", lasts: time.Second, writes: true,
			harm: func(t *testing.T, r *redistest.Server, _ *redis.Client) {
				r.Kill()
				r.Launch(t, "--key-load-delay", "5000") // us a key: of a few hundred it lasts longer than the look
			},
			mend: func(t *testing.T, _ *redistest.Server, c *redis.Client) {
				redistest.Poll(t, 20*time.Second, "the data is loaded", func() bool { return c.Ping(ctx).Err() == nil })
			}},
		{name: "full", lasts: 3 * time.Second, writes: true,
			harm: func(t *testing.T, _ *redistest.Server, c *redis.Client) { set(t, c, "maxmemory", "1") },
			mend: func(t *testing.T, _ *redistest.Server, c *redis.Client) { set(t, c, "maxmemory", "0") }},
		{name: "read-only", lasts: 3 * time.Second, writes: true,
			harm: func(t *testing.T, _ *redistest.Server, c *redis.Client) {
				// A replica of something that is not there keeps its data.
				if err := c.ReplicaOf(ctx, "127.0.0.1", "1").Err(); err != nil {
					t.Fatal(err)
				}
				set(t, c, "replica-serve-stale-data", "yes")
			},
			mend: func(t *testing.T, _ *redistest.Server, c *redis.Client) { c.ReplicaOf(ctx, "NO", "ONE") }},
		{name: "disk error", args: []string{"--save", "3600 1000000"}, lasts: 3 * time.Second, writes: true,
			harm: func(t *testing.T, r *redistest.Server, c *redis.Client) {
				if err := os.Mkdir(filepath.Join(r.Dir(), "dump.rdb"), 0o700); err != nil { // the snapshot cannot be put in place
					t.Fatal(err)
				}
				c.BgSave(ctx)
				redistest.Poll(t, 10*time.Second, "the snapshot fails", func() bool {
					return strings.Contains(c.Info(ctx, "persistence").Val(), "rdb_last_bgsave_status:err")
				})
			},
			mend: func(t *testing.T, r *redistest.Server, c *redis.Client) {
				if err := os.Remove(filepath.Join(r.Dir(), "dump.rdb")); err != nil {
					t.Fatal(err)
				}
				redistest.Poll(t, 20*time.Second, "a snapshot succeeds", func() bool {
					c.BgSave(ctx)
					return strings.Contains(c.Info(ctx, "persistence").Val(), "rdb_last_bgsave_status:ok")
				})
			}},
		{name: "without its replicas", lasts: 3 * time.Second, writes: true,
			harm: func(t *testing.T, _ *redistest.Server, c *redis.Client) { set(t, c, "min-replicas-to-write", "1") },
			mend: func(t *testing.T, _ *redistest.Server, c *redis.Client) { set(t, c, "min-replicas-to-write", "0") }},
		{name: "no more connections", lasts: 3 * time.Second, writes: true,
			harm: func(t *testing.T, _ *redistest.Server, c *redis.Client) {
				set(t, c, "maxclients", "1")
				c.ClientKillByFilter(ctx, "TYPE", "normal", "SKIPME", "yes")
			},
			mend: func(t *testing.T, _ *redistest.Server, c *redis.Client) {
				redistest.Poll(t, 10*time.Second, "a place", func() bool { return c.ConfigSet(ctx, "maxclients", "10000").Err() == nil })
			}},
		{name: "scripts lost", lasts: 2 * time.Second,
			harm: func(t *testing.T, _ *redistest.Server, c *redis.Client) {
				for range 100 {
					c.ScriptFlush(ctx)
				}
			},
			mend: func(t *testing.T, _ *redistest.Server, c *redis.Client) { c.ScriptFlush(ctx) }},
		{name: "slow", lasts: 3 * time.Second,
			harm: func(t *testing.T, _ *redistest.Server, c *redis.Client) {
				for range 10 {
					if err := c.Do(ctx, "DEBUG", "SLEEP", "0.4").Err(); err != nil {
						t.Fatal(err)
					}
				}
			},
			mend: func(*testing.T, *redistest.Server, *redis.Client) {}},
		{name: "stopped for longer than LEASE_TIME", lasts: 7 * time.Second, writes: true, repeats: true,
			harm: func(t *testing.T, r *redistest.Server, _ *redis.Client) { r.Stop() },
			mend: func(t *testing.T, r *redistest.Server, _ *redis.Client) { r.Continue() }},
	} {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			r := redistest.Start(t, append([]string{"--enable-debug-command", "yes", "--appendfsync", "always"}, fault.args...)...) // everysec may lose what was answered
			p := startState(t, r.URL())
			n := startLoad(t, p)
			n.progress(t, 200)
			// One connection that is there before, for what has to be said to a Redis that takes no more.
			c := redis.NewClient(&redis.Options{Addr: r.Addr, MaxRetries: -1, Protocol: 2, PoolSize: 1, ReadTimeout: 20 * time.Second})
			defer c.Close()
			c.Ping(ctx)
			before, connections, began := len(p.log()), received(c), time.Now()
			fault.harm(t, r, c)
			if fault.writes {
				n.mu.Lock()
				acked := len(n.acked)
				n.mu.Unlock()
				redistest.Poll(t, 5*time.Second, "state says that it is not ready", func() bool { return !p.serves() })
				wait(t, fault.lasts)
				n.mu.Lock()
				if more := len(n.acked) - acked; more > 100 { // what was on its way
					t.Errorf("%d commits were acknowledged meanwhile", more)
				}
				n.mu.Unlock()
			} else {
				wait(t, fault.lasts)
			}
			fault.mend(t, r, c)
			n.progress(t, 200)
			lines := p.log()[before:]
			if len(lines) > maxLines {
				t.Errorf("%d lines in the log:\n%s", len(lines), strings.Join(lines, "\n"))
			}
			rate := float64(received(c)-connections) / time.Since(began).Seconds()
			if rate > 200 { // each try of a neighbour costs at most one
				t.Errorf("%.0f new connections a second", rate)
			}
			n.settled(t)
			if n.repeated > 0 && !fault.repeats {
				t.Errorf("%d deliveries were leased again", n.repeated)
			}
			t.Logf("%d lines in the log, %.0f new connections a second", len(lines), rate)
		})
	}
}

// received is how many connections the server ever took.
func received(c *redis.Client) (n int) {
	for line := range strings.SplitSeq(c.Info(context.Background(), "stats").Val(), "\r\n") {
		_, _ = fmt.Sscanf(line, "total_connections_received:%d", &n)
	}
	return n
}

// wait lets real time pass: what is tested is what other processes do meanwhile.
func wait(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

// Rule 7: a pause of state itself, however long, gives nothing back: the consumers' results are unread, not missing.
func TestStateStopsAndGoesOn(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	p := startState(t, r.URL(), "LEASE_TIME=5s") // of which a pause counts for one: what was handed out behind it has 4 s
	n := startSlowLoad(t, 1500*time.Millisecond, p)
	for range 2 {
		n.progress(t, 100)
		p.signal(syscall.SIGSTOP)
		wait(t, 7*time.Second)
		p.signal(syscall.SIGCONT)
	}
	n.progress(t, 100)
	n.settled(t)
	if n.repeated > 0 {
		t.Errorf("%d deliveries were leased again", n.repeated)
	}
}

// Two state processes share the work while each is killed in turn.
func TestTwoStatesAndKills(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	a, b := startState(t, r.URL()), startState(t, r.URL())
	n := startLoad(t, a, b)
	for range 3 {
		for _, p := range []*process{a, b} {
			n.progress(t, 200)
			p.kill()
			n.progress(t, 50)
			p.up(t)
			p.ready(t)
		}
	}
	n.progress(t, 200)
	n.settled(t)
}

// A stop in order answers or hands back what it has: nothing becomes uncertain, and it takes no longer than it may.
func TestStateStopsInOrder(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	a, b := startState(t, r.URL()), startState(t, r.URL())
	n := startLoad(t, a, b)
	for range 3 {
		n.progress(t, 300)
		began := time.Now()
		a.signal(syscall.SIGTERM)
		<-a.gone
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("took %s", took)
		}
		if code := a.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("exit code %d:\n%s", code, strings.Join(a.log(), "\n"))
		}
		n.progress(t, 50)
		a.up(t)
		a.ready(t)
	}
	n.settled(t)
	if n.repeated > 0 {
		t.Errorf("%d deliveries were leased again", n.repeated)
	}
}
