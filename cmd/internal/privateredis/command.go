package privateredis

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// replyError is an error that the server answered, as against one of the connection.
type replyError string

func (e replyError) Error() string { return string(e) }

// loading says that the server is there but still reads its data.
func loading(err error) bool {
	var reply replyError
	return errors.As(err, &reply) && strings.HasPrefix(string(reply), "LOADING")
}

// command sends one command over a connection of its own and returns the answer, a single value as a list of one. The
// handful of commands that looking after a server takes need no client library, and nothing that dials, repeats or
// logs on its own.
func command(ctx context.Context, socket string, args ...string) ([]string, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	deadline, ok := ctx.Deadline()
	if limit := time.Now().Add(3 * time.Second); !ok || deadline.After(limit) {
		deadline = limit
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	var request strings.Builder
	fmt.Fprintf(&request, "*%d\r\n", len(args))
	for _, arg := range args {
		fmt.Fprintf(&request, "$%d\r\n%s\r\n", len(arg), arg)
	}
	if _, err := io.WriteString(conn, request.String()); err != nil {
		return nil, err
	}
	return readReply(bufio.NewReader(conn))
}

func readReply(r *bufio.Reader) ([]string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	line = strings.TrimRight(line, "\r\n")
	if line == "" {
		return nil, errors.New("empty reply")
	}
	kind, rest := line[0], line[1:]
	switch kind {
	case '+', ':':
		return []string{rest}, nil
	case '-':
		return nil, replyError(rest)
	}
	n, err := strconv.Atoi(rest)
	if err != nil || n < 0 || n > 1<<20 {
		return nil, fmt.Errorf("reply %.40q", line)
	}
	switch kind {
	case '$':
		value := make([]byte, n+2)
		if _, err := io.ReadFull(r, value); err != nil {
			return nil, err
		}
		return []string{string(value[:n])}, nil
	case '*':
		var all []string
		for range n {
			one, err := readReply(r)
			if err != nil {
				return nil, err
			}
			all = append(all, one...)
		}
		return all, nil
	}
	return nil, fmt.Errorf("reply %.40q", line)
}
