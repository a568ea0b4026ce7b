package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"

	"github.com/spf13/cobra"
)

func newDeliveries() *cobra.Command {
	c := &cobra.Command{
		Use:     "deliveries",
		Short:   "List deliveries that are not delivered",
		Example: "  callrelay deliveries --in dead,asked",
		Args:    cobra.NoArgs,
	}
	asJSON := jsonFlag(c)
	destination := c.Flags().String("destination", "", "only of this destination, e.g. topsii")
	names := c.Flags().StringSlice("in", nil, "only in these states: "+strings.Join(openStates(), ", "))
	limit := c.Flags().Int32("limit", 100, "at most so many, up to 1000")
	return asksState(c, func(ctx context.Context, state statev1.StateServiceClient, _ []string) error {
		states, err := parseStates(*names)
		if err != nil {
			return err
		}
		list, err := state.ListDeliveries(ctx, &statev1.ListDeliveriesRequest{Destination: *destination, States: states, Limit: *limit})
		if err != nil {
			return err
		}
		if *asJSON {
			for _, d := range list.GetDeliveries() {
				maskDelivery(d.GetDelivery())
			}
			return printJSON(c.OutOrStdout(), list)
		}
		return renderDeliveries(c.OutOrStdout(), list, int(*limit), time.Local)
	})
}

func renderDeliveries(out io.Writer, list *statev1.ListDeliveriesResponse, limit int, zone *time.Location) error {
	if len(list.GetDeliveries()) == 0 {
		_, err := fmt.Fprintln(out, "none")
		return err
	}
	w := table(out, "CALL", "DELIVERY", "TO", "STATE", "ATTEMPTS", "CREATED", "REASON")
	for _, cd := range list.GetDeliveries() {
		d := cd.GetDelivery()
		row(w, cd.GetCall(), d.GetNumber(), d.GetDestination()+" "+d.GetEndpoint(), stateInWords(d), d.GetAttempts(),
			moment(d.GetCreatedMs(), zone), orDash(d.GetReason()))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(list.GetDeliveries()) == limit {
		_, err := fmt.Fprintf(out, "(only the first %d: --limit shows more)\n", limit)
		return err
	}
	return nil
}

// openStates are the states that the list can show: what needs somebody to look at it.
func openStates() []string { return []string{"asked", "dead", "expired"} }

func parseStates(names []string) ([]statev1.DeliveryState, error) {
	var states []statev1.DeliveryState
	for _, name := range names {
		if !slices.Contains(openStates(), name) {
			return nil, fmt.Errorf("%q is not a state of this list: %s", name, strings.Join(openStates(), ", "))
		}
		states = append(states, statev1.DeliveryState(statev1.DeliveryState_value["DELIVERY_STATE_"+strings.ToUpper(name)]))
	}
	return states, nil
}
