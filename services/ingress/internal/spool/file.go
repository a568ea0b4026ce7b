package spool

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// The file: bucket `items`, number -> frame, whose sequence is the highest number ever given, and bucket `meta` with the
// number of items, both written in the transaction that they describe. bbolt never overwrites what a synced transaction
// refers to, so a torn write is the end of a transaction that nobody was told of. What it does not see is a page that rotted:
// hence the checksum of each item, the count, and frames that can be found without the tree.
var (
	items = []byte("items")
	meta  = []byte("meta")
	total = []byte("items")
)

func key(number uint64) []byte { return binary.BigEndian.AppendUint64(nil, number) }

// A frame is magic, CRC32C of everything after it, length of everything after it, number, stamp, call and data.
var magic = []byte("\xc5callrel")

const (
	frameHead   = 8 + 4 + 4
	frameFields = 8 + 8 + 8 + 16 + 2
	maxFrame    = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type frame struct {
	number uint64
	at     stamp
	call   string
	data   []byte // of the memory that it was read from
	size   int
	offset int64 // in the file where it was found
}

func frameSize(call string, data []byte) int { return frameHead + frameFields + len(call) + len(data) }

func newFrame(number uint64, at stamp, call string, data []byte) []byte {
	n := frameSize(call, data)
	b := make([]byte, frameHead, n)
	b = binary.BigEndian.AppendUint64(b, number)
	b = binary.BigEndian.AppendUint64(b, uint64(at.wall))
	b = binary.BigEndian.AppendUint64(b, uint64(at.boot))
	b = append(b, at.bootID[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(call)))
	b = append(append(b, call...), data...)
	copy(b, magic)
	binary.BigEndian.PutUint32(b[12:], uint32(n-frameHead))
	binary.BigEndian.PutUint32(b[8:], crc32.Checksum(b[12:], castagnoli))
	return b
}

var errDamaged = errors.New("its checksum is wrong")

// readFrame reads the frame at the beginning of b.
func readFrame(b []byte) (frame, error) {
	if len(b) < frameHead+frameFields || !bytes.HasPrefix(b, magic) {
		return frame{}, errDamaged
	}
	n := binary.BigEndian.Uint32(b[12:])
	if n < frameFields || n > maxFrame || len(b) < frameHead+int(n) {
		return frame{}, errDamaged
	}
	if crc32.Checksum(b[12:frameHead+n], castagnoli) != binary.BigEndian.Uint32(b[8:]) {
		return frame{}, errDamaged
	}
	b = b[frameHead : frameHead+n]
	f := frame{number: binary.BigEndian.Uint64(b), size: frameHead + int(n)}
	f.at.wall, f.at.boot = int64(binary.BigEndian.Uint64(b[8:])), int64(binary.BigEndian.Uint64(b[16:]))
	copy(f.at.bootID[:], b[24:])
	call := frameFields + int(binary.BigEndian.Uint16(b[40:]))
	if call > len(b) {
		return frame{}, errDamaged
	}
	f.call, f.data = string(b[frameFields:call]), b[call:]
	return f, nil
}

// parseFrame reads the frame stored under a number.
func parseFrame(b []byte, number uint64) (frame, error) {
	f, err := readFrame(b)
	if err == nil && f.number != number {
		err = errDamaged
	}
	return f, err
}

// options of the file. Without the list of free pages in it, there is less that can be damaged.
var options = bolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bolt.FreelistMapType, NoStatistics: true}

// create makes an empty file beside the one in use; begin puts it in its place once it is whole.
func (s *Spool) create() (db *bolt.DB, err error) {
	path := filepath.Join(s.dir, "new.db")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	err = safely(func() (err error) {
		if db, err = bolt.Open(path, 0o600, &options); err != nil {
			return err
		}
		return db.Update(func(tx *bolt.Tx) error {
			_, errItems := tx.CreateBucket(items)
			b, err := tx.CreateBucket(meta)
			if err = errors.Join(errItems, err); err != nil {
				return err
			}
			return b.Put(total, key(0))
		})
	})
	if err != nil {
		if db != nil {
			_ = db.Close()
		}
		_ = os.Remove(path)
	}
	return db, err
}

// begin makes the new file the one in use, also after a power failure.
func (s *Spool) begin() error {
	return errors.Join(os.Rename(filepath.Join(s.dir, "new.db"), s.path()), syncDir(s.dir))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// safely turns what bbolt does with a damaged file, panics and reads beyond its end, into errors.
func safely(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the file is damaged: %v", p)
		}
	}()
	return f()
}

// leftover is the file of an earlier process. It is only read: bbolt never writes to pages that it has not made itself, for on
// damaged ones it can crash.
type leftover struct {
	file    *os.File
	found   map[uint64]frame // every intact frame, wherever it lies, without its data
	problem error            // nil: it is sound
}

