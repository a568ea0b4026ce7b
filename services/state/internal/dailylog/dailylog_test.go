package dailylog

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"callrelay/callback"
	statev1 "callrelay/gen/callrelay/state/v1"
)

// bench is a writer in a bubble of synctest, whose clock begins at 2000-01-01 09:00 in Tokyo.
type bench struct {
	*Writer
	t    *testing.T
	dir  string
	logs *logs
	stop func() // ends Run and waits for it
}

// logs is what was logged.
type logs struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// idle makes a writer that does not run yet.
func idle(t *testing.T, dir string) *bench {
	t.Helper()
	b := &bench{t: t, dir: dir, logs: &logs{}}
	w, err := New(Config{Dir: dir, RetentionDays: 30}, slog.New(slog.NewTextHandler(b.logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	b.Writer = w
	return b
}

func (b *bench) run() *bench {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.Run(ctx)
	}()
	b.stop = func() {
		cancel()
		<-done
	}
	return b
}

// running runs a test with a writer that runs.
func running(t *testing.T, test func(b *bench)) {
	dir := filepath.Join(t.TempDir(), "logs")
	synctest.Test(t, func(t *testing.T) {
		b := idle(t, dir).run()
		defer b.stop()
		test(b)
	})
}

// read returns a file's lines.
func (b *bench) read(name string) []string {
	b.t.Helper()
	content, err := os.ReadFile(filepath.Join(b.dir, name))
	if err != nil {
		b.t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
}

// names returns the files there are.
func (b *bench) names() []string {
	b.t.Helper()
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		b.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (b *bench) wantFiles(want ...string) {
	b.t.Helper()
	if got := b.names(); !slices.Equal(got, want) {
		b.t.Errorf("files %v, want %v", got, want)
	}
}

// pass lets time pass, and everything happen that is due by then.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// note commits a note; it goes to general.
func (b *bench) note(text string) { b.Committed(commit(nil, text)) }

func TestNilDoesNothing(t *testing.T) {
	var w *Writer
	w.Committed(commit(nil, "note"))
	w.Completed(result(&statev1.Attempt{}), 1)
	w.Run(t.Context())
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []Config{{}, {Dir: file}, {Dir: filepath.Join(file, "logs")}} {
		if _, err := New(cfg, slog.Default()); err == nil || !strings.Contains(err.Error(), "daily files") || !strings.Contains(err.Error(), cfg.Dir) {
			t.Errorf("%+v: error %v", cfg, err)
		}
	}
	if _, err := New(Config{Dir: t.TempDir(), RetentionDays: -1}, slog.Default()); err == nil {
		t.Error("-1 days are accepted")
	}
	dir := filepath.Join(t.TempDir(), "a", "b")
	if _, err := New(Config{Dir: dir}, slog.Default()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("New leaves %v, %v", left, err)
	}
}

// TestGoldenFiles: every kind of request to its file, in order, flushed as soon as nothing waits.
func TestGoldenFiles(t *testing.T) {
	running(t, func(b *bench) {
		want := map[string][]string{}
		for _, test := range golden {
			if test.event.item != nil {
				b.Committed(test.event.item)
			} else {
				b.Completed(test.event.result, test.event.atMS)
			}
			name := kindNames[test.file] + "-2026-11-20.log"
			if want[name] == nil {
				want[name] = []string{"==== 2026-11-20 ===="}
			}
			for _, line := range test.want {
				want[name] = append(want[name], "2026-11-20 20:24:24 | [R1] | "+line)
			}
		}
		synctest.Wait()
		b.wantFiles("call_end-2026-11-20.log", "call_start-2026-11-20.log", "general-2026-11-20.log", "not_answer-2026-11-20.log")
		for name, lines := range want {
			if got := b.read(name); !slices.Equal(got, lines) {
				t.Errorf("%s\n got %s\nwant %s", name, strings.Join(got, "\n     "), strings.Join(lines, "\n     "))
			}
		}
	})
}

func TestHandedBackIsNoLine(t *testing.T) {
	running(t, func(b *bench) {
		b.Completed(&statev1.LeaseResult{Result: &statev1.LeaseResult_Retry{Retry: &statev1.RetryLater{Uncounted: true}}}, evening)
		b.Committed(&statev1.CommitItem{})
		synctest.Wait()
		b.wantFiles()
	})
}

// TestMidnightInTokyo: the day is that of the entry, also for one that comes a little late.
func TestMidnightInTokyo(t *testing.T) {
	running(t, func(b *bench) {
		midnight := time.Date(2026, 11, 20, 15, 0, 0, 0, time.UTC).UnixMilli()
		for _, at := range []int64{midnight - 1, midnight, midnight - 1, midnight + 1000} {
			b.Completed(result(&statev1.Attempt{Endpoint: "createCallEnd", Next: "send_disabled"}), at)
		}
		synctest.Wait()
		const rest = " | [R1] | payload_prepared | Sending disabled | callId=193416 | delivery=0 | url= | send_enabled=0"
		for day, want := range map[string][]string{
			"2026-11-20": {"==== 2026-11-20 ====", "2026-11-20 23:59:59" + rest, "2026-11-20 23:59:59" + rest},
			"2026-11-21": {"==== 2026-11-21 ====", "2026-11-21 00:00:00" + rest, "2026-11-21 00:00:01" + rest},
		} {
			if got := b.read("call_end-" + day + ".log"); !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		}
	})
}

func TestRetention(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := idle(t, dir)
		for _, name := range []string{
			"call_end-1999-12-01.log", "call_start-1999-12-01.log", "general-1999-12-01.log", "not_answer-0001-01-01.log", // too old
			"call_end-1999-12-02.log", "not_answer-1999-12-03.log", "general-2000-01-01.log", // kept
			"access-1999-12-01.log", "call_end-1999-12-01.log.gz", "call_end-1999-11-31.log", "my-call_end-1999-12-01.log", // not ours
		} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("x\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Mkdir(filepath.Join(dir, "general-1999-01-01.log"), 0o700); err != nil {
			t.Fatal(err)
		}
		foreign := []string{"access-1999-12-01.log", "call_end-1999-11-31.log", "call_end-1999-12-01.log.gz", "general-1999-01-01.log", "my-call_end-1999-12-01.log"}
		kept := func(names ...string) {
			t.Helper()
			synctest.Wait()
			want := append(names, foreign...)
			slices.Sort(want)
			b.wantFiles(want...)
		}
		b.run()
		defer b.stop()
		kept("call_end-1999-12-02.log", "not_answer-1999-12-03.log", "general-2000-01-01.log")
		pass(15*time.Hour - time.Second) // one second before midnight in Tokyo
		kept("call_end-1999-12-02.log", "not_answer-1999-12-03.log", "general-2000-01-01.log")
		pass(time.Minute)
		kept("not_answer-1999-12-03.log", "general-2000-01-01.log")
		b.Completed(result(&statev1.Attempt{}), time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli())
		kept("not_answer-1999-12-03.log", "general-2000-01-01.log", "general-2099-01-01.log") // a wrong clock deletes nothing
	})
}

// TestFull: nobody waits, and what is left out is said once a minute, in the log and in general.
func TestFull(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := idle(t, dir)
		for i := range queueSize + 3 {
			b.note(fmt.Sprintf("note %d", i))
		}
		if got := strings.Count(b.logs.String(), "level=WARN"); got != 1 || !strings.Contains(b.logs.String(), "lines are left out") {
			t.Errorf("%d warnings, want 1: %s", got, b.logs)
		}
		pass(time.Minute)
		b.note("one more")
		if got := b.logs.String(); strings.Count(got, "level=WARN") != 2 || !strings.Contains(got, "commits_and_results_since_start=4") {
			t.Errorf("want a second warning: %s", got)
		}
		b.run()
		defer b.stop()
		synctest.Wait()
		if n := len(b.read("general-2026-11-20.log")); n != queueSize+1 {
			t.Errorf("%d lines, want %d and the day", n, queueSize)
		}
		want := []string{"==== 2000-01-01 ====", "2000-01-01 09:01:00 | [-] | daily_files | Lines are missing in these files; the journal has them | dropped=4 | lost_lines=0"}
		if got := b.read("general-2000-01-01.log"); !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		}
		pass(time.Hour)
		if got := b.read("general-2000-01-01.log"); len(got) != 2 {
			t.Errorf("said again: %q", got)
		}
	})
}

