package e2e

import (
	"strings"
	"testing"
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	"callrelay/sim/topsii"
)

// At 3 a.m.: one line says why nothing leaves, diagnose says it for a call, and both say when it is over.
func TestWhyNothingLeaves(t *testing.T) {
	for name, args := range map[string][]string{"one process": nil, "four processes": {"--split"}} {
		t.Run(name, func(t *testing.T) {
			whyNothingLeaves(t, startWith(t, []string{"BREAKER_OPEN=5s", "RETRY_MAX=1s"}, args...))
		})
	}
}

func whyNothingLeaves(t *testing.T, r *relay) {
	state := r.operator()
	healthy := func(want string) {
		t.Helper()
		r.eventually(30*time.Second, "topsii is: "+want, func() bool {
			list, err := state.ListDestinations(t.Context(), &operatorv1.ListDestinationsRequest{})
			if err != nil {
				return false
			}
			for _, d := range list.GetDestinations() {
				if d.GetName() == "topsii" && strings.HasPrefix(d.GetHealth(), want) {
					return true
				}
			}
			return false
		})
	}
	healthy("ok")
	r.fault(topsii.Fault{Kind: topsii.HTTP, Status: 503})
	for call := 1; call <= 8; call++ {
		r.accepted(r.end(connectedEnd(call)...))
	}
	healthy("the circuit breaker is open, it is tried again in ")
	says(t, "destinations", r.run(done, "destinations"), "topsii", "the circuit breaker is open", "HTTP 503")
	r.accepted(r.end(connectedEnd(9)...)) // nothing is tried of it
	says(t, "diagnose", r.run(done, "diagnose", "9"), "waits because of topsii: the circuit breaker is open")
	says(t, "the table of a hold", r.run(done, "hold", "topsii", "--reason", "patches", "--until", "1h"), "topsii is held from ")
	says(t, "destinations", r.run(done, "destinations"), "maintenance, nothing is sent for ", "topsii has maintenance from ", "patches")
	r.noFaults()
	r.run(done, "release", "topsii")
	r.becomes(state, 9, 1, "delivered")
	healthy("ok")
}
