package main

import (
	"context"
	"fmt"

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
	return asks(c, 0, func(ctx context.Context, relay operatorClient, args []string) error {
		if b.all {
			return b.run(ctx, "discarded", func(ctx context.Context, f *operatorv1.DeliveryFilter) (progressStream, error) {
				return relay.DiscardDeliveries(ctx, &operatorv1.DiscardDeliveriesRequest{Filter: f, Reason: *reason})
			})
		}
		call, n, err := deliveryArgs(args)
		if err != nil {
			return err
		}
		d, err := relay.DiscardDelivery(ctx, &operatorv1.DiscardDeliveryRequest{Delivery: deliveryID(call, n), Reason: *reason})
		if err != nil || b.json {
			return b.one(d, err)
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "delivery %d of %s is discarded\n", n, call)
		return err
	})
}
