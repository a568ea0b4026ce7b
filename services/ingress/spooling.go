package ingress

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	errorsv1 "callrelay/gen/callrelay/errors/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
	"callrelay/platform/errkind"
	"callrelay/platform/telemetry"
	"callrelay/services/ingress/internal/spool"
)

const (
	// missesInARow is after how many callbacks that waited in vain router or state counts as away: from then on callbacks are
	// spooled without waiting, and only the spool itself tries, one item at a time, until one is committed.
	missesInARow = 3
	// lateInARow is after how many late answers router counts as slow, and slowFor for how long then; see answered.
	lateInARow = 3
	slowFor    = 100 * time.Millisecond
	// reconnecting is how long callbacks wait for a broken stream to come back before they are spooled at once.
	reconnecting = 300 * time.Millisecond
	// drainAtOnce bounds the spooled items that are with router, each of another call; tryTime bounds one try.
	drainAtOnce = 128
	tryTime     = 2 * time.Second
	// refusedPart is the share of the spool that refused requests may fill: the rest is for callbacks.
	refusedPart = .5
	// quiet is for how long the spool must have been empty until that is worth a line, and how long it is not ready after it
	// took nothing.
	quiet = 5 * time.Second
)

// spooling decides which callbacks go to the spool and takes them from there to router.
type spooling struct {
	spool   *spool.Spool
	pipe    *routePipe
	tel     *telemetry.Telemetry
	metrics *metrics
	// share is whose fair share an item waits for; nil: nobody's.
	share func(token []byte) *share

	away   atomic.Bool  // nothing is sent to router but by drain
	misses atomic.Int32 // in a row
	late   atomic.Int32 // in a row
	slow   atomic.Int64 // until when router counts as slow, in nanoseconds since started
	failed atomic.Int64 // when the spool took nothing last, in nanoseconds since started; 0 = never
	alarm  atomic.Bool  // which was said

	refusedLate atomic.Int64 // callbacks that were refused after they had been acknowledged
}

// started is what times are counted from that a jump of the wall clock must not move.
var started = time.Now()

// behind says whether a callback of the call has to go to the spool: router is away, or something of the call is spooled. It
// costs two atomic reads while neither is so.
func (s *spooling) behind(call string) bool { return s.away.Load() || s.spool.Holds(call) }

// busy says whether router has more than it can do, so that a callback had better go to the spool.
func (s *spooling) busy() bool {
	until := s.slow.Load()
	return until != 0 && int64(time.Since(started)) < until
}

// answered notes how long router took of what a callback may wait. Once its answers take a quarter, one after the other, those
// who come now would wait as long and longer: they are spooled, until its answers are quick again. So under overload most of
// the budget is left for the disk, and hardly any callback waits in vain, which would have router and the spool work on it both.
func (s *spooling) answered(took, budget time.Duration) {
	switch {
	case took <= budget/4:
		if s.late.Load() != 0 {
			s.late.Store(0)
		}
	case s.late.Add(1) >= lateInARow:
		s.slow.Store(int64(time.Since(started) + slowFor))
	}
}

// committed notes that router and state work.
func (s *spooling) committed() {
	if s.misses.Load() != 0 {
		s.misses.Store(0)
	}
	if s.away.Load() {
		s.away.Store(false)
	}
}

// missed notes that a callback waited in vain for all of its time.
func (s *spooling) missed() {
	if s.misses.Add(1) >= missesInARow {
		s.away.Store(true)
	}
}

// keep spools an item. After an error it may be spooled all the same.
func (s *spooling) keep(ctx context.Context, r *request, call string, item *routerv1.RouteItem, part float64) error {
	// A copy: a try that was given up may still be using the item.
	data, err := proto.Marshal(&routerv1.RouteItem{RequestId: r.id, Traceparent: r.traceparent, Query: r.query, Peer: r.peer,
		Spooled: true, Share: item.GetShare(), Callback: item.GetCallback()})
	if err != nil {
		return errkind.Internal(err)
	}
	return s.spool.Append(ctx, call, r.received, data, part)
}

// put is keep where nothing else can take the callback. Its error is UNAVAILABLE.
func (s *spooling) put(ctx context.Context, r *request, call string, item *routerv1.RouteItem, part float64) error {
	err := s.keep(ctx, r, call, item, part)
	if err == nil {
		return nil
	}
	if part == 1 && !errors.Is(ctx.Err(), context.Canceled) {
		s.failed.Store(int64(time.Since(started)))
		if !s.alarm.Swap(true) {
			s.tel.Log().Error("NOTHING DURABLE CAN TAKE CALLBACKS: they are answered 503", "error", err)
		}
	}
	return notRecorded(err)
}

