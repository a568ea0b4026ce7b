package store

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	statev1 "callrelay/gen/callrelay/state/v1"
)

// hourMS is the unit in which requests are counted: the hour in which they were recorded.
const hourMS = 3_600_000

// Bucket is where accounting counts a request.
type Bucket string

// The buckets. From Sending on they follow from the states of the request's deliveries, whose letters they are.
const (
	Refused       Bucket = "r"
	Repeated      Bucket = "p"
	Undecided     Bucket = "u"
	NothingToSend Bucket = "z"
	WaitingPhone2 Bucket = "w"
	Combined      Bucket = "k"
	Phone1Expired Bucket = "t"
	Sending       Bucket = "q"
	Delivered     Bucket = "d"
	Dead          Bucket = "x"
	Expired       Bucket = "e"
	Discarded     Bucket = "c"
	SendDisabled  Bucket = "n"
)

var moveLetters = map[statev1.Bucket]Bucket{
	statev1.Bucket_BUCKET_REFUSED:         Refused,
	statev1.Bucket_BUCKET_DUPLICATE:       Repeated,
	statev1.Bucket_BUCKET_UNDECIDED:       Undecided,
	statev1.Bucket_BUCKET_NOTHING_TO_SEND: NothingToSend,
	statev1.Bucket_BUCKET_WAITING_PHONE2:  WaitingPhone2,
	statev1.Bucket_BUCKET_COMBINED:        Combined,
	statev1.Bucket_BUCKET_PHONE1_EXPIRED:  Phone1Expired,
}

// appendMoves appends what commit.lua needs of each request that the item moves. What gets deliveries is where they are.
func appendMoves(args []any, item *statev1.CommitItem) []any {
	moves := item.GetMoves()
	for i, m := range moves {
		to := moveLetters[m.GetTo()]
		if to == "" || slices.ContainsFunc(moves[:i], func(b *statev1.Move) bool { return b.GetRequestId() == m.GetRequestId() }) {
			continue
		}
		numbers := numbersOf(item.GetDeliveries(), m.GetRequestId())
		if numbers != "" {
			to = Sending
		}
		args = append(args, m.GetRequestId(), string(to), numbers)
	}
	for i, d := range item.GetDeliveries() {
		same := func(b *statev1.Delivery) bool { return b.GetRequestId() == d.GetRequestId() }
		if slices.ContainsFunc(moves, func(m *statev1.Move) bool { return m.GetRequestId() == d.GetRequestId() }) ||
			slices.ContainsFunc(item.GetDeliveries()[:i], same) {
			continue
		}
		args = append(args, d.GetRequestId(), string(Sending), numbersOf(item.GetDeliveries(), d.GetRequestId()))
	}
	return args
}

// numbersOf are the numbers of a request's deliveries, separated by blanks.
func numbersOf(deliveries []*statev1.Delivery, request string) string {
	var numbers []byte
	for _, d := range deliveries {
		if d.GetRequestId() != request {
			continue
		}
		if len(numbers) > 0 {
			numbers = append(numbers, ' ')
		}
		numbers = strconv.AppendUint(numbers, uint64(d.GetNumber()), 10)
	}
	return string(numbers)
}

// Counted says where a request is counted.
type Counted struct {
	Bucket Bucket
	Hour   int64
	// Unrequested: it is a delivery that no request of its call caused, named "#<number>".
	Unrequested bool
}

// readCounted reads the fields i:<request> and a:<number> of a call.
func readCounted(fields map[string]string) map[string]Counted {
	out := map[string]Counted{}
	for name, value := range fields {
		kind, id, ok := strings.Cut(name, ":")
		if !ok || len(value) < 3 || kind != "i" && kind != "a" {
			continue
		}
		hour, _, _ := strings.Cut(value[2:], " ")
		c := Counted{Bucket: Bucket(value[1:2]), Hour: atoi(hour), Unrequested: kind == "a"}
		if c.Unrequested {
			id = "#" + id
		}
		out[id] = c
	}
	return out
}

// Counters are numbers of requests by where they are counted.
type Counters map[Counted]int64

// Counters reads the counters of every partition.
func (s *Store) Counters(ctx context.Context) ([Partitions]Counters, error) {
	var out [Partitions]Counters
	p := s.client.Pipeline()
	var cmds [Partitions]*redis.MapStringStringCmd
	for i := range Partitions {
		cmds[i] = p.HGetAll(ctx, keyCounters(i))
	}
	if _, err := p.Exec(ctx); err != nil {
		return out, err
	}
	for i, cmd := range cmds {
		out[i] = Counters{}
		for field, value := range cmd.Val() {
			if c, ok := parseCounter(field); ok && value != "0" {
				out[i][c] = atoi(value)
			}
		}
		// What ever had deliveries is counted in q, what ended besides.
		for c, n := range out[i] {
			switch c.Bucket {
			case Delivered, Dead, Expired, Discarded, SendDisabled:
				c.Bucket = Sending
				out[i][c] -= n
			}
		}
	}
	return out, nil
}

func parseCounter(field string) (Counted, bool) {
	end := strings.IndexFunc(field, func(r rune) bool { return r < '0' || r > '9' })
	if end < 1 {
		return Counted{}, false
	}
	bucket, unrequested := strings.CutPrefix(field[end:], "o")
	return Counted{Bucket: Bucket(bucket), Hour: atoi(field[:end]), Unrequested: unrequested}, true
}

// ForgetCounters removes the counters of hours before the given one.
func (s *Store) ForgetCounters(ctx context.Context, before int64) error {
	for i := range Partitions {
		fields, err := s.client.HKeys(ctx, keyCounters(i)).Result()
		if err != nil {
			return err
		}
		fields = slices.DeleteFunc(fields, func(f string) bool {
			c, ok := parseCounter(f)
			return ok && c.Hour >= before
		})
		if len(fields) == 0 {
			continue
		}
		if err := s.client.HDel(ctx, keyCounters(i), fields...).Err(); err != nil {
			return err
		}
	}
	return nil
}

// scanCount is how many keys Scan looks at in one step: so few that no callback waits noticeably behind it.
const scanCount = 50

// Scan reads every call, in batches; `each` may be called from several goroutines, one at a time. A call that is made
// meanwhile may be missing. pause is called between batches.
func (s *Store) Scan(ctx context.Context, pause func(read int) error, each func(*Call)) error {
	var mu sync.Mutex
	return s.masters(ctx, func(ctx context.Context, c *redis.Client) error {
		var cursor uint64
		for {
			keys, next, err := c.Scan(ctx, cursor, "cr:{*}:c:*", scanCount).Result()
			if err != nil {
				return err
			}
			calls := keys[:0]
			for _, k := range keys {
				if _, call, ok := strings.Cut(k, "}:c:"); ok {
					calls = append(calls, call)
				}
			}
			read, err := s.Calls(ctx, calls)
			if err != nil {
				return err
			}
			mu.Lock()
			for _, call := range read {
				if call != nil {
					each(call)
				}
			}
			mu.Unlock()
			if cursor = next; cursor == 0 {
				return nil
			}
			if err := pause(len(calls)); err != nil {
				return err
			}
		}
	})
}

// HourStart is the beginning of an hour in Unix milliseconds, and HourOf the hour of a time.
func HourStart(hour int64) int64 { return hour * hourMS }

// HourOf is the hour of a time in Unix milliseconds.
func HourOf(ms int64) int64 { return ms / hourMS }
