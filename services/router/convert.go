package router

import (
	"cmp"
	"fmt"

	"google.golang.org/protobuf/proto"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/services/router/ameyo"
)

// readRecord reads what all rule packages keep of a call.
func readRecord(state *statev1.CallState) (*statev1.Record, error) {
	record := &statev1.Record{}
	if err := proto.Unmarshal(state.GetRecord(), record); err != nil {
		return nil, fmt.Errorf("the stored record is unreadable: %w", err)
	}
	return record, nil
}

// readCall makes the rules' view of what state loaded, and the record that it is in.
func readCall(state *statev1.CallState) (ameyo.Call, *statev1.Record, error) {
	record, err := readRecord(state)
	if err != nil {
		return ameyo.Call{}, nil, err
	}
	call := ameyo.Call{NextDelivery: record.GetNextDelivery()}
	for _, g := range record.GetGates() {
		call.Gates = append(call.Gates, ameyo.Gate{Key: g.GetKey(), Owner: g.GetOwner(), Deliveries: g.GetDeliveries(),
			Connected: g.GetConnected(), DialIndex: g.GetDialIndex(), Disposition: g.GetDisposition(),
			ReceivedMS: g.GetReceivedMs(), ProcessedMS: g.GetProcessedMs(), WaitingPhone2: g.GetWaitingPhone2()})
	}
	for _, p := range record.GetPhone1() {
		call.Phone1 = append(call.Phone1, ameyo.Phone1{CustomerID: p.GetCustomerId(), Status: p.GetStatus(), CallTime: p.GetCallTime(),
			Gate: p.GetGate(), TakenBy: p.GetTakenBy(), ReceivedMS: p.GetReceivedMs(), ExpiresMS: p.GetExpiresMs(),
			LateMark: p.GetLateMark(), Traceparent: p.GetTraceparent(), RequestID: p.GetRequestId()})
	}
	for _, d := range state.GetDeliveries() {
		call.Deliveries = append(call.Deliveries, ameyo.Delivery{Number: d.GetNumber(), State: ameyo.DeliveryState(d.GetState()),
			Uncertain: d.GetUncertain(), FinalMS: d.GetFinalMs(), RequestID: d.GetRequestId()})
	}
	return call, record, nil
}

// writeRecord makes the record to store out of the one before. What other rule packages keep in it stays.
func writeRecord(call ameyo.Call, record *statev1.Record) ([]byte, error) {
	record.NextDelivery, record.Gates, record.Phone1 = call.NextDelivery, nil, nil
	for _, g := range call.Gates {
		record.Gates = append(record.Gates, &statev1.Gate{Key: g.Key, Owner: g.Owner, Deliveries: g.Deliveries,
			Connected: g.Connected, DialIndex: g.DialIndex, Disposition: g.Disposition,
			ReceivedMs: g.ReceivedMS, ProcessedMs: g.ProcessedMS, WaitingPhone2: g.WaitingPhone2})
	}
	for _, p := range call.Phone1 {
		record.Phone1 = append(record.Phone1, &statev1.Phone1{CustomerId: p.CustomerID, Status: p.Status, CallTime: p.CallTime,
			Gate: p.Gate, TakenBy: p.TakenBy, ReceivedMs: p.ReceivedMS, ExpiresMs: p.ExpiresMS,
			LateMark: p.LateMark, Traceparent: p.Traceparent, RequestId: p.RequestID})
	}
	return proto.Marshal(record)
}

func newDeliveries(deliveries []ameyo.NewDelivery) []*statev1.Delivery {
	out := make([]*statev1.Delivery, len(deliveries))
	for i, d := range deliveries {
		out[i] = &statev1.Delivery{Number: d.Number, Destination: d.Destination, Endpoint: d.Endpoint, Payload: d.Payload,
			Gate: d.Gate, RequestId: d.RequestID, Traceparent: d.Traceparent, Link: d.Link, MaxAgeMs: d.MaxAgeMS}
	}
	return out
}

// journalEntry makes the stored form of a fact.
func journalEntry(fact ameyo.Fact, requestID string, nowMS int64) *statev1.JournalEntry {
	e := &statev1.JournalEntry{AtMs: nowMS, RequestId: requestID}
	switch f := fact.(type) {
	case ameyo.Decided:
		e.RequestId = cmp.Or(f.RequestID, requestID)
		e.Fact = &statev1.JournalEntry_Decided{Decided: &statev1.Decided{Rule: f.Rule, Flow: f.Flow, DialIndex: f.DialIndex, Phones: f.Phones,
			ErrorInfo1: f.ErrorInfo1, ErrorInfo2: f.ErrorInfo2, Phone1StateUsed: f.Phone1StateUsed, Deliveries: f.Deliveries}}
	case ameyo.Duplicate:
		e.Fact = &statev1.JournalEntry_Duplicate{Duplicate: &statev1.Duplicate{Of: f.Of, Gate: f.Gate, Differs: f.Differs, Key: f.Key, Flow: f.Flow}}
	case ameyo.Phone1Fact:
		e.Fact = &statev1.JournalEntry_Phone1{Phone1: &statev1.Phone1Fact{What: f.What, CustomerId: f.CustomerID, Status: f.Status, CallTime: f.CallTime,
			RequestId: f.RequestID}}
	case ameyo.Note:
		e.Fact = &statev1.JournalEntry_Note{Note: string(f)}
	}
	return e
}
