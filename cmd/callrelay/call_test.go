package main

import (
	"strings"
	"testing"
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
)

var tokyo = time.FixedZone("", 9*60*60)

// at is milliseconds after 2026-03-06 09:00:00 in tokyo.
func at(ms int64) int64 { return time.Date(2026, 3, 6, 9, 0, 0, 0, tokyo).UnixMilli() + ms }

func sampleCall() *operatorv1.Call {
	entry := func(ms int64, text ...string) *operatorv1.Entry {
		return &operatorv1.Entry{Text: text, Fact: &statev1.JournalEntry{AtMs: at(ms)}}
	}
	return &operatorv1.Call{
		Call: "ameyo/193416", Version: "c2", JournalDropped: 17,
		Journal: []*operatorv1.Entry{
			entry(0, "received ameyo.call_end", "unique_id=193416 note=a\x1bb"),
			entry(1, "rule 5: createNotAnswer"),
			entry(24*3600e3, "note: phoneList is not JSON"),
		},
		Deliveries: []*operatorv1.Delivery{
			{Id: "ameyo/193416/1", Call: "ameyo/193416", State: "discarded", Facts: &statev1.Delivery{Number: 1, Destination: "topsii", Endpoint: "createNotAnswer",
				Attempts: 2, Uncertain: true, CreatedMs: at(1), FinalMs: at(6000), Reason: "done by hand"}},
			{Id: "ameyo/193416/2", Call: "ameyo/193416", State: "queued", Facts: &statev1.Delivery{Number: 2, Destination: "topsii", Endpoint: "createNotAnswer", CreatedMs: at(1)}},
		},
	}
}

func TestRenderCall(t *testing.T) {
	const want = `ameyo/193416

2026-03-06 (+09:00)
  09:00:00.000  received ameyo.call_end
                unique_id=193416 note=a.b
  09:00:00.001  rule 5: createNotAnswer

2026-03-07 (+09:00)
  09:00:00.000  note: phoneList is not JSON
  (the journal is full: 17 more bytes were not kept)

DELIVERY  TO                      STATE                  ATTEMPTS  CREATED              ENDED                REASON
1         topsii createNotAnswer  discarded (uncertain)  2         2026-03-06 09:00:00  2026-03-06 09:00:06  done by hand
2         topsii createNotAnswer  queued                 0         2026-03-06 09:00:00  -                    -
`
	var got strings.Builder
	if err := renderCall(&got, sampleCall(), tokyo); err != nil {
		t.Fatal(err)
	}
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}

func TestCallKey(t *testing.T) {
	for arg, want := range map[string]string{"193416": "ameyo/193416", "000193416": "ameyo/193416", "request/R1": "request/R1", "abc": "", "": "", "-1": ""} {
		got, err := callKey(arg)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", arg, got, err)
		}
	}
}
