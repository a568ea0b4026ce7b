package ameyo

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"callrelay/callback"
)

const (
	// two phones and one phone; attempts of their own unless a test says otherwise.
	two       = `&phoneList={"phoneList":["08011112222","08099366675"]}`
	one       = `&phoneList={"phoneList":["08011112222"]}`
	phone1    = "customerCRTId=a1&systemDisposition=BUSY&shareablePhonesDialIndex=0" + two
	phone2    = "customerCRTId=a2&systemDisposition=NO_ANSWER&shareablePhonesDialIndex=1" + two
	single    = "customerCRTId=a1&systemDisposition=BUSY&shareablePhonesDialIndex=0" + one
	connected = "&systemDisposition=CONNECTED&userId=u1&dialledPhone=08011112222&cstmPhone=08099366675"
	conn1     = "customerCRTId=a1&shareablePhonesDialIndex=0" + connected + two
	conn2     = "customerCRTId=a2&shareablePhonesDialIndex=1" + connected + two
)

// TestRules goes through the rows of the specification's table, with and without a phone-1 record.
func TestRules(t *testing.T) {
	const signal = "customerCRTId=a1&hangupCauseCode=486&shareablePhonesDialIndex=0" + two
	tests := []struct {
		profile       string
		first, second string
		want          string
	}{
		{"seed", "", conn1, "1:createCallEnd"},
		{"seed", phone1, conn1 + "&customerCRTId=a3", "1:createCallEnd taken=BUSY"},
		{"seed", "", conn2, "2:createCallEnd"},
		{"seed", phone1, conn2, "2:createCallEnd(BUSY) taken=BUSY"},
		{"seed", "", single, "3:createNotAnswer(BUSY)"},
		{"seed", "", single + "&phoneList=[]", "3:createNotAnswer(BUSY)"},
		{"seed", "", single + "&shareablePhonesDialIndex=1", "3:createNotAnswer(BUSY)"},
		{"seed", "", phone1, "4:wait for phone 2 stored=BUSY"},
		{"seed", phone1, phone1 + "&customerCRTId=a3&systemDisposition=NO_ANSWER", "4:wait for phone 2 replaced=BUSY stored=NO_ANSWER"},
		{"seed", "", phone2, "5:createNotAnswer(UNKNOWN,NO_ANSWER)"},
		{"seed", phone1, phone2, "5:createNotAnswer(BUSY,NO_ANSWER) taken=BUSY"},
		// A stored record makes it two phones.
		{"seed", phone1, phone2 + "&phoneList=[]", "5:createNotAnswer(BUSY,NO_ANSWER) taken=BUSY"},
		{"seed", phone1, single + "&customerCRTId=a3", "4:wait for phone 2 replaced=BUSY stored=BUSY"},
		// By cause.
		{"seed", "", signal, "4:wait for phone 2 stored=BUSY"},
		{"seed", "", signal + "&hangupCauseCode=999", "note 4:wait for phone 2 stored=UNKNOWN"},
		{"seed", "", single + "&systemDisposition=&hangupCauseCode=17", "3:createNotAnswer(BUSY)"},
		{"seed", "", single + "&systemDisposition=&hangupCauseCode=403", "3:createNotAnswer(PROVIDER_FAILURE_403)"},
		{"seed", "", single + "&systemDisposition=PROVIDER_FAILURE&hangupCauseCode=403", "3:createNotAnswer(PROVIDER_FAILURE_403)"},
		{"seed", "", single + "&systemDisposition=PROVIDER_FAILURE&hangupCauseCode=404", "3:createNotAnswer(PROVIDER_FAILURE)"},
		{"seed", phone1, phone2 + "&systemDisposition=PROVIDER_FAILURE&hangupCauseCode=403", "5:createNotAnswer(BUSY,PROVIDER_FAILURE_403) taken=BUSY"},

		{"hangup-signal", "", conn1, "1:createCallEnd"},
		{"hangup-signal", signal, conn1 + "&customerCRTId=a3", "1:createCallEnd taken=BUSY"},
		{"hangup-signal", "", conn2, "2:createCallEnd"},
		{"hangup-signal", signal, conn2, "2:createCallEnd(BUSY) taken=BUSY"},
		{"hangup-signal", "", single, "3:createNotAnswer(BUSY)"},
		{"hangup-signal", "", phone1, "3:createNotAnswer(BUSY)"},
		{"hangup-signal", "", phone1 + "&systemDisposition=CALL_DROP", "3:createNotAnswer(CALL_DROP)"},
		{"hangup-signal", signal, phone1 + "&systemDisposition=CALL_DROP", "3:createNotAnswer(CALL_DROP) taken=BUSY"},
		{"hangup-signal", "", signal + one, "3:createNotAnswer(BUSY)"},
		{"hangup-signal", "", signal, "4:wait for phone 2 stored=BUSY"},
		{"hangup-signal", "", phone2, "5:createNotAnswer(UNKNOWN,NO_ANSWER)"},
		{"hangup-signal", signal, phone2, "5:createNotAnswer(BUSY,NO_ANSWER) taken=BUSY"},
		{"hangup-signal", signal, phone2 + "&systemDisposition=&hangupCauseCode=480", "5:createNotAnswer(BUSY,PROVIDER_TEMP_FAILURE) taken=BUSY"},
	}
	for _, test := range tests {
		w := newWorld(t, func(c *Config) { c.Profile = test.profile })
		if test.first != "" {
			w.end(test.first)
		}
		w.end(test.second)
		if got := w.summary(); got != test.want {
			t.Errorf("%s: %s then %s: %q, want %q", test.profile, test.first, test.second, got, test.want)
		}
		if stored := w.call.phone1("5502", false) >= 0 && w.call.Phone1[w.call.phone1("5502", false)].TakenBy == ""; stored != strings.HasPrefix(test.want, "4:") && test.want[:4] != "note" {
			t.Errorf("%s: %s then %s: there is a record: %t", test.profile, test.first, test.second, stored)
		}
	}
}

