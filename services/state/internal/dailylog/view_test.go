package dailylog

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"callrelay/callback"
	statev1 "callrelay/gen/callrelay/state/v1"
)

// evening is 2026-11-20 20:24:24 in Tokyo.
var evening = time.Date(2026, 11, 20, 11, 24, 24, 0, time.UTC).UnixMilli()

const (
	trace       = "4bf92f3577b34da6a3ce929d0e0e4736"
	traceparent = "00-" + trace + "-00f067aa0ba902b7-01"
)

// entry is a journal entry of request R1 in the evening.
func entry(fact any) *statev1.JournalEntry {
	e := &statev1.JournalEntry{AtMs: evening, RequestId: "R1"}
	switch f := fact.(type) {
	case *statev1.Received:
		e.Fact = &statev1.JournalEntry_Received{Received: f}
	case *statev1.Decided:
		e.Fact = &statev1.JournalEntry_Decided{Decided: f}
	case *statev1.Rejected:
		e.Fact = &statev1.JournalEntry_Rejected{Rejected: f}
	case *statev1.Duplicate:
		e.Fact = &statev1.JournalEntry_Duplicate{Duplicate: f}
	case *statev1.Attempt:
		e.Fact = &statev1.JournalEntry_Attempt{Attempt: f}
	case *statev1.Ended:
		e.Fact = &statev1.JournalEntry_Ended{Ended: f}
	case *statev1.Phone1Fact:
		e.Fact = &statev1.JournalEntry_Phone1{Phone1: f}
	case *statev1.Action:
		e.Fact = &statev1.JournalEntry_Action{Action: f}
	case *statev1.Undecided:
		e.Fact = &statev1.JournalEntry_Undecided{Undecided: f}
	case string:
		e.Fact = &statev1.JournalEntry_Note{Note: f}
	}
	return e
}

// commit is a commit of call 193416 that R1 caused.
func commit(deliveries []*statev1.Delivery, facts ...any) *statev1.CommitItem {
	journal := &statev1.Journal{}
	for _, f := range facts {
		journal.Entries = append(journal.Entries, entry(f))
	}
	b, err := proto.Marshal(journal)
	if err != nil {
		panic(err)
	}
	return &statev1.CommitItem{Call: "ameyo/193416", Journal: b, Deliveries: deliveries}
}

func result(a *statev1.Attempt) *statev1.LeaseResult {
	return &statev1.LeaseResult{Call: "ameyo/193416", Delivery: 1, RequestId: "R1", Attempt: a}
}

func start(query string) *statev1.Received {
	return &statev1.Received{Source: "ameyo.call_start", Query: []byte(query), Peer: "192.0.2.10", TraceId: trace}
}

func end(query string) *statev1.Received {
	return &statev1.Received{Source: "ameyo.call_end", Query: []byte(query), Peer: "192.0.2.10"}
}

func delivery(endpoint, payload string) []*statev1.Delivery {
	return []*statev1.Delivery{{Number: 1, Endpoint: endpoint, Payload: []byte(payload), RequestId: "R1"}}
}

func decided(rule, flow string) *statev1.Decided { return &statev1.Decided{Rule: rule, Flow: flow} }

const (
	startPayload = `{"predictiveCallCreateCallStart":{"callId":193416,"predictiveStaffId":"teijin_sv2","targetTel":"07029109978"}}`
	crmURL       = "https://topsii.test/callmanage/createCallStart.json"
)

