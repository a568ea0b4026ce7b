package store

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/redistest"
)

// one call as a two-phone dialer reports it: customer, agent, request, trace, two numbers.
func foundOf(i int, atMS int64) Found {
	return Found{Call: "ameyo/" + strconv.Itoa(1_000_000+i), AtMS: atMS, First: true,
		Terms:  []string{"customer" + strconv.Itoa(i), "agent" + strconv.Itoa(i%200), fmt.Sprintf("REQUEST%019d", i), fmt.Sprintf("%032x", i)},
		Phones: []string{fmt.Sprintf("090%08d", i), fmt.Sprintf("080%08d", i)}}
}

// fillIndex indexes n calls that came in evenly over the retention.
func fillIndex(tb testing.TB, s *Store, n int) {
	tb.Helper()
	now := s.Now()
	var batch []Found
	for i := range n {
		batch = append(batch, foundOf(i, now-s.cfg.Retention.Milliseconds()*int64(n-1-i)/int64(n)))
		if len(batch) == 256 || i == n-1 {
			if err := s.Index(ctx, batch); err != nil {
				tb.Fatal(err)
			}
			batch = batch[:0]
		}
	}
}

func memory(tb testing.TB, s *Store) int64 {
	tb.Helper()
	info, err := s.client.Info(ctx, "memory").Result()
	if err != nil {
		tb.Fatal(err)
	}
	_, rest, _ := strings.Cut(info, "used_memory:")
	number, _, _ := strings.Cut(rest, "\r\n")
	return atoi(number)
}

