package router

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"callrelay/callback"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/services/router/kommo"
	"callrelay/services/router/pbx"
)

// TestPbxMessages: what is registered of a PBX call is logged once in each account, and nothing else is.
func TestPbxMessages(t *testing.T) {
	config := pbx.DefaultConfig()
	config.Integration, config.Destination, config.Prefix, config.ExtensionLen, config.KeepLocal = "acme", "webhook:acme", "0003", 3, true
	config.Users = map[string]string{"0003*101": "8800123", "0003*102": "", "0003*103": "ann", "0003*104": "99999999999999999999", "0003*700": ""}
	const leg, client = "33301-a1", "+79990000001"
	began := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	event := func(kind, extension, kindOf, more string) string {
		return "EventType=" + kind + "&CallID=c1&SubCallID=" + leg + "&ext=" + extension + "&type=" + kindOf + "&" + more
	}
	const in, out = "CallerIDNum=" + "%2B79990000001" + "&CalledDID=78120000001&", "CalledNumber=%2B79990000001&"
	talk := func(extension, dial, numbers string) []string {
		return []string{event(dial, extension, "phone", numbers), event("answer", extension, "phone", numbers+"CallStatus=ANSWER"),
			event("hangup", extension, "phone", numbers+"CallStatus=ANSWER&Duration=83479977")}
	}
	for name, test := range map[string]struct {
		events []string
		id     string
		want   *kommo.Facts
	}{
		"answered": {talk("0003*101", "dial-in", in+"CalledNumber=0003*101&"), leg,
			&kommo.Facts{Direction: kommo.Inbound, Phone: client, Duration: 83, Status: kommo.StatusAnswered, StartedMS: began.UnixMilli(), User: 8800123, DID: "78120000001"}},
		"nobody is mapped": {talk("0003*102", "dial-in", in+"CalledNumber=0003*102&"), leg,
			&kommo.Facts{Direction: kommo.Inbound, Phone: client, Duration: 83, Status: kommo.StatusAnswered, StartedMS: began.UnixMilli(), UserName: "0003*102", DID: "78120000001"}},
		"out, a user of another CRM": {talk("0003*103", "dial-out", out+"CallerIDNum=0003*103&"), leg,
			&kommo.Facts{Direction: kommo.Outbound, Phone: client, Duration: 83, Status: kommo.StatusAnswered, StartedMS: began.UnixMilli(), UserName: "ann"}},
		"a user whose number is too large": {talk("0003*104", "dial-out", out+"CallerIDNum=0003*104&"), leg,
			&kommo.Facts{Direction: kommo.Outbound, Phone: client, Duration: 83, Status: kommo.StatusAnswered, StartedMS: began.UnixMilli(), UserName: "99999999999999999999"}},
		"busy": {[]string{event("dial-out", "0003*103", "phone", out+"CallerIDNum=0003*103"), event("hangup", "0003*103", "phone", out+"CallerIDNum=0003*103&CallStatus=BUSY&Duration=0")}, leg,
			&kommo.Facts{Direction: kommo.Outbound, Phone: client, Status: kommo.StatusBusy, StartedMS: began.UnixMilli(), UserName: "ann"}},
		"missed": {[]string{event("hangup", "0003*700", "queue", in+"CallStatus=ANSWER&Bridged=no&Duration=5000000")}, "missed:c1",
			&kommo.Facts{Direction: kommo.Inbound, Phone: client, Status: kommo.StatusNoAnswer, StartedMS: began.Add(-5 * time.Second).UnixMilli(), DID: "78120000001"}},
		"between extensions": {talk("0003*101", "dial-in", "CallerIDNum=0003*102&CalledNumber=0003*101&"), "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			if err := config.Check(); err != nil {
				t.Fatal(err)
			}
			var call pbx.Call
			var got []*statev1.Message
			registered := 0
			now := began.UnixMilli()
			decide := func(in pbx.Input) {
				next, effects := pbx.Decide(&config, call, in, now)
				messages, err := routes{"pbx/acme": {1, 2}, "pbx/other": {3}, "ameyo": {4}}.pbxMessages("pbx/acme/c1", &config, effects, "trace")
				if err != nil {
					t.Fatal(err)
				}
				if none, err := (routes{"ameyo": {4}}).pbxMessages("pbx/acme/c1", &config, effects, "trace"); err != nil || none != nil {
					t.Errorf("not routed: %v %v", none, err)
				}
				call, got, registered = next, append(got, messages...), registered+len(effects.Deliveries)
			}
			for range 2 { // each event comes twice
				for _, text := range test.events {
					params := callback.ParseQuery(text)
					e, err := callback.DecodePbxEvent(params)
					if err != nil {
						t.Fatal(err)
					}
					decide(pbx.Input{RequestID: "r1", ReceivedMS: now, Event: &e, ExtensionID: "1", Extension: params.Get("ext"), Type: params.Get("type")})
				}
			}
			now += time.Minute.Milliseconds()
			decide(pbx.Input{Timer: pbx.TimerName, ReceivedMS: now})
			var want []*statev1.Message
			if test.want != nil {
				body, err := kommoMessage(kommo.Input{RequestID: "r1", Traceparent: "trace", Voip: &kommo.Voip{Facts: *test.want}})
				if err != nil {
					t.Fatal(err)
				}
				want = []*statev1.Message{{Id: "pbx/acme/c1>" + test.id + ">1", To: "kommo/1/" + test.id, Body: body}, {Id: "pbx/acme/c1>" + test.id + ">2", To: "kommo/2/" + test.id, Body: body}}
			}
			if registered != 1 {
				t.Errorf("%d registrations", registered)
			}
			if !reflect.DeepEqual(texts(got), texts(want)) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(texts(got), "\n"), strings.Join(texts(want), "\n"))
				for _, m := range got {
					in, _ := kommoMessageInput(m.GetBody())
					t.Logf("%+v", in.Voip)
				}
			}
		})
	}
}

// TestPbxReportID: no control character gets into a key, where a tab ends the call. All other ids stay as they are, and different
// ones stay different.
func TestPbxReportID(t *testing.T) {
	for id, want := range map[string]string{
		"33301-a1":       "33301-a1",
		"a.b_c~d":        "a.b_c~d",
		"1a2b@10.0.0.1":  "1a2b@10.0.0.1",
		"sip:a b/c+d{e}": "sip:a b/c+d{e}",
		"a\tb":           "a%09b",
		"a%09b":          "a%2509b",
		"a@\x00":         "a%40%00",
	} {
		var r pbxRegistration
		r.Data.CallID, r.Data.SubCallID = id, id
		if got, _ := pbxReport(&r); got != want {
			t.Errorf("%q is %q, want %q", id, got, want)
		}
		r.Data.Missed = true
		if got, _ := pbxReport(&r); got != "missed:"+want {
			t.Errorf("%q, missed, is %q", id, got)
		}
	}
}

func texts(messages []*statev1.Message) (out []string) {
	for _, m := range messages {
		text, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		out = append(out, string(text))
	}
	return out
}
