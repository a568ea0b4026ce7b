package store

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/redistest"
)

func testAccounts(t *testing.T, s *Store) {
	put := func(id, version, expected, host string, notices ...*statev1.Notice) bool {
		t.Helper()
		written, err := s.PutAccount(ctx, &statev1.Account{Id: id, Version: version, Host: host, Credentials: []byte{0, 1, 255},
			Expires: true, ExpiresInMs: 60_000, Notices: notices}, expected)
		if err != nil {
			t.Fatal(err)
		}
		return written
	}
	get := func(id string) *statev1.Account {
		t.Helper()
		a, err := s.Account(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if get("kommo/1") != nil {
		t.Error("an account out of nothing")
	}
	for i, step := range []struct {
		id, version, expected, host string
		want                        bool
	}{
		{"kommo/1", "a", "x", "one", false}, // there is none of that version
		{"kommo/1", "a", "", "one", true},
		{"kommo/1", "a", "", "one", true}, // the same again, after an unknown outcome
		{"kommo/1", "b", "", "two", false},
		{"kommo/1", "b", "a", "two", true},
		{"kommo/1", "c", "a", "three", false},
		{"pbx/1", "d", "", "four", true},
	} {
		if got := put(step.id, step.version, step.expected, step.host); got != step.want {
			t.Errorf("step %d: written %v", i, got)
		}
	}
	a := get("kommo/1")
	if a.GetHost() != "two" || a.GetVersion() != "b" || string(a.GetCredentials()) != "\x00\x01\xff" {
		t.Errorf("stored %v", a)
	}
	if !a.GetExpires() || a.GetExpiresInMs() > 60_000 || a.GetExpiresInMs() < 30_000 {
		t.Errorf("expires in %d ms", a.GetExpiresInMs())
	}
	list, err := s.Accounts(ctx, "kommo/")
	if err != nil || len(list) != 1 || !proto.Equal(list[0], &statev1.Account{Id: "kommo/1", Version: "b", Host: "two",
		Credentials: []byte{0, 1, 255}, Expires: true, ExpiresInMs: list[0].GetExpiresInMs()}) {
		t.Errorf("listed %v, %v", list, err)
	}

	// A notice keeps the time at which it first was true.
	put("kommo/1", "e", "b", "two", &statev1.Notice{Code: "revoked"})
	since := get("kommo/1").GetNotices()[0].GetSinceMs()
	if since == 0 {
		t.Error("a notice without a time")
	}
	put("kommo/1", "f", "e", "two", &statev1.Notice{Code: "revoked", SinceMs: since})
	if got := get("kommo/1").GetNotices()[0].GetSinceMs(); got != since {
		t.Errorf("since %d, was %d", got, since)
	}

	for i, step := range []struct {
		expected string
		want     bool
	}{{"b", false}, {"f", true}, {"f", true}} {
		if got, err := s.DeleteAccount(ctx, "kommo/1", step.expected); err != nil || got != step.want {
			t.Errorf("delete %d: %v %v", i, got, err)
		}
	}
	if list, _ := s.Accounts(ctx, "kommo/"); get("kommo/1") != nil || len(list) != 0 {
		t.Error("deleted, and still there")
	}
}

// A copy is brought up to date by what it does not have, in messages of bounded size.
func testSyncAccounts(t *testing.T, s *Store) {
	put := func(id, version, expected string, size int) {
		t.Helper()
		if written, err := s.PutAccount(ctx, &statev1.Account{Id: id, Version: version, Settings: make([]byte, size)}, expected); err != nil || !written {
			t.Fatalf("%s: %v %v", id, written, err)
		}
	}
	copied := map[string]string{}
	sync := func() (rounds int, got []string) {
		t.Helper()
		for more := true; more; rounds++ {
			var ids []string
			var changed []*statev1.Account
			var err error
			if ids, changed, more, err = s.SyncAccounts(ctx, "pbx/", copied); err != nil {
				t.Fatal(err)
			}
			total := 0
			for _, a := range changed {
				copied[a.GetId()] = a.GetVersion()
				got = append(got, a.GetId())
				total += proto.Size(a)
			}
			if total > syncBytes && len(changed) > 1 {
				t.Errorf("%d bytes in one answer", total)
			}
			for id := range copied {
				if !slices.Contains(ids, id) {
					delete(copied, id)
				}
			}
		}
		slices.Sort(got)
		return rounds, got
	}
	check := func(wantRounds int, want ...string) {
		t.Helper()
		if rounds, got := sync(); rounds != wantRounds || !slices.Equal(got, want) {
			t.Errorf("got %v in %d rounds, want %v in %d", got, rounds, want, wantRounds)
		}
	}
	check(1)
	put("kommo/1", "k", "", 10)
	put("pbx/a", "a1", "", 10)
	put("pbx/b", "b1", "", syncBytes*3/4)
	put("pbx/c", "c1", "", syncBytes*3/4)
	put("pbx/d", "d1", "", syncBytes*2)
	check(3, "pbx/a", "pbx/b", "pbx/c", "pbx/d")
	check(1)
	put("pbx/a", "a2", "a1", 10)
	if deleted, err := s.DeleteAccount(ctx, "pbx/d", "d1"); err != nil || !deleted {
		t.Fatalf("%v %v", deleted, err)
	}
	check(1, "pbx/a")
	if _, there := copied["pbx/d"]; there || len(copied) != 3 {
		t.Errorf("the copy has %v", copied)
	}
}

func testAccountLease(t *testing.T, s *Store) {
	var holders atomic.Int32
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			wait, err := s.Acquire(ctx, "kommo/1", fmt.Sprint("holder-", i), time.Minute)
			if err != nil {
				t.Error(err)
			}
			if wait == 0 {
				holders.Add(1)
			}
		})
	}
	wg.Wait()
	if holders.Load() != 1 {
		t.Fatalf("%d holders", holders.Load())
	}
	life := time.Minute
	acquire := func(id, token string) time.Duration {
		wait, err := s.Acquire(ctx, id, token, life)
		if err != nil {
			t.Fatal(err)
		}
		return wait
	}
	for range 2 {
		if acquire("kommo/2", "a") != 0 {
			t.Error("the holder cannot prolong")
		}
	}
	if acquire("kommo/2", "b") <= 0 {
		t.Error("two holders")
	}
	if err := s.ReleaseLease(ctx, "kommo/2", "b"); err != nil || acquire("kommo/2", "b") <= 0 {
		t.Error("somebody else let it go")
	}
	if err := s.ReleaseLease(ctx, "kommo/2", "a"); err != nil || acquire("kommo/2", "b") != 0 {
		t.Error("it was let go, and is not free")
	}
	life = 50 * time.Millisecond
	acquire("kommo/2", "b")
	redistest.Poll(t, 5*time.Second, "a lease ends by itself", func() bool { return acquire("kommo/2", "c") == 0 })
}

func testUseToken(t *testing.T, s *Store) {
	use := func(token, request string, d time.Duration) bool {
		t.Helper()
		ours, err := s.UseToken(ctx, token, request, d)
		if err != nil {
			t.Fatal(err)
		}
		return ours
	}
	for i, step := range []struct {
		token, request string
		want           bool
	}{
		{"kommo/1/a", "r1", true}, {"kommo/1/a", "r1", true}, {"kommo/1/a", "r2", false}, {"kommo/1/b", "r2", true}, {"kommo/1/a", "r1", true},
	} {
		if got := use(step.token, step.request, time.Minute); got != step.want {
			t.Errorf("step %d: %v", i, got)
		}
	}
	use("kommo/1/c", "r1", 50*time.Millisecond)
	redistest.Poll(t, 5*time.Second, "a token is forgotten", func() bool { return use("kommo/1/c", "r2", time.Minute) })
}
