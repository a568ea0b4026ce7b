package router

import (
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/services/router/kommo"
)

// TestKommoRecords: whatever the rules keep is read again as it was written, and what others keep stays.
func TestKommoRecords(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		call := rapid.Make[kommo.Call]().Draw(t, "call")
		call.ID = "a/b"
		number := rapid.Make[kommo.Number]().Draw(t, "number")
		number.Digits = "3055550142"
		for _, both := range []struct {
			key    string
			call   *kommo.Call
			number *kommo.Number
		}{{"kommo/9001/a/b", &call, nil}, {"kommo-number/9001/3055550142", nil, &number}} {
			record, err := writeKommo(both.call, both.number, &statev1.Record{Blobs: map[string][]byte{"pbx": []byte("x")}})
			if err != nil {
				t.Fatal(err)
			}
			stored := &statev1.Record{}
			if err := proto.Unmarshal(record, stored); err != nil || string(stored.GetBlobs()["pbx"]) != "x" {
				t.Fatalf("%v %v", err, stored)
			}
			gotCall, gotNumber, err := readKommo(both.key, stored)
			if err != nil || !same(gotCall, both.call) || !same(gotNumber, both.number) {
				t.Fatalf("%v\n%+v %+v\nwant\n%+v %+v", err, gotCall, gotNumber, both.call, both.number)
			}
		}
	})
}

// same compares records; that a list or a body is empty or absent makes no difference.
func same(a, b any) bool {
	return reflect.DeepEqual(flat(a), flat(b))
}

func flat(record any) any {
	switch r := record.(type) {
	case *kommo.Number:
		if r == nil {
			return nil
		}
		n := *r
		n.Waiting = nil
		for _, u := range r.Waiting {
			n.Waiting = append(n.Waiting, *flatUnknown(&u))
		}
		n.Creator = flatUnknown(r.Creator)
		return n
	case *kommo.Call:
		if r == nil {
			return nil
		}
		return *r
	}
	return record
}

func flatUnknown(u *kommo.Unknown) *kommo.Unknown {
	if u == nil {
		return nil
	}
	c := *u
	if len(c.LeadBody) == 0 {
		c.LeadBody = nil
	}
	return &c
}

func TestKommoRecordsOfOthers(t *testing.T) {
	newer, _ := proto.Marshal(&statev1.KommoRecord{Format: kommoFormat + 1})
	for _, test := range []struct {
		key  string
		blob []byte
		want string
	}{
		{"kommo/9001/a", newer, "format 2"},
		{"kommo/9001/a", []byte{0xff}, "unreadable"},
		{"ameyo/1", nil, "no key"},
	} {
		if _, _, err := readKommo(test.key, &statev1.Record{Blobs: map[string][]byte{kommoBlob: test.blob}}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.key, err, test.want)
		}
	}
	if _, err := readRecord(&statev1.CallState{Record: []byte{0xff}}); err == nil {
		t.Error("an unreadable record was read")
	}
}

func TestKommoMessages(t *testing.T) {
	for _, in := range []kommo.Input{
		{RequestID: "r", Traceparent: "t", Unknown: &kommo.Unknown{Call: "a", Ask: 2, LeadBody: []byte("[]"), Waits: true, Refused: "u", UntilMS: 5, Phone: "1", RequestID: "r", Traceparent: "t"}},
		{Answer: &kommo.Answer{Kind: kommo.AnswerLead, Ask: 2, Entity: kommo.Entity{Type: "lead", ID: 5}, UID: "u", Included: true, NoteID: 6, Reason: "x"}},
		{Voip: &kommo.Voip{Recording: "rec", Facts: kommo.Facts{Direction: kommo.Inbound, Phone: "1", Duration: 2, Status: 4, StartedMS: 3, User: 5, UserName: "n", DID: "6"}}},
		{RequestID: "r", Traceparent: "t", ReceivedMS: 5, Ringing: &kommo.Ringing{Phone: "1", Users: []int64{2, 3}}},
	} {
		body, err := kommoMessage(in)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := kommoMessageInput(body); err != nil || !reflect.DeepEqual(got, in) {
			t.Errorf("%+v, want %+v: %v", got, in, err)
		}
	}
	if _, err := kommoMessage(kommo.Input{Timer: "claim"}); err == nil {
		t.Error("a timer became a message")
	}
	for _, body := range []string{"\xff", ""} {
		if _, err := kommoMessageInput([]byte(body)); err == nil {
			t.Errorf("%q was read", body)
		}
	}
}

