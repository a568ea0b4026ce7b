package spool

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var wide = Limits{Bytes: 1 << 30, Items: 1 << 20}

func opened(t testing.TB, dir string, limits Limits) *Spool {
	t.Helper()
	s, err := Open(dir, limits, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func put(t testing.TB, s *Spool, call, data string) {
	t.Helper()
	if err := s.Append(context.Background(), call, time.Now(), []byte(data), 1); err != nil {
		t.Fatal(err)
	}
}

// drained takes everything out, in order.
func drained(s *Spool) (out []string) {
	for {
		item, ok := s.Next()
		if !ok {
			return out
		}
		out = append(out, string(item.Data))
		s.Done(item)
	}
}

func closed(t testing.TB, s *Spool) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// What was appended is there after a restart, in order within its call, until it is done.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	s := opened(t, dir, wide)
	for i := range 5 {
		put(t, s, "a", fmt.Sprint("a", i))
		put(t, s, "b", fmt.Sprint("b", i))
	}
	item, _ := s.Next()
	s.Done(item)
	put(t, s, "c", "c0")
	closed(t, s)
	if err := s.Append(context.Background(), "a", time.Now(), nil, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("append after Close: %v", err)
	}

	s = opened(t, dir, wide)
	if st := s.Stats(); st.Items != 10 || s.Damaged() != 0 {
		t.Errorf("%+v", st)
	}
	if !s.Holds("a") || s.Holds("x") {
		t.Error("Holds")
	}
	got := strings.Join(drained(s), " ")
	if want := "b0 c0 a1 b1 a2 b2 a3 b3 a4 b4"; len(strings.Fields(got)) != 10 || !ordered(got, "a") || !ordered(got, "b") {
		t.Errorf("got %s, want as in %s", got, want)
	}
	if s.Holds("a") || !s.Empty() {
		t.Error("it is not empty")
	}
	closed(t, s)
	if left, _ := filepath.Glob(filepath.Join(dir, "*.db")); len(left) != 0 {
		t.Errorf("an empty spool leaves %v", left)
	}
}

func ordered(got, call string) bool {
	last := ""
	for _, x := range strings.Fields(got) {
		if strings.HasPrefix(x, call) {
			if x <= last {
				return false
			}
			last = x
		}
	}
	return true
}

// Order per call, with any mix of appends, items put back, and restarts; nothing is lost, and nothing that was done comes
// again.
func TestAnyInterleaving(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "spool")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		var s *Spool
		start := func() {
			if s, err = Open(dir, wide, slog.New(slog.DiscardHandler)); err != nil {
				t.Fatal(err)
			}
		}
		start()
		defer func() { _ = s.Close() }()
		want := map[string][]string{}
		left := 0
		var taken []Item
		for i := range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"append", "append", "take", "done", "back", "again", "restart"}).Draw(t, "step") {
			case "append":
				call := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "call")
				if err := s.Append(context.Background(), call, time.Now(), fmt.Append(nil, i), 1); err != nil {
					t.Fatal(err)
				}
				want[call] = append(want[call], fmt.Sprint(i))
				left++
			case "take":
				item, ok := s.Next()
				if !ok {
					continue
				}
				for _, other := range taken {
					if other.Call == item.Call {
						t.Fatalf("two items of %s at once", item.Call)
					}
				}
				if string(item.Data) != want[item.Call][0] {
					t.Fatalf("%s of %s, want %s", item.Data, item.Call, want[item.Call][0])
				}
				taken = append(taken, item)
			case "done":
				if len(taken) > 0 {
					s.Done(taken[0])
					want[taken[0].Call] = want[taken[0].Call][1:]
					taken = taken[1:]
					left--
				}
			case "back":
				if len(taken) > 0 {
					s.Back(taken[0])
					taken = taken[1:]
				}
			case "again":
				s.Again()
			case "restart":
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				taken = nil
				start()
			}
			for call := range want {
				if s.Holds(call) != (len(want[call]) > 0) {
					t.Fatalf("Holds(%s) with %v", call, want[call])
				}
			}
			if st := s.Stats(); st.Items != left || (st.Bytes == 0) != (left == 0) {
				t.Fatalf("%+v, want %d items", st, left)
			}
		}
	})
}

