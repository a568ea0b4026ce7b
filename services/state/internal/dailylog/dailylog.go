// Package dailylog writes the daily files call_start-, call_end-, not_answer- and general-YYYY-MM-DD.log, the form in which
// people of the call centre read and grep what the relay does. It owns which file a fact goes to, how its line looks, the
// masking in it, rotation and retention.
//
// It does not own the facts: the files are a view of the journal. So nothing ever waits for them, and a line that a full
// disk or a slow one costs is counted and said, not kept.
package dailylog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"callrelay/callback"
	statev1 "callrelay/gen/callrelay/state/v1"
)

const (
	// queueSize is how many commits and results may wait to be written: some seconds of a busy relay.
	queueSize = 8192
	// troubleEvery is how often the same trouble is said.
	troubleEvery = time.Minute
)

// Config says where the files are and what they may show.
type Config struct {
	// Dir is LOG_DIR; it is made if it is not there.
	Dir string
	// RetentionDays is how many days before today are kept; 0 = all.
	RetentionDays int
	// Zone is that of dates and times; nil = Asia/Tokyo.
	Zone *time.Location
	// PII shows phone numbers.
	PII bool
}

// Writer writes the files. A nil one does nothing.
type Writer struct {
	cfg   Config
	log   *slog.Logger
	view  view
	tell  func(event) ([]line, error) // view.lines; a test puts a broken one in its place
	queue chan event

	dropped  atomic.Int64 // events that found the queue full, ever
	warnedMS atomic.Int64 // when that was last logged

	// The rest is Run's.
	files       [kinds]file
	saidDropped int64
	lost        int // lines that are not yet said to be lost
	lostErr     error
	said        time.Time
	cleaned     string // the day on which old files were deleted
}

// event is a commit, or a result with its time.
type event struct {
	item   *statev1.CommitItem
	result *statev1.LeaseResult
	atMS   int64
}

// New makes a writer that writes once Run runs. It fails when no files can be made in the directory.
func New(cfg Config, log *slog.Logger) (*Writer, error) {
	if cfg.RetentionDays < 0 {
		return nil, fmt.Errorf("daily files: %d days to keep them is less than 0", cfg.RetentionDays)
	}
	if cfg.Zone == nil {
		cfg.Zone = callback.DefaultZone()
	}
	if err := writable(cfg.Dir); err != nil {
		return nil, fmt.Errorf("daily files cannot be written to %q: %w", cfg.Dir, err)
	}
	w := &Writer{cfg: cfg, log: log, view: view{zone: cfg.Zone, pii: cfg.PII}, queue: make(chan event, queueSize)}
	w.tell = w.view.lines
	for k := range w.files {
		w.files[k].dir, w.files[k].kind = cfg.Dir, kind(k)
	}
	return w, nil
}

// writable makes the directory and a file in it, so that a wrong LOG_DIR is found at start and not with the first call.
func writable(dir string) error {
	if dir == "" {
		return errors.New("no directory is given")
	}
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".callrelay-*")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// Committed hands over a commit that was written. Nobody may change it afterwards.
func (w *Writer) Committed(item *statev1.CommitItem) {
	if w == nil || len(item.GetJournal()) == 0 {
		return
	}
	w.hand(event{item: item})
}

// Completed hands over a result that was accepted. Nobody may change it afterwards.
func (w *Writer) Completed(r *statev1.LeaseResult, atMS int64) {
	if w == nil || r.GetAttempt() == nil && r.GetEnd() == nil {
		return // handed back untouched: not worth a line, nor one in the journal
	}
	w.hand(event{result: r, atMS: atMS})
}

func (w *Writer) hand(e event) {
	select {
	case w.queue <- e:
		return
	default:
	}
	// Logged here and not by Run, which may itself be what hangs, in a write to a dead network disk.
	n, now := w.dropped.Add(1), time.Now().UnixMilli()
	if last := w.warnedMS.Load(); now-last >= troubleEvery.Milliseconds() && w.warnedMS.CompareAndSwap(last, now) {
		w.log.Warn("daily files: the disk is too slow, lines are left out; the journal has them", "commits_and_results_since_start", n)
	}
}

// Run writes what is handed over until ctx ends, and then what was handed over before. It is to end after everybody who
// calls Committed and Completed.
func (w *Writer) Run(ctx context.Context) {
	if w == nil {
		return
	}
	tick := time.NewTicker(troubleEvery)
	defer tick.Stop()
	for {
		w.clean()
		w.drain()
		w.report(time.Since(w.said) >= troubleEvery)
		select {
		case e := <-w.queue:
			w.write(e)
		case <-tick.C:
		case <-ctx.Done():
			for len(w.queue) > 0 {
				w.drain()
			}
			w.report(true)
			for k := range w.files {
				w.files[k].close()
			}
			return
		}
	}
}

// drain writes what waits. It ends after one full queue, so that without any pause in the work the rest of Run has its turn.
func (w *Writer) drain() {
	defer func() {
		for k := range w.files {
			w.flush(&w.files[k])
		}
	}()
	for range queueSize {
		select {
		case e := <-w.queue:
			w.write(e)
		default:
			return
		}
	}
}

func (w *Writer) write(e event) {
	defer func() {
		if p := recover(); p != nil { // a line is never worth a process
			w.lost, w.lostErr = w.lost+1, fmt.Errorf("panic: %v", p)
		}
	}()
	lines, err := w.tell(e)
	if err != nil {
		w.lost, w.lostErr = w.lost+1, err
	}
	for _, l := range lines {
		w.put(l)
	}
}

func (w *Writer) put(l line) {
	f := &w.files[l.file]
	if f.day != l.day {
		w.flush(f)
		f.close()
		f.day = l.day
	}
	f.buf = append(f.buf, l.text...)
	if len(f.buf) >= maxBuffer {
		w.flush(f)
	}
}

func (w *Writer) flush(f *file) {
	if lost, err := f.flush(); err != nil {
		w.lost, w.lostErr = w.lost+lost, err
	}
}

// report says what is missing in the files: in the log, and in general. The counts stand until general has them.
func (w *Writer) report(now bool) {
	dropped := w.dropped.Load() - w.saidDropped
	if !now || dropped == 0 && w.lost == 0 {
		return
	}
	w.said = time.Now()
	if w.lost > 0 {
		w.log.Error("daily files: lines could not be written; the journal has them", "lost_lines", w.lost, "error", w.lostErr)
	}
	lost, lostErr := w.lost, w.lostErr
	w.lost, w.lostErr = 0, nil
	w.put(w.view.line(head{at: w.said.UnixMilli(), file: general}, "daily_files", "Lines are missing in these files; the journal has them",
		text("dropped", strconv.FormatInt(dropped, 10)), text("lost_lines", strconv.Itoa(lost))))
	w.flush(&w.files[general])
	if w.lostErr != nil {
		w.lost, w.lostErr = lost, lostErr
		return
	}
	w.saidDropped += dropped
}

// clean deletes old files, once a day by this process's clock: the time of an entry, should it be wrong, must not delete
// anything.
func (w *Writer) clean() {
	today := time.Now().In(w.cfg.Zone)
	day := today.Format(time.DateOnly)
	if w.cfg.RetentionDays == 0 || day == w.cleaned {
		return
	}
	w.cleaned = day
	if err := removeOlder(w.cfg.Dir, today.AddDate(0, 0, -w.cfg.RetentionDays).Format(time.DateOnly)); err != nil {
		w.log.Warn("daily files: old ones could not be deleted", "error", err)
	}
}