// TestPayloads compares them byte for byte (spec/ameyo-topsii.md, HTTP out).
func TestPayloads(t *testing.T) {
	const (
		callEnd   = `createCallEnd {"predictiveCallCreateCallEnd":{"callId":193421,`
		notAnswer = `createNotAnswer {"predictiveCallCreateNotAnswer":{"callId":193421,`
	)
	tests := []struct {
		what, first, query, want string
	}{
		{"rule 1, times received", "", conn1, callEnd + `"callStartTime":"2026-11-20 20:24:25","callEndTime":"2026-11-20 20:24:25","subCtiHistoryId":"a1","targetTel":"08011112222","predictiveStaffId":"u1"}}`},
		{"rule 1, connected time", "", conn1 + "&callConnectedTime=2026/03/06+13:53:43++0900", callEnd + `"callStartTime":"2026-03-06 13:53:43","callEndTime":"2026-11-20 20:24:25","subCtiHistoryId":"a1","targetTel":"08011112222","predictiveStaffId":"u1"}}`},
		{"rule 1, given times", "", conn1 + "&callConnectedTime=2026/03/06+13:53:43++0900&callStartTime=2026-03-06+13:00:00&callEndTime=2026-03-06+14:00:00", callEnd + `"callStartTime":"2026-03-06 13:00:00","callEndTime":"2026-03-06 14:00:00","subCtiHistoryId":"a1","targetTel":"08011112222","predictiveStaffId":"u1"}}`},
		{"rule 2, with record", phone1, conn2, callEnd + `"callStartTime":"2026-11-20 20:24:27","callEndTime":"2026-11-20 20:24:27","subCtiHistoryId":"a2","targetTel":"08099366675","predictiveStaffId":"u1","errorInfo":"BUSY"}}`},
		{"rule 2, without record", "", conn2, callEnd + `"callStartTime":"2026-11-20 20:24:25","callEndTime":"2026-11-20 20:24:25","subCtiHistoryId":"a2","targetTel":"08099366675","predictiveStaffId":"u1"}}`},
		{"rule 1 has no errorInfo", phone1, conn1 + "&customerCRTId=a3", callEnd + `"callStartTime":"2026-11-20 20:24:27","callEndTime":"2026-11-20 20:24:27","subCtiHistoryId":"a3","targetTel":"08011112222","predictiveStaffId":"u1"}}`},
		{"subCtiHistoryId is not crtObjectId", "", conn1 + "&crtObjectId=o1", callEnd + `"callStartTime":"2026-11-20 20:24:25","callEndTime":"2026-11-20 20:24:25","subCtiHistoryId":"a1","targetTel":"08011112222","predictiveStaffId":"u1"}}`},
		{"text is not escaped for HTML", "", conn1 + "&userId=a<b>%26%22%E7%94%B0%FF", callEnd + `"callStartTime":"2026-11-20 20:24:25","callEndTime":"2026-11-20 20:24:25","subCtiHistoryId":"a1","targetTel":"08011112222","predictiveStaffId":"a<b>&\"田` + "\uFFFD" + `"}}`},
		{"rule 3", "", single, notAnswer + `"callTime":"2026-11-20 20:24:25","errorInfo1":"BUSY"}}`},
		{"rule 3, given time", "", single + "&callTime=2026-03-06+13:00:00", notAnswer + `"callTime":"2026-03-06 13:00:00","errorInfo1":"BUSY"}}`},
		{"rule 3, unreadable time", "", single + "&callTime=13:00", notAnswer + `"callTime":"2026-11-20 20:24:25","errorInfo1":"BUSY"}}`},
		{"rule 4", "", phone1, ""},
		{"rule 5, with record", phone1 + "&callTime=2026-03-06+13:00:00", phone2, notAnswer + `"callTime":"2026-11-20 20:24:27","errorInfo1":"BUSY","errorInfo2":"NO_ANSWER"}}`},
		{"rule 5, without record", "", phone2 + "&callTime=2026-03-06+13:00:00", notAnswer + `"callTime":"2026-03-06 13:00:00","errorInfo1":"UNKNOWN","errorInfo2":"NO_ANSWER"}}`},
		{"leading zeros", "", single + "&unique_id=000193421", notAnswer + `"callTime":"2026-11-20 20:24:25","errorInfo1":"BUSY"}}`},
	}
	for _, test := range tests {
		w := newWorld(t)
		if test.first != "" {
			w.end(test.first)
			w.pass(2)
		}
		in := w.endInput(test.query)
		w.pass(3600) // times are those of the receipt
		w.decide(in)
		if got := w.sent(); got != test.want {
			t.Errorf("%s:\n%s\nwant\n%s", test.what, got, test.want)
		}
	}

	w := newWorld(t)
	w.start("cs_unique_id=099999999&userId=ABCD1234&phone=03000000001")
	if got, want := w.sent(), `createCallStart {"predictiveCallCreateCallStart":{"callId":99999999,"predictiveStaffId":"ABCD1234","targetTel":"03000000001"}}`; got != want {
		t.Errorf("call start:\n%s\nwant\n%s", got, want)
	}

	w = newWorld(t, func(c *Config) { c.Zone = time.FixedZone("Asia/Kolkata", 5*3600+1800) })
	w.end(single)
	if got, want := w.sent(), notAnswer+`"callTime":"2026-11-20 16:54:25","errorInfo1":"BUSY"}}`; got != want {
		t.Errorf("in another zone:\n%s\nwant\n%s", got, want)
	}
}

