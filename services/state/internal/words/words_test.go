package words

import (
	"encoding/json"
	"strings"
	"testing"

	statev1 "callrelay/gen/callrelay/state/v1"
)

func journal() []*statev1.JournalEntry {
	return []*statev1.JournalEntry{
		{RequestId: "R1", Fact: &statev1.JournalEntry_Received{Received: &statev1.Received{
			Source: "ameyo.call_end", Peer: "10.0.0.7", TraceId: "4bf92f3577b34da6a3ce929d0e0e4736", AgeMs: 1500,
			Query: []byte("unique_id=193416&dialledPhone=03000000001&note=a%25b")}}},
		{RequestId: "R1", Fact: &statev1.JournalEntry_Decided{Decided: &statev1.Decided{
			Rule: "5", Flow: "createNotAnswer", DialIndex: 1, Phones: 2, ErrorInfo1: "BUSY", ErrorInfo2: "NO_ANSWER", Phone1StateUsed: true, Deliveries: []uint32{1, 2}}}},
		{RequestId: "R1", Fact: &statev1.JournalEntry_Attempt{Attempt: &statev1.Attempt{
			Delivery: 1, Number: 1, Destination: "topsii", Endpoint: "createNotAnswer", DurationMs: 30000,
			Error: "no answer in time", Uncertain: true, Next: "retry", RetryInMs: 2000}}},
		{RequestId: "R1", Fact: &statev1.JournalEntry_Attempt{Attempt: &statev1.Attempt{
			Delivery: 1, Number: 2, Destination: "topsii", Endpoint: "createNotAnswer", HttpCode: 200, DurationMs: 12,
			Result: "fail", MessageCode: "WTYP0010", SubMessageCode: "WPRDEXTC3201", Error: "the call does not exist", Next: "dead"}}},
		{RequestId: "R1", Fact: &statev1.JournalEntry_Ended{Ended: &statev1.Ended{
			Delivery: 1, State: statev1.DeliveryState_DELIVERY_STATE_DEAD, Reason: "the call does not exist"}}},
		{RequestId: "R2", Fact: &statev1.JournalEntry_Duplicate{Duplicate: &statev1.Duplicate{Of: "R1", Gate: "processing", Differs: true}}},
		{RequestId: "R3", Fact: &statev1.JournalEntry_Rejected{Rejected: &statev1.Rejected{
			Status: 400, Field: "customerCRTId", Message: "customerCRTId is required", Method: "GET", Path: "/index.php"}}},
		{Fact: &statev1.JournalEntry_Phone1{Phone1: &statev1.Phone1Fact{What: "expired", CustomerId: "1001", Status: "BUSY"}}},
		{Fact: &statev1.JournalEntry_Action{Action: &statev1.Action{Actor: "ann@desk", What: "discard", Delivery: 1, Reason: "done by hand"}}},
		{Fact: &statev1.JournalEntry_Note{Note: "phoneList is not JSON"}},
		{Fact: &statev1.JournalEntry_Undecided{Undecided: &statev1.Undecided{Reason: "a panic", Field: "phoneList", Acknowledged: true}}},
		{},
	}
}

const told = `received ameyo.call_end from 10.0.0.7 as request R1, 1.5s earlier
  unique_id=193416 dialledPhone=03000000001 note=a%b
  trace 4bf92f3577b34da6a3ce929d0e0e4736
rule 5: createNotAnswer (dial index 1, phones 2) errorInfo1 BUSY errorInfo2 NO_ANSWER, phone-1 record used -> delivery 1, 2
delivery 1, attempt 1, topsii createNotAnswer: no answer in time after 30s; IT MAY HAVE ARRIVED -> retry in 2s
delivery 1, attempt 2, topsii createNotAnswer: HTTP 200 fail WTYP0010 WPRDEXTC3201 the call does not exist after 12ms -> dead
delivery 1 is dead: the call does not exist
request R2 is a duplicate of R1, which is processing; IT DIFFERS in dial index or disposition
refused request R3 with 400: customerCRTId is required (field customerCRTId, GET /index.php)
phone-1 record expired: BUSY, customer 1001
ann@desk: discard delivery 1 because done by hand
note: phoneList is not JSON
UNDECIDED: a panic in field phoneList; ITS SENDER HAS A 200 and will not send it again
(an entry that this version does not know)
`

func TestEntry(t *testing.T) {
	var got strings.Builder
	for _, e := range journal() {
		got.WriteString(strings.Join(Entry(e), "\n  ") + "\n")
	}
	if got.String() != told {
		t.Errorf("got\n%s\nwant\n%s", got.String(), told)
	}
}

func TestMask(t *testing.T) {
	e := journal()[0]
	Mask(e)
	if text := strings.Join(Entry(e), " "); !strings.Contains(text, "dialledPhone=*******0001") || strings.Contains(text, "03000000001") {
		t.Errorf("a query: %s", text)
	}
	d := &statev1.Delivery{Gate: "start/42/agent/03000000001", Payload: []byte(`{"a":{"callId":193416,"targetTel":"03000000001","phone" : "+81 3-0000-0001"}}`)}
	MaskDelivery(d)
	if got := string(d.GetPayload()); got != `{"a":{"callId":193416,"targetTel":"*******0001","phone" : "+** *-****-0001"}}` {
		t.Errorf("a payload: %s", got)
	}
	if d.GetGate() != "start/42/agent/*******0001" {
		t.Errorf("a gate: %s", d.GetGate())
	}
	refused := &statev1.JournalEntry{Fact: &statev1.JournalEntry_Rejected{Rejected: &statev1.Rejected{Message: "not found", Path: "/call/03000000001"}}}
	Mask(refused)
	if text := Entry(refused)[0]; strings.Contains(text, "03000000001") {
		t.Errorf("a path: %s", text)
	}
	action := &statev1.JournalEntry{Fact: &statev1.JournalEntry_Action{Action: &statev1.Action{Reason: "called 03000000001"}}}
	Mask(action)
	if text := Entry(action)[0]; strings.Contains(text, "03000000001") {
		t.Errorf("an action: %s", text)
	}
	d = &statev1.Delivery{Reason: "called 03000000001"}
	if MaskDelivery(d); d.GetReason() != "called *******0001" {
		t.Errorf("a reason: %s", d.GetReason())
	}
}

// TestMaskPayload: what TopS.II, a webhook (docs/webhook.md) and Kommo (an incoming lead) get shows no number and stays JSON.
func TestMaskPayload(t *testing.T) {
	for name, payload := range map[string]string{
		"TopS.II": `{"callId":1,"targetTel":"03000000001"}`,
		"webhook": `{"data":{"call_id":"31573def","number":"+813000000001","did":"03000000001","user":null}}`,
		"Kommo": `[{"source_name":"PBX 03000000001","metadata":{"phone":"+03000000001","from":"03000000001"},"_embedded":{"leads":[{"name":"03000000001"}],
			"contacts":[{"name":"03000000001","custom_fields_values":[{"values":[{"value":"03000000001","enum_code":"WORK"}]}]}]}}]`,
		"popup":        `{"add":[{"phone_number" : "03000000001"}]}`,
		"with a quote": `{"targetTel":"\"03000000001"}`,
	} {
		masked := MaskPayload([]byte(payload))
		if strings.Contains(string(masked), "000000001") || !json.Valid(masked) {
			t.Errorf("%s: %s", name, masked)
		}
	}
	if got := string(MaskPayload([]byte(`{"name":"<山田> & \u0041"}`))); got != `{"name":"<山田> & \u0041"}` {
		t.Errorf("changed without need: %s", got)
	}
}
