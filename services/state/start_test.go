package state

import (
	"context"
	"strings"
	"testing"
	"time"

	"callrelay/platform/redistest"
)

// A Redis that would lose calls by itself is refused at the start, with the reason and the way out; later it is complained of.
func TestUnsafeRedisIsRefused(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--appendonly no", "appendonly is no"},
		{"--maxmemory-policy allkeys-lru", "maxmemory-policy is allkeys-lru"},
	} {
		r := redistest.Start(t, strings.Fields(c.args)...)
		p := launchState(t, r.URL())
		select {
		case <-p.gone:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: state runs", c.args)
		}
		log := strings.Join(p.log(), "\n")
		if p.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(log, c.want) || !strings.Contains(log, "REDIS_ALLOW_UNSAFE=true") {
			t.Errorf("%s: exit code %d\n%s", c.args, p.cmd.ProcessState.ExitCode(), log)
		}
		startState(t, r.URL(), "REDIS_ALLOW_UNSAFE=true")
	}
	r := redistest.Start(t)
	p := startState(t, r.URL())
	r.Kill()
	redistest.Poll(t, 10*time.Second, "state notices", func() bool { return !p.serves() })
	r.Launch(t, "--maxmemory-policy", "allkeys-lru")
	p.ready(t)
	if log := strings.Join(p.log(), "\n"); !strings.Contains(log, `"level":"ERROR","msg":"redis durability: maxmemory-policy is allkeys-lru`) {
		t.Errorf("nothing is said:\n%s", log)
	}
}

// A managed Redis may forbid CONFIG: state starts, and names what nobody checked.
func TestConfigForbidden(t *testing.T) {
	r := redistest.Start(t)
	if err := r.Client(t).Do(context.Background(), "ACL", "SETUSER", "default", "-config").Err(); err != nil {
		t.Fatal(err)
	}
	p := startState(t, r.URL())
	if log := strings.Join(p.log(), "\n"); !strings.Contains(log, "CONFIG GET does not tell appendonly") {
		t.Errorf("nothing is said:\n%s", log)
	}
}