// story of every label. The time and the request id, with which each line begins, are left out.
var golden = []struct {
	name  string
	event event
	file  kind
	want  []string
}{
	{"call start", event{item: commit(delivery("createCallStart", startPayload),
		start("cs_unique_id=193416&userId=teijin_sv2&displayPhone=07029109978&customerId=5501"),
		&statev1.Decided{Rule: "start", Flow: "createCallStart", Deliveries: []uint32{1}})},
		callStart, []string{
			`incoming_get | Received call start callback | query={"cs_unique_id":"193416","userId":"teijin_sv2","displayPhone":"*******9978","customerId":"5501"} | client={"request_id":"R1","ip":"192.0.2.10"} | trace_id=` + trace,
			`decision | createCallStart | callId=193416 | rule=start | flow=createCallStart | trace_id=` + trace,
			`upstream_request | Prepared upstream request | callId=193416 | delivery=1 | endpoint=createCallStart | payload={"predictiveCallCreateCallStart":{"callId":193416,"predictiveStaffId":"teijin_sv2","targetTel":"*******9978"}} | trace_id=` + trace,
		}},
	{"rule 1, out of a spool", event{item: func() *statev1.CommitItem {
		c := commit(nil, &statev1.Received{Source: "ameyo.call_end", Query: []byte("unique_id=193416"), Peer: "192.0.2.10", AgeMs: 61_500}, decided("1", "createCallEnd"))
		c.Traceparent = traceparent
		return c
	}()},
		callEnd, []string{
			`incoming_get | Received dialer callback | query={"unique_id":"193416"} | client={"request_id":"R1","ip":"192.0.2.10"} | age=1m1.5s | trace_id=` + trace,
			`decision | Phone1 connected -> createCallEnd (no phone2) | callId=193416 | rule=1 | flow=createCallEnd | dialIndex=0 | phones=0 | phone1_state_used=false | trace_id=` + trace,
		}},
	{"rule 2", event{item: commit(nil, &statev1.Decided{Rule: "2", Flow: "createCallEnd", DialIndex: 1, Phones: 2, ErrorInfo1: "BUSY", Phone1StateUsed: true},
		&statev1.Phone1Fact{What: "taken", CustomerId: "5502", Status: "BUSY", CallTime: "2026-11-20 20:23:00"})},
		callEnd, []string{
			`decision | Phone2 connected -> createCallEnd (with phone1 errorInfo from state if available) | callId=193416 | rule=2 | flow=createCallEnd | dialIndex=1 | phones=2 | errorInfo=BUSY | phone1_state_used=true`,
			`state | Used and removed phone1 status | customerId=5502 | callId=193416 | callTime=2026-11-20 20:23:00 | phone1Status=BUSY`,
		}},
	{"rule 3", event{item: commit(nil, &statev1.Decided{Rule: "3", Flow: "createNotAnswer", Phones: 1, ErrorInfo1: "NUMBER_TEMP_FAILURE"})},
		notAnswer, []string{
			`decision | Not connected -> createNotAnswer (errorInfo1 only) | callId=193416 | rule=3 | flow=createNotAnswer | dialIndex=0 | phones=1 | errorInfo1=NUMBER_TEMP_FAILURE | errorInfo2= | phone1_state_used=false`,
		}},
	{"rule 4", event{item: commit(nil, &statev1.Decided{Rule: "4", Flow: "wait for phone 2", Phones: 2},
		&statev1.Phone1Fact{What: "stored", CustomerId: "5502", Status: "PROVIDER_TEMP_FAILURE", CallTime: "2026-11-20 20:24:24"})},
		notAnswer, []string{
			`decision | wait for phone 2 | callId=193416 | rule=4 | flow=wait for phone 2 | dialIndex=0 | phones=2`,
			`state | Stored phone1 status; waiting for phone2 | customerId=5502 | callId=193416 | callTime=2026-11-20 20:24:24 | phone1Status=PROVIDER_TEMP_FAILURE`,
		}},
	{"rule 5", event{item: commit(nil, &statev1.Decided{Rule: "5", Flow: "createNotAnswer", DialIndex: 1, Phones: 2, ErrorInfo1: "BUSY", ErrorInfo2: "NO_ANSWER", Phone1StateUsed: true})},
		notAnswer, []string{
			`decision | Not connected -> createNotAnswer (errorInfo1 and errorInfo2) | callId=193416 | rule=5 | flow=createNotAnswer | dialIndex=1 | phones=2 | errorInfo1=BUSY | errorInfo2=NO_ANSWER | phone1_state_used=true`,
		}},
	{"late phone 1", event{item: commit(nil, decided("4", "absorb late phone 1"), &statev1.Phone1Fact{What: "absorbed", Status: "BUSY"})},
		notAnswer, []string{
			`decision | absorb late phone 1 | callId=193416 | rule=4 | flow=absorb late phone 1 | dialIndex=0 | phones=0`,
			`state | Ignored late phone1 status; phone2 was here before it | customerId= | callId=193416 | callTime= | phone1Status=BUSY`,
		}},
	{"phone 1 expires", event{item: commit(nil, &statev1.Phone1Fact{What: "expired", CustomerId: "5502", Status: "BUSY"})},
		notAnswer, []string{`state | Phone1 status expired; phone2 never came | customerId=5502 | callId=193416 | callTime= | phone1Status=BUSY`}},
	{"duplicate of a call end", event{item: commit(nil, end("unique_id=193416"),
		&statev1.Duplicate{Of: "R0", Gate: "processed", Differs: true, Key: "end/193416/55%2F01/d336-vce-103"})},
		notAnswer, []string{
			`incoming_get | Received dialer callback | query={"unique_id":"193416"} | client={"request_id":"R1","ip":"192.0.2.10"}`,
			`dedupe | Skipped duplicate request | reason=processed | crtObjectId=d336-vce-103 | customerId=55/01 | callId=193416 | of=R0 | duplicate_differs=true`,
		}},
	{"duplicate of a call start", event{item: commit(nil, start(""), &statev1.Duplicate{Of: "R0", Gate: "processing", Key: "start/193416/teijin_sv2/07029109978"})},
		callStart, []string{
			`incoming_get | Received call start callback | query={} | client={"request_id":"R1","ip":"192.0.2.10"} | trace_id=` + trace,
			`dedupe | Skipped duplicate request | reason=processing | userId=teijin_sv2 | targetTel=*******9978 | callId=193416 | of=R0 | trace_id=` + trace,
		}},
	{"refused", event{item: func() *statev1.CommitItem {
		c := commit(nil, &statev1.Received{Query: []byte("unique_id=193370"), Peer: "192.0.2.10"},
			&statev1.Rejected{Status: 400, Field: "customerCRTId", Message: "customerCRTId is required when systemDisposition is CONNECTED", Method: "GET", Path: "/index.php"})
		c.Call = "request/R1"
		return c
	}()},
		general, []string{
			`incoming_get | Received dialer callback | query={"unique_id":"193370"} | client={"request_id":"R1","ip":"192.0.2.10"}`,
			`response | Sent error response | status=400 | field=customerCRTId | message=customerCRTId is required when systemDisposition is CONNECTED | method=GET | path=/index.php`,
		}},
	{"undecided, from the spool", event{item: commit(nil, &statev1.Received{Source: "ameyo.call_end", Peer: "192.0.2.10", AgeMs: 61_000, Spooled: true},
		&statev1.Undecided{Reason: "index out of range", Acknowledged: true})},
		general, []string{
			`incoming_get | Received dialer callback | query={} | client={"request_id":"R1","ip":"192.0.2.10"} | age=1m1s | spooled=true`,
			`note | undecided: index out of range | callId=193416 | acknowledged=true`,
		}},
	{"operator", event{item: commit(delivery("createCallEnd", `{}`), &statev1.Action{Actor: "sato", What: "discard", Delivery: 1, Reason: "sent by hand"})},
		callEnd, []string{`operator | Operator action: discard | callId=193416 | delivery=1 | actor=sato | reason=sent by hand`}},
	{"delivered", event{result: result(&statev1.Attempt{Delivery: 1, Number: 1, Endpoint: "createCallStart", Url: crmURL, HttpCode: 200, DurationMs: 123,
		Result: "success", Body: []byte("{\n  \"result\": \"success\"\n}"), Next: "delivered"}), atMS: evening},
		callStart, []string{
			`http_client | Response received | callId=193416 | delivery=1 | attempt=1 | url=` + crmURL + ` | http_code=200 | duration=123ms`,
			`upstream_response | Upstream response received | callId=193416 | delivery=1 | status=success | result=success | next=delivered | body={"result":"success"} | http_code=200`,
		}},
	{"refused by TopS.II", event{result: result(&statev1.Attempt{Delivery: 1, Number: 1, Endpoint: "createCallEnd", Url: crmURL, HttpCode: 200, DurationMs: 1500,
		Result: "fail", MessageCode: "WTYP0010", SubMessageCode: "WPRDEXTC3201", Error: "the call does not exist in TopS.II (WPRDEXTC3201)", Next: "dead"}), atMS: evening},
		callEnd, []string{
			`http_client | Response received | callId=193416 | delivery=1 | attempt=1 | url=` + crmURL + ` | http_code=200 | error=the call does not exist in TopS.II (WPRDEXTC3201) | duration=1.5s`,
			`upstream_response | Upstream response received | callId=193416 | delivery=1 | status=error | result=fail | messageCode=WTYP0010 | subMessageCode=WPRDEXTC3201 | next=dead | error=the call does not exist in TopS.II (WPRDEXTC3201) | http_code=200`,
		}},
	{"timeout", event{result: result(&statev1.Attempt{Delivery: 1, Number: 2, Endpoint: "createNotAnswer", Url: crmURL, DurationMs: 30_000,
		Error: "no answer came", Uncertain: true, Next: "retry", RetryInMs: 4000}), atMS: evening},
		notAnswer, []string{
			`http_client | No response | callId=193416 | delivery=1 | attempt=2 | url=` + crmURL + ` | error=no answer came | duration=30s`,
			`upstream_response | No upstream response | callId=193416 | delivery=1 | status=error | next=retry | retry_in=4s | uncertain=true | error=no answer came`,
		}},
	{"sending disabled", event{result: result(&statev1.Attempt{Delivery: 1, Number: 1, Endpoint: "createCallStart", Url: crmURL, Next: "send_disabled"}), atMS: evening},
		callStart, []string{`payload_prepared | Sending disabled | callId=193416 | delivery=1 | url=` + crmURL + ` | send_enabled=0`}},
	{"expired without a request", event{result: &statev1.LeaseResult{Call: "ameyo/193416", Delivery: 1, RequestId: "R1",
		Result: &statev1.LeaseResult_End{End: &statev1.End{State: statev1.DeliveryState_DELIVERY_STATE_EXPIRED, Reason: "older than 1m0s"}}}, atMS: evening},
		general, []string{`upstream_response | Ended without a request | callId=193416 | delivery=1 | status=expired | error=older than 1m0s`}},
}

