package pbx

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"callrelay/callback"
)

// parse reads a line like "101 0.5 dial-in a CallerIDNum=+7999": extension, seconds after the epoch, kind, leg, and the
// other parameters. CallStatus of a hangup is ANSWER unless given; "-" takes it away.
func parse(t tester, line string) event {
	t.Helper()
	words := strings.Fields(line)
	seconds, err := strconv.ParseFloat(words[1], 64)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	p := callback.Params{{Name: "CallID", Value: "call"}, {Name: "SubCallID", Value: words[3]}, {Name: "EventType", Value: words[2]},
		{Name: "EventTime", Value: fmt.Sprint(epoch*1000 + int64(seconds*1e6))}}
	if words[2] == "hangup" {
		p = append(p, callback.Param{Name: "CallStatus", Value: "ANSWER"})
	}
	for _, word := range words[4:] {
		name, value, _ := strings.Cut(word, "=")
		p = append(p, callback.Param{Name: name, Value: strings.TrimSuffix(value, "-")})
	}
	e, err := callback.DecodePbxEvent(p)
	if err != nil || len(e.Notes) > 0 {
		t.Fatalf("%s: %v %v", line, err, e.Notes)
	}
	return event{"0003*" + words[0], e}
}

func script(t tester, text string) []event {
	t.Helper()
	var events []event
	for line := range strings.Lines(text) {
		if line, _, _ = strings.Cut(strings.TrimSpace(line), "#"); line != "" {
			events = append(events, parse(t, line))
		}
	}
	return events
}

// play lets events arrive when they happened.
func (w *world) play(events []event) {
	w.t.Helper()
	for _, e := range events {
		w.pass(max(0, e.AtUS/1000-w.now))
		w.send(e)
	}
}

func inferAnswer(c *Config) { c.InferAnswer = true }
func keepLocal(c *Config)   { c.KeepLocal = true }
func noDirect(c *Config)    { c.DirectMissed = false }
func withHistory(c *Config) { c.History = true }

