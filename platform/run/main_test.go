package run_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"callrelay/platform/run"
)

// programs are what the test binary does instead of testing when it is told so: run.Main ends its process.
var programs = map[string]func(ctx context.Context) error{
	"fine":  func(context.Context) error { return nil },
	"error": func(context.Context) error { return errors.New("no such thing") },
	"code": func(context.Context) error {
		return fmt.Errorf("usage: %w", &run.ExitError{Code: 2, Err: errors.New("x")})
	},
	"silent": func(context.Context) error { return &run.ExitError{Code: 3} },
	"waits": func(ctx context.Context) error {
		fmt.Println("ready")
		<-ctx.Done()
		return fmt.Errorf("waiting: %w", ctx.Err())
	},
	"hangs": func(ctx context.Context) error {
		fmt.Println("ready")
		<-ctx.Done()
		fmt.Println("stopping")
		select {}
	},
}

func TestMain(m *testing.M) {
	if f, ok := programs[os.Getenv("RUN_TEST_PROGRAM")]; ok {
		run.Main(f)
		os.Exit(0) // as the end of a main function
	}
	os.Exit(m.Run())
}

func program(t *testing.T, name string) (*exec.Cmd, *bufio.Reader, *strings.Builder) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "RUN_TEST_PROGRAM="+name)
	stderr := &strings.Builder{}
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(stdout), stderr
}

func TestExitCodes(t *testing.T) {
	for name, want := range map[string]struct {
		code   int
		stderr string
	}{
		"fine":   {0, ""},
		"error":  {1, "run.test: no such thing\n"},
		"code":   {2, "run.test: usage: x\n"},
		"silent": {3, ""},
	} {
		cmd, _, stderr := program(t, name)
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != want.code || stderr.String() != want.stderr {
			t.Errorf("%s: exit %d, stderr %q", name, got, stderr)
		}
	}
}

func await(t *testing.T, out *bufio.Reader, want string) {
	t.Helper()
	if line, err := out.ReadString('\n'); line != want+"\n" {
		t.Fatalf("got %q, %v; want %q", line, err, want)
	}
}

func TestSignalEndsTheContext(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		cmd, out, stderr := program(t, "waits")
		await(t, out, "ready")
		_ = cmd.Process.Signal(sig)
		if err := cmd.Wait(); err != nil || stderr.Len() > 0 {
			t.Errorf("%v: %v, stderr %q", sig, err, stderr)
		}
	}
}

func TestSecondSignalEndsTheProcess(t *testing.T) {
	cmd, out, _ := program(t, "hangs")
	await(t, out, "ready")
	_ = cmd.Process.Signal(syscall.SIGTERM)
	await(t, out, "stopping")
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	again := time.NewTicker(10 * time.Millisecond) // the program may not have given the signal back yet
	defer again.Stop()
	for deadline := time.After(10 * time.Second); ; {
		select {
		case <-ended:
			if !cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
				t.Errorf("ended with %v", cmd.ProcessState)
			}
			return
		case <-again.C:
			_ = cmd.Process.Signal(syscall.SIGTERM)
		case <-deadline:
			t.Fatal("the program hangs on") // t.Context kills it
		}
	}
}