func TestLimits(t *testing.T) {
	s := opened(t, t.TempDir(), Limits{Bytes: 1 << 20, Items: 4})
	put(t, s, "a", "1")
	put(t, s, "a", "2")
	ctx := context.Background()
	if err := s.Append(ctx, "a", time.Now(), nil, .5); !errors.Is(err, ErrFull) {
		t.Errorf("beyond half: %v", err)
	}
	put(t, s, "a", "3")
	put(t, s, "b", "4")
	if err := s.Append(ctx, "a", time.Now(), nil, 1); !errors.Is(err, ErrFull) {
		t.Errorf("a fifth item: %v", err)
	}
	item, _ := s.Next()
	s.Done(item)
	if err := s.Append(ctx, "a", time.Now(), make([]byte, 1<<20), 1); err == nil || errors.Is(err, ErrFull) {
		t.Errorf("a megabyte in one item: %v", err)
	}
	put(t, s, "b", strings.Repeat("x", 1<<19))
	item, _ = s.Next()
	s.Done(item)
	if err := s.Append(ctx, "b", time.Now(), make([]byte, 1<<19), 1); !errors.Is(err, ErrFull) {
		t.Errorf("a megabyte in two items: %v", err)
	}
	put(t, s, "a", "5")
}

func TestOneProcessPerDirectory(t *testing.T) {
	dir := t.TempDir()
	opened(t, dir, wide)
	if _, err := Open(dir, wide, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "in use by another ingress") ||
		!strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("got %v", err)
	}
}

// Each damage: what is intact comes out, once and in order, and what happened is visible.
func TestDamage(t *testing.T) {
	const n = 200
	page := int64(os.Getpagesize())
	flip := func(at func(b []byte) int64) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[at(b)] ^= 0x55
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	// bbolt falls back to the other meta page without a word, which is the file before the last transaction.
	newest := func(b []byte) int64 {
		const txid = 64
		if binary.LittleEndian.Uint64(b[page+txid:]) > binary.LittleEndian.Uint64(b[txid:]) {
			return page + 20
		}
		return 20
	}
	fixed := func(at int64) func([]byte) int64 { return func([]byte) int64 { return at } }
	damages := map[string]struct {
		do   func(*testing.T, string)
		lost int // at most
		all  bool
	}{
		"a byte of an item":           {flip(func(b []byte) int64 { return int64(strings.LastIndex(string(b), "item 77 ")) + 4 }), 1, false},
		"a byte of a frame's length":  {flip(func(b []byte) int64 { return int64(strings.LastIndex(string(b), string(magic))) + 15 }), 1, false},
		"the last transaction":        {flip(newest), 0, false},
		"the first meta page":         {flip(fixed(20)), 0, false},
		"the second meta page":        {flip(fixed(page + 20)), 0, false},
		"both meta pages":             {func(t *testing.T, p string) { flip(fixed(20))(t, p); flip(fixed(page+20))(t, p) }, 0, false},
		"a page's kind":               {flip(func(b []byte) int64 { return int64(strings.LastIndex(string(b), "item 77 "))/page*page + 8 }), 1, false},
		"a page's count":              {flip(func(b []byte) int64 { return int64(strings.LastIndex(string(b), "item 77 "))/page*page + 10 }), 1, false},
		"the end is missing":          {func(t *testing.T, p string) { truncate(t, p, .5) }, n, false},
		"nothing of it is there":      {func(t *testing.T, p string) { truncate(t, p, 0) }, n, false},
		"it is another kind of thing": {func(t *testing.T, p string) { _ = os.WriteFile(p, []byte("hello"), 0o600) }, n, false},
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := opened(t, dir, wide)
			fill(t, s, n)
			closed(t, s)
			damage.do(t, filepath.Join(dir, "spool.db"))

			s = opened(t, dir, wide)
			got := drained(s)
			check(t, got, n, damage.lost)
			if aside, _ := filepath.Glob(filepath.Join(dir, "damaged-*.db")); len(got) < n && (len(aside) == 0 || s.Damaged() == 0) {
				t.Errorf("%d of %d came out, and nothing says so: %v %+v", len(got), n, aside, s.Stats())
			}
			put(t, s, "new", "item new")
			closed(t, s)
			if s = opened(t, dir, wide); len(drained(s)) != 1 {
				t.Error("it does not work on")
			}
		})
	}
}

