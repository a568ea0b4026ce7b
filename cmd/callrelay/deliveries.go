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

func newDeliveries() *cobra.Command {
	c := &cobra.Command{
		Use:     "deliveries",
		Short:   "List deliveries: those that need somebody, or those in given states",
		Example: "  callrelay deliveries\n  callrelay deliveries --in queued,retrying --destination topsii",
		Args:    cobra.NoArgs,
	}
	var destination string
	destinationFlag(c, &destination, "only of this destination, e.g. topsii")
	names := c.Flags().StringSlice("in", nil, "only in these states: queued, retrying, held, sending, asked, delivered, dead, expired, discarded, send_disabled (default: dead, expired and asked)")
	completes(c, "in", deliveryStates...)
	limit := c.Flags().Int32("limit", 100, "at most so many, up to 1000")
	page := c.Flags().String("page", "", "go on where the list before ended")
	return shows(c, func(ctx context.Context, relay operatorClient, _ []string) (proto.Message, func(io.Writer) error, error) {
		list, err := relay.ListDeliveries(ctx, &operatorv1.ListDeliveriesRequest{Destination: destination, State: *names, PageSize: *limit, PageToken: *page})
		return list, func(out io.Writer) error { return renderDeliveries(out, list, time.Local) }, err
	})
}

func renderDeliveries(out io.Writer, list *operatorv1.ListDeliveriesResponse, zone *time.Location) error {
	if len(list.GetDeliveries()) > 0 {
		w := table(out, "CALL", "DELIVERY", "TO", "STATE", "ATTEMPTS", "CREATED", "REASON")
		for _, d := range list.GetDeliveries() {
			f := d.GetFacts()
			row(w, d.GetCall(), f.GetNumber(), f.GetDestination()+" "+f.GetEndpoint(), stateInWords(d), f.GetAttempts(),
				moment(f.GetCreatedMs(), zone), orDash(f.GetReason()))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	} else if list.GetNextPageToken() == "" {
		fmt.Fprintln(out, "none")
	}
	return more(out, list.GetNextPageToken())
}
