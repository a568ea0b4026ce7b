package router

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"callrelay/callback"
	"callrelay/callback/wire"
	callbackv1 "callrelay/gen/callrelay/callback/v1"
	errorsv1 "callrelay/gen/callrelay/errors/v1"
	operatorv1 "callrelay/gen/callrelay/operator/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/errkind"
	"callrelay/platform/rpc"
	"callrelay/platform/telemetry"
	"callrelay/services/router/ameyo"
	"callrelay/services/router/diagnose"
	"callrelay/services/router/explain"
)

// Limits of what advice is asked.
const (
	maxCallbacks  = 100
	maxRulesTexts = 4
	maxRulesText  = 256 << 10
	maxSet        = 50
	maxReason     = 500
	maxValue      = 16 << 10
	// resendTime is how long the store may take; past it the outcome is unknown and the same request tells it.
	resendTime = 10 * time.Second
)

// advice serves diagnose, explain and resend.
type advice struct {
	operatorv1.UnimplementedAdviceServiceServer
	engine *engine
	shelf  *shelf
}

// callKey reads a call's key; a bare id is one of Ameyo's.
func callKey(text string) (string, error) {
	source, id, ok := strings.Cut(text, "/")
	if !ok {
		source, id = callback.Ameyo, text
	}
	if source == callback.Ameyo {
		normal, ok := callback.NormalCallID(id)
		if !ok {
			return "", errkind.Invalid("call", "call must be 1 to 18 digits or a key like ameyo/193416")
		}
		id = normal
	}
	if id == "" || len(text) > callback.MaxCallKey {
		return "", errkind.Invalid("call", "call is required, e.g. ameyo/193416")
	}
	return source + "/" + id, nil
}

func deliveryID(call string, number uint32) string {
	return call + "/" + strconv.FormatUint(uint64(number), 10)
}

// forState takes the caller along to state.
func forState(ctx context.Context, caller rpc.Caller) context.Context {
	caller.Masked = false // what is read is for the rules; what is shown is masked here
	return metadata.NewOutgoingContext(ctx, caller.Metadata())
}

// Diagnose walks the checklist over a call.
func (a *advice) Diagnose(ctx context.Context, req *operatorv1.DiagnoseRequest) (*operatorv1.DiagnoseResponse, error) {
	key, err := callKey(req.GetCall())
	if err != nil {
		return nil, err
	}
	caller := rpc.CallerOf(ctx)
	ctx = forState(ctx, caller)
	call, err := a.shelf.call(ctx, key)
	if err != nil {
		return nil, err
	}
	if call == nil {
		spooled, err := a.shelf.spooled(ctx)
		if err != nil {
			return nil, err
		}
		return diagnose.Diagnose(diagnose.Call{Key: key, Spooled: spooled}), nil
	}
	if call.Holds, call.Stuck, err = a.shelf.destinations(ctx); err != nil {
		return nil, err
	}
	if _, call.NowMS, err = a.engine.loadCall(ctx, key); err != nil {
		return nil, err
	}
	return diagnose.Diagnose(*call), nil // it shows no number: reasons and notes are masked where they are written
}

