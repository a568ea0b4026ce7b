package main

import (
	"context"
	"fmt"

	operatorv1 "callrelay/gen/callrelay/operator/v1"

	"github.com/spf13/cobra"
)

func newRelease() *cobra.Command {
	c := &cobra.Command{
		Use:               "release <destination>",
		Short:             "Send to a held destination again",
		Example:           "  callrelay release topsii",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeDestinations,
	}
	reason := reasonFlag(c)
	asJSON := jsonFlag(c)
	return asks(c, askTimeout, func(ctx context.Context, relay operatorClient, args []string) error {
		d, err := relay.ReleaseDestination(ctx, &operatorv1.ReleaseDestinationRequest{Destination: args[0], Reason: *reason})
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), d)
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "%s is released\n", args[0])
		return err
	})
}
