package dialer

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// relay answers as the specification says, judging by defects that it is told.
type relay struct {
	mu      sync.Mutex
	seen    map[string]int      // by query
	perCall map[string][]string // queries by call id, in the order of arrival
	bad     map[string]Callback
	ids     atomic.Int64
}

func newRelay(callbacks []Callback) *relay {
	r := &relay{seen: map[string]int{}, perCall: map[string][]string{}, bad: map[string]Callback{}}
	for _, c := range callbacks {
		if c.Kind == Malformed {
			r.bad[c.Query] = c
		}
	}
	return r
}

func (rl *relay) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := fmt.Sprintf("req-%d", rl.ids.Add(1))
	if c, bad := rl.bad[r.URL.RawQuery]; bad {
		w.WriteHeader(c.WantStatus)
		fmt.Fprintf(w, `{"success":false,"message":"no","field":%q,"requestId":%q}`, c.WantField, id)
		return
	}
	q := r.URL.Query()
	call := q.Get("unique_id") + q.Get("cs_unique_id")
	rl.mu.Lock()
	rl.seen[r.URL.RawQuery]++
	n := rl.seen[r.URL.RawQuery]
	rl.perCall[call] = append(rl.perCall[call], r.URL.RawQuery)
	rl.mu.Unlock()
	duplicate := ""
	if n > 1 {
		duplicate = `,"duplicate":true`
	}
	fmt.Fprintf(w, `{"success":true,"message":"Data Received","requestId":%q%s}`, id, duplicate)
}

func TestPlay(t *testing.T) {
	callbacks := New(1).Mix(300, SinglePhoneNotAnswered, Repeated(Phone2Connected), Reordered(BothPhonesFail), MalformedCallback)
	rl := newRelay(callbacks)
	ts := httptest.NewServer(rl)
	defer ts.Close()
	rep := Play(t.Context(), nil, ts.URL, callbacks, PlayOptions{Concurrency: 16})

	want := map[Outcome]int{}
	for _, c := range callbacks {
		switch {
		case c.Kind == Malformed:
			want[Refused]++
		case c.Repeat > 0:
			want[Duplicate]++
		default:
			want[Accepted]++
		}
	}
	if fmt.Sprint(rep.Outcomes) != fmt.Sprint(want) || rep.Sent != len(callbacks) || len(rep.Unexpected) != 0 {
		t.Errorf("%v sent %d of %d, want %v; unexpected %v", rep.Outcomes, rep.Sent, len(callbacks), want, rep.Unexpected)
	}
	if rep.Statuses[200] != want[Accepted]+want[Duplicate] || rep.Statuses[400]+rep.Statuses[414] != want[Refused] {
		t.Errorf("%v", rep.Statuses)
	}
	if !(0 < rep.P50 && rep.P50 <= rep.P99 && rep.P99 <= rep.Max && rep.Max <= rep.Elapsed) {
		t.Errorf("%v %v %v of %v", rep.P50, rep.P99, rep.Max, rep.Elapsed)
	}
	ids := map[string]bool{}
	for i, a := range rep.Answers {
		ids[a.RequestID] = true
		if a.Field != callbacks[i].WantField {
			t.Errorf("%+v for %+v", a, callbacks[i])
		}
	}
	if len(ids) != len(callbacks) || ids[""] {
		t.Errorf("%d request ids of %d", len(ids), len(callbacks))
	}
	// However many are under way, those of a call arrive in their order.
	sent := map[string][]string{}
	for _, c := range callbacks {
		if c.Kind != Malformed {
			sent[c.CallID] = append(sent[c.CallID], c.Query)
		}
	}
	for id, queries := range sent {
		if !slices.Equal(rl.perCall[id], queries) {
			t.Errorf("call %s came in another order", id)
		}
	}
}