// TestCallStartMaxAge: a call start's age counts from its receipt, also in a spool; not where a person sends it again.
func TestCallStartMaxAge(t *testing.T) {
	for late, want := range map[int64]int64{0: 90_000, 60_000: 30_000, 90_000: 1, 3_600_000: 1} {
		w := newWorld(t, func(c *Config) { c.CallStartMaxAge = 90 * time.Second })
		in := w.input()
		in.CallStart, in.ReceivedMS = &callback.CallStart{CallID: "193421", StaffID: "u", TargetTel: "0702"}, w.now-late
		if got := w.decide(in).Deliveries[0].MaxAgeMS; got != want {
			t.Errorf("received %d ms ago: %d ms left, want %d", late, got, want)
		}
		w.result(1, Dead, false)
		if _, again, err := Resend(w.cfg, w.call, in, "r1", false, w.now); err != nil || again.Deliveries[0].MaxAgeMS != 90_000 {
			t.Errorf("sent again: %+v, %v", again.Deliveries, err)
		}
	}
}

// TestEffects has everything that one input of each kind brings about.
func TestEffects(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.CallStartMaxAge = 90 * time.Second })
	got := w.start("cs_unique_id=193421&userId=u/1&displayPhone=0702")
	want := Effects{
		Deliveries: []NewDelivery{{
			Number: 1, Destination: "topsii", Endpoint: "createCallStart", Gate: "start/193421/u%2F1/0702", RequestID: "r1", Traceparent: "t1", MaxAgeMS: 90_000,
			Payload: []byte(`{"predictiveCallCreateCallStart":{"callId":193421,"predictiveStaffId":"u/1","targetTel":"0702"}}`),
		}},
		Facts:     []Fact{Decided{Rule: "start", Flow: "createCallStart", Deliveries: []uint32{1}}},
		RequestID: "r1", Changed: true,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("call start:\n%+v\nwant\n%+v", got, want)
	}

	got = w.end(phone1 + "&phoneList=x&phone1=1&phone2=2")
	want = Effects{
		SetTimers: []Timer{{Name: "phone1:5502", InMS: 600_000}},
		Facts: []Fact{
			Note("phoneList is not JSON: counted phone1, phone2, cstmPhone and the dialled number instead (2)"),
			Decided{Rule: "4", Flow: "wait for phone 2", Phones: 2},
			Phone1Fact{What: "stored", CustomerID: "5502", Status: "BUSY", CallTime: "2026-11-20 20:24:25", RequestID: "r2"},
		},
		RequestID: "r2", Changed: true,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("phone 1:\n%+v\nwant\n%+v", got, want)
	}

	w.pass(1)
	got = w.end(phone2)
	want = Effects{
		Deliveries: []NewDelivery{{
			Number: 2, Destination: "topsii", Endpoint: "createNotAnswer", Gate: "end/193421/5502/a2", RequestID: "r3", Traceparent: "t3", Link: "t2",
			Payload: []byte(`{"predictiveCallCreateNotAnswer":{"callId":193421,"callTime":"2026-11-20 20:24:26","errorInfo1":"BUSY","errorInfo2":"NO_ANSWER"}}`),
		}},
		CancelTimers: []string{"phone1:5502"},
		Facts: []Fact{
			Decided{Rule: "5", Flow: "createNotAnswer", DialIndex: 1, Phones: 2, ErrorInfo1: "BUSY", ErrorInfo2: "NO_ANSWER", Phone1StateUsed: true, Deliveries: []uint32{2}},
			Phone1Fact{What: "taken", CustomerID: "5502", Status: "BUSY", CallTime: "2026-11-20 20:24:25", RequestID: "r2"},
		},
		RequestID: "r3", Changed: true,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("phone 2:\n%+v\nwant\n%+v", got, want)
	}

	got = w.end(phone2 + "&systemDisposition=BUSY")
	want = Effects{
		Facts:     []Fact{Duplicate{Of: "r3", Gate: "processing", Differs: true, Key: "end/193421/5502/a2", Flow: FlowNotAnswer}},
		RequestID: "r4", Duplicate: true,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("duplicate:\n%+v\nwant\n%+v", got, want)
	}

	wantCall := Call{
		Gates: []Gate{
			{Key: "start/193421/u%2F1/0702", Owner: "r1", Deliveries: []uint32{1}, ReceivedMS: epoch},
			{Key: "end/193421/5502/a1", Owner: "r2", Disposition: "BUSY", ReceivedMS: epoch, ProcessedMS: epoch + 1000},
			{Key: "end/193421/5502/a2", Owner: "r3", Deliveries: []uint32{2}, DialIndex: 1, Disposition: "NO_ANSWER", ReceivedMS: epoch + 1000},
		},
		Phone1: []Phone1{{
			CustomerID: "5502", Status: "BUSY", CallTime: "2026-11-20 20:24:25", Gate: "end/193421/5502/a1", TakenBy: "end/193421/5502/a2",
			ReceivedMS: epoch, ExpiresMS: epoch + 600_000, Traceparent: "t2", RequestID: "r2",
		}},
		NextDelivery: 3,
		Deliveries:   []Delivery{{Number: 1, State: Queued, RequestID: "r1"}, {Number: 2, State: Queued, RequestID: "r3"}},
	}
	if !reflect.DeepEqual(w.call, wantCall) {
		t.Errorf("call:\n%+v\nwant\n%+v", w.call, wantCall)
	}
}