// Explain decides callbacks without any effect.
func (a *advice) Explain(ctx context.Context, req *operatorv1.ExplainRequest) (*operatorv1.ExplainResponse, error) {
	switch {
	case len(req.GetCallbacks()) == 0 || len(req.GetCallbacks()) > maxCallbacks:
		return nil, errkind.Invalid("callbacks", "callbacks must be 1 to %d", maxCallbacks)
	case len(req.GetRules()) > maxRulesTexts:
		return nil, errkind.Invalid("rules", "rules must be at most %d", maxRulesTexts)
	}
	inForce := a.engine.rules
	rules := []explain.Rules{{Name: inForce.Rules.Name() + " (" + inForce.Profile + ")", Config: inForce}}
	for i, text := range req.GetRules() {
		if len(text.GetText()) > maxRulesText {
			return nil, errkind.Invalid("rules", "a rules text is at most %d bytes long", maxRulesText)
		}
		name := cmp.Or(text.GetName(), fmt.Sprintf("rules %d", i+1))
		other, err := explain.With(inForce, name, []byte(text.GetText()), text.GetProfile())
		if err != nil {
			return nil, errkind.Invalid("rules", "%s", err)
		}
		rules = append(rules, other)
	}
	caller := rpc.CallerOf(ctx)
	ctx = forState(ctx, caller)
	var stored func(string) (ameyo.Call, error)
	if req.GetStored() {
		stored = func(key string) (ameyo.Call, error) {
			state, _, err := a.engine.loadCall(ctx, key)
			if err != nil {
				return ameyo.Call{}, err
			}
			call, _, err := readCall(state)
			return call, err
		}
	}
	nowMS, known := a.engine.clock.now()
	if !known {
		nowMS = time.Now().UnixMilli() // only shown
	}
	session := explain.NewSession(rules, a.engine.options, stored)
	resp := &operatorv1.ExplainResponse{}
	for _, text := range req.GetCallbacks() {
		answer, err := session.Explain(text, nowMS)
		if err != nil {
			return nil, err
		}
		e := answer.Proto(caller.Masked)
		if e.GetDiffers() {
			resp.Differing++
		}
		resp.Explanations = append(resp.Explanations, e)
	}
	return resp, nil
}

var resendID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// checkResend says what is wrong with a request to resend.
func checkResend(req *operatorv1.ResendRequest) error {
	switch {
	case req.GetRequestId() == "" || len(req.GetRequestId()) > 128:
		return errkind.Invalid("request_id", "request_id is required")
	case strings.TrimSpace(req.GetReason()) == "" || utf8.RuneCountInString(req.GetReason()) > maxReason:
		return errkind.Invalid("reason", "reason is required, at most %d characters: it is all that the next person will know", maxReason)
	case len(req.GetSet()) > maxSet:
		return errkind.Invalid("set", "set corrects at most %d parameters", maxSet)
	case req.GetResendId() != "" && !resendID.MatchString(req.GetResendId()):
		return errkind.Invalid("resend_id", "resend_id must be 1 to 64 letters, digits, - and _")
	}
	for name, value := range req.GetSet() {
		if name == "" || len(name) > 128 || len(value) > maxValue {
			return errkind.Invalid("set", "set must name parameters with values of at most %d bytes", maxValue)
		}
	}
	return nil
}

// Resend takes a callback through the rules again, in place of the request it came in.
func (a *advice) Resend(ctx context.Context, req *operatorv1.ResendRequest) (*operatorv1.ResendResponse, error) {
	if err := checkResend(req); err != nil {
		return nil, err
	}
	caller := rpc.CallerOf(ctx)
	if caller.Role != rpc.RoleOperator {
		return nil, errkind.Forbidden("resending needs the role operator")
	}
	ctx, cancel := context.WithTimeout(forState(ctx, caller), resendTime)
	defer cancel()
	of, key := req.GetRequestId(), req.GetCall()
	var err error
	if key == "" {
		key, err = a.shelf.callOf(ctx, of)
	} else {
		key, err = callKey(key)
	}
	if err != nil {
		return nil, err
	}
	stored, err := a.shelf.call(ctx, key)
	if err != nil {
		return nil, err
	}
	first, err := originOf(stored, of)
	if err != nil {
		return nil, err
	}
	in, err := a.corrected(req, first, caller)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(key, callback.CallKey(callback.Ameyo, "")) && in.call != key {
		return nil, errkind.Invalid("set", "the call id of an accepted callback cannot be corrected: discard its delivery and send the right callback anew (callrelay send)")
	}

	// A click that happened before is told from what it left.
	if done := a.resent(ctx, in); done != nil {
		return done, a.settle(ctx, key, in, first, stored)
	}
	if by := supersededBy(stored, of); by != "" && !req.GetForce() {
		return nil, errkind.Refused("request %s was replaced by request %s; resend that one, or use force", of, by)
	}
	if _, err := a.engine.process(ctx, in); err != nil {
		if done := a.resent(ctx, in); done != nil { // another click was faster
			return done, a.settle(ctx, key, in, first, stored)
		}
		return nil, err
	}
	if err := a.settle(ctx, key, in, first, stored); err != nil {
		return nil, err
	}
	if done := a.resent(ctx, in); done != nil {
		done.Already = false
		return done, nil
	}
	return &operatorv1.ResendResponse{RequestId: in.id, Call: in.call}, nil // the journal is full
}

