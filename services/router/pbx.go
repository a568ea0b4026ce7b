package router

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"callrelay/callback"
	"callrelay/callback/pbxtable"
	"callrelay/callback/wire"
	routerv1 "callrelay/gen/callrelay/router/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/accounts"
	"callrelay/platform/config"
	"callrelay/platform/errkind"
	"callrelay/services/router/diagnose"
	"callrelay/services/router/pbx"
)

// pbxConfig is what can be set of the rules of cloud PBXs.
type pbxConfig struct {
	Grace       time.Duration `env:"PBX_GRACE" envDefault:"5s" desc:"How long after the last leg of a PBX call closed what its events did not say is decided."`
	MaxRing     time.Duration `env:"PBX_MAX_RING" envDefault:"120s" desc:"A PBX leg that neither was answered nor hung up for so long is over."`
	MaxTalk     time.Duration `env:"PBX_MAX_TALK" envDefault:"4h" desc:"An answered PBX leg that did not hang up for so long is over."`
	MaxWait     time.Duration `env:"PBX_MAX_WAIT" envDefault:"30m" desc:"How long after a queue or IVR rang phones in vain its hangup is waited for; then the missed call is registered without it."`
	InferAnswer config.Switch `env:"PBX_INFER_ANSWER" envDefault:"false" desc:"Take a hangup that says ANSWER for an answer whose event was lost; such registrations are marked."`
}

// check reports every problem.
func (c *pbxConfig) check() error {
	return c.of(&pbxtable.Integration{ID: "any", Prefix: "000", ExtensionLen: 3}).Check()
}

// of are the rules of an integration.
func (c *pbxConfig) of(n *pbxtable.Integration) *pbx.Config {
	rules := &pbx.Config{Grace: c.Grace, MaxRing: c.MaxRing, MaxTalk: c.MaxTalk, MaxWait: c.MaxWait, InferAnswer: bool(c.InferAnswer),
		Integration: n.ID, Destination: n.Destination(), Prefix: n.Prefix, ExtensionLen: n.ExtensionLen,
		KeepLocal: n.KeepLocal, DirectMissed: n.DirectMissed == nil || *n.DirectMissed, Users: map[string]string{}, Services: map[string]string{}}
	for _, x := range n.Extensions {
		rules.Users[x.Name] = x.User
		if (x.Type == pbx.Queue || x.Type == pbx.IVR) && len(x.Tokens) > 0 { // without one its hangup cannot come
			rules.Services[x.ID] = x.Name
		}
	}
	return rules
}

// pbxBlob is where the rules' state is in the record.
const pbxBlob = "pbx"

// pbxRules are the rules of all integrations, and which extensions gave recordings lately.
type pbxRules struct {
	config   pbxConfig
	follower *accounts.Follower
	known    atomic.Pointer[pbxKnown] // nil: state was not heard yet
	// recorded holds when an extension last gave a recording. After a restart it fills again; until then nobody asks for
	// recordings that are late.
	recorded sync.Map // integration/extension id -> time.Time
}

// pbxKnown is a copy of the table that state keeps.
type pbxKnown struct {
	rules    map[string]*pbx.Config // by integration
	versions map[string]*pbx.Config // the same by the version of the account
	problems map[string]error       // why an integration that is there has no rules
	gone     map[string]bool        // was there in an earlier copy
	began    time.Time              // what was changed before is in it
}

// take makes the rules of what state keeps.
func (r *pbxRules) take(list accounts.List, log func(msg string, args ...any)) {
	before := r.known.Load()
	now := &pbxKnown{rules: map[string]*pbx.Config{}, versions: map[string]*pbx.Config{}, problems: map[string]error{}, gone: map[string]bool{}, began: list.Began}
	for _, a := range list.Accounts {
		id := strings.TrimPrefix(a.GetId(), pbxtable.AccountPrefix)
		if before != nil && before.versions[a.GetVersion()] != nil {
			now.rules[id] = before.versions[a.GetVersion()]
			now.versions[a.GetVersion()] = now.rules[id]
			continue
		}
		stored, err := pbxtable.ParseStored(a.GetId(), a.GetSettings())
		if err == nil {
			now.rules[id] = r.config.of(&stored.Integration)
			now.versions[a.GetVersion()] = now.rules[id]
			continue
		}
		now.problems[id] = err
		if before == nil || before.problems[id] == nil {
			log("an integration cannot be used", "integration", id, "error", err)
		}
	}
	if before != nil {
		for _, ids := range []iter.Seq[string]{maps.Keys(before.rules), maps.Keys(before.problems), maps.Keys(before.gone)} {
			for id := range ids {
				if now.rules[id] == nil && now.problems[id] == nil {
					now.gone[id] = true
				}
			}
		}
	}
	r.known.Store(now)
}

