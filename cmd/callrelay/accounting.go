package main

import (
	"context"
	"fmt"
	"io"
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

func newAccounting() *cobra.Command {
	c := &cobra.Command{
		Use:   "accounting",
		Short: "Say what became of every request, the difference first",
		Long: `Say what became of every request, the difference first.

Each request is in exactly one place. Counters are moved with each journal entry, and compared with the journals themselves in
the background, 1,000 calls a second and then a minute's pause; --check compares now, where there are at most 100,000 calls.
A difference is exit code 4; the request that stands beside it is an example: callrelay request ID.`,
		Example: "  callrelay accounting\n  callrelay accounting --since 2026-03-06 --check",
		Args:    cobra.NoArgs,
	}
	since := c.Flags().String("since", "", "requests since: 90m, 24h, a date, or a time (default 24h)")
	check := c.Flags().Bool("check", false, "compare now, where there are at most 100,000 calls")
	asJSON := jsonFlag(c)
	return asks(c, time.Minute, func(ctx context.Context, relay operatorClient, _ []string) error {
		a, err := relay.GetAccounting(ctx, &operatorv1.GetAccountingRequest{Since: *since, Check: *check})
		if err != nil {
			return err
		}
		if *asJSON {
			err = printJSON(c.OutOrStdout(), a)
		} else {
			alarmLine(ctx, relay, c.OutOrStdout())
			err = renderAccounting(c.OutOrStdout(), a, time.Local)
		}
		if n := len(a.GetDifferences()); n > 0 && err == nil {
			return fmt.Errorf("%w: counters and journals differ", errAlarm)
		}
		if len(a.GetUnreadable()) > 0 && err == nil {
			return fmt.Errorf("%w: there are calls that cannot be read", errAlarm)
		}
		return err
	})
}

func renderAccounting(out io.Writer, a *operatorv1.Accounting, zone *time.Location) error {
	switch n := len(a.GetDifferences()); {
	case n > 0:
		fmt.Fprintf(out, "DIFFERENCE in %d places (compared %s):\n", n, moment(a.GetCheckedMs(), zone))
		w := table(out, "HOUR", "WHERE", "COUNTED", "IN JOURNALS", "FOR EXAMPLE REQUEST")
		for _, d := range a.GetDifferences() {
			row(w, moment(d.GetHourMs(), zone), d.GetBucket(), d.GetCounted(), d.GetJournaled(), orDash(d.GetRequestId()))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	case a.GetCheckedMs() == 0:
		fmt.Fprintln(out, "difference: not compared yet (--check does it now)")
	default:
		fmt.Fprintf(out, "difference: none in %d requests, compared %s\n", a.GetCheckedRequests(), moment(a.GetCheckedMs(), zone))
	}
	if n := a.GetNotCompared(); n > 0 {
		fmt.Fprintf(out, "not compared: %d requests of calls whose journal is full or cannot be read\n", n)
	}
	for _, call := range a.GetUnreadable() {
		fmt.Fprintf(out, "UNREADABLE: %s\n", call)
	}
	fmt.Fprintf(out, "\nsince %s\n", moment(a.GetSinceMs(), zone))
	w := table(out, "received", a.GetReceived())
	for _, line := range []struct {
		name string
		n    int64
	}{
		{"  refused", a.GetRefused()}, {"  duplicate", a.GetDuplicate()}, {"  spooled", a.GetSpooled()}, {"  accepted", a.GetAccepted()},
		{"    nothing to send", a.GetNothingToSend()}, {"    waiting for phone 2", a.GetWaitingPhone2()}, {"    combined", a.GetCombined()},
		{"    phone-1 expired", a.GetPhone1Expired()}, {"    send disabled", a.GetSendDisabled()}, {"    undecided", a.GetUndecided()},
		{"    waiting", a.GetWaiting()}, {"    delivered", a.GetDelivered()}, {"    dead", a.GetDead()}, {"    expired", a.GetExpired()},
		{"    discarded", a.GetDiscarded()},
	} {
		row(w, line.name, line.n)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if u := a.GetUnrequested(); proto.Size(u) > 0 {
		_, err := fmt.Fprintf(out, "deliveries without a request: %d waiting, %d delivered, %d dead, %d expired, %d discarded, %d send disabled\n",
			u.GetWaiting(), u.GetDelivered(), u.GetDead(), u.GetExpired(), u.GetDiscarded(), u.GetSendDisabled())
		return err
	}
	return nil
}

func newAlarms() *cobra.Command {
	c := &cobra.Command{
		Use:     "alarms",
		Short:   "List what somebody should look at now; exit code 4 when there is something",
		Example: "  callrelay alarms || page-somebody",
		Args:    cobra.NoArgs,

		SuggestFor: []string{"status", "health"}, // what a tired person types first
	}
	asJSON := jsonFlag(c)
	return asks(c, askTimeout, func(ctx context.Context, relay operatorClient, _ []string) error {
		list, err := relay.ListAlarms(ctx, &operatorv1.ListAlarmsRequest{})
		if err != nil {
			return err
		}
		switch {
		case *asJSON:
			err = printJSON(c.OutOrStdout(), list)
		case len(list.GetAlarms()) == 0:
			_, err = fmt.Fprintln(c.OutOrStdout(), "none")
		default:
			w := table(c.OutOrStdout(), "ALARM", "SINCE", "WHAT")
			for _, a := range list.GetAlarms() {
				row(w, a.GetName(), moment(a.GetSinceMs(), time.Local), a.GetText())
			}
			err = w.Flush()
		}
		if n := len(list.GetAlarms()); n > 0 && err == nil {
			return fmt.Errorf("%w: alarms: %d", errAlarm, n)
		}
		return err
	})
}
