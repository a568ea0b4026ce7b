package up

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"callrelay/cmd/internal/supervise"
	"callrelay/platform/rpc"
)

// apart is the relay as four processes, which are started again when they end.
type apart struct {
	addr    string
	keepers []*supervise.Keeper // in the order of their start
	log     *slog.Logger
}

func split(ctx context.Context, o Options, c configs, env map[string]string) (relay, error) {
	a := &apart{addr: c.ingress.HTTPAddr, log: o.Log}
	for _, part := range []struct{ name, addr string }{
		{"state", c.state.GRPCAddr},
		{"router", c.router.GRPCAddr},
		{"upstream", c.upstream.GRPCAddr},
		{"ingress", c.ingress.GRPCAddr},
	} {
		if err := a.start(ctx, o, part.name, part.addr, env); err != nil {
			return a, err
		}
	}
	return a, nil
}

func (a *apart) start(ctx context.Context, o Options, name, addr string, env map[string]string) error {
	// Whoever listens there already would answer the health check in its place.
	listen, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("%s_GRPC_ADDR: %w", strings.ToUpper(name), err)
	}
	if err := listen.Close(); err != nil {
		return err
	}
	launch := func() (*supervise.Process, error) {
		cmd := exec.Command(filepath.Join(o.BinDir, name))
		cmd.Env = environ(env, name)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		// Without us nobody would look after it. (It is sent when the thread that started it ends; Go ends threads only
		// of goroutines that are locked to them, of which there are none here.)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		return supervise.Start(cmd)
	}
	p, err := launch()
	if err != nil {
		return fmt.Errorf("%s (make build makes it): %w", name, err)
	}
	conn, err := rpc.Dial(addr)
	if err == nil {
		err = errors.Join(ready(ctx, o, name, conn, p.Done()), conn.Close())
	}
	if err != nil {
		return errors.Join(err, p.Stop(partTime))
	}
	a.keepers = append(a.keepers, supervise.Keep(name, o.Log, p, launch))
	return nil
}

// environ is the environment of one service. All four read METRICS_ADDR, so its port is ingress' one, and the next three
// are those of router, state and upstream, as with the defaults.
func environ(env map[string]string, name string) []string {
	var list []string
	for k, v := range env {
		if k == "METRICS_ADDR" {
			v = nextPort(v, slices.Index([]string{"ingress", "router", "state", "upstream"}, name))
		}
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return list
}

// nextPort adds n to the port of addr, unless the port is for the system to choose.
func nextPort(addr string, n int) string {
	host, text, err := net.SplitHostPort(addr)
	port, errPort := strconv.Atoi(text)
	if err != nil || errPort != nil || port == 0 {
		return addr
	}
	return net.JoinHostPort(host, strconv.Itoa(port+n))
}

func (a *apart) httpAddr() string { return a.addr }

// failed never tells anything: a process that ends is started again.
func (a *apart) failed() <-chan error { return nil }

func (a *apart) stop(b *budget) {
	for _, k := range slices.Backward(a.keepers) {
		if err := k.Stop(b.next()); err != nil {
			a.log.Warn("stopping", "error", err)
		}
	}
}
