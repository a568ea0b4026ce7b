package privateredis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func start(t *testing.T, dataDir string) *Server {
	t.Helper()
	s, err := Start(t.Context(), Options{DataDir: dataDir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func stop(t *testing.T, s *Server) {
	t.Helper()
	if err := s.Stop(5 * time.Second); err != nil {
		t.Error(err)
	}
}

// abandon is what a kill -9 of the relay leaves behind: the server runs on, and the lock is gone.
func abandon(t *testing.T, s *Server) {
	t.Helper()
	s.keeper.Abandon()
	if err := s.lock.Close(); err != nil {
		t.Fatal(err)
	}
	if !s.runs(s.PID()) {
		t.Fatal("the server should run on")
	}
}

// do sends a command and returns the first value of the answer.
func do(t *testing.T, s *Server, args ...string) string {
	t.Helper()
	answer, err := command(t.Context(), s.socket, args...)
	if err != nil || len(answer) == 0 {
		t.Fatalf("%v: %q, %v", args, answer, err)
	}
	return answer[len(answer)-1]
}

func holdsData(t *testing.T, s *Server) bool {
	answer, err := command(t.Context(), s.socket, "GET", "k")
	return err == nil && answer[0] == "v"
}

// eventually polls: what it waits for is done by another process.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-late:
			t.Fatal("did not happen: " + what)
		case <-tick.C:
		}
	}
}

func TestSettings(t *testing.T) {
	s := start(t, t.TempDir())
	defer stop(t, s)
	for name, want := range map[string]string{
		"appendonly": "yes", "appendfsync": "always", "save": "", "maxmemory-policy": "noeviction",
		"hash-max-listpack-entries": "256", "hash-max-listpack-value": "8192", "port": "0",
	} {
		if got := do(t, s, "CONFIG", "GET", name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}

func TestStopKeepsData(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	do(t, s, "SET", "k", "v")
	pid := s.PID()
	stop(t, s)
	if s.runs(pid) {
		t.Error("still runs after Stop")
	}
	s = start(t, dir)
	defer stop(t, s)
	if !holdsData(t, s) {
		t.Error("the data is gone")
	}
}

func TestKilledServerIsStartedAgainWithItsData(t *testing.T) {
	s := start(t, t.TempDir())
	defer stop(t, s)
	do(t, s, "SET", "k", "v")
	old := s.PID()
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another process answers with the data", func() bool {
		return s.PID() != old && holdsData(t, s)
	})
}

func TestEndsWhatWasLeftOver(t *testing.T) {
	dir := t.TempDir()
	first := start(t, dir)
	do(t, first, "SET", "k", "v")
	abandon(t, first)

	second, err := Start(t.Context(), Options{DataDir: dir, Appendfsync: "everysec", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, second)
	if first.runs(first.PID()) || second.PID() == first.PID() {
		t.Errorf("the one left over, %d, still runs beside %d", first.PID(), second.PID())
	}
	if !holdsData(t, second) {
		t.Error("the data is gone")
	}
	if got := do(t, second, "CONFIG", "GET", "appendfsync"); got != "everysec" {
		t.Errorf("appendfsync = %q", got)
	}
}

// holder is a process that runs this test's program only to hold a server, as a relay does.
const holder = "CALLRELAY_TEST_HOLD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(holder); dir != "" {
		s, err := Start(context.Background(), Options{DataDir: dir})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(s.PID())
		select {}
	}
	os.Exit(m.Run())
}

// What is killed with kill -9 leaves no server behind, and the next one finds its data.
func TestEndsWithAKilledRelay(t *testing.T) {
	dir := t.TempDir()
	relay := exec.Command(os.Args[0])
	relay.Env = append(os.Environ(), holder+"="+dir)
	out, err := relay.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := relay.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	path, err := makeDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	left := &Server{dir: path, socket: filepath.Join(path, "redis.sock")}
	do(t, left, "SET", "k", "v")
	if !left.runs(pid) {
		t.Fatalf("process %d is no server", pid)
	}
	if err := relay.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = relay.Wait()
	eventually(t, "the server ends with who started it", func() bool { return !left.runs(pid) })
	next := start(t, dir)
	defer stop(t, next)
	if !holdsData(t, next) {
		t.Error("the data is gone")
	}
}

func TestServerThatLostItsSocketIsReplaced(t *testing.T) {
	dir := t.TempDir()
	first := start(t, dir)
	do(t, first, "SET", "k", "v")
	abandon(t, first)
	if err := os.Remove(first.socket); err != nil {
		t.Fatal(err)
	}
	second := start(t, dir)
	defer stop(t, second)
	if first.runs(first.PID()) {
		t.Error("two servers work in one directory")
	}
	if !holdsData(t, second) {
		t.Error("the data is gone")
	}
}

func TestForeignServerIsRefused(t *testing.T) {
	other := start(t, t.TempDir())
	defer stop(t, other)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "redis"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(other.socket, filepath.Join(dir, "redis", "redis.sock")); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), Options{DataDir: dir}); err == nil || !strings.Contains(err.Error(), "keeps its data in") {
		t.Errorf("got %v", err)
	}
}

func TestSecondRelayOnTheSameDirectory(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	_, err := Start(t.Context(), Options{DataDir: dir})
	if err == nil || !strings.Contains(err.Error(), "is in use by another callrelay (process ") || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("got %v", err)
	}
	stop(t, s)
	stop(t, start(t, dir))
}

func TestServerThatCannotStart(t *testing.T) {
	_, err := Start(t.Context(), Options{DataDir: t.TempDir(), Appendfsync: "sometimes"})
	if err == nil || !strings.Contains(err.Error(), "does not start") || !strings.Contains(err.Error(), "appendfsync") {
		t.Errorf("the error has to say why: %v", err)
	}
}

func TestNothingInstalled(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Start(t.Context(), Options{DataDir: t.TempDir()})
	if !errors.Is(err, ErrNotInstalled) || !strings.Contains(err.Error(), "apt-get install") {
		t.Errorf("got %v", err)
	}
}

func TestValkeyIsAsGood(t *testing.T) {
	bin := t.TempDir()
	program, err := find()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(program, filepath.Join(bin, "valkey-server")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	s := start(t, t.TempDir())
	defer stop(t, s)
	if !s.runs(s.PID()) {
		t.Error("a server of this name has to be recognised")
	}
}

func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	s := start(t, dir)
	t.Cleanup(func() { _ = os.RemoveAll(filepath.Dir(s.socket)) })
	if len(s.socket) > maxSocketPath || !strings.HasPrefix(s.socket, "/tmp/callrelay-") {
		t.Errorf("socket at %s", s.socket)
	}
	abandon(t, s)
	again := start(t, dir)
	defer stop(t, again)
	if s.runs(s.PID()) {
		t.Error("not found again")
	}
	if err := os.Chmod(filepath.Dir(s.socket), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := socketPath(s.dir); err == nil {
		t.Error("a directory that others can enter has to be refused")
	}
}
