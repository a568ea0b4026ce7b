package main

import (
	"context"

	operatorv1 "callrelay/gen/callrelay/operator/v1"

	"github.com/spf13/cobra"
)

func newDiscard() *cobra.Command {
	c := &cobra.Command{
		Use:   "discard <call> <delivery> --reason TEXT | discard --all --reason TEXT",
		Short: "Give deliveries up for good",
		Example: `  callrelay discard 193416 1 --reason "entered by hand"` + "\n" +
			`  callrelay discard --all --in expired --reason "the agents have seen them"`,
	}
	b := newBulk(c)
	reason := reasonFlag(c)
	if err := c.MarkFlagRequired("reason"); err != nil {
		panic(err) // the flag was added above
	}
	return b.asks("discarded",
		func(ctx context.Context, relay operatorClient, delivery string) (*operatorv1.Delivery, error) {
			return relay.DiscardDelivery(ctx, &operatorv1.DiscardDeliveryRequest{Delivery: delivery, Reason: *reason})
		},
		func(ctx context.Context, relay operatorClient, filter *operatorv1.DeliveryFilter) (progressStream, error) {
			return relay.DiscardDeliveries(ctx, &operatorv1.DiscardDeliveriesRequest{Filter: filter, Reason: *reason})
		})
}
