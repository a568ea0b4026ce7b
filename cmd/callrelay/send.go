package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"callrelay/sim/dialer"

	"github.com/spf13/cobra"
)

// scenarios that `send --scenario` plays. "mix" draws from all well-formed ones.
var scenarios = map[string][]dialer.Scenario{
	"one-phone":        {dialer.SinglePhoneNotAnswered},
	"connected":        {dialer.Phone1Connected},
	"two-phones":       {dialer.BothPhonesFail},
	"phone2-connected": {dialer.Phone2Connected},
	"same-crt":         {dialer.SameCRTID},
	"malformed":        {dialer.MalformedCallback},
	"mix":              dialer.Scenarios,
}

var routes = map[string]string{"call-start": "/v1/ameyo/call-start", "call-end": "/v1/ameyo/call-end"}

// showAll is up to how many callbacks `send` prints each answer.
const showAll = 30

func newSend() *cobra.Command {
	names := strings.Join(slices.Sorted(maps.Keys(scenarios)), ", ")
	c := &cobra.Command{
		Use:   "send call-start|call-end NAME=VALUE...",
		Short: "Send callbacks as the dialer does: one, or a scenario",
		Long: `Send callbacks as the dialer does: one with given parameters, or calls of a scenario.

Scenarios: ` + names + `.`,
		Example: `  callrelay send call-end unique_id=193416 systemDisposition=NO_ANSWER
  callrelay send --scenario two-phones --count 100 --rate 20 --to http://127.0.0.1:8080`,
	}
	to := c.Flags().String("to", "http://"+cmp.Or(os.Getenv("INGRESS_HTTP_ADDR"), "127.0.0.1:8080"),
		"the relay; with AMEYO_PATH_SECRET: http://host/SECRET")
	scenario := c.Flags().String("scenario", "", "play calls of this scenario: "+names)
	count := c.Flags().Int("count", 1, "how many calls")
	rate := c.Flags().Float64("rate", 0, "callbacks per second; 0: as fast as they are answered")
	concurrency := c.Flags().Int("concurrency", 8, "requests under way at a time")
	repeat := c.Flags().Bool("repeat", false, "send callbacks up to three times, as the dialer does")
	reorder := c.Flags().Bool("reorder", false, "send the callbacks of each call in a wrong order")
	seed := c.Flags().Uint64("seed", 0, "makes the same callbacks again; 0: others each time")
	c.RunE = func(c *cobra.Command, args []string) error {
		if u, err := url.Parse(*to); err != nil || u.Host == "" {
			return fmt.Errorf("--to %q is not an address like http://127.0.0.1:8080", *to)
		}
		if *scenario == "" {
			cb, err := singleCallback(args)
			if err != nil {
				return err
			}
			return sendOne(c.Context(), c.OutOrStdout(), cb.URL(*to))
		}
		if len(args) > 0 {
			return fmt.Errorf("either --scenario or one callback, not both: %v", args)
		}
		play, ok := scenarios[*scenario]
		if !ok || *count < 1 || *concurrency < 1 || *rate < 0 {
			return fmt.Errorf("there is no scenario %q (%s), or --count, --concurrency or --rate is out of range", *scenario, names)
		}
		play = wrapped(play, *reorder, dialer.Reordered)
		play = wrapped(play, *repeat, dialer.Repeated)
		// Other call ids each time, or the second run would be duplicates of the first.
		chosen := cmp.Or(*seed, 1+uint64(time.Now().UnixMilli())%899_999)
		callbacks := dialer.New(chosen).Mix(*count, play...)
		report := dialer.Play(c.Context(), nil, *to, callbacks, dialer.PlayOptions{Concurrency: *concurrency, Rate: *rate})
		if err := renderReport(c.OutOrStdout(), callbacks, report, chosen); err != nil {
			return err
		}
		if n := len(report.Unexpected) + report.Outcomes[dialer.NotSent]; n > 0 {
			return fmt.Errorf("%d of %d callbacks were not answered as they should be", n, len(callbacks))
		}
		return nil
	}
	c.Args = cobra.ArbitraryArgs // "call-end" is no subcommand
	c.AddCommand(newSendPbx())
	return c
}

func wrapped(play []dialer.Scenario, wanted bool, wrap func(dialer.Scenario) dialer.Scenario) []dialer.Scenario {
	if !wanted {
		return play
	}
	var out []dialer.Scenario
	for _, s := range play {
		out = append(out, wrap(s))
	}
	return out
}

// singleCallback reads "call-end unique_id=1 ...".
func singleCallback(args []string) (dialer.Callback, error) {
	if len(args) == 0 || routes[args[0]] == "" {
		return dialer.Callback{}, errors.New("say what to send: call-start or call-end and its parameters, or --scenario")
	}
	var query []string
	for _, arg := range args[1:] {
		name, value, ok := strings.Cut(arg, "=")
		if !ok || name == "" {
			return dialer.Callback{}, fmt.Errorf("%q is not NAME=VALUE", arg)
		}
		query = append(query, url.QueryEscape(name)+"="+url.QueryEscape(value))
	}
	return dialer.Callback{Path: routes[args[0]], Query: strings.Join(query, "&")}, nil
}

// sendOne shows the whole answer; any but 200 is an error.
func sendOne(ctx context.Context, out io.Writer, address string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Timeout: 30 * time.Second}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "%s\n%s\n", answer.Status, printable(strings.TrimSpace(string(body)))); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return errors.New("not taken")
	}
	return nil
}

// renderReport shows each answer of a few callbacks; of many, the first that are not as they should be, and the sums.
func renderReport(out io.Writer, callbacks []dialer.Callback, r dialer.Report, seed uint64) error {
	show := r.Unexpected[:min(len(r.Unexpected), showAll)]
	if len(callbacks) <= showAll {
		show = nil
		for i := range callbacks {
			show = append(show, i)
		}
	}
	if len(show) > 0 {
		w := table(out, "CALL", "CALLBACK", "STATUS", "ANSWER", "REQUEST", "TIME")
		for _, i := range show {
			a := r.Answers[i]
			answer := string(a.Outcome)
			if slices.Contains(r.Unexpected, i) {
				answer += fmt.Sprintf(" (expected %d)", callbacks[i].WantStatus)
			}
			if a.Field != "" {
				answer += " field " + a.Field
			}
			if a.Err != nil {
				answer += ": " + a.Err.Error()
			}
			status := "-"
			if a.Status > 0 {
				status = fmt.Sprint(a.Status)
			}
			row(w, orDash(callbacks[i].CallID), callbacks[i].Kind, status, answer, orDash(a.RequestID), a.Latency.Round(time.Microsecond))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	var counts []string
	for _, outcome := range slices.Sorted(maps.Keys(r.Outcomes)) {
		counts = append(counts, fmt.Sprintf("%s %d", outcome, r.Outcomes[outcome]))
	}
	_, err := fmt.Fprintf(out, "%d callbacks in %v: %s; p50 %v, p99 %v, max %v; --seed %d sends the same again\n",
		r.Sent, r.Elapsed.Round(time.Millisecond), strings.Join(counts, ", "),
		r.P50.Round(time.Microsecond), r.P99.Round(time.Microsecond), r.Max.Round(time.Microsecond), seed)
	return err
}
