package callback

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestPure keeps I/O, generated code and everything heavy out of this package.
func TestPure(t *testing.T) {
	banned := map[string]string{
		"net/http":           "no I/O",
		"net":                "no I/O",
		"os/exec":            "no I/O",
		"google.golang.org/": "generated code and gRPC stay at the edge",
		"callrelay/gen":      "generated code and gRPC stay at the edge",
		"callrelay/platform": "platform is for services",
		"redis":              "no I/O",
	}
	for _, dep := range list(t, "-deps", "-f", "{{.ImportPath}}") {
		for word, why := range banned {
			if dep == word || strings.HasPrefix(dep, word) && !isStandard(dep) || word == "redis" && strings.Contains(dep, word) {
				t.Errorf("depends on %s: %s", dep, why)
			}
		}
	}
	// fmt itself depends on os; our own code must not name it.
	for _, direct := range list(t, "-f", `{{join .Imports "\n"}}`) {
		if slices.Contains([]string{"os", "io/fs", "log", "log/slog"}, direct) {
			t.Errorf("imports %s: no I/O", direct)
		}
	}
}

func isStandard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return first != "callrelay" && !strings.Contains(first, ".")
}

func list(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := exec.Command("go", append(append([]string{"list"}, args...), ".")...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return strings.Fields(string(out))
}
