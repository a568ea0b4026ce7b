// Package spool keeps callbacks on the local disk until they can be decided. It owns their durability (one bbolt file, each
// item with its own checksum), the order within a call, the bounds, and what happens to a damaged file. It does not know what
// is in an item, where it goes, or when.
//
// Appends are synced before they return; those that wait at the same time share one sync. What is spooled is indexed in
// memory, so nothing here reads the disk except to hand out an item.
package spool

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// ErrFull says that an item would exceed the limits. Nothing was kept.
var ErrFull = errors.New("the spool is full")

// ErrClosed says that the spool takes and gives nothing any more.
var ErrClosed = errors.New("the spool is closed")

// perItem is what an item takes in the file beside its own bytes, about.
const perItem = 64

// maxBatch bounds the items of one sync.
const maxBatch = 1024

// Limits bound what is spooled.
type Limits struct {
	Bytes int64 // of the items; the file may become about three times as large
	Items int
}

// Item is one spooled thing.
type Item struct {
	Call string
	Data []byte
	Age  time.Duration // since it was received; see stamp.since

	number uint64
	queue  *queue
}

// Stats are what can be seen of a spool.
type Stats struct {
	Items  int
	Bytes  int64
	Oldest time.Duration // age of the oldest item; 0 without items
}

// Spool is an open spool. Its methods may be called concurrently.
type Spool struct {
	dir    string
	limits Limits
	log    *slog.Logger
	lock   *os.File
	now    func() stamp

	count atomic.Int64 // items; Holds asks it first
	wake  chan struct{}
	work  chan struct{}
	stop  chan struct{}
	ended chan struct{}

	mu      sync.Mutex // never held while the disk is used
	closed  bool
	calls   map[string]*queue
	ready   []*queue // calls whose first item can be taken, in the order in which it became so
	later   []*queue // calls that were put back
	order   []*entry // all, oldest first, with some that are over
	bytes   int64
	last    uint64     // number of the newest item
	waiting []*pending // to be written
	gone    []uint64   // to be removed
	damaged int        // items of the file that could not be read
	keep    bool       // the file has an unreadable item: it is not removed when it becomes empty

	db  atomic.Pointer[bolt.DB]  // nil while there is no file to write to; changed by the writer alone
	old atomic.Pointer[leftover] // nil, or the damaged file that could not be begun anew yet; changed by the writer alone
}

// queue is what is spooled of one call, in order. It is in ready, in later, taken, or waits for its first item to be on disk.
type queue struct {
	call  string
	items []*entry
	taken bool
	set   bool // in ready or later
}

type entry struct {
	number  uint64
	size    int64
	at      stamp
	durable bool
	over    bool
}

type pending struct {
	queue *queue
	entry *entry
	frame []byte
	err   error
	done  chan struct{}
}

// Open locks the directory, making it if it is missing, and reads what is there. A damaged file is set aside under another
// name, which is logged, and what is readable of it is kept. Where the disk has no room for that, the spool opens all the same:
// see Broken.
func Open(dir string, limits Limits, log *slog.Logger) (*Spool, error) {
	return open(dir, limits, log, now)
}

func open(dir string, limits Limits, log *slog.Logger, now func() stamp) (*Spool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s := &Spool{dir: dir, limits: limits, log: log, lock: lock, now: now, calls: map[string]*queue{},
		wake: make(chan struct{}, 1), work: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{})}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", dir, err), lock.Close())
	}
	go s.write()
	return s, nil
}

// lockDir locks the directory until the file is closed, by us or by the end of this process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		owner, _ := os.ReadFile(f.Name())
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is in use by another ingress (process %s): give each ingress a directory of its own", dir, strings.TrimSpace(string(owner)))
		}
		return nil, fmt.Errorf("%s cannot be locked: %w", dir, err)
	}
	// For the message above; the lock itself does not depend on it.
	_ = f.Truncate(0)
	_, _ = fmt.Fprintf(f, "%d\n", os.Getpid())
	return f, nil
}

