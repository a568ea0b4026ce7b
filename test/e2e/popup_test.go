package e2e

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"callrelay/sim/kommo"
	"callrelay/sim/pbx"
)

// A phone that begins to ring shows one card to its user in Kommo, however often its events come; and where Kommo shows none, nothing else
// waits for it and nobody is asked.
func TestKommoPopups(t *testing.T) {
	path := pbxTable(t, newCRM(t))
	table, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	table = []byte(strings.NewReplacer("u101", "8800101", "u102", "8800102").Replace(string(table)))
	if err := os.WriteFile(path, table, 0o600); err != nil {
		t.Fatal(err)
	}
	extensions, err := pbx.Extensions(table, "")
	if err != nil {
		t.Fatal(err)
	}
	ann, bob := extensions[0], extensions[1]
	r, account, simulator := withKommo(t, "ROUTES=pbx/acme=kommo/9001", "PBX_INTEGRATIONS="+path, "PBX_GRACE=1s")
	account.Add("contact", "Client", []string{"+79991234567"})
	popups := func() (shown []string) {
		for _, p := range account.View().Popups {
			shown = append(shown, fmt.Sprintf("%s %.0f", p.Phone, p.Users))
		}
		slices.Sort(shown)
		return shown
	}
	rings := func(call string) {
		for range 2 {
			r.pbxEvent(event(ann, call, call+"-a", "dial-in"))
			r.pbxEvent(event(bob, call, call+"-b", "dial-in"))
		}
	}
	over := func(call string) {
		r.pbxEvent(event(ann, call, call+"-a", "answer"))
		r.pbxEvent(event(bob, call, call+"-b", "hangup", "CallStatus", "CANCEL"))
		r.pbxEvent(event(ann, call, call+"-a", "hangup", "CallStatus", "ANSWER", "Duration", "5000000"))
		r.pbxEvent(event(ann, call, call+"-a", "dial-in"))
	}
	logged := func(call string) {
		r.eventually(30*time.Second, call+" is in Kommo", func() bool { return account.View().Calls[call+"-a"] == 1 })
	}

	rings("c1")
	want := []string{"+79991234567 [8800101]", "+79991234567 [8800102]"}
	r.eventually(8*time.Second, "both see a card", func() bool { return slices.Equal(popups(), want) })
	over("c1")
	logged("c1")

	if err := simulator.AddFault(kommo.Fault{Kind: kommo.HTTP, Status: http.StatusNotFound, Endpoint: "events.popup"}); err != nil {
		t.Fatal(err)
	}
	rings("c2")
	over("c2")
	logged("c2")
	if got := popups(); !slices.Equal(got, want) {
		t.Errorf("cards %v, want %v", got, want)
	}
	if n := simulator.Requests("events.popup"); n != 4 {
		t.Errorf("%d requests for the cards of 4 legs", n)
	}
	for card, word := range map[string]string{"c1-a": "delivered", "c2-b": "discarded"} {
		if out, err := r.callrelay("call", "kommo/9001/ring:"+card); err != nil || !strings.Contains(out, "Card sent") || !strings.Contains(out, word) {
			t.Errorf("%s: want %s in\n%s", card, word, out)
		}
	}
	if out, err := r.callrelay("deliveries"); err != nil || strings.Contains(out, "events.popup") {
		t.Errorf("a person is asked about cards: %v\n%s", err, out)
	}
	if out, err := r.callrelay("accounting", "--check"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
