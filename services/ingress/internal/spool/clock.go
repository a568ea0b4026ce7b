package spool

import (
	"encoding/hex"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stamp is a moment on two clocks: the wall clock, which can jump, and the time since the machine was started, which cannot
// and goes on while no process of ours runs.
type stamp struct {
	wall   int64 // Unix nanoseconds
	boot   int64 // nanoseconds since the boot with bootID
	bootID [16]byte
}

var thisBoot = func() (id [16]byte) {
	text, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // without it the wall clock counts
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err == nil {
		copy(id[:], b)
	}
	return id
}()

func now() stamp {
	s := stamp{wall: time.Now().UnixNano(), bootID: thisBoot}
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		s.bootID = [16]byte{}
	}
	s.boot = t.Nano()
	return s
}

func (s stamp) minus(d time.Duration) stamp {
	s.wall -= int64(d)
	s.boot -= int64(d)
	return s
}

// since is the time from an earlier stamp to this one, which no jump of the wall clock changes. Only where the machine was
// restarted in between does the wall clock decide, and then it is at least what has passed since the restart.
func (s stamp) since(earlier stamp) time.Duration {
	var none [16]byte
	switch {
	case s.bootID == none || earlier.bootID == none:
		return time.Duration(max(0, s.wall-earlier.wall))
	case s.bootID == earlier.bootID:
		return time.Duration(max(0, s.boot-earlier.boot))
	}
	return time.Duration(max(s.boot, s.wall-earlier.wall))
}
