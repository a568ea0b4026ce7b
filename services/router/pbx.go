package router

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"callrelay/callback"
	"callrelay/callback/pbxtable"
	"callrelay/callback/wire"
	routerv1 "callrelay/gen/callrelay/router/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/config"
	"callrelay/platform/errkind"
	"callrelay/services/router/pbx"
)

// pbxConfig is what can be set of the rules of cloud PBXs.
type pbxConfig struct {
	Integrations string        `env:"PBX_INTEGRATIONS" desc:"File with the table of cloud PBX integrations (docs/pbx.md), the same for ingress, router and upstream; empty means none."`
	Grace        time.Duration `env:"PBX_GRACE" envDefault:"5s" desc:"How long after the last leg of a PBX call closed what its events did not say is decided."`
	MaxRing      time.Duration `env:"PBX_MAX_RING" envDefault:"120s" desc:"A PBX leg that neither was answered nor hung up for so long is over."`
	MaxTalk      time.Duration `env:"PBX_MAX_TALK" envDefault:"4h" desc:"An answered PBX leg that did not hang up for so long is over."`
	InferAnswer  config.Switch `env:"PBX_INFER_ANSWER" envDefault:"false" desc:"Take a hangup that says ANSWER for an answer whose event was lost; such registrations are marked."`
}

// rules are those of each integration, by its id.
func (c *pbxConfig) rules() (map[string]*pbx.Config, error) {
	table := &pbxtable.Table{}
	if c.Integrations != "" {
		data, err := os.ReadFile(c.Integrations)
		if err == nil {
			table, err = pbxtable.Parse(data)
		}
		if err != nil {
			return nil, fmt.Errorf("PBX_INTEGRATIONS: %w", err)
		}
	}
	times := pbx.Config{Grace: c.Grace, MaxRing: c.MaxRing, MaxTalk: c.MaxTalk, InferAnswer: bool(c.InferAnswer)}
	any := times // a wrong time is reported once, and also without integrations
	any.Integration, any.Destination, any.Prefix, any.ExtensionLen = "any", "any", "000", 3
	if err := any.Check(); err != nil {
		return nil, err
	}
	rules := map[string]*pbx.Config{}
	for _, n := range table.Integrations {
		one := times
		one.Integration, one.Destination, one.Prefix, one.ExtensionLen = n.ID, n.Destination(), n.Prefix, n.ExtensionLen
		one.KeepLocal, one.DirectMissed = n.KeepLocal, n.DirectMissed == nil || *n.DirectMissed
		one.Users = map[string]string{}
		for _, x := range n.Extensions {
			one.Users[x.Name] = x.User
		}
		rules[n.ID] = &one
	}
	return rules, nil
}

// pbxBlob is where the rules' state is in the record.
const pbxBlob = "pbx"

// pbxRules are the rules of all integrations, and which extensions gave recordings lately.
type pbxRules struct {
	configs map[string]*pbx.Config
	// recorded holds when an extension last gave a recording. After a restart it fills again; until then nobody asks for
	// recordings that are late.
	recorded sync.Map // integration/extension id -> time.Time
}

// recordingWanted is for how long after a recording the next one is expected (spec/pbx.md, P16).
const recordingWanted = 7 * 24 * time.Hour

// pbxInput is an input of a PBX call.
type pbxInput struct {
	config *pbx.Config
	input  pbx.Input
	// note is set instead: nothing is to be decided, only this is to be recorded.
	note string
}