func TestGolden(t *testing.T) {
	v := &view{zone: callback.DefaultZone()}
	for _, test := range golden {
		t.Run(test.name, func(t *testing.T) {
			lines, err := v.lines(test.event)
			if err != nil {
				t.Fatal(err)
			}
			if len(lines) != len(test.want) {
				t.Fatalf("%d lines, want %d: %+v", len(lines), len(test.want), lines)
			}
			for i, l := range lines {
				if want := "2026-11-20 20:24:24 | [R1] | " + test.want[i] + "\n"; string(l.text) != want {
					t.Errorf("line %d\n got %s\nwant %s", i, l.text, want)
				}
				if l.file != test.file || l.day != "2026-11-20" {
					t.Errorf("line %d goes to %s of %s, want %s", i, kindNames[l.file], l.day, kindNames[test.file])
				}
			}
		})
	}
}

// TestExpiredOnTheWay: a callback finds an expired phone-1 record and sends its status (PHONE1_EXPIRY=send). Each request
// keeps its file.
func TestExpiredOnTheWay(t *testing.T) {
	deliveries := []*statev1.Delivery{
		{Number: 1, Endpoint: "createNotAnswer", Payload: []byte(`{}`), RequestId: "R0"},
		{Number: 2, Endpoint: "createCallEnd", Payload: []byte(`{}`), RequestId: "R1"},
	}
	lines, _ := (&view{zone: time.UTC}).lines(event{item: commit(deliveries, end(""),
		&statev1.Phone1Fact{What: "expired"},
		&statev1.Decided{Rule: "phone1-expiry", Flow: "createNotAnswer", Deliveries: []uint32{1}},
		&statev1.Decided{Rule: "1", Flow: "createCallEnd", Deliveries: []uint32{2}})})
	var got []string
	for _, l := range lines {
		parts := strings.Split(string(l.text), " | ")
		got = append(got, kindNames[l.file]+" "+parts[1]+" "+parts[2])
	}
	want := "call_end [R1] incoming_get; call_end [R1] state; not_answer [R0] decision; not_answer [R0] upstream_request; call_end [R1] decision; call_end [R1] upstream_request"
	if s := strings.Join(got, "; "); s != want {
		t.Errorf("\n got %s\nwant %s", s, want)
	}
}