// TestRules says for each rule what is registered, whether the events come as they happened, all at once and backwards,
// or doubled.
func TestRules(t *testing.T) {
	const answered = `
		101 0 dial-in a CallerIDNum=+7999 CalledDID=7812
		101 5 answer a CallFlow=in CallerIDNum=101
		101 15 hangup a CallFlow=in CallerIDNum=+7999 CalledDID=7812 Duration=10000000 RecID=rec
	`
	const one = "in answered 0003*101 +7999 10s u101"
	for _, test := range []struct {
		name   string
		config func(*Config)
		script string
		want   []string
		// said are parts of what the journal must say.
		said []string
	}{
		{name: "P3 answered", script: answered, want: []string{one}, said: []string{"P3 registered as incoming, answered a"}},
		{name: "P3 without a dial-in, after the grace", script: `
			101 5 answer a CallFlow=in CallerIDNum=101
			101 15 hangup a CallFlow=in CallerIDNum=+7999 Duration=10000000`, want: []string{one}},
		{name: "P3 without CallFlow", script: `
			101 0 answer a CalledNumber=0003*101
			101 10 hangup a CallerIDNum=+7999 CalledNumber=0003*101 Duration=10000000`, want: []string{one}},
		{name: "P3 nothing says the direction", script: `
			101 0 answer a
			101 10 hangup a CallerIDNum=+7999 Duration=10000000`, said: []string{"P3 nothing says whether"}},
		{name: "P4 a status beats the answer event", config: noDirect, script: `
			101 0 dial-in a CallerIDNum=+7999
			101 5 answer a CallFlow=in
			101 15 hangup a CallFlow=in CallStatus=CANCEL Duration=10000000`, said: []string{"P10 not answered: CANCEL a"}},
		{name: "P4 an answer event without a status", script: `
			101 0 dial-in a CallerIDNum=+7999
			101 5 answer a CallFlow=in
			101 15 hangup a CallFlow=in CallStatus=- Duration=10000000`, want: []string{one}},
		{name: "P4 no answer event", script: `
			101 0 dial-in a CallerIDNum=+7999
			101 15 hangup a CallFlow=in Duration=10000000`, said: []string{"P15 unreconciled: it hung up as answered, but no answer was seen a"}},
		{name: "P4 inferred", config: inferAnswer, script: `
			101 0 dial-in a CallerIDNum=+7999
			101 15 hangup a CallFlow=in Duration=10000000`, want: []string{one + " inferred"}},
		{name: "P4 not inferred: another leg answered", config: inferAnswer, script: answered + `
			102 0 dial-in b CallerIDNum=+7999
			102 15 hangup b CallFlow=in Duration=10000000`, want: []string{one}, said: []string{"P15 unreconciled: it hung up as answered, but no answer was seen b"}},
		{name: "P4 not inferred: two legs in doubt", config: inferAnswer, script: `
			101 0 dial-in a CallerIDNum=+7999
			101 15 hangup a CallFlow=in Duration=10000000
			102 0 dial-in b CallerIDNum=+7999
			102 15 hangup b CallFlow=in Duration=10000000`},
		{name: "P4 no answer event, no talk", config: inferAnswer, script: `
			101 0 dial-in a CallerIDNum=+7999
			101 15 hangup a CallFlow=in Duration=0`, want: []string{"in missed 0003*101 +7999 0s u101"}},
		{name: "P5 an outgoing call of no time is answered", script: `
			101 0 dial-out a CalledNumber=+7999
			101 5 answer a CallFlow=out
			101 5 hangup a CallFlow=out CalledNumber=+7999 Duration=0`, want: []string{"out answered 0003*101 +7999 0s u101"}},
		{name: "P10 an outgoing call of no time whose answer never comes", script: `
			101 0 dial-out a CalledNumber=+7999
			101 5 hangup a CallFlow=out CalledNumber=+7999 Duration=0`, want: []string{"out failed 0003*101 +7999 0s u101"}},
		{name: "P5 halves up", script: `
			101 0 dial-in a CallerIDNum=+7999
			101 5 answer a CallFlow=in
			101 15 hangup a CallFlow=in Duration=9500000`, want: []string{one}},
		{name: "P5 under half a second is answered", script: `
			101 0 dial-in a CallerIDNum=+7999
			101 5 answer a CallFlow=in
			101 5.4 hangup a CallFlow=in Duration=400000`, want: []string{"in answered 0003*101 +7999 0s u101"}},
		{name: "P6 local", script: `
			101 0 dial-in a CallerIDNum=0003*102@pbx.example.net
			101 5 answer a CallFlow=in
			101 15 hangup a CallFlow=in CallerIDNum=0003*102 Duration=10000000`, said: []string{"P6 ignored: a local call a"}},
		{name: "P6 local by the own prefix alone", script: `
			101 0 dial-in a CallerIDNum=0003*99
			101 5 answer a CallFlow=in
			101 15 hangup a CallFlow=in CallerIDNum=0003*99 Duration=10000000`},
		{name: "P6 local by a bare number of the table", script: `
			101 0 dial-in a CallerIDNum=102
			101 5 answer a CallFlow=in
			101 15 hangup a CallFlow=in CallerIDNum=102 Duration=10000000`},
		{name: "P6 local kept", config: keepLocal, script: `
			101 0 dial-in a CallerIDNum=0003*102
			101 5 answer a CallFlow=in
			101 15 hangup a CallFlow=in CallerIDNum=0003*102 Duration=10000000`, want: []string{"in answered 0003*101 0003*102 10s u101"}},
		{name: "P6 passed on", script: `
			101 0 dial-in a CallerIDNum=0003*102 RemoteNumber=+7999
			101 5 answer a CallFlow=in CallerIDNum=0003*102
			101 15 hangup a CallFlow=in CallerIDNum=0003*102 Duration=10000000`, want: []string{one}},
		{name: "P6 passed on from an extension", script: `
			101 0 dial-in a CallerIDNum=0003*102 RemoteNumber=0003*103
			101 5 answer a CallFlow=in CallerIDNum=0003*102
			101 15 hangup a CallFlow=in CallerIDNum=0003*102 Duration=10000000`},
		{name: "P6 its dial-in lost, no outside party", script: `
			101 5 answer a CallFlow=in CallerIDNum=0003*102
			101 15 hangup a CallFlow=in CallerIDNum=0003*102 Duration=10000000`, said: []string{"P6 ignored: a local call a"}},
		{name: "P6 its dial-in lost, perhaps passed on", script: answered + `
			102 16 answer b CallFlow=in CallerIDNum=0003*101
			102 20 hangup b CallFlow=in CallerIDNum=0003*101 Duration=4000000`, want: []string{one}, said: []string{"P15 unreconciled: its dial-in was lost"}},
		{name: "P7 another prefix is outside", script: `
			101 0 dial-in a CallerIDNum=0004*102
			101 5 answer a CallFlow=in
			101 15 hangup a CallFlow=in Duration=10000000`, want: []string{"in answered 0003*101 0004*102 10s u101"}},
		{name: "P7 a bare number that is not in the table is outside", script: `
			101 0 dial-in a CallerIDNum=112
			101 5 answer a CallFlow=in
			101 15 hangup a CallFlow=in Duration=10000000`, want: []string{"in answered 0003*101 112 10s u101"}},
		{name: "P7 nobody knows who calls", script: `
			101 0 dial-in a
			101 5 answer a CallFlow=in
			101 15 hangup a CallFlow=in Duration=10000000`, want: []string{"in answered 0003*101  10s u101"}},
		{name: "P8 out", script: `
			101 0 dial-out a CallerIDNum=0003*101 CalledNumber=+7999 CallerExtension=0003*101@pbx
			101 5 answer a CallFlow=out CalledNumber=+7999
			101 15 hangup a CallFlow=out CalledNumber=+7999 Duration=10000000`, want: []string{"out answered 0003*101 +7999 10s u101"}},
		{name: "P8 out to an extension", script: `
			101 0 dial-out a CallerIDNum=0003*101 CalledNumber=0003*102@pbx
			101 5 answer a CallFlow=out CalledNumber=0003*102
			101 15 hangup a CallFlow=out CalledNumber=0003*102 Duration=10000000
			101 20 dial-out b CalledNumber=102
			101 22 hangup b CallFlow=out CalledNumber=102 CallStatus=BUSY`, said: []string{"P8 ignored: a call to an extension a", "P8 ignored: a call to an extension b"}},
		{name: "P9 forwarded between extensions", script: `
			101 0 dial-out a CalledNumber=+7999 Transfered=yes CallerExtensionID=1 CalledExtensionID=2
			101 5 answer a CallFlow=out Transfered=yes
			101 15 hangup a CallFlow=out CalledNumber=+7999 Duration=10000000`, said: []string{"P9 ignored: a forwarding between extensions a"}},
		{name: "P9 one extension id says nothing", script: `
			101 0 dial-in a CallerIDNum=+7999 CallerExtensionID=33334
			101 5 answer a CallFlow=in
			101 15 hangup a CallFlow=in Duration=10000000 CallerExtensionID=33334`, want: []string{one}},
		{name: "P9 not forwarded", script: `
			101 0 dial-out a CalledNumber=+7999 CallerExtensionID=1 CalledExtensionID=2
			101 5 answer a CallFlow=out
			101 15 hangup a CallFlow=out CalledNumber=+7999 Duration=10000000`, want: []string{"out answered 0003*101 +7999 10s u101"}},
		{name: "P10 attempts that failed", script: `
			101 0 dial-out a CalledNumber=+7999
			101 1 hangup a CallFlow=out CallStatus=busy Duration=0
			101 2 dial-out b CalledNumber=+7999
			101 3 hangup b CallFlow=out CallStatus=CHANUNAVAIL
			101 4 dial-out c CalledNumber=+7999
			101 5 hangup c CallFlow=out CallStatus=WEIRD
			101 6 dial-out d CalledNumber=+7999
			101 7 hangup d CallFlow=out CallStatus=- Duration=3000000`,
			want: []string{"out busy 0003*101 +7999 0s u101", "out chanunavail 0003*101 +7999 0s u101",
				"out failed 0003*101 +7999 0s u101", "out failed 0003*101 +7999 0s u101"}},
		{name: "P11 the queue beats the IVR, the last queue counts", script: `
			099 10 hangup i Bridged=no CallerIDNum=+7999 Duration=9000000
			700 9 hangup q Bridged=no CallerIDNum=+7999 Duration=5000000
			701 9.5 hangup r Bridged=no CallerIDNum=+7999 Duration=300000`, want: []string{"in missed 0003*701 +7999 0s"},
			said: []string{"P11 registered as missed on 0003*701 r"}},
		{name: "P11 an IVR alone", script: `
			099 10 hangup i Bridged=no CallerIDNum=+7999 Duration=9000000`, want: []string{"in missed 0003*099 +7999 0s"}},
		{name: "P11 a Bridged=yes after it means answered", script: `
			700 9 hangup q Bridged=no CallerIDNum=+7999 Duration=5000000
			701 12 hangup r Bridged=yes CallerIDNum=+7999 Duration=2000000`,
			said: []string{"P12 not missed: somebody answered in 0003*701 q", "P15 unreconciled: it says that somebody answered, but no answered leg is known r"}},
		{name: "P11 a Bridged=yes before it does not", script: answered + `
			700 15 hangup q Bridged=yes CallerIDNum=+7999 Duration=5000000
			701 40 hangup r Bridged=no CallerIDNum=+7999 Duration=5000000`, want: []string{one, "in missed 0003*701 +7999 0s"}},
		{name: "P11 neither yes nor no", script: `
			700 9 hangup q CallerIDNum=+7999 Duration=5000000`},
		{name: "P11 a colleague was left waiting", script: `
			700 9 hangup q Bridged=no CallerIDNum=0003*101 Duration=5000000`, said: []string{"P6 ignored: a local call q"}},
		{name: "P11 a caller who was passed on was left waiting", script: answered + `
			700 40 hangup q Bridged=no CallerIDNum=0003*101 Duration=20000000`, want: []string{one, "in missed 0003*700 +7999 0s"}},
		{name: "P12 answered after the queue began", script: answered + `
			700 60 hangup q Bridged=no CallerIDNum=+7999 Duration=55000000`, want: []string{one}, said: []string{"P12 not missed: 0003*101 answered q"}},
		{name: "P12 still up 5 s before", script: answered + `
			700 20 hangup q Bridged=no CallerIDNum=+7999 Duration=1000000`, want: []string{one}},
		{name: "P12 ended well before", script: answered + `
			700 20.1 hangup q Bridged=no CallerIDNum=+7999 Duration=1000000`, want: []string{one, "in missed 0003*700 +7999 0s"}},
		{name: "P12 answered, but the answer was lost", script: `
			101 9 dial-in a CallerIDNum=+7999
			099 11 hangup i Bridged=no CallerIDNum=+7999 Duration=10500000
			101 75 hangup a CallFlow=in CallerIDNum=+7999 Duration=60000000`,
			said: []string{"P12 not missed: 0003*101 may have answered i", "P15 unreconciled: it hung up as answered, but no answer was seen a"}},
		{name: "P12 answered and ended well before, but the answer was lost", script: `
			101 0 dial-in a CallerIDNum=+7999
			101 15 hangup a CallFlow=in CallerIDNum=+7999 Duration=10000000
			700 20.1 hangup q Bridged=no CallerIDNum=+7999 Duration=1000000`, want: []string{"in missed 0003*700 +7999 0s"}},
		{name: "P12 a loser that says ANSWER and no Duration did not answer", script: `
			101 9 dial-in a CallerIDNum=+7999
			101 20 hangup a CallFlow=in CallerIDNum=+7999
			700 21 hangup q Bridged=no CallerIDNum=+7999 Duration=12000000`, want: []string{"in missed 0003*700 +7999 0s"}},
		{name: "P13 the extension only lent its identity", script: answered + `
			102 -5 dial-out b CalledNumber=+7999 CallBackID=x
			102 0 answer b CallFlow=out CallBackID=x
			102 15 hangup b CallFlow=out CalledNumber=+7999 CallBackID=x Duration=15000000`, want: []string{one}, said: []string{"P13 ignored"}},
		{name: "P13 to a missed call", script: `
			102 -5 dial-out b CalledNumber=+7999 CallBackID=x
			102 0 answer b CallFlow=out CallBackID=x
			102 15 hangup b CallFlow=out CalledNumber=+7999 CallBackID=x Duration=15000000
			700 15 hangup q Bridged=no CallerIDNum=+7999 Duration=15000000`, want: []string{"in missed 0003*700 +7999 0s"}, said: []string{"P13 ignored"}},
		{name: "P13 to a call that still waits in a queue", script: `
			102 -5 dial-out b CalledNumber=+7999 CallBackID=x
			102 0 answer b CallFlow=out CallBackID=x
			101 1 dial-in a CallerIDNum=+7999 CallerExtensionID=33334
			101 6 hangup a CallFlow=in CallerIDNum=+7999 CallStatus=NOANSWER
			102 7 hangup b CallFlow=out CalledNumber=+7999 CallBackID=x Duration=7000000
			101 20 dial-in c CallerIDNum=+7999 CallerExtensionID=33334
			101 25 hangup c CallFlow=in CallerIDNum=+7999 CallStatus=NOANSWER
			700 60 hangup q Bridged=no CallerIDNum=+7999 Duration=59000000`, want: []string{"in missed 0003*700 +7999 0s"}, said: []string{"P13 ignored"}},
		{name: "P13 nothing else: an ordinary call", script: `
			101 0 dial-out b CalledNumber=+7999 CallBackID=x
			101 5 answer b CallFlow=out CallBackID=x
			101 15 hangup b CallFlow=out CallBackID=x CalledNumber=+7999 Duration=10000000`, want: []string{"out answered 0003*101 +7999 10s u101"}},
		{name: "P15 an answered leg that never hangs up", script: `
			101 0 dial-in a CallerIDNum=+7999
			101 5 answer a CallFlow=in`, said: []string{"P15 unreconciled: it never hung up a"}},
		{name: "P15 a ringing leg that never hangs up", script: `
			101 0 dial-in a CallerIDNum=+7999`, said: []string{"P15 unreconciled: it never hung up a"}},
		{name: "P17 no user", script: `
			104 0 dial-in a CallerIDNum=+7999
			104 5 answer a CallFlow=in
			104 15 hangup a CallFlow=in Duration=10000000`, want: []string{"in answered 0003*104 +7999 10s"}},
		{name: "P18 nobody answered the phones", script: `
			102 0.5 dial-in b CallerIDNum=+7999
			102 10 hangup b CallFlow=in CallStatus=NOANSWER
			101 0 dial-in a CallerIDNum=+7999
			101 10 hangup a CallFlow=in CallStatus=CANCEL`, want: []string{"in missed 0003*101 +7999 0s u101"}, said: []string{"P18 registered as missed on 0003*101 a"}},
		{name: "P18 switched off", config: noDirect, script: `
			101 0 dial-in a CallerIDNum=+7999
			101 10 hangup a CallFlow=in CallStatus=CANCEL`},
		{name: "P18 not of a local call", script: `
			101 0 dial-in a CallerIDNum=0003*102
			101 10 hangup a CallFlow=in CallerIDNum=0003*102 CallStatus=CANCEL`},
		{name: "P18 not when another leg answered", script: answered + `
			102 0 dial-in b CallerIDNum=+7999
			102 5 hangup b CallFlow=in CallStatus=CANCEL`, want: []string{one}},
		{name: "P18 not with a queue", script: `
			101 0 dial-in a CallerIDNum=+7999
			101 10 hangup a CallFlow=in CallStatus=CANCEL
			700 10 hangup q Bridged=no CallerIDNum=+7999 Duration=9000000`, want: []string{"in missed 0003*700 +7999 0s"}},
		{name: "P18 not between two rounds of a queue", script: `
			101 0 dial-in a CallerIDNum=+7999 CallerExtensionID=33334
			101 10 hangup a CallFlow=in CallerIDNum=+7999 CallStatus=NOANSWER CallerExtensionID=33334
			102 60 dial-in b CallerIDNum=+7999 CallerExtensionID=33334
			102 65 answer b CallFlow=in
			102 75 hangup b CallFlow=in CallerIDNum=+7999 Duration=10000000 CallerExtensionID=33334
			700 75.1 hangup q Bridged=yes CallerIDNum=+7999 Duration=80000000`, want: []string{"in answered 0003*102 +7999 10s u102"}},
		{name: "P18 not between two rounds of a queue that nobody answers", script: `
			101 0 dial-in a CallerIDNum=+7999 CallerExtensionID=33334
			101 10 hangup a CallFlow=in CallerIDNum=+7999 CallStatus=NOANSWER
			102 60 dial-in b CallerIDNum=+7999 CallerExtensionID=33334
			102 70 hangup b CallFlow=in CallerIDNum=+7999 CallStatus=NOANSWER
			700 90 hangup q Bridged=no CallerIDNum=+7999 Duration=95000000`, want: []string{"in missed 0003*700 +7999 0s"}, said: []string{"P11 registered as missed on 0003*700 q"}},
		{name: "P11 not on an IVR while a queue after it rings", script: `
			099 10 hangup i Bridged=no CallerIDNum=+7999 Duration=10000000
			101 11 dial-in a CallerIDNum=+7999 CallerExtensionID=33334
			101 30 hangup a CallFlow=in CallerIDNum=+7999 CallStatus=NOANSWER
			102 60 dial-in b CallerIDNum=+7999 CallerExtensionID=33334
			102 65 answer b CallFlow=in
			102 75 hangup b CallFlow=in CallerIDNum=+7999 Duration=10000000
			700 75.1 hangup q Bridged=yes CallerIDNum=+7999 Duration=65000000`, want: []string{"in answered 0003*102 +7999 10s u102"}, said: []string{"P12 not missed"}},
		{name: "P11 not on a queue while the next one rings", script: `
			101 0 dial-in a CallerIDNum=+7999 CallerExtensionID=33334
			101 10 hangup a CallFlow=in CallerIDNum=+7999 CallStatus=NOANSWER
			700 20 hangup q Bridged=no CallerIDNum=+7999 Duration=21000000
			102 21 dial-in b CallerIDNum=+7999 CallerExtensionID=33335
			102 31 hangup b CallFlow=in CallerIDNum=+7999 CallStatus=NOANSWER
			701 60 hangup r Bridged=no CallerIDNum=+7999 Duration=39000000`, want: []string{"in missed 0003*701 +7999 0s"}},
		{name: "P19 forwarded to the outside", script: `
			101 0 dial-in a CallerIDNum=+7999 CalledDID=7812
			101 10 hangup a CallFlow=in CallerIDNum=+7999 CallStatus=NOANSWER
			101 10 dial-out b CallerIDNum=0003*101 CalledNumber=+7111 Transfered=yes CallerExtensionID=33301
			101 15 answer b CallFlow=out Transfered=yes
			101 25 hangup b CallFlow=out CalledNumber=+7111 Transfered=yes Duration=10000000`,
			want: []string{"in forwarded 0003*101 +7999 10s u101"}, said: []string{"P19 registered as incoming, forwarded b"}},
		{name: "P19 forwarded to the outside with the id of a callback, which is no P13", script: `
			101 0 dial-in a CallerIDNum=+7999
			101 5 answer a CallFlow=in
			101 10 hangup a CallFlow=in CallerIDNum=+7999 Duration=5000000
			101 10 dial-out b CallerIDNum=0003*101 CalledNumber=+7111 Transfered=yes CallBackID=x
			101 15 answer b CallFlow=out Transfered=yes CallBackID=x
			101 25 hangup b CallFlow=out CalledNumber=+7111 Transfered=yes CallBackID=x Duration=10000000`,
			want: []string{"in answered 0003*101 +7999 5s u101", "in forwarded 0003*101 +7999 10s u101"}},
		{name: "P19 the forwarding was not answered", script: `
			101 0 dial-in a CallerIDNum=+7999
			101 10 hangup a CallFlow=in CallerIDNum=+7999 CallStatus=NOANSWER
			101 10 dial-out b CallerIDNum=0003*101 CalledNumber=+7111 Transfered=yes
			101 25 hangup b CallFlow=out CalledNumber=+7111 Transfered=yes CallStatus=BUSY`,
			want: []string{"in missed 0003*101 +7999 0s u101"}, said: []string{"P19 ignored: nobody answered the forwarding b"}},
		{name: "P19 an answered forwarding is no missed call", script: `
			101 0 dial-in a CallerIDNum=+7999
			101 10 hangup a CallFlow=in CallerIDNum=+7999 CallStatus=NOANSWER
			101 10 dial-out b CallerIDNum=0003*101 CalledNumber=+7111 Transfered=yes
			101 15 answer b CallFlow=out Transfered=yes
			101 25 hangup b CallFlow=out CalledNumber=+7111 Transfered=yes Duration=10000000
			700 10 hangup q Bridged=no CallerIDNum=+7999 Duration=9000000`,
			want: []string{"in forwarded 0003*101 +7999 10s u101"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.config == nil {
				test.config = func(*Config) {}
			}
			events := script(t, test.script)
			slices.SortStableFunc(events, func(a, b event) int { return int(a.AtUS - b.AtUS) })
			check := func(how string, play func(*world)) {
				w := newWorld(t, test.config)
				play(w)
				w.settle()
				slices.Sort(test.want)
				if !slices.Equal(w.summary(), test.want) {
					t.Errorf("%s: registered %q, want %q; said %q", how, w.summary(), test.want, w.said)
				}
				for _, part := range test.said {
					if !slices.ContainsFunc(w.said, func(s string) bool { return strings.Contains(s, strings.Split(part, " ")[0]) && containsWords(s, part) }) {
						t.Errorf("%s: nothing says %q: %q", how, part, w.said)
					}
				}
			}
			check("as it happened", func(w *world) { w.play(events) })
			for _, times := range []int{1, 2} {
				check(fmt.Sprintf("at once, %d times", times), func(w *world) { w.atOnce(events, times) })
				backwards := slices.Clone(events)
				slices.Reverse(backwards)
				check(fmt.Sprintf("backwards, %d times", times), func(w *world) { w.atOnce(backwards, times) })
			}
		})
	}
}

