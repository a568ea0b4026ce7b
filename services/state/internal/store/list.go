package store

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Queue is one of the lists in which a destination's calls stand, in one partition.
type Queue struct {
	Destination string
	Partition   int
	// Kind is one of the constants below.
	Kind byte
}

// The kinds of queues.
const (
	KindLetters byte = 'x' // dead, expired, asked: what a person has to look at
	KindDue     byte = 'd' // the head waits
	KindLeased  byte = 'l' // the head is being sent
)

// Seat is a place in a queue.
type Seat struct {
	// Score is when it ended (letters) or is due, Unix milliseconds; 0 for what is being sent.
	Score int64
	// Member is a call, and in letters a tab and the number of a delivery.
	Member string
}

// Call is the call of a seat, and the number of the delivery where the seat names one.
func (s Seat) Call() (call string, number int) {
	call, n, _ := strings.Cut(s.Member, "\t")
	return call, int(atoi(n))
}

func (s Seat) before(o Seat) bool {
	return s.Score < o.Score || s.Score == o.Score && s.Member <= o.Member
}

// Seats reads the next seats of a queue behind `after` (the zero Seat = from the first), at most limit.
func (s *Store) Seats(ctx context.Context, q Queue, after Seat, limit int) ([]Seat, error) {
	var out []Seat
	if q.Kind == KindLeased {
		leases, err := s.client.HGetAll(ctx, keyLeases(q.Partition, q.Destination)).Result()
		if err != nil {
			return nil, err
		}
		for _, m := range slices.Sorted(maps.Keys(leases)) {
			if seat := (Seat{Member: m}); !seat.before(after) && len(out) < limit {
				out = append(out, seat)
			}
		}
		return out, nil
	}
	key := keyLetters(q.Partition, q.Destination)
	if q.Kind == KindDue {
		key = keyDue(q.Partition, q.Destination)
	}
	const page = 256
	for offset := int64(0); len(out) < limit; offset += page {
		z, err := s.client.ZRangeByScoreWithScores(ctx, key, &redis.ZRangeBy{
			Min: strconv.FormatInt(after.Score, 10), Max: "+inf", Offset: offset, Count: page}).Result()
		if err != nil {
			return nil, err
		}
		for _, z := range z {
			if seat := (Seat{int64(z.Score), z.Member.(string)}); !seat.before(after) && len(out) < limit {
				out = append(out, seat)
			}
		}
		if len(z) < page {
			break
		}
	}
	return out, nil
}

// Vacate removes a letter whose call is gone: its time was over.
func (s *Store) Vacate(ctx context.Context, q Queue, seat Seat) error {
	return s.client.ZRem(ctx, keyLetters(q.Partition, q.Destination), seat.Member).Err()
}

// Note appends to the journal of something that is no call, e.g. "destination/topsii".
func (s *Store) Note(ctx context.Context, key, id string, journal []byte) error {
	now := s.clock.Now()
	_, errs := s.run(ctx, []invocation{invoke(commitScript,
		[]string{keyCall(key), keyDue(Partition(key), Rules), keyLeases(Partition(key), Rules), keyCounters(Partition(key))},
		id, "", "", "", journal, "-", now, s.cfg.Retention.Milliseconds(), s.cfg.JournalLimit, key, "", "", 0, 0, 0, 0, "", now/hourMS)})
	return errs[0]
}
