package kommo

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	errorsv1 "callrelay/gen/callrelay/errors/v1"
	"callrelay/platform/errkind"
	"callrelay/platform/seal"
	"callrelay/services/upstream/internal/delivery"
	sim "callrelay/sim/kommo"
)

// works reports whether a process can ask the account.
func works(c *Client) bool {
	_, r := c.Account(9001).about(context.Background())
	return r.kind == done
}

func (w *world) notices() (codes []string) {
	for _, id := range []string{"kommo/9001"} {
		for _, n := range w.state.account(id).GetNotices() {
			codes = append(codes, n.GetCode())
		}
	}
	return codes
}

func TestInstall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		code := w.acc.Code()
		for range 2 { // Kommo's request may come twice
			if err := w.Install(t.Context(), host, code, "client"); err != nil {
				t.Fatal(err)
			}
		}
		if len(w.state.all) != 1 || works(w.Client) {
			t.Error("it is not only persisted")
		}
		w.Sweep(t.Context())
		record := w.state.account("kommo/9001")
		if len(w.state.all) != 1 || record.GetHost() != host || !works(w.Client) {
			t.Fatalf("holds %v", w.state.all)
		}
		s, err := w.unseal(record)
		if err != nil || s.credentials.RefreshToken == "" || bytes.Contains(record.GetCredentials(), []byte(s.credentials.RefreshToken)) {
			t.Errorf("credentials %v", err)
		}
		// Installed again: other tokens, the same account.
		w.install()
		if again, _ := w.unseal(w.state.account("kommo/9001")); again.credentials.RefreshToken == s.credentials.RefreshToken || !works(w.Client) {
			t.Error("it keeps the old tokens")
		}
		for name, c := range map[string]struct{ host, code, client, want string }{
			"another host":   {"acme.evil.com", "c", "", "referer"},
			"another client": {host, "c", "other", "client_id"},
			"no code":        {host, "", "", "code"},
			"a long code":    {host, strings.Repeat("c", maxCode+1), "", "code"},
		} {
			if err := w.Install(t.Context(), c.host, c.code, c.client); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		// A code that Kommo does not know ends with a notice, which goes after a day.
		if err := w.Install(t.Context(), host, "used", ""); err != nil {
			t.Fatal(err)
		}
		w.Sweep(t.Context())
		if len(w.state.all) != 2 {
			t.Errorf("holds %v", w.state.all)
		}
		_ = sleep(t.Context(), noticeLife+time.Minute)
		w.Sweep(t.Context())
		if len(w.state.all) != 1 {
			t.Errorf("holds %v", w.state.all)
		}
	})
}

// An installation whose last step died must not bring back tokens that were renewed since.
func TestInstallKeepsNewerTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for step := 1; ; step++ {
			w := start(t, sim.Config{})
			if err := w.Install(t.Context(), host, w.acc.Code(), ""); err != nil {
				t.Fatal(err)
			}
			w.process(w.state.mortal(step)).Sweep(t.Context())
			if w.state.account("kommo/9001") == nil || len(w.state.all) != 2 {
				if step > 100 {
					t.Fatal("no step leaves both")
				}
				continue
			}
			_ = sleep(t.Context(), 3*time.Minute)
			fault(sim.Fault{Kind: sim.HTTP, Status: 401, Times: 1, Endpoint: "account"})(w)
			if !works(w.Client) || w.acc.Refreshes() != 1 {
				t.Fatal("not renewed")
			}
			renewed := w.state.account("kommo/9001").GetVersion()
			w.Sweep(t.Context())
			if w.state.account("kommo/9001").GetVersion() != renewed || len(w.state.all) != 1 {
				t.Error("older tokens are back")
			}
			return
		}
	})
}

func TestManyInstallsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		var err error
		for i := range maxInstalls + 1 {
			err = w.Install(t.Context(), host, fmt.Sprint("code-", i), "")
		}
		if err == nil || len(w.state.all) != maxInstalls {
			t.Errorf("%d installations wait, %v", len(w.state.all), err)
		}
	})
}