// errNoIntegration: it was there when the event was taken, and somebody has deleted it since.
var errNoIntegration = errors.New("the integration was deleted")

// integrationPatience is how long one that this router never saw may be on its way: in an upgrade it comes with the upstream that
// reads the file, in a failover of Redis from a person.
const integrationPatience = time.Hour

// of are the rules of an integration. What was received before the copy was made is told for good that there is none, if it was
// there once or patience has ended; anything else has to be tried again.
func (r *pbxRules) of(integration string, since time.Time) (*pbx.Config, error) {
	known := r.known.Load()
	switch {
	case known == nil:
		return nil, errkind.Unavailable(nil, "the integrations are not known yet")
	case known.rules[integration] != nil:
		return known.rules[integration], nil
	case known.problems[integration] != nil:
		return nil, errkind.Unavailable(known.problems[integration], "the integration %s cannot be used", integration)
	case known.gone[integration] && since.Before(known.began), known.began.Sub(since) > integrationPatience:
		return nil, errNoIntegration
	}
	r.follower.Wake()
	return nil, errkind.Unavailable(nil, "this router does not know the integration %s yet", integration)
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
func (r *pbxRules) event(in *input, m *routerv1.PbxEvent) error {
	config, err := r.of(m.GetIntegration(), in.since)
	gone := errors.Is(err, errNoIntegration)
	if err != nil && !gone {
		return err
	}
	params := wire.Params(m.GetEvent())
	e, err := callback.DecodePbxEvent(params)
	in.received.Source = "pbx." + cmp.Or(e.Kind, "event")
	in.call = callback.RequestKey(in.id)
	if e.CallID != "" {
		in.call = callback.PbxCallKey(m.GetIntegration(), e.CallID)
	}
	in.pbx = &pbxInput{config: config}
	place := func() string {
		return fmt.Sprintf("%s %s (%s) of %s", m.GetType(), m.GetExtension(), m.GetExtensionId(), m.GetIntegration())
	}
	var refusal *callback.FieldError
	switch {
	case gone:
		in.pbx.note = pbxDeleted(m.GetIntegration())
		return nil
	case errors.As(err, &refusal):
		in.pbx.note = "an event of " + place() + " " + diagnose.NotUnderstood + ": " + refusal.Message
		return nil
	case err != nil:
		return errkind.Internal(err)
	case e.Kind == callback.PbxAgentLogin || e.Kind == callback.PbxAgentLogout:
		in.pbx.note = fmt.Sprintf("%s of agent %s, %s, on %s", e.Kind, e.Agent, e.AgentStatus, place())
		return nil
	}
	in.pbx.input = pbx.Input{RequestID: in.id, Traceparent: in.traceparent, Event: &e,
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
func (r *pbxRules) timer(in *input, name string) error {
	rest := strings.TrimPrefix(in.call, callback.Pbx+"/")
	integration, _, _ := strings.Cut(rest, "/")
	config, err := r.of(integration, in.since.Add(-time.Duration(in.entry.GetWaitingMs())*time.Millisecond))
	in.pbx = &pbxInput{config: config, input: pbx.Input{Timer: name}}
	if errors.Is(err, errNoIntegration) {
		in.pbx.note, err = pbxDeleted(integration), nil
	}
	return err
}

func pbxDeleted(integration string) string {
	return fmt.Sprintf("the integration %s %s", integration, diagnose.IntegrationDeleted)
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
	record, err := readRecord(state)
	if err != nil {
		return nil, false, err
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
	item.Outcome = outcomes[effects.Duplicate]
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
	if item.Messages, err = e.kommo.routes.pbxMessages(in.call, in.pbx.config, effects, next.Traceparent); err != nil {
		return nil, false, err
	}
	rings, err := e.kommo.ringMessages(in.call, in.pbx.config, effects, next.Traceparent, receivedMS)
	item.Messages = append(item.Messages, rings...)
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
		e.RequestId = cmp.Or(f.RequestID, requestID)
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