// frames are those of the numbers.
func (l *leftover) frames(numbers []uint64) (out []frame, err error) {
	for _, number := range numbers {
		f, ok := l.found[number]
		if !ok {
			return nil, fmt.Errorf("item %d: %w", number, errDamaged)
		}
		out = append(out, f)
	}
	return out, nil
}

// read returns the bytes of a frame, and the frame in them.
func (l *leftover) read(number uint64) ([]byte, frame, error) {
	b := make([]byte, l.found[number].size)
	if _, err := l.file.ReadAt(b, l.found[number].offset); err != nil {
		return nil, frame{}, err
	}
	f, err := parseFrame(b, number)
	return b, f, err
}

// load indexes what an earlier process left, and begins a new file with it. Where the disk has no room for that, a sound file is
// used as it is, and a damaged one is only read: what is intact is given out, and nothing is appended before there is room.
func (s *Spool) load() error {
	file, err := os.Open(s.path())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	old, intact, newest, usable := inspect(file, info.Size())
	kept := intact
	if old.problem != nil {
		// Every frame that is intact, wherever it lies. Among them can be items that were removed already: who gets them again
		// knows their request ids. The file is begun anew whenever it is empty, so none is older than this spooling.
		kept = slices.SortedFunc(maps.Values(old.found), func(a, b frame) int { return cmp.Compare(a.number, b.number) })
	}
	var need int64
	for _, f := range kept {
		need += int64(f.size + perItem)
	}
	var db *bolt.DB
	if err = s.room(need); err == nil {
		db, err = s.rewrite(old, kept)
	}
	asItIs := err != nil && usable
	if asItIs {
		s.log.Error("the spool file cannot be written anew and is used as it is", "error", err, "kept", len(intact), "dir", s.dir)
		kept = intact
		err = safely(func() (err error) { db, err = bolt.Open(s.path(), 0o600, &options); return err })
		old.problem = cmp.Or(old.problem, err)
	}
	s.index(kept)
	if err != nil {
		s.log.Error("THE SPOOL IS DAMAGED AND CANNOT BE BEGUN ANEW: what is readable of it is delivered, and no callback is spooled until there is room",
			"damage", old.problem, "error", err, "kept", len(kept), "dir", s.dir)
		s.old.Store(old)
		return nil
	}
	if asItIs {
		s.last = newest // what was removed can still lie in the file: its numbers are not given again
	}
	s.db.Store(db)
	return file.Close()
}

// inspect reads the file of an earlier process: the items of its tree, in order, and the highest number ever given. It is usable
// as it is where all of the tree was read without a sign of damage.
func inspect(file *os.File, size int64) (old *leftover, intact []frame, newest uint64, usable bool) {
	old = &leftover{file: file, found: scan(file, size)}
	numbers, last, damage := readTree(file.Name())
	intact, missing := old.frames(numbers)
	old.problem = errors.Join(damage, missing)
	newest = last
	for number := range old.found {
		newest = max(newest, number)
	}
	switch {
	case old.problem != nil:
	case newest > last:
		old.problem = errors.New("the last transaction is missing")
		usable = metasIntact(file) // then it failed, and nobody was told of it: so it is after the disk was full
	default:
		usable = true
	}
	return old, intact, newest, usable
}

// room is an error where the disk has less room than a file needs: to find that out by writing would take the last of it from
// others, Redis perhaps.
func (s *Spool) room(need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return nil // then writing says it
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return fmt.Errorf("the disk has %d bytes free, and %d are needed: %w", free, need, unix.ENOSPC)
	}
	return nil
}

// metasIntact says whether both meta pages are as they were written: then the newer one is of the last transaction.
func metasIntact(file io.ReaderAt) bool {
	const begin, sum, end = 16, 72, 80 // of bbolt's meta in its page
	var meta [end]byte
	for _, page := range []int{0, os.Getpagesize()} {
		if _, err := file.ReadAt(meta[:], int64(page)); err != nil {
			return false
		}
		h := fnv.New64a()
		_, _ = h.Write(meta[begin:sum])
		if h.Sum64() != binary.NativeEndian.Uint64(meta[sum:]) {
			return false
		}
	}
	return true
}

