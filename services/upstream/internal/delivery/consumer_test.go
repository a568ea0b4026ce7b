package delivery

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
)

var (
	success = Answer{Outcome: Delivered, HTTPCode: 200, Result: "success"}
	refused = Answer{Outcome: Unsent, Reason: "connection refused"}
	broken5 = Answer{Outcome: Transport, HTTPCode: 503, Reason: "HTTP 503"}
	appFail = Answer{Outcome: AppError, HTTPCode: 200, Result: "fail", MessageCode: "ETYP0040", Reason: "application error"}
	atFault = Answer{Outcome: Hold, HTTPCode: 401, Reason: "check the API key"}
	unknown = Answer{Outcome: Uncertain, Reason: "no answer came"}
	refusal = Answer{Outcome: Dead, HTTPCode: 200, MessageCode: "WTYP0010", Reason: "the call does not exist"}
)

// slow answers after a while, or as cut off when it is told to end before.
func slow(d time.Duration, a Answer) func(context.Context, string) Answer {
	return func(ctx context.Context, _ string) Answer {
		select {
		case <-time.After(d):
			return a
		case <-ctx.Done():
			return Answer{Outcome: Uncertain, Reason: "stopped"}
		}
	}
}

// inTurn answers one after the other, then always the last.
func inTurn(answers ...Answer) func(context.Context, string) Answer {
	var n atomic.Int64
	return func(context.Context, string) Answer {
		return answers[min(int(n.Add(1)), len(answers))-1]
	}
}

func TestDeliversAndReportsDone(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		r.state.add("a")
		r.state.add("a")
		r.state.add("b")
		r.after(time.Second)
		r.final(map[string]string{"a/1": "done", "a/2": "done", "b/1": "done"})
		r.sends(3)
		for _, result := range r.state.results {
			a := result.Attempt
			if result.RequestId != "request-of-"+result.Call || result.Endpoint != "createCallEnd" || result.Destination != "crm" || a.GetNumber() != 1 || a.GetNext() != "delivered" ||
				a.GetHttpCode() != 200 || a.GetResult() != "success" || a.GetUrl() != "http://crm/createCallEnd" || a.GetEndpoint() != "createCallEnd" ||
				a.GetError() != "" || a.GetUncertain() || a.GetDestination() != "crm" || a.GetDelivery() != result.Delivery {
				t.Errorf("incomplete result: %v", result)
			}
		}
	})
}

func TestRunsNoMoreThanItsWorkers(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		r.crm.answer = slow(time.Second, success)
		for i := range 20 {
			r.state.add(fmt.Sprint("call-", i))
		}
		r.after(time.Minute)
		r.sends(20)
		if r.crm.most != 4 {
			t.Errorf("%d requests ran at the same time, want 4", r.crm.most)
		}
		if r.state.credits[0] != 4 {
			t.Errorf("the first credit is %d, want one for each worker", r.state.credits[0])
		}
		for _, result := range r.state.results {
			if result.GetRetry() != nil {
				t.Errorf("credit was given for work that could not start: %v", result)
			}
		}
	})
}

func TestResultIsRepeatedUntilAnswered(t *testing.T) {
	for name, applied := range map[string]bool{"the result was lost": false, "only the answer was lost": true} {
		t.Run(name, func(t *testing.T) {
			run(t, testConfig(), func(r *rig) {
				r.state.swallow, r.state.applySwallow = 3, applied
				r.state.add("a")
				r.after(10 * time.Second)
				r.final(map[string]string{"a/1": "done"})
				r.sends(1)
				if n := len(r.state.results); n != 4 {
					t.Errorf("the result was sent %d times, want 4: 3 cut streams and once more", n)
				}
				if n := r.consumer.unanswered(); n != 0 {
					t.Errorf("%d results wait for an answer that came", n)
				}
			})
		})
	}
}

func TestRefusedResultIsSentAgain(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		r.state.refuseResults = 5
		r.state.add("a")
		r.after(10 * time.Second)
		r.final(map[string]string{"a/1": "done"})
		r.sends(1)
		if n := len(r.state.results); n != 6 {
			t.Errorf("the result was sent %d times, want 6", n)
		}
	})
}

func TestNoCreditWhileResultsCannotBeRecorded(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		r.state.refuseResults = 1 << 30
		for i := range 100 {
			r.state.add(fmt.Sprint("call-", i))
		}
		r.after(time.Minute)
		r.sends(4 * backlogPerWorker)
		r.state.refuseResults = 0
		r.after(time.Minute)
		r.sends(100)
	})
}

