package router

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/services/router/kommo"
)

// kommoFormat is the newest format of stored records that this router knows; kommoBlob is where they are.
const (
	kommoFormat = 1
	kommoBlob   = "kommo"
)

// readKommo makes the rules' view of what is stored under a key of theirs. Exactly one of call and number is set.
func readKommo(key string, record *statev1.Record) (call *kommo.Call, number *kommo.Number, err error) {
	_, id, isNumber, ok := kommo.ParseKey(key)
	if !ok {
		return nil, nil, fmt.Errorf("%q is no key of a Kommo record", key)
	}
	stored := &statev1.KommoRecord{}
	if err := proto.Unmarshal(record.GetBlobs()[kommoBlob], stored); err != nil {
		return nil, nil, fmt.Errorf("the stored Kommo record is unreadable: %w", err)
	}
	if stored.GetFormat() > kommoFormat {
		return nil, nil, fmt.Errorf("the stored Kommo record has format %d, this router knows %d: it is older than the one that wrote it", stored.GetFormat(), kommoFormat)
	}
	if isNumber {
		number = numberFromProto(stored.GetNumber())
		number.Digits, number.NextDelivery = id, record.GetNextDelivery()
		return nil, number, nil
	}
	call = callFromProto(stored.GetCall())
	call.ID, call.NextDelivery = id, record.GetNextDelivery()
	return call, nil, nil
}

// writeKommo makes the record to store of a call or a number. What other rule packages keep in it stays.
func writeKommo(call *kommo.Call, number *kommo.Number, record *statev1.Record) ([]byte, error) {
	stored, earlier := &statev1.KommoRecord{Format: kommoFormat}, &statev1.KommoRecord{}
	if err := proto.Unmarshal(record.GetBlobs()[kommoBlob], earlier); err != nil {
		return nil, err
	}
	if number != nil {
		record.NextDelivery = number.NextDelivery
		live := number.Phase == kommo.Creating || number.Phase == kommo.Refused
		supersede(record, live, number.Post, earlier.GetNumber().GetPost())
		stored.Record = &statev1.KommoRecord_Number{Number: numberToProto(number)}
	} else {
		record.NextDelivery = call.NextDelivery
		supersede(record, call.Phase == kommo.Adding || call.Phase == kommo.Failed, call.Post, earlier.GetCall().GetPost())
		stored.Record = &statev1.KommoRecord_Call{Call: callToProto(call)}
	}
	blob, err := proto.Marshal(stored)
	if err != nil {
		return nil, err
	}
	if record.Blobs == nil {
		record.Blobs = map[string][]byte{}
	}
	record.Blobs[kommoBlob] = blob
	return proto.Marshal(record)
}

// supersede sees to it that nobody retries a request that writes a call once the rules have taken that into their own
// hands: they look for what is uncertain and send it again themselves. Such a request's gate has another owner then, which
// is what makes state refuse the retry. What they gave back to a person may be retried again.
func supersede(record *statev1.Record, live bool, now, before uint32) {
	for _, post := range []uint32{before, now} {
		key := kommoGate(post)
		if live && post == now {
			record.Gates = slices.DeleteFunc(record.GetGates(), func(g *statev1.Gate) bool { return g.GetKey() == key })
			continue
		}
		if post == 0 || slices.ContainsFunc(record.GetGates(), func(g *statev1.Gate) bool { return g.GetKey() == key }) {
			continue
		}
		record.Gates = append(record.Gates, &statev1.Gate{Key: key, Owner: "(the rules of Kommo)"})
	}
}

// kommoGate is the gate of a delivery.
func kommoGate(delivery uint32) string { return "delivery/" + strconv.FormatUint(uint64(delivery), 10) }

