package main

import (
	"context"
	"fmt"
	"io"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"

	"github.com/spf13/cobra"
)

func newDestinations() *cobra.Command {
	c := &cobra.Command{
		Use:   "destinations",
		Short: "Show each destination with its backlog, dead deliveries and hold",
		Args:  cobra.NoArgs,
	}
	asJSON := jsonFlag(c)
	return asksState(c, func(ctx context.Context, state statev1.StateServiceClient, _ []string) error {
		list, err := state.ListDestinations(ctx, &statev1.ListDestinationsRequest{})
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), list)
		}
		return renderDestinations(c.OutOrStdout(), list, time.Local)
	})
}

func renderDestinations(out io.Writer, list *statev1.ListDestinationsResponse, zone *time.Location) error {
	if len(list.GetDestinations()) == 0 {
		_, err := fmt.Fprintln(out, "none yet: nothing was ever queued")
		return err
	}
	w := table(out, "DESTINATION", "WAITING", "UNDER WAY", "DEAD", "OLDEST", "HOLD")
	for _, d := range list.GetDestinations() {
		hold := "-"
		if d.GetHeld() {
			hold = words("since", moment(d.GetHoldSinceMs(), zone)+":", d.GetHoldReason())
		}
		oldest := "-"
		if d.GetOldestAgeMs() > 0 {
			oldest = milliseconds(d.GetOldestAgeMs()).Round(time.Second).String()
		}
		row(w, d.GetName(), d.GetWaiting(), d.GetLeased(), d.GetDead(), oldest, hold)
	}
	return w.Flush()
}
