package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/run"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// fakeState answers one call and remembers what it was asked to do.
type fakeState struct {
	statev1.UnimplementedStateServiceServer
	asked []proto.Message
}

func (f *fakeState) GetCall(_ context.Context, r *statev1.GetCallRequest) (*statev1.GetCallResponse, error) {
	switch r.GetCall() {
	case "ameyo/193416":
		return sampleCall(), nil
	case "ameyo/2":
		return &statev1.GetCallResponse{Call: "ameyo/2"}, nil
	default:
		return nil, status.Error(codes.NotFound, "there is no call "+r.GetCall())
	}
}

func (f *fakeState) ListDeliveries(_ context.Context, r *statev1.ListDeliveriesRequest) (*statev1.ListDeliveriesResponse, error) {
	f.asked = append(f.asked, r)
	return &statev1.ListDeliveriesResponse{Deliveries: []*statev1.CallDelivery{{Call: "ameyo/193416", Delivery: sampleCall().GetDeliveries()[0]}}}, nil
}

func (f *fakeState) ListDestinations(context.Context, *statev1.ListDestinationsRequest) (*statev1.ListDestinationsResponse, error) {
	return &statev1.ListDestinationsResponse{Destinations: []*statev1.Destination{
		{Name: "topsii", Waiting: 12, Leased: 3, Dead: 1, OldestAgeMs: 61_000, Held: true, HoldReason: "maintenance", HoldSinceMs: at(0)},
		{Name: "rules"},
	}}, nil
}

func (f *fakeState) Retry(_ context.Context, r *statev1.RetryRequest) (*statev1.RetryResponse, error) {
	f.asked = append(f.asked, r)
	return nil, status.Error(codes.FailedPrecondition, "its gate was served since")
}

func (f *fakeState) Discard(_ context.Context, r *statev1.DiscardRequest) (*statev1.DiscardResponse, error) {
	f.asked = append(f.asked, r)
	return &statev1.DiscardResponse{}, nil
}

func (f *fakeState) Hold(_ context.Context, r *statev1.HoldRequest) (*statev1.HoldResponse, error) {
	f.asked = append(f.asked, r)
	return &statev1.HoldResponse{}, nil
}

func (f *fakeState) Release(_ context.Context, r *statev1.ReleaseRequest) (*statev1.ReleaseResponse, error) {
	f.asked = append(f.asked, r)
	return &statev1.ReleaseResponse{}, nil
}

func serveState(t *testing.T) (*fakeState, string) {
	t.Helper()
	listen, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, server := &fakeState{}, grpc.NewServer()
	statev1.RegisterStateServiceServer(server, f)
	done := make(chan error, 1)
	go func() { done <- server.Serve(listen) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f, listen.Addr().String()
}

// callrelay runs the command line and returns what it prints.
func callrelay(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out strings.Builder
	root := newRoot()
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := execute(t.Context(), root)
	return out.String(), err
}

func code(err error) int {
	if exit, ok := errors.AsType[*run.ExitError](err); ok {
		return exit.Code
	}
	if err != nil {
		return 1
	}
	return 0
}

func TestExitCodes(t *testing.T) {
	_, addr := serveState(t)
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := nobody.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args    string
		want    int
		message string
	}{
		{"call 193416 --state " + addr, 0, ""},
		{"call 000193416 --state " + addr, 0, ""},
		{"call 1 --state " + addr, 3, "there is no call ameyo/1"},
		{"call 2 --state " + addr, 3, "nothing is stored"},
		{"call x --state " + addr, 1, "neither a call id"},
		{"call 193416 --state " + nobody.Addr().String(), 1, "is the relay running?"},
		{"retry 193416 1 --state " + addr, 1, "its gate was served since"},
		{"retry 193416 one --state " + addr, 1, "not the number of a delivery"},
		{"discard 193416 1 --state " + addr, 1, "reason"},
		{"deliveries --in delivered --state " + addr, 1, "not a state of this list"},
		{"nonsense", 1, "unknown command"},
		{"version", 0, ""},
	} {
		_, err := callrelay(t, strings.Fields(c.args)...)
		if code(err) != c.want || (c.message != "" && !strings.Contains(err.Error(), c.message)) {
			t.Errorf("%s: exit %d, %v; want %d, %q", c.args, code(err), err, c.want, c.message)
		}
	}
}