// TestGate goes through the rows of the specification's table of gates and through every end of a delivery.
func TestGate(t *testing.T) {
	const again = "3:createNotAnswer(BUSY)"
	tests := []struct {
		what string
		ends func(w *world)
		pass int64
		want string
	}{
		{"queued", func(*world) {}, 0, "dup:processing:r1"},
		{"queued for a day", func(*world) {}, 86400, "dup:processing:r1"},
		{"leased", func(w *world) { w.result(1, Leased, false) }, 86400, "dup:processing:r1"},
		{"in retry after an uncertain attempt", func(w *world) { w.result(1, Queued, true) }, 86400, "dup:processing:r1"},
		{"delivered", func(w *world) { w.result(1, Delivered, false) }, 0, "dup:processed:r1"},
		{"delivered 299 s ago", func(w *world) { w.result(1, Delivered, false) }, 299, "dup:processed:r1"},
		{"delivered 300 s ago", func(w *world) { w.result(1, Delivered, false) }, 300, again},
		{"delivered after an hour", func(w *world) { w.pass(3600); w.result(1, Delivered, false) }, 299, "dup:processed:r1"},
		{"expired", func(w *world) { w.result(1, Expired, false) }, 299, "dup:processed:r1"},
		{"expired, later", func(w *world) { w.result(1, Expired, false) }, 300, again},
		{"discarded", func(w *world) { w.result(1, Discarded, false) }, 299, "dup:processed:r1"},
		{"send disabled", func(w *world) { w.result(1, SendDisabled, false) }, 299, "dup:processed:r1"},
		{"asked", func(w *world) { w.result(1, Asked, true) }, 299, "dup:processed:r1"},
		{"dead, uncertain", func(w *world) { w.result(1, Dead, true) }, 299, "dup:processed:r1"},
		{"dead, uncertain, later", func(w *world) { w.result(1, Dead, true) }, 300, again},
		{"dead", func(w *world) { w.result(1, Dead, false) }, 0, again},
		{"dead, retried by hand", func(w *world) { w.result(1, Dead, false); w.pass(1000); w.result(1, Queued, false) }, 1000, "dup:processing:r1"},
	}
	for _, test := range tests {
		w := newWorld(t)
		w.end(single)
		test.ends(w)
		w.pass(test.pass)
		w.end(single)
		if got := w.summary(); got != test.want {
			t.Errorf("%s: %q, want %q", test.what, got, test.want)
		}
	}
}

// TestGateOfSeveral: a gate with several deliveries opens only when all are dead. Only the store could make one.
func TestGateOfSeveral(t *testing.T) {
	for _, test := range []struct {
		deliveries []Delivery
		want       string
		since      int64
	}{
		{[]Delivery{{Number: 1, State: Dead, FinalMS: 5}, {Number: 2, State: Queued}}, "processing", 0},
		{[]Delivery{{Number: 1, State: Dead, FinalMS: 9}, {Number: 2, State: Delivered, FinalMS: 5}}, "processed", 9},
		{[]Delivery{{Number: 1, State: Dead, FinalMS: 9}, {Number: 2, State: Dead, FinalMS: 5}}, "", 0},
		{[]Delivery{{Number: 2, State: Dead, FinalMS: 9}}, "processed", 9}, // 1 is not known any more
		{[]Delivery{}, "processed", 3},
	} {
		call := Call{Deliveries: test.deliveries}
		if got, since := call.status(&Gate{Deliveries: []uint32{1, 2}, ReceivedMS: 3}, 1); got != test.want || since != test.since {
			t.Errorf("%+v: %q since %d, want %q since %d", test.deliveries, got, since, test.want, test.since)
		}
	}
}

func TestGateKeys(t *testing.T) {
	w := newWorld(t)
	w.end(single)
	for query, want := range map[string]string{
		single + "&crtObjectId=a1&customerCRTId=x": "dup:processing:r1",
		single + "&unique_id=0193421":              "dup:processing:r1",
		single + "&userId=x&callTime=x":            "note dup:processing:r1",
		single + "&crtObjectId=a2":                 "3:createNotAnswer(BUSY)",
		single + "&customerCRTId=":                 "3:createNotAnswer(BUSY)",
		single + "&customerId=5503":                "3:createNotAnswer(BUSY)",
		single + "&customerId=":                    "3:createNotAnswer(BUSY)",
	} {
		before := w.call
		w.end(query)
		if got := w.summary(); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
		w.call = before
	}
	// Parts of a key cannot run into each other.
	a := endKey(&callback.CallEnd{CallID: "1", CustomerID: "x/y", AttemptID: "z"})
	b := endKey(&callback.CallEnd{CallID: "1", CustomerID: "x", AttemptID: "y/z"})
	if a == b || keyCallID(a) != "1" {
		t.Errorf("keys %s and %s", a, b)
	}
}

func TestCallStartGate(t *testing.T) {
	const start = "cs_unique_id=193421&userId=u&phone=1"
	w := newWorld(t)
	w.start(start)
	w.expect("start:createCallStart")
	w.start("callId=0193421&userId=u&displayPhone=1")
	w.expect("dup:processing:r1")
	w.start(start + "&userId=v")
	w.expect("start:createCallStart")
	w.start(start + "&phone=2")
	w.expect("start:createCallStart")
	w.result(1, Delivered, false)
	w.pass(299)
	w.start(start)
	w.expect("dup:processed:r1")
	w.pass(1)
	w.start(start)
	w.expect("start:createCallStart")
	// Its namespace is its own: an end with the same parts is no repeat.
	w.end("customerId=u&customerCRTId=1&systemDisposition=BUSY" + one)
	w.expect("3:createNotAnswer(BUSY)")
}

func TestDuplicateDiffers(t *testing.T) {
	w := newWorld(t)
	w.end(conn1)
	w.end(conn1)
	w.expect("dup:processing:r1")
	w.end(conn1 + "&shareablePhonesDialIndex=1")
	w.expect("dup!:processing:r1")
	w.end(conn1 + "&systemDisposition=CALL_DROP")
	w.expect("dup!:processing:r1")
}

// TestConnectedPasses: CONNECTED is news to a gate whose result was not connected, and no other gate.
func TestConnectedPasses(t *testing.T) {
	for _, state := range []DeliveryState{Queued, Leased, Delivered, Asked} {
		w := newWorld(t)
		w.end(single)
		w.result(1, state, state == Asked)
		w.end(conn1)
		w.expect("1:createCallEnd")
		w.end(conn1)
		w.expect("dup:processing:r2")
		w.end(single)
		w.expect("dup!:processing:r2")
		// The gate is the newer owner's: the end of the older delivery does not open it.
		w.result(1, Dead, false)
		w.end(conn1)
		w.expect("dup:processing:r2")
	}
}

