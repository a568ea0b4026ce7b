package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"

	"github.com/spf13/cobra"
)

func newTail() *cobra.Command {
	c := &cobra.Command{
		Use:     "tail [words]",
		Short:   "Follow the journal: everything that happens, or what has all the words in it",
		Example: "  callrelay tail\n  callrelay tail dead topsii\n  callrelay tail ameyo/193416 --json",
	}
	asJSON := jsonFlag(c)
	after := c.Flags().String("after", "", "go on behind the entry with this id (of --json)")
	return asks(c, 0, func(ctx context.Context, relay operatorClient, args []string) error {
		stream, err := relay.WatchJournal(ctx, &operatorv1.WatchJournalRequest{Filter: strings.Join(args, " "), After: *after})
		if err != nil {
			return err
		}
		out := c.OutOrStdout()
		for {
			m, err := stream.Recv()
			switch {
			case ctx.Err() != nil:
				return nil // Ctrl-C is how one ends it
			case err != nil:
				return err
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
