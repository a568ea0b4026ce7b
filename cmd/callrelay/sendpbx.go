package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"callrelay/callback"
	"callrelay/sim/pbx"

	"github.com/spf13/cobra"
)

func newSendPbx() *cobra.Command {
	names := strings.Join(pbx.Scenarios, ", ")
	c := &cobra.Command{
		Use:   "pbx SCENARIO...",
		Short: "Send the events of calls as a cloud PBX does",
		Long: `Send the events of calls as a cloud PBX does, to the extensions of PBX_INTEGRATIONS that have tokens:
at least two phones and a queue. Without PBX_INTEGRATIONS they are those that callrelay up --sim knows.

Scenarios: ` + names + `; all: each of them.`,
		Example: "  callrelay send pbx answered missed\n  callrelay send pbx all --repeat --reorder",
		Args:    cobra.MinimumNArgs(1),
	}
	to := c.Flags().String("to", "http://"+cmp.Or(os.Getenv("INGRESS_HTTP_ADDR"), "127.0.0.1:8080"), "the relay")
	file := c.Flags().String("table", os.Getenv("PBX_INTEGRATIONS"), "a table of integrations (PBX_INTEGRATIONS); the one of up --sim if empty")
	integration := c.Flags().String("integration", "", "which one of the table; the first if empty")
	repeat := c.Flags().Bool("repeat", false, "send some events twice")
	reorder := c.Flags().Bool("reorder", false, "send the events of each call in a wrong order")
	lose := c.Flags().Bool("lose", false, "leave some events out")
	realTime := c.Flags().Bool("real-time", false, "send each event when it happens, not all at once")
	seed := c.Flags().Uint64("seed", 0, "makes the same calls again; 0: others each time")
	c.RunE = func(c *cobra.Command, args []string) error {
		data := pbx.Table("")
		if *file != "" {
			var err error
			if data, err = os.ReadFile(*file); err != nil {
				return fmt.Errorf("--table: %w", err)
			}
		}
		extensions, err := pbx.Extensions(data, *integration)
		if err != nil {
			return err
		}
		p, err := pbx.New(cmp.Or(*seed, uint64(time.Now().UnixNano())), extensions, time.Now())
		if err != nil {
			return err
		}
		if slices.Contains(args, "all") {
			args = pbx.Scenarios
		}
		w := table(c.OutOrStdout(), "SCENARIO", "CALL", "EVENTS", "REGISTRATIONS")
		for _, scenario := range args {
			call, err := p.Call(scenario)
			if err != nil {
				return err
			}
			events := call.Events
			if *lose {
				events = p.Lose(events)
			}
			if *repeat {
				events = p.Repeat(events)
			}
			if *reorder {
				events = p.Reorder(events)
			}
			if err := sendEvents(c.Context(), *to, events, *realTime); err != nil {
				return fmt.Errorf("%s: %w", scenario, err)
			}
			row(w, scenario, callback.PbxCallKey(extensions[0].Integration, call.ID), len(events), call.Registered)
		}
		return w.Flush()
	}
	return c
}

// sendEvents sends events one after the other, in real time or at once.
func sendEvents(ctx context.Context, to string, events []pbx.Event, realTime bool) error {
	client := &http.Client{Timeout: 30 * time.Second}
	began := time.Now()
	for _, e := range events {
		if wait := time.Until(began.Add(e.At)); realTime && wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if _, err := pbx.Send(ctx, client, to, e); err != nil {
			return err
		}
	}
	return nil
}
