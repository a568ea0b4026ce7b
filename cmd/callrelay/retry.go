package main

import (
	"context"
	"fmt"

	statev1 "callrelay/gen/callrelay/state/v1"

	"github.com/spf13/cobra"
)

func newRetry() *cobra.Command {
	c := &cobra.Command{
		Use:     "retry <call> <delivery>",
		Short:   "Send a dead, asked or expired delivery again",
		Example: "  callrelay retry 193416 1",
		Args:    cobra.ExactArgs(2),
	}
	return asksState(c, func(ctx context.Context, state statev1.StateServiceClient, args []string) error {
		call, delivery, err := deliveryArgs(args)
		if err != nil {
			return err
		}
		if _, err := state.Retry(ctx, &statev1.RetryRequest{Call: call, Delivery: delivery, Actor: actor()}); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "delivery %d of %s is queued again\n", delivery, call)
		return err
	})
}
