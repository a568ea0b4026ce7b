package router

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"callrelay/callback"
	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/services/router/diagnose"
)

// shelf is what advice reads of the store, and the one thing it changes there: settling deliveries that were replaced.
type shelf struct {
	operator operatorv1.OperatorServiceClient
	state    statev1.StateServiceClient
}

func newShelf(conn grpc.ClientConnInterface) *shelf {
	return &shelf{operator: operatorv1.NewOperatorServiceClient(conn), state: statev1.NewStateServiceClient(conn)}
}

func unimplemented(err error) bool { return status.Code(err) == codes.Unimplemented }

// call is everything stored of a call; nil when there is nothing.
func (s *shelf) call(ctx context.Context, key string) (*diagnose.Call, error) {
	c, err := s.operator.GetCall(ctx, &operatorv1.GetCallRequest{Call: key})
	if unimplemented(err) {
		return s.older(ctx, key)
	}
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

// older reads a call from a state that has no operator service yet.
func (s *shelf) older(ctx context.Context, key string) (*diagnose.Call, error) {
	c, err := s.state.GetCall(ctx, &statev1.GetCallRequest{Call: key})
	if status.Code(err) == codes.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &diagnose.Call{Key: key, Record: c.GetRecord(), Deliveries: c.GetDeliveries(), Journal: c.GetJournal().GetEntries(),
		JournalDropped: c.GetJournalDropped() > 0}, nil
}

// holds are the destinations that are held, with the reason.
func (s *shelf) holds(ctx context.Context) (map[string]string, error) {
	held := map[string]string{}
	list, err := s.operator.ListDestinations(ctx, &operatorv1.ListDestinationsRequest{})
	if unimplemented(err) {
		older, err := s.state.ListDestinations(ctx, &statev1.ListDestinationsRequest{})
		for _, d := range older.GetDestinations() {
			if d.GetHeld() {
				held[d.GetName()] = d.GetHoldReason()
			}
		}
		return held, err
	}
	for _, d := range list.GetDestinations() {
		if d.GetHeld() {
			held[d.GetName()] = d.GetHoldReason()
		}
	}
	return held, err
}

// callOf finds the call of a request: that of a refused one is its own record.
func (s *shelf) callOf(ctx context.Context, requestID string) (string, error) {
	r, err := s.operator.GetRequest(ctx, &operatorv1.GetRequestRequest{RequestId: requestID})
	if unimplemented(err) {
		return callback.RequestKey(requestID), nil
	}
	return r.GetCall(), err
}

// discard settles a delivery that a resent request replaces.
func (s *shelf) discard(ctx context.Context, call string, number uint32, actor, reason string) error {
	_, err := s.operator.DiscardDelivery(ctx, &operatorv1.DiscardDeliveryRequest{Delivery: deliveryID(call, number), Reason: reason})
	if unimplemented(err) {
		_, err = s.state.Discard(ctx, &statev1.DiscardRequest{Call: call, Delivery: number, Actor: actor, Reason: reason})
	}
	return err
}