// containsWords: the leg at the end follows whatever the sentence goes on with.
func containsWords(s, part string) bool {
	if strings.Contains(s, part) {
		return true
	}
	i := strings.LastIndexByte(part, ' ')
	return i > 0 && strings.HasPrefix(s, part[:i]) && strings.HasSuffix(s, part[i:])
}

func (w *world) atOnce(events []event, times int) {
	w.t.Helper()
	for _, e := range events {
		for range times {
			w.send(e)
			w.pass(1)
		}
	}
}

// TestCards says who sees what, step by step.
func TestCards(t *testing.T) {
	for _, test := range []struct {
		name  string
		steps []string // an event, or "pass SECONDS", each followed by "=> cards"
	}{
		{"P1 at once, of the user of the extension", []string{
			"101 0 dial-in a CallerIDNum=+7999 => u101 ringing in +7999",
			"101 1 answer a CallFlow=in CallerIDNum=101 => u101 in_call in +7999",
			"101 2 hangup a CallFlow=in Duration=1 => ",
		}},
		{"P1 by RemoteNumber", []string{"101 0 dial-in a CallerIDNum=0003*102 RemoteNumber=+7999 => u101 ringing in +7999"}},
		{"P1 an answer may come first", []string{
			"101 1 answer a CallFlow=in CallerIDNum=+7999 => u101 in_call in +7999",
			"101 0 dial-in a CallerIDNum=+7111 => u101 in_call in +7111",
		}},
		{"P1 an answer that does not say who calls", []string{
			"101 1 answer a CallFlow=in CallerIDNum=101 => ",
			"101 0 dial-in a CallerIDNum=+7999 => u101 in_call in +7999",
		}},
		{"P2 taken by another, hidden at once", []string{
			"101 0 dial-in a CallerIDNum=+7999 => u101 ringing in +7999",
			"102 0 dial-in b CallerIDNum=+7999 => u101 ringing in +7999, u102 ringing in +7999",
			"102 3 answer b CallFlow=in => u102 in_call in +7999",
			"103 1 dial-in c CallerIDNum=+7999 => u102 in_call in +7999",
			"101 3 hangup a CallFlow=in CallStatus=CANCEL => u102 in_call in +7999",
			"102 9 hangup b CallFlow=in Duration=1 => ",
		}},
		{"P2 a leg that rings after a transfer is not taken", []string{
			"101 0 dial-in a CallerIDNum=+7999 => u101 ringing in +7999",
			"101 1 answer a CallFlow=in => u101 in_call in +7999",
			"102 5 dial-in b CallerIDNum=0003*101 RemoteNumber=+7999 => u101 in_call in +7999, u102 ringing in +7999",
			"101 5 hangup a CallFlow=in Duration=1 => u102 ringing in +7999",
		}},
		{"P2 the hangup of a leg that was not answered", []string{
			"101 0 dial-in a CallerIDNum=+7999 => u101 ringing in +7999",
			"101 9 hangup a CallFlow=in CallStatus=NOANSWER => ",
		}},
		{"P6 local", []string{"101 0 dial-in a CallerIDNum=0003*102 => ", "101 1 answer a CallFlow=in => "}},
		{"P8 out", []string{
			"101 0 dial-out a CalledNumber=+7999 => u101 ringing out +7999",
			"101 1 answer a CallFlow=out => u101 in_call out +7999",
			"101 2 hangup a CallFlow=out Duration=1 => ",
		}},
		{"P8 out to an extension", []string{"101 0 dial-out a CalledNumber=0003*102 => "}},
		{"P9 forwarding", []string{"101 0 dial-out a CalledNumber=+7111 Transfered=yes CallerExtensionID=1 CalledExtensionID=2 => "}},
		{"P13 lent", []string{"101 0 dial-out a CalledNumber=+7111 CallBackID=x => ", "101 0 answer a CallFlow=out CallBackID=x => "}},
		{"P14 late", []string{
			"101 9 hangup a CallFlow=in CallStatus=CANCEL CallerIDNum=+7999 => ",
			"101 0 dial-in a CallerIDNum=+7999 => ",
			"101 1 answer a CallFlow=in CallerIDNum=+7999 => ",
		}},
		{"P15 rings for ever", []string{
			"101 0 dial-in a CallerIDNum=+7999 => u101 ringing in +7999",
			"pass 119.9 => u101 ringing in +7999",
			"pass 0.2 => ",
			"101 125 answer a CallFlow=in => u101 in_call in +7999", // a long queue after all
		}},
		{"P15 talks for ever", []string{
			"101 0 dial-in a CallerIDNum=+7999 => u101 ringing in +7999",
			"101 5 answer a CallFlow=in => u101 in_call in +7999",
			"pass 14399.9 => u101 in_call in +7999",
			"pass 0.2 => ",
		}},
		{"P17 no user", []string{"104 0 dial-in a CallerIDNum=+7999 => "}},
		{"P19 forwarded to the outside", []string{"101 0 dial-out a CalledNumber=+7111 Transfered=yes => "}},
		{"queues have no cards", []string{"700 0 dial-in q CallerIDNum=+7999 => "}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			for _, step := range test.steps {
				what, want, _ := strings.Cut(step, "=>")
				if words := strings.Fields(what); words[0] == "pass" {
					seconds, _ := strconv.ParseFloat(words[1], 64)
					w.pass(int64(seconds * 1000))
				} else {
					w.send(parse(t, what))
					e := parse(t, what)
					if again := w.send(e); !again.Duplicate && !(extensions[e.on].kind == Queue && e.Kind == callback.PbxDial) || again.Changed || len(again.Cards) > 0 {
						t.Errorf("%s: repeated it did %+v", what, again)
					}
				}
				var got []string
				for _, c := range w.cards {
					if c.Open() {
						got = append(got, strings.Join([]string{c.User, c.State, c.Direction, c.Number}, " "))
					}
				}
				slices.Sort(got)
				if strings.Join(got, ", ") != strings.TrimSpace(want) {
					t.Errorf("%s: the cards are %q, want %q", what, got, want)
				}
			}
			w.settle()
		})
	}
}

