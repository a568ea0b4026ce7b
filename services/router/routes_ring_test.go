package router

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"callrelay/callback"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/services/router/kommo"
	"callrelay/services/router/pbx"
)

// TestRingMessages: a phone that begins to ring shows one card to the Kommo user of its extension, in each account that is connected and
// wants it; nobody else sees one, and none comes when the ringing is over.
func TestRingMessages(t *testing.T) {
	config := pbx.DefaultConfig()
	config.Integration, config.Destination, config.Prefix, config.ExtensionLen, config.KeepLocal = "acme", "webhook:acme", "0003", 3, true
	config.Users = map[string]string{"0003*101": "8800123", "0003*102": "", "0003*103": "ann", "0003*104": "99999999999999999999", "0003*105": "-7"}
	if err := config.Check(); err != nil {
		t.Fatal(err)
	}
	e, _ := newTestEngine(t)
	connected(t, e)
	known := *e.kommo.accounts.Load()
	off := *known[9001].rules
	off.AccountID, off.PopupMaxAge = 9004, 0
	other := *known[9001].rules
	other.AccountID = 9005
	known[9004], known[9005] = kommoAccount{rules: &off}, kommoAccount{rules: &other}
	e.kommo.routes = routes{"pbx/acme": {9001, 9002, 9003, 9004, 9005}} // 9002 has settings that cannot be used, 9003 is not connected

	const in, client = "CallerIDNum=%2B79990000001&", "+79990000001"
	event := func(kind, extension, more string) string {
		return "EventType=" + kind + "&CallID=c1&SubCallID=33301-a1&ext=" + extension + "&" + more
	}
	ring := event("dial-in", "0003*101", in)
	answer, hangup := event("answer", "0003*101", in+"CallFlow=in&CallStatus=ANSWER"), event("hangup", "0003*101", in+"CallFlow=in&CallStatus=CANCEL")
	for name, test := range map[string]struct {
		events []string
		shown  bool
	}{
		"rings":                            {[]string{ring}, true},
		"rings, all of it":                 {[]string{ring, answer, hangup}, true},
		"rings, and another repeat of it":  {[]string{ring, event("dial-in", "0003*101", "CallerIDNum=%2B79990000002")}, true},
		"answered before":                  {[]string{answer, ring}, false},
		"over before":                      {[]string{hangup, ring, answer}, false},
		"nobody is mapped":                 {[]string{event("dial-in", "0003*102", in)}, false},
		"a user of another CRM":            {[]string{event("dial-in", "0003*103", in)}, false},
		"a user whose number is too large": {[]string{event("dial-in", "0003*104", in)}, false},
		"no user's number":                 {[]string{event("dial-in", "0003*105", in)}, false},
		"out":                              {[]string{event("dial-out", "0003*101", "CalledNumber=%2B79990000001")}, false},
		"between extensions":               {[]string{event("dial-in", "0003*101", "CallerIDNum=0003*102")}, false},
		"withheld":                         {[]string{event("dial-in", "0003*101", "CallerIDNum=anonymous")}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var call pbx.Call
			var got []*statev1.Message
			now := int64(1_800_000_000_000)
			for i := range 2 * len(test.events) { // each event comes twice
				params := callback.ParseQuery(test.events[i/2])
				said, err := callback.DecodePbxEvent(params)
				if err != nil {
					t.Fatal(err)
				}
				next, effects := pbx.Decide(&config, call, pbx.Input{RequestID: "r1", ReceivedMS: now, Event: &said, ExtensionID: "1", Extension: params.Get("ext"), Type: pbx.Phone}, now)
				messages, err := e.kommo.ringMessages("pbx/acme/c1", &config, effects, "trace", now)
				if err != nil {
					t.Fatal(err)
				}
				call, got = next, append(got, messages...)
			}
			var want []*statev1.Message
			if test.shown {
				body, err := kommoMessage(kommo.Input{RequestID: "r1", Traceparent: "trace", ReceivedMS: now, Ringing: &kommo.Ringing{Phone: client, Users: []int64{8800123}}})
				if err != nil {
					t.Fatal(err)
				}
				for _, account := range []string{"9001", "9005"} {
					want = append(want, &statev1.Message{Id: "ring>pbx/acme/c1>33301-a1>" + account, To: "kommo/" + account + "/ring:33301-a1", Body: body})
				}
			}
			if !reflect.DeepEqual(texts(got), texts(want)) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(texts(got), "\n"), strings.Join(texts(want), "\n"))
			}
		})
	}
}

// A card is one delivery however often its message comes, of no use some seconds after the phone began to ring, and not kept for years.
func TestRing(t *testing.T) {
	e, f := newTestEngine(t)
	connected(t, e)
	const now = 1_000_000 // the fake state's clock
	for rang, left := range map[int64]int64{now: 10_000, now - 9_000: 1000, now - 10_000: 0} {
		body, err := kommoMessage(kommo.Input{RequestID: "r1", Traceparent: "trace", ReceivedMS: rang, Ringing: &kommo.Ringing{Phone: "1", Users: []int64{2}}})
		if err != nil {
			t.Fatal(err)
		}
		clear(f.calls)
		m := &statev1.Message{Id: "ring>c>a>9001", To: kommo.RingKey(9001, "a"), Body: body}
		for _, id := range []string{m.GetId(), m.GetId(), "another"} {
			m.Id = id
			if err := e.entry(t.Context(), "pbx/acme/c", &statev1.Entry{Timer: ">" + id, TimerId: "c1", Message: m}, nil); err != nil {
				t.Fatal(err)
			}
		}
		var got []*statev1.Delivery
		for _, c := range f.calls["kommo/9001/ring:a"].commits {
			if got = append(got, c.GetDeliveries()...); c.GetRetentionMs() != 0 {
				t.Errorf("kept for %v", time.Duration(c.GetRetentionMs())*time.Millisecond)
			}
		}
		switch {
		case left == 0 && len(got) == 0:
		case len(got) != 1 || got[0].GetMaxAgeMs() != left || got[0].GetRequestId() != "r1" || got[0].GetTraceparent() != "trace" || got[0].GetResultWanted():
			t.Errorf("rang %d ms ago: %v", now-rang, got)
		}
	}
}
