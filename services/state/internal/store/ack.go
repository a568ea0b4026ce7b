package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// ackTimeout bounds the wait for replicas; a replica that is well needs a round trip. It leaves a second of ACK_BUDGET.
const ackTimeout = time.Second

// ReplicasError says that a write is on the master but not, or not yet, on as many replicas as it needs: its outcome is
// unknown, since a failover may lose it.
type ReplicasError struct{ Have, Want int }

func (e *ReplicasError) Error() string {
	return fmt.Sprintf("%d of %d replicas had it within %s", e.Have, e.Want, ackTimeout)
}

// acked is pipeline with replicas (rule 16): each node's part goes over one connection and ends with WAIT, so that what is
// counted is what this very master sent to its replicas. Before WAIT comes a write of our own: WAIT counts from the last
// write of its connection, and an answer that wrote nothing (an earlier outcome, a superseded result) stands on a write of
// another connection, which may be on no replica yet.
func (s *Store) acked(ctx context.Context, calls []invocation, replies []any, errs []error, again func(error) bool) {
	nodes := map[*redis.Client][]int{}
	for i, c := range calls {
		if !again(errs[i]) {
			continue
		}
		node, err := s.node(ctx, c.key())
		if replies[i], errs[i] = nil, err; err == nil {
			nodes[node] = append(nodes[node], i)
		}
	}
	var wg sync.WaitGroup
	for node, part := range nodes {
		wg.Go(func() {
			p := node.Pipeline()
			cmds := make([]*redis.Cmd, len(part))
			for at, i := range part {
				cmds[at] = p.Do(ctx, calls[i].args...)
			}
			written := p.Set(ctx, keyWritten(calls[part[0]].key()), "", 0)
			waited := p.Do(ctx, "WAIT", s.cfg.ReplicasAck, ackTimeout.Milliseconds())
			_, failed := p.Exec(ctx)
			have, reached := waited.Int()
			if err := written.Err(); err != nil {
				reached = err
			} else if reached == nil && have < s.cfg.ReplicasAck {
				reached = &ReplicasError{have, s.cfg.ReplicasAck}
			}
			for at, i := range part {
				if replies[i], errs[i] = result(cmds[at], failed); errs[i] == nil {
					errs[i] = reached
				}
			}
		})
	}
	wg.Wait()
	// The cluster client follows its slots by itself only for what goes through it.
	if cluster, ok := s.client.(*redis.ClusterClient); ok && slices.ContainsFunc(errs, moved) {
		cluster.ReloadState(ctx)
	}
}

// node is the master that has the key.
func (s *Store) node(ctx context.Context, key string) (*redis.Client, error) {
	if cluster, ok := s.client.(*redis.ClusterClient); ok {
		return cluster.MasterForKey(ctx, key)
	}
	return s.client.(*redis.Client), nil
}

// masters does something with each server that holds data.
func (s *Store) masters(ctx context.Context, each func(context.Context, *redis.Client) error) error {
	if cluster, ok := s.client.(*redis.ClusterClient); ok {
		return cluster.ForEachMaster(ctx, each)
	}
	return each(ctx, s.client.(*redis.Client))
}

// moved says that the slots are, or may be, somewhere else by now.
func moved(err error) bool {
	if err == nil {
		return false
	}
	text := err.Error()
	return isConnection(err) || strings.HasPrefix(text, "MOVED") || strings.HasPrefix(text, "ASK") ||
		strings.HasPrefix(text, "READONLY") || strings.HasPrefix(text, "CLUSTERDOWN")
}
