package store

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/redistest"
)

// The short ways write and answer what the scripts at length do, whatever is stored.
func TestShortWays(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	const call, now, limit = "ameyo/1", 1_700_000_000_000, 70
	s.cfg.JournalLimit = limit
	taken := map[*script]int{}
	property := func(t *rapid.T) {
		type step struct {
			item   *statev1.CommitItem
			tokens []string
			result *statev1.LeaseResult
		}
		var story []step
		numbers, version := uint32(0), ""
		request := rapid.SampledFrom([]string{"R1", "R2"})
		for i := range rapid.IntRange(1, 6).Draw(t, "steps") {
			token := rapid.SampledFrom([]string{"token1", "token2", ""}).Draw(t, "token")
			if numbers > 0 && rapid.Bool().Draw(t, "result") {
				r := delivered(call, request.Draw(t, "request"), token)
				r.Delivery = rapid.Uint32Range(1, min(2, numbers)).Draw(t, "delivery")
				if r.Attempt.Uncertain = rapid.IntRange(0, 5).Draw(t, "uncertain") == 0; r.Attempt.Uncertain {
					r.Attempt.Error = "no answer"
				}
				if rapid.IntRange(0, 5).Draw(t, "reply") == 0 {
					r.GetDone().Reply = []byte("reply")
				}
				story = append(story, step{result: r})
				continue
			}
			it := item(call, request.Draw(t, "input"), version, fmt.Sprint("c", i))
			var tokens []string
			for range rapid.IntRange(0, 2).Draw(t, "deliveries") {
				numbers++
				d := &statev1.Delivery{Number: numbers, Destination: dest, RequestId: it.GetInputId(), ResultWanted: rapid.IntRange(0, 5).Draw(t, "wanted") == 0}
				if rapid.IntRange(0, 5).Draw(t, "other request") == 0 {
					d.RequestId = "R9"
				}
				it.Deliveries, tokens = append(it.Deliveries, d), append(tokens, token)
			}
			if rapid.Bool().Draw(t, "move") {
				it.Moves = []*statev1.Move{{RequestId: request.Draw(t, "moved"), To: statev1.Bucket_BUCKET_NOTHING_TO_SEND}}
			}
			switch rapid.IntRange(0, 9).Draw(t, "odd") {
			case 0:
				it.Journal = note(strings.Repeat("n", limit))
			case 1:
				it.RetentionMs = 1e9
			case 2:
				it.SetTimers = []*statev1.Timer{{Name: "t", InMs: 1000}}
			case 3:
				it.ExpectedVersion = ""
			case 4:
				it.Outcome = &statev1.Outcome{Duplicate: true}
			}
			version = it.GetCommitId()
			story = append(story, step{item: it, tokens: tokens})
		}

		play := func(short bool) (left string) {
			if err := s.client.FlushDB(ctx).Err(); err != nil {
				t.Fatal(err)
			}
			for _, st := range story {
				replies, errs := s.runEach(ctx, 1, func(_ int, ask bool) (invocation, error) {
					if st.item != nil {
						return s.commitCall(ctx, st.item, st.tokens, now, short && ask)
					}
					return s.resultCall(st.result, resultJournal(st.result, now), now, short && ask), nil
				})
				if errs[0] != nil {
					t.Fatal(errs[0])
				}
				if replies[0] == yes && st.item != nil {
					taken[firstScript]++
					replies[0] = []any{"ok", "due"}
					if st.tokens[0] != "" {
						replies[0] = []any{"ok", "leased"}
					}
				} else if replies[0] == yes {
					taken[doneScript]++
					replies[0] = []any{"ok", "", ""}
				}
				if list, ok := replies[0].([]any); !ok || list[0] != "conflict" { // whose fields come in any order
					left += fmt.Sprintln(replies[0])
				}
			}
			return left + stored(t, s)
		}
		if short, long := play(true), play(false); short != long {
			t.Fatalf("by the short way:\n%s\nat length:\n%s", short, long)
		}
	}
	for range 20 { // a hundred stories may take one of the ways never
		if rapid.Check(t, property); taken[firstScript] > 0 && taken[doneScript] > 0 {
			break
		}
	}
	if taken[firstScript] == 0 || taken[doneScript] == 0 {
		t.Errorf("first.lua was enough %d times, done.lua %d", taken[firstScript], taken[doneScript])
	}
}

// stored is what Redis holds, but for the random ids of results.
func stored(t *rapid.T, s *Store) string {
	keys, err := s.client.Keys(ctx, "*").Result()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(keys)
	var b strings.Builder
	for _, key := range keys {
		fields, err := s.client.HGetAll(ctx, key).Result()
		if err != nil {
			members, err := s.client.ZRangeWithScores(ctx, key, 0, -1).Result()
			if err != nil {
				continue // cr:destinations
			}
			fields = map[string]string{"members": fmt.Sprint(members)}
		}
		for name := range fields {
			if strings.HasPrefix(name, "t:"+resultName) {
				fields[name] = "random"
			}
		}
		fmt.Fprintf(&b, "%q ends in %v: %q\n", key, s.client.TTL(ctx, key).Val().Round(time.Minute), fields)
	}
	return b.String()
}

// BenchmarkCallback commits calls with one delivery and completes them, by the short ways of both scripts and at length.
// us/redis is Redis' own processor time per call.
func BenchmarkCallback(b *testing.B) {
	r := redistest.Start(b)
	s, err := Open(Config{URL: r.URL(), Retention: time.Hour, JournalLimit: 4096})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if err := s.Connect(ctx); err != nil {
		b.Fatal(err)
	}
	const batch = 16
	call := 0
	for _, long := range []bool{false, true} {
		b.Run(fmt.Sprintf("short=%v", !long), func(b *testing.B) {
			b.ReportAllocs()
			before := redisTime(b, s)
			for b.Loop() {
				items, results, tokens := make([]*statev1.CommitItem, batch), make([]*statev1.LeaseResult, batch), make([][]string, batch)
				for i := range items {
					call++
					id := strconv.Itoa(call)
					items[i], tokens[i] = item("ameyo/"+id, "R"+id, "", "c", 1), []string{"t"}
					results[i] = delivered("ameyo/"+id, "R"+id, "t")
					if long {
						items[i].RetentionMs, results[i].GetDone().Reply = 1, []byte("r")
					}
				}
				if _, _, errs := s.Commit(ctx, items, tokens); errs[0] != nil {
					b.Fatal(errs[0])
				}
				if _, errs := s.Complete(ctx, results); errs[0] != nil {
					b.Fatal(errs[0])
				}
			}
			b.ReportMetric(float64((redisTime(b, s)-before).Microseconds())/float64(b.N)/batch, "us/redis")
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/batch, "us/call")
		})
	}
}

func delivered(call, request, token string) *statev1.LeaseResult {
	return &statev1.LeaseResult{Call: call, Token: token, Delivery: 1, Destination: dest, RequestId: request,
		Attempt: &statev1.Attempt{Delivery: 1, Number: 1, Destination: dest, HttpCode: 200}, Result: &statev1.LeaseResult_Done{Done: &statev1.Done{}}}
}

// redisTime is the processor time that Redis has used.
func redisTime(b *testing.B, s *Store) time.Duration {
	info, err := s.client.Info(ctx, "cpu").Result()
	if err != nil {
		b.Fatal(err)
	}
	var sum float64
	for _, m := range regexp.MustCompile(`used_cpu_(?:user|sys):([\d.]+)`).FindAllStringSubmatch(info, -1) {
		v, _ := strconv.ParseFloat(m[1], 64)
		sum += v
	}
	return time.Duration(sum * float64(time.Second))
}