func TestTakenBy(t *testing.T) {
	w := newWorld(t)
	w.play(script(t, `
		101 0 dial-in a CallerIDNum=+7999
		102 0 dial-in b CallerIDNum=+7999
		102 3 answer b CallFlow=in`))
	if c := w.cards["a"]; c.State != CardTaken || c.TakenBy != "0003*102" || c.Version != 2 {
		t.Errorf("%+v", c)
	}
}

// TestRawStatus: the PBX's own word is kept beside ours (P10).
func TestRawStatus(t *testing.T) {
	w := newWorld(t)
	w.play(script(t, `
		101 0 dial-out a CalledNumber=+7999
		101 1 hangup a CallFlow=out CallStatus=WEIRD`))
	if r := w.records[0]; r.RawStatus == nil || *r.RawStatus != "WEIRD" || r.Success {
		t.Errorf("%+v", r)
	}
}

// TestGrace: nothing that may still change is registered before the grace is over, and it is not longer than needed.
func TestGrace(t *testing.T) {
	w := newWorld(t)
	w.play(script(t, `099 0 hangup i Bridged=no CallerIDNum=+7999 Duration=9000000`))
	w.pass(4000)
	w.play(script(t, `700 4 hangup q Bridged=no CallerIDNum=+7999 Duration=5000000`)) // begins the grace anew
	w.pass(3000)
	w.play(script(t, `700 4 hangup q Bridged=no CallerIDNum=+7999 Duration=5000000`)) // a repeat does not
	w.pass(1999)
	if len(w.records) != 0 {
		t.Fatalf("registered too early: %q", w.summary())
	}
	w.pass(1)
	if want := []string{"in missed 0003*700 +7999 0s"}; !slices.Equal(w.summary(), want) {
		t.Errorf("%q, want %q", w.summary(), want)
	}

	w = newWorld(t)
	w.play(script(t, `
		099 0 hangup i Bridged=no CallerIDNum=+7999 Duration=9000000
		101 1 dial-in a CallerIDNum=+7999`))
	w.pass(60_000) // as long as a leg is open, nothing is decided
	if len(w.records) != 0 {
		t.Errorf("registered while a phone rings: %q", w.summary())
	}
	w.play(script(t, `
		101 61 answer a CallFlow=in
		101 71 hangup a CallFlow=in Duration=10000000`))
	w.settle()
	if want := []string{"in answered 0003*101 +7999 10s u101"}; !slices.Equal(w.summary(), want) {
		t.Errorf("%q, want %q", w.summary(), want)
	}
}

