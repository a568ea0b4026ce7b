package router

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"callrelay/callback"
	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/rpc"
)

// TestAdviceKey: advice is given on whatever key a call can have.
func TestAdviceKey(t *testing.T) {
	id := url.QueryEscape(strings.Repeat("ж", 64))
	for text, want := range map[string]string{
		"007":                             "ameyo/7",
		"kommo/9223372036854775807/" + id: "kommo/9223372036854775807/" + id,
		"pbx/acme/" + id:                  "pbx/acme/" + id,
		"ameyo/x":                         "",
		"pbx/" + strings.Repeat("x", callback.MaxCallKey): "",
	} {
		if got, err := callKey(text); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
}

// A callback that is sent again makes its call findable by what it says now, and is decided as its stored query reads.
func TestResentIsFound(t *testing.T) {
	e, _ := newTestEngine(t)
	received := &statev1.Received{Query: []byte("customerId=55&systemDisposition=BUSY&dialledPhone=031234"), Peer: "192.0.2.1", AgeMs: 10}
	for _, name := range []string{"unique_id", "unique.id"} {
		in, err := (&advice{engine: e}).corrected(&operatorv1.ResendRequest{RequestId: "r1", Set: map[string]string{name: "007", "userId": "u1"}},
			&origin{entry: &statev1.JournalEntry{AtMs: 1000}, received: received}, rpc.Caller{})
		if err != nil {
			t.Fatal(err)
		}
		if in.call != "ameyo/7" || in.receivedMS != 990 || !slices.Equal(in.terms, []string{"55", "u1"}) || !slices.Equal(in.phones, []string{"031234"}) ||
			in.received.GetSource() != "ameyo.call_end" || in.received.GetPeer() != "192.0.2.1" || in.ameyo.CallEnd.CustomerID != "55" || in.ameyo.RequestID != in.id {
			t.Errorf("%s: %+v", name, in)
		}
	}
}

// What cannot be resent is told from what it is, refused or not, and what can be done instead is said.
func TestOnlyTheDialersCallbacksAreResent(t *testing.T) {
	e, _ := newTestEngine(t)
	for _, c := range []struct{ source, path, want string }{
		{"", "/v1/kommo/9001/calls", "POST /v1/kommo/ACCOUNT/calls"}, {"kommo.call", "", "POST /v1/kommo/ACCOUNT/calls"},
		{"", "/v1/kommo/9001/call-results", "the manager save it again"}, {"kommo.window", "", "the manager save it again"},
		{"", "/ext-event/starting-queue-7", "an event of a cloud PBX"}, {"pbx.call_end", "", "an event of a cloud PBX"},
		{"", "/index.php", "unique_id is required"}, {"", "/call_start.php", "unique_id is required"},
	} {
		f := &origin{entry: &statev1.JournalEntry{AtMs: 1000}, received: &statev1.Received{Source: c.source, Query: []byte("call_id=7")}, rejected: &statev1.Rejected{Path: c.path}}
		if _, err := (&advice{engine: e}).corrected(&operatorv1.ResendRequest{RequestId: "r1"}, f, rpc.Caller{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
