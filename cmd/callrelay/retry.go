package main

import (
	"context"

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
	return b.asks("queued again",
		func(ctx context.Context, relay operatorClient, delivery string) (*operatorv1.Delivery, error) {
			return relay.RetryDelivery(ctx, &operatorv1.RetryDeliveryRequest{Delivery: delivery, Reason: *reason})
		},
		func(ctx context.Context, relay operatorClient, filter *operatorv1.DeliveryFilter) (progressStream, error) {
			return relay.RetryDeliveries(ctx, &operatorv1.RetryDeliveriesRequest{Filter: filter, Reason: *reason})
		})
}
