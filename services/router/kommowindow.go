package router

import (
	"context"
	"time"

	"callrelay/callback"
	routerv1 "callrelay/gen/callrelay/router/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/errkind"
	"callrelay/services/router/kommo"
)

// oneTime is the token of a request of the call-result window: it is for one request alone, which is remembered for a while.
type oneTime struct {
	name string
	life time.Duration
}

// Bounds of a oneTime; state has them, too.
const (
	maxTokenName = 128
	maxTokenLife = 48 * time.Hour
)

// windowStates are the words of the window.
var windowStates = map[string]kommo.WindowState{"opened": kommo.WindowOpened, "saved": kommo.WindowSaved, "cancelled": kommo.WindowCancelled}

// window makes what the engine takes of what a manager did in the call-result window.
func (r *kommoRules) window(in *input, m *routerv1.KommoWindow) error {
	w := callback.KommoWindow{State: m.GetState(), CallID: m.GetCallId(), Direction: m.GetDirection(), Phone: m.GetPhone(),
		Duration: m.GetDuration(), StartedAt: m.GetStartedAt(), Result: m.GetResult(), UserID: m.GetUserId()}
	var entity kommo.Entity
	if m.GetEntityType() != "" || m.GetEntityId() != 0 {
		entity = kommo.Entity{Type: m.GetEntityType(), ID: m.GetEntityId()}
		w.Entity = &callback.KommoEntity{Type: entity.Type, ID: entity.ID}
	}
	if err := w.Check(); err != nil {
		return invalid(err)
	}
	token := oneTime{m.GetToken(), time.Duration(m.GetTokenForMs()) * time.Millisecond}
	if token.name == "" || len(token.name) > maxTokenName || token.life <= 0 || token.life > maxTokenLife {
		return errkind.Invalid("token", "token must have a name of 1 to %d bytes and a life of at most %v", maxTokenName, maxTokenLife)
	}
	in.call = kommo.CallKey(m.GetAccountId(), w.CallID)
	rules, err := r.reported(in, m.GetAccountId())
	if err != nil {
		return err
	}
	in.kommo = &kommoInput{rules: rules, token: &token, input: kommo.Input{RequestID: in.id, Traceparent: in.traceparent, Window: &kommo.Window{
		State: windowStates[w.State], Entity: entity, Result: w.Result,
		Facts: kommo.Facts{Direction: kommo.Direction(w.Direction), Phone: w.Phone, Duration: w.Duration, StartedMS: w.StartedAt * 1000, User: w.UserID}}}}
	return nil
}

// use makes the input's token its own, where it has one. It comes before the commit: a token that is used although its input is lost is
// still its request's, and whoever sends that again (with the same token and body it has the same id) may.
func (r *kommoRules) use(ctx context.Context, in *input) error {
	if in.kommo == nil || in.kommo.token == nil {
		return nil
	}
	answer, err := r.client.UseToken(ctx, &statev1.UseTokenRequest{Token: in.kommo.token.name, RequestId: in.id, ForMs: in.kommo.token.life.Milliseconds()})
	switch {
	case err != nil:
		return errkind.Unavailable(err, "whether the token was used before is not known now")
	case !answer.GetOurs():
		return errkind.Forbidden("the token was used for another request before: each request needs one of its own")
	}
	return nil
}

// decideAgain finds the reply of the rules to an input that was committed before.
func (e *engine) decideAgain(ctx context.Context, in *input) error {
	state, nowMS, err := e.loadCall(ctx, in.call)
	if err == nil {
		_, _, err = e.decideOne(in, state, nowMS, nowMS)
	}
	return err
}

// windowReply is what the window is told; nil: nothing.
func windowReply(in *input) *routerv1.WindowReply {
	if in.kommo == nil || in.kommo.reply == (kommo.WindowReply{}) {
		return nil
	}
	r := in.kommo.reply
	return &routerv1.WindowReply{Conflict: r.Conflict, EntityType: r.Entity.Type, EntityId: r.Entity.ID, Pending: r.Pending}
}
