package redistest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// slowSync makes each fdatasync of a process take longer, as a busy disk does. It is loaded into redis-server only.
const slowSync = `#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int fdatasync(int fd) {
	long long ns = atoll(getenv("SLOW_SYNC_NS"));
	struct timespec delay = {ns / 1000000000, ns % 1000000000};
	nanosleep(&delay, 0);
	int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
	return next(fd);
}
`

// StartSlow is Start with a disk whose syncs take so much longer. It needs gcc (make test installs it).
func StartSlow(t testing.TB, delay time.Duration, args ...string) *Server {
	t.Helper()
	dir := t.TempDir()
	source, library := filepath.Join(dir, "slow.c"), filepath.Join(dir, "slow.so")
	if err := os.WriteFile(source, []byte(slowSync), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-shared", "-fPIC", "-o", library, source, "-ldl").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	return start(t, []string{"LD_PRELOAD=" + library, fmt.Sprintf("SLOW_SYNC_NS=%d", delay.Nanoseconds())}, args...)
}
