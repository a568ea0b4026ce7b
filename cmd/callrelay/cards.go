package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"callrelay/callback"
	ingressv1 "callrelay/gen/callrelay/ingress/v1"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
)

func newCards() *cobra.Command {
	c := &cobra.Command{
		Use:     "cards",
		Short:   "Watch the caller cards of a CRM user, as the user's page does (needs the ingress service, --ingress)",
		Example: "  callrelay cards --integration acme --user u101",
		Args:    cobra.NoArgs,
	}
	addr := c.Flags().String("ingress", cmp.Or(os.Getenv("INGRESS_GRPC_ADDR"), "127.0.0.1:9080"), "where ingress serves gRPC (INGRESS_GRPC_ADDR)")
	integration := c.Flags().String("integration", "", "the integration, as in callrelay integrations list")
	user := c.Flags().String("user", "", "the CRM user")
	asJSON := jsonFlag(c)
	c.RunE = func(*cobra.Command, []string) error {
		return ask(c, "ingress", *addr, 0, func(ctx context.Context, conn grpc.ClientConnInterface) error {
			stream, err := ingressv1.NewCardServiceClient(conn).WatchCards(ctx, &ingressv1.WatchCardsRequest{Integration: *integration, User: *user})
			if err != nil {
				return err
			}
			return showCards(ctx, c.OutOrStdout(), stream, person(c).Masked, *asJSON)
		})
	}
	return c
}

// showCards prints what happens until ctx or the stream ends.
func showCards(ctx context.Context, out io.Writer, stream grpc.ServerStreamingClient[ingressv1.WatchCardsResponse], masked, asJSON bool) error {
	for {
		m, err := stream.Recv()
		if masked {
			for _, card := range m.GetCards() {
				card.Number, card.Did = callback.MaskPhones(card.GetNumber()), callback.MaskPhones(card.GetDid())
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil // Ctrl-C is how one ends it
		case err != nil:
			return err
		case asJSON:
			line, err := stableJSON(m, "")
			if err != nil {
				return err
			}
			fmt.Fprintln(out, line)
			continue
		case m.GetLost():
			fmt.Fprintln(out, "(ingress does not hear from state: what happens is not known)")
		case m.GetAll():
			fmt.Fprintf(out, "%d open cards\n", len(m.GetCards()))
		}
		for _, card := range m.GetCards() {
			fmt.Fprintln(out, cardLine(card))
		}
	}
}

// cardLine is a card on one line.
func cardLine(c *ingressv1.Card) string {
	line := fmt.Sprintf("%s  %-8s  %-3s  %s on %s", time.UnixMilli(c.GetAtMs()).Format("15:04:05.000"), c.GetState(), c.GetDirection(),
		printable(orDash(c.GetNumber())), printable(c.GetExtension()))
	if c.GetTakenBy() != "" {
		line += ", taken by " + printable(c.GetTakenBy())
	}
	return line + "  " + printable(c.GetCall())
}