// TestQueryAsInTheOldFiles compares with what the PHP relay wrote of the same callbacks.
func TestQueryAsInTheOldFiles(t *testing.T) {
	for raw, want := range map[string]string{
		"unique_id=193416&customerId=5501&customerCRTId=d336-69a6d5e5-vce-103&systemDisposition=CONNECTED&shareablePhonesDialIndex=0&userId=teijin_sv2&dialledPhone=07029109978&phoneList=%7B%22phoneList%22%3A%5B%2207029109978%22%5D%7D&callConnectedTime=2026%2F03%2F06+13%3A53%3A43+%2B0900": `{"unique_id":"193416","customerId":"5501","customerCRTId":"d336-69a6d5e5-vce-103","systemDisposition":"CONNECTED","shareablePhonesDialIndex":"0","userId":"teijin_sv2","dialledPhone":"07029109978","phoneList":"{\"phoneList\":[\"07029109978\"]}","callConnectedTime":"2026/03/06 13:53:43 +0900"}`,
		"a=1&b=&a=2&name=%E5%B1%B1%E7%94%B0": `{"a":"2","b":"","name":"山田"}`,
	} {
		if got := (&view{pii: true}).query([]byte(raw)); got != want {
			t.Errorf("\n got %s\nwant %s", got, want)
		}
	}
}

