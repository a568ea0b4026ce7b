package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
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

// load indexes what an earlier process left.
func (s *Spool) load() error {
	memory, unmap, err := mapFile(s.path())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unmap()
	found := scan(memory)
	numbers, last, problem := readTree(s.path())
	usable, all, newest := problem == nil, numbers, last
	for number := range found {
		newest = max(newest, number)
	}
	if problem == nil && newest > last {
		problem = errors.New("the last transaction is missing")
		usable = metasIntact(memory) // then it failed, and nobody was told of it: so it is after the disk was full
	}
	if problem != nil {
		// Every frame that is intact, wherever it lies. Among them can be items that were removed already: who gets them again
		// knows their request ids. The file is begun anew whenever it is empty, so none is older than this spooling.
		all = slices.Sorted(maps.Keys(found))
	}
	kept, err := parseFrames(memory, found, all)
	if err != nil {
		return err
	}
	db, err := s.rewrite(kept, problem)
	if err == nil {
		s.db.Store(db)
		s.index(kept)
		return nil
	}
	if !usable {
		return err
	}
	// The disk may have no room for both. All of the tree has just been read without a sign of damage, so its file is used on.
	s.log.Error("the spool file cannot be written anew and is used as it is", "error", err, "kept", len(numbers), "dir", s.dir)
	if kept, err = parseFrames(memory, found, numbers); err != nil {
		return err
	}
	if err := safely(func() error { db, err = bolt.Open(s.path(), 0o600, &options); return err }); err != nil {
		return err
	}
	s.db.Store(db)
	s.index(kept)
	s.last = newest // what was removed can still lie in the file: its numbers are not given again
	return nil
}

func parseFrames(memory []byte, found map[uint64]int, numbers []uint64) ([]frame, error) {
	var out []frame
	for _, number := range numbers {
		f, err := parseFrame(memory[found[number]:], number)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

// metasIntact says whether both meta pages are as they were written: then the newer one is of the last transaction.
func metasIntact(memory []byte) bool {
	const begin, sum, end = 16, 72, 80 // of bbolt's meta in its page
	for _, page := range []int{0, os.Getpagesize()} {
		if len(memory) < page+end {
			return false
		}
		h := fnv.New64a()
		_, _ = h.Write(memory[page+begin : page+sum])
		if h.Sum64() != binary.NativeEndian.Uint64(memory[page+sum:]) {
			return false
		}
	}
	return true
}

// rewrite begins a new file with the items of the one before, so that bbolt never writes to pages that it has not made itself:
// on damaged ones it can crash. A file with a problem is set aside. After an error the old file is in its place.
func (s *Spool) rewrite(kept []frame, problem error) (*bolt.DB, error) {
	db, err := s.create()
	if err != nil {
		return nil, err
	}
	for batch := range slices.Chunk(kept, maxBatch) {
		var adds []*pending
		for _, f := range batch {
			adds = append(adds, &pending{entry: &entry{number: f.number}, frame: newFrame(f.number, f.at, f.call, f.data)})
		}
		if err = update(db, adds, nil); err != nil {
			break
		}
	}
	if err == nil && problem != nil {
		s.log.Error("the spool is damaged; what is readable is kept", "error", problem, "kept", len(kept), "dir", s.dir)
		err = s.setAside()
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

// setAside gives the file a further name, under which it is kept for people.
func (s *Spool) setAside() error {
	name := filepath.Join(s.dir, "damaged-"+time.Now().UTC().Format("20060102T150405.000000")+".db")
	s.log.Error("a damaged spool file is kept; move it away when it was looked at (callrelay_spool_damaged counts it until then)", "file", name)
	return os.Link(s.path(), name)
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

// mapFile maps the file, to be read only.
func mapFile(path string) (memory []byte, unmap func(), err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if info.Size() == 0 {
		return nil, func() {}, nil
	}
	if memory, err = unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_PRIVATE); err != nil {
		return nil, nil, err
	}
	return memory, func() { _ = unix.Munmap(memory) }, nil
}

// scan finds every intact frame, whatever the tree says: number -> offset.
func scan(memory []byte) map[uint64]int {
	found := map[uint64]int{}
	for at := 0; ; {
		i := bytes.Index(memory[at:], magic)
		if i < 0 {
			return found
		}
		at += i
		f, err := readFrame(memory[at:])
		if err != nil {
			at++
			continue
		}
		found[f.number] = at
		at += f.size
	}
}