func callFromProto(c *statev1.KommoCall) *kommo.Call {
	call := &kommo.Call{Phase: kommo.Phase(c.GetPhase()), VoipMS: c.GetVoipMs(),
		Recording: c.GetRecording(), RecordingMS: c.GetRecordingMs(), Dropped: c.GetDropped(),
		Rev: c.GetRev(), WrittenRev: c.GetWrittenRev(), FactMS: c.GetFactMs(),
		Entity: entityFromProto(c.GetEntity()), NoteID: c.GetNoteId(), Inbound: c.GetInbound(),
		Post: c.GetPost(), Look: c.GetLook(), Patch: c.GetPatch(), PostRev: c.GetPostRev(), PatchRev: c.GetPatchRev(), PostMS: c.GetPostMs(),
		PostTo: entityFromProto(c.GetPostTo()), JoinUID: c.GetJoinUid(), Resting: c.GetResting(), Tries: c.GetTries(),
		Ask: c.GetAsk(), Asked: c.GetAsked(), AskRev: c.GetAskRev(), ClaimVoid: c.GetClaimVoid(), Popped: c.GetPopped(),
		RequestID: c.GetRequestId(), Traceparent: c.GetTraceparent(), NextMessage: c.GetNextMessage()}
	if c.GetVoip() != nil {
		facts := factsFromProto(c.GetVoip())
		call.Voip = &facts
	}
	if w := c.GetWindow(); w != nil {
		call.Window = &kommo.Window{OpenedMS: w.GetOpenedMs(), State: kommo.WindowState(w.GetState()), Facts: factsFromProto(w.GetFacts()),
			Entity: entityFromProto(w.GetEntity()), Result: w.GetResult()}
	}
	return call
}

func callToProto(c *kommo.Call) *statev1.KommoCall {
	call := &statev1.KommoCall{Phase: int32(c.Phase), VoipMs: c.VoipMS,
		Recording: c.Recording, RecordingMs: c.RecordingMS, Dropped: c.Dropped,
		Rev: c.Rev, WrittenRev: c.WrittenRev, FactMs: c.FactMS,
		Entity: entityToProto(c.Entity), NoteId: c.NoteID, Inbound: c.Inbound,
		Post: c.Post, Look: c.Look, Patch: c.Patch, PostRev: c.PostRev, PatchRev: c.PatchRev, PostMs: c.PostMS,
		PostTo: entityToProto(c.PostTo), JoinUid: c.JoinUID, Resting: c.Resting, Tries: c.Tries,
		Ask: c.Ask, Asked: c.Asked, AskRev: c.AskRev, ClaimVoid: c.ClaimVoid, Popped: c.Popped,
		RequestId: c.RequestID, Traceparent: c.Traceparent, NextMessage: c.NextMessage}
	if c.Voip != nil {
		call.Voip = factsToProto(c.Voip)
	}
	if w := c.Window; w != nil {
		call.Window = &statev1.KommoWindow{OpenedMs: w.OpenedMS, State: int32(w.State), Facts: factsToProto(&w.Facts),
			Entity: entityToProto(w.Entity), Result: w.Result}
	}
	return call
}

func numberFromProto(n *statev1.KommoNumber) *kommo.Number {
	number := &kommo.Number{Phase: kommo.NumberPhase(n.GetPhase()), Creator: unknownFromProto(n.GetCreator()), Contact: n.GetContact(),
		Post: n.GetPost(), Look: n.GetLook(), Tries: n.GetTries(), NextMessage: n.GetNextMessage()}
	for _, u := range n.GetWaiting() {
		number.Waiting = append(number.Waiting, *unknownFromProto(u))
	}
	if l := n.GetLead(); l != nil {
		number.Lead = &kommo.Lead{UID: l.GetUid(), Entity: entityFromProto(l.GetEntity()), Uniq: l.GetUniq(), Phone: l.GetPhone(), SeenMS: l.GetSeenMs()}
	}
	return number
}

func numberToProto(n *kommo.Number) *statev1.KommoNumber {
	number := &statev1.KommoNumber{Phase: int32(n.Phase), Creator: unknownToProto(n.Creator), Contact: n.Contact,
		Post: n.Post, Look: n.Look, Tries: n.Tries, NextMessage: n.NextMessage}
	for i := range n.Waiting {
		number.Waiting = append(number.Waiting, unknownToProto(&n.Waiting[i]))
	}
	if l := n.Lead; l != nil {
		number.Lead = &statev1.KommoLead{Uid: l.UID, Entity: entityToProto(l.Entity), Uniq: l.Uniq, Phone: l.Phone, SeenMs: l.SeenMS}
	}
	return number
}

func entityFromProto(e *statev1.KommoEntity) kommo.Entity {
	return kommo.Entity{Type: e.GetType(), ID: e.GetId()}
}

