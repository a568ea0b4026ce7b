package supervise

import (
	"errors"
	"log/slog"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func shell(t *testing.T, script string) *Process {
	t.Helper()
	p, err := Start(exec.Command("sh", "-c", script))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestStopAsksFirst(t *testing.T) {
	p := shell(t, "sleep 60")
	if err := p.Stop(5 * time.Second); err != nil {
		t.Error(err)
	}
	if err := p.Stop(time.Second); err != nil {
		t.Errorf("stopping twice: %v", err)
	}
}

func TestStopKillsTheGroupAfterGrace(t *testing.T) {
	cmd := exec.Command("sh", "-c", `trap "" TERM; echo ready; sleep 60 & wait; sleep 60`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(50 * time.Millisecond); err == nil || !strings.Contains(err.Error(), "was killed") {
		t.Errorf("got %v", err)
	}
	if err := syscall.Kill(-p.PID(), 0); err == nil {
		// The grandchild is gone as soon as its new parent has noticed; until then it is a zombie, which holds no pipe.
		if n, err := out.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("somebody of the group still runs: %d, %v", n, err)
		}
	}
}

func TestOwnProcessGroup(t *testing.T) {
	p := shell(t, "sleep 60")
	defer p.Stop(time.Second)
	if group, err := syscall.Getpgid(p.PID()); err != nil || group != p.PID() {
		t.Errorf("group %d, %v; a terminal's Ctrl-C would reach it", group, err)
	}
}

func TestKeepStartsAgainAndStops(t *testing.T) {
	var starts atomic.Int32
	lasting := make(chan struct{})
	k := Keep("test", slog.New(slog.DiscardHandler), shell(t, "exit 1"), func() (*Process, error) {
		switch starts.Add(1) {
		case 1:
			return nil, errors.New("no")
		case 2:
			return Start(exec.Command("false"))
		default:
			defer close(lasting)
			return Start(exec.Command("sleep", "60"))
		}
	})
	select {
	case <-lasting:
	case <-time.After(10 * time.Second):
		t.Fatal("not started again")
	}
	if err := k.Stop(5 * time.Second); err != nil {
		t.Error(err)
	}
	if n := starts.Load(); n != 3 {
		t.Errorf("%d starts", n)
	}
}

func TestStopWhileWaitingToStartAgain(t *testing.T) {
	k := Keep("test", slog.New(slog.DiscardHandler), shell(t, "exit 1"), func() (*Process, error) {
		return nil, errors.New("no")
	})
	if err := k.Stop(time.Second); err != nil {
		t.Error(err)
	}
}

func TestAbandonLeavesTheProcess(t *testing.T) {
	p := shell(t, "sleep 60")
	defer p.Stop(time.Second)
	Keep("test", slog.New(slog.DiscardHandler), p, nil).Abandon()
	select {
	case <-p.Done():
		t.Error("it should run on")
	default:
	}
}
