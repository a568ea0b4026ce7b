package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"callrelay/cmd/internal/prove"
	"callrelay/platform/run"

	"github.com/spf13/cobra"
)

func newProve() *cobra.Command {
	c := &cobra.Command{
		Use:   "prove",
		Short: "Prove here that no callback is lost or doubled: load while every part is killed in turn",
		Long: `Prove here that no callback is lost or doubled: load while every part is killed in turn.

Starts a private relay in separate processes (their programs are beside this one) with its own Redis and simulators, on
ports and in a directory of its own. While callbacks come in, each service and Redis is killed, frozen and restarted, and
TopS.II refuses, hangs, cuts and trickles. Then everything that was acknowledged is looked for at TopS.II and, of the calls
of a cloud PBX, at their webhook, and the relay's accounting is compared with it.

Exit code 1 when anything was lost, doubled or out of order; then the data is kept, and it says where.`,
		Example: "  callrelay prove\n  callrelay prove --for 10m --rate 500 --replicas 2 --json",
		Args:    cobra.NoArgs,
	}
	var o prove.Options
	c.Flags().DurationVar(&o.For, "for", time.Minute, "how long load and faults last; from a minute on what is frozen stays so for longer than others wait")
	c.Flags().Uint64Var(&o.Seed, "seed", 0, "makes the same callbacks and the same faults again; 0: others each time")
	c.Flags().Float64Var(&o.Rate, "rate", 100, "callbacks per second; retries and repeats come on top")
	c.Flags().IntVar(&o.Replicas, "replicas", 1, "how many processes of each service run at once")
	asJSON := jsonFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		if o.Seed == 0 {
			o.Seed = 1 + uint64(time.Now().UnixMilli())%899_999
		}
		o.BinDir, o.Program, o.Progress = filepath.Dir(self), os.Args[0], c.ErrOrStderr()
		o.Terminal = isTerminal(os.Stderr)
		result, err := prove.Run(c.Context(), o)
		if o.Terminal {
			fmt.Fprint(c.ErrOrStderr(), "\r\x1b[K")
		}
		if result == nil {
			return err
		}
		if *asJSON {
			err = errors.Join(err, result.JSON(c.OutOrStdout()))
		} else {
			err = errors.Join(err, result.Table(c.OutOrStdout(), os.Args[0]))
		}
		if err == nil && !result.Holds() {
			return &run.ExitError{Code: 1}
		}
		return err
	}
	return c
}
