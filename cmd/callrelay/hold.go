package main

import (
	"context"
	"fmt"

	operatorv1 "callrelay/gen/callrelay/operator/v1"

	"github.com/spf13/cobra"
)

func newHold() *cobra.Command {
	c := &cobra.Command{
		Use:               "hold <destination> --reason TEXT",
		Short:             "Stop sending to a destination; everything for it is kept",
		Example:           `  callrelay hold topsii --reason "maintenance until 06:00"`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeDestinations,
	}
	reason := reasonFlag(c)
	if err := c.MarkFlagRequired("reason"); err != nil {
		panic(err) // the flag was added above
	}
	asJSON := jsonFlag(c)
	return asks(c, askTimeout, func(ctx context.Context, relay operatorClient, args []string) error {
		d, err := relay.HoldDestination(ctx, &operatorv1.HoldDestinationRequest{Destination: args[0], Reason: *reason})
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), d)
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "%s is held: nothing more is sent to it; what is under way ends\n", args[0])
		return err
	})
}

// reasonFlag adds --reason: it is what the next person reads.
func reasonFlag(c *cobra.Command) *string {
	return c.Flags().String("reason", "", "why, for the journal")
}
