package store

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	statev1 "callrelay/gen/callrelay/state/v1"
)

// Alarms remembers which alarms there are. It returns those that begin and those that are over, with when they began, each to
// one state process only.
func (s *Store) Alarms(ctx context.Context, keys []string) (begun, over map[string]int64, err error) {
	now := s.clock.Now()
	known, err := s.client.HGetAll(ctx, keyAlarms).Result()
	if err != nil {
		return nil, nil, err
	}
	begun, over = map[string]int64{}, map[string]int64{}
	for _, key := range keys {
		if _, ok := known[key]; ok {
			continue
		}
		first, err := s.client.HSetNX(ctx, keyAlarms, key, strconv.FormatInt(now, 10)).Result()
		if err != nil {
			return nil, nil, err
		}
		if first {
			begun[key] = now
		}
	}
	for key, since := range known {
		if slices.Contains(keys, key) {
			continue
		}
		removed, err := s.client.HDel(ctx, keyAlarms, key).Result()
		if err != nil {
			return nil, nil, err
		}
		if removed > 0 {
			over[key] = atoi(since)
		}
	}
	return begun, over, nil
}

// SpoolKept is how long an ingress process is believed after its last report.
const SpoolKept = 30 * time.Second

// Report keeps what an ingress process says of its spool.
func (s *Store) Report(ctx context.Context, r *statev1.ReportRequest) error {
	raw, err := proto.Marshal(r)
	if err != nil {
		return err
	}
	return s.client.HSet(ctx, keySpools, r.GetInstance(), strconv.FormatInt(s.clock.Now(), 10)+" "+string(raw)).Err()
}

// Reports adds up what the living ingress processes said, and forgets the others.
func (s *Store) Reports(ctx context.Context) (*statev1.ReportRequest, error) {
	all, err := s.client.HGetAll(ctx, keySpools).Result()
	if err != nil {
		return nil, err
	}
	sum := &statev1.ReportRequest{}
	for instance, value := range all {
		at, raw, _ := strings.Cut(value, " ")
		r := &statev1.ReportRequest{}
		if s.clock.Now()-atoi(at) > SpoolKept.Milliseconds() || proto.Unmarshal([]byte(raw), r) != nil {
			s.client.HDel(ctx, keySpools, instance) // else the next one does
			continue
		}
		AddReport(sum, r)
	}
	return sum, nil
}

// AddReport adds what one more ingress process said.
func AddReport(sum, r *statev1.ReportRequest) {
	sum.Spooled += r.GetSpooled()
	sum.OldestMs = max(sum.GetOldestMs(), r.GetOldestMs())
	sum.RefusedAfterAck += r.GetRefusedAfterAck()
	sum.RefusedUnrecorded += r.GetRefusedUnrecorded()
	sum.NotAcknowledged += r.GetNotAcknowledged()
	sum.SpoolDamaged += r.GetSpoolDamaged()
}

// SetComparison keeps the last comparison of counters and journals, for every state process.
func (s *Store) SetComparison(ctx context.Context, raw []byte) error {
	return s.client.Set(ctx, keyComparison, raw, 0).Err()
}

// Comparison is what SetComparison kept last; empty when there was none.
func (s *Store) Comparison(ctx context.Context) ([]byte, error) {
	raw, err := s.client.Get(ctx, keyComparison).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	return raw, err
}