func entityToProto(e kommo.Entity) *statev1.KommoEntity {
	if e == (kommo.Entity{}) {
		return nil
	}
	return &statev1.KommoEntity{Type: e.Type, Id: e.ID}
}

func factsFromProto(f *statev1.KommoFacts) kommo.Facts {
	return kommo.Facts{Direction: kommo.Direction(f.GetDirection()), Phone: f.GetPhone(), Duration: f.GetDuration(), Status: kommo.Status(f.GetStatus()),
		StartedMS: f.GetStartedMs(), User: f.GetUser(), UserName: f.GetUserName(), DID: f.GetDid()}
}

func factsToProto(f *kommo.Facts) *statev1.KommoFacts {
	return &statev1.KommoFacts{Direction: string(f.Direction), Phone: f.Phone, Duration: f.Duration, Status: int32(f.Status),
		StartedMs: f.StartedMS, User: f.User, UserName: f.UserName, Did: f.DID}
}

func unknownFromProto(u *statev1.KommoUnknown) *kommo.Unknown {
	if u == nil {
		return nil
	}
	return &kommo.Unknown{Call: u.GetCall(), Ask: u.GetAsk(), LeadBody: u.GetLeadBody(), Waits: u.GetWaits(), Refused: u.GetRefused(),
		UntilMS: u.GetUntilMs(), Phone: u.GetPhone(), RequestID: u.GetRequestId(), Traceparent: u.GetTraceparent()}
}

func unknownToProto(u *kommo.Unknown) *statev1.KommoUnknown {
	if u == nil {
		return nil
	}
	return &statev1.KommoUnknown{Call: u.Call, Ask: u.Ask, LeadBody: u.LeadBody, Waits: u.Waits, Refused: u.Refused,
		UntilMs: u.UntilMS, Phone: u.Phone, RequestId: u.RequestID, Traceparent: u.Traceparent}
}

// kommoMessage is the body of a message to a record of Kommo's rules.
func kommoMessage(in kommo.Input) ([]byte, error) {
	m := &statev1.KommoInput{}
	switch {
	case in.Unknown != nil:
		m.Input = &statev1.KommoInput_Unknown{Unknown: unknownToProto(in.Unknown)}
	case in.Answer != nil:
		a := in.Answer
		m.Input = &statev1.KommoInput_Answer{Answer: &statev1.KommoAnswer{Kind: string(a.Kind), Ask: a.Ask, Entity: entityToProto(a.Entity),
			Uid: a.UID, Included: a.Included, NoteId: a.NoteID, Reason: a.Reason}}
	case in.Voip != nil:
		m.Input = &statev1.KommoInput_Voip{Voip: &statev1.KommoVoip{Facts: factsToProto(&in.Voip.Facts), Recording: in.Voip.Recording,
			RequestId: in.RequestID, Traceparent: in.Traceparent}}
	case in.Ringing != nil:
		m.Input = &statev1.KommoInput_Ringing{Ringing: &statev1.KommoRinging{Phone: in.Ringing.Phone, Users: in.Ringing.Users,
			RequestId: in.RequestID, Traceparent: in.Traceparent, RangMs: in.ReceivedMS}}
	default:
		return nil, fmt.Errorf("no message carries this: %+v", in)
	}
	return proto.Marshal(m)
}

// kommoMessageInput reads the body of a message.
func kommoMessageInput(body []byte) (kommo.Input, error) {
	m := &statev1.KommoInput{}
	if err := proto.Unmarshal(body, m); err != nil {
		return kommo.Input{}, fmt.Errorf("the message is unreadable: %w", err)
	}
	switch in := m.GetInput().(type) {
	case *statev1.KommoInput_Unknown:
		u := unknownFromProto(in.Unknown)
		return kommo.Input{Unknown: u, RequestID: u.RequestID, Traceparent: u.Traceparent}, nil
	case *statev1.KommoInput_Answer:
		a := in.Answer
		return kommo.Input{Answer: &kommo.Answer{Kind: kommo.AnswerKind(a.GetKind()), Ask: a.GetAsk(), Entity: entityFromProto(a.GetEntity()),
			UID: a.GetUid(), Included: a.GetIncluded(), NoteID: a.GetNoteId(), Reason: a.GetReason()}}, nil
	case *statev1.KommoInput_Voip:
		return kommo.Input{Voip: &kommo.Voip{Facts: factsFromProto(in.Voip.GetFacts()), Recording: in.Voip.GetRecording()},
			RequestID: in.Voip.GetRequestId(), Traceparent: in.Voip.GetTraceparent()}, nil
	case *statev1.KommoInput_Ringing:
		return kommo.Input{Ringing: &kommo.Ringing{Phone: in.Ringing.GetPhone(), Users: in.Ringing.GetUsers()},
			RequestID: in.Ringing.GetRequestId(), Traceparent: in.Ringing.GetTraceparent(), ReceivedMS: in.Ringing.GetRangMs()}, nil
	}
	return kommo.Input{}, fmt.Errorf("the message has a kind that this router does not know: it is older than the one that wrote it")
}

