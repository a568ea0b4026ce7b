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

func newCall() *cobra.Command {
	c := &cobra.Command{
		Use:     "call <id>",
		Short:   "Show what became of a call: its journal and its deliveries",
		Example: "  callrelay call 193416\n  callrelay call ameyo/193416 --json\n  callrelay call pbx/acme/31573def04f4624d233bfa37ab23dc5c",
		Args:    cobra.ExactArgs(1),
	}
	return shows(c, func(ctx context.Context, relay operatorClient, args []string) (proto.Message, func(io.Writer) error, error) {
		key, err := callKey(args[0])
		if err != nil {
			return nil, nil, err
		}
		call, err := relay.GetCall(ctx, &operatorv1.GetCallRequest{Call: key})
		return call, func(out io.Writer) error { return renderCall(out, call, time.Local) }, err
	})
}

func newRequest() *cobra.Command {
	c := &cobra.Command{
		Use:     "request <request id>",
		Short:   "Show one callback: as it was received, what was decided, where it is now",
		Example: "  callrelay request 5K3D2QH7W4YJ2M6X3N5BZL7RPA",
		Args:    cobra.ExactArgs(1),
	}
	return shows(c, func(ctx context.Context, relay operatorClient, args []string) (proto.Message, func(io.Writer) error, error) {
		r, err := relay.GetRequest(ctx, &operatorv1.GetRequestRequest{RequestId: strings.TrimPrefix(args[0], "request/")})
		return r, func(out io.Writer) error {
			fmt.Fprintf(out, "request %s of %s: %s\n", r.GetRequestId(), printable(r.GetCall()), strings.ReplaceAll(r.GetBucket(), "_", " "))
			return renderStory(out, r.GetJournal(), 0, r.GetDeliveries(), time.Local)
		}, err
	})
}

// renderCall writes the story of a call, oldest first.
func renderCall(out io.Writer, call *operatorv1.Call, zone *time.Location) error {
	fmt.Fprintf(out, "%s\n", printable(call.GetCall()))
	return renderStory(out, call.GetJournal(), call.GetJournalDropped(), call.GetDeliveries(), zone)
}

func renderStory(out io.Writer, journal []*operatorv1.Entry, dropped int64, deliveries []*operatorv1.Delivery, zone *time.Location) error {
	var b strings.Builder
	day := ""
	for _, e := range journal {
		at := time.UnixMilli(e.GetFact().GetAtMs()).In(zone)
		if d := at.Format("2006-01-02 (-07:00)"); d != day {
			day = d
			fmt.Fprintf(&b, "\n%s\n", day)
		}
		for i, line := range e.GetText() {
			if i == 0 {
				fmt.Fprintf(&b, "  %s  %s\n", at.Format("15:04:05.000"), printable(line))
			} else {
				fmt.Fprintf(&b, "  %12s  %s\n", "", printable(line))
			}
		}
	}
	if dropped > 0 {
		fmt.Fprintf(&b, "  (the journal is full: %d more bytes were not kept)\n", dropped)
	}
	if len(deliveries) > 0 {
		fmt.Fprintln(&b)
		w := table(&b, "DELIVERY", "TO", "STATE", "ATTEMPTS", "CREATED", "ENDED", "REASON")
		for _, d := range deliveries {
			f := d.GetFacts()
			row(w, f.GetNumber(), f.GetDestination()+" "+f.GetEndpoint(), stateInWords(d), f.GetAttempts(),
				moment(f.GetCreatedMs(), zone), moment(f.GetFinalMs(), zone), orDash(f.GetReason()))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(&b, "\nno deliveries\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}
