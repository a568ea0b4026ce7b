package store

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed lua/lib.lua
var lib string

//go:embed lua/commit.lua
var commitLua string

//go:embed lua/lease.lua
var leaseLua string

//go:embed lua/complete.lua
var completeLua string

//go:embed lua/giveback.lua
var givebackLua string

//go:embed lua/settle.lua
var settleLua string

var (
	commitScript   = redis.NewScript(lib + commitLua)
	leaseScript    = redis.NewScript(lib + leaseLua)
	completeScript = redis.NewScript(lib + completeLua)
	givebackScript = redis.NewScript(lib + givebackLua)
	settleScript   = redis.NewScript(lib + settleLua)
)

// scriptNames are the scripts on the path of callbacks and deliveries, as Config.Ran names them.
var scriptNames = map[*redis.Script]string{commitScript: "commit", leaseScript: "lease", completeScript: "complete",
	givebackScript: "giveback", settleScript: "settle"}

// Scripts are the names that Config.Ran is told.
func Scripts() []string { return slices.Collect(maps.Values(scriptNames)) }

// invocation is one script call of a pipeline.
type invocation struct {
	keys []string
	args []any
}

// errNoTime says that Redis has not been asked for the time yet: what was written now would be dated wrong for ever.
var errNoTime = errors.New("redis was not connected yet")

// run executes one script for many items as one pipeline. Items fail one by one. A script that Redis does not know
// (NOSCRIPT, after a restart or failover) is loaded and only those items run again, in their order.
func (s *Store) run(ctx context.Context, script *redis.Script, calls []invocation) ([]any, []error) {
	if name := scriptNames[script]; s.cfg.Ran != nil && name != "" {
		defer func(began time.Time) { s.cfg.Ran(ctx, name, len(calls), time.Since(began)) }(time.Now())
	}
	replies, errs := make([]any, len(calls)), make([]error, len(calls))
	if !s.clock.known() {
		return replies, fill(errs, errNoTime)
	}
	s.pipeline(ctx, calls, replies, errs, func(p redis.Pipeliner, c invocation) *redis.Cmd {
		return p.EvalSha(ctx, script.Hash(), c.keys, c.args...)
	}, func(error) bool { return true })
	if unknown(errs) {
		// EVAL loads the script on the node that needs it, which SCRIPT LOAD on a cluster does not.
		s.pipeline(ctx, calls, replies, errs, func(p redis.Pipeliner, c invocation) *redis.Cmd {
			return script.Eval(ctx, p, c.keys, c.args...)
		}, isNoScript)
	}
	return replies, errs
}

func unknown(errs []error) bool {
	for _, err := range errs {
		if isNoScript(err) {
			return true
		}
	}
	return false
}

func isNoScript(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), "NOSCRIPT")
}

// pipeline runs those calls whose previous error `again` accepts.
func (s *Store) pipeline(ctx context.Context, calls []invocation, replies []any, errs []error,
	queue func(redis.Pipeliner, invocation) *redis.Cmd, again func(error) bool) {
	if s.cfg.ReplicasAck > 0 {
		s.acked(ctx, calls, replies, errs, queue, again)
		return
	}
	p := s.client.Pipeline()
	cmds := make([]*redis.Cmd, len(calls))
	for i, c := range calls {
		if again(errs[i]) {
			cmds[i] = queue(p, c)
		}
	}
	_, failed := p.Exec(ctx)
	for i, cmd := range cmds {
		if cmd != nil {
			replies[i], errs[i] = result(cmd, failed)
		}
	}
}

// result of one command of a pipeline that ended with an error or nil.
func result(cmd *redis.Cmd, failed error) (any, error) {
	reply, err := cmd.Result()
	if errors.Is(err, redis.Nil) {
		err = nil
	}
	// A connection that broke leaves later commands of the pipeline without an error of their own.
	if err == nil && reply == nil && isConnection(failed) {
		err = failed
	}
	return reply, err
}

func isConnection(err error) bool {
	var answered redis.Error
	return err != nil && !errors.As(err, &answered)
}

// strs reads a script's array reply.
func strs(reply any) ([]string, error) {
	list, ok := reply.([]any)
	if !ok {
		return nil, fmt.Errorf("script answered %T, expected a list", reply)
	}
	out := make([]string, len(list))
	for i, v := range list {
		switch v := v.(type) {
		case string:
			out[i] = v
		case int64:
			out[i] = fmt.Sprint(v)
		}
	}
	return out, nil
}
