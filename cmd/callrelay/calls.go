package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

func newCalls() *cobra.Command {
	c := &cobra.Command{
		Use:   "calls [what to look for]",
		Short: "Find calls by call id, customer, phone number, request, trace or agent",
		Long: `Find calls by call id, customer id, phone number (in any format, or its last four or more digits), request id, trace id
or agent. Without anything to look for: all, the latest first.`,
		Example: "  callrelay calls 090-1234-5678\n  callrelay calls 5678 --since 2h\n  callrelay calls agent7 --in dead\n  callrelay calls --limit 20",
	}
	since := c.Flags().String("since", "", "only calls with news since: 90m, 24h, 2026-03-06, or a time")
	in := c.Flags().String("in", "", "only calls with a delivery in this state, e.g. dead, queued, delivered")
	completes(c, "in", deliveryStates...)
	limit := c.Flags().Int32("limit", 50, "at most so many, up to 200")
	page := c.Flags().String("page", "", "go on where the list before ended")
	return shows(c, func(ctx context.Context, relay operatorClient, args []string) (proto.Message, func(io.Writer) error, error) {
		list, err := relay.SearchCalls(ctx, &operatorv1.SearchCallsRequest{Query: strings.Join(args, " "), Since: *since, State: *in,
			PageSize: *limit, PageToken: *page})
		return list, func(out io.Writer) error { return renderCalls(out, list, time.Local) }, err
	})
}

func renderCalls(out io.Writer, list *operatorv1.SearchCallsResponse, zone *time.Location) error {
	if len(list.GetCalls()) > 0 {
		w := table(cut(out), "CALL", "FIRST", "LAST", "DELIVERIES", "DECIDED")
		for _, c := range list.GetCalls() {
			var states []string
			for _, d := range c.GetDeliveries() {
				states = append(states, stateInWords(d))
			}
			row(w, c.GetCall(), moment(c.GetFirstMs(), zone), moment(c.GetLastMs(), zone), orDash(strings.Join(states, ", ")), c.GetSummary())
		}
		if err := w.Flush(); err != nil {
			return err
		}
	} else if list.GetNextPageToken() == "" {
		fmt.Fprintln(out, "none")
	}
	return more(out, list.GetNextPageToken())
}

// more says how to see the rest.
func more(out io.Writer, token string) error {
	if token == "" {
		return nil
	}
	_, err := fmt.Fprintf(out, "(there may be more: --page %s)\n", token)
	return err
}
