package main

import (
	"context"
	"fmt"
	"io"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
)

func newIntegrationsAccounts() *cobra.Command {
	c := &cobra.Command{
		Use:     "accounts",
		Short:   "List the connected Kommo accounts with what somebody should know or do; exit code 4 when there is something",
		Example: "  callrelay integrations accounts",
		Args:    cobra.NoArgs,
	}
	addr, asJSON := stateFlag(c), jsonFlag(c)
	c.RunE = func(*cobra.Command, []string) error {
		return ask(c, "state", *addr, askTimeout, func(ctx context.Context, conn grpc.ClientConnInterface) error {
			list, err := statev1.NewAccountServiceClient(conn).ListAccounts(ctx, &statev1.ListAccountsRequest{Prefix: "kommo/"})
			if err != nil {
				return err
			}
			return showAccounts(c.OutOrStdout(), list, *asJSON)
		})
	}
	return c
}

func showAccounts(out io.Writer, list *statev1.ListAccountsResponse, asJSON bool) error {
	notices := 0
	for _, a := range list.GetAccounts() {
		a.Credentials = nil // sealed, and of no use to anybody here
		notices += len(a.GetNotices())
	}
	var err error
	switch {
	case asJSON:
		err = printJSON(out, list)
	case len(list.GetAccounts()) == 0:
		_, err = fmt.Fprintln(out, "none")
	default:
		w := table(out, "ACCOUNT", "HOST", "TOKEN", "SINCE", "NOTICE")
		for _, a := range list.GetAccounts() {
			token := "does not end"
			if left := milliseconds(a.GetExpiresInMs()).Round(time.Second); a.GetExpires() && left > 0 {
				token = "ends in " + left.String()
			} else if a.GetExpires() {
				token = "ended " + (-left).String() + " ago"
			}
			if len(a.GetNotices()) == 0 {
				row(w, a.GetId(), orDash(a.GetHost()), token, "-", "-")
			}
			for _, n := range a.GetNotices() {
				row(w, a.GetId(), orDash(a.GetHost()), token, moment(n.GetSinceMs(), time.Local), n.GetText())
			}
		}
		err = w.Flush()
	}
	if err == nil && notices > 0 {
		err = fmt.Errorf("%w: there are notices", errAlarm)
	}
	return err
}
