package main

import (
	"strings"
	"testing"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
)

var tokyo = time.FixedZone("", 9*60*60)

// at is milliseconds after 2026-03-06 09:00:00 in tokyo.
func at(ms int64) int64 { return time.Date(2026, 3, 6, 9, 0, 0, 0, tokyo).UnixMilli() + ms }

func sampleCall() *statev1.GetCallResponse {
	return &statev1.GetCallResponse{
		Call:    "ameyo/193416",
		Version: "c2",
		Journal: &statev1.Journal{Entries: []*statev1.JournalEntry{
			{AtMs: at(0), RequestId: "R1", Fact: &statev1.JournalEntry_Received{Received: &statev1.Received{
				Source: "ameyo.call_end", Peer: "10.0.0.7", TraceId: "4bf92f3577b34da6a3ce929d0e0e4736", AgeMs: 1500,
				Query: []byte("unique_id=193416&dialledPhone=03000000001&note=a%1Bb")}}},
			{AtMs: at(1), RequestId: "R1", Fact: &statev1.JournalEntry_Decided{Decided: &statev1.Decided{
				Rule: "5", Flow: "createNotAnswer", DialIndex: 1, Phones: 2, ErrorInfo1: "BUSY", ErrorInfo2: "NO_ANSWER", Phone1StateUsed: true, Deliveries: []uint32{1, 2}}}},
			{AtMs: at(40), RequestId: "R1", Fact: &statev1.JournalEntry_Attempt{Attempt: &statev1.Attempt{
				Delivery: 1, Number: 1, Destination: "topsii", Endpoint: "createNotAnswer", DurationMs: 30000,
				Error: "no answer in time", Uncertain: true, Next: "retry", RetryInMs: 2000}}},
			{AtMs: at(2100), RequestId: "R1", Fact: &statev1.JournalEntry_Attempt{Attempt: &statev1.Attempt{
				Delivery: 1, Number: 2, Destination: "topsii", Endpoint: "createNotAnswer", HttpCode: 200, DurationMs: 12,
				Result: "fail", MessageCode: "WTYP0010", SubMessageCode: "WPRDEXTC3201", Error: "the call does not exist", Next: "dead"}}},
			{AtMs: at(2100), RequestId: "R1", Fact: &statev1.JournalEntry_Ended{Ended: &statev1.Ended{
				Delivery: 1, State: statev1.DeliveryState_DELIVERY_STATE_DEAD, Reason: "the call does not exist"}}},
			{AtMs: at(3000), RequestId: "R2", Fact: &statev1.JournalEntry_Duplicate{Duplicate: &statev1.Duplicate{Of: "R1", Gate: "processing", Differs: true}}},
			{AtMs: at(4000), RequestId: "R3", Fact: &statev1.JournalEntry_Rejected{Rejected: &statev1.Rejected{
				Status: 400, Field: "customerCRTId", Message: "customerCRTId is required", Method: "GET", Path: "/index.php"}}},
			{AtMs: at(5000), Fact: &statev1.JournalEntry_Phone1{Phone1: &statev1.Phone1Fact{What: "expired", CustomerId: "1001", Status: "BUSY"}}},
			{AtMs: at(6000), Fact: &statev1.JournalEntry_Action{Action: &statev1.Action{Actor: "ann@desk", What: "discard", Delivery: 1, Reason: "done by hand"}}},
			{AtMs: at(24 * 3600e3), Fact: &statev1.JournalEntry_Note{Note: "phoneList is not JSON"}},
			{AtMs: at(24 * 3600e3)},
		}},
		Deliveries: []*statev1.Delivery{
			{Number: 1, Destination: "topsii", Endpoint: "createNotAnswer", State: statev1.DeliveryState_DELIVERY_STATE_DISCARDED, Attempts: 2, Uncertain: true,
				CreatedMs: at(1), FinalMs: at(6000), Reason: "done by hand", Payload: []byte(`{"a":{"callId":193416,"targetTel":"03000000001"}}`)},
			{Number: 2, Destination: "topsii", Endpoint: "createNotAnswer", State: statev1.DeliveryState_DELIVERY_STATE_QUEUED, CreatedMs: at(1)},
		},
		JournalDropped: 17,
	}
}

func TestRenderCall(t *testing.T) {
	const want = `ameyo/193416

2026-03-06 (+09:00)
  09:00:00.000  received ameyo.call_end from 10.0.0.7 as request R1, 1.5s earlier
                unique_id=193416 dialledPhone=*******0001 note=a.b
                trace 4bf92f3577b34da6a3ce929d0e0e4736
  09:00:00.001  rule 5: createNotAnswer (dial index 1, phones 2) errorInfo1 BUSY errorInfo2 NO_ANSWER, phone-1 record used -> delivery 1, 2
  09:00:00.040  delivery 1, attempt 1, topsii createNotAnswer: no answer in time after 30s; IT MAY HAVE ARRIVED -> retry in 2s
  09:00:02.100  delivery 1, attempt 2, topsii createNotAnswer: HTTP 200 fail WTYP0010 WPRDEXTC3201 the call does not exist after 12ms -> dead
  09:00:02.100  delivery 1 is dead: the call does not exist
  09:00:03.000  request R2 is a duplicate of R1, which is processing; IT DIFFERS in dial index or disposition
  09:00:04.000  refused request R3 with 400: customerCRTId is required (field customerCRTId, GET /index.php)
  09:00:05.000  phone-1 record expired: BUSY, customer 1001
  09:00:06.000  ann@desk: discard delivery 1 because done by hand

2026-03-07 (+09:00)
  09:00:00.000  note: phoneList is not JSON
  09:00:00.000  (an entry that this version does not know)
  (the journal is full: 17 more bytes were not kept)

DELIVERY  TO                      STATE                  ATTEMPTS  CREATED              ENDED                REASON
1         topsii createNotAnswer  discarded (uncertain)  2         2026-03-06 09:00:00  2026-03-06 09:00:06  done by hand
2         topsii createNotAnswer  queued                 0         2026-03-06 09:00:00  -                    -
`
	var got strings.Builder
	if err := renderCall(&got, sampleCall(), tokyo); err != nil {
		t.Fatal(err)
	}
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}

func TestNoPhoneNumberLeavesInJSON(t *testing.T) {
	call := sampleCall()
	masked := maskCall(call)
	if query := string(masked.GetJournal().GetEntries()[0].GetReceived().GetQuery()); !strings.Contains(query, "*******0001") || strings.Contains(query, "03000000001") {
		t.Errorf("query %q", query)
	}
	if payload := string(masked.GetDeliveries()[0].GetPayload()); payload != `{"a":{"callId":193416,"targetTel":"*******0001"}}` {
		t.Errorf("payload %s", payload)
	}
	if string(call.GetDeliveries()[0].GetPayload()) == string(masked.GetDeliveries()[0].GetPayload()) {
		t.Error("the original was changed")
	}
}

func TestCallKey(t *testing.T) {
	for arg, want := range map[string]string{"193416": "ameyo/193416", "000193416": "ameyo/193416", "request/R1": "request/R1", "abc": "", "": "", "-1": ""} {
		got, err := callKey(arg)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", arg, got, err)
		}
	}
}
