package kommo

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"callrelay/services/upstream/internal/delivery"
	sim "callrelay/sim/kommo"
)

// Who connects the account while its tokens are renewed has the newer ones.
func TestConnectedWhileRenewing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		a := w.install()
		_ = sleep(t.Context(), 23*time.Hour+30*time.Minute)
		fault(sim.Fault{Kind: sim.Delay, DelayMS: 5000, Endpoint: "oauth.token", Times: 1})(w)
		w.jitter = 5 * time.Second
		slow := w.process(w.state)
		ended := make(chan bool)
		go func() { slow.Sweep(context.Background()); ended <- true }()
		_ = sleep(t.Context(), time.Millisecond)
		w.connect()
		<-ended
		slow.work.Wait()
		s, err := w.load(t.Context(), a.key())
		if err != nil || s.credentials.AccessToken != "long" || s.credentials.RefreshToken != "" {
			t.Errorf("what a person connected is gone: %+v %v", s, err)
		}
	})
}

// What another process or a person changed counts within a minute.
func TestSessionsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		a := w.connect()
		w.acc.Add("contact", "Ann", []string{number})
		if _, answer := send(t, a, Calls, aCall); answer.Outcome != delivery.Delivered {
			t.Fatalf("%+v", answer)
		}
		if err := w.process(w.state).Disconnect(t.Context(), 9001); err != nil {
			t.Fatal(err)
		}
		_ = sleep(t.Context(), sessionLife+time.Second)
		if _, answer := send(t, a, Calls, aCall); answer.Outcome != delivery.Hold {
			t.Errorf("disconnected for a minute, and still used: %+v", answer)
		}
	})
}

// A notice about credentials that are not there any more would stop an account that works.
func TestNoticesAreOfTheirCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		a := w.connect()
		old, failed := a.open(t.Context())
		if failed != nil {
			t.Fatal(failed.reason)
		}
		w.install()
		a.notice(t.Context(), old, noticeRevoked, "the old token")
		if len(w.notices()) != 0 || !works(w.Client) {
			t.Errorf("%v", w.notices())
		}
		now, _ := a.open(t.Context())
		for range 2 {
			a.notice(t.Context(), now, noticeRevoked, "this one")
		}
		if got := w.notices(); len(got) != 1 {
			t.Errorf("%v", got)
		}
	})
}

// Nothing is sent that might outlive the lease of who renews.
func TestNoRenewalOutlivesItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		w.install()
		s, err := w.load(t.Context(), "kommo/9001")
		if err != nil {
			t.Fatal(err)
		}
		before := w.sim.Requests("oauth.token")
		for _, left := range []time.Duration{w.options.Request - time.Millisecond, w.options.Request} {
			_, r := w.grant(t.Context(), time.Now().Add(left-renewTime), host, "refresh_token", s.credentials.RefreshToken)
			if sent := w.sim.Requests("oauth.token") > before; sent != (left == w.options.Request) || sent != (r.kind == done) {
				t.Errorf("%v are left: sent %v, %+v", left, sent, r)
			}
		}
	})
}

// Tokens go to Kommo only, whatever host an account is said to have.
func TestMovedToSomebodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		w.install()
		w.acc.Rename("acme.evil.example")
		_ = sleep(t.Context(), 23*time.Hour+30*time.Minute)
		w.Sweep(t.Context())
		if got := w.state.account("kommo/9001").GetHost(); got != host || w.acc.Refreshes() != 0 {
			t.Errorf("host %q, renewed %d times", got, w.acc.Refreshes())
		}
	})
}

