package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"callrelay/callback"
	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/errkind"
	"callrelay/platform/rpc"
	"callrelay/platform/telemetry"
	"callrelay/services/state/internal/store"
	"callrelay/services/state/internal/words"
)

// operator serves the operator's contract (proto/callrelay/operator/v1).
type operator struct {
	operatorv1.UnimplementedOperatorServiceServer
	*Service
}

// caller says who asks and whether phone numbers are masked for them.
func caller(ctx context.Context) (actor string, masked bool) {
	c := rpc.CallerOf(ctx)
	return cut(c.Actor, 200), c.Masked
}

// GetCall shows one call.
func (o *operator) GetCall(ctx context.Context, req *operatorv1.GetCallRequest) (*operatorv1.Call, error) {
	c, err := o.call(ctx, callKey(req.GetCall()))
	if err != nil {
		return nil, err
	}
	_, masked := caller(ctx)
	out := &operatorv1.Call{Call: c.Key, Version: c.Version, Record: c.Record, JournalDropped: c.JournalDropped,
		Deliveries: o.deliveries(c, masked, true), Journal: entries(c.Key, c.Journal, masked)}
	for _, e := range c.Journal {
		if id := e.GetReceived().GetTraceId(); id != "" {
			out.TraceIds = append(out.TraceIds, id)
		}
	}
	if masked {
		for _, g := range out.GetRecord().GetGates() {
			g.Key = words.MaskGate(g.GetKey())
		}
		for _, p := range out.GetRecord().GetPhone1() {
			p.Gate, p.TakenBy = words.MaskGate(p.GetGate()), words.MaskGate(p.GetTakenBy())
		}
		out.Record.Blobs = nil // nobody here knows what is in them
	}
	return out, nil
}

// callKey reads a call as people name it: a key, or the dialer's bare id.
func callKey(call string) string {
	if id, ok := callback.NormalCallID(call); ok {
		return callback.CallKey(callback.Ameyo, id)
	}
	return call
}

func (s *Service) call(ctx context.Context, key string) (*store.Call, error) {
	if key == "" || len(key) > callback.MaxCallKey {
		return nil, errkind.Invalid("call", "call is required, e.g. ameyo/193416")
	}
	c, err := s.store.Call(ctx, key)
	if err != nil {
		return nil, unavailable(err)
	}
	if c == nil {
		return nil, errkind.NotFound("nothing is stored of %s: it never came in, or it ended more than %s ago", key, s.cfg.CallRetention)
	}
	return c, nil
}

// entries makes the operator's view of a piece of journal, which it changes.
func entries(call string, journal []*statev1.JournalEntry, masked bool) []*operatorv1.Entry {
	if masked {
		call = telemetry.MaskCall(call)
	}
	out := make([]*operatorv1.Entry, len(journal))
	for i, e := range journal {
		if masked {
			words.Mask(e)
		}
		out[i] = &operatorv1.Entry{Call: call, Text: words.Entry(e), Fact: e}
	}
	return out
}

func (s *Service) deliveries(c *store.Call, masked, payload bool) []*operatorv1.Delivery {
	out := make([]*operatorv1.Delivery, len(c.Deliveries))
	for i, d := range c.Deliveries {
		out[i] = s.delivery(c, d, masked, payload)
	}
	return out
}

func (s *Service) delivery(c *store.Call, d *statev1.Delivery, masked, payload bool) *operatorv1.Delivery {
	if d = proto.CloneOf(d); masked {
		words.MaskDelivery(d)
	}
	out := &operatorv1.Delivery{Id: c.Key + "/" + strconv.Itoa(int(d.GetNumber())), Call: c.Key, State: s.stateWord(d), Facts: d}
	if payload {
		out.Payload = strings.ToValidUTF8(string(d.GetPayload()), "\uFFFD")
	}
	d.Payload = nil
	return out
}

// stateWord is the state of a delivery in the operator's words.
func (s *Service) stateWord(d *statev1.Delivery) string {
	switch d.GetState() {
	case statev1.DeliveryState_DELIVERY_STATE_QUEUED:
		switch {
		case s.dispatch.HoldOf(d.GetDestination()).Held():
			return "held"
		case d.GetAttempts() > 0:
			return "retrying"
		}
		return "queued"
	case statev1.DeliveryState_DELIVERY_STATE_LEASED:
		return "sending"
	}
	return words.State(d.GetState())
}

