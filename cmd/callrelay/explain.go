package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"callrelay/callback"
	operatorv1 "callrelay/gen/callrelay/operator/v1"
	"callrelay/platform/config"
	"callrelay/services/router"
	"callrelay/services/router/explain"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
)

func newExplain() *cobra.Command {
	c := &cobra.Command{
		Use:   "explain <url or log line>... | explain --log FILE",
		Short: "Say what callbacks would do, without doing it; compare rules, or the old relay's logs",
		Long: `Say what callbacks would do, without doing it. Needs no running relay, but with --stored.

A callback is a URL as it stands in the dialer's settings or in a log, a line of a daily log, parameters, a JSON object, or
a PHP array as print_r writes it; several are decided one after the other. The rules are those of the environment
(AMEYO_RULES_FILE, AMEYO_PROFILE ...). One --rules is compared with them, two or more with each other.

--log reads daily logs of the old PHP relay and shows where the decisions differ: the check before switching over.

Exit codes: 0 it would be taken and no rules differ, 4 it would be refused or rules differ, 1 it is no callback, or another error.`,
		Example: `  callrelay explain 'http://relay/index.php?unique_id=1&systemDisposition=BUSY'
  callrelay explain --rules new-rules.txt 'unique_id=1&hangupCauseCode=17'
  callrelay explain --log logs/call_start-2026-11-20.log --log logs/call_end-2026-11-20.log --log logs/not_answer-2026-11-20.log`,
	}
	asJSON := jsonFlag(c)
	logs := c.Flags().StringArray("log", nil, "daily log of the PHP relay; give all of a day's, several days in one go")
	files := c.Flags().StringArray("rules", nil, "rules file to compare")
	profile := c.Flags().String("profile", "", "profile of the --rules files; empty: AMEYO_PROFILE")
	stored := c.Flags().Bool("stored", false, "decide on what is stored of the calls (asks router)")
	addr := routerFlag(c)
	c.RunE = func(_ *cobra.Command, args []string) error {
		callbacks, err := readCallbacks(args, c.InOrStdin())
		if err != nil {
			return err
		}
		switch {
		case (len(callbacks) == 0) == (len(*logs) == 0):
			return errNothingToExplain
		case *stored && len(*logs) > 0:
			return fmt.Errorf("--stored and --log do not go together: the old relay's calls are not stored here")
		case *profile != "" && len(*files) == 0:
			return fmt.Errorf("--profile is that of a --rules file, and none is given; AMEYO_PROFILE is that of the rules in force")
		}
		var texts []*operatorv1.RulesText
		for _, name := range *files {
			text, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			texts = append(texts, &operatorv1.RulesText{Name: name, Text: string(text), Profile: *profile})
		}
		if *stored {
			return ask(c, "router", *addr, askTimeout, func(ctx context.Context, conn grpc.ClientConnInterface) error {
				resp, err := operatorv1.NewAdviceServiceClient(conn).Explain(ctx, &operatorv1.ExplainRequest{Callbacks: callbacks, Stored: true, Rules: texts})
				if err != nil {
					return err
				}
				return showExplained(c.OutOrStdout(), resp, *asJSON)
			})
		}
		rules, options, err := rulesOf(texts)
		if err != nil {
			return err
		}
		if len(*logs) > 0 {
			return compareLogs(c.OutOrStdout(), *logs, explain.NewSession(rules[len(rules)-1:], options, nil), options)
		}
		session := explain.NewSession(rules, options, nil)
		resp := &operatorv1.ExplainResponse{}
		for _, text := range callbacks {
			answer, err := session.Explain(text, time.Now().UnixMilli())
			if err != nil {
				return err
			}
			e := answer.Proto(false)
			if e.GetDiffers() {
				resp.Differing++
			}
			resp.Explanations = append(resp.Explanations, e)
		}
		return showExplained(c.OutOrStdout(), resp, *asJSON)
	}
	return c
}

// rulesOf are the rules to compare: those of the environment first, unless several files are given.
func rulesOf(texts []*operatorv1.RulesText) ([]explain.Rules, callback.Options, error) {
	cfg, err := config.Load[router.Config]()
	if err != nil {
		return nil, callback.Options{}, err
	}
	inForce, options, err := cfg.Rules()
	if err != nil {
		return nil, options, err
	}
	var rules []explain.Rules
	if len(texts) < 2 {
		rules = append(rules, explain.Rules{Name: inForce.Rules.Name() + " (" + inForce.Profile + ")", Config: inForce})
	}
	for _, text := range texts {
		other, err := explain.With(inForce, text.GetName(), []byte(text.GetText()), text.GetProfile())
		if err != nil {
			return nil, options, err
		}
		rules = append(rules, other)
	}
	return rules, options, nil
}

