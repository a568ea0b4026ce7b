// Package proc reads from /proc what processes cost, and ends them. It knows Linux and nothing of the benchmark.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tick is the unit of processor time in /proc, which is the same on all machines that Linux runs on today.
const tick = time.Second / 100

// Process is one process as it is now.
type Process struct {
	PID, Parent int
	Name        string
	CPU         time.Duration // user and system, of all threads
	RSS, Peak   int64         // bytes
}

// Tree returns a process and all its descendants.
func Tree(root int) ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]Process{}
	var out []Process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + entry.Name() + "/stat")
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		p, err := parseStat(stat)
		if err != nil {
			return nil, fmt.Errorf("process %d: %w", pid, err)
		}
		children[p.Parent] = append(children[p.Parent], p)
		if pid == root {
			out = append(out, p)
		}
	}
	for i := 0; i < len(out); i++ {
		out = append(out, children[out[i].PID]...)
	}
	for i := range out {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", out[i].PID))
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out[i].RSS, out[i].Peak = memory(status, "VmRSS"), memory(status, "VmHWM")
	}
	return out, nil
}

func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) }

// parseStat reads /proc/<pid>/stat. The name is in parentheses and may contain anything, so its end is the last one.
func parseStat(stat []byte) (Process, error) {
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return Process{}, fmt.Errorf("stat %q", stat)
	}
	fields := strings.Fields(string(stat[end+1:])) // from the third on: state, ppid, ...
	if len(fields) < 13 {
		return Process{}, fmt.Errorf("stat %q", stat)
	}
	var numbers [4]int
	for i, text := range []string{strings.TrimSpace(string(stat[:open])), fields[1], fields[11], fields[12]} {
		n, err := strconv.Atoi(text)
		if err != nil {
			return Process{}, fmt.Errorf("stat %q: %w", stat, err)
		}
		numbers[i] = n
	}
	return Process{PID: numbers[0], Parent: numbers[1], Name: string(stat[open+1 : end]),
		CPU: time.Duration(numbers[2]+numbers[3]) * tick}, nil
}

// memory is a value of /proc/<pid>/status in bytes; 0 where it is not given, as for a zombie.
func memory(status []byte, name string) int64 {
	for line := range strings.SplitSeq(string(status), "\n") {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 64)
			if err != nil {
				return 0
			}
			return kb << 10
		}
	}
	return 0
}

// Adopt makes this process the parent of descendants whose own parent has ended, so that Tree finds them.
func Adopt() error {
	const prSetChildSubreaper = 36
	if _, _, errno := syscall.Syscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0); errno != 0 {
		return errno
	}
	return nil
}

// KillDescendants kills every descendant of this process and returns when none is left.
func KillDescendants() error {
	for {
		tree, err := Tree(os.Getpid())
		if err != nil || len(tree) <= 1 {
			return err
		}
		for _, p := range tree[1:] {
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
		for _, p := range tree[1:] {
			// Not a child (yet), or somebody else waits for it: the next round sees.
			_, _ = syscall.Wait4(p.PID, nil, 0, nil)
		}
	}
}
