package store

import (
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/redistest"
)

func openAcked(t *testing.T, url string, replicas int) *Store {
	t.Helper()
	s := open(t, url)
	s.cfg.ReplicasAck = replicas
	return s
}

// unknown says that an outcome is unknown because of the replicas.
func unreached(err error) bool {
	var r *ReplicasError
	return errors.As(err, &r)
}

// Rule 16: what is not on the replicas is an unknown outcome, item by item, and so is everything that is said on the strength
// of it: the same commit again, the same result again. When the replicas are back, the repeat is answered.
func TestReplicasAck(t *testing.T) {
	master := redistest.Start(t)
	replica := master.StartReplica(t)
	s := openAcked(t, master.URL(), 1)
	commit(t, s, item("ameyo/1", "i1", "", "c1", 1), item("ameyo/2", "i1", "", "c1", 1))
	w := lease(t, s, "ameyo/1")[0]

	replica.Stop()
	again := item("ameyo/3", "i1", "", "c1", 1)
	for _, try := range []string{"the commit", "the same again, which wrote nothing"} {
		_, _, errs := s.Commit(ctx, []*statev1.CommitItem{again, item("ameyo/4", "i1", "", "c1", 1)}, nil)
		want(t, fmt.Sprint(try, " ", errs[0]), fmt.Sprint(unreached(errs[0]), unreached(errs[1])), "true true")
	}
	work, unsent, err := s.Lease(ctx, dest, []string{"ameyo/2"})
	want(t, "a lease", fmt.Sprint(len(work), len(unsent), unreached(err)), "0 1 true")
	result := &statev1.LeaseResult{Call: "ameyo/1", Token: w.GetToken(), Delivery: 1, Destination: dest, Result: &statev1.LeaseResult_Done{Done: &statev1.Done{}}}
	for _, try := range []string{"a result", "the same again, which wrote nothing"} {
		_, errs := s.Complete(ctx, []*statev1.LeaseResult{result})
		want(t, try, unreached(errs[0]), true)
	}
	want(t, "a hold", unreached(s.Hold(ctx, dest, "r", -1, 0)), true)

	replica.Continue()
	want(t, "the commit, then", statuses(commit(t, s, again)), "[EARLIER]")
	v, errs := s.Complete(ctx, []*statev1.LeaseResult{result})
	want(t, "the result, then", fmt.Sprint(v[0].Superseded, errs[0]), "true <nil>")
	refs, errs := s.Giveback(ctx, unsent, false)
	want(t, "the lease that nobody saw", fmt.Sprint(len(refs), errs[0]), "1 <nil>")
	c := replica.Client(t)
	want(t, "on the replica", c.HGet(ctx, keyCall("ameyo/1"), "1s").Val(), "d")
	want(t, "on the replica", c.HGet(ctx, keyCall("ameyo/3"), "v").Val(), "c1")
}

// The same on a cluster: each node's part is counted on its own connection.
func TestReplicasAckOnCluster(t *testing.T) {
	s := openAcked(t, redistest.StartCluster(t), 1)
	var items []*statev1.CommitItem
	for i := range 20 {
		items = append(items, item(fmt.Sprint("ameyo/", i), "i1", "", "c1", 1))
	}
	_, _, errs := s.Commit(ctx, items, nil)
	for i, err := range errs {
		if !unreached(err) {
			t.Errorf("%s: %v", items[i].GetCall(), err)
		}
	}
	want(t, "a hold", unreached(s.Hold(ctx, dest, "r", -1, 0)), true)
	s.cfg.ReplicasAck = 0
	for _, a := range commit(t, s, items...) {
		want(t, "without", a.GetStatus(), statev1.CommitStatus_COMMIT_STATUS_EARLIER)
	}
}

