package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	operatorv1 "callrelay/gen/callrelay/operator/v1"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
)

type progressStream = grpc.ServerStreamingClient[operatorv1.Progress]

// bulk is what retry and discard share: one delivery, or with --all those that the flags name. Ctrl-C ends it between two
// deliveries.
type bulk struct {
	c                    *cobra.Command
	all, json            bool
	in                   []string
	destination, because string
}

func newBulk(c *cobra.Command) *bulk {
	b := &bulk{c: c}
	c.Flags().BoolVar(&b.all, "all", false, "all dead, expired and asked deliveries, or those that the other flags name")
	c.Flags().StringSliceVar(&b.in, "in", nil, "with --all: only in these states (dead, expired, asked)")
	completes(c, "in", "dead", "expired", "asked")
	destinationFlag(c, &b.destination, "with --all: only of this destination")
	c.Flags().StringVar(&b.because, "because", "", "with --all: only those whose reason contains this")
	c.Flags().BoolVar(&b.json, "json", false, "print JSON, for programs; progress is a line each")
	c.Args = func(c *cobra.Command, args []string) error {
		filters := len(b.in) > 0 || b.destination != "" || b.because != ""
		switch {
		case b.all && len(args) > 0:
			return errors.New("either <call> <delivery> or --all")
		case !b.all && filters:
			return errors.New("--in, --destination and --because go with --all")
		case !b.all:
			return cobra.ExactArgs(2)(c, args)
		}
		return nil
	}
	return b
}

// asks makes the command do one to a delivery, or all to those of a filter; did says what they are then.
func (b *bulk) asks(did string, one func(ctx context.Context, relay operatorClient, delivery string) (*operatorv1.Delivery, error),
	all func(ctx context.Context, relay operatorClient, filter *operatorv1.DeliveryFilter) (progressStream, error)) *cobra.Command {
	return asks(b.c, 0, func(ctx context.Context, relay operatorClient, args []string) error {
		if b.all {
			stream, err := all(ctx, relay, &operatorv1.DeliveryFilter{State: b.in, Destination: b.destination, ReasonContains: b.because})
			if err != nil {
				return err
			}
			return b.follow(stream, did)
		}
		call, n, err := deliveryArgs(args)
		if err != nil {
			return err
		}
		d, err := one(ctx, relay, call+"/"+strconv.Itoa(int(n)))
		if err != nil {
			return err
		}
		if b.json {
			return printJSON(b.c.OutOrStdout(), d)
		}
		_, err = fmt.Fprintf(b.c.OutOrStdout(), "delivery %d of %s is %s\n", n, call, did)
		return err
	})
}

// follow prints how far it is, until it is done.
func (b *bulk) follow(stream progressStream, did string) error {
	out := b.c.OutOrStdout()
	var last *operatorv1.Progress
	for {
		p, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if last != nil {
				fmt.Fprintf(out, "\nbroken off: %d %s\n", last.GetDone(), did)
			}
			return err
		}
		last = p
		if b.json {
			line, err := stableJSON(p, "")
			if err != nil {
				return err
			}
			fmt.Fprintln(out, line)
			continue
		}
		bar(out, p)
		for _, r := range p.GetRefusals() {
			fmt.Fprintln(out, "refused:", printable(r))
		}
	}
	if !last.GetFinished() {
		return errors.New("the relay ended it before it was finished; start it again for the rest")
	}
	if !b.json {
		fmt.Fprintf(out, "%d %s, %d refused\n", last.GetDone(), did, last.GetRefused())
	}
	if last.GetRefused() > 0 {
		return fmt.Errorf("%w: %d were refused", errAlarm, last.GetRefused())
	}
	return nil
}

// bar draws how far it is, on a terminal.
func bar(out io.Writer, p *operatorv1.Progress) {
	if !isTerminal(out) {
		return
	}
	const width = 30
	done := width
	if p.GetTotal() > 0 && !p.GetFinished() {
		done = min(width, int(width*p.GetSeen()/p.GetTotal()))
	}
	fmt.Fprintf(out, "\r[%s%s] %d of %d", strings.Repeat("#", done), strings.Repeat(".", width-done), p.GetSeen(), max(p.GetSeen(), p.GetTotal()))
	if p.GetFinished() {
		fmt.Fprintln(out)
	}
}