// TestRefresh: tokens are renewed before they end, by exactly one of many.
func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		w.install()
		others := []*Client{w.Client, w.process(w.state), w.process(w.state)}
		w.Sweep(t.Context())
		if w.acc.Refreshes() != 0 {
			t.Error("renewed much too early")
		}
		_ = sleep(t.Context(), 23*time.Hour+time.Minute)
		var wg sync.WaitGroup
		for range 4 {
			for _, c := range others {
				wg.Go(func() { c.Sweep(t.Context()) })
			}
		}
		wg.Wait()
		if w.acc.Refreshes() != 1 {
			t.Errorf("renewed %d times", w.acc.Refreshes())
		}
		// Nobody sweeps; the token ends; all want to send at once.
		_ = sleep(t.Context(), 25*time.Hour)
		for range 4 {
			for _, c := range others {
				wg.Go(func() {
					for !works(c) {
						_ = sleep(context.Background(), time.Second)
					}
				})
			}
		}
		wg.Wait()
		if w.acc.Refreshes() != 2 {
			t.Errorf("renewed %d times", w.acc.Refreshes())
		}
	})
}

// A token that Kommo refuses is renewed once, by one, and the request is made once more.
func TestUnauthorizedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		a := w.install()
		w.acc.Add("contact", "Ann", []string{number})
		fault(sim.Fault{Kind: sim.HTTP, Status: 401, Times: 1, Endpoint: Calls})(w)
		if _, answer := send(t, a, Calls, aCall); answer.Outcome != delivery.Delivered || w.acc.Refreshes() != 1 || w.acc.View().Calls["u1"] != 1 {
			t.Errorf("%+v, renewed %d times", answer, w.acc.Refreshes())
		}
		fault(sim.Fault{Kind: sim.HTTP, Status: 401, Endpoint: Calls})(w)
		before := w.sim.Requests(Calls)
		if _, answer := send(t, a, Calls, aCall); answer.Outcome != delivery.Hold || w.acc.Refreshes() != 2 || w.sim.Requests(Calls) != before+2 {
			t.Errorf("%+v, renewed %d times, %d requests", answer, w.acc.Refreshes(), w.sim.Requests(Calls)-before)
		}
		if got := fmt.Sprint(w.notices()); got != "[refused]" {
			t.Errorf("notices %s", got)
		}
	})
}

// TestLostReply: the old refresh token is tried once more.
func TestLostReply(t *testing.T) {
	for name, c := range map[string]struct {
		fault   sim.Fault
		strict  bool
		works   bool
		notices string
	}{
		"cut":                       {sim.Fault{Kind: sim.Cut, Effect: true, Times: 1}, false, true, "[]"},
		"half an answer":            {sim.Fault{Kind: sim.Partial, Times: 1}, false, true, "[]"},
		"504":                       {sim.Fault{Kind: sim.HTTP, Status: 504, Effect: true, Times: 1}, false, true, "[]"},
		"two in a row":              {sim.Fault{Kind: sim.Cut, Effect: true, Times: 2}, false, false, "[]"}, // the next attempt renews it
		"never left":                {sim.Fault{Kind: sim.Cut, Times: 1}, true, true, "[]"},
		"cut, and strictly one use": {sim.Fault{Kind: sim.Cut, Effect: true, Times: 1}, true, false, "[revoked]"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := start(t, sim.Config{StrictRotation: c.strict})
				w.install()
				_ = sleep(t.Context(), 25*time.Hour)
				c.fault.Endpoint = "oauth.token"
				fault(c.fault)(w)
				if got := works(w.Client); got != c.works {
					t.Errorf("works: %v", got)
				}
				if got := fmt.Sprint(w.notices()); got != c.notices {
					t.Errorf("notices %s", got)
				}
				if c.notices != "[]" {
					asked := w.sim.Requests("oauth.token")
					w.Sweep(t.Context())
					if works(w.Client) || w.sim.Requests("oauth.token") != asked {
						t.Error("it goes on asking")
					}
					w.install() // a person connects it again
				}
				if !works(w.Client) || len(w.notices()) != 0 {
					t.Errorf("it does not work in the end, %v", w.notices())
				}
			})
		})
	}
}

func TestMovedAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		a := w.install()
		w.acc.Rename("acme2.kommo.com")
		if _, answer := send(t, a, Calls, aCall); answer.Outcome != delivery.Hold {
			t.Errorf("before it is known: %+v", answer)
		}
		_ = sleep(t.Context(), 23*time.Hour+30*time.Minute)
		w.Sweep(t.Context())
		if got := w.state.account("kommo/9001").GetHost(); got != "acme2.kommo.com" || !works(w.Client) {
			t.Errorf("host %q", got)
		}
	})
}

func TestRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		a := w.install()
		w.acc.Revoke()
		for range 2 {
			if _, answer := send(t, a, Calls, aCall); answer.Outcome != delivery.Hold || !strings.Contains(answer.Reason, "connect the account again") {
				t.Errorf("%+v", answer)
			}
		}
		if got := fmt.Sprint(w.notices()); got != "[revoked]" {
			t.Errorf("notices %s", got)
		}
		w.install()
		if reply, _ := send(t, a, Calls, aCall); reply.Outcome != NotFound {
			t.Errorf("connected again: %+v", reply)
		}
	})
}

// TestCrashes: a process dies at every step of an installation and of a renewal; another one goes on. Steps are RPCs and
// requests, each before and after its effect.
func TestCrashes(t *testing.T) {
	lostExchanges := 0
	for name, c := range map[string]struct {
		before func(w *world)
		dies   func(w *world, c *Client)
	}{
		"install": {func(*world) {}, func(w *world, c *Client) {
			_ = c.Install(context.Background(), host, w.acc.Code(), "")
			c.Sweep(context.Background())
		}},
		"refresh": {func(w *world) { w.install(); _ = sleep(context.Background(), 23*time.Hour+30*time.Minute) }, func(_ *world, c *Client) {
			c.Sweep(context.Background())
		}},
	} {
		for step, more := 0, true; more; step++ {
			t.Run(fmt.Sprint(name, "/", step), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := start(t, sim.Config{})
					c.before(w)
					mortal := w.state.mortal(step)
					process := w.process(mortal)
					c.dies(w, process)
					process.work.Wait()
					more = mortal.step > step
					if step > 200 {
						t.Fatal("it does not end")
					}
					for range 10 { // another process, as time goes by
						_ = sleep(context.Background(), time.Minute)
						w.Sweep(context.Background())
					}
					if len(w.state.all) == 0 {
						return // it died before anything was kept: Kommo got no answer, or an error
					}
					if w.state.account("kommo/9001") == nil {
						// Only where the exchange happened and its reply died with the process: a code works once.
						lostExchanges++
						for _, record := range w.state.all {
							if len(record.GetNotices()) != 1 || record.GetNotices()[0].GetCode() != noticeInstall {
								t.Errorf("holds %v", record)
							}
						}
						return
					}
					for range 3 {
						if !works(w.Client) {
							t.Errorf("it does not work: %v", w.notices())
						}
						_ = sleep(context.Background(), 23*time.Hour+30*time.Minute)
						w.Sweep(context.Background())
					}
					if len(w.state.all) != 1 || len(w.notices()) != 0 {
						t.Errorf("holds %v", w.state.all)
					}
				})
			})
		}
	}
	if lostExchanges > 4 {
		t.Errorf("%d steps lose an installation", lostExchanges)
	}
}

func TestLongLivedToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		if _, err := w.Connect(t.Context(), host, "wrong"); err == nil || !strings.Contains(err.Error(), "401") {
			t.Error(err)
		}
		if _, err := w.Connect(t.Context(), "evil.com", "long"); err == nil || w.sim.Requests("account") != 0 {
			t.Error("the token went somewhere else")
		}
		w.connect()
		_ = sleep(t.Context(), 1000*time.Hour)
		w.Sweep(t.Context())
		if !works(w.Client) || w.acc.Refreshes() != 0 {
			t.Error("it does not work")
		}
		if err := w.Disconnect(t.Context(), 9001); err != nil || w.state.account("kommo/9001") != nil {
			t.Error(err)
		}
		if err := w.Disconnect(t.Context(), 9001); err == nil || errkind.From(err).Kind != errorsv1.Kind_KIND_NOT_FOUND {
			t.Errorf("what is not connected is disconnected: %v", err)
		}
	})
}

// Keys rotate: what an older key sealed is sealed again with the first.
func TestKeysRotate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		w.connect()
		keys, err := seal.Parse("new:YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=,test:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=")
		if err != nil {
			t.Fatal(err)
		}
		next := w.process(w.state)
		next.options.Keys = keys
		next.Sweep(t.Context())
		if !keys.Current(w.state.account("kommo/9001").GetCredentials()) || !works(next) {
			t.Error("it is still sealed with the old key")
		}
	})
}
