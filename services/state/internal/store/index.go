package store

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// The search index. A term of a call is a member of a sorted set: what it is found by, the minute, the call; sets are
// searched by their members' order. There is a set for each span of time and each hash of terms, small enough that Redis
// packs it (up to 128 members; about 30 bytes for each then), and no more spans than spansKept: so a search asks the same
// number of sets however many calls are stored. A span has few sets for its first calls, many for more, and very many for the
// rest of a busy one (millions of calls).
//
// A phone number's digits are data in there, as they are in the journal; other terms are hashed.
const (
	spansKept = 72
	// setMembers is how many members a set has on average before more sets are used.
	setMembers = 100
	// phoneDigits are kept of a number, and minPhoneDigits at least are needed to find it.
	phoneDigits    = 10
	minPhoneDigits = 4
	// perSet bounds what is read of one set.
	perSet = 1000
)

// widths are the numbers of sets that a span may have, with their names in keys.
var widths = []struct {
	name byte
	sets int
}{{'n', 256}, {'w', 16384}, {'x', 262144}}

// Found says what a call can be found by.
type Found struct {
	Call string
	AtMS int64
	// First: nothing was known of the call before.
	First  bool
	Terms  []string
	Phones []string
}

// index is what this process knows of the sets it writes.
type index struct {
	mu    sync.Mutex
	span  int64
	terms int
	// By width and set, and of the list: it has its time to live.
	lives       [][]bool
	recentLives bool
}

// forget that keys have their time to live: of some nobody knows.
func (i *index) forget() { i.lives, i.recentLives = make([][]bool, len(widths)), false }

// spanMS is how much time one span covers: the index is kept for twice the retention, because a call may be open as long as
// that and is kept as long again.
func (s *Store) spanMS() int64 {
	return max(hourMS, 2*s.cfg.Retention.Milliseconds()/spansKept)
}

// Index makes calls findable.
func (s *Store) Index(ctx context.Context, found []Found) error {
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	type set struct {
		span         int64
		width, shard int
	}
	sets, recent := map[set][]redis.Z{}, map[int64][]any{}
	for _, f := range found {
		span := f.AtMS / s.spanMS()
		if span != s.index.span {
			s.index.span, s.index.terms = span, 0
			s.index.forget()
		}
		slot := s.slot(f.AtMS)
		add := func(prefix string, hash uint64) {
			width := s.width()
			key := set{span, width, int(hash % uint64(widths[width].sets))}
			sets[key] = append(sets[key], redis.Z{Member: prefix + slot + f.Call})
			s.index.terms++
		}
		for i, term := range f.Terms {
			if term = normalTerm(term); term != "" && !slices.Contains(f.Terms[:i], term) {
				add(termPrefix(term))
			}
		}
		for i, phone := range f.Phones {
			digits := phoneTail(phone)
			if len(digits) >= minPhoneDigits && !slices.ContainsFunc(f.Phones[:i], func(p string) bool { return phoneTail(p) == digits }) {
				add(phonePrefix(digits, true))
			}
		}
		if f.First {
			recent[span] = append(recent[span], f.Call)
		}
	}
	p := s.client.Pipeline()
	// lives gives a key its time to live, once in the present span.
	lives := func(key string, span int64, has *bool) {
		if span == s.index.span && *has {
			return
		}
		p.PExpireAt(ctx, key, time.UnixMilli((span+1)*s.spanMS()+2*s.cfg.Retention.Milliseconds()))
		*has = *has || span == s.index.span
	}
	for of, members := range sets {
		key := keyIndex(of.span, widths[of.width].name, of.shard)
		p.ZAdd(ctx, key, members...)
		if s.index.lives[of.width] == nil {
			s.index.lives[of.width] = make([]bool, widths[of.width].sets)
		}
		lives(key, of.span, &s.index.lives[of.width][of.shard])
	}
	for span, calls := range recent {
		p.RPush(ctx, keyRecent(span), calls...)
		lives(keyRecent(span), span, &s.index.recentLives)
	}
	_, err := p.Exec(ctx)
	if err != nil {
		s.index.forget()
	}
	return err
}

