package load

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// alarm waits more exactly than Go's timers, which an idle process sees up to a millisecond late: as long as a whole
// callback takes.
type alarm struct {
	file *os.File
	fd   int
}

func newAlarm() (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	return &alarm{file: os.NewFile(uintptr(fd), "timer"), fd: fd}, nil
}

// wait returns after d, which must be positive.
func (a *alarm) wait(d time.Duration) {
	if err := unix.TimerfdSettime(a.fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}, nil); err != nil {
		panic(err) // d is not positive, or the alarm is closed
	}
	var expirations [8]byte
	if _, err := a.file.Read(expirations[:]); err != nil {
		panic(err)
	}
}

func (a *alarm) close() { _ = a.file.Close() }
