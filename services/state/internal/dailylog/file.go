package dailylog

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

const (
	// maxBuffer is from where on a file is written without waiting for a pause.
	maxBuffer = 64 << 10

	// Readable by the owner and its group only: the files tell who was called.
	dirMode  = 0o750
	fileMode = 0o640
)

// kind is one of the four files of a day.
type kind int

const (
	callStart kind = iota
	callEnd
	notAnswer
	general
	kinds
)

var kindNames = [kinds]string{"call_start", "call_end", "not_answer", "general"}

var fileName = regexp.MustCompile(`^(?:call_start|call_end|not_answer|general)-([0-9]{4}-[0-9]{2}-[0-9]{2})\.log$`)

// file is the file of one kind that is being written: that of one day.
type file struct {
	dir  string
	kind kind
	day  string
	buf  []byte // whole lines, so that each write ends with one, also where several processes share the file

	open *os.File // nil until there is something to write
	info os.FileInfo
}

// flush writes the buffer and empties it; with an error, it returns how many lines did not get into the file.
func (f *file) flush() (lost int, err error) {
	if len(f.buf) == 0 {
		return 0, nil
	}
	written := 0
	if err = f.ensure(); err == nil {
		written, err = f.open.Write(f.buf)
	}
	if err != nil {
		lost = bytes.Count(f.buf[written:], []byte("\n"))
		f.close() // the next flush opens it again, which mends most things
	}
	f.buf = f.buf[:0]
	return lost, err
}

// ensure opens the file, and again after somebody removed or moved it, or the directory: what is written to a removed
// file is gone without an error.
func (f *file) ensure() error {
	path := filepath.Join(f.dir, kindNames[f.kind]+"-"+f.day+".log")
	if f.open != nil {
		if info, err := os.Stat(path); err == nil && os.SameFile(info, f.info) {
			return nil
		}
		f.close()
	}
	if err := os.MkdirAll(f.dir, dirMode); err != nil {
		return err
	}
	opened, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, fileMode)
	if err != nil {
		return err
	}
	f.open = opened
	if f.info, err = opened.Stat(); err != nil {
		return err
	}
	return f.begin(f.info.Size())
}

// begin writes what has to stand before the first line: the day in a new file, an end to a line that was cut off by a full
// disk or a crash.
func (f *file) begin(size int64) error {
	if size == 0 {
		_, err := f.open.WriteString("==== " + f.day + " ====\n")
		return err
	}
	var last [1]byte
	if _, err := f.open.ReadAt(last[:], size-1); err != nil || last[0] == '\n' {
		return err
	}
	_, err := f.open.WriteString("\n")
	return err
}

func (f *file) close() {
	if f.open != nil {
		_ = f.open.Close()
		f.open = nil
	}
}

// removeOlder deletes our files of days before the oldest one to keep.
func removeOlder(dir, oldest string) error {
	entries, err := os.ReadDir(dir)
	problems := []error{err}
	for _, e := range entries {
		m := fileName.FindStringSubmatch(e.Name())
		if m == nil || m[1] >= oldest || e.IsDir() {
			continue
		}
		if _, err := time.Parse(time.DateOnly, m[1]); err != nil {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); !errors.Is(err, fs.ErrNotExist) { // else another process was first
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}
