package diagnose

import (
	"testing"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
)

func pbxFacts(facts_ ...any) Call {
	c := facts(facts_...)
	c.Key = "pbx/acme/C1"
	return c
}

func pbxSent(state statev1.DeliveryState, attempt *statev1.Attempt) Call {
	c := sent(state, attempt)
	c.Key = "pbx/acme/C1"
	c.Journal[0] = entry("r1", &statev1.Received{Source: "pbx.hangup"})
	c.Journal[1] = entry("r1", &statev1.Decided{Rule: "P3", Flow: "registered as incoming, answered", Leg: "l1", Deliveries: []uint32{1}})
	c.Deliveries[0].Destination = "webhook:acme"
	return c
}

// Every way in which a call of a cloud PBX can stop or go on: where, how bad, and the finding.
func TestPbxCalls(t *testing.T) {
	event := &statev1.Received{Source: "pbx.dial-in"}
	card := func(state string) *statev1.PbxCard { return &statev1.PbxCard{Id: "l1", State: state} }
	for _, c := range []struct {
		name  string
		call  Call
		level operatorv1.Level
		step  Step
		code  string
	}{
		{"nothing is stored", pbxFacts(), failed, Events, "pbx_nothing"},
		{"recorded late", pbxFacts(&statev1.Received{Source: "pbx.dial-in", AgeMs: 61_000}, card("ringing")), waiting, Decided, "pbx_in_progress"},
		{"rings", pbxFacts(event, card("ringing")), waiting, Decided, "pbx_in_progress"},
		{"rang", pbxFacts(event, card("ringing"), card("ended")), waiting, Decided, "pbx_not_yet"},
		{"a repeat of what is not decided", pbxFacts(event, &statev1.Duplicate{Of: "r0"}), waiting, Decided, "pbx_not_yet"},
		{"refused", pbxFacts(event, &statev1.Rejected{Status: 405}), failed, Understood, "pbx_refused"},
		{"no event that is known", with(pbxFacts(event, "an event of phone x cannot be understood: EventType is required"), func(c *Call) { c.Key = "request/r1" }), failed, Understood, "pbx_not_understood"},
		{"the rules failed", pbxFacts(event, &statev1.Undecided{Reason: "x"}), failed, Understood, "pbx_panicked"},
		{"the integration is gone", pbxFacts(event, "the integration x was deleted: nothing more is decided of this call"), failed, Decided, "pbx_no_integration"},
		{"events were lost", pbxFacts(event, &statev1.Decided{Rule: "P15", Flow: "unreconciled: it never hung up", Leg: "l1"}), failed, Decided, "pbx_unreconciled"},
		{"a local call", pbxFacts(event, &statev1.Decided{Rule: "P6", Flow: "ignored: a local call", Leg: "l1"}), ok, Events, "pbx_events"},
		{"in doubt at first, registered then", with(pbxSent(arrived, nil), func(c *Call) {
			c.Journal = append([]*statev1.JournalEntry{entry("r1", &statev1.Decided{Rule: "P15", Flow: "unreconciled: x", Leg: "l1"})}, c.Journal...)
		}), ok, Events, "pbx_events"},
		{"delivered", pbxSent(arrived, nil), ok, Events, "pbx_events"},
		{"waits", pbxSent(queued, nil), waiting, Delivered, "send_queued"},
		{"held", with(pbxSent(queued, nil), func(c *Call) { c.Holds = map[string]string{"webhook:acme": "x"} }), failed, Delivered, "send_held"},
		{"tried again", pbxSent(queued, &statev1.Attempt{Next: "retry", Error: "x"}), waiting, Delivered, "send_retrying"},
		{"being sent", pbxSent(leased, nil), waiting, Delivered, "send_sending"},
		{"dead", pbxSent(dead, nil), failed, Delivered, "pbx_dead"},
		{"too old", pbxSent(expired, nil), failed, Delivered, "send_expired"},
		{"given up by a person", pbxSent(dropped, nil), note, Delivered, "send_discarded"},
		{"nobody knows", pbxSent(asked, nil), failed, Delivered, "pbx_asked"},
	} {
		r := Diagnose(c.call)
		if len(r.GetSteps()) != len(pbxSteps) || r.GetLevel() != c.level {
			t.Errorf("%s: %s at %s", c.name, r.GetLevel(), r.GetStep())
		}
		found := false
		for i, s := range r.GetSteps() {
			if s.GetStep() != string(pbxSteps[i]) {
				t.Errorf("%s: step %d is %s", c.name, i, s.GetStep())
			}
			for _, f := range s.GetFindings() {
				found = found || s.GetStep() == string(c.step) && f.GetCode() == c.code && f.GetLevel() == c.level
			}
		}
		if !found {
			t.Errorf("%s: no %s %s in %v", c.name, c.level, c.code, r)
		}
	}
}
