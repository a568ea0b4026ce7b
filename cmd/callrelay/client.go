package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"callrelay/callback"
	operatorv1 "callrelay/gen/callrelay/operator/v1"
	"callrelay/platform/rpc"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// errNotFound is for what does not exist: exit code 3. errAlarm is for what somebody has to look at: exit code 4.
var (
	errNotFound = errors.New("not found")
	errAlarm    = errors.New("attention")
)

// askTimeout bounds one question to state.
const askTimeout = 10 * time.Second

type operatorClient = operatorv1.OperatorServiceClient

// asks makes c a command that talks to state: it adds --state and calls run with a client, for at most the time (0 = as long as
// it takes).
func asks(c *cobra.Command, limit time.Duration, run func(ctx context.Context, relay operatorClient, args []string) error) *cobra.Command {
	addr := stateFlag(c)
	c.RunE = func(_ *cobra.Command, args []string) error {
		return ask(c, "state", *addr, limit, func(ctx context.Context, conn grpc.ClientConnInterface) error {
			return run(ctx, operatorv1.NewOperatorServiceClient(conn), args)
		})
	}
	return c
}

// ask calls run with a connection to a service, for at most the time (0 = as long as it takes). Its name is that of the flag that
// says its address.
func ask(c *cobra.Command, service, addr string, limit time.Duration, run func(ctx context.Context, conn grpc.ClientConnInterface) error) error {
	conn, err := dial(service, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx := metadata.NewOutgoingContext(c.Context(), person(c).Metadata())
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	return inWords(run(ctx, conn), service, addr, limit)
}

// dial connects to the service that a flag says the address of. The flag's name is also a word for what deliveries are in.
func dial(flag, addr string) (*grpc.ClientConn, error) {
	for one := range strings.SplitSeq(addr, ",") {
		if _, _, err := net.SplitHostPort(strings.TrimSpace(one)); err != nil {
			hint := ""
			if slices.Contains(deliveryStates, addr) {
				hint = "; the state of deliveries is --in " + addr
			}
			return nil, fmt.Errorf("--%s %q is not an address like 127.0.0.1:9082%s", flag, addr, hint)
		}
	}
	return rpc.Dial(addr)
}

// person is who runs the command. Phone numbers stay masked unless --phones asks for them.
func person(c *cobra.Command) rpc.Caller {
	phones, _ := c.Flags().GetBool("phones")
	return rpc.Caller{Actor: actor(), Role: rpc.RoleOperator, Masked: !phones}
}

func stateFlag(c *cobra.Command) *string {
	return c.Flags().String("state", cmp.Or(os.Getenv("STATE_GRPC_ADDR"), "127.0.0.1:9082"), "where state serves gRPC (STATE_GRPC_ADDR)")
}

// shows is asks for a command that prints something for people: the first line is what somebody should look at.
func shows(c *cobra.Command, run func(ctx context.Context, relay operatorClient, args []string) (proto.Message, func(out io.Writer) error, error)) *cobra.Command {
	asJSON := jsonFlag(c)
	return asks(c, askTimeout, func(ctx context.Context, relay operatorClient, args []string) error {
		message, render, err := run(ctx, relay, args)
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), message)
		}
		alarmLine(ctx, relay, c.OutOrStdout())
		return render(c.OutOrStdout())
	})
}

// alarmLine prints what somebody should look at, if anything.
func alarmLine(ctx context.Context, relay operatorClient, out io.Writer) {
	list, err := relay.ListAlarms(ctx, &operatorv1.ListAlarmsRequest{})
	if err != nil || len(list.GetAlarms()) == 0 {
		return // an answer without alarms is better than none
	}
	var texts []string
	for _, a := range list.GetAlarms() {
		texts = append(texts, printable(a.GetText()))
	}
	fmt.Fprintf(out, "%s\n\n", red(out, "ALARM: "+strings.Join(texts, "; ")))
}

