package state

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/redistest"
	"callrelay/platform/rpc"
)

// Each reason why nothing leaves has its words, the strongest first.
func TestHealth(t *testing.T) {
	closed := &statev1.Standing{Breaker: "closed", Workers: 4}
	busy := &statev1.Standing{Breaker: "closed", Workers: 4, Running: 4}
	without := &statev1.Standing{Breaker: "closed"}
	failing := &statev1.Standing{Breaker: "closed", Workers: 4, Failure: "HTTP 502"}
	open := &statev1.Standing{Breaker: "open", BreakerMs: 9_600, Workers: 4, Failure: "connection refused"}
	half := &statev1.Standing{Breaker: "half-open", Workers: 4}
	night := &operatorv1.Maintenance{FromMs: 1_770_000_000_000, UntilMs: 1_770_010_000_000, Reason: "night"}
	by := func(c ...*statev1.Standing) []*statev1.Standing { return c }
	for _, c := range []struct {
		d    *operatorv1.Destination
		want string
	}{
		{&operatorv1.Destination{Consumers: by(closed)}, "ok"},
		{&operatorv1.Destination{Consumers: by(closed), Waiting: 5}, "ok"},
		{&operatorv1.Destination{Name: "rules"}, "ok"},
		{&operatorv1.Destination{}, "nobody works it off"},
		{&operatorv1.Destination{Consumers: by(closed), Held: true, HoldReason: "x"}, "held by a person"},
		{&operatorv1.Destination{Consumers: by(open), Held: true, HoldReason: "x", ProbeMs: 60_000}, "held because of its own fault, one delivery tries every 1m0s"},
		{&operatorv1.Destination{Consumers: by(closed), Held: true, HoldReason: "night", Maintenance: night}, "maintenance, nothing is sent for 1m1s"},
		{&operatorv1.Destination{Consumers: by(closed), Maintenance: night}, "ok"},
		{&operatorv1.Destination{Consumers: by(open)}, "the circuit breaker is open, it is tried again in 10s: connection refused"},
		{&operatorv1.Destination{Consumers: by(half)}, "lets a few through"},
		{&operatorv1.Destination{Consumers: by(open, closed)}, "1 of 2 processes are not closed: connection refused"},
		{&operatorv1.Destination{Consumers: by(closed), LimitWaitMs: 12_300}, "left alone for another 12s"},
		{&operatorv1.Destination{Consumers: by(closed), LimitWaitMs: 140}, "ok"},
		{&operatorv1.Destination{Consumers: by(busy), Waiting: 5}, "all workers are busy, waiting for answers"},
		{&operatorv1.Destination{Consumers: by(busy, closed), Waiting: 5}, "ok"},
		{&operatorv1.Destination{Consumers: by(busy, without), Waiting: 5}, "all workers are busy, waiting for answers"},
		{&operatorv1.Destination{Consumers: by(without), Waiting: 5}, "no process has a share"},
		{&operatorv1.Destination{Consumers: by(without)}, "ok"},
		{&operatorv1.Destination{Consumers: by(failing), Waiting: 5}, "the last attempt failed: HTTP 502"},
		{&operatorv1.Destination{Consumers: by(failing)}, "ok"},
	} {
		if got := health(c.d, night.UntilMs-61_000); !strings.Contains(got, c.want) || c.want == "ok" && got != "ok" {
			t.Errorf("%v: %q, want %q", c.d, got, c.want)
		}
	}
}

