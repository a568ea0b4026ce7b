package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"callrelay/callback"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/rpc"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// errNotFound is for what does not exist: exit code 3.
var errNotFound = errors.New("not found")

// askTimeout bounds one question to state.
const askTimeout = 10 * time.Second

// asksState makes c a command that talks to state: it adds --state and calls run with a client.
func asksState(c *cobra.Command, run func(ctx context.Context, state statev1.StateServiceClient, args []string) error) *cobra.Command {
	addr := c.Flags().String("state", cmp.Or(os.Getenv("STATE_GRPC_ADDR"), "127.0.0.1:9082"), "where state serves gRPC (STATE_GRPC_ADDR)")
	c.RunE = func(_ *cobra.Command, args []string) error {
		conn, err := rpc.Dial(*addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(c.Context(), askTimeout)
		defer cancel()
		return inWords(run(ctx, statev1.NewStateServiceClient(conn), args), *addr)
	}
	return c
}

// inWords makes an error of gRPC one for people.
func inWords(err error, addr string) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	switch s.Code() {
	case codes.NotFound:
		return fmt.Errorf("%w: %s", errNotFound, s.Message())
	case codes.Unavailable:
		return fmt.Errorf("state at %s does not answer (is the relay running? --state says where): %s", addr, s.Message())
	case codes.DeadlineExceeded:
		return fmt.Errorf("state at %s did not answer within %v", addr, askTimeout)
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

// deliveryArgs reads "<call> <delivery>".
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
	return name
}

// jsonFlag adds --json.
func jsonFlag(c *cobra.Command) *bool {
	return c.Flags().Bool("json", false, "print JSON, for programs")
}

// printJSON prints a message as JSON whose white space does not vary from build to build.
func printJSON(out io.Writer, m proto.Message) error {
	raw, err := protojson.Marshal(m)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if err := json.Indent(&text, raw, "", "  "); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, text.String())
	return err
}