func TestMasking(t *testing.T) {
	const phone = "09012345678"
	events := []event{
		{item: commit(delivery("createCallEnd", `{"x":{"callId":1,"targetTel": "`+phone+`"}}`),
			end("phone="+phone+"&displayPhone="+phone+"&dialledPhone="+phone+"&dialedPhone="+phone+"&dstPhone="+phone+"&cstmPhone="+phone+
				"&phone1="+phone+"&phone2="+phone+"&phoneList=%5B%22"+phone+"%22%5D"),
			&statev1.Decided{Flow: "createCallEnd", Deliveries: []uint32{1}},
			&statev1.Duplicate{Key: "start/1/u/" + phone},
			&statev1.Duplicate{Key: "other/" + phone},
			&statev1.Rejected{Message: "not a number: " + phone, Path: "/" + phone},
			&statev1.Action{Reason: "called " + phone},
			"note of "+phone)},
		{item: commit(delivery("call.registered", `{"data":{"number":"`+phone+`","did":"`+phone+`"}}`), &statev1.Decided{Flow: "registered", Deliveries: []uint32{1}})},
		{result: result(&statev1.Attempt{Error: "cannot dial " + phone, Body: []byte(strings.Repeat("x", maxBody-6) + phone + strings.Repeat("y", maxBody))})},
		{result: result(&statev1.Attempt{Next: "dead", Body: []byte(`{"targetTel":"` + phone + `","n":` + phone + `}`)})},
	}
	for _, pii := range []bool{false, true} {
		v, shown := &view{zone: time.UTC, pii: pii}, 0
		for _, e := range events {
			lines, err := v.lines(e)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range lines {
				shown += strings.Count(string(l.text), phone)
				if !pii && strings.Contains(string(l.text), phone[:5]) {
					t.Errorf("a number is shown: %s", l.text)
				}
			}
		}
		if pii && shown != 22 {
			t.Errorf("with LOG_PII, %d numbers are shown, want all 22 (one is cut)", shown)
		}
	}
}