func showExplained(out io.Writer, resp *operatorv1.ExplainResponse, asJSON bool) error {
	if asJSON {
		if err := printJSON(out, resp); err != nil {
			return err
		}
		return explained(resp)
	}
	var b strings.Builder
	for i, e := range resp.GetExplanations() {
		if len(resp.GetExplanations()) > 1 {
			fmt.Fprintf(&b, "%d. ", i+1)
		}
		if e.GetSource() == "" {
			fmt.Fprintf(&b, "%s\n", printable(e.GetRefused()))
			continue
		}
		if e.GetRefused() != "" {
			fmt.Fprintf(&b, "refused: %s%s\n", printable(e.GetRefused()), about(", field ", e.GetRefusedField()))
			continue
		}
		fmt.Fprintf(&b, "%s of %s\n", e.GetSource(), printable(e.GetCall()))
		for _, note := range e.GetNotes() {
			fmt.Fprintf(&b, "   note: %s\n", printable(note))
		}
		for _, d := range e.GetDecisions() {
			if len(e.GetDecisions()) > 1 {
				fmt.Fprintf(&b, "   %s:\n", printable(d.GetRules()))
			}
			line := d.GetFlow()
			if d.GetRule() != "" {
				line = "rule " + d.GetRule() + ": " + line
			}
			if d.GetPhone1StateUsed() {
				line += ", phone-1 record used"
			}
			fmt.Fprintf(&b, "   %s\n   because %s\n", printable(line), printable(d.GetReason()))
			for _, p := range d.GetPayloads() {
				fmt.Fprintf(&b, "   would send %s\n", printable(p))
			}
			if len(d.GetPayloads()) == 0 {
				fmt.Fprintf(&b, "   would send nothing\n")
			}
		}
		if e.GetDiffers() {
			fmt.Fprintf(&b, "   THE RULES DIFFER\n")
		}
	}
	if _, err := io.WriteString(out, b.String()); err != nil {
		return err
	}
	return explained(resp)
}

// explained is what the exit code says: that something was no callback at all, or that somebody should look.
func explained(resp *operatorv1.ExplainResponse) error {
	var unread, refused int
	for _, e := range resp.GetExplanations() {
		switch {
		case e.GetSource() == "":
			unread++
		case e.GetRefused() != "":
			refused++
		}
	}
	switch {
	case unread > 0:
		return fmt.Errorf("%d of %d inputs are no callback", unread, len(resp.GetExplanations()))
	case refused > 0:
		return fmt.Errorf("%w: %d of %d callbacks would be refused", errAlarm, refused, len(resp.GetExplanations()))
	}
	return differs(int(resp.GetDiffering()))
}

// compareLogs shows where the rules decide otherwise than the old relay did.
func compareLogs(out io.Writer, names []string, session *explain.Session, options callback.Options) error {
	var logs explain.Logs
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = logs.Read(name, f)
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	zone := options.Zone
	if zone == nil {
		zone = callback.DefaultZone()
	}
	different := 0
	compared := logs.Compare(session, zone)
	for _, one := range compared {
		if one.Difference == "" {
			continue
		}
		different++
		fmt.Fprintf(out, "%s %s request %s: %s\n", printable(one.Line), one.At.Format(time.DateTime), printable(one.RequestID), printable(one.Difference))
		if one.Said != "" {
			fmt.Fprintf(out, "    the PHP relay said: %s\n", printable(one.Said))
		}
		if len(one.Answer.Decisions) > 0 {
			fmt.Fprintf(out, "    callrelay: because %s\n", printable(one.Answer.Decisions[0].Reason))
		} else {
			fmt.Fprintf(out, "    callrelay: %s\n", printable(one.Answer.Refused))
		}
	}
	_, err := fmt.Fprintf(out, "%d callbacks compared: %d the same, %d different; %d lines not understood\n", len(compared), len(compared)-different, different, logs.Skipped)
	if err == nil && len(compared) == 0 {
		return fmt.Errorf("no callback was found in %s", strings.Join(names, ", "))
	}
	if err != nil {
		return err
	}
	return differs(different)
}
