package main

import (
	"context"
	"fmt"
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"

	"github.com/spf13/cobra"
)

func newHold() *cobra.Command {
	c := &cobra.Command{
		Use:   "hold <destination> --reason TEXT",
		Short: "Stop sending to a destination; everything for it is kept",
		Long: `Stop sending to a destination; everything for it is kept. With --until it ends by itself, with --from it begins then: a
maintenance, in place of one that was planned before. callrelay release ends it, or forgets what is planned.`,
		Example: `  callrelay hold topsii --reason "they asked for it"
  callrelay hold topsii --reason "patch night" --from 02:00 --until 04:30
  callrelay hold kommo/9001 --reason "their import runs" --until 90m`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeDestinations,
	}
	reason := reasonFlag(c)
	if err := c.MarkFlagRequired("reason"); err != nil {
		panic(err) // the flag was added above
	}
	from := c.Flags().String("from", "", "when it begins: 90m from now, 02:00 (by TIMEZONE of the relay), 2026-03-06 02:00, or a time of RFC 3339 (default: now)")
	until := c.Flags().String("until", "", "when it ends by itself, in the same ways (default: a person ends it)")
	asJSON := jsonFlag(c)
	return asks(c, askTimeout, func(ctx context.Context, relay operatorClient, args []string) error {
		d, err := relay.HoldDestination(ctx, &operatorv1.HoldDestinationRequest{Destination: args[0], Reason: *reason, From: *from, Until: *until})
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), d)
		}
		if m := d.GetMaintenance(); m != nil && *until != "" {
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s is held from %s until %s; what is under way then ends\n", args[0], moment(m.GetFromMs(), time.Local), moment(m.GetUntilMs(), time.Local))
			return err
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "%s is held: nothing more is sent to it; what is under way ends\n", args[0])
		return err
	})
}

// reasonFlag adds --reason: it is what the next person reads.
func reasonFlag(c *cobra.Command) *string {
	return c.Flags().String("reason", "", "why, for the journal")
}