func TestWaitingResultsGoInOneMessage(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		r.crm.answer = slow(5*time.Second, success)
		for i := range 4 {
			r.state.add(fmt.Sprint("call-", i))
		}
		f := r.state.add("cut")
		r.after(time.Second)
		r.state.refuseStreams = true
		r.consumer.mu.Lock()
		r.consumer.credits = []time.Time{{}} // old enough to make the consumer renew its stream
		r.consumer.mu.Unlock()
		r.consumer.poke()
		r.after(10 * time.Second)
		r.state.refuseStreams = false
		r.after(time.Minute)
		if n := len(r.state.messages[0]); n != 4 {
			t.Errorf("the first message has %d results, want the 4 that were waiting", n)
		}
		if f.final != "done" {
			t.Errorf("the fifth delivery ended as %q", f.final)
		}
	})
}

func TestNeverTwoRequestsForOneDelivery(t *testing.T) {
	t.Run("leased again while its request runs", func(t *testing.T) {
		run(t, testConfig(), func(r *rig) {
			r.crm.answer = slow(10*time.Second, success)
			f := r.state.add("a")
			r.after(time.Second)
			r.state.lose(f)
			r.after(time.Minute)
			r.final(map[string]string{"a/1": "done"})
			r.sends(1)
		})
	})
	t.Run("and its result goes under the newest token", func(t *testing.T) {
		run(t, testConfig(), func(r *rig) {
			r.crm.answer = slow(10*time.Second, refusal)
			f := r.state.add("a")
			r.after(time.Second)
			r.state.lose(f)
			r.after(time.Minute)
			r.final(map[string]string{"a/1": "DELIVERY_STATE_DEAD"})
			r.sends(1)
		})
	})
	t.Run("leased again while `done` waits for its answer", func(t *testing.T) {
		run(t, testConfig(), func(r *rig) {
			r.state.swallow, r.state.refuseStreams = 1, false
			f := r.state.add("a")
			r.state.refuseStreams = true
			r.after(time.Minute)
			r.state.lose(f)
			r.state.refuseStreams, r.state.refuseResults = false, 1
			r.after(time.Minute)
			r.final(map[string]string{"a/1": "done"})
			r.sends(1)
			if f.work.Token != "token-2" {
				t.Fatalf("the delivery was not leased a second time: %s", f.work.Token)
			}
		})
	})
	t.Run("an old result does not pass for that of a new lease", func(t *testing.T) {
		run(t, testConfig(), func(r *rig) {
			r.crm.answer = inTurn(refused, success)
			r.state.swallow = 1
			f := r.state.add("a")
			r.state.refuseStreams = true
			r.after(time.Minute)
			r.state.lose(f)
			r.state.refuseStreams, r.state.refuseResults = false, 1
			r.after(time.Minute)
			r.final(map[string]string{"a/1": "done"})
			r.sends(2)
			if got := f.work.Delivery.Attempts; got != 2 {
				t.Errorf("%d attempts counted, want 2: the lost lease and the success", got)
			}
		})
	})
}

func TestStartsNothingTooLateInItsLease(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		// As if the process had been suspended: credit that was sent long ago brings work now.
		r.consumer.mu.Lock()
		for i := range r.consumer.credits {
			r.consumer.credits[i] = time.Now().Add(-16 * time.Second)
		}
		r.consumer.mu.Unlock()
		f := r.state.add("a")
		r.after(time.Second)
		r.final(map[string]string{"a/1": "done"})
		r.sends(1)
		first := r.state.results[0]
		if !first.GetRetry().GetUncounted() || first.GetRetry().InMs != 0 || first.Attempt != nil {
			t.Errorf("the late lease was answered %v, want it handed back untouched", first)
		}
		if f.work.Delivery.Attempts != 1 {
			t.Errorf("%d attempts counted, want 1", f.work.Delivery.Attempts)
		}
	})
}

func TestIdleCreditIsRenewed(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		for range 5 {
			r.after(time.Minute + 1234*time.Millisecond)
			r.state.add(fmt.Sprint("call-", len(r.crm.sent)))
			r.after(0)
		}
		r.sends(5)
		for _, result := range r.state.results {
			if result.GetDone() == nil {
				t.Errorf("work that came after a quiet time was not done at once: %v", result)
			}
		}
		if r.state.opened < 20 || r.state.opened > 60 {
			t.Errorf("%d streams in 5 quiet minutes, want one each 7.5 s", r.state.opened)
		}
	})
}