// A repeat that comes before a timer that is late has the timer's decision made; what follows belongs to the event that the repeat
// repeats.
func TestRepeatBeforeALateTimer(t *testing.T) {
	w := newWorld(t)
	w.play(script(t, `
		101 5 answer a CallFlow=in CallerIDNum=101
		101 15 hangup a CallFlow=in CallerIDNum=+7999 Duration=10000000`))
	last := w.call.RequestID
	w.now += 10_000 // twice the grace
	e := w.send(parse(t, "101 15 hangup a CallFlow=in CallerIDNum=+7999 Duration=10000000"))
	if !e.Duplicate || len(e.Deliveries) != 1 || e.Deliveries[0].RequestID != last || e.RequestID == last {
		t.Errorf("%+v, want a delivery of request %s", e, last)
	}
}

// TestMaxWait: a caller whom a queue rang phones for in vain is not missed before its hangup has come; if that was lost,
// PBX_MAX_WAIT after.
func TestMaxWait(t *testing.T) {
	rings := func(more string) string {
		return `
		101 0 dial-in a CallerIDNum=+7999 ` + more + `
		101 10 hangup a CallFlow=in CallerIDNum=+7999 CallStatus=NOANSWER`
	}
	const hangup = `700 600 hangup q Bridged=no CallerIDNum=+7999 Duration=600000000`
	direct, queue := []string{"in missed 0003*101 +7999 0s u101"}, []string{"in missed 0003*700 +7999 0s"}
	for _, test := range []struct {
		name, script, hangup string
		after                int64 // seconds since the last event
		want                 []string
		notes                int
	}{
		{"the hangup comes", rings("CallerExtensionID=33334"), hangup, 5, queue, 1},
		{"the hangup came before", rings("CallerExtensionID=33334") + "\n700 9.9 hangup q Bridged=no CallerIDNum=+7999 Duration=10000000", "", 5, queue, 0},
		{"the hangup is lost", rings("CallerExtensionID=33334"), "", 30 * 60, direct, 1},
		{"that of another queue comes", rings("CallerExtensionID=33335"), hangup, 30 * 60, queue, 2},
		{"no queue", rings(""), "", 5, direct, 0},
		{"from a phone", rings("CallerExtensionID=33302"), "", 5, direct, 0},
		{"from an extension that is not in the table", rings("CallerExtensionID=33377"), "", 5, direct, 0},
		{"only its name", rings("CallerExtensionID=0003*700"), "", 5, direct, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.play(script(t, test.script))
			w.play(script(t, test.hangup))
			w.pass(test.after*1000 - 1)
			if len(w.records) > 0 {
				t.Fatalf("registered too early: %q", w.summary())
			}
			if w.pass(1); !slices.Equal(w.summary(), test.want) || w.timer != 0 {
				t.Errorf("%q, want %q", w.summary(), test.want)
			}
			if len(w.notes) != test.notes || test.notes > 0 && !strings.Contains(w.notes[0], "still be in 0003*70") {
				t.Errorf("notes %q", w.notes)
			}
		})
	}

	// Who was answered does not wait for anything.
	w := newWorld(t)
	w.play(script(t, `
		101 0 dial-in a CallerIDNum=+7999 CallerExtensionID=33334
		102 0 dial-in b CallerIDNum=+7999 CallerExtensionID=33334
		101 5 answer a CallFlow=in
		102 5 hangup b CallFlow=in CallStatus=CANCEL
		101 15 hangup a CallFlow=in Duration=10000000`))
	if w.pass(5000); w.timer != 0 || len(w.notes) > 0 {
		t.Errorf("answered, but %q, the timer is due at %d", w.notes, w.timer)
	}
}