// A search takes the same time however many calls are stored: each way to search asks a fixed number of small sets.
func BenchmarkFind(b *testing.B) {
	for _, n := range []int{1000, 1_000_000} {
		s, err := Open(Config{URL: redistest.Start(b).URL(), Retention: 72 * time.Hour, JournalLimit: 4096})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Connect(ctx); err != nil {
			b.Fatal(err)
		}
		before, began := memory(b, s), time.Now()
		fillIndex(b, s, n)
		b.Logf("%d calls: %d bytes each, %v each to write", n, (memory(b, s)-before)/int64(n), time.Since(began)/time.Duration(n))
		for _, query := range []string{"customer%d", "REQUEST%019d", "090%08d", "%04d", "agent7", ""} {
			name := strings.NewReplacer("%d", "", "%019d", "", "090%08d", "phone", "%04d", "lastdigits").Replace(query)
			b.Run(fmt.Sprintf("%s/calls=%d", name, n), func(b *testing.B) {
				for i := range b.N {
					q := query
					if strings.Contains(q, "%") {
						q = fmt.Sprintf(query, (i*7919)%min(n, 10_000))
					}
					var err error
					if q == "" {
						_, err = s.Recent(ctx, 0, 50, "")
					} else {
						_, err = s.Find(ctx, q, 0, 50, "")
					}
					if err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		_ = s.Close()
	}
}

// TestCallSize holds what one call costs in Redis, with its journal and everything by which it is found: less than 2 KB.
func TestCallSize(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	const n = 5000
	before := memory(t, s)
	payload := []byte(`{"predictiveCallCreateNotAnswer":{"callId":1000000,"callTime":"2026-03-06 13:20:05","errorInfo1":"BUSY","errorInfo2":"NO_ANSWER"}}`)
	query := strings.Repeat("q", 320) // of a call end with all parameters
	var found []Found
	for i := range n {
		f := foundOf(i, s.Now())
		found = append(found, f)
		request := f.Terms[2]
		gate := "end/1000000/customer" + strconv.Itoa(i) + "/a1"
		record, err := proto.Marshal(&statev1.Record{NextDelivery: 2, Gates: []*statev1.Gate{{Key: gate, Owner: request, Deliveries: []uint32{1}, Disposition: "NO_ANSWER", ReceivedMs: s.Now()}}})
		if err != nil {
			t.Fatal(err)
		}
		it := &statev1.CommitItem{Call: f.Call, InputId: request, CommitId: fmt.Sprintf("COMMIT%020d", i), Record: record,
			Moves: []*statev1.Move{{RequestId: request, To: statev1.Bucket_BUCKET_NOTHING_TO_SEND}},
			Journal: MarshalJournal(
				&statev1.JournalEntry{AtMs: s.Now(), RequestId: request, Fact: &statev1.JournalEntry_Received{Received: &statev1.Received{Source: "ameyo.call_end", Query: []byte(query), Peer: "10.0.0.7"}}},
				&statev1.JournalEntry{AtMs: s.Now(), RequestId: request, Fact: &statev1.JournalEntry_Decided{Decided: &statev1.Decided{Rule: "3", Flow: "createNotAnswer", Phones: 1, ErrorInfo1: "NO_ANSWER", Deliveries: []uint32{1}}}}),
			Deliveries: []*statev1.Delivery{{Number: 1, Destination: dest, Endpoint: "createNotAnswer", Payload: payload, RequestId: request, Gate: gate}}}
		if _, _, errs := s.Commit(ctx, []*statev1.CommitItem{it}, [][]string{{"t"}}); errs[0] != nil {
			t.Fatal(errs[0])
		}
		if v, errs := s.Complete(ctx, []*statev1.LeaseResult{{Call: f.Call, Token: "t", Delivery: 1, Destination: dest, RequestId: request, Endpoint: "createNotAnswer",
			Attempt: &statev1.Attempt{Delivery: 1, Number: 1, Destination: dest, Endpoint: "createNotAnswer", Url: "https://topsii.test/callmanage/createNotAnswer.json",
				HttpCode: 200, DurationMs: 12, Result: "success", Body: []byte(`{"result":"success"}`), Next: "delivered"},
			Result: &statev1.LeaseResult_Done{Done: &statev1.Done{}}}}); errs[0] != nil || v[0].Superseded {
			t.Fatal(errs[0], v)
		}
	}
	calls := memory(t, s)
	if err := s.Index(ctx, found); err != nil {
		t.Fatal(err)
	}
	all := memory(t, s)
	t.Logf("%d bytes a call, %d bytes its index", (calls-before)/n, (all-calls)/n)
	if size := (all - before) / n; size >= 2048 {
		t.Errorf("a call costs %d bytes", size)
	}
}

// What was indexed is found whether its span had few calls then, or many.
func TestFindInAllWidths(t *testing.T) {
	was := widths
	defer func() { widths = was }()
	widths = slices.Clone(widths)
	widths[0].sets, widths[1].sets, widths[2].sets = 2, 4, 8
	s := open(t, redistest.Start(t).URL())
	const n = 150 // six terms each
	now := s.Now()
	for i := range n {
		if err := s.Index(ctx, []Found{foundOf(i, now)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, width := range widths {
		keys, err := s.client.Keys(ctx, "cr:i:*:"+string(width.name)+"*").Result()
		if err != nil || len(keys) != width.sets {
			t.Errorf("%d sets of %c: %v", len(keys), width.name, err)
		}
	}
	for i := range n {
		for _, query := range []string{"customer" + strconv.Itoa(i), fmt.Sprintf("090%08d", i)} {
			page, err := s.Find(ctx, query, 0, 10, "")
			if want := foundOf(i, 0).Call; err != nil || !slices.Contains(page.Calls, want) {
				t.Errorf("%s finds %v, %v; want %s", query, page.Calls, err, want)
			}
		}
	}
}

// A page token comes from outside: one of a time to come asks for no more than what can be there.
func TestFindAfterATimeToCome(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	if err := s.Index(ctx, []Found{foundOf(1, s.Now())}); err != nil {
		t.Fatal(err)
	}
	page, err := s.Find(ctx, "customer1", 0, 10, hit{s.Now()/s.spanMS() + 1000, "xx", "ameyo/1"}.String())
	if err != nil || !slices.Equal(page.Calls, []string{foundOf(1, 0).Call}) {
		t.Errorf("found %v, %v", page, err)
	}
	stats := s.client.Info(ctx, "commandstats").Val()
	calls, _, _ := strings.Cut(strings.TrimPrefix(infoField(stats, "cmdstat_zrangebylex"), "calls="), ",")
	if n, err := strconv.Atoi(calls); err != nil || n > 2*spansKept*len(widths) {
		t.Errorf("asked Redis %s times, %v", calls, err)
	}
}

// All of the index ends by itself, also what was written first when Redis did not answer.
func TestIndexEnds(t *testing.T) {
	r := redistest.Start(t)
	s := open(t, r.URL())
	now := s.Now()
	for i := range 20 {
		if i == 10 {
			r.Kill()
			if s.Index(ctx, []Found{foundOf(i, now), foundOf(i+1, now)}) == nil {
				t.Error("written although Redis is gone")
			}
			r.Up(t)
		}
		batch := []Found{foundOf(i, now)}
		if i > 15 { // and in the same sets of another span
			batch = append([]Found{foundOf(i, now-int64(i)*s.spanMS())}, batch...)
		}
		redistest.Poll(t, 5*time.Second, "it is indexed", func() bool { return s.Index(ctx, batch) == nil })
	}
	keys, err := s.client.Keys(ctx, "cr:i:*").Result()
	if err != nil || len(keys) < 40 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	for _, key := range keys {
		if ttl := s.client.TTL(ctx, key).Val(); ttl <= 0 || ttl > 3*s.cfg.Retention {
			t.Errorf("%s lives for %v", key, ttl)
		}
	}
}