// Redis does not roll back. Whenever it refuses writes, each operation either happened as a whole or changed nothing.
func TestNothingHalfWritten(t *testing.T) {
	r := redistest.Start(t)
	c := r.Client(t)
	set := func(name, value string) {
		t.Helper()
		if err := c.ConfigSet(ctx, name, value).Err(); err != nil {
			t.Fatal(err)
		}
	}
	faults := map[string][2]func(){
		"OOM":        {func() { set("maxmemory", "1") }, func() { set("maxmemory", "0") }},
		"NOREPLICAS": {func() { set("min-replicas-to-write", "1") }, func() { set("min-replicas-to-write", "0") }},
		"READONLY":   {func() { c.ReplicaOf(ctx, "127.0.0.1", "1") }, func() { c.ReplicaOf(ctx, "NO", "ONE") }},
	}
	// Each prepares a call and returns the operation that is then tried.
	type prepared func() error
	first := func(_ any, errs []error) error { return errs[0] }
	commitOf := func(s *Store, it *statev1.CommitItem) prepared {
		return func() error { _, _, errs := s.Commit(ctx, []*statev1.CommitItem{it}, nil); return errs[0] }
	}
	resultOf := func(s *Store, change func(*statev1.LeaseResult)) prepared {
		commit(t, s, item("ameyo/1", "i1", "", "c1", 1, 2))
		w := lease(t, s, "ameyo/1")[0]
		r := &statev1.LeaseResult{Call: "ameyo/1", Token: w.GetToken(), Delivery: 1, Destination: dest, Attempt: &statev1.Attempt{Delivery: 1}}
		change(r)
		return func() error { return first(s.Complete(ctx, []*statev1.LeaseResult{r})) }
	}
	settled := func(s *Store, what string) prepared {
		commit(t, s, item("ameyo/1", "i1", "", "c1", 1, 2))
		complete(t, s, lease(t, s, "ameyo/1")[0], ends(statev1.DeliveryState_DELIVERY_STATE_DEAD))
		call := get(t, s, "ameyo/1")
		return func() error {
			_, err := s.Settle(ctx, call, call.Deliveries[0], &statev1.Action{What: what, Reason: "r"}, 0)
			return err
		}
	}
	operations := map[string]func(s *Store) prepared{
		"commit": func(s *Store) prepared {
			it := item("ameyo/1", "i1", "", "c1", 1, 2)
			it.SetTimers = []*statev1.Timer{{Name: "t", InMs: 1000}}
			return commitOf(s, it)
		},
		"commit that leases": func(s *Store) prepared {
			return func() error {
				_, _, errs := s.Commit(ctx, []*statev1.CommitItem{item("ameyo/1", "i1", "", "c1", 1, 2)}, [][]string{{"token", ""}})
				return errs[0]
			}
		},
		"commit that replaces and cancels timers": func(s *Store) prepared {
			it := item("ameyo/1", "i1", "", "c1")
			it.SetTimers = []*statev1.Timer{{Name: "t", InMs: 0}, {Name: "u", InMs: 1000}}
			commit(t, s, it)
			if _, _, err := s.Lease(ctx, Rules, []string{"ameyo/1\tt"}); err != nil {
				t.Fatal(err)
			}
			next := item("ameyo/1", "i2", "c1", "c2", 1)
			next.SetTimers, next.CancelTimers = []*statev1.Timer{{Name: "t", InMs: 5000}}, []string{"u"}
			return commitOf(s, next)
		},
		"commit of a timer's input": func(s *Store) prepared {
			it := item("ameyo/1", "i1", "", "c1")
			it.SetTimers = []*statev1.Timer{{Name: "t", InMs: 0}}
			commit(t, s, it)
			work, _, err := s.Lease(ctx, Rules, []string{"ameyo/1\tt"})
			if err != nil || len(work) != 1 {
				t.Fatal(work, err)
			}
			next := item("ameyo/1", "i2", "c1", "c2", 1)
			next.Entry = work[0].GetEntry()
			return commitOf(s, next)
		},
		"commit with a full journal": func(s *Store) prepared {
			s.cfg.JournalLimit = 1
			defer func() { s.cfg.JournalLimit = 4096 }()
			it := item("ameyo/1", "i1", "", "c1", 1)
			return func() error {
				s.cfg.JournalLimit = 1
				defer func() { s.cfg.JournalLimit = 4096 }()
				return commitOf(s, it)()
			}
		},
		"lease": func(s *Store) prepared {
			commit(t, s, item("ameyo/1", "i1", "", "c1", 1, 2))
			return func() error { _, _, err := s.Lease(ctx, dest, []string{"ameyo/1"}); return err }
		},
		"done":  func(s *Store) prepared { return resultOf(s, done) },
		"dead":  func(s *Store) prepared { return resultOf(s, ends(statev1.DeliveryState_DELIVERY_STATE_DEAD)) },
		"again": func(s *Store) prepared { return resultOf(s, again(1000)) },
		"giveback": func(s *Store) prepared {
			commit(t, s, item("ameyo/1", "i1", "", "c1", 1))
			w := lease(t, s, "ameyo/1")[0]
			return func() error { return first(s.Giveback(ctx, []Lost{{Ref{dest, "ameyo/1"}, w.GetToken()}}, true)) }
		},
		"retry":   func(s *Store) prepared { return settled(s, "retry") },
		"discard": func(s *Store) prepared { return settled(s, "discard") },
		"hold":    func(s *Store) prepared { return func() error { return s.Hold(ctx, dest, "r", -1, 0) } },
		"release": func(s *Store) prepared {
			if err := s.Hold(ctx, dest, "r", -1, 0); err != nil {
				t.Fatal(err)
			}
			return func() error { return s.Release(ctx, dest, -1) }
		},
	}
	for fault, do := range faults {
		for operation, prepare := range operations {
			t.Run(fault+"/"+operation, func(t *testing.T) {
				s := open(t, r.URL())
				if err := s.client.FlushAll(ctx).Err(); err != nil {
					t.Fatal(err)
				}
				try := prepare(s)
				if err := s.Know(ctx, dest); err != nil {
					t.Fatal(err)
				}
				before := everything(t, c)
				do[0]()
				err := try()
				do[1]()
				switch after := everything(t, c); {
				case err != nil && !maps.Equal(before, after):
					t.Errorf("refused (%v), and yet it changed\n%q\nto\n%q", err, before, after)
				case err == nil && maps.Equal(before, after):
					t.Error("said to be done, and nothing changed")
				case err == nil && fault != "OOM": // where a script may begin with what frees memory, it goes through as a whole
					t.Error("was not refused")
				}
				redistest.Poll(t, 5*time.Second, "it works again", func() bool { return s.Ping(ctx) == nil })
			})
		}
	}
}

// everything is all that Redis holds, by key.
func everything(t *testing.T, c *redis.Client) map[string]string {
	t.Helper()
	all := map[string]string{}
	keys, err := c.Keys(ctx, "*").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		all[key] = c.Dump(ctx, key).Val()
	}
	return all
}
