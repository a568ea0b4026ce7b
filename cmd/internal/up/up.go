// Package up starts the whole relay on one machine and stops it in order: a private Redis unless REDIS_URL is set, the
// four services in this process or as four processes, and on request the simulators of TopS.II and Kommo.
//
// It owns the order of starting (Redis, simulator, state, router, upstream, ingress) and stopping (the reverse), the
// wiring, and what is printed when all is ready. It owns no setting of a service: those are in the services' Config, and
// are read from the environment here as they are everywhere.
package up

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"callrelay/cmd/internal/privateredis"
	"callrelay/platform/config"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// stopTime is how long stopping everything may take; each part is left the time that the ones after it need.
const (
	stopTime = 4 * time.Second
	partTime = 400 * time.Millisecond
)

// patience is how long the start waits for each service.
const patience = 5 * time.Second

// Options of Run.
type Options struct {
	// Environment is what the process was started with; see settings.
	Environment map[string]string
	// DataDir is where the private Redis and the spool keep their data.
	DataDir string
	// SimAddr is where the simulators listen; empty: none is started.
	SimAddr string
	// Split runs the services as processes of the programs in BinDir.
	Split  bool
	BinDir string
	// Program is how the operator calls callrelay, for the hints.
	Program string
	Out     io.Writer
	Log     *slog.Logger

	late *[]string // the services that were not ready in time, noted by ready
}

// relay is a running relay, in one process or four.
type relay interface {
	// httpAddr is where callbacks are taken.
	httpAddr() string
	// failed tells the first end of a part that nobody asked for.
	failed() <-chan error
	// stop ends the services, the last started first. What does not end in time is left behind, which loses nothing: it is
	// only logged.
	stop(b *budget)
}

// Run starts everything, says so on Out, and stops everything when ctx ends.
func Run(ctx context.Context, o Options) (err error) {
	if o.DataDir, err = filepath.Abs(o.DataDir); err != nil {
		return err
	}
	env := settings(o)
	private := !given(env, "REDIS_URL")
	if private {
		env["REDIS_URL"] = "unix:///set-below" // so that the configuration can be checked before anything is started
		if !given(env, "SECRETS_KEY") {
			if env["SECRETS_KEY"], err = ownKey(o.DataDir); err != nil {
				return fmt.Errorf("data directory: %w", err)
			}
		}
	}
	if o.SimAddr != "" && private && !given(env, "PBX_INTEGRATIONS") { // its tokens are public: not in a Redis that others use
		if env["PBX_INTEGRATIONS"], err = writeSimTable(o.DataDir, o.SimAddr); err != nil {
			return err
		}
	}
	c, err := load(env)
	if err != nil {
		return fmt.Errorf("configuration:\n%w", err)
	}
	for _, warning := range misspelt(env) {
		o.Log.Warn(warning)
	}
	b := &budget{parts: 5}
	if private {
		redis, err := privateredis.Start(ctx, privateredis.Options{DataDir: o.DataDir, Appendfsync: env["REDIS_APPENDFSYNC"], Log: o.Log})
		if err != nil {
			return unlessEnded(ctx, err)
		}
		defer func() { err = errors.Join(err, redis.Stop(b.next())) }()
		env["REDIS_URL"], c.state.RedisURL = redis.URL(), config.Secret(redis.URL())
	}
	if o.SimAddr != "" {
		stop, err := startSim(o.SimAddr, c.upstream.TestAPIKey.Reveal())
		if err != nil {
			return err
		}
		defer stop()
	}
	start := inProcess
	if o.Split {
		start = split
	}
	o.late = new([]string)
	r, err := start(ctx, o, c, env)
	if r != nil {
		defer r.stop(b)
	}
	if err != nil {
		return unlessEnded(ctx, err)
	}
	if _, err := io.WriteString(o.Out, banner(o, c, r.httpAddr(), time.Now())); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		fmt.Fprintln(o.Out, "\nstopping")
		return nil
	case err := <-r.failed():
		return err
	}
}

// unlessEnded drops the error of a start that was broken off by Ctrl-C.
func unlessEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// budget shares the stopping time out.
type budget struct {
	parts int // still to stop
	end   time.Time
}

// next is the time for the next part; the first one begins to count.
func (b *budget) next() time.Duration {
	if b.end.IsZero() {
		b.end = time.Now().Add(stopTime)
	}
	b.parts--
	return max(partTime, time.Until(b.end)-time.Duration(b.parts)*partTime)
}

// ready waits until a service says that it serves, for patience at most: without Redis the rest has to start all the same, so
// that callbacks are acknowledged from the spool. ended is closed when it will not any more.
func ready(ctx context.Context, o Options, name string, conn grpc.ClientConnInterface, ended <-chan struct{}) error {
	health := grpc_health_v1.NewHealthClient(conn)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		answer, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		if answer.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
			return fmt.Errorf("%s ended while it was starting", name)
		case <-late:
			o.Log.Warn(name+" is not ready yet, the rest starts all the same", "health", answer.GetStatus().String(), "error", err)
			*o.late = append(*o.late, name)
			return nil
		case <-tick.C:
		}
	}
}
