package delivery

import (
	"testing"
	"time"
)

func TestDeliversAndReportsDone(t *testing.T) {
	run(t, testConfig(), func(r *rig) {
		r.state.add("a")
		r.state.add("a")
		r.state.add("b")
		r.after(time.Second)
		r.final(map[string]string{"a/1": "done", "a/2": "done", "b/1": "done"})
		r.sends(3)
	})
}