func TestHoldBurnsNothingAndProbes(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		r.crm.answer = inTurn(atFault, atFault, atFault, success)
		first := r.state.add("call-0")
		r.after(time.Second)
		for i := range 9 {
			r.state.add(fmt.Sprint("call-", i+1))
		}
		r.after(time.Second)
		r.sends(1)
		h := r.state.results[0].GetHold()
		if h.GetReason() != atFault.Reason || h.GetEpoch() != 7 || h.GetProbeInMs() != 30_000 {
			t.Errorf("hold = %v", h)
		}
		if a := r.state.results[0].Attempt; a.GetNext() != "hold" || a.GetError() != atFault.Reason || a.GetHttpCode() != 401 {
			t.Errorf("attempt = %v", a)
		}
		r.after(30 * time.Second)
		r.sends(2)
		r.after(30 * time.Second)
		r.sends(3)
		r.after(31 * time.Second)
		r.sends(3 + 10)
		for name, final := range r.state.finals() {
			if final != "done" {
				t.Errorf("%s ended as %q", name, final)
			}
		}
		if got := first.work.Delivery.Attempts; got != 1 {
			t.Errorf("%d attempts counted, want the successful one", got)
		}
	})
}

func TestBreakerSendsNothingWhileOpen(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		r.crm.answer = slow(time.Second, refused)
		for i := range 20 {
			r.state.add(fmt.Sprint("call-", i))
		}
		r.after(2500 * time.Millisecond) // the second 4 end at 2 s, of which the first opens it
		before := len(r.crm.sent)
		credits := len(r.state.credits)
		if before != 8 {
			t.Errorf("%d requests until the breaker opened, want two rounds of 4", before)
		}
		r.after(9 * time.Second)
		r.sends(before)
		if n := len(r.state.credits); n != credits {
			t.Errorf("%d messages gave credit while the breaker was open", n-credits)
		}
		r.after(time.Second)
		r.sends(before + 1)
		r.after(30 * time.Second)
		if n := len(r.crm.sent); n > before+4 {
			t.Errorf("%d requests in 30 s with a dead CRM, want one each 11 s", n-before)
		}
	})
}

func TestBreakerHandsBackWhatWasLeasedAlready(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		r.state.share = 4 // state does not know yet that nothing is wanted
		r.crm.answer = inTurn(refused, refused, refused, refused, refused, success)
		for i := range 5 { // one after the other, so that the other workers' credit stays out
			r.state.add(fmt.Sprint("call-", i))
			r.after(time.Millisecond)
		}
		f := r.state.add("late")
		r.after(time.Millisecond)
		last := r.state.results[len(r.state.results)-1]
		if last.Call != "late" || last.Attempt != nil || !last.GetRetry().GetUncounted() || last.GetRetry().InMs < 9_000 || last.GetRetry().PausedMs != last.GetRetry().InMs {
			t.Errorf("leased under an open breaker: %v", last)
		}
		r.after(time.Minute)
		if f.final != "done" || f.work.Delivery.Attempts != 1 {
			t.Errorf("it ended as %q after %d attempts", f.final, f.work.Delivery.Attempts)
		}
	})
}

func TestLongOutageBurnsNoDelivery(t *testing.T) {
	cfg := testConfig()
	cfg.Policy.MaxAge = 30 * time.Minute
	for name, failure := range map[string]Answer{"nothing leaves": refused, "something in between answers 503": broken5} {
		t.Run(name, func(t *testing.T) {
			run(t, cfg, func(r *rig) {
				var down atomic.Bool
				down.Store(true)
				r.crm.answer = func(context.Context, string) Answer {
					if down.Load() {
						return failure
					}
					return success
				}
				for i := range 10 {
					r.state.add(fmt.Sprint("call-", i))
				}
				r.after(40 * time.Minute)
				down.Store(false)
				r.after(20 * time.Minute)
				for name, final := range r.state.finals() {
					if final != "done" {
						t.Errorf("%s ended as %q", name, final)
					}
				}
			})
		})
	}
}