// rewrite begins a new file with these items of the one before; without one, an empty file. A file with a problem is set aside.
// After an error the old file is in its place.
func (s *Spool) rewrite(old *leftover, kept []frame) (*bolt.DB, error) {
	db, err := s.create()
	if err != nil {
		return nil, err
	}
	for batch := range slices.Chunk(kept, maxBatch) {
		adds := make([]*pending, len(batch))
		for i, f := range batch {
			adds[i] = &pending{entry: &entry{number: f.number}}
			if adds[i].frame, _, err = old.read(f.number); err != nil {
				break
			}
		}
		if err == nil {
			err = update(db, adds, nil)
		}
		if err != nil {
			break
		}
	}
	if err == nil && old != nil && old.problem != nil {
		s.log.Error("the spool is damaged; what is readable is kept", "error", old.problem, "kept", len(kept), "dir", s.dir)
		err = s.setAside(os.Link)
	}
	if err == nil {
		err = s.begin()
	}
	if err != nil {
		// Its space is needed.
		return nil, errors.Join(err, db.Close(), os.Remove(filepath.Join(s.dir, "new.db")))
	}
	return db, nil
}

// index makes the queues of what is in the file.
func (s *Spool) index(kept []frame) {
	for _, f := range kept {
		s.last = f.number
		e := &entry{number: f.number, at: f.at, size: int64(f.size + perItem), durable: true}
		q := s.queueLocked(f.call)
		q.items = append(q.items, e)
		s.addLocked(e, 1)
		s.readyLocked(q)
	}
	if len(kept) == 0 {
		signal(s.work) // the file is removed
	}
}

// asideNames are those of the files that setAside keeps.
const asideNames = "damaged-*.db"

// setAside gives the file another name (os.Rename), or a further one (os.Link), under which it is kept for people.
func (s *Spool) setAside(under func(from, to string) error) error {
	name := filepath.Join(s.dir, "damaged-"+time.Now().UTC().Format("20060102T150405.000000")+".db")
	if err := under(s.path(), name); err != nil {
		return err
	}
	s.log.Error("a damaged spool file is kept; move it away when it was looked at (callrelay_spool_damaged counts it until then)", "file", name)
	return nil
}

// readTree reads which items there are, in order, and the highest number ever given. Any sign of damage is an error.
func readTree(path string) (numbers []uint64, last uint64, err error) {
	err = safely(func() error {
		readOnly := options
		readOnly.ReadOnly = true
		db, err := bolt.Open(path, 0o600, &readOnly)
		if err != nil {
			return err
		}
		defer func() { _ = db.Close() }()
		return db.View(func(tx *bolt.Tx) error {
			b, m := tx.Bucket(items), tx.Bucket(meta)
			if b == nil || m == nil {
				return errors.New("a bucket is missing")
			}
			last = b.Sequence()
			before := uint64(0)
			if err := b.ForEach(func(k, v []byte) error {
				if len(k) != 8 || binary.BigEndian.Uint64(k) <= before {
					return errors.New("the numbers are not in order")
				}
				before = binary.BigEndian.Uint64(k)
				if _, err := parseFrame(v, before); err != nil {
					return fmt.Errorf("item %d: %w", before, err)
				}
				numbers = append(numbers, before)
				return nil
			}); err != nil {
				return err
			}
			if n := m.Get(total); len(n) != 8 || binary.BigEndian.Uint64(n) != uint64(len(numbers)) || before > last {
				return fmt.Errorf("%d items are there, %x were written", len(numbers), n)
			}
			return nil
		})
	})
	return numbers, last, err
}

// scan finds every intact frame, whatever the tree says. It reads, where bbolt maps: a page that the disk cannot give, or a hole
// that a full one has no memory for, would end the process.
func scan(file io.ReaderAt, size int64) map[uint64]frame {
	found := map[uint64]frame{}
	window := make([]byte, 4<<20) // more than a frame
	for start := int64(0); start < size; {
		b := window[:min(int64(len(window)), size-start)]
		readAll(file, b, start)
		last, at := start+int64(len(b)) == size, 0
		for last || len(b)-at >= frameHead+maxFrame {
			i := bytes.Index(b[at:], magic)
			if i < 0 {
				at = len(b) - len(magic) + 1 // it can begin here
				break
			}
			if at += i; !last && len(b)-at < frameHead+maxFrame {
				break // it can end beyond what was read
			}
			f, err := readFrame(b[at:])
			if err != nil {
				at++
				continue
			}
			f.offset, f.data = start+int64(at), nil
			found[f.number] = f
			at += f.size
		}
		if last {
			break
		}
		start += int64(at)
	}
	return found
}

// readAll fills b from there. What cannot be read are zeros.
func readAll(file io.ReaderAt, b []byte, from int64) {
	if _, err := file.ReadAt(b, from); err == nil {
		return
	}
	const sector = 4096
	for at := 0; at < len(b); {
		end := min(len(b), at+sector-int((from+int64(at))%sector))
		if _, err := file.ReadAt(b[at:end], from+int64(at)); err != nil {
			clear(b[at:end])
		}
		at = end
	}
}
