package callback

import (
	"errors"
	"strings"
	"testing"
)

func TestDecodePbxEvent(t *testing.T) {
	const ids = "CallID=c&SubCallID=s&"
	base := PbxEvent{CallID: "c", SubCallID: "s"}
	for _, test := range []struct {
		query string
		want  func(*PbxEvent)
		notes int
	}{
		{"EventType=dial-in", func(e *PbxEvent) { e.Kind, e.Flow = PbxDial, PbxIn }, 0},
		{"EventType=DIAL_OUT&CallFlow=IN", func(e *PbxEvent) { e.Kind, e.Flow = PbxDial, PbxOut }, 0},
		{"eventtype=Answer&CALLFLOW=OUT", func(e *PbxEvent) { e.Kind, e.Flow = PbxAnswer, PbxOut }, 0},
		{"EventType=hangup&CallFlow=sideways", func(e *PbxEvent) { e.Kind = PbxHangup }, 1},
		{"EventType=hangup&CallStatus=busy&callstatus=Cancel", func(e *PbxEvent) { e.Kind, e.Status = PbxHangup, "CANCEL" }, 0},
		{"EventType=hangup&CallerIDNum=0003*101%40pbx.example.net&CalledNumber=%2B7999", func(e *PbxEvent) {
			e.Kind, e.Caller, e.Called = PbxHangup, "0003*101", "+7999"
		}, 0},
		{"EventType=hangup&Bridged=YES&transferred=Yes&RecID=r", func(e *PbxEvent) {
			e.Kind, e.Bridged, e.Transfered, e.RecordID = PbxHangup, "yes", true, "r"
		}, 0},
		{"EventType=hangup&Bridged=maybe&Transfered=no", func(e *PbxEvent) { e.Kind = PbxHangup }, 1},
		{"EventType=hangup&Duration=83479977", func(e *PbxEvent) { e.Kind, e.HasDuration, e.DurationUS = PbxHangup, true, 83479977 }, 0},
		{"EventType=hangup&Duration=0", func(e *PbxEvent) { e.Kind, e.HasDuration = PbxHangup, true }, 0},
		{"EventType=hangup&Duration=", func(e *PbxEvent) { e.Kind = PbxHangup }, 0},
		{"EventType=hangup&Duration=-1", func(e *PbxEvent) { e.Kind = PbxHangup }, 1},
		{"EventType=hangup&Duration=1.5", func(e *PbxEvent) { e.Kind = PbxHangup }, 1},
		{"EventType=hangup&Duration=99999999999999999999", func(e *PbxEvent) { e.Kind = PbxHangup }, 1},
		{"EventType=hangup&CallerIDNum=" + strings.Repeat("9", 257), func(e *PbxEvent) { e.Kind = PbxHangup }, 1},
		{"EventType=hangup&RecID=a&RecID=b", func(e *PbxEvent) { e.Kind, e.RecordID = PbxHangup, "b" }, 0},
	} {
		want := base
		test.want(&want)
		e, err := DecodePbxEvent(ParseQuery(ids + test.query))
		if err != nil || len(e.Notes) != test.notes {
			t.Errorf("%s: %v, notes %q, want %d", test.query, err, e.Notes, test.notes)
		}
		e.Notes = nil
		if !equalPbx(e, want) {
			t.Errorf("%s:\n%+v, want\n%+v", test.query, e, want)
		}
	}
}

func equalPbx(a, b PbxEvent) bool {
	a.Notes, b.Notes = nil, nil
	return strings.Join([]string{a.Kind, a.CallID, a.SubCallID, a.Flow, a.Status, a.Caller, a.Called, a.Remote, a.DID, a.CallBackID, a.Bridged, a.RecordID, a.Agent, a.AgentStatus}, "|") ==
		strings.Join([]string{b.Kind, b.CallID, b.SubCallID, b.Flow, b.Status, b.Caller, b.Called, b.Remote, b.DID, b.CallBackID, b.Bridged, b.RecordID, b.Agent, b.AgentStatus}, "|") &&
		a.AtUS == b.AtUS && a.Transfered == b.Transfered && a.HasDuration == b.HasDuration && a.DurationUS == b.DurationUS
}