// Append keeps data, which was received at that time, behind everything of its call. Without an error it is on disk. After
// ErrFull and ErrClosed it is not; after the error of ctx, or of the disk, it may be. A megabyte is too large.
// Part is the share of the limits that such items may fill, 0 < part <= 1.
func (s *Spool) Append(ctx context.Context, call string, received time.Time, data []byte, part float64) error {
	if n := frameSize(call, data); n > maxFrame {
		return fmt.Errorf("an item of %d bytes is too large", n)
	}
	at := s.now().minus(time.Since(received))
	a := &pending{entry: &entry{at: at, size: int64(frameSize(call, data) + perItem)}, done: make(chan struct{})}
	s.mu.Lock()
	switch {
	case s.closed:
		s.mu.Unlock()
		return ErrClosed
	case s.bytes+a.entry.size > int64(part*float64(s.limits.Bytes)), s.count.Load() >= int64(part*float64(s.limits.Items)):
		s.mu.Unlock()
		return ErrFull
	}
	s.last++
	a.entry.number = s.last
	a.frame = newFrame(a.entry.number, at, call, data)
	a.queue = s.queueLocked(call)
	a.queue.items = append(a.queue.items, a.entry)
	s.addLocked(a.entry, 1)
	s.waiting = append(s.waiting, a)
	s.mu.Unlock()
	signal(s.work)
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Spool) queueLocked(call string) *queue {
	q := s.calls[call]
	if q == nil {
		q = &queue{call: call}
		s.calls[call] = q
	}
	return q
}

// addLocked counts an entry, or with -1 no longer.
func (s *Spool) addLocked(e *entry, n int64) {
	count := s.count.Add(n)
	s.bytes += n * e.size
	if e.over = n < 0; !e.over {
		s.order = append(s.order, e)
		return
	}
	for len(s.order) > 0 && s.order[0].over {
		s.order[0] = nil
		s.order = s.order[1:]
	}
	if len(s.order) > 2*int(count)+1024 { // one old item, and many that came and went since
		s.order = slices.DeleteFunc(s.order, func(e *entry) bool { return e.over })
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Holds says whether something of the call is spooled or about to be.
func (s *Spool) Holds(call string) bool {
	if s.count.Load() == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[call] != nil
}

// Empty says whether nothing is spooled.
func (s *Spool) Empty() bool { return s.count.Load() == 0 }

// Wake receives when an item may have become ready for Next.
func (s *Spool) Wake() <-chan struct{} { return s.wake }

// Next takes the first item of a call of which none is taken; the longest ready one. It must be ended by Done or Back. An item
// that cannot be read any more is set aside and logged, and the next one is taken.
func (s *Spool) Next() (Item, bool) {
	for {
		q, e := s.take()
		if q == nil {
			return Item{}, false
		}
		data, err := s.read(e.number)
		if err == nil {
			return Item{Call: q.call, Data: data, Age: s.now().since(e.at), number: e.number, queue: q}, true
		}
		if errors.Is(err, berrors.ErrDatabaseNotOpen) || errors.Is(err, os.ErrClosed) { // it is being closed, or another takes its place
			s.Back(Item{queue: q})
			return Item{}, false
		}
		s.SetAside(Item{number: e.number, queue: q}, err)
	}
}

// SetAside ends an item that was taken and that nobody can read: the file is kept for people when the rest of it is done.
func (s *Spool) SetAside(item Item, why error) {
	s.log.Error("a spooled callback cannot be read and is set aside", "number", item.number, "error", why, "dir", s.dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.damaged++
	s.keep = true
	s.popLocked(item.queue)
	signal(s.work)
}

func (s *Spool) take() (*queue, *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ready) == 0 || s.closed {
		return nil, nil
	}
	q := s.ready[0]
	s.ready[0] = nil
	s.ready = s.ready[1:]
	q.taken, q.set = true, false
	return q, q.items[0]
}

// Done removes an item that was taken. Should the process end before that is on disk, it is given out again.
func (s *Spool) Done(item Item) {
	s.mu.Lock()
	s.popLocked(item.queue)
	s.gone = append(s.gone, item.number)
	s.mu.Unlock()
	signal(s.work)
}

// popLocked drops the first item of a queue that was taken.
func (s *Spool) popLocked(q *queue) {
	e := q.items[0]
	q.items[0] = nil
	q.items = q.items[1:]
	q.taken = false
	s.addLocked(e, -1)
	s.readyLocked(q)
}

// readyLocked puts a queue where it belongs after its items changed.
func (s *Spool) readyLocked(q *queue) {
	switch {
	case len(q.items) == 0:
		delete(s.calls, q.call)
	case !q.taken && !q.set && q.items[0].durable:
		q.set = true
		s.ready = append(s.ready, q)
		signal(s.wake)
	}
}

// Back puts an item back that was taken. Its call waits until Again.
func (s *Spool) Back(item Item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	item.queue.taken, item.queue.set = false, true
	s.later = append(s.later, item.queue)
}

// Again lets Next take the calls that were put back.
func (s *Spool) Again() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = append(s.ready, s.later...)
	s.later = nil
	if len(s.ready) > 0 {
		signal(s.wake)
	}
}

// Stats tells what is spooled.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{Items: int(s.count.Load()), Bytes: s.bytes}
	if len(s.order) > 0 {
		st.Oldest = s.now().since(s.order[0].at)
	}
	return st
}

