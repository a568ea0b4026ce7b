package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/sim/topsii"
)

// Exit codes of the operator's commands.
const (
	done      = 0
	failed    = 1
	notFound  = 3
	attention = 4
)

// run runs a command of the operator's, fails unless it ends with the code, and returns what it printed.
func (r *relay) run(code int, args ...string) string {
	r.t.Helper()
	out, err := r.callrelay(args...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		r.t.Errorf("callrelay %v: %v", args, err)
	}
	if got != code {
		r.t.Errorf("callrelay %v: exit code %d, want %d\n%s", args, got, code, out)
	}
	return out
}

// says fails unless a text holds all parts.
func says(t testing.TB, what, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%s does not say %q:\n%s", what, part, text)
		}
	}
}

// operator is the operator's gRPC client.
func (r *relay) operator() operatorv1.OperatorServiceClient {
	return operatorv1.NewOperatorServiceClient(r.dial(r.t, "STATE"))
}

// stored is everything that is kept of a call, empty while there is nothing.
func (r *relay) stored(state operatorv1.OperatorServiceClient, call int) *operatorv1.Call {
	r.t.Helper()
	c, err := state.GetCall(r.t.Context(), &operatorv1.GetCallRequest{Call: key(call)})
	if err != nil && status.Code(err) != codes.NotFound {
		r.t.Fatal(err)
	}
	return c
}

// as is the context of somebody who acts.
func as(t *testing.T, actor string) context.Context {
	return metadata.AppendToOutgoingContext(t.Context(), "x-callrelay-actor", actor)
}

func key(call int) string { return "ameyo/" + strconv.Itoa(call) }

// becomes waits until a delivery of a call has the state.
func (r *relay) becomes(state operatorv1.OperatorServiceClient, call, number int, want string) *statev1.Delivery {
	r.t.Helper()
	var d *statev1.Delivery
	r.eventually(20*time.Second, key(call)+"'s delivery is "+want, func() bool {
		if ds := r.stored(state, call).GetDeliveries(); len(ds) >= number {
			d = ds[number-1].GetFacts()
		}
		return word(d) == want
	})
	return d
}

// word is a delivery's state as the commands say it.
func word(d *statev1.Delivery) string {
	return strings.ToLower(strings.TrimPrefix(d.GetState().String(), "DELIVERY_STATE_"))
}