// TestStarted: a callback that callrelay started is an ordinary outgoing call (P13), with its card.
func TestStarted(t *testing.T) {
	for _, late := range []bool{false, true} {
		w := newWorld(t)
		started := Input{Started: "x"}
		if !late {
			w.decide(started)
		}
		w.play(script(t, `101 0 dial-out a CalledNumber=+7999 CallBackID=x`))
		if late {
			w.decide(started)
		}
		if c := w.cards["a"]; c.State != CardRinging {
			t.Errorf("late %v: %+v", late, c)
		}
		w.play(script(t, `
			101 1 answer a CallFlow=out CallBackID=x
			102 1 dial-in b CallerIDNum=+7999 CallBackID=x
			102 1 answer b CallFlow=in
			102 11 hangup b CallFlow=in Duration=10000000
			101 11 hangup a CallFlow=out CallBackID=x CalledNumber=+7999 Duration=10000000`))
		w.settle()
		if want := []string{"in answered 0003*102 +7999 10s u102", "out answered 0003*101 +7999 10s u101"}; !slices.Equal(w.summary(), want) {
			t.Errorf("late %v: %q, want %q", late, w.summary(), want)
		}
	}
}

// TestHistory: what events did not say is asked at most three times, after 1, 10 and 60 minutes (P15).
func TestHistory(t *testing.T) {
	const lost = `
		101 0 dial-in a CallerIDNum=+7999
		101 5 answer a CallFlow=in`
	w := newWorld(t, withHistory)
	w.play(script(t, lost))
	var at []int64
	for w.timer != 0 {
		asked := len(w.asks)
		w.pass(w.timer - w.now)
		if len(w.asks) > asked {
			at = append(at, (w.now-epoch)/1000-5-14400-5)
		}
	}
	if want := []int64{60, 600, 3600}; !slices.Equal(at, want) || len(w.records) > 0 {
		t.Errorf("asked %v s after the call was settled, want %v; registered %q", at, want, w.summary())
	}
	if !slices.Contains(w.said, "P15 unreconciled: it never hung up a") {
		t.Errorf("said %q", w.said)
	}

	w = newWorld(t, withHistory)
	w.play(script(t, lost))
	for len(w.asks) == 0 && w.timer != 0 {
		w.pass(w.timer - w.now)
	}
	w.decide(Input{History: []HistoryLeg{{ExtensionID: "33301", Flow: "in", Answered: true, DurationUS: 7_600_000, RecordID: "rec"}}})
	w.settle()
	if want := []string{"in answered 0003*101 +7999 8s u101 reconciled"}; !slices.Equal(w.summary(), want) || len(w.asks) != 1 {
		t.Errorf("%q, want %q after 1 of %d tries; said %q", w.summary(), want, len(w.asks), w.said)
	}

	// A lost answer, and a history that denies it; the missed call waits for that.
	w = newWorld(t, withHistory)
	w.play(script(t, `
		101 0 dial-in a CallerIDNum=+7999
		101 15 hangup a CallFlow=in Duration=10000000
		700 15 hangup q Bridged=no CallerIDNum=+7999 Duration=15000000`))
	w.pass(60_000)
	if len(w.records) > 0 {
		t.Errorf("%q before the history answered", w.summary())
	}
	for len(w.asks) == 0 && w.timer != 0 {
		w.pass(w.timer - w.now)
	}
	if len(w.asks) == 0 {
		t.Fatal("the history was not asked")
	}
	w.decide(Input{History: []HistoryLeg{{ExtensionID: "33301", Flow: "in"}}})
	w.settle()
	if want := []string{"in missed 0003*700 +7999 0s"}; !slices.Equal(w.summary(), want) {
		t.Errorf("%q, want %q", w.summary(), want)
	}

	// A history that cannot be matched is not used.
	w = newWorld(t, withHistory)
	w.play(script(t, lost))
	for len(w.asks) == 0 && w.timer != 0 {
		w.pass(w.timer - w.now)
	}
	w.decide(Input{History: []HistoryLeg{{ExtensionID: "33301", Flow: "in", Answered: true}, {ExtensionID: "33301", Flow: "in"}}})
	w.settle()
	if len(w.records) > 0 || len(w.asks) != 3 {
		t.Errorf("%q after %d tries", w.summary(), len(w.asks))
	}
}