func TestActionsSayWhoAndWhy(t *testing.T) {
	f, addr := serveState(t)
	for _, args := range [][]string{
		{"discard", "193416", "2", "--reason", "by hand"}, {"hold", "topsii", "--reason", "maintenance"}, {"release", "topsii"},
		{"deliveries", "--in", "dead,asked", "--destination", "topsii"},
	} {
		if _, err := callrelay(t, append(args, "--state", addr)...); err != nil {
			t.Fatal(args, err)
		}
	}
	who := actor()
	for i, want := range []proto.Message{
		&statev1.DiscardRequest{Call: "ameyo/193416", Delivery: 2, Actor: who, Reason: "by hand"},
		&statev1.HoldRequest{Destination: "topsii", Actor: who, Reason: "maintenance"},
		&statev1.ReleaseRequest{Destination: "topsii", Actor: who},
		&statev1.ListDeliveriesRequest{Destination: "topsii", Limit: 100,
			States: []statev1.DeliveryState{statev1.DeliveryState_DELIVERY_STATE_DEAD, statev1.DeliveryState_DELIVERY_STATE_ASKED}},
	} {
		if !proto.Equal(f.asked[i], want) {
			t.Errorf("got %v, want %v", f.asked[i], want)
		}
	}
}

func TestTables(t *testing.T) {
	t.Setenv("TZ", "UTC")
	_, addr := serveState(t)
	for args, want := range map[string]string{
		"deliveries":                      "CALL          DELIVERY  TO                      STATE                  ATTEMPTS  CREATED",
		"deliveries --destination topsii": "ameyo/193416  1         topsii createNotAnswer  discarded (uncertain)  2 ",
		"destinations":                    "DESTINATION  WAITING  UNDER WAY  DEAD  OLDEST  HOLD\ntopsii       12       3          1     1m1s    since 2026-03-0",
	} {
		got, err := callrelay(t, append(strings.Fields(args), "--state", addr)...)
		if err != nil || !strings.Contains(got, want) {
			t.Errorf("%s: %v\n%s\nshould have\n%s", args, err, got, want)
		}
	}
}

func TestJSON(t *testing.T) {
	_, addr := serveState(t)
	for _, args := range []string{"call 193416", "deliveries", "destinations"} {
		got, err := callrelay(t, append(strings.Fields(args), "--json", "--state", addr)...)
		if err != nil || !json.Valid([]byte(got)) {
			t.Errorf("%s: %v\n%s", args, err, got)
		}
	}
}

// relay answers as ingress does: a call id that it has seen is a duplicate, one without is refused.
func relay(t *testing.T) string {
	t.Helper()
	seen := make(chan map[string]bool, 1)
	seen <- map[string]bool{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.URL.RawQuery
		if r.FormValue("unique_id") == "" && r.FormValue("cs_unique_id") == "" {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"success":false,"message":"unique_id is required","field":"unique_id","requestId":"R"}`))
			return
		}
		m := <-seen
		duplicate := m[key]
		m[key] = true
		seen <- m
		_ = json.NewEncoder(w).Encode(map[string]any{"success": true, "duplicate": duplicate, "requestId": "R"})
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestSendOne(t *testing.T) {
	to := relay(t)
	got, err := callrelay(t, "send", "call-end", "unique_id=1", "note=a b&c", "--to", to)
	if err != nil || !strings.HasPrefix(got, "200 OK\n{") {
		t.Errorf("%v\n%s", err, got)
	}
	got, err = callrelay(t, "send", "call-end", "customerId=1", "--to", to)
	if code(err) != 1 || !strings.Contains(got, "400 Bad Request\n") || !strings.Contains(got, "unique_id is required") {
		t.Errorf("%v\n%s", err, got)
	}
	for _, args := range []string{"send", "send call-middle", "send call-end unique_id", "send call-end x=1 --to nowhere", "send call-end x=1 --scenario mix"} {
		if _, err := callrelay(t, strings.Fields(args)...); err == nil {
			t.Errorf("%s: no error", args)
		}
	}
}

func TestSendScenario(t *testing.T) {
	to := relay(t)
	got, err := callrelay(t, "send", "--scenario", "two-phones", "--count", "3", "--seed", "7", "--to", to)
	if err != nil || strings.Count(got, "accepted") != 7 || !strings.Contains(got, "6 callbacks in ") || !strings.Contains(got, "--seed 7") {
		t.Errorf("%v\n%s", err, got)
	}
	got, err = callrelay(t, "send", "--scenario", "two-phones", "--count", "3", "--seed", "7", "--to", to)
	if err != nil || !strings.Contains(got, "duplicate 6") {
		t.Errorf("the same seed sends the same: %v\n%s", err, got)
	}
	got, err = callrelay(t, "send", "--scenario", "mix", "--count", "40", "--repeat", "--reorder", "--to", to)
	if err != nil || strings.Contains(got, "CALLBACK") {
		t.Errorf("many answers are only counted: %v\n%s", err, got)
	}
	for _, args := range []string{"send --scenario unknown", "send --scenario mix --count 0"} {
		if _, err := callrelay(t, strings.Fields(args)...); err == nil {
			t.Errorf("%s: no error", args)
		}
	}
	if _, err := callrelay(t, "send", "--scenario", "connected", "--to", "http://127.0.0.1:1"); err == nil {
		t.Error("no answer has to be an error")
	}
}