func TestKommoResults(t *testing.T) {
	const delivered, dead = statev1.DeliveryState_DELIVERY_STATE_DELIVERED, statev1.DeliveryState_DELIVERY_STATE_DEAD
	for _, test := range []struct {
		state     statev1.DeliveryState
		uncertain bool
		reply     string
		want      kommo.Outcome
	}{
		{delivered, false, `{"outcome":"ok","note_id":5,"entity_type":"lead","entity_id":6}`, kommo.OK},
		{delivered, true, `{"outcome":"not_found"}`, kommo.NotFound},
		{delivered, false, `{"outcome":"unsorted_off"}`, kommo.UnsortedOff},
		{delivered, false, `{"outcome":"too_many"}`, kommo.TooMany},
		{delivered, false, `{"outcome":"great"}`, ""},
		{delivered, false, ``, ""},
		{dead, false, "", kommo.Dead},
		{dead, true, "", kommo.Uncertain},
		{statev1.DeliveryState_DELIVERY_STATE_ASKED, true, "", kommo.Uncertain},
		{statev1.DeliveryState_DELIVERY_STATE_EXPIRED, false, "", kommo.Dead},
		{statev1.DeliveryState_DELIVERY_STATE_DISCARDED, true, "", kommo.Dropped},
		{statev1.DeliveryState_DELIVERY_STATE_SEND_DISABLED, false, "", kommo.Dropped},
		{statev1.DeliveryState_DELIVERY_STATE_LEASED, false, "", ""},
	} {
		got, err := kommoResult(&statev1.Delivery{Number: 3, Endpoint: "calls", State: test.state, Uncertain: test.uncertain, Reason: "why"}, []byte(test.reply))
		if (err != nil) != (test.want == "") {
			t.Errorf("%v %q: %v", test.state, test.reply, err)
		} else if err == nil && (got.Outcome != test.want || got.Delivery != 3 || got.Endpoint != "calls" || got.Reason != "why") {
			t.Errorf("%v %q: %+v, want %q", test.state, test.reply, got, test.want)
		}
	}
}

// TestKommoSupersededPosts: a person may retry the request that writes a call only while the rules wait for that.
func TestKommoSupersededPosts(t *testing.T) {
	stored := &statev1.Record{}
	for i, test := range []struct {
		call kommo.Call
		want string
	}{
		{kommo.Call{Phase: kommo.Adding, Post: 1}, ""},
		{kommo.Call{Phase: kommo.Failed, Post: 1}, ""},
		{kommo.Call{Phase: kommo.Checking, Post: 1}, "delivery/1"},
		{kommo.Call{Phase: kommo.Failed, Post: 1}, ""}, // given back
		{kommo.Call{Phase: kommo.Checking, Post: 1}, "delivery/1"},
		{kommo.Call{Phase: kommo.Adding, Post: 3}, "delivery/1"},
		{kommo.Call{Phase: kommo.Written, Post: 3}, "delivery/1 delivery/3"},
	} {
		record, err := writeKommo(&test.call, nil, stored)
		if err != nil {
			t.Fatal(err)
		}
		stored = &statev1.Record{}
		if err := proto.Unmarshal(record, stored); err != nil {
			t.Fatal(err)
		}
		var gates []string
		for _, g := range stored.GetGates() {
			gates = append(gates, g.GetKey())
		}
		if got := strings.Join(gates, " "); got != test.want {
			t.Errorf("%d: %q, want %q", i, got, test.want)
		}
	}
	stored = &statev1.Record{}
	for _, number := range []kommo.Number{{Phase: kommo.Creating, Post: 1}, {Phase: kommo.Seeking, Post: 1}, {Phase: kommo.Creating, Post: 3}, {Phase: kommo.Seeking, Post: 3}, {Phase: kommo.Refused, Post: 3}} {
		record, err := writeKommo(nil, &number, stored)
		if err != nil {
			t.Fatal(err)
		}
		stored = &statev1.Record{}
		if err := proto.Unmarshal(record, stored); err != nil {
			t.Fatal(err)
		}
	}
	if len(stored.GetGates()) != 1 {
		t.Errorf("%v", stored.GetGates())
	}
}