func TestDeadAndAppErrorsDoNotOpenTheBreaker(t *testing.T) {
	for name, answer := range map[string]Answer{"dead": refusal, "application error": appFail, "hold": atFault} {
		t.Run(name, func(t *testing.T) {
			run(t, testConfig(), func(r *rig) {
				r.crm.answer = func(context.Context, string) Answer { return answer }
				for i := range 20 {
					r.state.add(fmt.Sprint("call-", i))
				}
				r.after(10 * time.Minute)
				if len(r.consumer.breaker.outages) != 0 {
					t.Error("the breaker opened")
				}
			})
		})
	}
}

func TestAppErrorsAreCountedApart(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		r.crm.answer = inTurn(broken5, appFail, broken5, appFail, broken5, appFail, broken5, appFail, broken5, appFail)
		r.state.add("a")
		r.after(time.Hour)
		r.final(map[string]string{"a/1": "DELIVERY_STATE_DEAD"})
		r.sends(10)
		if n := len(r.consumer.appErrors); n != 0 {
			t.Errorf("%d counts are kept of deliveries that ended", n)
		}
	})
}

func TestAttemptsAreBounded(t *testing.T) {
	cfg := testConfig()
	cfg.Breaker.Failures = 1000
	run(t, cfg, func(r *rig) {
		r.crm.answer = func(context.Context, string) Answer { return unknown }
		f := r.state.add("a")
		r.after(2 * time.Hour)
		r.final(map[string]string{"a/1": "DELIVERY_STATE_DEAD"})
		r.sends(20)
		if !f.work.Delivery.Uncertain {
			t.Error("the mark of the uncertain attempts was lost")
		}
	})
}

func TestUncertain(t *testing.T) {
	t.Run("retry sends again, marked", func(t *testing.T) {
		run(t, testConfig(), func(r *rig) {
			r.crm.answer = inTurn(unknown, success)
			f := r.state.add("a")
			r.after(time.Minute)
			r.final(map[string]string{"a/1": "done"})
			r.sends(2)
			if a := r.state.results[0].Attempt; !a.GetUncertain() || a.GetNext() != "retry" || a.GetRetryInMs() != 1000 || !f.work.Delivery.Uncertain {
				t.Errorf("the attempt is not marked: %v", a)
			}
		})
	})
	t.Run("ask waits for a person", func(t *testing.T) {
		cfg := testConfig()
		cfg.Policy.Ask = true
		run(t, cfg, func(r *rig) {
			r.crm.answer = inTurn(unknown, success)
			f := r.state.add("a")
			r.after(time.Minute)
			r.final(map[string]string{"a/1": "DELIVERY_STATE_ASKED"})
			r.sends(1)
			if a := r.state.results[0].Attempt; !a.GetUncertain() || a.GetNext() != "ask" {
				t.Errorf("attempt = %v", a)
			}
			// The person looked and wants it sent.
			f.final, f.work.Delivery.Attempts, f.work.Looked = "", 0, true
			r.state.pump()
			r.after(time.Minute)
			r.final(map[string]string{"a/1": "done"})
		})
	})
	t.Run("who finds out first knows whether a person looked", func(t *testing.T) {
		cfg, told := testConfig(), []bool{}
		cfg.SendAgain = func(_ context.Context, _ string, _ []byte, looked bool) Answer {
			told = append(told, looked) // one at a time: it is one delivery
			return map[bool]Answer{false: {Outcome: Dead, Reason: "look"}, true: success}[looked]
		}
		run(t, cfg, func(r *rig) {
			r.crm.answer = inTurn(unknown)
			f := r.state.add("a")
			r.after(time.Minute)
			r.final(map[string]string{"a/1": "DELIVERY_STATE_DEAD"})
			f.final, f.work.Delivery.Attempts, f.work.Looked = "", 0, true
			r.state.pump()
			r.after(time.Minute)
			r.final(map[string]string{"a/1": "done"})
			r.sends(1)
			if !slices.Equal(told, []bool{false, true}) {
				t.Errorf("told %v", told)
			}
		})
	})
	t.Run("ask holds for a lost lease too", func(t *testing.T) {
		cfg := testConfig()
		cfg.Policy.Ask = true
		run(t, cfg, func(r *rig) {
			r.state.add("a", func(d *statev1.Delivery) { d.Uncertain, d.Attempts = true, 1 })
			r.after(time.Minute)
			r.final(map[string]string{"a/1": "DELIVERY_STATE_ASKED"})
			r.sends(0)
		})
	})
}