// Damaged counts what is kept for people because it could not be read: files beside the one in use, until somebody moves them
// away, and items of the one in use. It looks into the directory.
func (s *Spool) Damaged() int {
	aside, _ := filepath.Glob(filepath.Join(s.dir, asideNames)) // the pattern is a good one
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.old.Load() != nil {
		return len(aside) + s.damaged + 1
	}
	return len(aside) + s.damaged
}

// Broken says whether nothing can be appended, because the file is damaged and the disk has no room to begin it anew: to append
// to it would be writing behind the damage. What is readable of it is given out; which of that is done cannot be written down,
// so another start gives it out again, to those who know its request ids. It ends by itself when there is room, which is looked
// for with each append and each second, or when all is done.
func (s *Spool) Broken() bool { return s.old.Load() != nil }

// Close writes what waits, closes the file and unlocks the directory. What is spooled stays.
func (s *Spool) Close() error {
	s.mu.Lock()
	already := s.closed
	s.closed = true
	s.mu.Unlock()
	if already {
		return nil
	}
	close(s.stop)
	<-s.ended
	var err error
	if db := s.db.Load(); db != nil {
		err = db.Close()
	}
	if old := s.old.Load(); old != nil {
		err = errors.Join(err, old.file.Close())
	}
	return errors.Join(err, s.lock.Close())
}

// write is the one writer: each transaction, so each sync, takes all that waits.
func (s *Spool) write() {
	defer close(s.ended)
	retry := time.NewTicker(time.Second) // of removals that failed; appends are told at once
	defer retry.Stop()
	for stopping := false; !stopping; {
		select {
		case <-s.work:
		case <-retry.C:
		case <-s.stop:
			stopping = true
		}
		for s.writeOnce() {
		}
	}
}

// writeOnce makes one transaction. It is false when nothing is left that should be written at once.
func (s *Spool) writeOnce() bool {
	s.mu.Lock()
	n := min(len(s.waiting), maxBatch)
	adds := s.waiting[:n:n]
	if s.waiting = s.waiting[n:]; len(s.waiting) == 0 {
		s.waiting = nil
	}
	gone := s.gone
	s.gone = nil
	empty, keep := s.count.Load() == 0, s.keep
	s.mu.Unlock()
	broken := s.Broken()
	if empty && (s.db.Load() != nil || broken) {
		s.reset(keep || broken)
		return false
	}
	if len(adds) == 0 && len(gone) == 0 && !broken {
		return false
	}
	err := s.commit(adds, gone)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range adds {
		if a.err = err; err == nil {
			a.entry.durable = true
		} else {
			a.queue.items = slices.DeleteFunc(a.queue.items, func(e *entry) bool { return e == a.entry })
			s.addLocked(a.entry, -1)
		}
		s.readyLocked(a.queue)
		close(a.done)
	}
	if err != nil {
		s.gone = append(s.gone, gone...)
		if len(adds) == 0 {
			return false // the ticker comes back to the removals
		}
	}
	return len(s.waiting) > 0
}

