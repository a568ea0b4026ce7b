package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func newVersion() *cobra.Command {
	c := &cobra.Command{
		Use:     "version",
		Short:   "Say which commit this program was built from",
		Example: "  callrelay version",
		Args:    cobra.NoArgs,
	}
	asJSON := jsonFlag(c)
	c.RunE = func(*cobra.Command, []string) error {
		info, ok := debug.ReadBuildInfo()
		if !ok {
			info = &debug.BuildInfo{}
		}
		text := renderVersion(info)
		if *asJSON {
			raw, err := json.Marshal(map[string]string{"version": text, "go": info.GoVersion})
			if err != nil {
				return err
			}
			text = string(raw)
		}
		_, err := fmt.Fprintln(c.OutOrStdout(), text)
		return err
	}
	return c
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