// origin is a request as it was received.
type origin struct {
	entry    *statev1.JournalEntry
	received *statev1.Received
	rejected *statev1.Rejected
}

// source is what the request is. One that was refused before anybody said so is told by its path.
func (f *origin) source() string {
	switch source, path := f.received.GetSource(), f.rejected.GetPath(); {
	case source != "":
		return source
	case strings.HasPrefix(path, "/v1/kommo/") && strings.HasSuffix(path, "/call-results"):
		return sourceWindow
	case strings.HasPrefix(path, "/v1/kommo/"):
		return sourceKommo
	case strings.HasPrefix(path, "/ext-event/"):
		return "pbx.event"
	case strings.Contains(strings.ToLower(path), "start"):
		return explain.SourceStart
	}
	return explain.SourceEnd
}

func originOf(call *diagnose.Call, of string) (*origin, error) {
	f := &origin{}
	if call != nil {
		for _, e := range call.Journal {
			if e.GetRequestId() != of {
				continue
			}
			if r := e.GetReceived(); r != nil && f.entry == nil {
				f.entry, f.received = e, r
			}
			if r := e.GetRejected(); r != nil {
				f.rejected = r
			}
		}
	}
	if f.entry == nil {
		return nil, errkind.NotFound("there is no request %s, or it is no longer kept (say which call it belongs to if it was accepted)", of)
	}
	return f, nil
}

func supersededBy(call *diagnose.Call, of string) string {
	for _, e := range call.Journal {
		if a := e.GetAction(); e.GetRequestId() == of && a.GetWhat() == diagnose.Superseded {
			return a.GetRequestId()
		}
	}
	return ""
}

// corrected makes the input of the new request.
func (a *advice) corrected(req *operatorv1.ResendRequest, f *origin, caller rpc.Caller) (*input, error) {
	params := callback.ParseQuery(string(f.received.GetQuery()))
	for _, name := range slices.Sorted(maps.Keys(req.GetSet())) {
		params = slices.DeleteFunc(params, func(p callback.Param) bool { return p.Name == name })
		if value := req.GetSet()[name]; value != "" {
			params = append(params, callback.Param{Name: name, Value: value})
		}
	}
	query := params.Encode()
	// The same click has the same id. Inputs of different origin never share one.
	click := query
	if req.GetResendId() != "" {
		click = "id\n" + req.GetResendId()
	}
	sum := sha256.Sum256([]byte(req.GetRequestId() + "\n" + click))
	item := &routerv1.RouteItem{RequestId: "resend-" + base32.StdEncoding.EncodeToString(sum[:16])[:26], Query: []byte(query), Peer: f.received.GetPeer()}

	source := f.source()
	params = callback.ParseQuery(query) // as it will be read from the journal
	switch source {
	case explain.SourceStart:
		m := &callbackv1.AmeyoCallStart{}
		wire.Fill(m, params)
		item.Callback = &routerv1.RouteItem_AmeyoCallStart{AmeyoCallStart: m}
	case explain.SourceEnd:
		m := &callbackv1.AmeyoCallEnd{}
		wire.Fill(m, params)
		item.Callback = &routerv1.RouteItem_AmeyoCallEnd{AmeyoCallEnd: m}
	case sourceKommo:
		return nil, errkind.Refused("only callbacks of the dialer can be resent, and this is a call reported for Kommo: report it again, corrected, " +
			"with its call_id (POST /v1/kommo/ACCOUNT/calls). Deliveries that it led to are sent again by callrelay retry")
	case sourceWindow:
		return nil, errkind.Refused("only callbacks of the dialer can be resent, and this is what a manager did in Kommo's call-result window: " +
			"let the manager save it again. Deliveries that it led to are sent again by callrelay retry")
	default:
		return nil, errkind.Refused("only callbacks of the dialer can be resent, and this is an event of a cloud PBX: " +
			"what it said cannot be corrected here. Deliveries that its call led to are sent again by callrelay retry")
	}
	in, err := a.engine.input(item, time.Now())
	if err != nil {
		return nil, err
	}
	in.receivedMS = f.entry.GetAtMs() - f.received.GetAgeMs()
	in.resend = &resending{of: req.GetRequestId(), force: req.GetForce(),
		action: &statev1.Action{Actor: caller.Actor, What: "resend", Reason: telemetry.MaskDigits(req.GetReason()), RequestId: req.GetRequestId()}}
	return in, nil
}