// event makes what the engine takes of an event. Whatever it holds is recorded: with its call where it names one, else as
// a request of its own.
func (r *pbxRules) event(in *input, item *routerv1.RouteItem, m *routerv1.PbxEvent) error {
	config := r.configs[m.GetIntegration()]
	if config == nil {
		// Ingress knows it, so this router was started with another table. It is not lost: nothing is acknowledged.
		return errkind.Unavailable(fmt.Errorf("no integration %q in PBX_INTEGRATIONS", m.GetIntegration()), "this router does not know the integration yet")
	}
	params := wire.Params(m.GetEvent())
	e, err := callback.DecodePbxEvent(params)
	in.received.Source = "pbx." + cmp.Or(e.Kind, "event")
	in.call = callback.RequestKey(item.GetRequestId())
	if e.CallID != "" {
		in.call = callback.PbxCallKey(m.GetIntegration(), e.CallID)
	}
	in.pbx = &pbxInput{config: config}
	place := fmt.Sprintf("%s %s (%s) of %s", m.GetType(), m.GetExtension(), m.GetExtensionId(), m.GetIntegration())
	var refusal *callback.FieldError
	switch {
	case errors.As(err, &refusal):
		in.pbx.note = "an event of " + place + " cannot be understood: " + refusal.Message
		return nil
	case err != nil:
		return errkind.Internal(err)
	case e.Kind == callback.PbxAgentLogin || e.Kind == callback.PbxAgentLogout:
		in.pbx.note = fmt.Sprintf("%s of agent %s, %s, on %s", e.Kind, e.Agent, e.AgentStatus, place)
		return nil
	}
	in.pbx.input = pbx.Input{RequestID: item.GetRequestId(), Traceparent: item.GetTraceparent(), Event: &e,
		ExtensionID: m.GetExtensionId(), Extension: m.GetExtension(), Type: m.GetType(), WantRecording: r.wantRecording(m, e.RecordID)}
	return nil
}

func (r *pbxRules) wantRecording(m *routerv1.PbxEvent, recordID string) bool {
	key := m.GetIntegration() + "/" + m.GetExtensionId()
	if recordID != "" {
		r.recorded.Store(key, time.Now())
	}
	last, ok := r.recorded.Load(key)
	return ok && time.Since(last.(time.Time)) < recordingWanted
}

// timer makes what the engine takes of a timer of a PBX call.
func (r *pbxRules) timer(in *input, name string) {
	rest := strings.TrimPrefix(in.call, callback.Pbx+"/")
	integration, _, _ := strings.Cut(rest, "/")
	in.pbx = &pbxInput{config: r.configs[integration], input: pbx.Input{Timer: name}}
	if in.pbx.config == nil {
		in.pbx.note = fmt.Sprintf("the integration %s is not in PBX_INTEGRATIONS any more: nothing more is decided of this call", integration)
	}
}

// decidePbx asks the rules and makes the commit of what they say.
func (e *engine) decidePbx(in *input, state *statev1.CallState, receivedMS, nowMS int64) (*statev1.CommitItem, bool, error) {
	var entries []*statev1.JournalEntry
	if in.received != nil {
		entries = append(entries, received(in, nowMS, receivedMS))
	}
	if in.pbx.note != "" {
		entries = append(entries, pbxJournalEntry(pbx.Note(in.pbx.note), in.id, nowMS))
		return newCommit(in, state.GetVersion(), nowMS, entries...), false, nil
	}
	record := &statev1.Record{}
	if err := proto.Unmarshal(state.GetRecord(), record); err != nil {
		return nil, false, fmt.Errorf("the stored record is unreadable: %w", err)
	}
	call, err := readPbxCall(record)
	if err != nil {
		return nil, false, err
	}
	in.pbx.input.ReceivedMS = receivedMS
	next, effects := pbx.Decide(in.pbx.config, call, in.pbx.input, nowMS)
	for _, fact := range effects.Facts {
		entries = append(entries, pbxJournalEntry(fact, effects.RequestID, nowMS))
	}
	item := newCommit(in, state.GetVersion(), nowMS, entries...)
	item.Outcome = &statev1.Outcome{Duplicate: effects.Duplicate}
	if !effects.Changed {
		return item, effects.Duplicate, nil
	}
	item.CommitId = rand.Text()
	if item.Record, err = writePbxCall(next, record); err != nil {
		return nil, false, err
	}
	for _, d := range effects.Deliveries {
		item.Deliveries = append(item.Deliveries, &statev1.Delivery{Number: d.Number, Destination: d.Destination, Endpoint: d.Endpoint,
			Payload: d.Payload, RequestId: d.RequestID, Traceparent: d.Traceparent})
	}
	for _, change := range effects.Cards {
		card := pbxCard(change.ID, change.Card)
		card.OpenMs = in.pbx.config.CardTime(change.Card).Milliseconds()
		item.Cards = append(item.Cards, card)
	}
	if effects.SetTimerMS > 0 {
		item.SetTimers = []*statev1.Timer{{Name: pbx.TimerName, InMs: effects.SetTimerMS}}
	}
	if effects.CancelTimer {
		item.CancelTimers = []string{pbx.TimerName}
	}
	item.Messages, err = e.kommo.routes.pbxMessages(in.call, in.pbx.config, effects, next.Traceparent)
	return item, effects.Duplicate, err
}

