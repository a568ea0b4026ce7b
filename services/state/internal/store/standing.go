package store

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
)

// standingKept is how long a consumer is believed after it described itself last; it does so every 5 s.
const standingKept = 15 * time.Second

// SetStanding keeps how a consumer of a destination says it is, for every state process.
func (s *Store) SetStanding(ctx context.Context, destination string, st *statev1.Standing) error {
	raw, err := proto.Marshal(st)
	if err != nil {
		return err
	}
	return s.client.HSet(ctx, keyStandings, destination+"\t"+st.GetProcess(), strconv.FormatInt(s.clock.Now(), 10)+" "+string(raw)).Err()
}

// Standings are those of the living consumers by destination. It forgets the others.
func (s *Store) Standings(ctx context.Context) (map[string][]*statev1.Standing, error) {
	all, err := s.client.HGetAll(ctx, keyStandings).Result()
	if err != nil {
		return nil, err
	}
	out := map[string][]*statev1.Standing{}
	for field, value := range all {
		at, raw, _ := strings.Cut(value, " ")
		st := &statev1.Standing{}
		age := s.clock.Now() - atoi(at)
		if age > standingKept.Milliseconds() || proto.Unmarshal([]byte(raw), st) != nil {
			s.client.HDel(ctx, keyStandings, field) // else the next one does
			continue
		}
		st.BreakerMs = max(0, st.GetBreakerMs()-age)
		destination, _, _ := strings.Cut(field, "\t")
		out[destination] = append(out[destination], st)
	}
	return out, nil
}

// Paused is how long nobody gets a place in a limit, because the outside system asked for it (limit.lua).
func (s *Store) Paused(ctx context.Context, name string) (time.Duration, error) {
	until, err := s.client.ZScore(ctx, keyLimit(name), "").Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return 0, err
	}
	return max(0, time.Duration(int64(until)-s.clock.Now()*1000)*time.Microsecond), nil
}

// PlanMaintenance keeps a destination's maintenance, in place of one that was planned before; nil forgets it.
func (s *Store) PlanMaintenance(ctx context.Context, destination string, m *operatorv1.Maintenance) error {
	if m == nil {
		return s.client.HDel(ctx, keyMaintenance, destination).Err()
	}
	raw, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	return s.client.HSet(ctx, keyMaintenance, destination, raw).Err()
}

// Maintenances are those that are planned or going on, by destination.
func (s *Store) Maintenances(ctx context.Context) (map[string]*operatorv1.Maintenance, error) {
	all, err := s.client.HGetAll(ctx, keyMaintenance).Result()
	if err != nil {
		return nil, err
	}
	out := map[string]*operatorv1.Maintenance{}
	for destination, raw := range all {
		m := &operatorv1.Maintenance{}
		if err := proto.Unmarshal([]byte(raw), m); err != nil {
			return nil, err
		}
		out[destination] = m
	}
	return out, nil
}
