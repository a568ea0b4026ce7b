// Package privateredis runs the Redis (or Valkey) server that belongs to one data directory: for `callrelay up` where
// REDIS_URL is not set. It owns the server's process, files and settings; it knows nothing of what is stored in it.
//
// The server is a child in its own process group. It listens on a unix socket only, in a directory that only this user
// can enter. It ends in order when the relay ends, also when that is killed: the kernel tells it then, since nobody would look
// after it any more. One that is there all the same is ended by the next relay on the same data directory, before that one
// starts its own. Linux only, since processes are recognised through /proc.
package privateredis

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"callrelay/cmd/internal/supervise"
)

// maxSocketPath is what the kernel takes (107 bytes), less a little.
const maxSocketPath = 100

// maxLog is the size beyond which a start puts the log file aside.
const maxLog = 10 << 20

// ErrNotInstalled is returned by Start when there is no server program.
var ErrNotInstalled = errors.New(`neither redis-server nor valkey-server is installed, and callrelay keeps its state in one of them
  install it:              sudo apt-get install -y redis-server     (in a checkout: make install)
  or use a running one:    REDIS_URL=redis://127.0.0.1:6379/0 callrelay up`)

// Options of Start.
type Options struct {
	// DataDir is the relay's data directory; the server's files are in its folder "redis".
	DataDir string
	// Appendfsync is Redis' setting of this name; empty = "always": an answer means that it is on disk.
	Appendfsync string
	Log         *slog.Logger
}

// Server is a running private server.
type Server struct {
	opts   Options
	dir    string
	socket string
	lock   *os.File
	keeper *supervise.Keeper
}

// Start locks the data directory, ends a server that was left over in it, and returns when a new one answers. While that server loads its data this takes as long as it takes; ctx bounds it.
func Start(ctx context.Context, opts Options) (*Server, error) {
	if opts.Appendfsync == "" {
		opts.Appendfsync = "always"
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	dir, err := makeDir(opts.DataDir)
	if err != nil {
		return nil, err
	}
	s := &Server{opts: opts, dir: dir}
	if s.lock, err = lockDir(opts.DataDir, dir); err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.lock.Close())
	}
	return s, nil
}

// URL for a Redis client, e.g. "unix:///srv/callrelay/data/redis/redis.sock".
func (s *Server) URL() string {
	return (&url.URL{Scheme: "unix", Path: s.socket}).String()
}

// PID of the server process.
func (s *Server) PID() int { return s.keeper.PID() }

// Stop ends the server in order (what it holds is on disk then) and unlocks the data directory. Call it when nobody uses
// the server any more.
func (s *Server) Stop(grace time.Duration) error {
	return errors.Join(s.keeper.Stop(grace), s.lock.Close())
}

func (s *Server) start(ctx context.Context) error {
	var err error
	if s.socket, err = socketPath(s.dir); err != nil {
		return err
	}
	if err := s.clear(ctx); err != nil {
		return err
	}
	p, err := s.launch()
	if err != nil {
		return err
	}
	if err := s.ready(ctx, p); err != nil {
		return errors.Join(err, p.Stop(time.Second))
	}
	s.keeper = supervise.Keep("private redis", s.opts.Log.With("see", s.path("redis.log")+", and whether its disk is full"), p, s.launch)
	return nil
}

// launch starts a new server and does not wait for it.
func (s *Server) launch() (*supervise.Process, error) {
	program, err := find()
	if err != nil {
		return nil, err
	}
	args := []string{
		"--port", "0", "--unixsocket", s.socket, "--unixsocketperm", "700",
		"--dir", s.dir, "--pidfile", s.path("redis.pid"),
		"--save", "", "--appendonly", "yes", "--appendfsync", s.opts.Appendfsync, "--maxmemory-policy", "noeviction",
		// A call is one hash; within these limits it is stored in one compact piece.
		"--hash-max-listpack-entries", "256", "--hash-max-listpack-value", "8192",
	}
	if info, err := os.Stat(s.path("redis.log")); err == nil && info.Size() > maxLog {
		if err := os.Rename(s.path("redis.log"), s.path("redis.log.1")); err != nil {
			return nil, err
		}
	}
	// A file, not a pipe: the server's last words come when this process may have been killed.
	log, err := os.OpenFile(s.path("redis.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	// (It is sent when the thread that started it ends; Go ends threads only of goroutines that are locked to them, of which
	// there are none here.)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	return supervise.Start(cmd)
}

// ready waits until the server has loaded its data.
func (s *Server) ready(ctx context.Context, p *supervise.Process) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	said := false
	for {
		_, err := command(ctx, s.socket, "PING")
		if err == nil {
			return nil
		}
		if loading(err) && !said {
			said = true
			s.opts.Log.Info("private redis is loading its data", "dir", s.dir)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("private redis in %s does not answer: %w", s.dir, errors.Join(ctx.Err(), err))
		case <-p.Done():
			return fmt.Errorf("private redis in %s does not start: %w; the end of its redis.log:\n%s", s.dir, p.Err(), s.logTail())
		case <-tick.C:
		}
	}
}

// leftOverTime is how long a server that was left over may take to end in order.
const leftOverTime = 10 * time.Second

// clear ends a server that was left over in the directory: two must not share its files. What it was told is on its disk.
func (s *Server) clear(ctx context.Context) error {
	pid, found, err := s.ask(ctx)
	if err != nil {
		return err
	}
	if !found { // or it does not answer
		text, err := os.ReadFile(s.path("redis.pid"))
		if err != nil {
			return nil
		}
		if pid, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
			return nil
		}
	}
	if !s.runs(pid) {
		return nil
	}
	s.opts.Log.Warn("a private redis was left over, ending it", "pid", pid, "dir", s.dir)
	if err := supervise.Adopt(pid, func() bool { return s.runs(pid) }).Stop(leftOverTime); err != nil {
		s.opts.Log.Warn("private redis", "error", err)
	}
	return nil
}