// TestConnectedDies: what arrived before it under the same key is not sent again.
func TestConnectedDies(t *testing.T) {
	w := newWorld(t)
	w.end(single)
	w.result(1, Delivered, false)
	w.end(conn1)
	w.result(2, Dead, false)
	w.end(single)
	w.expect("dup:processed:r1")
	w.end(conn1)
	w.expect("1:createCallEnd")
}

// TestWaitingGate: while phone 2 is awaited, a repeat of phone 1 is a duplicate and everything that sends passes.
func TestWaitingGate(t *testing.T) {
	w := newWorld(t)
	w.end(phone1)
	w.pass(599)
	w.end(phone1)
	w.expect("dup:waiting_phone2:r1")
	w.end(phone1 + "&systemDisposition=NO_ANSWER")
	w.expect("dup!:waiting_phone2:r1")
	stored := w.call

	// Both phones with the same customerCRTId, connected and not.
	for _, test := range []struct{ query, want, repeat string }{
		{phone2 + "&customerCRTId=a1", "5:createNotAnswer(BUSY,NO_ANSWER) taken=BUSY", "dup!:processing:r4"},
		{conn2 + "&customerCRTId=a1", "2:createCallEnd(BUSY) taken=BUSY", "dup!:processing:r4"},
		{conn1, "1:createCallEnd taken=BUSY", "dup!:processing:r4"},
	} {
		w.call, w.inputs = stored, 3
		w.end(test.query)
		w.expect(test.want)
		w.end(phone1)
		w.expect(test.repeat)
		w.end(test.query)
		w.expect("dup:processing:r4")
	}

	// Taken by another gate: processed from then on.
	w.call, w.inputs = stored, 3
	w.end(phone2)
	w.pass(299)
	w.end(phone1)
	w.expect("dup:processed:r1")
	w.pass(1)
	w.end(phone1)
	w.expect("4:wait for phone 2 stored=BUSY")

	// Replaced.
	w.now -= 300_000
	w.call, w.inputs = stored, 3
	w.end(phone1 + "&customerCRTId=a3")
	w.expect("4:wait for phone 2 replaced=BUSY stored=BUSY")
	w.pass(299)
	w.end(phone1)
	w.expect("dup:processed:r1")
	w.pass(1)
	w.end(phone1)
	w.expect("4:wait for phone 2 replaced=BUSY stored=BUSY")

	// Expired, whether the timer came or not.
	for _, timer := range []bool{true, false} {
		w = newWorld(t)
		w.end(phone1)
		w.pass(600)
		if timer {
			w.timer("phone1:5502")
			w.expect("expired=BUSY")
		}
		w.end(phone1)
		w.expect("dup:processed:r1")
		w.pass(299)
		w.end(phone1)
		w.expect("dup:processed:r1")
		// Phone 1 sent nothing, so its phone 2 is no repeat of it.
		stored := w.call
		expired := map[bool]string{false: "expired=BUSY "}[timer]
		w.end(phone2 + "&customerCRTId=a1")
		w.expect(expired + "5:createNotAnswer(UNKNOWN,NO_ANSWER)")
		w.end(phone2 + "&customerCRTId=a1")
		w.expect("dup:processing:r4")
		w.call = stored
		w.pass(1)
		w.end(phone1)
		w.expect(expired + "4:wait for phone 2 stored=BUSY")
		if len(w.last.SetTimers) != 1 || len(w.last.CancelTimers) > 0 {
			t.Errorf("the record's timer is %v, cancelled %v", w.last.SetTimers, w.last.CancelTimers)
		}
	}
}

// TestTakenRecord: the taker's callback, sent again after its delivery died, reads the same status; nobody else does.
func TestTakenRecord(t *testing.T) {
	for _, pass := range []int64{0, 3600} {
		w := newWorld(t)
		w.end(phone1)
		w.end(phone2)
		w.result(1, Dead, false)
		w.pass(pass)
		other := w.call
		w.end(phone2)
		w.expect("5:createNotAnswer(BUSY,NO_ANSWER)")
		if len(w.last.CancelTimers) > 0 {
			t.Error("a record that was taken already has no timer")
		}
		w.result(2, Dead, false)
		w.end(phone2 + "&phoneList=[]")
		w.expect("5:createNotAnswer(BUSY,NO_ANSWER)")
		w.call = other
		w.end(phone2 + "&customerCRTId=a3")
		w.expect("5:createNotAnswer(UNKNOWN,NO_ANSWER)")
		// That one left a mark; the first taker still reads its status.
		w.end(phone2)
		w.expect("5:createNotAnswer(BUSY,NO_ANSWER)")
	}
	// Rules that say nothing of phone 1 take the record too.
	w := newWorld(t)
	w.end(phone1)
	w.end(conn1 + "&customerCRTId=a3")
	w.end(phone2)
	w.expect("5:createNotAnswer(UNKNOWN,NO_ANSWER)")
}

// TestRecordsAreTheCustomers: customers of one call do not share records, marks or timers.
func TestRecordsAreTheCustomers(t *testing.T) {
	w := newWorld(t)
	w.end(phone1)
	w.end(phone2 + "&customerId=5503")
	w.expect("5:createNotAnswer(UNKNOWN,NO_ANSWER)")
	w.end(phone1 + "&customerId=")
	w.expect("4:wait for phone 2 stored=BUSY")
	if got := w.last.SetTimers; !slices.Equal(got, []Timer{{Name: "phone1:", InMS: 600_000}}) {
		t.Errorf("timers %+v", got)
	}
	w.end(phone2)
	w.expect("5:createNotAnswer(BUSY,NO_ANSWER) taken=BUSY")
	w.pass(600)
	w.timer("phone1:")
	w.expect("expired=BUSY")
}

