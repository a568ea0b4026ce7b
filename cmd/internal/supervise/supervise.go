// Package supervise keeps another program running: started in a process group of its own, so that a terminal's Ctrl-C
// does not reach it, started again with backoff when it ends by itself, and stopped by SIGTERM and then by SIGKILL.
// It knows nothing of what the program does: whether it is ready is for the caller to find out.
package supervise

import (
	"context"
	"fmt"
	"log/slog"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Backoff between two starts, doubled from the first to the last; a process that ran for longer than the last one
// begins anew.
const (
	firstDelay = 100 * time.Millisecond
	lastDelay  = 5 * time.Second
)

// Process is a running program: a child, or one that an earlier parent left over.
type Process struct {
	pid     int
	started time.Time
	done    chan struct{}
	err     error
}

// Start starts cmd in its own process group.
func Start(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{pid: cmd.Process.Pid, started: time.Now(), done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Adopt takes over a process that is nobody's child any more. alive says whether it still runs; it is asked ten times a
// second, because only a parent is told when a process ends.
func Adopt(pid int, alive func() bool) *Process {
	p := &Process{pid: pid, started: time.Now(), done: make(chan struct{})}
	go func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for alive() {
			<-tick.C
		}
		close(p.done)
	}()
	return p
}

// PID of the process, which is also the id of its process group.
func (p *Process) PID() int { return p.pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the process ended; valid after Done, and nil for an adopted one.
func (p *Process) Err() error { return p.err }

// Stop asks the process to end, and kills its group when it has not done so within grace. It returns when it has ended;
// the error says that it had to be killed.
func (p *Process) Stop(grace time.Duration) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	_ = syscall.Kill(p.pid, syscall.SIGTERM)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
	}
	_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	<-p.done
	return fmt.Errorf("process %d did not end within %v and was killed", p.pid, grace)
}

// Keeper starts a process again whenever it ends, until it is stopped.
type Keeper struct {
	name   string
	log    *slog.Logger
	again  func() (*Process, error)
	cancel context.CancelFunc
	ended  chan struct{}

	mu  sync.Mutex
	now *Process
}

// Keep watches p and replaces it by what again starts.
func Keep(name string, log *slog.Logger, p *Process, again func() (*Process, error)) *Keeper {
	ctx, cancel := context.WithCancel(context.Background())
	k := &Keeper{name: name, log: log, again: again, cancel: cancel, ended: make(chan struct{}), now: p}
	go k.run(ctx)
	return k
}

// PID of the process that runs now, or ran last.
func (k *Keeper) PID() int { return k.current().PID() }

// Stop ends the watching and then the process, see Process.Stop.
func (k *Keeper) Stop(grace time.Duration) error {
	k.Abandon()
	return k.current().Stop(grace)
}

// Abandon ends the watching and leaves the process running.
func (k *Keeper) Abandon() {
	k.cancel()
	<-k.ended
}

func (k *Keeper) current() *Process {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.now
}

func (k *Keeper) run(ctx context.Context) {
	defer close(k.ended)
	delay := firstDelay
	for {
		p := k.current()
		select {
		case <-ctx.Done():
			return
		case <-p.Done():
		}
		if ctx.Err() != nil {
			return
		}
		if time.Since(p.started) > lastDelay {
			delay = firstDelay
		}
		k.log.Error(k.name+" ended by itself, starting it again", "how", p.Err(), "pid", p.PID(), "in", delay.String())
		for {
			if !wait(ctx, delay) {
				return
			}
			delay = min(2*delay, lastDelay)
			next, err := k.again()
			if err == nil {
				k.mu.Lock()
				k.now = next
				k.mu.Unlock()
				break
			}
			k.log.Error(k.name+" cannot be started", "error", err, "again_in", delay.String())
		}
	}
}

// wait is false when ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
