package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"callrelay/callback/pbxtable"
	upstreamv1 "callrelay/gen/callrelay/upstream/v1"
	"callrelay/services/router"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
)

// errChecked: a check found something that has to be done.
var errChecked = errors.New("something has to be done before calls can be delivered, see the marked lines")

func newIntegrations() *cobra.Command {
	c := &cobra.Command{Use: "integrations", Short: "Connect Kommo accounts and cloud PBXs, and look at them",
		Example: "  callrelay integrations accounts\n  callrelay integrations check kommo/9001\n  callrelay integrations list"}
	onlyGroups(c)
	c.AddCommand(newIntegrationsAccounts(), newIntegrationsCheck(), newIntegrationsConnect(), newIntegrationsSet(), newIntegrationsDisconnect(),
		newIntegrationsImport(), newIntegrationsList(), newIntegrationsRotate())
	return c
}

func newIntegrationsCheck() *cobra.Command {
	c := &cobra.Command{
		Use:     "check <id>",
		Short:   "Make harmless requests to a Kommo account and tell what it confirms",
		Example: "  callrelay integrations check kommo/9001",
		Args:    cobra.ExactArgs(1),
	}
	return asksUpstream(c, func(ctx context.Context, kommo upstreamv1.KommoServiceClient, args []string) error {
		id, err := kommoID(args[0])
		if err != nil {
			return err
		}
		answer, err := kommo.Check(ctx, &upstreamv1.CheckRequest{AccountId: id})
		if err != nil {
			return err
		}
		out := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
		for _, f := range answer.GetFindings() {
			mark := " "
			if !f.GetOk() {
				mark, err = "!", errChecked
			}
			fmt.Fprintf(out, "%s %s\t%s\n", mark, f.GetFact(), f.GetFound())
		}
		return errors.Join(out.Flush(), err)
	})
}

func newIntegrationsConnect() *cobra.Command {
	c := &cobra.Command{
		Use:   "connect <host>",
		Short: "Connect a Kommo account with a long-lived token, read from standard input",
		Long: `Connect a Kommo account with a long-lived token, read from standard input so that no shell history keeps it.
Make the token in Kommo: Settings, Integrations, a private integration, Keys and scopes.`,
		Example: "  callrelay integrations connect acme.kommo.com < token",
		Args:    cobra.ExactArgs(1),
	}
	return asksUpstream(c, func(ctx context.Context, kommo upstreamv1.KommoServiceClient, args []string) error {
		token, err := bufio.NewReader(c.InOrStdin()).ReadString('\n')
		if token = strings.TrimSpace(token); token == "" {
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			return fmt.Errorf("no token on standard input; it is meant to come from a file: callrelay integrations connect %s < token", args[0])
		}
		answer, err := kommo.Connect(ctx, &upstreamv1.ConnectRequest{Host: args[0], Token: token})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "kommo/%d is connected; its calls are taken within seconds\n", answer.GetAccountId())
		return err
	})
}

func newIntegrationsSet() *cobra.Command {
	c := &cobra.Command{
		Use:     "set <id>",
		Short:   "Replace the settings of a Kommo account, JSON read from standard input",
		Example: `  echo '{"pipeline_id": 31337, "source_name": "Cloud PBX", "responsible_user_id": 8800123}' | callrelay integrations set kommo/9001`,
		Args:    cobra.ExactArgs(1),
	}
	return asksUpstream(c, func(ctx context.Context, kommo upstreamv1.KommoServiceClient, args []string) error {
		id, err := kommoID(args[0])
		if err != nil {
			return err
		}
		const most = 16 << 10
		settings, err := io.ReadAll(io.LimitReader(c.InOrStdin(), most))
		if err == nil {
			err = router.CheckKommoSettings(settings)
		}
		if err != nil {
			return err
		}
		if _, err := kommo.Configure(ctx, &upstreamv1.ConfigureRequest{AccountId: id, Settings: settings}); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "the settings of kommo/%d are replaced; they count within seconds\n", id)
		return err
	})
}

func newIntegrationsDisconnect() *cobra.Command {
	c := &cobra.Command{
		Use:     "disconnect <id>",
		Short:   "Forget a Kommo account or a cloud PBX, and its credentials; what waits for it is kept",
		Example: "  callrelay integrations disconnect kommo/9001\n  callrelay integrations disconnect pbx/acme",
		Args:    cobra.ExactArgs(1),
	}
	return onUpstream(c, func(ctx context.Context, conn grpc.ClientConnInterface, args []string) error {
		if id, ok := strings.CutPrefix(args[0], pbxtable.AccountPrefix); ok {
			return disconnectPbx(ctx, c, conn, id)
		}
		id, err := kommoID(args[0])
		if err != nil {
			return err
		}
		if _, err := upstreamv1.NewKommoServiceClient(conn).Disconnect(ctx, &upstreamv1.DisconnectRequest{AccountId: id}); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "kommo/%d is disconnected\n", id)
		return err
	})
}

func kommoID(arg string) (int64, error) {
	id, err := strconv.ParseInt(strings.TrimPrefix(arg, "kommo/"), 10, 64)
	if err != nil || id <= 0 {
		return 0, fmt.Errorf("%q is not a Kommo account, e.g. kommo/9001", arg)
	}
	return id, nil
}

// asksUpstream makes c a command that asks upstream about Kommo.
func asksUpstream(c *cobra.Command, run func(ctx context.Context, kommo upstreamv1.KommoServiceClient, args []string) error) *cobra.Command {
	return onUpstream(c, func(ctx context.Context, conn grpc.ClientConnInterface, args []string) error {
		return run(ctx, upstreamv1.NewKommoServiceClient(conn), args)
	})
}

// onUpstream makes c a command that talks to upstream: it adds --upstream and calls run with a connection.
func onUpstream(c *cobra.Command, run func(ctx context.Context, conn grpc.ClientConnInterface, args []string) error) *cobra.Command {
	addr := c.Flags().String("upstream", cmp.Or(os.Getenv("UPSTREAM_GRPC_ADDR"), "127.0.0.1:9083"), "where upstream serves gRPC (UPSTREAM_GRPC_ADDR)")
	const limit = 2 * time.Minute // a check waits for its places in the limit
	c.RunE = func(_ *cobra.Command, args []string) error {
		return ask(c, "upstream", *addr, limit, func(ctx context.Context, conn grpc.ClientConnInterface) error { return run(ctx, conn, args) })
	}
	return c
}
