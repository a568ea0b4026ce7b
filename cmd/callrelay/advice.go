package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	"callrelay/platform/run"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
)

// exitAct is the exit code of a diagnosis that needs a person.
const exitAct = 2

// asksRouter makes c a command that talks to router: it adds --router and calls run with a client.
func asksRouter(c *cobra.Command, run func(ctx context.Context, router operatorv1.AdviceServiceClient, args []string) error) *cobra.Command {
	addr := routerFlag(c)
	c.RunE = func(_ *cobra.Command, args []string) error {
		return ask(c, "router", *addr, askTimeout, func(ctx context.Context, conn grpc.ClientConnInterface) error {
			return run(ctx, operatorv1.NewAdviceServiceClient(conn), args)
		})
	}
	return c
}

func routerFlag(c *cobra.Command) *string {
	return c.Flags().String("router", cmp.Or(os.Getenv("ROUTER_GRPC_ADDR"), "127.0.0.1:9081"), "where router serves gRPC (ROUTER_GRPC_ADDR)")
}

func newDiagnose() *cobra.Command {
	c := &cobra.Command{
		Use:     "diagnose <id>",
		Short:   "Say at which step a call stopped, why, and what to do",
		Example: "  callrelay diagnose 193416\n  callrelay diagnose 193416 --lang ja\n  callrelay diagnose request/ABC",
		Args:    cobra.ExactArgs(1),
	}
	asJSON := jsonFlag(c)
	lang := c.Flags().String("lang", "en", "language: en or ja")
	completes(c, "lang", "en", "ja")
	return asksRouter(c, func(ctx context.Context, router operatorv1.AdviceServiceClient, args []string) error {
		if *lang != "en" && *lang != "ja" {
			return fmt.Errorf("--lang %q: there is en and ja", *lang)
		}
		key, err := callKey(args[0])
		if err != nil {
			return err
		}
		report, err := router.Diagnose(ctx, &operatorv1.DiagnoseRequest{Call: key})
		if err != nil {
			return err
		}
		if *asJSON {
			err = printJSON(c.OutOrStdout(), report)
		} else {
			err = renderDiagnosis(c.OutOrStdout(), report, *lang == "ja")
		}
		switch {
		case err != nil:
			return err
		case report.GetLevel() != operatorv1.Level_LEVEL_FAILED:
			return nil
		case report.GetStep() == "received":
			return fmt.Errorf("%w: nothing is stored of %s", errNotFound, key)
		}
		return &run.ExitError{Code: exitAct}
	})
}

// marks of levels, as people tick off a list.
var marks = map[operatorv1.Level]string{
	operatorv1.Level_LEVEL_SKIPPED: "-", operatorv1.Level_LEVEL_OK: "ok", operatorv1.Level_LEVEL_NOTE: "note",
	operatorv1.Level_LEVEL_WAITING: "wait", operatorv1.Level_LEVEL_FAILED: "STOP",
}

func renderDiagnosis(out io.Writer, r *operatorv1.DiagnoseResponse, japanese bool) error {
	say := func(t *operatorv1.Text) string {
		if japanese {
			return printable(t.GetJa())
		}
		return printable(t.GetEn())
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", printable(r.GetCall()))
	for i, step := range r.GetSteps() {
		fmt.Fprintf(&b, "%d. %-5s%s\n", i+1, marks[step.GetLevel()], say(step.GetTitle()))
		for _, f := range step.GetFindings() {
			fmt.Fprintf(&b, "        %s\n", say(f.GetWhy()))
			if f.GetAdvice() != nil {
				fmt.Fprintf(&b, "        -> %s\n", say(f.GetAdvice()))
			}
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func newResend() *cobra.Command {
	c := &cobra.Command{
		Use:   "resend <request id> --reason TEXT",
		Short: "Take a callback of the dialer through the rules again, corrected if you like, in place of its request",
		Example: `  callrelay resend ABC --set customerCRTId=d336-1 --reason "the dialer left it out"
  callrelay resend ABC --call 193416 --force --reason "deleted in TopS.II by mistake"`,
		Args: cobra.ExactArgs(1),
	}
	asJSON := jsonFlag(c)
	set := c.Flags().StringArray("set", nil, "correct a parameter: NAME=VALUE; an empty value takes it away")
	force := c.Flags().Bool("force", false, "also if it was or may have been delivered")
	call := c.Flags().String("call", "", "the call of the request, where the relay cannot find it")
	id := c.Flags().String("id", "", "name of this resend: the same one never happens twice (default: made of the request and its parameters)")
	reason := reasonFlag(c)
	return asksRouter(c, func(ctx context.Context, router operatorv1.AdviceServiceClient, args []string) error {
		req := &operatorv1.ResendRequest{RequestId: strings.TrimPrefix(args[0], "request/"), Set: map[string]string{}, Force: *force,
			Reason: *reason, ResendId: *id, Call: *call}
		for _, one := range *set {
			name, value, ok := strings.Cut(one, "=")
			if !ok || name == "" {
				return fmt.Errorf("--set %q is not NAME=VALUE", one)
			}
			req.Set[name] = value
		}
		resp, err := router.Resend(ctx, req)
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), resp)
		}
		what := "resent"
		if resp.GetAlready() {
			what = "had been resent before"
		}
		line := fmt.Sprintf("request %s %s as %s of %s", req.GetRequestId(), what, resp.GetRequestId(), resp.GetCall())
		if resp.GetFlow() != "" {
			line += fmt.Sprintf(": rule %s, %s", resp.GetRule(), resp.GetFlow())
		}
		for _, n := range resp.GetDeliveries() {
			line += fmt.Sprintf(", delivery %d", n)
		}
		_, err = fmt.Fprintln(c.OutOrStdout(), printable(line))
		return err
	})
}

// differs is the end of a comparison that found something.
func differs(n int) error {
	if n == 0 {
		return nil
	}
	return &run.ExitError{Code: exitAlarm}
}

var errNothingToExplain = errors.New("say what to explain: a URL, a line of a log, parameters; - reads one per line; or --log FILE")

// readCallbacks replaces "-" by the lines of stdin.
func readCallbacks(args []string, in io.Reader) ([]string, error) {
	if !slices.Contains(args, "-") {
		return args, nil
	}
	text, err := io.ReadAll(io.LimitReader(in, 4<<20))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, arg := range args {
		if arg != "-" {
			out = append(out, arg)
			continue
		}
		if strings.Contains(string(text), "] =>") {
			out = append(out, string(text))
			continue
		}
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" {
				out = append(out, line)
			}
		}
	}
	return out, nil
}
