package store

import (
	"context"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// Heartbeat says that this process lives, reports whether another state process does too, and learns which destinations
// others have used.
func (s *Store) Heartbeat(ctx context.Context, alive time.Duration) (others bool, err error) {
	now := s.clock.Now()
	p := s.client.Pipeline()
	p.ZAdd(ctx, keyReplicas, redis.Z{Score: float64(now), Member: s.self})
	p.ZRemRangeByScore(ctx, keyReplicas, "-inf", strconv.FormatInt(now-alive.Milliseconds(), 10))
	count := p.ZCard(ctx, keyReplicas)
	known := p.SMembers(ctx, keyDestinations)
	if _, err := p.Exec(ctx); err != nil {
		return false, err
	}
	s.remember(known.Val())
	return count.Val() > 1, nil
}

// Wake tells the other state processes what became due.
func (s *Store) Wake(ctx context.Context, text string) error {
	return s.client.Publish(ctx, channelWake, text).Err()
}

// Tell tells the other state processes what was written to the journal.
func (s *Store) Tell(ctx context.Context, text string) error {
	return s.client.Publish(ctx, channelJournal, text).Err()
}

// Told is what other state processes tell by Tell, until ctx ends.
func (s *Store) Told(ctx context.Context) <-chan string { return s.subscribe(ctx, channelJournal) }

// Woken is what other state processes tell by Wake, until ctx ends.
func (s *Store) Woken(ctx context.Context) <-chan string { return s.subscribe(ctx, channelWake) }

// subscribe reads a channel, our own messages too. It reconnects by itself; what is said meanwhile is missed.
func (s *Store) subscribe(ctx context.Context, channel string) <-chan string {
	out := make(chan string)
	sub := s.client.Subscribe(ctx, channel)
	go func() {
		defer close(out)
		defer func() { _ = sub.Close() }()
		in := sub.Channel()
		for {
			select {
			case <-ctx.Done():
				return
			case m, ok := <-in:
				if !ok {
					return
				}
				select {
				case out <- m.Payload:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}