// run takes what is spooled to router until ctx ends. What is under way then stays spooled; it is recognised if it was
// committed.
func (s *spooling) run(ctx context.Context) {
	var (
		wg      sync.WaitGroup
		flying  atomic.Int32
		landed  = make(chan struct{}, 1)
		tick    = time.NewTicker(100 * time.Millisecond)
		last    seen
		retried time.Time
	)
	defer wg.Wait()
	defer tick.Stop()
	for {
		now := time.Now()
		s.watch(&last, now)
		if now.Sub(retried) >= time.Second {
			retried = now
			s.spool.Again()
		}
		for s.pipe.Connected() && int(flying.Load()) < s.atOnce() {
			one, item, ok := s.next()
			if !ok {
				break
			}
			flying.Add(1)
			wg.Go(func() {
				committed := s.drain(ctx, one, item)
				flying.Add(-1)
				if committed {
					select {
					case landed <- struct{}{}:
					default:
					}
				}
			})
		}
		select {
		case <-ctx.Done():
			return
		case <-s.spool.Wake():
		case <-landed:
		case <-tick.C: // also after a try that failed
		}
	}
}

func (s *spooling) atOnce() int {
	if s.away.Load() {
		return 1
	}
	return drainAtOnce
}

// next takes an item that may be tried now. What waits for the share of its token goes back until that has room.
func (s *spooling) next() (one spool.Item, item *routerv1.RouteItem, ok bool) {
	for {
		if one, ok = s.spool.Next(); !ok {
			return one, nil, false
		}
		item = &routerv1.RouteItem{}
		if err := proto.Unmarshal(one.Data, item); err != nil { // its checksum is right: another version wrote it
			s.spool.SetAside(one, err)
			continue
		}
		if waits := s.share(item.GetShare()); waits != nil && !waits.limit.Allow() {
			s.spool.Back(one)
			continue
		}
		return one, item, true
	}
}

// drain tries to have one item committed. Any definite answer ends it: router commits what it refuses, too.
func (s *spooling) drain(ctx context.Context, one spool.Item, item *routerv1.RouteItem) (committed bool) {
	waited := s.share(item.GetShare())
	item.Share = nil
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	item.AgeMs, item.BudgetMs = one.Age.Milliseconds(), tryTime.Milliseconds()
	answer, err := s.pipe.Do(ctx, item)
	var refused *errkind.Error
	if err == nil {
		refused = errkind.FromProto(answer.GetError())
	}
	if err != nil || refused != nil && refused.Kind == errorsv1.Kind_KIND_UNAVAILABLE {
		s.spool.Back(one)
		return false
	}
	s.spool.Done(one)
	if waited != nil {
		waited.left()
	}
	s.committed()
	if refused != nil {
		s.metrics.refusedLate.Add(ctx, 1)
		s.refusedLate.Add(1)
		s.tel.Log().Error("A CALLBACK WAS REFUSED AFTER IT HAD BEEN ACKNOWLEDGED; it is recorded as undecided, and its sender will not send it again",
			"request_id", item.GetRequestId(), "call", one.Call, "field", refused.Field, "message", telemetry.MaskDigits(refused.Message))
	}
	return true
}

// seen is what watch remembers between two looks.
type seen struct {
	lost  time.Time // since when there is no stream; zero = there is one
	begun time.Time // when spooling began
	used  time.Time // when something was spooled last; zero = that is over, and said
}

// watch notices a lost stream, and says when spooling begins and ends.
func (s *spooling) watch(last *seen, now time.Time) {
	empty := s.spool.Empty()
	switch connected := s.pipe.Connected(); {
	case connected:
		last.lost = time.Time{}
		if empty && s.away.Load() { // nothing is there to try with
			s.committed()
		}
	case last.lost.IsZero():
		last.lost = now
	case now.Sub(last.lost) >= reconnecting:
		s.away.Store(true)
	}
	if s.alarm.Load() && !s.failing(now) {
		s.alarm.Store(false)
		s.tel.Log().Info("no callback was answered 503 for want of room for a while")
	}
	switch {
	case !empty && last.used.IsZero():
		last.used, last.begun = now, now
		s.tel.Log().Warn("spooling: callbacks are kept on this disk until they can be decided", "spooled", s.spool.Stats().Items)
	case !empty:
		last.used = now
	case !last.used.IsZero() && now.Sub(last.used) >= quiet:
		s.tel.Log().Info("the spool is empty again", "after", now.Sub(last.begun).Round(time.Second).String())
		last.used = time.Time{}
	}
}

// ready is nil while callbacks can be acknowledged: by router, or by the spool.
func (s *spooling) ready() error {
	switch {
	case !s.away.Load():
		return nil
	case s.spool.Broken():
		return errors.New("router is away, and the spool takes nothing: its file is damaged, and its disk has no room to begin it anew")
	case s.failing(time.Now()):
		return errors.New("router is away and the spool takes nothing")
	}
	return nil
}

// failing says whether the spool took nothing a short while ago; later it is worth another try.
func (s *spooling) failing(now time.Time) bool {
	failed := s.failed.Load()
	return failed != 0 && now.Sub(started)-time.Duration(failed) < quiet
}
