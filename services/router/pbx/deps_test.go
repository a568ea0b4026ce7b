package pbx

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestPure keeps I/O, generated code and everything heavy out of this package.
func TestPure(t *testing.T) {
	banned := []struct{ word, why string }{
		{"net/http", "no I/O"},
		{"redis", "no I/O"},
		{"google.golang.org/", "generated code and gRPC stay at the edge"},
		{"go.opentelemetry.io/", "tracing stays at the edge"},
		{"callrelay/gen", "generated code and gRPC stay at the edge"},
		{"callrelay/platform", "platform is for services"},
	}
	for _, dep := range list(t, "-deps", "-f", "{{.ImportPath}}") {
		for _, b := range banned {
			if strings.Contains(dep, b.word) {
				t.Errorf("depends on %s: %s", dep, b.why)
			}
		}
	}
	// fmt itself depends on os; our own code must not name it.
	for _, direct := range list(t, "-f", `{{join .Imports "\n"}}`) {
		if slices.Contains([]string{"os", "io/fs", "log", "log/slog", "net"}, direct) {
			t.Errorf("imports %s: no I/O", direct)
		}
	}
}

func list(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := exec.Command("go", append(append([]string{"list"}, args...), ".")...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return strings.Fields(string(out))
}