// TestRemoved: what is written after somebody removed a file or the whole directory is in a new one.
func TestRemoved(t *testing.T) {
	running(t, func(b *bench) {
		b.note("first")
		synctest.Wait()
		for _, victim := range []string{b.dir, filepath.Join(b.dir, "general-2026-11-20.log")} {
			if err := os.RemoveAll(victim); err != nil {
				t.Fatal(err)
			}
			b.note("again")
			synctest.Wait()
			want := []string{"==== 2026-11-20 ====", "2026-11-20 20:24:24 | [R1] | note | again | callId=193416"}
			if got := b.read("general-2026-11-20.log"); !slices.Equal(got, want) {
				t.Errorf("got %q", got)
			}
		}
		if b.logs.String() != "" {
			t.Errorf("log: %s", b.logs)
		}
	})
}

// TestUnwritable: the directory is gone and something else has its place. It is said once a minute; afterwards the files
// go on and say how much they miss.
func TestUnwritable(t *testing.T) {
	running(t, func(b *bench) {
		b.note("first")
		synctest.Wait()
		if err := os.RemoveAll(b.dir); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(b.dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			b.note("lost")
			synctest.Wait()
		}
		if got := b.logs.String(); strings.Count(got, "level=ERROR") != 1 || !strings.Contains(got, "lost_lines=1") {
			t.Errorf("want one error: %s", got)
		}
		pass(time.Minute + time.Second)
		if got := b.logs.String(); strings.Count(got, "level=ERROR") != 2 || !strings.Contains(got, "lost_lines=3") {
			t.Errorf("want a second error: %s", got)
		}
		if err := os.Remove(b.dir); err != nil {
			t.Fatal(err)
		}
		b.note("back")
		pass(time.Minute)
		if got := b.read("general-2026-11-20.log"); len(got) != 2 || !strings.Contains(got[1], "back") {
			t.Errorf("got %q", got)
		}
		if got := b.read("general-2000-01-01.log"); len(got) != 2 || !strings.HasSuffix(got[1], "| dropped=0 | lost_lines=3") {
			t.Errorf("got %q", got)
		}
	})
}

