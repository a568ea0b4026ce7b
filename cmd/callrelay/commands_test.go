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
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/run"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// fakeState answers one call and remembers what it was asked to do and by whom.
type fakeState struct {
	operatorv1.UnimplementedOperatorServiceServer
	asked  []proto.Message
	actors []string
	alarms []*operatorv1.Alarm
	differ bool
}

func (f *fakeState) note(ctx context.Context, r proto.Message) {
	md, _ := metadata.FromIncomingContext(ctx)
	f.asked, f.actors = append(f.asked, r), append(f.actors, strings.Join(md.Get("x-callrelay-actor"), ","))
}

func (f *fakeState) GetCall(_ context.Context, r *operatorv1.GetCallRequest) (*operatorv1.Call, error) {
	if r.GetCall() != "ameyo/193416" {
		return nil, status.Error(codes.NotFound, "there is no call "+r.GetCall())
	}
	return sampleCall(), nil
}

func (f *fakeState) GetRequest(_ context.Context, r *operatorv1.GetRequestRequest) (*operatorv1.Request, error) {
	return nil, status.Error(codes.NotFound, "no request "+r.GetRequestId())
}

func (f *fakeState) SearchCalls(ctx context.Context, r *operatorv1.SearchCallsRequest) (*operatorv1.SearchCallsResponse, error) {
	f.note(ctx, r)
	return &operatorv1.SearchCallsResponse{NextPageToken: "next", Calls: []*operatorv1.CallSummary{
		{Call: "ameyo/193416", FirstMs: at(0), LastMs: at(6000), Summary: "rule 5: createNotAnswer", Deliveries: sampleCall().GetDeliveries()}}}, nil
}

func (f *fakeState) ListDeliveries(ctx context.Context, r *operatorv1.ListDeliveriesRequest) (*operatorv1.ListDeliveriesResponse, error) {
	f.note(ctx, r)
	return &operatorv1.ListDeliveriesResponse{Deliveries: sampleCall().GetDeliveries()[:1]}, nil
}

func (f *fakeState) ListDestinations(context.Context, *operatorv1.ListDestinationsRequest) (*operatorv1.ListDestinationsResponse, error) {
	return &operatorv1.ListDestinationsResponse{Destinations: []*operatorv1.Destination{
		{Name: "topsii", Waiting: 12, Sending: 3, Dead: 1, OldestAgeMs: 61_000, Held: true, HoldReason: "maintenance", HoldSinceMs: at(0), Health: "held by a person",
			Maintenance: &operatorv1.Maintenance{FromMs: at(0), UntilMs: at(60_000), Reason: "patches", Actor: "ann"}},
		{Name: "rules"},
	}}, nil
}

func (f *fakeState) RetryDelivery(ctx context.Context, r *operatorv1.RetryDeliveryRequest) (*operatorv1.Delivery, error) {
	f.note(ctx, r)
	return nil, status.Error(codes.FailedPrecondition, "its gate was served since")
}

func (f *fakeState) DiscardDelivery(ctx context.Context, r *operatorv1.DiscardDeliveryRequest) (*operatorv1.Delivery, error) {
	f.note(ctx, r)
	return &operatorv1.Delivery{}, nil
}