// resent tells what the new request became; nil when it is not there.
func (a *advice) resent(ctx context.Context, in *input) *operatorv1.ResendResponse {
	call, err := a.shelf.call(ctx, in.call)
	if err != nil || call == nil {
		return nil
	}
	var resp *operatorv1.ResendResponse
	for _, e := range call.Journal {
		if e.GetRequestId() != in.id {
			continue
		}
		if resp == nil {
			resp = &operatorv1.ResendResponse{RequestId: in.id, Call: in.call, Already: true}
		}
		if d := e.GetDecided(); d != nil {
			resp.Rule, resp.Flow, resp.Deliveries = d.GetRule(), d.GetFlow(), d.GetDeliveries()
		}
	}
	return resp
}

// settle ends what the new request replaced: the mark on a refused one's own record, and deliveries that wait for a person.
// None of it can be sent any more, so it does not matter if this is done late or twice.
func (a *advice) settle(ctx context.Context, key string, in *input, f *origin, stored *diagnose.Call) error {
	if key != in.call {
		nowMS, known := a.engine.clock.now()
		if !known {
			nowMS = f.entry.GetAtMs()
		}
		item := newCommit(&input{id: in.id + ":" + diagnose.Superseded, call: key}, "", nowMS, in.supersededEntry(nowMS))
		for range conflicts {
			answer, err := a.engine.commitOne(ctx, item)
			if err != nil {
				return err
			}
			if answer.GetStatus() != statev1.CommitStatus_COMMIT_STATUS_CONFLICT {
				break
			}
			item = proto.CloneOf(item)
			item.ExpectedVersion = answer.GetCurrent().GetVersion()
		}
	}
	for _, d := range stored.Deliveries {
		if d.GetRequestId() != in.resend.of {
			continue
		}
		switch d.GetState() {
		case statev1.DeliveryState_DELIVERY_STATE_DEAD, statev1.DeliveryState_DELIVERY_STATE_ASKED, statev1.DeliveryState_DELIVERY_STATE_EXPIRED:
			err := a.shelf.discard(ctx, key, d.GetNumber(), in.resend.action.GetActor(), "superseded by request "+in.id)
			if err != nil && errkind.From(err).Kind != errorsv1.Kind_KIND_REFUSED { // refused: somebody settled it meanwhile
				return err
			}
		}
	}
	return nil
}

// resending is what an input carries that replaces a request.
type resending struct {
	of     string
	force  bool
	action *statev1.Action
}

// resendEntries are the journal's facts about it.
func (in *input) resendEntries(nowMS int64) []*statev1.JournalEntry {
	entries := []*statev1.JournalEntry{{AtMs: nowMS, RequestId: in.id, Fact: &statev1.JournalEntry_Action{Action: in.resend.action}}}
	return append(entries, in.supersededEntry(nowMS))
}

func (in *input) supersededEntry(nowMS int64) *statev1.JournalEntry {
	a := in.resend.action
	return &statev1.JournalEntry{AtMs: nowMS, RequestId: in.resend.of, Fact: &statev1.JournalEntry_Action{
		Action: &statev1.Action{Actor: a.GetActor(), What: diagnose.Superseded, Reason: a.GetReason(), RequestId: in.id}}}
}

// refusal makes the rules' refusal one for the caller.
func refusal(err error) error {
	r, ok := errors.AsType[*ameyo.Refusal](err)
	if !ok {
		return err
	}
	if r.NeedsForce {
		return errkind.Refused("%s; force resends it all the same", r.Message)
	}
	return errkind.Refused("%s", r.Message)
}
