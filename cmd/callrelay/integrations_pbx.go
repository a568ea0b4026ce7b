package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"callrelay/callback/pbxtable"
	upstreamv1 "callrelay/gen/callrelay/upstream/v1"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
)

func newIntegrationsImport() *cobra.Command {
	c := &cobra.Command{
		Use:   "import <file>",
		Short: "Create or replace cloud PBXs from a file; it counts everywhere within seconds",
		Long: `Create or replace cloud PBXs from a file (docs/pbx.md), each as a whole; those that are not in it stay as they are.
It counts everywhere within 5 seconds, without a restart. What list --json says is such a file, too.`,
		Example: "  callrelay integrations import pbx.json",
		Args:    cobra.ExactArgs(1),
	}
	return onUpstream(c, func(ctx context.Context, conn grpc.ClientConnInterface, args []string) error {
		data, err := os.ReadFile(args[0])
		if err != nil {
			return err
		}
		all, err := pbxtable.Parse(data) // all of it is right before any of it counts
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		client := upstreamv1.NewPbxServiceClient(conn)
		for _, n := range all {
			text, err := json.Marshal(n)
			if err != nil {
				return err
			}
			answer, err := client.PutIntegration(ctx, &upstreamv1.PutIntegrationRequest{Integration: text})
			if err != nil {
				return err
			}
			what := "is there already"
			if answer.GetChanged() {
				what = "is stored"
			}
			fmt.Fprintf(c.OutOrStdout(), "pbx/%s %s\n", n.ID, what)
		}
		return nil
	})
}

func newIntegrationsList() *cobra.Command {
	c := &cobra.Command{
		Use:     "list [id]",
		Short:   "List cloud PBXs, or the extensions of one; no tokens and no secrets, only their hashes",
		Example: "  callrelay integrations list\n  callrelay integrations list acme\n  callrelay integrations list --json",
		Args:    cobra.MaximumNArgs(1),
	}
	asJSON := jsonFlag(c)
	return onUpstream(c, func(ctx context.Context, conn grpc.ClientConnInterface, args []string) error {
		answer, err := upstreamv1.NewPbxServiceClient(conn).ListIntegrations(ctx, &upstreamv1.ListIntegrationsRequest{})
		if err != nil {
			return err
		}
		var file struct {
			Integrations []pbxtable.Integration `json:"integrations"`
		}
		var listed []*upstreamv1.Integration
		for _, one := range answer.GetIntegrations() {
			if len(args) == 1 && one.GetId() != strings.TrimPrefix(args[0], pbxtable.AccountPrefix) {
				continue
			}
			var n pbxtable.Integration
			if len(one.GetIntegration()) > 0 {
				if err := json.Unmarshal(one.GetIntegration(), &n); err != nil {
					return err
				}
			}
			file.Integrations, listed = append(file.Integrations, n), append(listed, one)
		}
		switch {
		case len(args) == 1 && len(listed) == 0:
			return fmt.Errorf("%w: there is no integration %q", errNotFound, args[0])
		case *asJSON:
			text, err := json.MarshalIndent(file, "", "  ")
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), string(text))
			return err
		case len(args) == 1:
			return listExtensions(c, &file.Integrations[0], listed[0].GetProblem())
		}
		w := table(c.OutOrStdout(), "INTEGRATION", "PREFIX", "EXTENSIONS", "WEBHOOK", "FROM", "PROBLEM")
		for i, n := range file.Integrations {
			from := "import"
			if listed[i].GetFromFile() {
				from = "PBX_INTEGRATIONS"
			}
			fmt.Fprintf(w, "pbx/%s\t%s\t%d\t%s\t%s\t%s\n", listed[i].GetId(), n.Prefix, len(n.Extensions), hostOf(n.Webhook.URL), from, cmp.Or(listed[i].GetProblem(), "-"))
		}
		return w.Flush()
	})
}

func listExtensions(c *cobra.Command, n *pbxtable.Integration, problem string) error {
	w := table(c.OutOrStdout(), "ID", "EXTENSION", "TYPE", "USER", "TOKENS", "ENDING")
	for _, x := range n.Extensions {
		ending := "-"
		for i, e := range x.Ending {
			if text := e.Until.Local().Format(time.DateTime); i == 0 {
				ending = text
			} else {
				ending += ", " + text
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", x.ID, x.Name, x.Type, printable(orDash(x.User)), len(x.Tokens), ending)
	}
	if err := w.Flush(); err != nil || problem == "" {
		return err
	}
	return errors.New(problem)
}

// hostOf leaves out the rest of an address, which may hold a secret.
func hostOf(address string) string {
	_, rest, _ := strings.Cut(address, "://")
	host, _, _ := strings.Cut(rest, "/")
	host, _, _ = strings.Cut(host, "?")
	return orDash(host)
}

func newIntegrationsRotate() *cobra.Command {
	c := &cobra.Command{
		Use:   "rotate <id> <extension>",
		Short: "Give an extension of a cloud PBX a new event URL",
		Long: `Give an extension of a cloud PBX, named by its id or name, a new event URL, and show it, once. Those it has work on until the
overlap is over: time to move the PBX's subscription. --overlap 0 ends them at once, which is for a token that leaked.`,
		Example: "  callrelay integrations rotate acme 33301\n  callrelay integrations rotate acme '0003*101' --overlap 0",
		Args:    cobra.ExactArgs(2),
	}
	overlap := c.Flags().Duration("overlap", 24*time.Hour, "for how long the earlier URLs still work, at most 2160h")
	return onUpstream(c, func(ctx context.Context, conn grpc.ClientConnInterface, args []string) error {
		answer, err := upstreamv1.NewPbxServiceClient(conn).RotateToken(ctx, &upstreamv1.RotateTokenRequest{
			IntegrationId: strings.TrimPrefix(args[0], pbxtable.AccountPrefix), Extension: args[1], OverlapS: int64(overlap.Seconds())})
		if err != nil {
			return err
		}
		out := c.OutOrStdout()
		fmt.Fprintf(out, "https://HOST/ext-event/%s\n\nThis is shown only once. It works everywhere within 5 seconds.\n", answer.GetToken())
		if end := answer.GetEarlierEndMs(); end > 0 {
			_, err = fmt.Fprintf(out, "The earlier URLs of the extension end at %s: move the PBX's subscription until then.\n", time.UnixMilli(end).Format(time.DateTime))
			return err
		}
		_, err = fmt.Fprintln(out, "The earlier URLs of the extension, if there were any, end within 5 seconds.")
		return err
	})
}

func disconnectPbx(ctx context.Context, c *cobra.Command, conn grpc.ClientConnInterface, id string) error {
	if _, err := upstreamv1.NewPbxServiceClient(conn).DeleteIntegration(ctx, &upstreamv1.DeleteIntegrationRequest{Id: id}); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.OutOrStdout(), "pbx/%s is disconnected; its event URLs end within 5 seconds\n", id)
	return err
}