// TestLatePhone1: phone 2 came first; the phone 1 after it is absorbed, once.
func TestLatePhone1(t *testing.T) {
	for _, first := range []string{phone2, conn2} {
		w := newWorld(t)
		w.end(first)
		w.pass(599)
		w.end(phone1)
		w.expect("4:absorb late phone 1 absorbed=BUSY")
		if len(w.last.SetTimers)+len(w.last.Deliveries) > 0 {
			t.Errorf("absorbed, but %+v", w.last)
		}
		w.end(phone1)
		w.expect("dup:processed:r2")
		w.end(phone1 + "&customerCRTId=a3")
		w.expect("4:wait for phone 2 stored=BUSY")
		w.end(phone2 + "&customerCRTId=a4")
		w.expect("5:createNotAnswer(BUSY,NO_ANSWER) taken=BUSY")
		w.pass(300)
		w.end(phone1)
		w.expect("4:wait for phone 2 stored=BUSY")
	}

	// The mark lasts 600 s by receipt.
	w := newWorld(t)
	w.end(phone2)
	w.pass(600)
	w.end(phone1)
	w.expect("4:wait for phone 2 stored=BUSY")

	// Phone 2 sent again after its delivery died leaves no second mark.
	w = newWorld(t)
	w.end(phone2)
	w.end(phone1)
	w.expect("4:absorb late phone 1 absorbed=BUSY")
	w.result(1, Dead, false)
	w.end(phone2)
	w.expect("5:createNotAnswer(UNKNOWN,NO_ANSWER)")
	w.end(phone1 + "&customerCRTId=a3")
	w.expect("4:wait for phone 2 stored=BUSY")

	// Another phone 2 leaves one of its own.
	w = newWorld(t)
	w.end(phone2)
	w.pass(300)
	w.end(phone2 + "&customerCRTId=a4")
	w.pass(599)
	w.end(phone1)
	w.expect("4:absorb late phone 1 absorbed=BUSY")
	w.end(phone1 + "&customerCRTId=a3")
	w.expect("4:wait for phone 2 stored=BUSY")

	// Phone 1 alone leaves none, nor does a phone 2 that found its record, nor one that is a single phone.
	for _, before := range [][]string{{conn1}, {phone1 + "&customerCRTId=a9", phone2}, {phone1 + "&customerCRTId=a9", conn2}, {single + "&customerCRTId=a9&shareablePhonesDialIndex=1"}} {
		w = newWorld(t)
		for _, query := range before {
			w.end(query)
		}
		w.end(phone1 + "&customerCRTId=a3")
		w.expect("4:wait for phone 2 stored=BUSY")
	}

	// Absorbing one whose earlier record was dropped: it is processed since now, not since then.
	w = newWorld(t)
	w.end(phone1)
	w.pass(900)
	w.timer("phone1:5502")
	w.end(phone2)
	w.end(phone1)
	w.expect("4:absorb late phone 1 absorbed=BUSY")
	w.pass(299)
	w.end(phone1)
	w.expect("dup:processed:r3")

	// With the same customerCRTId the late phone 1 repeats a gate: a duplicate, as the table of gates says.
	w = newWorld(t)
	w.end(phone2)
	w.end(phone1 + "&customerCRTId=a2")
	w.expect("dup!:processing:r1")
}

// TestRedial: another phone 1 replaces record, mark and timer.
func TestRedial(t *testing.T) {
	w := newWorld(t, expirySend)
	w.end(phone1)
	w.pass(500)
	w.end(phone1 + "&customerCRTId=a3&systemDisposition=NO_ANSWER")
	w.expect("4:wait for phone 2 replaced=BUSY stored=NO_ANSWER")
	if got := w.last.SetTimers; !slices.Equal(got, []Timer{{Name: "phone1:5502", InMS: 600_000}}) || len(w.last.CancelTimers) > 0 {
		t.Errorf("timers %+v", w.last)
	}
	w.pass(100)
	w.timer("phone1:5502") // the first one's, had it not been replaced
	w.expect("")
	w.end(phone2)
	w.expect("5:createNotAnswer(NO_ANSWER,NO_ANSWER) taken=NO_ANSWER")

	// A taken record is replaced without a word: its end was journaled.
	w.end(phone1 + "&customerCRTId=a5")
	w.expect("4:wait for phone 2 stored=BUSY")
	if len(w.call.Phone1) != 1 {
		t.Errorf("records %+v", w.call.Phone1)
	}

	// A mark that lasts no more is replaced too.
	w = newWorld(t)
	w.end(phone2)
	w.pass(600)
	w.end(phone1)
	if len(w.call.Phone1) != 1 || w.call.Phone1[0].LateMark {
		t.Errorf("records %+v", w.call.Phone1)
	}
}

func TestExpiryDrop(t *testing.T) {
	w := newWorld(t)
	w.end(phone1)
	w.pass(600)
	w.timer("phone1:5502")
	w.expect("expired=BUSY")
	if w.last.RequestID != "r1" || !w.last.Changed || len(w.last.Deliveries)+len(w.last.SetTimers)+len(w.last.CancelTimers) > 0 {
		t.Errorf("%+v", w.last)
	}
	dropped := w.call
	w.end(phone2)
	w.expect("5:createNotAnswer(UNKNOWN,NO_ANSWER)")

	// The gate of phone 1 is processed since the record expired, however late the timer, and whoever came since.
	w = newWorld(t)
	w.end(phone1)
	w.pass(700)
	w.timer("phone1:5502")
	w.end(phone1 + "&customerCRTId=a3")
	w.pass(199)
	w.end(phone1)
	w.expect("dup:processed:r1")
	w.pass(1)
	w.end(phone1)
	w.expect("4:wait for phone 2 replaced=BUSY stored=BUSY")
	w.now = epoch + 600_000

	// A phone 2 that was received in time but decided only now, out of a spool, still takes it.
	w.call = dropped
	in := w.endInput(phone2)
	in.ReceivedMS = epoch + 599_999
	w.decide(in)
	w.expect("5:createNotAnswer(BUSY,NO_ANSWER) taken=BUSY")
	w.call = dropped
	in = w.endInput(phone2 + "&customerCRTId=a1")
	in.ReceivedMS = epoch + 599_999
	w.decide(in)
	w.expect("5:createNotAnswer(BUSY,NO_ANSWER) taken=BUSY")
}