func TestDisabledSendsNothing(t *testing.T) {
	cfg := testConfig()
	cfg.Disabled = true
	run(t, cfg, func(r *rig) {
		r.state.add("a")
		r.after(time.Minute)
		r.final(map[string]string{"a/1": "DELIVERY_STATE_SEND_DISABLED"})
		r.sends(0)
		if a := r.state.results[0].Attempt; a.GetNext() != "send_disabled" || a.GetUrl() != "http://crm/createCallEnd" || a.GetEndpoint() != "createCallEnd" {
			t.Errorf("attempt = %v", a)
		}
	})
}

func TestExpiredIsNotSent(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		r.crm.answer = slow(2*time.Second, success)
		old := func(d *statev1.Delivery) { d.MaxAgeMs = 1000 }
		r.state.add("a", old) // goes at once
		r.state.add("a", old) // its turn comes after 2 s, and another waits behind it
		r.state.add("a", old) // its turn comes after 4 s
		r.after(time.Minute)
		r.final(map[string]string{"a/1": "done", "a/2": "done", "a/3": "DELIVERY_STATE_EXPIRED"})
		r.sends(2)
	})
}

func TestPanicFailsOnlyItsDelivery(t *testing.T) {
	cfg := testConfig()
	cfg.Breaker.Failures = 1000
	run(t, cfg, func(r *rig) {
		r.crm.answer = func(_ context.Context, payload string) Answer {
			if payload == "bad" {
				panic("bug")
			}
			return success
		}
		bad := r.state.add("bad")
		r.state.add("good")
		r.after(time.Second)
		r.final(map[string]string{"good/1": "done", "bad/1": ""})
		if a := bad.work.Delivery; a.Attempts != 1 || !a.Uncertain {
			t.Errorf("after a panic: %d attempts, uncertain %v; want it counted and marked", a.Attempts, a.Uncertain)
		}
		r.after(2 * time.Hour)
		r.final(map[string]string{"bad/1": "DELIVERY_STATE_DEAD"})
		if len(r.crm.sent) != 21 {
			t.Errorf("%d requests, want 1 good one and 20 bad ones", len(r.crm.sent))
		}
	})
}

func TestPanicOpensTheBreakerInsteadOfBlockingIt(t *testing.T) {
	cfg := testConfig()
	cfg.Breaker.Failures = 1
	run(t, cfg, func(r *rig) {
		var calls atomic.Int64
		r.crm.answer = func(context.Context, string) Answer {
			if calls.Add(1) <= 3 { // once closed, twice as the probe
				panic("bug")
			}
			return success
		}
		for i := range 5 {
			r.state.add(fmt.Sprint("call-", i))
		}
		r.after(time.Hour)
		for name, final := range r.state.finals() {
			if final != "done" {
				t.Errorf("%s ended as %q", name, final)
			}
		}
	})
}

// While Redis is away state ends each stream at once. That is said, and that it is connected only when it is.
func TestConnectedIsSaidOnce(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		var said bytes.Buffer
		r.consumer.log = slog.New(slog.NewTextHandler(&said, nil))
		r.state.refuseStreams = true
		r.consumer.mu.Lock()
		r.consumer.credits = []time.Time{{}} // old enough to make the consumer renew its stream
		r.consumer.mu.Unlock()
		r.consumer.poke()
		r.after(30 * time.Second)
		if text := said.String(); strings.Contains(text, "connected to state") || strings.Count(text, "no stream to state") != 1 {
			t.Errorf("while it is away: %s", text)
		}
		r.state.refuseStreams = false
		r.after(time.Minute)
		if n := strings.Count(said.String(), "connected to state"); n != 1 {
			t.Errorf("afterwards it is said %d times that it is connected: %s", n, said.String())
		}
	})
}

func TestReconnects(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		if err := r.consumer.Ready(); err != nil {
			t.Errorf("not ready with a stream: %v", err)
		}
		r.state.refuseStreams = true
		opened := r.state.opened
		r.after(70 * time.Second)
		if n := r.state.opened - opened; n < 25 || n > 40 {
			t.Errorf("%d streams were tried in about a minute, want one each 2 s after the first few", n)
		}
		if err := r.consumer.Ready(); err == nil || !strings.Contains(err.Error(), "no Redis") {
			t.Errorf("Ready = %v, want what state said", err)
		}
		r.state.refuseStreams = false
		r.state.add("a")
		r.after(3 * time.Second)
		r.final(map[string]string{"a/1": "done"})
		if err := r.consumer.Ready(); err != nil {
			t.Errorf("not ready after reconnecting: %v", err)
		}
	})
}

