package delivery

import (
	"strings"
	"testing"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
)

func work(change func(*statev1.LeaseWork)) *statev1.LeaseWork {
	w := &statev1.LeaseWork{Call: "a", Delivery: &statev1.Delivery{Number: 1, Endpoint: "createCallStart"}}
	if change != nil {
		change(w)
	}
	return w
}

const hour = int64(time.Hour / time.Millisecond)

func TestBefore(t *testing.T) {
	policy := testConfig().Policy
	asking := policy
	asking.Ask = true
	for name, c := range map[string]struct {
		policy Policy
		work   func(*statev1.LeaseWork)
		paused time.Duration
		want   string // "" = it is sent
	}{
		"fresh":                                   {policy: policy},
		"just not too old":                        {policy: policy, work: func(w *statev1.LeaseWork) { w.AgeMs = 24*hour - 1 }},
		"too old":                                 {policy: policy, work: func(w *statev1.LeaseWork) { w.AgeMs = 24 * hour }, want: nextExpired},
		"too old, but not without the outage":     {policy: policy, work: func(w *statev1.LeaseWork) { w.AgeMs = 30 * hour }, paused: 7 * time.Hour},
		"too old in spite of the outage":          {policy: policy, work: func(w *statev1.LeaseWork) { w.AgeMs = 30 * hour }, paused: 5 * time.Hour, want: nextExpired},
		"within its own age":                      {policy: policy, work: func(w *statev1.LeaseWork) { w.Delivery.MaxAgeMs, w.WallAgeMs = 5000, 4999 }},
		"beyond its own age":                      {policy: policy, work: func(w *statev1.LeaseWork) { w.Delivery.MaxAgeMs, w.WallAgeMs = 5000, 5000 }, want: nextExpired},
		"beyond its own age, but another waits":   {policy: policy, work: func(w *statev1.LeaseWork) { w.Delivery.MaxAgeMs, w.WallAgeMs, w.Followed = 5000, 6000, true }},
		"beyond both, and another waits":          {policy: policy, work: func(w *statev1.LeaseWork) { w.Delivery.MaxAgeMs, w.AgeMs, w.Followed = 5000, 25*hour, true }, want: nextExpired},
		"uncertain, retry":                        {policy: policy, work: func(w *statev1.LeaseWork) { w.Delivery.Uncertain, w.Delivery.Attempts = true, 1 }},
		"uncertain, ask":                          {policy: asking, work: func(w *statev1.LeaseWork) { w.Delivery.Uncertain, w.Delivery.Attempts = true, 1 }, want: nextAsk},
		"uncertain, ask, and a person retries it": {policy: asking, work: func(w *statev1.LeaseWork) { w.Delivery.Uncertain, w.Delivery.Attempts, w.Looked = true, 1, true }},
		"not uncertain, ask":                      {policy: asking, work: func(w *statev1.LeaseWork) { w.Delivery.Attempts = 3 }},
	} {
		t.Run(name, func(t *testing.T) {
			v, ends := c.policy.before(work(c.work), c.paused)
			if ends != (c.want != "") || v.next != c.want {
				t.Errorf("ends %v as %q, want %q", ends, v.next, c.want)
			}
			if ends && v.reason == "" {
				t.Error("no reason")
			}
		})
	}
}