func TestExpirySend(t *testing.T) {
	w := newWorld(t, expirySend)
	w.end(phone1 + "&callTime=2026-03-06+13:00:00")
	w.pass(600)
	got := w.timer("phone1:5502")
	want := Effects{
		Deliveries: []NewDelivery{{
			Number: 1, Destination: "topsii", Endpoint: "createNotAnswer", Gate: "end/193421/5502/a1", RequestID: "r1", Traceparent: "t1",
			Payload: []byte(`{"predictiveCallCreateNotAnswer":{"callId":193421,"callTime":"2026-03-06 13:00:00","errorInfo1":"BUSY"}}`),
		}},
		Facts: []Fact{
			Phone1Fact{What: "expired", CustomerID: "5502", Status: "BUSY", CallTime: "2026-03-06 13:00:00", RequestID: "r1"},
			Decided{Rule: "phone1-expiry", Flow: "createNotAnswer", ErrorInfo1: "BUSY", Phone1StateUsed: true, Deliveries: []uint32{1}, RequestID: "r1"},
		},
		RequestID: "r1", Changed: true,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant\n%+v", got, want)
	}
	w.timer("phone1:5502")
	w.expect("")
	sent := w.call

	// The gate is that of phone 1, with the delivery.
	w.pass(3600)
	w.end(phone1)
	w.expect("dup:processing:r1")
	w.result(1, Dead, false)
	w.end(phone1)
	w.expect("4:wait for phone 2 stored=BUSY")

	// What was sent is nobody's any more, not even of one who was received in time.
	w.call = sent
	for _, attempt := range []string{"a1", "a2"} {
		in := w.endInput(phone2 + "&customerCRTId=" + attempt)
		in.ReceivedMS = epoch + 599_999
		if attempt == "a1" {
			w.result(1, Dead, false)
		}
		w.decide(in)
		w.expect("5:createNotAnswer(UNKNOWN,NO_ANSWER)")
		w.call = sent
	}

	// A callback that is decided before the timer expires the record itself.
	w = newWorld(t, expirySend)
	w.end(phone1)
	w.pass(600)
	w.end(phone2)
	w.expect("expired=BUSY phone1-expiry:createNotAnswer(BUSY) 5:createNotAnswer(UNKNOWN,NO_ANSWER)")
	if got := w.last; got.RequestID != "r2" || got.Deliveries[0].RequestID != "r1" || got.Deliveries[0].Traceparent != "t1" || got.Deliveries[1].RequestID != "r2" ||
		got.Deliveries[1].Link != "" || !slices.Equal(got.CancelTimers, []string{"phone1:5502"}) || got.Facts[1].(Decided).RequestID != "r1" {
		t.Errorf("%+v", got)
	}
}

// TestTimerThatIsOutOfDate: an expiry of a record that was taken, replaced, not yet due or never there does nothing.
func TestTimerThatIsOutOfDate(t *testing.T) {
	for _, change := range []func(*Config){func(*Config) {}, expirySend} {
		for what, before := range map[string]func(w *world){
			"never there":   func(*world) {},
			"taken":         func(w *world) { w.end(phone1); w.end(phone2); w.pass(600) },
			"not yet due":   func(w *world) { w.end(phone1); w.pass(599) },
			"replaced":      func(w *world) { w.end(phone1); w.pass(599); w.end(phone1 + "&customerCRTId=a3"); w.pass(1) },
			"a mark":        func(w *world) { w.end(phone2); w.pass(600) },
			"another's":     func(w *world) { w.end(phone1 + "&customerId=5503"); w.pass(600) },
			"already ended": func(w *world) { w.end(phone1); w.pass(600); w.timer("phone1:5502") },
		} {
			w := newWorld(t, change)
			before(w)
			if got := w.timer("phone1:5502"); !reflect.DeepEqual(got, Effects{}) {
				t.Errorf("%s: %+v", what, got)
			}
		}
	}
	w := newWorld(t)
	w.end(phone1)
	w.pass(600)
	if got := w.timer("something:5502"); !reflect.DeepEqual(got, Effects{}) {
		t.Errorf("an unknown timer: %+v", got)
	}
	// A timer that was set by a clock which is a little behind is due.
	early := newWorld(t)
	early.end(phone1)
	early.now += 599_500
	early.timer("phone1:5502")
	early.expect("expired=BUSY")
	// A timer whose caller does not say when it came due came due now.
	w.decide(Input{Timer: "phone1:5502"})
	w.expect("expired=BUSY")
}

// TestTimerOfLateCallback: out of a spool the record may be over when it is stored; what waits behind it goes first.
func TestTimerOfLateCallback(t *testing.T) {
	for late, want := range map[int64]int64{0: 600_000, 100: 500_000, 595: 10_000, 3600: 10_000} {
		w := newWorld(t)
		in := w.endInput(phone1)
		w.pass(late)
		w.decide(in)
		if got := w.last.SetTimers; !slices.Equal(got, []Timer{{Name: "phone1:5502", InMS: want}}) {
			t.Errorf("%d s late: timers %+v, want %d", late, got, want)
		}
		if got := w.call.Phone1[0].ExpiresMS; got != epoch+600_000 {
			t.Errorf("%d s late: expires at %d", late, got)
		}
	}
	w := newWorld(t)
	first := w.endInput(phone1)
	w.pass(30)
	second := w.endInput(phone2)
	w.pass(3600)
	w.decide(first)
	w.decide(second)
	w.expect("5:createNotAnswer(BUSY,NO_ANSWER) taken=BUSY")
}