// What an operator can do, by command and over gRPC, each twice: whoever clicks a second time is refused in words or
// changes nothing.
func TestOperator(t *testing.T) {
	t.Parallel()
	r := startWith(t, append([]string{"TOPSII_UNCERTAIN=ask"}, impatient...))
	state := r.operator()
	retry := func(call int) error {
		_, err := state.RetryDelivery(as(t, "test"), &operatorv1.RetryDeliveryRequest{Delivery: key(call) + "/1"})
		return err
	}
	discard := func(call int) error {
		_, err := state.DiscardDelivery(as(t, "test"), &operatorv1.DiscardDeliveryRequest{Delivery: key(call) + "/1", Reason: "entered by hand"})
		return err
	}
	refused := func(what string, err error, words string) {
		t.Helper()
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want a refusal that says %q", what, err, words)
		}
	}
	dies := func(call int) {
		r.fault(topsii.Fault{Kind: topsii.Fail, CallID: int64(call), MessageCode: "WTYP0010", SubMessageCode: "WPRDEXTC3203", Times: 1})
		r.accepted(r.end(connectedEnd(call)...))
		r.becomes(state, call, 1, "dead")
	}
	asks := func(call int) {
		r.fault(topsii.Fault{Kind: topsii.Cut, CallID: int64(call), Times: 1})
		r.accepted(r.end(connectedEnd(call)...))
		if d := r.becomes(state, call, 1, "asked"); !d.GetUncertain() {
			t.Errorf("asked without being uncertain: %v", d)
		}
	}
	held := func(call, want int) {
		t.Helper()
		if got := r.registered(call); len(got) != want {
			t.Errorf("TopS.II holds call %d %d times, want %d: %v", call, len(got), want, got)
		}
	}

	// Hold and release, each by both ways and twice: a further hold changes the reason only, a further release nothing.
	r.run(done, "hold", "topsii", "--reason", "maintenance")
	since := r.destination(state).GetHoldSinceMs()
	r.run(done, "hold", "topsii", "--reason", "maintenance, again")
	for range 2 {
		if _, err := state.HoldDestination(as(t, "test"), &operatorv1.HoldDestinationRequest{Destination: "topsii", Reason: "maintenance until six"}); err != nil {
			t.Errorf("a further hold: %v", err)
		}
	}
	r.accepted(r.end(connectedEnd(3000)...))
	r.accepted(r.end(connectedEnd(3001)...))
	r.accepted(r.end(connectedEnd(3002)...))
	says(t, "destinations", r.run(done, "destinations"), "topsii", "maintenance until six")
	if d := r.destination(state); d.GetWaiting() != 3 || d.GetHoldSinceMs() != since {
		t.Errorf("held since %d: %v", since, d)
	}
	says(t, "discard", r.run(done, "discard", "3000", "1", "--reason", "entered by hand"), "discarded")
	says(t, "the second discard", r.run(failed, "discard", "3000", "1", "--reason", "entered by hand"), "discarded and cannot be")
	if err := discard(3001); err != nil {
		t.Errorf("discard over gRPC: %v", err)
	}
	refused("discard twice over gRPC", discard(3001), "discarded")
	refused("retry of what waits", retry(3002), "queued; only dead, asked and expired")
	for range 2 {
		r.run(done, "release", "topsii")
		if _, err := state.ReleaseDestination(as(t, "test"), &operatorv1.ReleaseDestinationRequest{Destination: "topsii"}); err != nil {
			t.Errorf("a further release: %v", err)
		}
	}
	r.becomes(state, 3002, 1, "delivered")
	if d := r.destination(state); d.GetHeld() || r.effects() != 1 {
		t.Errorf("after the release: %v, %d were sent", d, r.effects())
	}
	refused("discard of what was delivered", discard(3002), "delivered")

	// A dead delivery is retried: eight clicks at once send it once, and its gate is taken again.
	dies(3010)
	var queued atomic.Int32
	concurrently(8, 8, func(int) {
		if err := retry(3010); err == nil {
			queued.Add(1)
		} else if status.Code(err) != codes.FailedPrecondition {
			t.Errorf("a click too many: %v", err)
		}
	})
	r.becomes(state, 3010, 1, "delivered")
	if held(3010, 1); queued.Load() != 1 || !r.end(connectedEnd(3010)...).Duplicate {
		t.Errorf("%d of 8 clicks queued it", queued.Load())
	}
	says(t, "a late click", r.run(failed, "retry", "3010", "1"), "is delivered; only dead, asked and expired")

	// A dead one whose corrected repeat was accepted since is not sent a second time by hand. It can be settled.
	dies(3011)
	r.accepted(r.end(append(connectedEnd(3011), "userId", "agent2")...))
	r.becomes(state, 3011, 2, "delivered")
	says(t, "retry of a superseded one", r.run(failed, "retry", "3011", "1"), "superseded")
	refused("retry of a superseded one", retry(3011), "superseded")
	says(t, "deliveries", r.run(done, "deliveries", "--in", "dead"), key(3011))
	r.run(done, "discard", "3011", "1", "--reason", "the repeat was delivered")
	if held(3011, 1); strings.Contains(r.run(done, "deliveries"), key(3011)) {
		t.Error("a settled delivery is still listed")
	}

	// A connected result that died behind one that was not: the repeat of that one is none of its business.
	unanswered := append(connectedEnd(3012), "systemDisposition", "BUSY")
	r.accepted(r.end(unanswered...))
	r.becomes(state, 3012, 1, "delivered")
	r.fault(topsii.Fault{Kind: topsii.Fail, CallID: 3012, MessageCode: "WTYP0010", SubMessageCode: "WPRDEXTC3203", Times: 1})
	r.accepted(r.end(connectedEnd(3012)...))
	r.becomes(state, 3012, 2, "dead")
	if !r.end(unanswered...).Duplicate {
		t.Error("what was delivered is taken again, because another result of its call died")
	}
	r.run(done, "retry", "3012", "2")
	r.becomes(state, 3012, 2, "delivered")

	// What may have arrived waits for a person. Discarding keeps its gate; retrying sends it.
	asks(3020)
	says(t, "deliveries", r.run(done, "deliveries", "--in", "asked"), key(3020), "asked (uncertain)", "may have reached TopS.II", "look in the CRM")
	if !r.end(connectedEnd(3020)...).Duplicate {
		t.Error("the repeat of what may have arrived passes")
	}
	r.run(done, "discard", "3020", "1", "--reason", "it is in the CRM")
	says(t, "the second discard", r.run(failed, "discard", "3020", "1", "--reason", "it is in the CRM"), "discarded and cannot be")
	if held(3020, 0); !r.end(connectedEnd(3020)...).Duplicate {
		t.Error("the repeat of what was found in the CRM passes")
	}
	asks(3021)
	says(t, "retry", r.run(done, "retry", "3021", "1"), "queued again")
	r.becomes(state, 3021, 1, "delivered")
	says(t, "the second retry", r.run(failed, "retry", "3021", "1"), "is delivered")
	held(3021, 1)
	// A person looked and wants it sent: a definite refusal after that is retried like any other.
	asks(3022)
	r.fault(topsii.Fault{Kind: topsii.HTTP, Status: 503, CallID: 3022, Times: 2})
	if err := retry(3022); err != nil {
		t.Errorf("retry over gRPC: %v", err)
	}
	r.becomes(state, 3022, 1, "delivered")
	refused("retry twice over gRPC", retry(3022), "delivered")
	held(3022, 1)
	says(t, "call", r.run(done, "call", "3022"), "IT MAY HAVE ARRIVED -> ask", "test: retry delivery 1", "HTTP 503", "-> delivered")

	// Exit codes.
	for _, c := range []struct {
		code int
		args string
		says string
	}{
		{notFound, "call 999", "nothing is stored of ameyo/999"},
		{notFound, "retry 999 1", "ameyo/999"},
		{notFound, "discard 999 1 --reason x", "ameyo/999"},
		{notFound, "retry 3022 9", "has no delivery 9"},
		{notFound, "discard 3022 9 --reason x", "has no delivery 9"},
		{failed, "call abc", "neither a call id"},
		{failed, "retry 3022 0", "not the number of a delivery"},
		{failed, "discard 3022 1", "reason"},
		{failed, "hold topsii", "reason"},
		{failed, "deliveries --in lost", "is not a state"},
		{failed, "destinations --state 127.0.0.1:1", "127.0.0.1:1 does not answer"},
		{done, "destinations", "topsii"},
	} {
		says(t, c.args, r.run(c.code, strings.Fields(c.args)...), c.says)
	}

	// --json is JSON, with what the tables show.
	dies(3030)
	asks(3031)
	for args, parts := range map[string][]string{
		"call 3030 --json":            {"ameyo/3030", "DELIVERY_STATE_DEAD", "WPRDEXTC3203", "createCallEnd"},
		"deliveries --in dead --json": {"ameyo/3030", "DELIVERY_STATE_DEAD", "not logged in"},
		// A filter and a limit: what is filtered out does not use up the limit, wherever it stands.
		"deliveries --in dead --limit 1 --json":  {"ameyo/3030"},
		"deliveries --in asked --limit 1 --json": {"ameyo/3031"},
		"deliveries --destination topsii --json": {"ameyo/3030"},
		"calls 3030 --json":                      {"ameyo/3030", "createCallEnd"},
		"accounting --json":                      {"delivered"},
		"destinations --json":                    {"topsii", `"dead"`},
	} {
		out := r.run(done, strings.Fields(args)...)
		if !json.Valid([]byte(out)) {
			t.Errorf("%s: not JSON: %s", args, out)
		}
		says(t, args, out, parts...)
	}
	if out := r.run(done, "deliveries", "--destination", "rules", "--json"); strings.Contains(out, "ameyo/3030") {
		t.Errorf("a filter for another destination lets it through: %s", out)
	}
	says(t, "a destination that is none", r.run(notFound, "deliveries", "--destination", "x"), "there is no destination")
	if d := r.duplicates(); len(d) != 0 {
		t.Errorf("TopS.II got twice: %v", d)
	}
}

// destination is what is known of topsii.
func (r *relay) destination(state operatorv1.OperatorServiceClient) *operatorv1.Destination {
	r.t.Helper()
	list, err := state.ListDestinations(r.t.Context(), &operatorv1.ListDestinationsRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, d := range list.GetDestinations() {
		if d.GetName() == "topsii" {
			return d
		}
	}
	return nil
}