func TestAfter(t *testing.T) {
	policy := testConfig().Policy
	asking := policy
	asking.Ask = true
	attempts := func(n uint32) func(*statev1.LeaseWork) {
		return func(w *statev1.LeaseWork) { w.Delivery.Attempts = n }
	}
	for name, c := range map[string]struct {
		policy Policy
		work   func(*statev1.LeaseWork)
		answer Answer
		circumstances
		want       verdict
		wantReason string // part of it; want.reason is not compared
	}{
		"delivered": {policy: policy, answer: success, want: verdict{next: nextDelivered}},
		"dead":      {policy: policy, answer: refusal, want: dead(""), wantReason: refusal.Reason},
		"hold":      {policy: policy, answer: atFault, want: verdict{next: nextHold, in: 30 * time.Second}, wantReason: atFault.Reason},

		"first transport failure":   {policy: policy, answer: broken5, want: verdict{next: nextRetry, in: time.Second}, wantReason: "HTTP 503"},
		"fourth transport failure":  {policy: policy, answer: broken5, work: attempts(3), want: verdict{next: nextRetry, in: 8 * time.Second}},
		"19th":                      {policy: policy, answer: broken5, work: attempts(18), want: verdict{next: nextRetry, in: 5 * time.Minute}},
		"20th, the last":            {policy: policy, answer: broken5, work: attempts(19), want: dead(""), wantReason: "given up after 20 attempts; the last: HTTP 503"},
		"nothing left":              {policy: policy, answer: refused, want: verdict{next: nextRetry, in: time.Second}},
		"nothing left, 20th":        {policy: policy, answer: refused, work: attempts(19), want: dead("")},
		"nothing left, asking":      {policy: asking, answer: refused, want: verdict{next: nextRetry, in: time.Second}},
		"Retry-After is obeyed":     {policy: policy, answer: Answer{Outcome: Transport, RetryAfter: 7 * time.Minute}, want: verdict{next: nextRetry, in: 7 * time.Minute}},
		"a short one does not rush": {policy: policy, answer: Answer{Outcome: Transport, RetryAfter: time.Second}, work: attempts(3), want: verdict{next: nextRetry, in: 8 * time.Second}},

		"first application error":        {policy: policy, answer: appFail, circumstances: circumstances{appErrors: 1}, want: verdict{next: nextRetry, in: time.Second}},
		"first after transport failures": {policy: policy, answer: appFail, work: attempts(12), circumstances: circumstances{appErrors: 1}, want: verdict{next: nextRetry, in: 5 * time.Minute}},
		"fifth application error":        {policy: policy, answer: appFail, work: attempts(4), circumstances: circumstances{appErrors: 5}, want: dead(""), wantReason: "given up after 5 application errors; the last: application error"},
		"an application error as 20th":   {policy: policy, answer: appFail, work: attempts(19), circumstances: circumstances{appErrors: 1}, want: dead("")},

		"uncertain":            {policy: policy, answer: unknown, want: verdict{next: nextRetry, in: time.Second}, wantReason: "no answer came"},
		"uncertain, 20th":      {policy: policy, answer: unknown, work: attempts(19), want: dead("")},
		"uncertain, asking":    {policy: asking, answer: unknown, want: ask(""), wantReason: "no answer came; look in the CRM"},
		"nobody classified it": {policy: asking, answer: Answer{}, want: ask("")},

		"a probe that fails burns nothing": {policy: policy, answer: refused, work: attempts(19), circumstances: circumstances{probe: true, breakerOpen: 10 * time.Minute},
			want: verdict{next: nextRetry, in: 10 * time.Minute, paused: 10 * time.Minute, uncounted: true}},
		"nor by an answer on the way": {policy: policy, answer: broken5, work: attempts(19), circumstances: circumstances{probe: true, breakerOpen: 10 * time.Second},
			want: verdict{next: nextRetry, in: 5 * time.Minute, paused: 5 * time.Minute, uncounted: true}},
		"an uncertain probe counts": {policy: policy, answer: unknown, work: attempts(19), circumstances: circumstances{probe: true}, want: dead("")},

		"not past the end of its worth": {policy: policy, answer: broken5, want: verdict{next: nextRetry, in: 3 * time.Second},
			work: func(w *statev1.LeaseWork) { w.Delivery.Attempts, w.AgeMs = 15, 24*hour-3000 }},
		"outage prolongs it": {policy: policy, answer: broken5, circumstances: circumstances{paused: time.Minute}, want: verdict{next: nextRetry, in: 63 * time.Second},
			work: func(w *statev1.LeaseWork) { w.Delivery.Attempts, w.AgeMs = 15, 24*hour-3000 }},
		"not past its own end": {policy: policy, answer: broken5, want: verdict{next: nextRetry, in: time.Second},
			work: func(w *statev1.LeaseWork) { w.Delivery.Attempts, w.Delivery.MaxAgeMs, w.WallAgeMs = 15, 5000, 4000 }},
		"its own end does not count while another waits": {policy: policy, answer: broken5, want: verdict{next: nextRetry, in: 5 * time.Minute},
			work: func(w *statev1.LeaseWork) {
				w.Delivery.Attempts, w.Delivery.MaxAgeMs, w.WallAgeMs, w.Followed = 15, 5000, 4000, true
			}},
		"its end came during the request": {policy: policy, answer: broken5, want: verdict{next: nextRetry, in: 0},
			work: func(w *statev1.LeaseWork) { w.AgeMs = 24*hour + 3000 }},
	} {
		t.Run(name, func(t *testing.T) {
			c.random = func() float64 { return 1 }
			got := c.policy.after(work(c.work), c.answer, c.circumstances)
			if !strings.Contains(got.reason, c.wantReason) {
				t.Errorf("reason %q, want %q in it", got.reason, c.wantReason)
			}
			got.reason, c.want.reason = "", ""
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestRetriesAreSpread(t *testing.T) {
	w := work(func(w *statev1.LeaseWork) { w.Delivery.Attempts = 3 })
	v := testConfig().Policy.after(w, broken5, circumstances{random: func() float64 { return 0.25 }})
	if v.in != 2*time.Second {
		t.Errorf("waits %v, want a quarter of 8 s", v.in)
	}
}