// width is the one that what this process wrote of the span calls for.
func (s *Store) width() int {
	for i := range len(widths) - 1 {
		if s.index.terms < widths[i].sets*setMembers {
			return i
		}
	}
	return len(widths) - 1
}

// slot is the minute within the span, the latest first.
func (s *Store) slot(atMS int64) string {
	minutes := atMS % s.spanMS() / 60_000
	return string(binary.BigEndian.AppendUint16(nil, uint16(max(0, 0xffff-minutes))))
}

func normalTerm(term string) string { return strings.ToLower(strings.TrimSpace(term)) }

func hashOf(text string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text))
	return h.Sum64()
}

// termPrefix is how members of a term begin: the part of its hash that does not choose the set.
func termPrefix(term string) (prefix string, hash uint64) {
	hash = hashOf(term)
	return "v" + string(binary.BigEndian.AppendUint64(nil, hash)[:6]), hash
}

// phonePrefix is how members of a number begin: its digits from the last one on. What ends alike stands together, in the set
// of its last four.
func phonePrefix(digits string, whole bool) (prefix string, hash uint64) {
	reversed := []byte("p" + digits)
	slices.Reverse(reversed[1:])
	if whole {
		reversed = append(reversed, 0)
	}
	return string(reversed), hashOf("p" + digits[len(digits)-minPhoneDigits:])
}

// phoneTail is what is the same in all ways to write a number: the last digits, without Japan's country code or the 0 that
// stands for it.
func phoneTail(phone string) string {
	digits := strings.Map(func(r rune) rune {
		switch {
		case r >= '0' && r <= '9':
			return r
		case r >= '０' && r <= '９':
			return r - '０' + '0'
		}
		return -1
	}, phone)
	if len(digits) > phoneDigits {
		digits = strings.TrimPrefix(strings.TrimPrefix(digits, "00"), "81")
	}
	if len(digits) >= phoneDigits {
		digits = strings.TrimPrefix(digits, "0")
	}
	return digits[max(0, len(digits)-phoneDigits):]
}

// isPhone says whether a query may be a number: digits and what people put between them.
func isPhone(query string) bool {
	return strings.Trim(query, "0123456789０１２３４５６７８９+-() .ー－") == "" && len(phoneTail(query)) >= minPhoneDigits
}

// Page is a part of what a search found, the latest first.
type Page struct {
	Calls []string
	// Next is where to go on; empty = there is nothing more.
	Next string
}

// hit is a place in the order of what is found.
type hit struct {
	span int64
	slot string
	call string
}

func (h hit) compare(o hit) int {
	return cmp.Or(-cmp.Compare(h.span, o.span), cmp.Compare(h.slot, o.slot), cmp.Compare(h.call, o.call))
}

// search is what to look for: members that begin with the prefix, in the sets that the hash chooses.
type search struct {
	prefix string
	hash   uint64
}

// hit reads a member that was found; false if it is none of ours.
func (q search) hit(span int64, member string) (hit, bool) {
	rest := member[len(q.prefix):]
	if q.prefix[0] == 'p' { // behind the digits that were not asked for
		_, rest, _ = strings.Cut(rest, "\x00")
	}
	if len(rest) < 3 {
		return hit{}, false
	}
	return hit{span, rest[:2], rest[2:]}, true
}