// GetRequest shows one callback.
func (o *operator) GetRequest(ctx context.Context, req *operatorv1.GetRequestRequest) (*operatorv1.Request, error) {
	id := req.GetRequestId()
	if id == "" || len(id) > 200 {
		return nil, errkind.Invalid("request_id", "request_id is required")
	}
	page, err := o.store.Find(ctx, id, 0, 10, "")
	if err != nil {
		return nil, unavailable(err)
	}
	_, masked := caller(ctx)
	for _, key := range append(page.Calls, callback.RequestKey(id)) {
		c, err := o.store.Call(ctx, key)
		if err != nil {
			return nil, unavailable(err)
		}
		if c == nil {
			continue
		}
		counted, ok := c.Counted[id]
		if !ok {
			continue
		}
		out := &operatorv1.Request{RequestId: id, Call: key, Bucket: bucketNames[counted.Bucket]}
		c.Journal = slices.DeleteFunc(c.Journal, func(e *statev1.JournalEntry) bool {
			return e.GetRequestId() != id && e.GetPhone1().GetRequestId() != id
		})
		c.Deliveries = slices.DeleteFunc(c.Deliveries, func(d *statev1.Delivery) bool { return d.GetRequestId() != id })
		out.Journal, out.Deliveries = entries(key, c.Journal, masked), o.deliveries(c, masked, true)
		return out, nil
	}
	return nil, errkind.NotFound("no request %s is known: it never came in, or its call ended more than %s ago", id, o.cfg.CallRetention)
}

// RetryDelivery queues a delivery again.
func (o *operator) RetryDelivery(ctx context.Context, req *operatorv1.RetryDeliveryRequest) (*operatorv1.Delivery, error) {
	actor, _ := caller(ctx)
	return o.one(ctx, req.GetDelivery(), req.GetEndedMs(), &statev1.Action{Actor: actor, What: "retry", Reason: req.GetReason()}, retryable)
}

// DiscardDelivery ends a delivery for good.
func (o *operator) DiscardDelivery(ctx context.Context, req *operatorv1.DiscardDeliveryRequest) (*operatorv1.Delivery, error) {
	if req.GetReason() == "" {
		return nil, errReason
	}
	actor, _ := caller(ctx)
	return o.one(ctx, req.GetDelivery(), req.GetEndedMs(), &statev1.Action{Actor: actor, What: "discard", Reason: req.GetReason()}, discardable)
}

var errReason = errkind.Invalid("reason", "reason is required: it is all that the next person will know")

// maxReason bounds what a person says, in bytes.
const maxReason = 1000

// one retries or discards the delivery with the id.
func (o *operator) one(ctx context.Context, id string, endedMS int64, a *statev1.Action, allowed permission) (*operatorv1.Delivery, error) {
	slash := strings.LastIndexByte(id, '/')
	n, err := strconv.ParseUint(id[slash+1:], 10, 32)
	if slash < 1 || err != nil || n == 0 {
		return nil, errkind.Invalid("delivery", "delivery must be <call>/<number>, e.g. ameyo/193416/1")
	}
	if len(a.GetReason()) > maxReason {
		return nil, errkind.Invalid("reason", "reason is longer than %d bytes", maxReason)
	}
	a.Delivery = uint32(n)
	c, err := o.settle(ctx, id[:slash], a, func(c *store.Call, d *statev1.Delivery) error {
		if endedMS != 0 && d.GetFinalMs() != endedMS {
			return errkind.Refused("delivery %d ended again since it was looked at, or is not ended any more", d.GetNumber())
		}
		return allowed(c, d)
	})
	if err != nil {
		return nil, err
	}
	_, masked := caller(ctx)
	return o.delivery(c, c.Deliveries[n-1], masked, false), nil
}

// permission says why a delivery must not be retried or discarded.
type permission func(*store.Call, *statev1.Delivery) error

