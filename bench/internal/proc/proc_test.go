package proc

import (
	"bufio"
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	stat := "4711 (a) b (c) S 17 4711 4711 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 1 0 100 0 0\n"
	want := Process{PID: 4711, Parent: 17, Name: "a) b (c", CPU: 2 * time.Second}
	if got, err := parseStat([]byte(stat)); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "1 (a) S 1", "x (a) S 17 1 1 0 -1 1 1 2 3 4 150 50 7", ") ("} {
		if got, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

func TestMemory(t *testing.T) {
	status := "Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\nOdd:\tx kB\n"
	if memory([]byte(status), "VmRSS") != 1<<20 || memory([]byte(status), "VmHWM") != 2<<20 || memory([]byte(status), "VmSwap") != 0 || memory([]byte(status), "Odd") != 0 {
		t.Error("wrong")
	}
}

func TestTreeAndItsEnd(t *testing.T) {
	if err := Adopt(); err != nil {
		t.Fatal(err)
	}
	// A child with a child, and an orphan.
	cmd := exec.Command("sh", "-c", "(sleep 1000 & echo $!) ; sleep 1000 & echo $!; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines, n := bufio.NewScanner(out), 0; n < 2; n++ {
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
	}
	tree, err := Tree(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if len(tree) != 4 || tree[0].PID != os.Getpid() || tree[0].RSS <= 0 || tree[0].Peak < tree[0].RSS {
		t.Errorf("%+v", tree)
	}
	if err := KillDescendants(); err != nil {
		t.Fatal(err)
	}
	if tree, err := Tree(os.Getpid()); err != nil || len(tree) != 1 {
		t.Errorf("left: %+v %v", tree, err)
	}
	_ = cmd.Wait() // its status was taken
}
