package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"callrelay/cmd/internal/up"

	"github.com/spf13/cobra"
)

func newUp() *cobra.Command {
	c := &cobra.Command{
		Use:   "up",
		Short: "Start the whole relay here: Redis, all four services, and on request simulators of what is around it",
		Long: `Start the whole relay here: Redis, all four services, and on request simulators of what is around it: TopS.II, Kommo, and a
CRM that takes the calls of a cloud PBX (callrelay send pbx is the PBX).

Uses the Redis of REDIS_URL, or runs a private one whose data is in --data-dir, as the spool is. Every setting is read from the
environment. Ctrl-C stops everything in order, within 4 seconds.`,
		Example: "  callrelay up --sim\n  REDIS_URL=redis://10.0.0.5:6379/0 ENABLE_REAL_SEND=true callrelay up",
		Args:    cobra.NoArgs,
	}
	dataDir := c.Flags().String("data-dir", cmp.Or(os.Getenv("DATA_DIR"), "data"), "where the private Redis and the spool keep their data (DATA_DIR)")
	sim := c.Flags().Bool("sim", false, "also start simulators of TopS.II, Kommo and a CRM behind a PBX's webhook, and send to them unless the environment says where")
	simAddr := c.Flags().String("sim-addr", "127.0.0.1:8090", "where the simulators listen")
	split := c.Flags().Bool("split", false, "four processes (state, router, upstream, ingress from beside this program) instead of one")
	c.RunE = func(c *cobra.Command, _ []string) error {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		o := up.Options{
			Environment: environment(),
			DataDir:     *dataDir,
			Split:       *split,
			BinDir:      filepath.Dir(self),
			Program:     os.Args[0],
			Out:         c.OutOrStdout(),
			Log:         slog.New(slog.NewJSONHandler(os.Stdout, nil)).With("service", "callrelay-up"),
		}
		if *sim {
			o.SimAddr = *simAddr
		}
		err = up.Run(c.Context(), o)
		if errors.Is(err, syscall.EADDRINUSE) {
			err = fmt.Errorf("%w; is another callrelay running? ss -ltnp says who listens there", err)
		}
		if err == nil {
			_, err = fmt.Fprintln(c.OutOrStdout(), "stopped")
		}
		return err
	}
	return c
}

func environment() map[string]string {
	env := map[string]string{}
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		env[name] = value
	}
	return env
}