// A call that may have arrived is found wherever Kommo may have put it.
func TestFoundAnywhere(t *testing.T) {
	for name, add := range map[string]func(w *world) int64{
		"contact": func(w *world) int64 { return w.acc.Add("contact", "Ann", []string{number}) },
		"company": func(w *world) int64 { return w.acc.Add("company", "ACME", []string{number}) },
		"lead": func(w *world) int64 {
			return w.acc.Add("lead", "deal", nil, w.acc.Add("contact", "Ann", []string{number}))
		},
		"lead of a company": func(w *world) int64 {
			return w.acc.Add("lead", "deal", nil, w.acc.Add("company", "ACME", []string{number}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := start(t, sim.Config{})
				a := w.connect()
				id := add(w)
				fault(sim.Fault{Kind: sim.Cut, Effect: true, Endpoint: Calls, Times: 1})(w)
				answer, _ := relay(a, Calls, aCall, 5)
				var reply Reply
				if err := json.Unmarshal(answer.Reply, &reply); err != nil || reply.EntityID != id || reply.NoteID == 0 {
					t.Errorf("%+v %v, want %d", reply, err, id)
				}
				if v := w.acc.View(); v.Calls["u1"] != 1 || len(v.Notes) != 1 {
					t.Errorf("%+v", v.Notes)
				}
			})
		})
	}
}

// What may have arrived is not sent again while there may be more to look through.
func TestManyToLookThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{PerSecond: -1})
		w.options.PerSecond = 1000
		a := w.process(w.state).Account(9001)
		w.connect()
		w.acc.Add("contact", "Ann", []string{number})
		fault(sim.Fault{Kind: sim.Cut, Effect: true, Endpoint: Calls, Times: 1})(w)
		if answer := a.Send(t.Context(), Calls, []byte(aCall)); answer.Outcome != delivery.Uncertain {
			t.Fatalf("%+v", answer)
		}
		for n := range pageSize { // newer ones, a page full
			if _, answer := send(t, a, Calls, strings.Replace(aCall, "u1", fmt.Sprint("later-", n), 1)); answer.Outcome != delivery.Delivered {
				t.Fatalf("%+v", answer)
			}
		}
		if answer := a.SendAgain(t.Context(), Calls, []byte(aCall), false); answer.Outcome != delivery.Delivered || w.acc.View().Calls["u1"] != 1 {
			t.Errorf("on the second page: %+v, there %d times", answer, w.acc.View().Calls["u1"])
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		a := w.connect()
		for range pageSize {
			w.acc.Add("contact", "seven digits alike", []string{"+1 999 555 0142"})
		}
		w.acc.Add("contact", "Ann", []string{number})
		fault(sim.Fault{Kind: sim.Cut, Effect: true, Endpoint: Calls, Times: 1})(w)
		if answer, _ := relay(a, Calls, aCall, 4); answer.Outcome != delivery.Dead || w.acc.View().Calls["u1"] != 1 {
			t.Errorf("more contacts than a page has: %+v, there %d times", answer, w.acc.View().Calls["u1"])
		}
	})
}

// What is too much to look through is a person's to decide: it is not sent again by itself, it is no failure of the account, and who
// looked and retried it has it sent.
func TestTooManyToLookThrough(t *testing.T) {
	for leads, want := range map[int]delivery.Outcome{maxEntities - 1: delivery.Delivered, maxEntities: delivery.Dead} {
		synctest.Test(t, func(t *testing.T) {
			w := start(t, sim.Config{})
			a := w.connect()
			ann := w.acc.Add("contact", "Ann", []string{number})
			for range leads {
				w.acc.Add("lead", "deal", nil, ann)
			}
			again := func(looked bool) delivery.Answer { return a.SendAgain(t.Context(), Calls, []byte(aCall), looked) }
			looked, found := send(t, a, LookupUniq, aLookup)
			if found.Outcome != delivery.Delivered || looked.Outcome != map[delivery.Outcome]Outcome{delivery.Delivered: NotFound, delivery.Dead: TooMany}[want] {
				t.Errorf("%d leads: looked up %+v", leads, looked)
			}
			if answer := again(false); answer.Outcome != want || want == delivery.Dead && !strings.Contains(answer.Reason, "look in Kommo whether it is there") {
				t.Errorf("%d leads: %+v", leads, answer)
			}
			if answer := again(true); answer.Outcome != delivery.Delivered || w.acc.View().Calls["u1"] != 1 {
				t.Errorf("%d leads: retried %+v, there %d times", leads, answer, w.acc.View().Calls["u1"])
			}
		})
	}
	// A person's word counts only where nothing else can be known.
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		a := w.connect()
		w.acc.Add("contact", "Ann", []string{number})
		send(t, a, Calls, aCall)
		fault(sim.Fault{Kind: sim.HTTP, Status: 502, Endpoint: "contacts.list", Times: 1})(w)
		for _, want := range []delivery.Outcome{delivery.Transport, delivery.Delivered} {
			if answer := a.SendAgain(t.Context(), Calls, []byte(aCall), true); answer.Outcome != want || w.acc.View().Calls["u1"] != 1 {
				t.Errorf("%+v, there %d times", answer, w.acc.View().Calls["u1"])
			}
		}
	})
}