// ask asks who listens at the socket. An error means that it is a server, but not ours.
func (s *Server) ask(ctx context.Context) (pid int, found bool, err error) {
	// Both commands are answered while the server still loads its data.
	answer, err := command(ctx, s.socket, "CONFIG", "GET", "dir")
	var reply replyError
	if errors.As(err, &reply) {
		return 0, false, fmt.Errorf("what listens at %s is not the private redis: %w", s.socket, err)
	}
	if err != nil {
		return 0, false, nil // nobody listens
	}
	if len(answer) != 2 || answer[1] != s.dir {
		return 0, false, fmt.Errorf("the redis at %s keeps its data in %q instead of %s: stop it", s.socket, answer, s.dir)
	}
	if answer, err = command(ctx, s.socket, "INFO", "server"); err != nil || len(answer) != 1 {
		return 0, false, nil // it just ended
	}
	_, after, _ := strings.Cut(answer[0], "\nprocess_id:")
	text, _, _ := strings.Cut(after, "\r\n")
	if pid, err = strconv.Atoi(text); err != nil {
		return 0, false, fmt.Errorf("the redis at %s does not say its process id: %w", s.socket, err)
	}
	return pid, true, nil
}

// runs says whether pid is a server that works in our directory. A zombie does not: it has no working directory.
func (s *Server) runs(pid int) bool {
	dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil || dir != s.dir {
		return false
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return err == nil && (strings.Contains(string(name), "redis") || strings.Contains(string(name), "valkey"))
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

// logTail is the end of the server's log.
func (s *Server) logTail() string {
	f, err := os.Open(s.path("redis.log"))
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > 1500 {
		_, _ = f.Seek(-1500, io.SeekEnd)
	}
	text, _ := io.ReadAll(f)
	return strings.TrimSpace(string(text))
}

// find looks for a server program.
func find() (string, error) {
	for _, name := range []string{"redis-server", "valkey-server"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrNotInstalled
}

// makeDir returns the server's directory as the server itself will name it.
func makeDir(dataDir string) (string, error) {
	dir, err := filepath.Abs(filepath.Join(dataDir, "redis"))
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	return filepath.EvalSymlinks(dir)
}

// lockDir locks the directory until the file is closed, by us or by the end of this process.
func lockDir(dataDir, dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		owner, _ := io.ReadAll(f)
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s is in use by another callrelay (process %s): stop that one, or use another --data-dir",
				dataDir, strings.TrimSpace(string(owner)))
		}
		return nil, fmt.Errorf("data directory %s cannot be locked: %w", dataDir, err)
	}
	// For the message above; the lock itself does not depend on it.
	if err := errors.Join(f.Truncate(0), write(f, fmt.Sprintln(os.Getpid()))); err != nil {
		return nil, errors.Join(fmt.Errorf("data directory: %w", err), f.Close())
	}
	return f, nil
}

func write(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// socketPath is in the directory, or where that is too long for a socket, in a short one that only this user can enter
// and that is always the same for the same directory, so that a server can be found again.
func socketPath(dir string) (string, error) {
	if path := filepath.Join(dir, "redis.sock"); len(path) <= maxSocketPath {
		return path, nil
	}
	short := fmt.Sprintf("/tmp/callrelay-%d-%.6x", os.Getuid(), sha256.Sum256([]byte(dir)))
	if err := os.Mkdir(short, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	info, err := os.Lstat(short)
	if err != nil {
		return "", err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || info.Mode().Perm() != 0o700 || !ok || int(owner.Uid) != os.Getuid() {
		return "", fmt.Errorf("%s is for the private redis' socket, but somebody else can enter it: remove it", short)
	}
	return filepath.Join(short, "redis.sock"), nil
}
