package kommo

import (
	"strings"
	"testing"
	"testing/synctest"

	sim "callrelay/sim/kommo"
)

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(w *world)
		want []string // a finding each: "fact: part of what was found", with ! where something has to be done
	}{
		"a good account": {func(w *world) {
			w.acc.Add("contact", "Ann", []string{number})
			send(w.T, w.Account(9001), Calls, aCall)
		}, []string{"account: acme", "access token: long-lived", "incoming leads: switched on", "search of contacts: 10, 8, 7",
			"call notes: uniq", "note by id: can be read", "malformed call: source", "unknown number: HTTP 400", "not asked: limit"}},
		"an empty one":         {func(*world) {}, []string{"search of contacts: no contact", "call notes: none"}},
		"incoming leads off":   {func(w *world) { w.acc.SetUnsortedOff(true) }, []string{"!incoming leads: switched off"}},
		"somebody has it":      {func(w *world) { w.acc.Add("contact", "Nil", []string{nobody}) }, []string{"unknown number: not asked"}},
		"not paid":             {func(w *world) { w.acc.SetUnpaid(true) }, []string{"!account: not paid"}},
		"another 400":          {fault(sim.Fault{Kind: sim.HTTP, Status: 400, Body: `{"title":"Bad"}`, Endpoint: Calls}), []string{"!unknown number: HTTP 400"}},
		"a search that is not": {fault(sim.Fault{Kind: sim.HTTP, Status: 500, Endpoint: "contacts.list"}), []string{"!search of contacts: HTTP 500"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := start(t, sim.Config{})
				a := w.connect()
				c.set(w)
				before := w.acc.View()
				found := a.Check(t.Context())
			wanted:
				for _, want := range c.want {
					fact, part, _ := strings.Cut(want, ": ")
					for _, f := range found {
						if f.Fact == strings.TrimPrefix(fact, "!") && f.OK != strings.HasPrefix(fact, "!") && strings.Contains(f.Found, part) {
							continue wanted
						}
					}
					t.Errorf("%q is not in %+v", want, found)
				}
				if after := w.acc.View(); len(after.Notes) != len(before.Notes) || len(after.Unsorted) != len(before.Unsorted) || len(after.Popups) != 0 {
					t.Errorf("it left something behind: %+v", after)
				}
			})
		})
	}
}
