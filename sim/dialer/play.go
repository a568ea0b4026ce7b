package dialer

import (
	"context"
	"encoding/json"
	"errors"
	"hash/maphash"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

// Outcome of sending one callback.
type Outcome string

const (
	NotSent     Outcome = "not_sent"    // the context ended first
	Accepted    Outcome = "accepted"    // 200, taken for the first time
	Duplicate   Outcome = "duplicate"   // 200, said to be one
	Refused     Outcome = "refused"     // 4xx
	Unavailable Outcome = "unavailable" // 503: the dialer may send it again
	NoAnswer    Outcome = "no_answer"   // the connection failed or timed out
	Strange     Outcome = "strange"     // an answer that the specification does not know
)

// maxAnswer bounds how much of an answer is read.
const maxAnswer = 64 << 10

// PlayOptions say how fast to send.
type PlayOptions struct {
	Concurrency int     // requests under way at a time; 0: 8
	Rate        float64 // callbacks per second; 0: as fast as they are answered
	Unordered   bool    // callbacks of one call may be under way at the same time, for races
}

// Answer is what came back for one callback.
type Answer struct {
	Outcome   Outcome
	Status    int
	RequestID string
	Field     string // named by a refusal
	Latency   time.Duration
	Err       error // why there is no answer
}

// Report of a Play.
type Report struct {
	Answers    []Answer // Answers[i] is for callbacks[i]
	Sent       int
	Statuses   map[int]int // without NoAnswer
	Outcomes   map[Outcome]int
	Unexpected []int // indexes of callbacks whose answer is not the one that the specification demands

	// Latency of the callbacks that were answered. With a Rate it counts from the moment at
	// which a callback was due, so that a relay that stalls cannot hide it by being sent less.
	P50, P99, Max time.Duration
	Elapsed       time.Duration
}

// Play sends callbacks and returns when all are answered or ctx has ended. Callbacks of one call go
// out one after the other in the order given, unless o.Unordered; nothing is sent twice. A nil client is one with enough connections.
func Play(ctx context.Context, client *http.Client, baseURL string, callbacks []Callback, o PlayOptions) Report {
	if o.Concurrency <= 0 {
		o.Concurrency = 8
	}
	if client == nil {
		t := &http.Transport{MaxIdleConnsPerHost: o.Concurrency}
		defer t.CloseIdleConnections()
		client = &http.Client{Transport: t, Timeout: 30 * time.Second}
	}
	answers := make([]Answer, len(callbacks))
	start := time.Now()
	var wg sync.WaitGroup
	for _, lane := range lanes(callbacks, o) {
		wg.Go(func() {
			for _, i := range lane {
				from := time.Now()
				if o.Rate > 0 {
					from = start.Add(time.Duration(float64(i) / o.Rate * float64(time.Second)))
				}
				if !waitUntil(ctx, from) {
					answers[i].Outcome = NotSent
					continue
				}
				answers[i] = send(ctx, client, callbacks[i].URL(baseURL))
				answers[i].Latency = time.Since(from)
			}
		})
	}
	wg.Wait()
	return report(callbacks, answers, time.Since(start))
}

// lanes shares callbacks out, by index, so that those of one call are in one lane, in order.
func lanes(callbacks []Callback, o PlayOptions) [][]int {
	n := o.Concurrency
	out := make([][]int, n)
	seed := maphash.MakeSeed()
	for i, c := range callbacks {
		lane := i % n
		if c.CallID != "" && !o.Unordered {
			lane = int(maphash.String(seed, c.CallID) % uint64(n))
		}
		out[lane] = append(out[lane], i)
	}
	return out
}

// waitUntil reports whether ctx lives on at that time.
func waitUntil(ctx context.Context, at time.Time) bool {
	if d := time.Until(at); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	return ctx.Err() == nil
}

func send(ctx context.Context, client *http.Client, address string) Answer {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return Answer{Outcome: NoAnswer, Err: err}
	}
	resp, err := client.Do(req)
	if err != nil {
		if failed, ok := errors.AsType[*url.Error](err); ok {
			err = failed.Err // its text has the whole URL, which is full of phone numbers
		}
		return Answer{Outcome: NoAnswer, Err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return Answer{Outcome: NoAnswer, Err: err}
	}
	return read(resp.StatusCode, body)
}

// read says what an answer means.
func read(status int, body []byte) Answer {
	var ack struct {
		Success   bool   `json:"success"`
		Duplicate bool   `json:"duplicate"`
		RequestID string `json:"requestId"`
		Field     string `json:"field"`
	}
	err := json.Unmarshal(body, &ack)
	out := Answer{Outcome: Strange, Status: status, RequestID: ack.RequestID, Field: ack.Field}
	switch {
	case status == http.StatusServiceUnavailable:
		out.Outcome = Unavailable
	case status >= 400 && status < 500 && !ack.Success:
		out.Outcome = Refused
	case status != http.StatusOK || err != nil || !ack.Success || ack.RequestID == "":
	case ack.Duplicate:
		out.Outcome = Duplicate
	default:
		out.Outcome = Accepted
	}
	return out
}

func report(callbacks []Callback, answers []Answer, elapsed time.Duration) Report {
	r := Report{Answers: answers, Statuses: map[int]int{}, Outcomes: map[Outcome]int{}, Elapsed: elapsed}
	var latencies []time.Duration
	for i, a := range answers {
		r.Outcomes[a.Outcome]++
		if a.Outcome == NotSent {
			continue
		}
		r.Sent++
		if a.Outcome != NoAnswer {
			r.Statuses[a.Status]++
			latencies = append(latencies, a.Latency)
		}
		if a.Outcome == Strange || a.Status != callbacks[i].WantStatus || a.Field != callbacks[i].WantField {
			r.Unexpected = append(r.Unexpected, i)
		}
	}
	if len(latencies) > 0 {
		slices.Sort(latencies)
		r.P50, r.P99, r.Max = percentile(latencies, 50), percentile(latencies, 99), latencies[len(latencies)-1]
	}
	return r
}

// percentile of sorted latencies, by nearest rank.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[(len(sorted)*p+99)/100-1]
}
