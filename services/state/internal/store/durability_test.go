package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/redistest"
)

// What Redis' own settings could lose is said in words; what cannot be read is named.
func TestDurability(t *testing.T) {
	r := redistest.Start(t, "--appendfsync", "always")
	c := r.Client(t)
	s := open(t, r.URL())
	check := func(what, unsafe, weak string) {
		t.Helper()
		d, err := s.CheckDurability(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []struct{ got, want string }{{strings.Join(d.Unsafe, "\n"), unsafe}, {strings.Join(d.Weak, "\n"), weak}} {
			if (part.want == "") != (part.got == "") || !strings.Contains(part.got, part.want) {
				t.Errorf("%s: got %q, want %q", what, part.got, part.want)
			}
		}
	}
	check("as it should be", "", "")
	for _, set := range []struct{ name, value, back, unsafe, weak string }{
		{"appendonly", "no", "yes", "appendonly is no", ""},
		{"maxmemory-policy", "allkeys-lru", "noeviction", "maxmemory-policy is allkeys-lru", ""},
		{"maxmemory-policy", "volatile-ttl", "noeviction", "maxmemory-policy is volatile-ttl", ""},
		{"appendfsync", "everysec", "always", "", "appendfsync is everysec"},
		{"no-appendfsync-on-rewrite", "yes", "no", "", "no-appendfsync-on-rewrite is yes"},
	} {
		if err := c.ConfigSet(ctx, set.name, set.value).Err(); err != nil {
			t.Fatal(err)
		}
		check(set.name, set.unsafe, set.weak)
		if err := c.ConfigSet(ctx, set.name, set.back).Err(); err != nil {
			t.Fatal(err)
		}
	}
	s.cfg.ReplicasAck = 1
	check("no replica", "", "0 replicas are connected and STATE_REPLICAS_ACK is 1")
	s.cfg.ReplicasAck = 0
	if err := c.Do(ctx, "ACL", "SETUSER", "default", "-config").Err(); err != nil {
		t.Fatal(err)
	}
	check("CONFIG is forbidden", "", "CONFIG GET does not tell appendonly, appendfsync, no-appendfsync-on-rewrite, maxmemory-policy")
}

// With appendfsync always what was answered is on disk, however slow that is: a kill loses none of it.
func TestKillLosesNothing(t *testing.T) {
	_, lost := killed(t, "always", 20*time.Millisecond)
	want(t, "lost", lost, 0)
}

// load commits from so many clients, each a batch at a time, until stop is closed or Redis is gone. It returns what was
// acknowledged, and how long each batch took.
func load(s *Store, clients, batch int, stop <-chan struct{}) (acked []string, took []time.Duration) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	for client := range clients {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				var items []*statev1.CommitItem
				for i := range batch {
					items = append(items, item(fmt.Sprintf("ameyo/%d-%d-%d", client, n, i), "i1", "", "c1", 1))
				}
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				began := time.Now()
				_, _, errs := s.Commit(ctx, items, nil)
				passed := time.Since(began)
				cancel()
				mu.Lock()
				took = append(took, passed)
				for i, err := range errs {
					if err == nil {
						acked = append(acked, items[i].GetCall())
					}
				}
				mu.Unlock()
				if errors.Join(errs...) != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return acked, took
}

// killed kills Redis under load and starts it again. It returns how much had been acknowledged and how much of that is lost.
func killed(t testing.TB, fsync string, sync time.Duration) (acknowledged, lost int) {
	r := redistest.StartSlow(t, sync, "--appendfsync", fsync)
	s, err := Open(Config{URL: r.URL(), Retention: time.Hour, JournalLimit: 4096})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Connect(ctx); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(4500*time.Millisecond, r.Kill)
	acked, _ := load(s, 8, 16, nil)
	r.Up(t)
	for calls := range slices.Chunk(acked, 1000) {
		states, errs := s.Load(ctx, calls)
		for i := range calls {
			if errs[i] != nil {
				t.Fatal(errs[i])
			}
			if states[i].GetVersion() == "" {
				lost++
			}
		}
	}
	return len(acked), lost
}

// The numbers of docs/durability.md: go test -run=NONE -bench=. -benchtime=1x ./services/state/internal/store
func BenchmarkDurability(b *testing.B) {
	for _, fsync := range []string{"always", "everysec"} {
		for _, slower := range []time.Duration{0, 5 * time.Millisecond, 50 * time.Millisecond, time.Second} {
			b.Run(fmt.Sprintf("%s/sync+%s/rate", fsync, slower), func(b *testing.B) {
				r := redistest.StartSlow(b, slower, "--appendfsync", fsync)
				s, err := Open(Config{URL: r.URL(), Retention: time.Hour, JournalLimit: 4096})
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				for range b.N {
					stop := make(chan struct{})
					time.AfterFunc(4*time.Second, func() { close(stop) })
					acked, took := load(s, 8, 16, stop)
					slices.Sort(took)
					b.ReportMetric(float64(len(acked))/4, "commits/s")
					b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
					b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
				}
			})
			b.Run(fmt.Sprintf("%s/sync+%s/kill", fsync, slower), func(b *testing.B) {
				for range b.N {
					acked, lost := killed(b, fsync, slower)
					b.ReportMetric(float64(acked), "acknowledged")
					b.ReportMetric(float64(lost), "lost")
				}
			})
		}
	}
}
