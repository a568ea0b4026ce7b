package main

import (
	"cmp"
	"fmt"
	"os"
	"time"

	"callrelay/callback"
	ingressv1 "callrelay/gen/callrelay/ingress/v1"

	"github.com/spf13/cobra"
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
	c.RunE = func(c *cobra.Command, _ []string) error {
		conn, err := dial("ingress", *addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		stream, err := ingressv1.NewCardServiceClient(conn).WatchCards(c.Context(), &ingressv1.WatchCardsRequest{Integration: *integration, User: *user})
		if err != nil {
			return inWords(err, "ingress", *addr, 0)
		}
		out := c.OutOrStdout()
		for {
			m, err := stream.Recv()
			if person(c).Masked {
				for _, card := range m.GetCards() {
					card.Number, card.Did = callback.MaskPhones(card.GetNumber()), callback.MaskPhones(card.GetDid())
				}
			}
			switch {
			case c.Context().Err() != nil:
				return nil // Ctrl-C is how one ends it
			case err != nil:
				return inWords(err, "ingress", *addr, 0)
			case *asJSON:
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
	return c
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