// TestTTLs: the configured times are used.
func TestTTLs(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.DedupeTTL, c.Phone1TTL = 10*time.Second, 20*time.Second })
	w.end(phone1)
	if got := w.last.SetTimers[0].InMS; got != 20_000 {
		t.Errorf("timer in %d", got)
	}
	w.pass(20)
	w.end(phone2)
	w.expect("expired=BUSY 5:createNotAnswer(UNKNOWN,NO_ANSWER)")
	w.result(1, Delivered, false)
	w.pass(9)
	w.end(phone2)
	w.expect("dup:processed:r2")
	w.pass(1)
	w.end(phone2)
	w.expect("5:createNotAnswer(UNKNOWN,NO_ANSWER)")
	w.pass(19)
	w.end(phone1)
	w.expect("4:wait for phone 2 stored=BUSY") // the mark is the first phone 2's, of 29 s ago

	w = newWorld(t, func(c *Config) { c.DedupeTTL = 0 })
	w.end(single)
	w.end(single)
	w.expect("dup:processing:r1")
	w.result(1, Delivered, false)
	w.end(single)
	w.expect("3:createNotAnswer(BUSY)")
}

// TestPrune: a call id that is used again and again does not grow without bound, and loses nothing that counts.
func TestPrune(t *testing.T) {
	w := newWorld(t)
	attempt := func(i int) string { return fmt.Sprintf("&customerCRTId=b%d", i) }
	for i := range 200 {
		w.end(single + attempt(i))
		w.result(uint32(i+1), Delivered, false)
		w.pass(10)
	}
	// Within 300 s there were 30.
	if n := len(w.call.Gates); n != keepGates {
		t.Errorf("%d gates", n)
	}
	w.end(single + attempt(180))
	w.expect("dup:processed:r181")

	// Open deliveries and records that wait stay, however many.
	w = newWorld(t)
	for i := range 100 {
		w.end(fmt.Sprintf("%s&customerId=c%d", phone1, i))
		w.end(single + attempt(i))
	}
	if len(w.call.Gates) != 200 || len(w.call.Phone1) != 100 {
		t.Errorf("%d gates, %d records", len(w.call.Gates), len(w.call.Phone1))
	}
	for i := range 100 {
		w.timer(fmt.Sprintf("phone1:c%d", i)) // not yet due
		w.end(fmt.Sprintf("%s&customerId=c%d", phone2, i))
		w.expect("5:createNotAnswer(BUSY,NO_ANSWER) taken=BUSY")
		w.result(uint32(101+i), Delivered, false)
	}
	if len(w.call.Phone1) != keepPhone1 {
		t.Errorf("%d records", len(w.call.Phone1))
	}
	w.end(single + attempt(0))
	w.expect("dup:processing:r2")

	// A flood within the time that gates last is cut, journaled.
	w = newWorld(t)
	w.flood(maxGates, Delivered)
	w.end(single)
	w.expect("3:createNotAnswer(BUSY) note")
	if n := len(w.call.Gates); n != maxGates {
		t.Errorf("%d gates", n)
	}
	w.end(single + attempt(1))
	w.expect("dup:processed:b1")
	w.end(single + attempt(0))
	w.expect("3:createNotAnswer(BUSY) note")

	// Not even then are gates with open deliveries.
	w = newWorld(t)
	w.flood(maxGates, Queued)
	w.end(single)
	w.expect("3:createNotAnswer(BUSY)")
	if n := len(w.call.Gates); n != maxGates+1 {
		t.Errorf("%d gates", n)
	}

	// Nor is a record whose timer is late.
	w = newWorld(t)
	w.end(phone1)
	w.pass(3600)
	for i := range 2 * keepGates {
		w.end(fmt.Sprintf("%s&customerId=c%d", single, i))
		w.result(uint32(i+1), Dead, false)
	}
	w.timer("phone1:5502")
	w.expect("expired=BUSY")

	w = newWorld(t, expirySend)
	for i := range maxPhone1 + 1 {
		w.end(fmt.Sprintf("%s&customerId=c%d", phone1, i))
	}
	w.expect("4:wait for phone 2 stored=BUSY note")
	if n := len(w.call.Phone1); n != maxPhone1 {
		t.Errorf("%d records", n)
	}
	w.end(phone1 + "&customerId=c0")
	w.expect("dup:processed:r1")
	w.pass(600)
	w.timer("phone1:c0")
	w.expect("")
	w.timer("phone1:c1")
	w.expect("expired=BUSY phone1-expiry:createNotAnswer(BUSY)")
}

// flood fills the call with gates of the attempts b0, b1, ... whose deliveries are all in the state.
func (w *world) flood(gates int, state DeliveryState) {
	for i := range gates {
		owner, number := fmt.Sprintf("b%d", i), uint32(i+1)
		gate := Gate{Key: "end/193421/5502/" + owner, Owner: owner, Deliveries: []uint32{number}, Disposition: "BUSY", ReceivedMS: w.now}
		w.call.Gates = append(w.call.Gates, gate)
		w.call.Deliveries = append(w.call.Deliveries, Delivery{Number: number, State: state, FinalMS: w.now})
		w.call.NextDelivery = number + 1
	}
}

func BenchmarkDecide(b *testing.B) {
	w := newWorld(b)
	w.end(phone1)
	stored := w.call
	inputs := map[string]struct {
		call Call
		in   Input
	}{
		"phone1":    {Call{}, w.endInput(phone1)},
		"phone2":    {stored, w.endInput(phone2)},
		"connected": {Call{}, w.endInput(conn1)},
		"duplicate": {stored, w.endInput(phone1)},
	}
	for _, name := range []string{"phone1", "phone2", "connected", "duplicate"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Decide(w.cfg, inputs[name].call, inputs[name].in, w.now)
			}
		})
	}
}
