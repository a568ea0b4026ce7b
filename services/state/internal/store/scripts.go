package store

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
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

//go:embed lua/first.lua
var firstLua string

//go:embed lua/done.lua
var doneLua string

var (
	commitScript   = newScript("commit", lib+commitLua)
	leaseScript    = newScript("lease", leaseLua)
	completeScript = newScript("complete", lib+completeLua)
	givebackScript = newScript("giveback", lib+givebackLua)
	settleScript   = newScript("settle", lib+settleLua)
	// The short ways of commit and complete.
	firstScript = newScript("commit", firstLua)
	doneScript  = newScript("complete", doneLua)
)

// script is what Redis is asked to run. Those on the path of callbacks and deliveries have a name for Config.Ran.
type script struct {
	name, source string
	hash         any // a string, as a part of many invocations
}

func newScript(name, source string) *script {
	return &script{name, source, redis.NewScript(source).Hash()}
}

// Scripts are the names that Config.Ran is told.
func Scripts() []string { return []string{"commit", "lease", "complete", "giveback", "settle"} }

// invocation is one script call of a pipeline.
type invocation struct {
	script *script
	args   []any // what is sent: EVALSHA, hash, number of keys, keys, arguments
}

// invoke makes an invocation. Those of every callback are put together by hand: it costs them a third.
func invoke(script *script, keys []string, of ...any) invocation {
	args := append(make([]any, 0, 3+len(keys)+len(of)), evalsha, script.hash, len(keys))
	for _, key := range keys {
		args = append(args, key)
	}
	return invocation{script, append(args, of...)}
}

const evalsha = "evalsha"

// key is the first of its keys; all of them are in one slot.
func (c invocation) key() string { return c.args[3].(string) }

// errNoTime says that Redis has not been asked for the time yet: what was written now would be dated wrong for ever.
var errNoTime = errors.New("redis was not connected yet")

// run executes scripts for many items as one pipeline, in their order. Items fail one by one. A script that Redis does not
// know (NOSCRIPT, after a restart or failover) is loaded and only those items run again, in their order.
func (s *Store) run(ctx context.Context, calls []invocation) ([]any, []error) {
	if s.cfg.Ran != nil && len(calls) > 0 && calls[0].script.name != "" {
		defer func(began time.Time) { s.cfg.Ran(ctx, calls[0].script.name, len(calls), time.Since(began)) }(time.Now())
	}
	replies, errs := make([]any, len(calls)), make([]error, len(calls))
	if !s.clock.known() {
		return replies, slices.Repeat([]error{errNoTime}, len(calls))
	}
	s.pipeline(ctx, calls, replies, errs, func(error) bool { return true })
	if slices.ContainsFunc(errs, isNoScript) {
		// EVAL loads the script on the node that needs it, which SCRIPT LOAD on a cluster does not.
		for _, c := range calls {
			c.args[0], c.args[1] = "eval", c.script.source
		}
		s.pipeline(ctx, calls, replies, errs, isNoScript)
	}
	return replies, errs
}

// What first.lua and done.lua return: it is done, or it is not so simple and nothing was written.
var yes, no any = int64(1), int64(0)

// runEach runs the script call that `of` makes for each of n items: first with short, and again without for those whose short
// script answered no.
func (s *Store) runEach(ctx context.Context, n int, of func(i int, short bool) (invocation, error)) ([]any, []error) {
	replies, errs := make([]any, n), make([]error, n)
	try := func(items []int, short bool) (again []int) {
		calls, at := make([]invocation, 0, len(items)), make([]int, 0, len(items))
		for _, i := range items {
			c, err := of(i, short)
			if errs[i] = err; err == nil {
				calls, at = append(calls, c), append(at, i)
			}
		}
		got, failed := s.run(ctx, calls)
		for j, i := range at {
			replies[i], errs[i] = got[j], failed[j]
			if errs[i] == nil && replies[i] == no && (calls[j].script == firstScript || calls[j].script == doneScript) {
				again = append(again, i)
			}
		}
		return again
	}
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	if again := try(all, true); len(again) > 0 {
		try(again, false)
	}
	return replies, errs
}

func isNoScript(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), "NOSCRIPT")
}

// pipeline runs those calls whose previous error `again` accepts.
func (s *Store) pipeline(ctx context.Context, calls []invocation, replies []any, errs []error, again func(error) bool) {
	if s.cfg.ReplicasAck > 0 {
		s.acked(ctx, calls, replies, errs, again)
		return
	}
	p := s.client.Pipeline()
	cmds := make([]*redis.Cmd, len(calls))
	for i, c := range calls {
		if again(errs[i]) {
			cmds[i] = redis.NewCmd(ctx, c.args...)
			_ = p.Process(ctx, once{cmds[i]})
		}
	}
	_, failed := p.Exec(ctx)
	for i, cmd := range cmds {
		if cmd != nil {
			replies[i], errs[i] = result(cmd, failed)
		}
	}
}

// once is a command that the client sends once, also where a connection to a node of a cluster breaks: what was not answered is
// unknown, and what to do then is for who asked (rule 2 of the protocol). Redirections of a cluster are followed.
type once struct{ *redis.Cmd }

func (once) NoRetry() bool { return true }

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

// isConnection says that Redis did not answer; an error that it answered is none.
func isConnection(err error) bool {
	_, answered := errors.AsType[redis.Error](err)
	return err != nil && !answered
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