// TestLateRecording: an extension that usually records is asked for after 5, 30 and 120 minutes (P16).
func TestLateRecording(t *testing.T) {
	talk := script(t, `
		101 0 dial-in a CallerIDNum=+7999
		101 5 answer a CallFlow=in
		101 15 hangup a CallFlow=in Duration=10000000`)
	play := func(w *world, want ...bool) {
		for i, e := range talk {
			w.pass(max(0, e.AtUS/1000-w.now))
			w.decide(Input{RequestID: "r", ReceivedMS: w.now, Event: &e.PbxEvent, ExtensionID: "33301", Extension: e.on, Type: Phone, WantRecording: want[min(i, len(want)-1)]})
		}
	}
	w := newWorld(t, withHistory)
	play(w, true)
	if len(w.records) != 1 {
		t.Fatalf("the registration waits for the recording: %q", w.said)
	}
	var at []int64
	for w.timer != 0 {
		asked := len(w.asks)
		w.pass(w.timer - w.now)
		if len(w.asks) > asked {
			at = append(at, (w.now-epoch)/1000-15)
		}
	}
	if want := []int64{300, 1800, 7200}; !slices.Equal(at, want) || !slices.Contains(w.said, "P16 unreconciled: an answered leg has no recording") {
		t.Errorf("asked %v s after the registration, want %v; said %q", at, want, w.said)
	}

	w = newWorld(t, withHistory)
	play(w, true)
	for len(w.asks) == 0 && w.timer != 0 {
		w.pass(w.timer - w.now)
	}
	w.decide(Input{History: []HistoryLeg{{ExtensionID: "33301", Flow: "in", Answered: true, DurationUS: 1, RecordID: "rec"}}})
	w.settle()
	if want := (recording{"acme", "call", "a", "rec"}); len(w.recordings) != 1 || w.recordings[0] != want || len(w.records) != 1 || len(w.asks) != 1 {
		t.Errorf("%+v, want %+v; %d tries", w.recordings, want, len(w.asks))
	}

	w = newWorld(t, withHistory)
	play(w, false)
	if w.settle(); len(w.asks) > 0 {
		t.Errorf("asked for a recording of an extension that gives none")
	}

	w = newWorld(t, withHistory)
	play(w, true, false) // a router that was restarted meanwhile does not know
	if w.settle(); len(w.asks) == 0 {
		t.Errorf("forgot that a recording was expected")
	}

	w, talk = newWorld(t, withHistory), script(t, `
		101 0 dial-out a CalledNumber=+7999
		101 5 hangup a CallFlow=out CalledNumber=+7999 CallStatus=BUSY`)
	play(w, true)
	if w.settle(); len(w.records) != 1 || len(w.asks) > 0 {
		t.Errorf("asked for the recording of a call that nobody answered; %q", w.said)
	}
}

