package main

import (
	"context"
	"fmt"

	statev1 "callrelay/gen/callrelay/state/v1"

	"github.com/spf13/cobra"
)

func newRelease() *cobra.Command {
	c := &cobra.Command{
		Use:     "release <destination>",
		Short:   "Send to a held destination again",
		Example: "  callrelay release topsii",
		Args:    cobra.ExactArgs(1),
	}
	return asksState(c, func(ctx context.Context, state statev1.StateServiceClient, args []string) error {
		if _, err := state.Release(ctx, &statev1.ReleaseRequest{Destination: args[0], Actor: actor()}); err != nil {
			return err
		}
		_, err := fmt.Fprintf(c.OutOrStdout(), "%s is released\n", args[0])
		return err
	})
}