// transport answers without a network, so that time can be a test's own.
type transport func(r *http.Request) (status int, body string, err error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) {
	status, body, err := f(r)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

const accepted = `{"success":true,"message":"Data Received","requestId":"1"}`

func TestAnswers(t *testing.T) {
	for _, tc := range []struct {
		status     int
		body       string
		err        error
		want       Outcome
		unexpected bool
	}{
		{status: 200, body: accepted, want: Accepted},
		{status: 200, body: `{"success":true,"duplicate":true,"requestId":"1"}`, want: Duplicate},
		{status: 400, body: `{"success":false,"field":"userId","requestId":"1"}`, want: Refused, unexpected: true},
		{status: 503, body: ``, want: Unavailable, unexpected: true},
		{status: 502, body: `<html>`, want: Strange, unexpected: true},
		{status: 200, body: `<html>`, want: Strange, unexpected: true},
		{status: 200, body: `{"success":true}`, want: Strange, unexpected: true},
		{status: 200, body: `{"success":false,"requestId":"1"}`, want: Strange, unexpected: true},
		{status: 400, body: accepted, want: Strange, unexpected: true},
		{err: io.ErrUnexpectedEOF, want: NoAnswer, unexpected: true},
	} {
		client := &http.Client{Transport: transport(func(*http.Request) (int, string, error) { return tc.status, tc.body, tc.err })}
		rep := Play(t.Context(), client, "http://relay", SinglePhoneNotAnswered(New(1)), PlayOptions{})
		if rep.Answers[0].Outcome != tc.want || rep.Outcomes[tc.want] != 1 || rep.Sent != 1 || (len(rep.Unexpected) == 1) != tc.unexpected {
			t.Errorf("%d %s: %+v", tc.status, tc.body, rep)
		}
		if tc.err != nil && (rep.Answers[0].Err != tc.err || len(rep.Statuses) != 0) {
			t.Errorf("%+v", rep)
		}
	}
	client := &http.Client{Transport: transport(func(*http.Request) (int, string, error) { return 200, accepted, nil })}
	rep := Play(t.Context(), client, "http://relay", AllMalformed(New(1)), PlayOptions{})
	if len(rep.Unexpected) != len(defects) {
		t.Errorf("a relay that takes malformed callbacks must be seen: %v", rep.Unexpected)
	}
	if rep := Play(t.Context(), client, "://", SinglePhoneNotAnswered(New(1)), PlayOptions{}); rep.Outcomes[NoAnswer] != 1 {
		t.Errorf("%+v", rep)
	}
}

func TestRateAndLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		client := &http.Client{Transport: transport(func(*http.Request) (int, string, error) {
			if n++; n == 1 {
				<-time.After(5 * time.Second) // one stall, which the next four of this lane must show
			}
			return 200, accepted, nil
		})}
		callbacks := New(1).Mix(11, SinglePhoneNotAnswered)
		rep := Play(t.Context(), client, "http://relay", callbacks, PlayOptions{Concurrency: 1, Rate: 1})
		if rep.Elapsed != 10*time.Second {
			t.Errorf("11 callbacks at 1/s took %v", rep.Elapsed)
		}
		for i, a := range rep.Answers {
			if want := max(0, 5-time.Duration(i)) * time.Second; a.Latency != want {
				t.Errorf("callback %d: %v, want %v", i, a.Latency, want)
			}
		}
		if rep.P50 != 0 || rep.P99 != 5*time.Second || rep.Max != 5*time.Second {
			t.Errorf("%v %v %v", rep.P50, rep.P99, rep.Max)
		}
	})
}

func TestConcurrency(t *testing.T) {
	for _, tc := range []struct {
		name      string
		callbacks []Callback
		o         PlayOptions
		most      int64
	}{
		{"different calls", New(1).Mix(200, SinglePhoneNotAnswered), PlayOptions{Concurrency: 4}, 4},
		{"default", New(1).Mix(200, SinglePhoneNotAnswered), PlayOptions{}, 8},
		{"one call", Phone2Connected(New(1)), PlayOptions{Concurrency: 4}, 1},
		{"one call, unordered", Phone2Connected(New(1)), PlayOptions{Concurrency: 4, Unordered: true}, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var now, most atomic.Int64
				client := &http.Client{Transport: transport(func(*http.Request) (int, string, error) {
					if n := now.Add(1); n > most.Load() {
						most.Store(n)
					}
					<-time.After(time.Second)
					now.Add(-1)
					return 200, accepted, nil
				})}
				Play(t.Context(), client, "http://relay", tc.callbacks, tc.o)
				if most.Load() != tc.most {
					t.Errorf("%d at a time, want %d", most.Load(), tc.most)
				}
			})
		})
	}
}

func TestPlayEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		client := &http.Client{Transport: transport(func(*http.Request) (int, string, error) { return 200, accepted, nil })}
		rep := Play(ctx, client, "http://relay", New(1).Mix(10, SinglePhoneNotAnswered), PlayOptions{Rate: 1})
		if rep.Sent != 3 || rep.Outcomes[Accepted] != 3 || rep.Outcomes[NotSent] != 7 || rep.Elapsed != 2500*time.Millisecond {
			t.Errorf("%+v", rep)
		}
	})
}

func TestPercentile(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i+1))
	}
	if percentile(hundred, 50) != 50 || percentile(hundred, 99) != 99 || percentile(hundred[:1], 99) != 1 || percentile(hundred[:2], 50) != 1 {
		t.Errorf("%v %v", percentile(hundred, 50), percentile(hundred, 99))
	}
}
