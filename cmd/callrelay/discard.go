package main

import (
	"context"
	"fmt"

	statev1 "callrelay/gen/callrelay/state/v1"

	"github.com/spf13/cobra"
)

func newDiscard() *cobra.Command {
	c := &cobra.Command{
		Use:     "discard <call> <delivery> --reason TEXT",
		Short:   "Give a delivery up for good",
		Example: `  callrelay discard 193416 1 --reason "entered by hand"`,
		Args:    cobra.ExactArgs(2),
	}
	reason := reasonFlag(c)
	return asksState(c, func(ctx context.Context, state statev1.StateServiceClient, args []string) error {
		call, delivery, err := deliveryArgs(args)
		if err != nil {
			return err
		}
		request := &statev1.DiscardRequest{Call: call, Delivery: delivery, Actor: actor(), Reason: *reason}
		if _, err := state.Discard(ctx, request); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "delivery %d of %s is discarded\n", delivery, call)
		return err
	})
}

// reasonFlag adds --reason, which is required: it is what the next person reads.
func reasonFlag(c *cobra.Command) *string {
	reason := c.Flags().String("reason", "", "why, for the journal")
	if err := c.MarkFlagRequired("reason"); err != nil {
		panic(err) // the flag was added above
	}
	return reason
}