func TestStop(t *testing.T) {
	stopIn := func(r *rig, longest time.Duration) {
		t.Helper()
		start := time.Now()
		r.stop()
		if took := time.Since(start); took > longest {
			t.Errorf("stopping took %v, want at most %v", took, longest)
		}
	}
	t.Run("idle, at once", func(t *testing.T) {
		run(t, testConfig(), func(r *rig) { stopIn(r, 0) })
	})
	t.Run("running requests finish and are reported", func(t *testing.T) {
		run(t, testConfig(), func(r *rig) {
			r.crm.answer = slow(2*time.Second, success)
			for i := range 10 {
				r.state.add(fmt.Sprint("call-", i))
			}
			r.after(time.Millisecond)
			stopIn(r, 2*time.Second)
			done := 0
			for _, f := range r.state.lines {
				switch {
				case f.final == "done":
					done++
				case f.leased || f.work.Delivery.Attempts != 0 || f.work.Delivery.Uncertain:
					t.Errorf("%s was not handed back untouched", f.work.Call)
				}
			}
			if done != 4 {
				t.Errorf("%d were done, want the 4 that ran", done)
			}
			r.sends(4)
		})
	})
	t.Run("what is leased meanwhile is handed back", func(t *testing.T) {
		run(t, testConfig(), func(r *rig) {
			r.consumer.mu.Lock()
			r.consumer.stopping = true // and the stream has not noticed yet: its credit is still out
			r.consumer.mu.Unlock()
			f := r.state.add("a")
			r.after(0)
			stopIn(r, 0)
			r.sends(0)
			if f.leased || f.final != "" || f.work.Delivery.Attempts != 0 {
				t.Errorf("it was not handed back: %v", f)
			}
			if len(r.state.results) == 0 {
				t.Error("it was never leased")
			}
		})
	})
	t.Run("and soon nothing is leased any more", func(t *testing.T) {
		run(t, testConfig(), func(r *rig) {
			r.crm.answer = slow(2*time.Second, success)
			r.state.add("running")
			r.after(time.Millisecond)
			r.consumer.stop()
			r.after(time.Millisecond)
			late := r.state.add("late")
			r.after(time.Millisecond)
			if late.work.Token != "" {
				t.Error("credit was still out while the last request ran")
			}
			stopIn(r, 2*time.Second)
			r.final(map[string]string{"running/1": "done"})
		})
	})
	t.Run("a request that takes too long is cut and may have arrived", func(t *testing.T) {
		run(t, testConfig(), func(r *rig) {
			r.crm.answer = slow(20*time.Second, success)
			f := r.state.add("a")
			r.after(time.Millisecond)
			stopIn(r, 4*time.Second)
			if f.leased || f.work.Delivery.Attempts != 1 || !f.work.Delivery.Uncertain {
				t.Errorf("it was not reported as uncertain: %v", f)
			}
		})
	})
	t.Run("a request that had not left is handed back", func(t *testing.T) {
		run(t, testConfig(), func(r *rig) {
			r.crm.answer = func(ctx context.Context, _ string) Answer {
				<-ctx.Done()
				return refused
			}
			f := r.state.add("a")
			r.after(time.Millisecond)
			stopIn(r, 4*time.Second)
			if f.leased || f.work.Delivery.Attempts != 0 || f.work.Delivery.Uncertain || f.due.After(time.Now()) {
				t.Errorf("it was not handed back untouched: %v", f)
			}
		})
	})
	t.Run("bounded without state", func(t *testing.T) {
		run(t, testConfig(), func(r *rig) {
			r.state.refuseStreams, r.state.swallow = true, 1
			r.state.add("a")
			r.after(time.Minute)
			stopIn(r, 4*time.Second)
		})
	})
}

// A delivery whose request still runs is leased again: that starts nothing, so its credit is given once more, at once.
func TestCreditThatStartedNothing(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		r.crm.answer = func(ctx context.Context, payload string) Answer {
			if payload == "a" {
				return slow(20*time.Second, success)(ctx, payload)
			}
			return success
		}
		a := r.state.add("a")
		for range r.consumer.cfg.Workers {
			r.after(0)
			r.state.lose(a)
		}
		r.after(0)
		r.state.add("b")
		r.after(0)
		r.final(map[string]string{"a/1": "", "b/1": "done"})
	})
}