// A flipped byte anywhere costs at most the item that it is in.
func TestAnyByte(t *testing.T) {
	const n = 60
	dir := t.TempDir()
	s := opened(t, dir, wide)
	fill(t, s, n)
	closed(t, s)
	whole, err := os.ReadFile(filepath.Join(dir, "spool.db"))
	if err != nil {
		t.Fatal(err)
	}
	used := strings.LastIndex(string(whole), string(magic)) + 200
	for range 60 {
		at := rand.IntN(used)
		dir := t.TempDir()
		b := append([]byte(nil), whole...)
		b[at] ^= byte(1 + rand.IntN(255))
		if err := os.WriteFile(filepath.Join(dir, "spool.db"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		s := opened(t, dir, wide)
		got := drained(s)
		if check(t, got, n, 1); len(got) < n && s.Damaged() == 0 {
			t.Errorf("byte %d: lost without a word", at)
		}
		closed(t, s)
	}
}

// An item that rots while the process runs is set aside; the others come out.
func TestRotWhileRunning(t *testing.T) {
	dir := t.TempDir()
	s := opened(t, dir, wide)
	fill(t, s, 20)
	f, err := os.OpenFile(filepath.Join(dir, "spool.db"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, _ := os.ReadFile(f.Name())
	for at := 0; ; at++ { // every copy: any of them can be the one that counts
		i := strings.Index(string(b[at:]), "item 7 ")
		if i < 0 {
			break
		}
		at += i
		if _, err := f.WriteAt([]byte("X"), int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if got := drained(s); len(got) != 19 {
		t.Errorf("%d came out", len(got))
	}
	if n := s.Damaged(); n != 1 {
		t.Errorf("%d are damaged", n)
	}
	closed(t, s) // the empty file was ended
	aside, _ := filepath.Glob(filepath.Join(dir, "damaged-*.db"))
	if len(aside) != 1 {
		t.Fatal("the file was not kept")
	}
	if n := s.Damaged(); n != 1 {
		t.Errorf("%d are damaged, the item and its file", n)
	}
	if err := os.Remove(aside[0]); err != nil {
		t.Fatal(err)
	}
	if n := s.Damaged(); n != 0 {
		t.Errorf("%d are damaged after the file was taken away", n)
	}
}

// A disk without room for a second file does not keep the first one from being drained, and used.
func TestNoRoomToBeginAnew(t *testing.T) {
	dir := t.TempDir()
	s := opened(t, dir, wide)
	fill(t, s, 200)
	for range 50 {
		put(t, s, "last", strings.Repeat("x", 1000))
	}
	for { // they are done, but lie in the file
		item, ok := s.Next()
		if !ok {
			break
		}
		if item.Call == "last" {
			s.Done(item)
		} else {
			s.Back(item)
		}
	}
	closed(t, s)
	// What a transaction leaves that failed because the disk was full.
	path := filepath.Join(dir, "spool.db")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	whole = append(whole, newFrame(300, stamp{}, "failed", []byte("item that was refused"))...)
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	options.OpenFile = func(name string, flag int, mode os.FileMode) (*os.File, error) {
		if filepath.Base(name) == "new.db" {
			return nil, syscall.ENOSPC
		}
		return os.OpenFile(name, flag, mode)
	}
	t.Cleanup(func() { options.OpenFile = nil })
	s = opened(t, dir, wide)
	if st := s.Stats(); st.Items != 200 || s.Damaged() != 0 {
		t.Errorf("%+v", st)
	}
	put(t, s, "new", "item new")
	closed(t, s)

	s = opened(t, dir, wide)
	if st := s.Stats(); st.Items != 201 || s.Damaged() != 0 {
		t.Errorf("%+v", st)
	}
	got := drained(s)
	if i := slices.Index(got, "item new"); i >= 0 {
		got = slices.Delete(got, i, i+1)
	} else {
		t.Error("what was appended did not come out")
	}
	check(t, got, 200, 0)
	closed(t, s)
	if left, _ := filepath.Glob(filepath.Join(dir, "*.db")); len(left) != 0 {
		t.Errorf("an empty spool leaves %v", left)
	}
}

// A damaged file that the disk has no room to begin anew: what is intact comes out, again after each restart because nothing can
// be written down; nothing is written behind the damage; and with room it goes on with what was not done.
func TestDamagedAndNoRoom(t *testing.T) {
	const n = 200
	dir := t.TempDir()
	path := filepath.Join(dir, "spool.db")
	s := opened(t, dir, wide)
	fill(t, s, n)
	closed(t, s)
	damaged, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; ; at++ { // every copy of it
		i := strings.Index(string(damaged[at:]), "item 77 ")
		if i < 0 {
			break
		}
		at += i
		damaged[at+5] = 'X'
	}
	if err := os.WriteFile(path, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	var full atomic.Bool
	full.Store(true)
	options.OpenFile = func(name string, flag int, mode os.FileMode) (*os.File, error) {
		if filepath.Base(name) == "new.db" && full.Load() {
			return nil, syscall.ENOSPC
		}
		return os.OpenFile(name, flag, mode)
	}
	t.Cleanup(func() { options.OpenFile = nil })

	for range 2 { // a restart
		s = opened(t, dir, wide)
		if !s.Broken() || s.Stats().Items != n-1 || s.Damaged() != 1 {
			t.Fatalf("broken %t, %+v, %d damaged", s.Broken(), s.Stats(), s.Damaged())
		}
		if err := s.Append(context.Background(), "new", time.Now(), []byte("item new"), 1); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("an append without room: %v", err)
		}
		var got []string
		for range n / 2 {
			item, ok := s.Next()
			if !ok {
				t.Fatal("nothing comes out")
			}
			got = append(got, string(item.Data))
			s.Done(item)
		}
		check(t, got, n/2, 0)
		closed(t, s)
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, damaged) {
			t.Fatalf("the damaged file was changed: %v", err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*.db")); len(left) != 1 {
			t.Errorf("there are %v", left)
		}
	}

	s = opened(t, dir, wide)
	first, _ := s.Next() // under way from here on
	var of int
	if _, err := fmt.Sscanf(first.Call, "call%d", &of); err != nil {
		t.Fatal(err)
	}
	for range 9 {
		item, _ := s.Next()
		s.Done(item)
	}
	full.Store(false)
	mended(t, s)
	put(t, s, first.Call, fmt.Sprint("item ", n+of, " of many ", strings.Repeat("x", 100)))
	if n := s.Damaged(); n != 1 {
		t.Errorf("with room: %d damaged", n)
	}
	aside, _ := filepath.Glob(filepath.Join(dir, "damaged-*.db"))
	if len(aside) != 1 {
		t.Fatalf("set aside: %v", aside)
	}
	if b, err := os.ReadFile(aside[0]); err != nil || !bytes.Equal(b, damaged) {
		t.Errorf("it was changed before: %v", err)
	}
	closed(t, s)
	s = opened(t, dir, wide)
	got := drained(s)
	if check(t, got, n+1, 10); len(got) != n+1-10 { // of these 9 were done, and one was damaged
		t.Errorf("%d came out", len(got))
	}
	closed(t, s)
	if left, _ := filepath.Glob(filepath.Join(dir, "*.db")); !slices.Equal(left, aside) {
		t.Errorf("an empty spool leaves %v", left)
	}

	// It is drained before there is room.
	if err := os.Rename(aside[0], path); err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	s = opened(t, dir, wide)
	check(t, drained(s), n, 1)
	mended(t, s)
	closed(t, s)
	if aside, _ = filepath.Glob(filepath.Join(dir, "*.db")); len(aside) != 1 || filepath.Base(aside[0]) == "spool.db" {
		t.Errorf("there are %v", aside)
	}

	// There is room again, and nothing else happens.
	if err := os.Rename(aside[0], path); err != nil {
		t.Fatal(err)
	}
	s = opened(t, dir, wide)
	if !s.Broken() {
		t.Error("it is not broken")
	}
	full.Store(false)
	mended(t, s)
	check(t, drained(s), n, 1)
}

// mended waits until appends are possible again.
func mended(t *testing.T, s *Spool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(10 * time.Second); s.Broken(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the damaged file is still in use")
		}
	}
}

// unreadable is a file of which one page cannot be read.
type unreadable struct {
	*bytes.Reader
	page int64
}

func (u unreadable) ReadAt(b []byte, at int64) (int, error) {
	if at < (u.page+1)*4096 && at+int64(len(b)) > u.page*4096 {
		return 0, syscall.EIO
	}
	return u.Reader.ReadAt(b, at)
}

// Frames of any size are found wherever they lie, except those of a page that the disk does not give.
func TestScan(t *testing.T) {
	const page = 1500 // in the second window
	var b []byte
	want := map[uint64]bool{}
	for number := uint64(1); len(b) < 40<<20; number++ {
		b = append(b, make([]byte, rand.IntN(3)*rand.IntN(5000))...)
		if number%40 == 0 {
			b = append(b, make([]byte, rand.IntN(4<<20))...)
		}
		size := rand.IntN(2000)
		if number%50 == 0 {
			size = rand.IntN(maxFrame - frameFields)
		}
		f := newFrame(number, stamp{}, "", bytes.Repeat(magic[:7], size/7))
		if begin := len(b); begin+len(f) <= page*4096 || begin >= (page+1)*4096 {
			want[number] = true
		}
		b = append(b, f...)
	}
	found := scan(unreadable{bytes.NewReader(b), page}, int64(len(b)))
	for number := range want {
		f, ok := found[number]
		if !ok {
			t.Fatalf("frame %d is not found", number)
		}
		if _, err := parseFrame(b[f.offset:f.offset+int64(f.size)], number); err != nil {
			t.Fatalf("frame %d is found elsewhere: %v", number, err)
		}
	}
	if len(found) != len(want) {
		t.Errorf("%d found, want %d", len(found), len(want))
	}
}

func truncate(t *testing.T, path string, part float64) {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	used := strings.LastIndex(string(b), string(magic))
	if err := os.Truncate(path, int64(float64(used)*part)); err != nil {
		t.Fatal(err)
	}
}

// fill appends n items of ten calls, some at a time, as under load.
func fill(t *testing.T, s *Spool, n int) {
	t.Helper()
	for i := 0; i < n; i += 10 {
		var wg sync.WaitGroup
		for j := i; j < min(n, i+10); j++ {
			wg.Go(func() {
				put(t, s, fmt.Sprint("call", j%10), fmt.Sprintf("item %d of many %s", j, strings.Repeat("x", 100)))
			})
		}
		wg.Wait()
	}
}

// check that each came once, in order within its call, and at most so many did not.
func check(t *testing.T, got []string, n, lost int) {
	t.Helper()
	seen, last := map[int]bool{}, map[int]int{}
	for _, x := range got {
		var i int
		if _, err := fmt.Sscanf(x, "item %d of many", &i); err != nil || len(x) < 100 {
			t.Fatalf("came out wrong: %q", x)
		}
		if seen[i] || last[i%10] > i {
			t.Errorf("item %d came again or too late", i)
		}
		seen[i], last[i%10] = true, i
	}
	if len(got) < n-lost {
		t.Errorf("%d of %d came out, want at most %d lost", len(got), n, lost)
	}
}

// No jump of the wall clock changes an age, except over a restart of the machine.
func TestAge(t *testing.T) {
	boot1, boot2 := [16]byte{1}, [16]byte{2}
	hour := int64(time.Hour)
	for _, c := range []struct {
		name         string
		earlier, now stamp
		want         time.Duration
	}{
		{"time passes", stamp{5 * hour, hour, boot1}, stamp{7 * hour, 3 * hour, boot1}, 2 * time.Hour},
		{"the wall clock jumped forward", stamp{5 * hour, hour, boot1}, stamp{99 * hour, 3 * hour, boot1}, 2 * time.Hour},
		{"the wall clock jumped back", stamp{5 * hour, hour, boot1}, stamp{hour, 3 * hour, boot1}, 2 * time.Hour},
		{"the machine was restarted", stamp{5 * hour, hour, boot1}, stamp{9 * hour, hour, boot2}, 4 * time.Hour},
		{"restarted, and the clock is behind", stamp{5 * hour, hour, boot1}, stamp{hour, hour / 2, boot2}, time.Hour / 2},
		{"no boot id", stamp{5 * hour, hour, [16]byte{}}, stamp{6 * hour, 9 * hour, [16]byte{}}, time.Hour},
		{"no boot id, the clock jumped back", stamp{wall: 5 * hour}, stamp{wall: hour}, 0},
	} {
		if got := c.now.since(c.earlier); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	dir := t.TempDir()
	s := opened(t, dir, wide)
	if err := s.Append(context.Background(), "a", time.Now().Add(-time.Minute), nil, 1); err != nil {
		t.Fatal(err)
	}
	closed(t, s)
	s = opened(t, dir, wide)
	if item, ok := s.Next(); !ok || item.Age < time.Minute || item.Age > 2*time.Minute {
		t.Errorf("after a restart: %v", item.Age)
	}
}

// Appends that wait together share a sync.
func BenchmarkAppend(b *testing.B) {
	s := opened(b, b.TempDir(), wide)
	data := make([]byte, 600)
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := s.Append(context.Background(), fmt.Sprint(rand.Int()), time.Now(), data, 1); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(s.Stats().Bytes)/float64(b.N), "bytes/item")
	if info, err := os.Stat(filepath.Join(s.dir, "spool.db")); err == nil {
		b.ReportMetric(float64(info.Size())/float64(b.N), "file-bytes/item")
	}
}
