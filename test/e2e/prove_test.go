package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The crash test that `callrelay prove` gives to anyone, shortened: every kind of fault once, with one and with two of every
// service.
func TestProve(t *testing.T) {
	for _, replicas := range []string{"1", "2"} {
		t.Run(replicas+" of each", func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(filepath.Join(bin, "callrelay"), "prove", "--for", "20s", "--seed", "7", "--rate", "40", "--replicas", replicas, "--json")
			cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "TMPDIR="+t.TempDir())
			said := &buffer{}
			cmd.Stderr = said
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s\n%s", err, said.tail(4000), out)
			}
			var result struct {
				Passed bool
				Faults []struct{ Fault string }
				Total  struct{ Accepted, Delivered, Lost, Doubled int }
			}
			if err := json.Unmarshal(out, &result); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if kinds := len(result.Faults) - 1; !result.Passed || kinds != 20 || result.Total.Delivered < 100 || result.Total.Lost+result.Total.Doubled > 0 {
				t.Errorf("%d kinds of faults\n%s", kinds, out)
			}
		})
	}
}
