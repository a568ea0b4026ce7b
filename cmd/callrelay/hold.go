package main

import (
	"context"
	"fmt"

	statev1 "callrelay/gen/callrelay/state/v1"

	"github.com/spf13/cobra"
)

func newHold() *cobra.Command {
	c := &cobra.Command{
		Use:     "hold <destination> --reason TEXT",
		Short:   "Stop sending to a destination; everything for it is kept",
		Example: `  callrelay hold topsii --reason "maintenance until 06:00"`,
		Args:    cobra.ExactArgs(1),
	}
	reason := reasonFlag(c)
	return asksState(c, func(ctx context.Context, state statev1.StateServiceClient, args []string) error {
		if _, err := state.Hold(ctx, &statev1.HoldRequest{Destination: args[0], Reason: *reason, Actor: actor()}); err != nil {
			return err
		}
		_, err := fmt.Fprintf(c.OutOrStdout(), "%s is held: nothing more is sent to it; what is under way ends\n", args[0])
		return err
	})
}
