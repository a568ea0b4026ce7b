package main

import (
	"context"
	"fmt"

	operatorv1 "callrelay/gen/callrelay/operator/v1"

	"github.com/spf13/cobra"
)

func newRetry() *cobra.Command {
	c := &cobra.Command{
		Use:   "retry <call> <delivery> | retry --all",
		Short: "Send dead, asked or expired deliveries again",
		Example: "  callrelay retry 193416 1\n" +
			"  callrelay retry --all --destination topsii --in dead --because \"not logged in\"",
	}
	b := newBulk(c)
	reason := reasonFlag(c)
	return asks(c, 0, func(ctx context.Context, relay operatorClient, args []string) error {
		if b.all {
			return b.run(ctx, "queued again", func(ctx context.Context, f *operatorv1.DeliveryFilter) (progressStream, error) {
				return relay.RetryDeliveries(ctx, &operatorv1.RetryDeliveriesRequest{Filter: f, Reason: *reason})
			})
		}
		call, n, err := deliveryArgs(args)
		if err != nil {
			return err
		}
		d, err := relay.RetryDelivery(ctx, &operatorv1.RetryDeliveryRequest{Delivery: deliveryID(call, n), Reason: *reason})
		if err != nil || b.json {
			return b.one(d, err)
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "delivery %d of %s is queued again\n", n, call)
		return err
	})
}