// Find looks a query up: the last digits of a phone number, or a term as it is. At most limit calls that have an entry since
// sinceMS, after the place `after`.
func (s *Store) Find(ctx context.Context, query string, sinceMS int64, limit int, after string) (Page, error) {
	last, err := parseHit(after)
	if err != nil {
		return Page{}, err
	}
	prefix, hash := termPrefix(normalTerm(query))
	searches := []search{{prefix, hash}}
	if isPhone(query) {
		prefix, hash = phonePrefix(phoneTail(query), false)
		searches = append(searches, search{prefix, hash})
	}
	newest, oldest := s.clock.Now()/s.spanMS(), max(sinceMS, s.clock.Now()-2*s.cfg.Retention.Milliseconds())/s.spanMS()
	if after != "" {
		newest = min(newest, last.span) // the token comes from outside
	}
	var hits []hit
	// A few spans at first: for what is found often they are enough. Then a third of the others, then all of them at once.
	for group, from := int64(2), newest; from >= oldest && len(hits) <= limit; group *= 12 {
		type look struct {
			search
			span    int64
			members *redis.StringSliceCmd
		}
		var looks []look
		p := s.client.Pipeline()
		for span := from; span > from-group && span >= oldest; span-- {
			for _, width := range widths {
				for _, q := range searches {
					looks = append(looks, look{q, span, p.ZRangeByLex(ctx, keyIndex(span, width.name, int(q.hash%uint64(width.sets))),
						&redis.ZRangeBy{Min: "[" + q.prefix, Max: "(" + q.prefix + "\xff\xff\xff\xff", Count: perSet})})
				}
			}
		}
		if _, err := p.Exec(ctx); err != nil {
			return Page{}, err
		}
		for _, l := range looks {
			for _, member := range l.members.Val() {
				if h, ok := l.hit(l.span, member); ok && (after == "" || h.compare(last) > 0) {
					hits = append(hits, h)
				}
			}
		}
		from -= group
	}
	slices.SortFunc(hits, hit.compare)
	page := Page{}
	for i, h := range hits {
		if slices.Contains(page.Calls, h.call) {
			continue
		}
		if len(page.Calls) == limit {
			page.Next = hits[i-1].String()
			break
		}
		page.Calls = append(page.Calls, h.call)
	}
	return page, nil
}

// String is a page token.
func (h hit) String() string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(h.span, 10) + " " + h.slot + h.call))
}

func parseHit(token string) (hit, error) {
	if token == "" {
		return hit{}, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	span, rest, _ := strings.Cut(string(raw), " ")
	n, err2 := strconv.ParseInt(span, 10, 64)
	if err != nil || err2 != nil || len(rest) < 3 {
		return hit{}, ErrPageToken
	}
	return hit{n, rest[:2], rest[2:]}, nil
}

// Recent lists calls by when they began, the latest first: at most limit since sinceMS (to the span), after the place `after`.
func (s *Store) Recent(ctx context.Context, sinceMS int64, limit int, after string) (Page, error) {
	span, oldest := s.clock.Now()/s.spanMS(), max(sinceMS, s.clock.Now()-2*s.cfg.Retention.Milliseconds())/s.spanMS()
	end := int64(-2) // index of the last one wanted
	if after != "" {
		at, index, ok := strings.Cut(after, ".")
		n, err := strconv.ParseInt(at, 10, 64)
		i, err2 := strconv.ParseInt(index, 10, 64)
		if !ok || err != nil || err2 != nil || i < 0 || n > span {
			return Page{}, ErrPageToken
		}
		span, end = n, i-1
	}
	var page Page
	for ; span >= oldest; span-- {
		if end < -1 {
			n, err := s.client.LLen(ctx, keyRecent(span)).Result()
			if err != nil {
				return Page{}, err
			}
			end = n - 1
		}
		if end >= 0 {
			start := max(0, end-int64(limit-len(page.Calls))+1)
			calls, err := s.client.LRange(ctx, keyRecent(span), start, end).Result()
			if err != nil {
				return Page{}, err
			}
			slices.Reverse(calls)
			if page.Calls = append(page.Calls, calls...); len(page.Calls) == limit {
				page.Next = strconv.FormatInt(span, 10) + "." + strconv.FormatInt(start, 10)
				return page, nil
			}
		}
		end = -2 // the spans before this one are read from their ends
	}
	return page, nil
}
