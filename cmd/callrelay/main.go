// Command callrelay runs the whole relay in one place (`up`) and is the operator's tool (everything else).
//
// It owns what a person types and reads. What the relay does is in the four services, which it starts or asks over gRPC;
// it keeps nothing itself and knows neither Redis' contents nor the rules.
package main

import (
	"context"
	"errors"
	"fmt"
	_ "time/tzdata" // TIMEZONE works on a machine without zone files

	"callrelay/platform/run"

	"github.com/spf13/cobra"
)

// Exit codes for scripts: what does not exist, and what somebody has to look at. 1 is any other error.
const (
	exitNotFound = 3
	exitAlarm    = 4
)

func main() {
	run.Main(func(ctx context.Context) error { return execute(ctx, newRoot()) })
}

func execute(ctx context.Context, root *cobra.Command) error {
	err := root.ExecuteContext(ctx)
	if errors.Is(err, errNotFound) {
		return &run.ExitError{Code: exitNotFound, Err: err}
	}
	if errors.Is(err, errAlarm) {
		return &run.ExitError{Code: exitAlarm, Err: err}
	}
	return err
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "callrelay",
		Short: "Relays telephony callbacks to the CRM, each one once",
		Long: `Relays telephony callbacks to the CRM, each one once.

  callrelay up --sim          start everything here, with a simulated TopS.II
  callrelay calls 5678        calls with a phone number that ends so
  callrelay call 193416       what became of call 193416
  callrelay diagnose 193416   why it stopped, and what to do
  callrelay accounting        what became of every request

Exit codes: 0 done, 1 error, 2 a person has to act (diagnose), 3 no such call, delivery or account, 4 there is something to
look at (an accounting difference, an alarm, something refused, rules that differ).`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().Bool("phones", false, "show phone numbers in full, not only their last digits")
	root.AddGroup(
		&cobra.Group{ID: "run", Title: "Run:"},
		&cobra.Group{ID: "look", Title: "Look (asks the running relay: --state, diagnose --router, cards --ingress; explain needs none):"},
		&cobra.Group{ID: "act", Title: "Act (asks the running relay: --state, resend --router, integrations --upstream):"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			for _, one := range append(c.Commands(), c) {
				withUsage(one)
				if one.ValidArgsFunction == nil {
					one.ValidArgsFunction = cobra.NoFileCompletions // ids are no files
				}
			}
			root.AddCommand(c)
		}
	}
	add("run", newUp(), newSend(), newProve(), newVersion())
	add("look", newCalls(), newCall(), newRequest(), newDiagnose(), newExplain(), newTail(), newCards(), newDeliveries(), newDestinations(),
		newAccounting(), newAlarms())
	add("act", newRetry(), newDiscard(), newResend(), newHold(), newRelease(), newIntegrations())
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			onlyGroups(c)
		}
	}
	return root
}

// onlyGroups makes c, which does nothing but hold commands, refuse what is none of them; else that would print help and succeed.
func onlyGroups(c *cobra.Command) {
	c.Args, c.RunE = cobra.NoArgs, func(c *cobra.Command, _ []string) error { return c.Help() }
}

// withUsage makes complaints about the number of arguments say what was expected.
func withUsage(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return fmt.Errorf("%w; usage: %s (--help shows examples)", err, c.UseLine())
			}
			return nil
		}
	}
}