func (f *fakeState) RetryDeliveries(r *operatorv1.RetryDeliveriesRequest, stream operatorv1.OperatorService_RetryDeliveriesServer) error {
	f.note(stream.Context(), r)
	for _, p := range []*operatorv1.Progress{{Total: 9, Seen: 4, Done: 3, Refused: 1, Refusals: []string{"ameyo/1: superseded"}}, {Total: 9, Seen: 9, Done: 8, Refused: 1, Finished: true}} {
		if err := stream.Send(p); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeState) DiscardDeliveries(r *operatorv1.DiscardDeliveriesRequest, stream operatorv1.OperatorService_DiscardDeliveriesServer) error {
	f.note(stream.Context(), r)
	return stream.Send(&operatorv1.Progress{Total: 2, Seen: 2, Done: 2, Finished: true})
}

func (f *fakeState) HoldDestination(ctx context.Context, r *operatorv1.HoldDestinationRequest) (*operatorv1.Destination, error) {
	f.note(ctx, r)
	return &operatorv1.Destination{}, nil
}

func (f *fakeState) ReleaseDestination(ctx context.Context, r *operatorv1.ReleaseDestinationRequest) (*operatorv1.Destination, error) {
	f.note(ctx, r)
	return &operatorv1.Destination{}, nil
}

func (f *fakeState) GetAccounting(context.Context, *operatorv1.GetAccountingRequest) (*operatorv1.Accounting, error) {
	a := &operatorv1.Accounting{CheckedMs: at(0), CheckedRequests: 5, Received: 5, Duplicate: 1, Accepted: 4, Delivered: 4}
	if f.differ {
		a.Differences = []*operatorv1.Difference{{HourMs: at(0), Bucket: "delivered", Counted: 4, Journaled: 3, RequestId: "R7"}}
	}
	return a, nil
}

func (f *fakeState) ListAlarms(context.Context, *operatorv1.ListAlarmsRequest) (*operatorv1.ListAlarmsResponse, error) {
	return &operatorv1.ListAlarmsResponse{Alarms: f.alarms}, nil
}

// fakeAccounts has one account with a notice.
type fakeAccounts struct {
	statev1.UnimplementedAccountServiceServer
}

func (fakeAccounts) ListAccounts(context.Context, *statev1.ListAccountsRequest) (*statev1.ListAccountsResponse, error) {
	return &statev1.ListAccountsResponse{Accounts: []*statev1.Account{{Id: "kommo/9001", Host: "acme.kommo.com", Credentials: []byte("sealed"),
		Notices: []*statev1.Notice{{Code: "revoked", Text: "connect it again", SinceMs: at(0)}}}}}, nil
}

// Accounts are listed with what somebody should do, and without their credentials.
func TestIntegrationsAccounts(t *testing.T) {
	_, addr := serveState(t)
	got, err := callrelay(t, "integrations", "accounts", "--state", addr)
	if code(err) != exitAlarm || !strings.Contains(got, "kommo/9001  acme.kommo.com  does not end") || !strings.Contains(got, "connect it again") {
		t.Errorf("%v\n%s", err, got)
	}
	got, err = callrelay(t, "integrations", "accounts", "--json", "--state", addr)
	if code(err) != exitAlarm || !json.Valid([]byte(got)) || strings.Contains(got, "credentials") {
		t.Errorf("%v\n%s", err, got)
	}
}

func serveState(t *testing.T) (*fakeState, string) {
	t.Helper()
	listen, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, server := &fakeState{}, grpc.NewServer()
	statev1.RegisterAccountServiceServer(server, fakeAccounts{})
	operatorv1.RegisterOperatorServiceServer(server, f)
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
	away := nobody.Addr().String() + " does not answer (is the relay running? --state says where): connection error"
	for _, c := range []struct {
		args    string
		want    int
		message string
	}{
		{"call 193416 --state " + addr, 0, ""},
		{"call 000193416 --state " + addr, 0, ""},
		{"call 1 --state " + addr, 3, "there is no call ameyo/1"},
		{"call x --state " + addr, 1, "neither a call id"},
		{"call 193416 --state " + nobody.Addr().String(), 1, "state at " + away},
		{"integrations accounts --state " + nobody.Addr().String(), 1, "state at " + away},
		{"diagnose 193416 --router " + nobody.Addr().String(), 1, "router at " + strings.ReplaceAll(away, "--state", "--router")},
		{"resend ABC --reason x --router " + nobody.Addr().String(), 1, "router at " + strings.ReplaceAll(away, "--state", "--router")},
		{"explain unique_id=1 --stored --router " + nobody.Addr().String(), 1, "router at " + strings.ReplaceAll(away, "--state", "--router")},
		{"cards --integration acme --user u1 --ingress " + nobody.Addr().String(), 1, "ingress at " + strings.ReplaceAll(away, "--state", "--ingress")},
		{"integrations check kommo/9001 --upstream " + nobody.Addr().String(), 1, "upstream at " + strings.ReplaceAll(away, "--state", "--upstream")},
		{"retry 193416 1 --state " + addr, 1, "its gate was served since"},
		{"retry 193416 one --state " + addr, 1, "not the number of a delivery"},
		{"discard 193416 1 --state " + addr, 1, "reason"},
		{"nonsense", 1, "unknown command"},
		{"status", 1, "\tdestinations"},
		{"status", 1, "\talarms"},
		{"request request/ABC --state " + addr, 3, "no request ABC"},
		{"integrations connect", 1, "usage: callrelay integrations connect <host>"},
		{"integrations nonsense", 1, "unknown command"},
		{"completion nonsense", 1, "unknown command"},
		{"integrations", 0, ""},
		{"calls --state dead", 1, "the state of deliveries is --in dead"},
		{"diagnose 1 --router here", 1, `--router "here" is not an address`},
		{"explain unique_id=1&customerId=2&systemDisposition=BUSY --profile seed", 1, "--profile is that of a --rules file, and none is given"},
		{"explain hello", 1, "1 of 1 inputs are no callback"},
		{"explain hello --json", 1, "no callback"},
		{"explain unique_id=x&systemDisposition=BUSY", 4, "1 of 1 callbacks would be refused"},
		{"explain unique_id=1&customerId=2&systemDisposition=BUSY hello", 1, "1 of 2 inputs"},
		{"explain unique_id=1&customerId=2&systemDisposition=BUSY", 0, ""},
		{"version", 0, ""},
		{"version --json", 0, ""},
	} {
		_, err := callrelay(t, strings.Fields(c.args)...)
		if code(err) != c.want || (c.message != "" && !strings.Contains(err.Error(), c.message)) {
			t.Errorf("%s: exit %d, %v; want %d, %q", c.args, code(err), err, c.want, c.message)
		}
	}
}

// Who acts is told in the letters that gRPC carries; a name with others keeps nobody from acting.
func TestActor(t *testing.T) {
	state, addr := serveState(t)
	t.Setenv("SUDO_USER", "jürgen")
	if _, err := callrelay(t, "deliveries", "--state", addr); err != nil || !strings.HasPrefix(state.actors[0], "j?rgen@") {
		t.Errorf("%v, asked by %q", err, state.actors)
	}
}

// Each command's group names the flag of the service that it asks, and no other's.
func TestHelpNamesWhoIsAsked(t *testing.T) {
	help, err := callrelay(t, "--help")
	if err != nil {
		t.Fatal(err)
	}
	title := ""
	titles := map[string]string{}
	for line := range strings.Lines(help) {
		if strings.HasSuffix(line, "):\n") {
			title = line
		} else if words := strings.Fields(line); len(words) > 0 {
			titles[words[0]] = title
		}
	}
	for _, group := range newRoot().Commands() {
		if group.GroupID != "look" && group.GroupID != "act" {
			continue
		}
		for _, c := range append(group.Commands(), group) {
			for _, flag := range []string{"router", "ingress", "upstream"} {
				named := strings.Contains(titles[group.Name()], group.Name()+" --"+flag)
				if has := c.Flags().Lookup(flag) != nil; has && !named && group.Name() != "explain" { // which needs it only with --stored
					t.Errorf("%s has --%s, and the help says %q", c.CommandPath(), flag, titles[group.Name()])
				}
			}
			if c.RunE != nil && len(c.Commands()) == 0 && c.Flags().Lookup("state") == nil && !strings.Contains(titles[group.Name()], group.Name()+" ") {
				t.Errorf("%s does not ask state, and the help says %q", c.CommandPath(), titles[group.Name()])
			}
		}
	}
}

// Who does not answer in time is named with the time that it had.
func TestTimeoutInWords(t *testing.T) {
	err := status.Error(codes.DeadlineExceeded, "context deadline exceeded")
	for _, c := range []struct {
		service string
		limit   time.Duration
		want    string
	}{
		{"state", time.Minute, "state at here:1 did not answer within 1m0s: Redis may be stuck"},
		{"upstream", 2 * time.Minute, "upstream at here:1 did not answer within 2m0s"},
	} {
		if got := inWords(err, c.service, "here:1", c.limit); got.Error() != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestActionsSayWhoAndWhy(t *testing.T) {
	f, addr := serveState(t)
	for _, args := range [][]string{
		{"discard", "193416", "2", "--reason", "by hand"}, {"hold", "topsii", "--reason", "maintenance", "--from", "02:00", "--until", "4h"}, {"release", "topsii"},
		{"deliveries", "--in", "dead,asked", "--destination", "topsii"},
		{"discard", "--all", "--in", "expired", "--because", "late", "--reason", "seen"},
		{"calls", "090", "1234", "--since", "2h", "--in", "dead"},
	} {
		if _, err := callrelay(t, append(args, "--state", addr)...); err != nil {
			t.Fatal(args, err)
		}
	}
	for i, want := range []proto.Message{
		&operatorv1.DiscardDeliveryRequest{Delivery: "ameyo/193416/2", Reason: "by hand"},
		&operatorv1.HoldDestinationRequest{Destination: "topsii", Reason: "maintenance", From: "02:00", Until: "4h"},
		&operatorv1.ReleaseDestinationRequest{Destination: "topsii"},
		&operatorv1.ListDeliveriesRequest{Destination: "topsii", PageSize: 100, State: []string{"dead", "asked"}},
		&operatorv1.DiscardDeliveriesRequest{Filter: &operatorv1.DeliveryFilter{State: []string{"expired"}, ReasonContains: "late"}, Reason: "seen"},
		&operatorv1.SearchCallsRequest{Query: "090 1234", Since: "2h", State: "dead", PageSize: 50},
	} {
		if !proto.Equal(f.asked[i], want) || f.actors[i] != actor() {
			t.Errorf("got %v by %s, want %v", f.asked[i], f.actors[i], want)
		}
	}
}

func TestBulk(t *testing.T) {
	_, addr := serveState(t)
	got, err := callrelay(t, "retry", "--all", "--state", addr)
	if code(err) != exitAlarm || got != "refused: ameyo/1: superseded\n8 queued again, 1 refused\n" {
		t.Errorf("%v\n%s", err, got)
	}
	got, err = callrelay(t, "retry", "--all", "--json", "--state", addr)
	if lines := strings.Split(strings.TrimSpace(got), "\n"); code(err) != exitAlarm || len(lines) != 2 || !json.Valid([]byte(lines[1])) {
		t.Errorf("%v\n%s", err, got)
	}
	for _, args := range []string{"retry 193416 1 --in dead", "retry --all 193416", "retry"} {
		if _, err := callrelay(t, append(strings.Fields(args), "--state", addr)...); code(err) != 1 {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// The first line is what somebody should look at; a difference comes before the numbers and is an exit code.
func TestAlarmsComeFirst(t *testing.T) {
	t.Setenv("TZ", "UTC")
	f, addr := serveState(t)
	if got, err := callrelay(t, "accounting", "--state", addr); err != nil || !strings.HasPrefix(got, "difference: none in 5 requests") {
		t.Errorf("%v\n%s", err, got)
	}
	if got, err := callrelay(t, "alarms", "--state", addr); err != nil || got != "none\n" {
		t.Errorf("%v\n%s", err, got)
	}
	f.differ, f.alarms = true, []*operatorv1.Alarm{{Name: "destination_held", Text: "topsii is held: maintenance"}}
	if got, err := callrelay(t, "accounting", "--state", addr); code(err) != exitAlarm ||
		!strings.HasPrefix(got, "ALARM: topsii is held: maintenance\n\nDIFFERENCE in 1 places") || !strings.Contains(got, "R7") {
		t.Errorf("%v\n%s", err, got)
	}
	if got, err := callrelay(t, "destinations", "--state", addr); err != nil || !strings.HasPrefix(got, "ALARM: topsii is held: maintenance\n\nDESTINATION") {
		t.Errorf("%v\n%s", err, got)
	}
	if got, err := callrelay(t, "alarms", "--state", addr); code(err) != exitAlarm || !strings.Contains(got, "destination_held") {
		t.Errorf("%v\n%s", err, got)
	}
}

func TestTables(t *testing.T) {
	t.Setenv("TZ", "UTC")
	_, addr := serveState(t)
	for args, want := range map[string]string{
		"calls 5":                         "CALL          FIRST                LAST                 DELIVERIES                     DECIDED\nameyo/193416  2026",
		"deliveries":                      "CALL          DELIVERY  TO                      STATE                  ATTEMPTS  CREATED",
		"deliveries --destination topsii": "ameyo/193416  1         topsii createNotAnswer  discarded (uncertain)  2 ",
		"destinations":                    "DESTINATION  WAITING  UNDER WAY  DEAD  OLDEST  HOLD                                    HEALTH\ntopsii       12       3          1     1m1s    since 2026-03-0",
	} {
		got, err := callrelay(t, append(strings.Fields(args), "--state", addr)...)
		if err != nil || !strings.Contains(got, want) {
			t.Errorf("%s: %v\n%s\nshould have\n%s", args, err, got, want)
		}
	}
}

func TestJSON(t *testing.T) {
	_, addr := serveState(t)
	for _, args := range []string{"call 193416", "calls", "deliveries", "destinations", "accounting", "alarms", "hold topsii --reason x"} {
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
