package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// tailRetry is the time between two tries to go on; what fails within it was never there.
const tailRetry = time.Second

func newTail() *cobra.Command {
	c := &cobra.Command{
		Use:     "tail [words]",
		Short:   "Follow the journal: everything that happens, or what has all the words in it",
		Example: "  callrelay tail\n  callrelay tail dead topsii\n  callrelay tail ameyo/193416 --json",
	}
	asJSON := jsonFlag(c)
	after := c.Flags().String("after", "", "go on behind the entry with this id (of --json)")
	return asks(c, 0, func(ctx context.Context, relay operatorClient, args []string) error {
		filter, out := strings.Join(args, " "), c.OutOrStdout()
		stream, err := relay.WatchJournal(ctx, &operatorv1.WatchJournalRequest{Filter: filter, After: *after})
		if err != nil {
			return err
		}
		begun, lost := time.Now(), false
		for {
			m, err := stream.Recv()
			switch {
			case ctx.Err() != nil:
				return nil // Ctrl-C is how one ends it
			case status.Code(err) == codes.Unavailable && time.Since(begun) > tailRetry:
				// State is started again: go on behind what was seen.
				if !lost {
					lost = true
					fmt.Fprintln(c.ErrOrStderr(), "(the connection was lost, watching again)")
				}
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(tailRetry):
				}
				if stream, err = relay.WatchJournal(ctx, &operatorv1.WatchJournalRequest{Filter: filter, After: *after}); err != nil {
					return err
				}
				continue
			case err != nil:
				return err
			}
			if lost = false; m.GetEntry().GetId() != "" {
				*after = m.GetEntry().GetId()
			}
			switch {
			case m.GetMissed() && !*asJSON:
				fmt.Fprintln(out, "(some entries were missed)")
			case *asJSON:
				line, err := stableJSON(m, "")
				if err != nil {
					return err
				}
				fmt.Fprintln(out, line)
			default:
				e := m.GetEntry()
				fmt.Fprintf(out, "%s  %s  %s\n", time.UnixMilli(e.GetFact().GetAtMs()).Format("15:04:05.000"), printable(e.GetCall()), printable(strings.Join(e.GetText(), " | ")))
			}
		}
	})
}