func TestPbxEventTime(t *testing.T) {
	for value, want := range map[string]int64{
		"1767000010119000":              1767000010119000,
		"1767000010":                    1767000010000000,
		"1767000010.119":                1767000010119000,
		"1767000010119":                 1767000010119000,
		"1767000010119000123":           1767000010119000,
		"2025-12-29T09:20:10Z":          1767000010000000,
		"2025-12-29T12:20:10.119+03:00": 1767000010119000,
		"2025-12-29 12:20:10 03:00":     1767000010000000,
		"2025-12-29 09:20:10":           1767000010000000,
		"0":                             0,
		"12":                            0,
		"yesterday":                     0,
		"2025-12-29":                    0,
		"99999999999999999999":          0,
		"-1767000010119000":             0,
		"1767000010.":                   0,
		"":                              0,
	} {
		e, err := DecodePbxEvent(Params{{"EventType", "answer"}, {"CallID", "c"}, {"SubCallID", "s"}, {"EventTime", value}})
		if err != nil || e.AtUS != want || (len(e.Notes) > 0) != (want == 0 && value != "") {
			t.Errorf("%q is %d, %v, %q; want %d", value, e.AtUS, err, e.Notes, want)
		}
	}
}

func TestPbxEventRefused(t *testing.T) {
	for query, field := range map[string]string{
		"":                              "EventType",
		"EventType=answer":              "CallID",
		"EventType=answer&CallID=c":     "SubCallID",
		"EventType=answer&SubCallID=s":  "CallID",
		"EventType=message-in&CallID=c": "EventType",
		"CallID=c&SubCallID=s":          "EventType",
		"EventType=hangup&SubCallID=s&CallID=" + strings.Repeat("x", 129): "CallID",
		"EventType=hangup&SubCallID=s&CallID=a%09b":                       "CallID",
		"EventType=hangup&CallID=c&SubCallID=a%09b":                       "SubCallID",
		"EventType=hangup&CallID=c&SubCallID=a%7Fb":                       "SubCallID",
	} {
		e, err := DecodePbxEvent(ParseQuery(query))
		var refusal *FieldError
		if !errors.As(err, &refusal) || refusal.Field != field {
			t.Errorf("%s: %v, want field %s", query, err, field)
		}
		if strings.Contains(query, "CallID=c") && strings.Contains("&"+query, "&CallID=c") && e.CallID != "c" {
			t.Errorf("%s: the call is lost: %+v", query, e)
		}
	}
	e, err := DecodePbxEvent(ParseQuery("EventType=agent-login&agent_id=7&agent_status=available"))
	if err != nil || e.Kind != PbxAgentLogin || e.Agent != "7" || e.AgentStatus != "available" {
		t.Errorf("agent: %+v, %v", e, err)
	}
}

func TestPbxSeconds(t *testing.T) {
	for us, want := range map[int64]int64{0: 0, 499_999: 0, 500_000: 1, 7_529_999: 8, 83_479_977: 83, 18_500_000: 19} {
		if got := PbxSeconds(us); got != want {
			t.Errorf("%d us are %d s, want %d", us, got, want)
		}
	}
}

func FuzzDecodePbxEvent(f *testing.F) {
	f.Add("EventType=hangup&CallID=c&SubCallID=s&EventTime=1767000010119000&Duration=12&Bridged=no")
	f.Add("eventTYPE=dial_in&callid=%00%ff&subcallid=%09&EventTime=2025-12-29T12:20:10+03:00&CallerIDNum=@@")
	f.Fuzz(func(t *testing.T, raw string) {
		params := ParseQuery(raw)
		e, err := DecodePbxEvent(params)
		var refusal *FieldError
		if err != nil && (!errors.As(err, &refusal) || refusal.Field == "" || !strings.HasPrefix(refusal.Message, refusal.Field)) {
			t.Errorf("%q: %v", raw, err)
		}
		agent := e.Kind == PbxAgentLogin || e.Kind == PbxAgentLogout
		if err == nil && (e.Kind == "" || !agent && (e.CallID == "" || e.SubCallID == "")) {
			t.Errorf("%q: %+v", raw, e)
		}
		if len(e.CallID) > maxPbxID || len(e.SubCallID) > maxPbxID || e.DurationUS < 0 || e.AtUS < 0 || len(e.Caller) > maxValue {
			t.Errorf("%q: out of bounds %+v", raw, e)
		}
		// What is kept of an event is read as what the PBX sent.
		if again, _ := DecodePbxEvent(ParseQuery(PbxParams(params).Encode())); !equalPbx(e, again) {
			t.Errorf("%q: encoded it reads\n%+v, before\n%+v", raw, again, e)
		}
		if key := PbxCallKey("acme", e.CallID); strings.ContainsAny(strings.TrimPrefix(key, "pbx/acme/"), "/\t\n {}") {
			t.Errorf("%q: key %q", raw, key)
		}
	})
}