func TestMoment(t *testing.T) {
	zone := time.FixedZone("JST", 9*3600)
	now := time.Date(2026, 3, 6, 23, 30, 0, 0, zone)
	for text, want := range map[string]string{
		"":                          "",
		"90m":                       "2026-03-07T01:00:00+09:00",
		"06:00":                     "2026-03-07T06:00:00+09:00",
		"23:45":                     "2026-03-06T23:45:00+09:00",
		"23:30":                     "2026-03-07T23:30:00+09:00",
		"2026-03-08 06:00":          "2026-03-08T06:00:00+09:00",
		"2026-03-08T06:00:00Z":      "2026-03-08T15:00:00+09:00",
		"2026-03-08T06:00:00+09:00": "2026-03-08T06:00:00+09:00",
		"-5m":                       "error", "soon": "error", "25:00": "error",
	} {
		ms, err := moment("until", text, now.UnixMilli(), zone)
		got := ""
		if ms != 0 {
			got = time.UnixMilli(ms).In(zone).Format(time.RFC3339)
		}
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

// What a consumer says of itself is in its destination's row of every state process, until it is silent.
func TestStandingIsShown(t *testing.T) {
	url := redistest.Start(t).URL()
	b, other := startHere(t, url, nil), startHere(t, url, nil)
	host := rpc.NewServer(b.tel.Log())
	b.Register(host.Registrar())
	defer host.Stop(time.Second)
	stream, err := statev1.NewStateServiceClient(host.InProcess()).Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st := &statev1.Standing{Breaker: "open", BreakerMs: 60_000, Workers: 4, Failure: "no answer to 09012345678", Process: "here:1"}
	if err := stream.Send(&statev1.LeaseRequest{Destination: dest, Standing: st}); err != nil {
		t.Fatal(err)
	}
	var d *operatorv1.Destination
	redistest.Poll(t, 5*time.Second, "it is shown", func() bool {
		list, err := other.relay.ListDestinations(t.Context(), &operatorv1.ListDestinationsRequest{})
		if err != nil || len(list.GetDestinations()) != 1 {
			t.Fatal(list, err)
		}
		d = list.GetDestinations()[0]
		return len(d.GetConsumers()) == 1
	})
	if d.GetConsumers()[0].GetProcess() != "here:1" || !strings.HasPrefix(d.GetHealth(), "the circuit breaker is open, it is tried again in ") || strings.Contains(d.String(), "9012345") {
		t.Errorf("%v", d)
	}
	if err := b.store.Pause(t.Context(), dest, time.Minute); err != nil {
		t.Fatal(err)
	}
	list, err := b.relay.ListDestinations(t.Context(), &operatorv1.ListDestinationsRequest{})
	if err != nil || list.GetDestinations()[0].GetLimitWaitMs() < 30_000 {
		t.Errorf("a pause of its rate limit is shown as %v %v", list, err)
	}
	// A connected account's limit goes by its host.
	if written, err := b.store.PutAccount(t.Context(), &statev1.Account{Id: "kommo/9001", Host: "acme.kommo.com", Version: "1"}, ""); err != nil || !written {
		t.Fatal(err)
	}
	if err := errors.Join(b.store.Know(t.Context(), "kommo/9001"), b.store.Pause(t.Context(), "kommo/acme.kommo.com", time.Minute)); err != nil {
		t.Fatal(err)
	}
	list, err = b.relay.ListDestinations(t.Context(), &operatorv1.ListDestinationsRequest{})
	if err != nil || !slices.ContainsFunc(list.GetDestinations(), func(d *operatorv1.Destination) bool {
		return d.GetName() == "kommo/9001" && d.GetLimitWaitMs() >= 30_000
	}) {
		t.Errorf("a pause of an account is shown as %v %v", list, err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
}

// A maintenance begins and ends by itself, whoever looks; a release ends it for good; another person's hold is left alone.
func TestMaintenance(t *testing.T) {
	b := startHere(t, redistest.Start(t).URL(), nil)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-callrelay-actor", "ann")
	hold := func(from, until, reason string) *operatorv1.Destination {
		t.Helper()
		d, err := b.relay.HoldDestination(ctx, &operatorv1.HoldDestinationRequest{Destination: dest, Reason: reason, From: from, Until: until})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	becomes := func(what string, ok func(*operatorv1.Destination) bool) {
		t.Helper()
		redistest.Poll(t, 10*time.Second, what, func() bool {
			if err := b.watch.maintain(t.Context()); err != nil {
				t.Fatal(err)
			}
			list, err := b.relay.ListDestinations(ctx, &operatorv1.ListDestinationsRequest{})
			if err != nil {
				t.Fatal(err)
			}
			return ok(list.GetDestinations()[0])
		})
	}
	for _, c := range [][3]string{{"1h", "", "x"}, {"2h", "1h", "x"}, {"", "0s", "x"}, {"", "1000h", "x"}, {"x", "1h", "x"}, {"", "1h", ""}} {
		if d, err := b.relay.HoldDestination(ctx, &operatorv1.HoldDestinationRequest{Destination: dest, From: c[0], Until: c[1], Reason: c[2]}); err == nil {
			t.Errorf("%q is taken: %v", c, d)
		}
	}
	if d := hold("500ms", "1500ms", "patches"); d.GetHeld() || d.GetMaintenance().GetActor() != "ann" {
		t.Errorf("planned: %v", d)
	}
	becomes("it is held", func(d *operatorv1.Destination) bool {
		return d.GetHeld() && strings.HasPrefix(d.GetHealth(), "maintenance, ")
	})
	if list, err := b.relay.ListAlarms(ctx, &operatorv1.ListAlarmsRequest{}); err != nil || len(list.GetAlarms()) != 0 {
		t.Errorf("what was planned is an alarm: %v %v", list, err)
	}
	becomes("it is over", func(d *operatorv1.Destination) bool { return !d.GetHeld() && d.GetMaintenance() == nil })

	hold("", "1h", "patches")
	if d, err := b.relay.ReleaseDestination(ctx, &operatorv1.ReleaseDestinationRequest{Destination: dest}); err != nil || d.GetHeld() || d.GetMaintenance() != nil {
		t.Errorf("released: %v %v", d, err)
	}
	becomes("it stays released", func(d *operatorv1.Destination) bool { return !d.GetHeld() })

	hold("", "", "they asked for it")
	hold("100ms", "200ms", "patches")
	becomes("the maintenance is over, the other hold is not", func(d *operatorv1.Destination) bool {
		return d.GetMaintenance() == nil && d.GetHeld() && d.GetHoldReason() == "they asked for it"
	})
	c, err := b.relay.GetCall(ctx, &operatorv1.GetCallRequest{Call: "destination/" + dest})
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, e := range c.GetJournal() {
		said = append(said, e.GetText()[0])
	}
	want := []string{"ann: hold because patches", "ann: release because patches", "ann: hold because patches", "ann: release", "ann: hold because they asked for it"}
	if !slices.Equal(said, want) {
		t.Errorf("journal %q, want %q", said, want)
	}
}

// A misspelt destination is refused: nobody shall take the empty answer for "nothing waits there".
func TestUnknownDestination(t *testing.T) {
	b := startHere(t, redistest.Start(t).URL(), nil)
	_, listed := b.relay.ListDeliveries(t.Context(), &operatorv1.ListDeliveriesRequest{Destination: "topsi"})
	_, held := b.relay.HoldDestination(t.Context(), &operatorv1.HoldDestinationRequest{Destination: "topsi", Reason: "x"})
	stream, err := b.relay.RetryDeliveries(t.Context(), &operatorv1.RetryDeliveriesRequest{Filter: &operatorv1.DeliveryFilter{Destination: "topsi"}})
	if err != nil {
		t.Fatal(err)
	}
	_, retried := stream.Recv()
	for what, err := range map[string]error{"list": listed, "hold": held, "retry": retried} {
		if err == nil || !strings.Contains(err.Error(), `there is no destination "topsi"; there are: topsii`) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Why a destination is held may be what a person typed or a CRM answered: who may not see numbers does not see one there, and an alarm,
// which goes to a webhook and into the log, shows none to anybody.
func TestNumberInHoldReasonIsMasked(t *testing.T) {
	b := startHere(t, redistest.Start(t).URL(), nil)
	const number, shown = "09012345678", "*******5678"
	viewer := metadata.NewOutgoingContext(t.Context(), rpc.Caller{Actor: "v", Role: rpc.RoleViewer, Masked: true}.Metadata())
	if _, err := b.relay.HoldDestination(t.Context(), &operatorv1.HoldDestinationRequest{Destination: dest, Reason: "ask " + number}); err != nil {
		t.Fatal(err)
	}
	alarms, err := b.relay.ListAlarms(t.Context(), &operatorv1.ListAlarmsRequest{})
	if err != nil || len(alarms.GetAlarms()) != 1 || !strings.HasSuffix(alarms.GetAlarms()[0].GetText(), "is held: ask "+shown) {
		t.Errorf("alarms: %v %v", alarms, err)
	}
	for i, until := range []string{"", "1h"} { // a maintenance has a reason of its own
		if _, err := b.relay.HoldDestination(t.Context(), &operatorv1.HoldDestinationRequest{Destination: dest, Reason: "ask " + number, Until: until}); err != nil {
			t.Fatal(err)
		}
		for ctx, want := range map[context.Context]string{t.Context(): number, viewer: shown} {
			list, err := b.relay.ListDestinations(ctx, &operatorv1.ListDestinationsRequest{})
			if err != nil || strings.Count(list.String(), "ask "+want) != 1+i || i == 1 && !strings.HasPrefix(list.GetDestinations()[0].GetHealth(), "maintenance") {
				t.Errorf("want %s: %v %v", want, list, err)
			}
		}
	}
}