func (s *Spool) path() string { return filepath.Join(s.dir, "spool.db") }

// commit writes and syncs.
func (s *Spool) commit(adds []*pending, gone []uint64) error {
	if s.db.Load() == nil {
		if err := s.anew(); err != nil {
			return err
		}
	}
	return update(s.db.Load(), adds, gone)
}

// anew makes a file to write to: with what is left of a damaged one, or empty.
func (s *Spool) anew() error {
	old := s.old.Load()
	if old == nil {
		db, err := s.rewrite(nil, nil)
		if err == nil {
			s.db.Store(db)
		}
		return err
	}
	db, err := s.mend(old)
	if err != nil {
		return fmt.Errorf("the spool is damaged and cannot be begun anew: %w", err)
	}
	s.db.Store(db)
	s.aside()
	return nil
}

// mend begins a new file with what is left of a damaged one.
func (s *Spool) mend(old *leftover) (*bolt.DB, error) {
	s.mu.Lock()
	need := s.bytes
	s.mu.Unlock()
	if err := s.room(need); err != nil {
		return nil, err
	}
	var numbers []uint64
	s.mu.Lock()
	for _, e := range s.order {
		if e.durable && !e.over {
			numbers = append(numbers, e.number)
		}
	}
	s.mu.Unlock()
	kept, err := old.frames(numbers)
	if err != nil {
		return nil, err
	}
	return s.rewrite(old, kept)
}

// aside notes that what could not be read was set aside with its file, which counts from now on.
func (s *Spool) aside() {
	s.mu.Lock()
	s.keep, s.damaged = false, 0
	s.mu.Unlock()
	if old := s.old.Swap(nil); old != nil {
		_ = old.file.Close() // it was only read
		s.log.Info("the spool takes callbacks again", "dir", s.dir)
	}
}

func update(db *bolt.DB, adds []*pending, gone []uint64) error {
	return safely(func() error {
		return db.Update(func(tx *bolt.Tx) error {
			b := tx.Bucket(items)
			b.FillPercent = 1 // numbers only grow
			count := int64(binary.BigEndian.Uint64(tx.Bucket(meta).Get(total)))
			for _, a := range adds {
				if err := b.Put(key(a.entry.number), a.frame); err != nil {
					return err
				}
				if err := b.SetSequence(a.entry.number); err != nil {
					return err
				}
				count++
			}
			for _, number := range gone {
				if b.Get(key(number)) == nil {
					continue // of a file that was begun anew since
				}
				if err := b.Delete(key(number)); err != nil {
					return err
				}
				count--
			}
			return tx.Bucket(meta).Put(total, key(uint64(count)))
		})
	})
}

// reset ends an empty file: its space is given back, and what was delivered long ago cannot come back out of a damaged one.
func (s *Spool) reset(keep bool) {
	var err error
	if db := s.db.Swap(nil); db != nil {
		err = db.Close()
	}
	end := func() error { return os.Remove(s.path()) }
	if keep {
		end = func() error { return s.setAside(os.Rename) }
	}
	ended := end()
	if err = errors.Join(err, ended, syncDir(s.dir)); err != nil {
		s.log.Error("the empty spool could not be removed", "error", err)
	}
	if keep && ended == nil {
		s.aside()
	}
}

// read returns the data of an item.
func (s *Spool) read(number uint64) (data []byte, err error) {
	db := s.db.Load()
	if db == nil {
		old := s.old.Load()
		if old == nil {
			return nil, berrors.ErrDatabaseNotOpen
		}
		_, f, err := old.read(number)
		return f.data, err
	}
	err = safely(func() error {
		return db.View(func(tx *bolt.Tx) error {
			f, err := parseFrame(tx.Bucket(items).Get(key(number)), number)
			data = slices.Clone(f.data)
			return err
		})
	})
	return data, err
}