// inWords makes an error of gRPC one for people: of a service, whose name is that of the flag that says its address, and which
// was given so long (0 = its own time).
func inWords(err error, service, addr string, limit time.Duration) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	switch s.Code() {
	case codes.NotFound:
		return fmt.Errorf("%w: %s", errNotFound, s.Message())
	case codes.Unavailable:
		if len(s.Details()) > 0 { // it did answer
			return fmt.Errorf("%s at %s: %s", service, addr, s.Message())
		}
		return fmt.Errorf("%s at %s does not answer (is the relay running? --%[1]s says where): %[3]s", service, addr, s.Message())
	case codes.DeadlineExceeded:
		late := "in time"
		if limit > 0 {
			late = "within " + limit.String()
		}
		if service == "state" {
			late += ": Redis may be stuck"
		}
		return fmt.Errorf("%s at %s did not answer %s", service, addr, late)
	case codes.Canceled:
		return errors.New("broken off")
	default:
		return errors.New(s.Message())
	}
}

// callKey reads a call id as the dialer sends it, or a full key as callrelay prints it.
func callKey(arg string) (string, error) {
	if strings.Contains(arg, "/") {
		return arg, nil
	}
	id, ok := callback.NormalCallID(arg)
	if !ok {
		return "", fmt.Errorf("%q is neither a call id (1 to 18 digits) nor a key like ameyo/193416", arg)
	}
	return callback.CallKey(callback.Ameyo, id), nil
}

// deliveryArgs reads "<call> <delivery>": a call, and the number of one of its deliveries.
func deliveryArgs(args []string) (call string, delivery uint32, err error) {
	if call, err = callKey(args[0]); err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(args[1], 10, 32)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q is not the number of a delivery (callrelay call %s shows them)", args[1], args[0])
	}
	return call, uint32(n), nil
}

// actor is who acts, for the journal.
func actor() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	// Behind sudo it is the person who counts.
	name = cmp.Or(os.Getenv("SUDO_USER"), name)
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' { // the metadata of gRPC is ASCII
			return '?'
		}
		return r
	}, name)
}

// jsonFlag adds --json.
func jsonFlag(c *cobra.Command) *bool {
	return c.Flags().Bool("json", false, "print JSON, for programs")
}

// printJSON prints a message as JSON whose white space does not vary from build to build.
func printJSON(out io.Writer, m proto.Message) error {
	text, err := stableJSON(m, "  ")
	if err == nil {
		_, err = fmt.Fprintln(out, text)
	}
	return err
}

// stableJSON is a message in JSON; without an indent it is one line.
func stableJSON(m proto.Message, indent string) (string, error) {
	raw, err := protojson.Marshal(m)
	if err != nil {
		return "", err
	}
	var text bytes.Buffer
	if indent == "" {
		err = json.Compact(&text, raw)
	} else {
		err = json.Indent(&text, raw, "", indent)
	}
	return text.String(), err
}

// completeDestinations completes names of destinations.
func completeDestinations(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	addr, err := c.Flags().GetString("state")
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	conn, err := rpc.Dial(addr)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	list, err := operatorv1.NewOperatorServiceClient(conn).ListDestinations(ctx, &operatorv1.ListDestinationsRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, d := range list.GetDestinations() {
		names = append(names, d.GetName())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// destinationFlag adds --destination.
func destinationFlag(c *cobra.Command, name *string, usage string) {
	c.Flags().StringVar(name, "destination", "", usage)
	err := c.RegisterFlagCompletionFunc("destination", func(c *cobra.Command, _ []string, text string) ([]string, cobra.ShellCompDirective) {
		return completeDestinations(c, nil, text)
	})
	if err != nil {
		panic(err) // the flag was added above
	}
}

// deliveryStates are the words for the state of a delivery.
var deliveryStates = []string{"queued", "retrying", "held", "sending", "asked", "delivered", "dead", "expired", "discarded", "send_disabled"}

// completes gives a flag its values for the shell's completion.
func completes(c *cobra.Command, flag string, values ...string) {
	if err := c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // a flag that is not there
	}
}
