package router

import (
	"encoding/json"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"callrelay/callback"
	"callrelay/callback/pbxtable"
	callbackv1 "callrelay/gen/callrelay/callback/v1"
	errorsv1 "callrelay/gen/callrelay/errors/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/accounts"
	"callrelay/platform/errkind"
)

// TestServices: hangups are to come from queues and IVRs that have a URL to send them to.
func TestServices(t *testing.T) {
	var c pbxConfig
	rules := c.of(&pbxtable.Integration{Extensions: []pbxtable.Extension{
		{ID: "1", Name: "0003*101", Type: "phone", Tokens: make([]pbxtable.Token, 1)}, {ID: "2", Name: "0003*700", Type: "queue", Tokens: make([]pbxtable.Token, 1)},
		{ID: "3", Name: "0003*099", Type: "ivr", Tokens: make([]pbxtable.Token, 1)}, {ID: "4", Name: "0003*701", Type: "queue"}}})
	if want := map[string]string{"2": "0003*700", "3": "0003*099"}; !maps.Equal(rules.Services, want) {
		t.Errorf("%v, want %v", rules.Services, want)
	}
}

// An event or a timer of an integration that is not known waits, until it is certain that it is gone and not only new.
func TestIntegrationsComeAndGo(t *testing.T) {
	began := time.Now()
	r := &pbxRules{config: pbxConfig{Grace: time.Second, MaxRing: time.Minute, MaxTalk: time.Hour}, follower: accounts.NewFollower(nil, "pbx/")}
	n := pbxtable.Integration{ID: "acme", Prefix: "0003", ExtensionLen: 3, Extensions: []pbxtable.Extension{{ID: "1", Name: "0003*101", User: "u101"}}}
	settings, err := json.Marshal(pbxtable.Stored{Integration: n})
	if err != nil {
		t.Fatal(err)
	}
	acme := &statev1.Account{Id: "pbx/acme", Version: "1", Settings: settings}
	problems := 0
	take := func(at time.Duration, list ...*statev1.Account) {
		r.take(accounts.List{Accounts: list, Began: began.Add(at)}, func(string, ...any) { problems++ })
	}
	const waits, decided, gone = "waits", "decided", "gone"
	outcome := func(in *input, err error) string {
		switch {
		case err != nil && errkind.From(err).Kind == errorsv1.Kind_KIND_UNAVAILABLE:
			return waits
		case err != nil:
			return err.Error()
		case in.pbx.note != "":
			return gone
		}
		return decided
	}
	check := func(what string, received time.Duration, want string) {
		t.Helper()
		in := &input{since: began.Add(received), received: &statev1.Received{}}
		err := r.event(in, &routerv1.PbxEvent{Integration: "acme", ExtensionId: "1", Extension: "0003*101", Type: "phone",
			Event: &callbackv1.PbxEvent{EventType: "hangup", CallId: "c", SubCallId: "s"}})
		if got := outcome(in, err); got != want {
			t.Errorf("%s: an event %s, want %s", what, got, want)
		}
	}
	timer := func(what string, at, waiting time.Duration, want string) {
		t.Helper()
		in := &input{id: "set-by-a-commit:pbx", call: callback.PbxCallKey("acme", "c"), since: began.Add(at), entry: &statev1.Entry{WaitingMs: waiting.Milliseconds()}}
		if got := outcome(in, r.timer(in, "pbx")); got != want {
			t.Errorf("%s: a timer %s, want %s", what, got, want)
		}
	}
	const day = 24 * time.Hour
	check("state was not heard", 0, waits)
	timer("state was not heard", 0, 0, waits)
	take(time.Second)
	check("it may be on its way", 0, waits)
	timer("it may be on its way", 0, 0, waits)
	take(day)
	check("it was not there for too long", 0, gone)
	check("received lately", day-time.Minute, waits)
	timer("it was not there for too long", day, 2*time.Hour, gone)
	timer("due lately", day, time.Minute, waits)
	take(day+time.Second, acme)
	timer("it came", day, 2*time.Hour, decided)
	take(day + 10*time.Second)
	check("it was there, and was deleted", day+9*time.Second, gone)
	check("received after the copy was made", day+11*time.Second, waits)
	timer("it was there, and was deleted", day+9*time.Second, 0, gone)
	take(day + 12*time.Second)
	check("deleted long ago", day+11*time.Second, gone)
	take(day+13*time.Second, acme)
	check("it is there", 0, decided)
	rules := r.known.Load().rules["acme"]
	if rules.Users["0003*101"] != "u101" || rules.Destination != "webhook:acme" || !rules.DirectMissed {
		t.Errorf("rules %+v", rules)
	}
	if take(day+14*time.Second, acme); r.known.Load().rules["acme"] != rules {
		t.Error("rules of the same version were made again")
	}
	broken := &statev1.Account{Id: "pbx/acme", Version: "2", Settings: []byte("{")}
	take(day+15*time.Second, broken)
	take(day+16*time.Second, broken)
	check("it cannot be read", 0, waits)
	if problems != 1 {
		t.Errorf("said %d times that it cannot be read", problems)
	}
}

// A late recording is asked for where the same extension gave one within the last 7 days (P16).
func TestRecordingsAreWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &pbxRules{}
		wanted := func(integration, extension, recording string) bool {
			return r.wantRecording(&routerv1.PbxEvent{Integration: integration, ExtensionId: extension}, recording)
		}
		if wanted("acme", "1", "") {
			t.Error("of an extension that never gave one")
		}
		wanted("acme", "1", "rec")
		if !wanted("acme", "1", "") || wanted("acme", "2", "") || wanted("umbrella", "1", "") {
			t.Error("it is one extension's")
		}
		<-time.After(7*24*time.Hour - time.Second)
		if !wanted("acme", "1", "") {
			t.Error("not for 7 days")
		}
		<-time.After(time.Second)
		if wanted("acme", "1", "") {
			t.Error("for longer than 7 days")
		}
	})
}