// An entity that is gone took its notes along; the call may be on another one.
func TestGoneEntity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{CompanyFirst: true})
		a := w.connect()
		w.acc.Add("contact", "Ann", []string{number})
		company := w.acc.Add("company", "ACME", []string{number})
		fault(sim.Fault{Kind: sim.Cut, Effect: true, Endpoint: Calls, Times: 1})(w)
		fault(sim.Fault{Kind: sim.HTTP, Status: 404, Body: `{"title":"Not Found"}`, Endpoint: "notes.list", Times: 1})(w)
		answer, _ := relay(a, Calls, aCall, 2)
		var reply Reply
		if err := json.Unmarshal(answer.Reply, &reply); err != nil || reply.EntityID != company || w.acc.View().Calls["u1"] != 1 {
			t.Errorf("%+v %v", reply, err)
		}
	})
}

// An answer without its list is no answer to whether the call is there.
func TestNoListIsNoAnswer(t *testing.T) {
	for _, list := range []string{"contacts.list", "companies.list", "notes.list", "unsorted.list"} {
		for _, body := range []string{`{}`, `null`, `[]`, `{"_embedded":{}}`, `{"_embedded":[]}`, `{"_embedded":{"contacts":null,"companies":null,"notes":null,"unsorted":null}}`,
			`{"status":"maintenance"}`, `{"_embedded":{"contacts":{},"companies":{},"notes":{},"unsorted":{}}}`} {
			synctest.Test(t, func(t *testing.T) {
				w := start(t, sim.Config{})
				a := w.connect()
				payload := aCall
				if list == "unsorted.list" {
					payload = aLead
					send(t, a, UnsortedSIP, payload)
				} else {
					w.acc.Add(map[bool]string{true: "company", false: "contact"}[list == "companies.list"], "Ann", []string{number})
					send(t, a, Calls, payload)
				}
				fault(sim.Fault{Kind: sim.HTTP, Status: 200, Body: body, Endpoint: list, Times: 1})(w)
				answer := a.SendAgain(t.Context(), map[string]string{aCall: Calls, aLead: UnsortedSIP}[payload], []byte(payload), false)
				if v := w.acc.View(); answer.Outcome != delivery.Transport || v.Calls["u1"] != 1 {
					t.Errorf("%s says %s: %+v, there %d times", list, body, answer, v.Calls["u1"])
				}
			})
		}
	}
	// An empty list is one.
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		a := w.connect()
		fault(sim.Fault{Kind: sim.HTTP, Status: 200, Body: `{"_embedded":{"contacts":[]}}`, Endpoint: "contacts.list"})(w)
		fault(sim.Fault{Kind: sim.HTTP, Status: 200, Body: `{"_embedded":{"unsorted":[]}}`, Endpoint: "unsorted.list"})(w)
		if reply, answer := send(t, a, LookupUniq, aLookup); reply.Outcome != NotFound {
			t.Errorf("%+v", answer)
		}
	})
}
