package store

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// Durability is what in the settings of the servers themselves could lose acknowledged callbacks, in words for an operator.
type Durability struct {
	// Unsafe: calls are lost by a mere restart, or while all is well.
	Unsafe []string
	// Weak: calls may be lost by a crash, or whether they may could not be found out.
	Weak []string
}

// CheckDurability reads the settings of every server that holds data. Managed services that hide CONFIG give a line that
// says what is not known.
func (s *Store) CheckDurability(ctx context.Context) (Durability, error) {
	var (
		mu  sync.Mutex
		all Durability
	)
	err := s.masters(ctx, func(ctx context.Context, c *redis.Client) error {
		d, err := s.checkServer(ctx, c)
		mu.Lock()
		defer mu.Unlock()
		all.Unsafe, all.Weak = append(all.Unsafe, d.Unsafe...), append(all.Weak, d.Weak...)
		return err
	})
	return all, err
}

func (s *Store) checkServer(ctx context.Context, c *redis.Client) (d Durability, err error) {
	unsafe := func(format string, a ...any) { d.Unsafe = append(d.Unsafe, fmt.Sprintf(format, a...)) }
	weak := func(format string, a ...any) { d.Weak = append(d.Weak, fmt.Sprintf(format, a...)) }
	names := []string{"appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory-policy"}
	settings := map[string]string{}
	var hidden []string
	for _, name := range names {
		found, err := c.ConfigGet(ctx, name).Result()
		switch {
		case isConnection(err):
			return d, err
		case err != nil || found[name] == "":
			hidden = append(hidden, name)
		}
		settings[name] = found[name]
	}
	if len(hidden) > 0 {
		weak("CONFIG GET does not tell %s: make sure of appendonly yes, appendfsync always, maxmemory-policy noeviction", strings.Join(hidden, ", "))
	}
	if v := settings["appendonly"]; v == "no" {
		unsafe("appendonly is no: every acknowledged callback is lost when Redis stops; set appendonly yes")
	}
	if v := settings["maxmemory-policy"]; v != "" && v != "noeviction" {
		unsafe("maxmemory-policy is %s: Redis drops calls when its memory is full; set maxmemory-policy noeviction", v)
	}
	if v := settings["appendfsync"]; v != "" && v != "always" {
		weak("appendfsync is %s: a crash of the machine may lose acknowledged callbacks, and a slow disk some of them on a mere kill; the safe setting is always", v)
	}
	if settings["appendfsync"] == "always" && settings["no-appendfsync-on-rewrite"] == "yes" {
		weak("no-appendfsync-on-rewrite is yes: while the append-only file is rewritten nothing is synced; set it to no")
	}
	if s.cfg.ReplicasAck > 0 {
		info, err := c.Info(ctx, "replication").Result()
		if err != nil {
			weak("INFO does not tell how many replicas there are: %v", err)
		} else if have, _ := strconv.Atoi(infoField(info, "connected_slaves")); have < s.cfg.ReplicasAck {
			weak("%d replicas are connected and STATE_REPLICAS_ACK is %d: nothing is acknowledged until there are as many", have, s.cfg.ReplicasAck)
		}
	}
	return d, nil
}

// infoField reads one line of INFO.
func infoField(info, name string) string {
	for line := range strings.SplitSeq(info, "\r\n") {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return value
		}
	}
	return ""
}

// Incarnation names the server processes that hold our data: it changes with a restart and with a failover, also with one
// that passed unseen between two of our requests. Empty where INFO is not allowed.
func (s *Store) Incarnation(ctx context.Context) (string, error) {
	var (
		mu  sync.Mutex
		ids []string
	)
	err := s.masters(ctx, func(ctx context.Context, c *redis.Client) error {
		info, err := c.Info(ctx, "server").Result()
		if isConnection(err) {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		ids = append(ids, infoField(info, "run_id"))
		return nil
	})
	slices.Sort(ids)
	return strings.Join(ids, " "), err
}
