package router

import (
	"reflect"
	"strings"
	"testing"

	"callrelay/callback"
	"callrelay/services/router/ameyo"
	"callrelay/services/router/kommo"
)

func TestParseRoutes(t *testing.T) {
	for text, want := range map[string]routes{
		"":                         {},
		" ; ":                      {},
		"ameyo=kommo/9001":         {"ameyo": {9001}},
		"ameyo = kommo/1, kommo/2": {"ameyo": {1, 2}},
		"pbx/acme=kommo/1; pbx/b-2=kommo/1;ameyo=kommo/1": {"pbx/acme": {1}, "pbx/b-2": {1}, "ameyo": {1}},
	} {
		if got, err := parseRoutes(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v %v, want %v", text, got, err, want)
		}
	}
	_, err := parseRoutes("dialer=kommo/1;pbx=kommo/1;pbx/A=kommo/1;ameyo;ameyo=topsii,kommo/0,kommo/x;ameyo=kommo/1,kommo/1;ameyo=kommo/2")
	if err == nil {
		t.Fatal("it was accepted")
	}
	for _, part := range []string{`"dialer=kommo/1"`, `"pbx=kommo/1"`, `"pbx/A=kommo/1"`, `"ameyo"`, `"topsii"`, `"kommo/0"`, `"kommo/x"`, `target "kommo/1"`, "ameyo is routed already"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s is not named in: %v", part, err)
		}
	}
}

// TestAmeyoMessages: what the dialer's rules decide to be over is logged once, and nothing else is.
func TestAmeyoMessages(t *testing.T) {
	const received = 1795173865000 // 2026-11-20 20:24:25 in Tokyo
	zone := callback.DefaultZone()
	run := func(queries ...string) []kommo.Message {
		call, effects, end := ameyo.Call{}, ameyo.Effects{}, callback.CallEnd{}
		for _, query := range queries {
			var err error
			if end, err = callback.DecodeCallEnd(callback.ParseQuery("unique_id=193421&customerId=5502&customerCRTId=a1&dialledPhone=08011112222&"+query), callback.Options{}); err != nil {
				t.Fatal(err)
			}
			call, effects = ameyo.Decide(ameyo.DefaultConfig(), call, ameyo.Input{RequestID: "r1", ReceivedMS: received, CallEnd: &end}, received)
		}
		return routes{"ameyo": {1, 2}}.ameyoMessages(&input{call: "ameyo/193421", ameyo: ameyo.Input{CallEnd: &end}}, effects, received, zone)
	}
	const two = `&phoneList={"phoneList":["08011112222","08099366675"]}`
	const one = `&phoneList={"phoneList":["08011112222"]}`
	for _, test := range []struct {
		what    string
		queries []string
		want    *kommo.Facts
	}{
		{"connected", []string{"systemDisposition=CONNECTED&userId=u1&cstmPhone=08099366675&callConnectedTime=2026/11/20+20:20:25++0900&shareablePhonesDialIndex=0" + one},
			&kommo.Facts{Direction: kommo.Outbound, Phone: "08011112222", Duration: 240, Status: kommo.StatusAnswered, StartedMS: received - 240_000, UserName: "u1"}},
		{"connected, no times", []string{"systemDisposition=CONNECTED&userId=u1&cstmPhone=08099366675&shareablePhonesDialIndex=0" + one},
			&kommo.Facts{Direction: kommo.Outbound, Phone: "08011112222", Status: kommo.StatusAnswered, StartedMS: received, UserName: "u1"}},
		{"busy", []string{"systemDisposition=BUSY&shareablePhonesDialIndex=0" + one},
			&kommo.Facts{Direction: kommo.Outbound, Phone: "08011112222", Status: kommo.StatusBusy, StartedMS: received}},
		{"no such number, by its cause", []string{"hangupCauseCode=404&shareablePhonesDialIndex=0" + one},
			&kommo.Facts{Direction: kommo.Outbound, Phone: "08011112222", Status: kommo.StatusWrongNumber, StartedMS: received}},
		{"phone 2 follows", []string{"systemDisposition=BUSY&shareablePhonesDialIndex=0" + two}, nil},
		{"phone 2 after a busy phone 1", []string{"systemDisposition=BUSY&shareablePhonesDialIndex=0" + two, "customerCRTId=a2&systemDisposition=NO_ANSWER&shareablePhonesDialIndex=1&dialledPhone=08099366675" + two},
			&kommo.Facts{Direction: kommo.Outbound, Phone: "08099366675", Status: kommo.StatusNoAnswer, StartedMS: received}},
		{"a repeat", []string{"systemDisposition=BUSY&shareablePhonesDialIndex=0" + one, "systemDisposition=BUSY&shareablePhonesDialIndex=0" + one}, nil},
	} {
		var want []kommo.Message
		if test.want != nil {
			in := kommo.Input{Voip: &kommo.Voip{Facts: *test.want}}
			want = []kommo.Message{{ID: "ameyo/193421>r1>1", To: "kommo/1/ameyo:193421", Input: in}, {ID: "ameyo/193421>r1>2", To: "kommo/2/ameyo:193421", Input: in}}
		}
		got := run(test.queries...)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n%+v\nwant\n%+v", test.what, got, want)
			for _, m := range got {
				t.Errorf("%+v", m.Input.Voip)
			}
		}
	}
}
