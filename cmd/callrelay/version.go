package main

import (
	"cmp"
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Say which commit this program was built from",
		Example: "  callrelay version",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			info, ok := debug.ReadBuildInfo()
			if !ok {
				info = &debug.BuildInfo{}
			}
			_, err := fmt.Fprintln(c.OutOrStdout(), renderVersion(info))
			return err
		},
	}
}

func renderVersion(info *debug.BuildInfo) string {
	set := map[string]string{}
	for _, s := range info.Settings {
		set[s.Key] = s.Value
	}
	commit := cmp.Or(set["vcs.revision"], "unknown commit")
	if set["vcs.modified"] == "true" {
		commit += " with local changes"
	}
	return fmt.Sprintf("callrelay %s, %s, %s", commit, cmp.Or(set["vcs.time"], "unknown time"), info.GoVersion)
}