// TestPayloadStaysJSON: masking must not cut through the escapes of a number that is none.
func TestPayloadStaysJSON(t *testing.T) {
	raw, err := json.Marshal(map[string]string{"targetTel": "\"12345<6789\\u1234\n5678|", "staff": "a|b\u2028"})
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal([]byte(object("payload", (&view{}).payload(raw)).value), &got); err != nil {
		t.Fatal(err)
	}
	if want := callback.MaskPhones("\"12345<6789\\u1234\n5678|"); got["targetTel"] != want || got["staff"] != "a|b\u2028" {
		t.Errorf("got %q, want %q", got["targetTel"], want)
	}
}

func TestSafe(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "",
		"plain text = {}":         "plain text = {}",
		"山田　太郎":                   "山田　太郎",
		"a | b=c":                 `"a \u007c b=c"`,
		"ends |":                  `"ends \u007c"`,
		"one\ntwo\r\tthree":       `"one\ntwo\r\tthree"`,
		"\x00\x1b[31m\x7f":        `"\u0000\u001b[31m\u007f"`,
		"\u0085\u2028\u202e":      `"\u0085\u2028\u202e"`,
		"\U000e0001":              `"\udb40\udc01"`,
		"\x8e\x52\x93\x63":        "\uFFFDR\uFFFDc", // 山田 in Shift-JIS
		`"quoted" \ text`:         `"\"quoted\" \\ text"`,
		" space":                  `" space"`,
		"==== 2026-11-20 ====\nx": `"==== 2026-11-20 ====\nx"`,
	} {
		if got := safe(in); got != want {
			t.Errorf("safe(%q) = %s, want %s", in, got, want)
		}
	}
}

// FuzzLines: whatever comes from outside, a line stays one line with the fields that it was given.
func FuzzLines(f *testing.F) {
	f.Add("a=1", "text", []byte("body"))
	f.Add("phone=%0A2026-11-20+20:24:24+|+[R2]+|+decision&x|y=%00", " | next=delivered\n", []byte("\x8e\x52|\r\n"))
	f.Add("%E2%80%A8=%82%A0", "\" | \\", []byte(`{"targetTel":"\u0030\n | \ud800","a":1}`))
	f.Fuzz(func(t *testing.T, query, text string, body []byte) {
		text = strings.ToValidUTF8(text, "") // protobuf has no other strings
		v := &view{zone: time.UTC}
		item := commit([]*statev1.Delivery{{Number: 1, Endpoint: text, Payload: body, RequestId: "R1"}},
			end(query), &statev1.Decided{Rule: text, Flow: "createCallEnd", ErrorInfo1: text, Deliveries: []uint32{1}},
			&statev1.Duplicate{Of: text, Gate: text, Key: "end/1/" + text}, &statev1.Rejected{Field: text, Message: text, Method: text, Path: text},
			&statev1.Phone1Fact{What: text, CustomerId: text, Status: text, CallTime: text}, &statev1.Action{What: text, Actor: text, Reason: text}, text)
		lines, err := v.lines(event{item: item})
		if err != nil {
			t.Fatal(err)
		}
		more, _ := v.lines(event{result: result(&statev1.Attempt{Url: text, HttpCode: 200, Result: text, MessageCode: text, SubMessageCode: text, Body: body, Error: text, Next: text})})
		for i, l := range append(lines, more...) {
			line, ok := strings.CutSuffix(string(l.text), "\n")
			if !ok || !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsGraphic(r) }) {
				t.Fatalf("not one clean line: %q", l.text)
			}
			parts := strings.Split(line, " | ")
			if len(parts) < 4 || parts[1] != "[R1]" {
				t.Fatalf("not a line of R1: %q", line)
			}
			for _, part := range parts[4:] {
				if key, _, ok := strings.Cut(part, "="); !ok || strings.ContainsAny(key, ` "`) {
					t.Fatalf("not a field: %q in %q", part, line)
				}
			}
			if strings.Count(line, "|") != len(parts)-1 {
				t.Fatalf("a separator from outside: %q", line)
			}
			if i == 0 && !json.Valid([]byte(strings.TrimPrefix(parts[4], "query="))) {
				t.Fatalf("not JSON: %q", parts[4])
			}
		}
	})
}

func BenchmarkLines(b *testing.B) {
	v := &view{zone: callback.DefaultZone()}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.lines(golden[0].event); err != nil {
			b.Fatal(err)
		}
	}
}