// TestFacts: identifiers, times and what cannot be used.
func TestFacts(t *testing.T) {
	w := newWorld(t)
	w.send(parse(t, "700 0 dial-in q CallerIDNum=+7999"))
	if len(w.call.Legs) != 0 || len(w.notes) != 1 {
		t.Errorf("a queue's dial-in: %+v %q", w.call, w.notes)
	}
	first := parse(t, "101 0 dial-in a CallerIDNum=+7999")
	first.AtUS = 0 // no EventTime: it counts from when it was received
	w.send(first)
	if w.call.Legs[0].Dial.AtUS != epoch*1000 {
		t.Errorf("%+v", w.call.Legs[0].Dial)
	}
	w.pass(10)
	if e := w.send(first); !e.Duplicate || e.Changed || len(e.Facts) != 1 || e.Facts[0] != Fact(Duplicate{Of: "r2", Key: "dial a"}) {
		t.Errorf("its repeat: %+v", e)
	}
	w.send(parse(t, "102 0 answer a CallFlow=in"))
	if len(w.call.Legs) != 1 || w.call.Legs[0].Answer.seen() || len(w.notes) != 2 {
		t.Errorf("another extension's event of the leg: %+v %q", w.call.Legs, w.notes)
	}
	w.send(parse(t, "101 0 dial-in a CallerIDNum=+7998"))
	if got := w.call.Legs[0].Dial.Caller; got != "+7998" || !strings.Contains(w.notes[2], "other content") {
		t.Errorf("a differing repeat: %q %q", got, w.notes)
	}
	w.send(parse(t, "101 0 dial-in a CallerIDNum=+7999")) // whichever comes last
	if got := w.call.Legs[0].Dial.Caller; got != "+7998" {
		t.Errorf("the order of differing repeats matters: %q", got)
	}
	w.settle()
}

// TestManyLegs: a queue that rings for long does not make a call grow for ever, and its missed call is not lost.
func TestManyLegs(t *testing.T) {
	w := newWorld(t)
	for i := range 300 {
		w.play(script(t, fmt.Sprintf(`
			101 %d dial-in a%d CallerIDNum=+7999
			101 %d.5 hangup a%d CallFlow=in CallerIDNum=+7999 CallStatus=CANCEL`, i, i, i, i)))
	}
	if n := len(w.call.Legs); n != keepLegs {
		t.Errorf("%d legs are kept", n)
	}
	w.settle()
	if want := "P18 registered as missed on 0003*101 a0"; !slices.Contains(w.said, want) {
		t.Errorf("nothing says %s", want)
	}

	copies := func(w *world, legs int) {
		for i := 1; len(w.call.Legs) < legs; i++ {
			l := w.call.Legs[0]
			l.SubCallID = fmt.Sprint("a", i)
			w.call.Legs = append(w.call.Legs, l)
		}
	}
	w = newWorld(t)
	w.send(parse(t, "104 0 dial-out a0 CalledNumber=+7999")) // 104 has no user, so no cards
	copies(w, maxLegs-1)
	for i := maxLegs - 1; i < maxLegs+10; i++ {
		w.send(parse(t, fmt.Sprintf("104 %d dial-out a%d CalledNumber=+7999", i, i)))
	}
	if n := len(w.call.Legs); n != maxLegs || len(w.notes) != 10 {
		t.Errorf("%d legs, %d notes", n, len(w.notes))
	}

	// Losers that may have answered are kept as long as there is room, and not at the price of who answers.
	w = newWorld(t)
	w.play(script(t, "101 0 dial-in a0 CallerIDNum=+7999\n101 1 hangup a0 CallFlow=in CallerIDNum=+7999"))
	w.play(script(t, "102 2 dial-in first CallerIDNum=+7999\n102 3 answer first CallFlow=in\n102 4 hangup first CallFlow=in Duration=1000000"))
	copies(w, maxLegs-2)
	for i := maxLegs; i < maxLegs+10; i++ {
		w.send(parse(t, fmt.Sprintf("101 %d dial-in a%d CallerIDNum=+7999", 20+i, i)))
		w.send(parse(t, fmt.Sprintf("101 %d hangup a%d CallFlow=in CallerIDNum=+7999", 21+i, i)))
	}
	w.play(script(t, "102 600 dial-in z CallerIDNum=+7999\n102 602 answer z CallFlow=in\n102 660 hangup z CallFlow=in CallerIDNum=+7999 Duration=58000000"))
	w.settle()
	if want := []string{"in answered 0003*102 +7999 1s u102", "in answered 0003*102 +7999 58s u102"}; !slices.Equal(w.summary(), want) || len(w.notes) > 0 {
		t.Errorf("%q, want %q; %d notes", w.summary(), want, len(w.notes))
	}
	for _, leg := range []string{"a0", "first", "z", fmt.Sprint("a", maxLegs+9)} {
		if !slices.ContainsFunc(w.call.Legs, func(l Leg) bool { return l.SubCallID == leg }) {
			t.Errorf("%s was forgotten", leg)
		}
	}
	if n := len(w.call.Legs); n != maxLegs-1 {
		t.Errorf("%d legs are kept", n)
	}
}

func TestConfig(t *testing.T) {
	bad := Config{Prefix: "12", ExtensionLen: 5}
	err := bad.Check()
	for _, want := range []string{"must have an id", "destination is required", "prefix must be", "extension_len must be", "PBX_GRACE", "PBX_MAX_RING", "PBX_MAX_TALK", "PBX_MAX_WAIT"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}
