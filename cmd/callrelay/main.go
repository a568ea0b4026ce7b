// Command callrelay runs the whole relay in one place (`up`) and is the operator's tool (everything else).
//
// It owns what a person types and reads. What the relay does is in the four services, which it starts or asks over gRPC;
// it keeps nothing itself and knows neither Redis' contents nor the rules.
package main

import (
	"context"
	"errors"
	_ "time/tzdata" // TIMEZONE works on a machine without zone files

	"callrelay/platform/run"

	"github.com/spf13/cobra"
)

// exitNotFound is the exit code for what does not exist, for scripts; 1 is any other error.
const exitNotFound = 3

func main() {
	run.Main(func(ctx context.Context) error { return execute(ctx, newRoot()) })
}

func execute(ctx context.Context, root *cobra.Command) error {
	err := root.ExecuteContext(ctx)
	if errors.Is(err, errNotFound) {
		return &run.ExitError{Code: exitNotFound, Err: err}
	}
	return err
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "callrelay",
		Short: "Relays telephony callbacks to the CRM, each one once",
		Long: `Relays telephony callbacks to the CRM, each one once.

  callrelay up --sim       start everything here, with a simulated TopS.II
  callrelay call 193416    what became of call 193416

Exit codes: 0 done, 1 error, 3 no such call or delivery.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.AddGroup(
		&cobra.Group{ID: "run", Title: "Run:"},
		&cobra.Group{ID: "look", Title: "Look (needs the state service, --state):"},
		&cobra.Group{ID: "act", Title: "Act (needs the state service, --state):"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("run", newUp(), newSend(), newProve(), newVersion())
	add("look", newCall(), newDeliveries(), newDestinations())
	add("act", newRetry(), newDiscard(), newHold(), newRelease(), newIntegrations())
	return root
}