func retryable(c *store.Call, d *statev1.Delivery) error {
	switch d.GetState() {
	case statev1.DeliveryState_DELIVERY_STATE_DEAD, statev1.DeliveryState_DELIVERY_STATE_ASKED, statev1.DeliveryState_DELIVERY_STATE_EXPIRED:
	default:
		return errkind.Refused("delivery %d is %s; only dead, asked and expired deliveries can be retried", d.GetNumber(), stateWords[d.GetState()])
	}
	if d.GetEndpoint() == "" {
		return errkind.Refused("what was stored of delivery %d could not be read, so there is nothing to send: it can only be discarded", d.GetNumber())
	}
	for _, g := range slices.Backward(c.Record.GetGates()) { // the newest of its key comes last
		if g.GetKey() != d.GetGate() {
			continue
		}
		if g.GetOwner() != d.GetRequestId() {
			return errkind.Refused("delivery %d is superseded: request %s came later and was accepted in its place", d.GetNumber(), g.GetOwner())
		}
		break
	}
	return nil
}

func discardable(_ *store.Call, d *statev1.Delivery) error {
	switch d.GetState() {
	case statev1.DeliveryState_DELIVERY_STATE_DEAD, statev1.DeliveryState_DELIVERY_STATE_ASKED,
		statev1.DeliveryState_DELIVERY_STATE_EXPIRED, statev1.DeliveryState_DELIVERY_STATE_QUEUED:
		return nil
	}
	return errkind.Refused("delivery %d is %s and cannot be discarded", d.GetNumber(), stateWords[d.GetState()])
}

// stateWords are the states of a delivery as people say them.
var stateWords = map[statev1.DeliveryState]string{
	statev1.DeliveryState_DELIVERY_STATE_QUEUED:        "queued",
	statev1.DeliveryState_DELIVERY_STATE_LEASED:        "being sent",
	statev1.DeliveryState_DELIVERY_STATE_DELIVERED:     "delivered",
	statev1.DeliveryState_DELIVERY_STATE_DEAD:          "dead",
	statev1.DeliveryState_DELIVERY_STATE_EXPIRED:       "expired",
	statev1.DeliveryState_DELIVERY_STATE_DISCARDED:     "discarded",
	statev1.DeliveryState_DELIVERY_STATE_SEND_DISABLED: "not sent (sending is disabled)",
	statev1.DeliveryState_DELIVERY_STATE_ASKED:         "waiting for a person",
}

// settle reads the call, asks `allowed`, and writes if nothing changed meanwhile; else it looks again. It returns the call as
// it is then.
func (s *Service) settle(ctx context.Context, key string, a *statev1.Action, allowed permission) (*store.Call, error) {
	const tries = 10
	for range tries {
		c, err := s.call(ctx, key)
		if err != nil {
			return nil, err
		}
		n := int(a.GetDelivery())
		if n < 1 || n > len(c.Deliveries) {
			return nil, errkind.NotFound("%s has no delivery %d", key, n)
		}
		d := c.Deliveries[n-1]
		if err := allowed(c, d); err != nil {
			return nil, err
		}
		head, err := s.store.Settle(ctx, c, d, a, s.dispatch.HoldOf(d.GetDestination()).PausedMS(s.store.Now()))
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, unavailable(err)
		}
		if head {
			s.dispatch.Due([]store.Ref{{Destination: d.GetDestination(), Member: key}})
		}
		return s.call(ctx, key)
	}
	return nil, errkind.Unavailable(fmt.Errorf("%d conflicts", tries), "the call keeps changing; try again")
}

// since reads how far back somebody wants to look: a duration, a date or a time; empty = byDefault. In milliseconds.
func (s *Service) since(text string, byDefault time.Duration) (int64, error) {
	now := s.store.Now()
	if text == "" {
		return now - byDefault.Milliseconds(), nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now - d.Milliseconds(), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateTime, "2006-01-02T15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, s.zone); err == nil {
			return t.UnixMilli(), nil
		}
	}
	return 0, errkind.Invalid("since", "since must be a duration like 90m or 24h, a date, or a time like 2026-03-06T09:00:00+09:00")
}
