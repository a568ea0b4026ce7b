package store

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	statev1 "callrelay/gen/callrelay/state/v1"
)

// unreadable ends a delivery, leased under w's token, that cannot be read: as dead, so that it does not come back for ever and what is
// behind it goes on. Then it is written anew, with all that is known of it: so its call can be read, and a person finds it among the
// dead. A crash between the two leaves a dead delivery in a call that cannot be read, which is an alarm.
func (s *Store) unreadable(ctx context.Context, destination string, w *statev1.LeaseWork, why error) error {
	fields, err := s.client.HGetAll(ctx, keyCall(w.GetCall())).Result()
	if err != nil {
		return err
	}
	number := strconv.Itoa(int(w.GetDelivery().GetNumber()))
	anew := &statev1.Delivery{Destination: destination, CreatedMs: s.clock.Now()}
	for name, value := range fields { // whose it is, accounting knows
		if request, is := strings.CutPrefix(name, "i:"); is && slices.Contains(strings.Fields(value)[1:], number) {
			anew.RequestId = request
		}
	}
	body, err := proto.Marshal(anew)
	if err != nil {
		return err
	}
	verdicts, errs := s.Complete(ctx, []*statev1.LeaseResult{{Call: w.GetCall(), Destination: destination, Delivery: w.GetDelivery().GetNumber(),
		Token: w.GetToken(), RequestId: anew.GetRequestId(), Result: &statev1.LeaseResult_End{End: &statev1.End{
			State: statev1.DeliveryState_DELIVERY_STATE_DEAD, Reason: "what was stored of it could not be read: " + why.Error()}}}})
	if errs[0] != nil || verdicts[0].Superseded {
		return errs[0]
	}
	s.wrote(&statev1.CommitItem{Call: w.GetCall(), Journal: verdicts[0].Journal})
	return s.client.HSet(ctx, keyCall(w.GetCall()), number, body).Err()
}
