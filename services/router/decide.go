package router

import (
	"time"

	routerv1 "callrelay/gen/callrelay/router/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/telemetry"
)

// Decider is what the service does between Load and Commit, without either: for whoever plays the protocol step by step.
type Decider struct{ engine *engine }

// NewDecider takes the rules of a configuration that passed Validate.
func NewDecider(cfg Config) (*Decider, error) {
	rules, options, err := cfg.Rules()
	if err != nil {
		return nil, err
	}
	e, err := newEngine(rules, options, telemetry.NewGroup(nil).Service("callrelay-router"), nil)
	return &Decider{e}, err
}

// Callback is the commit of a callback that was received at a moment of state's clock, on the call as it was loaded.
func (d *Decider) Callback(item *routerv1.RouteItem, state *statev1.CallState, receivedMS, nowMS int64) (*statev1.CommitItem, error) {
	in, err := d.engine.input(item, time.Now())
	if err != nil {
		return nil, err
	}
	commit, _, err := d.engine.decideOne(in, state, receivedMS, nowMS)
	return commit, err
}

// Timer is the commit of a timer that came due.
func (d *Decider) Timer(call string, entry *statev1.Entry, state *statev1.CallState, nowMS int64) (*statev1.CommitItem, error) {
	commit, _, err := d.engine.decideOne(entryInput(call, entry), state, max(nowMS, entry.GetDueMs()), nowMS)
	return commit, err
}
