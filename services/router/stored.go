package router

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	"callrelay/platform/rpc"
	"callrelay/platform/telemetry"
	"callrelay/services/router/diagnose"
)

// shelf is what advice reads of the store, and the one thing it changes there: settling deliveries that were replaced.
type shelf struct {
	operator operatorv1.OperatorServiceClient
}

// call is everything stored of a call; nil when there is nothing.
func (s *shelf) call(ctx context.Context, key string) (*diagnose.Call, error) {
	c, err := s.operator.GetCall(ctx, &operatorv1.GetCallRequest{Call: key})
	if status.Code(err) == codes.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	call := &diagnose.Call{Key: key, Record: c.GetRecord(), JournalDropped: c.GetJournalDropped() > 0}
	for _, d := range c.GetDeliveries() {
		call.Deliveries = append(call.Deliveries, d.GetFacts())
	}
	for _, e := range c.GetJournal() {
		call.Journal = append(call.Journal, e.GetFact())
	}
	return call, nil
}

// destinations are those that are held, with the reason, and why little leaves of others.
func (s *shelf) destinations(ctx context.Context) (held, stuck map[string]string, err error) {
	list, err := s.operator.ListDestinations(ctx, &operatorv1.ListDestinationsRequest{})
	if err != nil {
		return nil, nil, err
	}
	held, stuck = map[string]string{}, map[string]string{}
	for _, d := range list.GetDestinations() {
		switch m := d.GetMaintenance(); {
		case d.GetHeld() && (m == nil || m.GetReason() != d.GetHoldReason()): // a maintenance ends by itself
			held[d.GetName()] = telemetry.MaskDigits(d.GetHoldReason()) // a person, or a CRM, wrote it
		case d.GetHealth() != "ok":
			stuck[d.GetName()] = d.GetHealth()
		}
	}
	return held, stuck, nil
}

// spooled is how many callbacks are acknowledged and not decided.
func (s *shelf) spooled(ctx context.Context) (int64, error) {
	a, err := s.operator.GetAccounting(ctx, &operatorv1.GetAccountingRequest{Since: "1h"})
	return a.GetSpooled(), err
}

// callOf finds the call of a request: that of a refused one is its own record.
func (s *shelf) callOf(ctx context.Context, requestID string) (string, error) {
	r, err := s.operator.GetRequest(ctx, &operatorv1.GetRequestRequest{RequestId: requestID})
	return r.GetCall(), err
}

// discard settles a delivery that a resent request replaces.
func (s *shelf) discard(ctx context.Context, call string, number uint32, actor, reason string) error {
	ctx = metadata.NewOutgoingContext(ctx, rpc.Caller{Actor: actor, Role: rpc.RoleOperator}.Metadata())
	_, err := s.operator.DiscardDelivery(ctx, &operatorv1.DiscardDeliveryRequest{Delivery: deliveryID(call, number), Reason: reason})
	return err
}
