package pbx

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"slices"
	"testing"

	"callrelay/callback"
)

// trace is one of testdata/traces.json, the ten traces of facts/pbx_traces.json.
type trace struct {
	ID     string `json:"id"`
	Events []struct {
		RecvMS int64 `json:"recv_ms"`
		On     struct {
			Extension string `json:"extension"`
		} `json:"on"`
		Params map[string]string `json:"params"`
	} `json:"events"`
	Expect struct {
		Records []struct {
			Direction  string  `json:"direction"`
			Number     string  `json:"number"`
			Extension  string  `json:"extension"`
			User       *string `json:"user"`
			DurationUS int64   `json:"duration_us"`
			DurationS  int64   `json:"duration_s"`
			RecordID   *string `json:"record_id"`
			Status     string  `json:"status"`
			Success    bool    `json:"success"`
			DID        *string `json:"did"`
			CallID     string  `json:"call_id"`
			SubCallID  string  `json:"sub_call_id"`
			Missed     bool    `json:"missed"`
		} `json:"records"`
		Notifications []struct {
			AfterEvent int    `json:"after_event"`
			Action     string `json:"action"`
			User       string `json:"user"`
			Card       string `json:"card"`
			Number     string `json:"number"`
		} `json:"notifications"`
	} `json:"expect"`
	Orders [][]int `json:"order_variants"`
}

func traces(t *testing.T) []trace {
	t.Helper()
	data, err := os.ReadFile("testdata/traces.json")
	if err != nil {
		t.Fatal(err)
	}
	var all struct{ Traces []trace }
	if err := json.Unmarshal(data, &all); err != nil || len(all.Traces) != 10 {
		t.Fatalf("%d traces, %v", len(all.Traces), err)
	}
	return all.Traces
}

func (tr *trace) event(t *testing.T, i int) event {
	t.Helper()
	var params callback.Params
	for name, value := range tr.Events[i].Params {
		params = append(params, callback.Param{Name: name, Value: value})
	}
	e, err := callback.DecodePbxEvent(params)
	if err != nil || len(e.Notes) > 0 {
		t.Fatalf("event %d: %v %v", i, err, e.Notes)
	}
	return event{tr.Events[i].On.Extension, e}
}

// expected are the records in the form of world.records.
func (tr *trace) expected() []registration {
	var out []registration
	for _, r := range tr.Expect.Records {
		out = append(out, registration{Integration: "acme", CallID: r.CallID, SubCallID: r.SubCallID, Direction: r.Direction, Status: r.Status,
			Success: r.Success, Missed: r.Missed, Number: r.Number, Extension: r.Extension, User: r.User, DID: r.DID,
			DurationUS: r.DurationUS, DurationS: r.DurationS, RecordID: r.RecordID})
	}
	return out
}

func (w *world) checkRecords(want []registration) {
	w.t.Helper()
	var got []registration
	for _, r := range w.records {
		if r.StartedAt == nil || r.EndedAt == nil || r.Success != (r.AnsweredAt != nil) || r.ExtensionID != extensions[r.Extension].id {
			w.t.Errorf("incomplete: %+v", r)
		}
		r.StartedAt, r.AnsweredAt, r.EndedAt, r.RawStatus, r.ExtensionID = nil, nil, nil, nil, ""
		got = append(got, r)
	}
	byLeg := func(a, b registration) int { return cmpStrings(a.SubCallID, b.SubCallID) }
	slices.SortFunc(got, byLeg)
	want = slices.SortedFunc(slices.Values(want), byLeg)
	if !reflect.DeepEqual(got, want) {
		w.t.Errorf("records\n%s, want\n%s\nsaid %q", inWords(got), inWords(want), w.said)
	}
}

func cmpStrings(a, b string) int {
	if a < b {
		return -1
	}
	return map[bool]int{true: 1}[a > b]
}

func inWords(v any) string {
	b, _ := json.MarshalIndent(v, "", " ")
	return string(b)
}

// TestTraces plays every trace as it happened, in every listed order, and all of that with every event doubled.
func TestTraces(t *testing.T) {
	for _, tr := range traces(t) {
		t.Run(tr.ID, func(t *testing.T) {
			base := make([]int, len(tr.Events))
			for i := range base {
				base[i] = i
			}
			for _, times := range []int{1, 2} {
				t.Run(fmt.Sprintf("as it happened, %d times", times), func(t *testing.T) {
					w := newWorld(t)
					start := w.now
					for i := range tr.Events {
						w.pass(max(0, start+tr.Events[i].RecvMS-w.now))
						for range times {
							w.send(tr.event(t, i))
						}
						w.checkCards(&tr, i)
					}
					w.settle()
					w.checkRecords(tr.expected())
				})
				orders := append(slices.Clone(tr.Orders), base, reversed(base))
				for _, order := range orders {
					t.Run(fmt.Sprintf("order %v, %d times", order, times), func(t *testing.T) {
						w := newWorld(t)
						for _, i := range order {
							for range times {
								w.send(tr.event(t, i))
								w.pass(20)
							}
						}
						w.settle()
						w.checkRecords(tr.expected())
					})
				}
			}
		})
	}
}

func reversed(order []int) []int {
	r := slices.Clone(order)
	slices.Reverse(r)
	return r
}

// checkCards compares what each user sees after an event with the notifications up to it.
func (w *world) checkCards(tr *trace, after int) {
	w.t.Helper()
	type seen struct{ state, direction, number string }
	want := map[string]seen{}
	direction := map[string]string{"incoming": callback.PbxIn, "outgoing": callback.PbxOut}
	rings := 0
	hidden := map[string]bool{} // by the answer of another leg, which may be at once
	for _, n := range tr.Expect.Notifications {
		if n.AfterEvent > after {
			if n.Action == "hide" && n.AfterEvent > after {
				hidden[n.User] = true
			}
			continue
		}
		switch n.Action {
		case "show":
			want[n.User] = seen{CardRinging, direction[n.Card], n.Number}
			if direction[n.Card] == callback.PbxIn {
				rings++
			}
		case "update":
			want[n.User] = seen{CardInCall, want[n.User].direction, n.Number}
		case "hide", "close":
			delete(want, n.User)
		default:
			w.t.Fatalf("unknown action %s", n.Action)
		}
	}
	if len(w.rang) != rings {
		w.t.Errorf("after event %d the legs %v have begun to ring, want %d", after, w.rang, rings)
	}
	got := map[string]seen{}
	for _, c := range w.cards {
		if c.Open() {
			got[c.User] = seen{c.State, c.Direction, c.Number}
		} else if c.State == CardTaken && hidden[c.User] {
			delete(want, c.User)
		}
	}
	if !reflect.DeepEqual(got, want) {
		w.t.Errorf("after event %d the cards are %v, want %v", after, got, want)
	}
}