// readPbxCall makes the rules' view of what state loaded.
func readPbxCall(record *statev1.Record) (pbx.Call, error) {
	stored := &statev1.PbxCall{}
	if err := proto.Unmarshal(record.GetBlobs()[pbxBlob], stored); err != nil {
		return pbx.Call{}, fmt.Errorf("the stored PBX call is unreadable: %w", err)
	}
	call := pbx.Call{CallID: stored.GetCallId(), Started: stored.GetStarted(), NextDelivery: record.GetNextDelivery(), Missed: stored.GetMissed(),
		QuietMS: stored.GetQuietMs(), History: readAsk(stored.GetHistory()), Recording: readAsk(stored.GetRecording()),
		WakeMS: stored.GetWakeMs(), RequestID: stored.GetRequestId(), Traceparent: stored.GetTraceparent()}
	for _, l := range stored.GetLegs() {
		leg := pbx.Leg{SubCallID: l.GetSubCallId(), ExtensionID: l.GetExtensionId(), Extension: l.GetExtension(), Type: l.GetType(),
			Dial: readSaid(l.GetDial()), Answer: readSaid(l.GetAnswer()), Hangup: readSaid(l.GetHangup()),
			Delivery: l.GetDelivery(), Recorded: l.GetRecorded(), WantRecording: l.GetWantRecording(), Outcome: l.GetOutcome()}
		if h := l.GetAsked(); h != nil {
			leg.Asked = &pbx.HistoryLeg{ExtensionID: h.GetExtensionId(), Flow: h.GetFlow(), Number: h.GetNumber(), Answered: h.GetAnswered(),
				DurationUS: h.GetDurationUs(), RecordID: h.GetRecordId()}
		}
		if c := l.GetCard(); c != nil {
			leg.Card = pbx.Card{User: c.GetUser(), State: c.GetState(), Direction: c.GetDirection(), Number: c.GetNumber(), DID: c.GetDid(),
				Extension: c.GetExtension(), TakenBy: c.GetTakenBy(), Version: c.GetVersion()}
		}
		call.Legs = append(call.Legs, leg)
	}
	return call, nil
}

func readAsk(a *statev1.PbxAsk) pbx.Ask {
	return pbx.Ask{SinceMS: a.GetSinceMs(), DueMS: a.GetDueMs(), Tries: a.GetTries(), GivenUp: a.GetGivenUp()}
}

func readSaid(s *statev1.PbxSaid) pbx.Said {
	return pbx.Said{AtUS: s.GetAtUs(), ReceivedMS: s.GetReceivedMs(), RequestID: s.GetRequestId(), Flow: s.GetFlow(), Status: s.GetStatus(),
		Caller: s.GetCaller(), Called: s.GetCalled(), Remote: s.GetRemote(), DID: s.GetDid(),
		CallerExtensionID: s.GetCallerExtensionId(), CalledExtensionID: s.GetCalledExtensionId(), CallBackID: s.GetCallBackId(),
		Bridged: s.GetBridged(), Transfered: s.GetTransfered(), HasDuration: s.GetHasDuration(), DurationUS: s.GetDurationUs(), RecordID: s.GetRecordId()}
}