// kommoResult makes the rules' view of how a delivery ended. reply is what Kommo's client left of the answer
// (services/upstream/internal/kommo, Reply).
func kommoResult(d *statev1.Delivery, reply []byte) (*kommo.Result, error) {
	result := &kommo.Result{Delivery: d.GetNumber(), Endpoint: d.GetEndpoint(), Reason: d.GetReason()}
	switch d.GetState() {
	case statev1.DeliveryState_DELIVERY_STATE_DELIVERED:
		var said struct {
			Outcome    kommo.Outcome `json:"outcome"`
			NoteID     int64         `json:"note_id"`
			EntityType string        `json:"entity_type"`
			EntityID   int64         `json:"entity_id"`
			UID        string        `json:"uid"`
			LeadID     int64         `json:"lead_id"`
			ContactID  int64         `json:"contact_id"`
		}
		if err := json.Unmarshal(reply, &said); err != nil {
			return nil, fmt.Errorf("the reply to delivery %d is unreadable: %w", d.GetNumber(), err)
		}
		result.Outcome = said.Outcome
		result.Reply = kommo.Reply{NoteID: said.NoteID, UID: said.UID, LeadID: said.LeadID, ContactID: said.ContactID}
		if said.EntityID != 0 {
			result.Reply.Entity = kommo.Entity{Type: said.EntityType, ID: said.EntityID}
		}
		switch said.Outcome {
		case kommo.OK, kommo.NotFound, kommo.UnsortedOff, kommo.TooMany:
		default:
			return nil, fmt.Errorf("the reply to delivery %d has the outcome %q: want ok, not_found, unsorted_off or too_many", d.GetNumber(), said.Outcome)
		}
	case statev1.DeliveryState_DELIVERY_STATE_DISCARDED, statev1.DeliveryState_DELIVERY_STATE_SEND_DISABLED:
		result.Outcome = kommo.Dropped
	case statev1.DeliveryState_DELIVERY_STATE_DEAD, statev1.DeliveryState_DELIVERY_STATE_ASKED, statev1.DeliveryState_DELIVERY_STATE_EXPIRED:
		result.Outcome = kommo.Dead
		if d.GetUncertain() {
			result.Outcome = kommo.Uncertain
		}
	default:
		return nil, fmt.Errorf("delivery %d is not final", d.GetNumber())
	}
	return result, nil
}

func kommoDeliveries(deliveries []kommo.NewDelivery) []*statev1.Delivery {
	out := make([]*statev1.Delivery, len(deliveries))
	for i, d := range deliveries {
		out[i] = &statev1.Delivery{Number: d.Number, Destination: d.Destination, Endpoint: d.Endpoint, Payload: d.Payload,
			Gate: kommoGate(d.Number), RequestId: d.RequestID, Traceparent: d.Traceparent, MaxAgeMs: d.MaxAgeMS,
			ResultWanted: d.Endpoint != kommo.EndpointPopup}
	}
	return out
}

// kommoJournalEntry makes the stored form of a fact.
func kommoJournalEntry(fact kommo.Fact, requestID string, nowMS int64) *statev1.JournalEntry {
	e := &statev1.JournalEntry{AtMs: nowMS, RequestId: requestID}
	switch f := fact.(type) {
	case kommo.CallOutcome:
		e.Fact = &statev1.JournalEntry_Kommo{Kommo: &statev1.KommoOutcome{Name: f.Name, Entity: entityToProto(f.Entity), Deliveries: f.Deliveries, Reason: f.Reason}}
	case kommo.Note:
		e.Fact = &statev1.JournalEntry_Note{Note: string(f)}
	}
	return e
}