// TestFullDisk: one file cannot be written, the others can.
func TestFullDisk(t *testing.T) {
	running(t, func(b *bench) {
		full := filepath.Join(b.dir, "call_end-2026-11-20.log")
		if err := os.Symlink("/dev/full", full); err != nil {
			t.Fatal(err)
		}
		b.Committed(commit(nil, decided("1", "createCallEnd"), "a note"))
		synctest.Wait()
		if got := b.logs.String(); !strings.Contains(got, "lost_lines=2") || !strings.Contains(got, "no space left on device") {
			t.Errorf("log: %s", got)
		}
		if got := b.read("general-2000-01-01.log"); len(got) != 2 || !strings.HasSuffix(got[1], "| dropped=0 | lost_lines=2") {
			t.Errorf("got %q", got)
		}
		if err := os.Remove(full); err != nil {
			t.Fatal(err)
		}
		b.Committed(commit(nil, decided("1", "createCallEnd")))
		synctest.Wait()
		if got := b.read("call_end-2026-11-20.log"); len(got) != 2 {
			t.Errorf("got %q", got)
		}
	})
}

// TestCutLine: a line that a full disk or a crash cut off ends before the next one begins.
func TestCutLine(t *testing.T) {
	running(t, func(b *bench) {
		if err := os.WriteFile(filepath.Join(b.dir, "general-2026-11-20.log"), []byte("==== 2026-11-20 ====\n2026-11-20 20:2"), 0o600); err != nil {
			t.Fatal(err)
		}
		b.note("next")
		synctest.Wait()
		if got := b.read("general-2026-11-20.log"); len(got) != 3 || got[1] != "2026-11-20 20:2" || !strings.Contains(got[2], "next") {
			t.Errorf("got %q", got)
		}
	})
}

// TestDrains: what was handed over before the end is written, however much it is.
func TestDrains(t *testing.T) {
	b := idle(t, t.TempDir())
	for i := range queueSize {
		b.note(fmt.Sprintf("note %d", i))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	b.Run(ctx)
	got := b.read("general-2026-11-20.log")
	if len(got) != queueSize+1 || !strings.Contains(got[queueSize], fmt.Sprintf("note %d |", queueSize-1)) {
		t.Errorf("%d lines, the last is %q", len(got), got[len(got)-1])
	}
}

// TestManyHands: callers at the same time, for the race detector.
func TestManyHands(t *testing.T) {
	running(t, func(b *bench) {
		for range 50 {
			go func() {
				for range 20 {
					b.note("from many")
					b.Completed(result(&statev1.Attempt{Next: "send_disabled"}), evening)
				}
			}()
		}
		synctest.Wait()
		if n := len(b.read("general-2026-11-20.log")); n != 1+2*50*20 {
			t.Errorf("%d lines", n)
		}
	})
}

// TestUnreadable: neither bytes that are no journal nor a panic stop the writer.
func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := idle(t, dir)
		tell := b.tell
		b.tell = func(e event) ([]line, error) {
			if e.result != nil {
				panic("broken")
			}
			return tell(e)
		}
		b.Committed(&statev1.CommitItem{Journal: []byte{0xff}})
		b.Completed(result(&statev1.Attempt{}), evening)
		b.note("after it")
		b.run()
		defer b.stop()
		synctest.Wait()
		if got := b.logs.String(); !strings.Contains(got, "lost_lines=2") || !strings.Contains(got, "panic: broken") {
			t.Errorf("log: %s", got)
		}
		if got := b.read("general-2026-11-20.log"); len(got) != 2 || !strings.Contains(got[1], "after it") {
			t.Errorf("got %q", got)
		}
	})
}

// BenchmarkCommitted is what a commit costs its caller.
func BenchmarkCommitted(b *testing.B) {
	w, err := New(Config{Dir: b.TempDir(), Zone: callback.DefaultZone()}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	item := golden[0].event.item
	b.Run("queued", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			w.Committed(item)
			<-w.queue
		}
	})
	b.Run("full", func(b *testing.B) {
		for len(w.queue) < queueSize {
			w.Committed(item)
		}
		b.ReportAllocs()
		for b.Loop() {
			w.Committed(item)
		}
	})
}

// BenchmarkWritten is the whole way of a call start to the disk, three lines, in batches as under load.
func BenchmarkWritten(b *testing.B) {
	w, err := New(Config{Dir: b.TempDir(), Zone: callback.DefaultZone()}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		w.Committed(golden[0].event.item)
		if len(w.queue) == 64 {
			w.drain()
		}
	}
}
