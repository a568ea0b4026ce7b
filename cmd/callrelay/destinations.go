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
		Short:   "Show each destination: why nothing leaves, its backlog, dead deliveries, hold and maintenance",
		Example: "  callrelay destinations",
		Args:    cobra.NoArgs,

		SuggestFor: []string{"status", "health"}, // what a tired person types first
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
	w := table(out, "DESTINATION", "WAITING", "UNDER WAY", "DEAD", "OLDEST", "HOLD", "HEALTH")
	for _, d := range list.GetDestinations() {
		hold := "-"
		if d.GetHeld() {
			hold = words("since", moment(d.GetHoldSinceMs(), zone)+":", d.GetHoldReason())
		}
		oldest := "-"
		if d.GetOldestAgeMs() > 0 {
			oldest = milliseconds(d.GetOldestAgeMs()).Round(time.Second).String()
		}
		row(w, d.GetName(), d.GetWaiting(), d.GetSending(), d.GetDead(), oldest, hold, d.GetHealth())
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, d := range list.GetDestinations() {
		for _, c := range d.GetConsumers() {
			if len(d.GetConsumers()) > 1 {
				fmt.Fprintf(out, "%s by %s: breaker %s, %d of %d workers busy%s\n", printable(d.GetName()), printable(c.GetProcess()), printable(c.GetBreaker()),
					c.GetRunning(), c.GetWorkers(), about(", last failure: ", c.GetFailure()))
			}
		}
		if m := d.GetMaintenance(); m != nil {
			fmt.Fprintf(out, "%s has maintenance from %s until %s: %s (%s)\n", printable(d.GetName()), moment(m.GetFromMs(), zone), moment(m.GetUntilMs(), zone),
				printable(m.GetReason()), printable(m.GetActor()))
		}
	}
	return nil
}
