package main

import (
	"context"
	"fmt"
	"io"
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

func newDestinations() *cobra.Command {
	c := &cobra.Command{
		Use:     "destinations",
		Short:   "Show each destination with its backlog, dead deliveries and hold",
		Example: "  callrelay destinations",
		Args:    cobra.NoArgs,
	}
	return shows(c, func(ctx context.Context, relay operatorClient, _ []string) (proto.Message, func(io.Writer) error, error) {
		list, err := relay.ListDestinations(ctx, &operatorv1.ListDestinationsRequest{})
		return list, func(out io.Writer) error { return renderDestinations(out, list, time.Local) }, err
	})
}

func renderDestinations(out io.Writer, list *operatorv1.ListDestinationsResponse, zone *time.Location) error {
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
		row(w, d.GetName(), d.GetWaiting(), d.GetSending(), d.GetDead(), oldest, hold)
	}
	return w.Flush()
}