// writePbxCall makes the record to store. What other rule packages keep in it stays.
func writePbxCall(call pbx.Call, record *statev1.Record) ([]byte, error) {
	stored := &statev1.PbxCall{CallId: call.CallID, Started: call.Started, Missed: call.Missed, QuietMs: call.QuietMS,
		History: writeAsk(call.History), Recording: writeAsk(call.Recording),
		WakeMs: call.WakeMS, RequestId: call.RequestID, Traceparent: call.Traceparent}
	for i := range call.Legs {
		l := &call.Legs[i]
		leg := &statev1.PbxLeg{SubCallId: l.SubCallID, ExtensionId: l.ExtensionID, Extension: l.Extension, Type: l.Type,
			Dial: writeSaid(l.Dial), Answer: writeSaid(l.Answer), Hangup: writeSaid(l.Hangup),
			Delivery: l.Delivery, Recorded: l.Recorded, WantRecording: l.WantRecording, Outcome: l.Outcome}
		if h := l.Asked; h != nil {
			leg.Asked = &statev1.PbxHistoryLeg{ExtensionId: h.ExtensionID, Flow: h.Flow, Number: h.Number, Answered: h.Answered,
				DurationUs: h.DurationUS, RecordId: h.RecordID}
		}
		if l.Card != (pbx.Card{}) {
			leg.Card = pbxCard("", l.Card)
		}
		stored.Legs = append(stored.Legs, leg)
	}
	blob, err := proto.Marshal(stored)
	if err != nil {
		return nil, err
	}
	if record.Blobs == nil {
		record.Blobs = map[string][]byte{}
	}
	record.NextDelivery, record.Blobs[pbxBlob] = call.NextDelivery, blob
	return proto.Marshal(record)
}

func writeAsk(a pbx.Ask) *statev1.PbxAsk {
	if a == (pbx.Ask{}) {
		return nil
	}
	return &statev1.PbxAsk{SinceMs: a.SinceMS, DueMs: a.DueMS, Tries: a.Tries, GivenUp: a.GivenUp}
}

func writeSaid(s pbx.Said) *statev1.PbxSaid {
	if s == (pbx.Said{}) {
		return nil
	}
	return &statev1.PbxSaid{AtUs: s.AtUS, ReceivedMs: s.ReceivedMS, RequestId: s.RequestID, Flow: s.Flow, Status: s.Status,
		Caller: s.Caller, Called: s.Called, Remote: s.Remote, Did: s.DID,
		CallerExtensionId: s.CallerExtensionID, CalledExtensionId: s.CalledExtensionID, CallBackId: s.CallBackID,
		Bridged: s.Bridged, Transfered: s.Transfered, HasDuration: s.HasDuration, DurationUs: s.DurationUS, RecordId: s.RecordID}
}

func pbxCard(id string, c pbx.Card) *statev1.PbxCard {
	return &statev1.PbxCard{Id: id, User: c.User, State: c.State, Direction: c.Direction, Number: c.Number, Did: c.DID,
		Extension: c.Extension, TakenBy: c.TakenBy, Version: c.Version}
}

// pbxJournalEntry makes the stored form of a fact.
func pbxJournalEntry(fact pbx.Fact, requestID string, nowMS int64) *statev1.JournalEntry {
	e := &statev1.JournalEntry{AtMs: nowMS, RequestId: requestID}
	switch f := fact.(type) {
	case pbx.Decided:
		d := &statev1.Decided{Rule: f.Rule, Flow: f.What, Leg: f.Leg}
		if f.Delivery > 0 {
			d.Deliveries = []uint32{f.Delivery}
		}
		e.Fact = &statev1.JournalEntry_Decided{Decided: d}
	case pbx.Duplicate:
		e.Fact = &statev1.JournalEntry_Duplicate{Duplicate: &statev1.Duplicate{Of: f.Of, Gate: "known", Key: f.Key, Flow: "pbx"}}
	case pbx.CardChange:
		e.Fact = &statev1.JournalEntry_Card{Card: pbxCard(f.ID, f.Card)}
	case pbx.Note:
		e.Fact = &statev1.JournalEntry_Note{Note: string(f)}
	}
	return e
}
