package topsii

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func get[T any](t *testing.T, s *Server, path string) T {
	t.Helper()
	w := serve(s, httptest.NewRequest(http.MethodGet, path, nil))
	var out T
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || w.Code != http.StatusOK {
		t.Fatalf("GET %s: %d %s: %v", path, w.Code, w.Body, err)
	}
	return out
}

func endOf(subID, endTime string) string {
	return strings.NewReplacer("d336-1", subID, "13:21:00", endTime).Replace(payloads[CallEnd])
}

func TestViewShowsOrderAndTraceButNeverTheKey(t *testing.T) {
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	s := New(Config{APIKey: testKey, KeepPayloads: true})
	r := request(t, "", CallStart, payloads[CallStart])
	r.Header.Set("traceparent", trace)
	r.Header.Set("Cookie", "secret")
	wantCode(t, serve(s, r), "success")
	wantCode(t, post(t, s, CallStart, startOf(7)), "success")
	wantCode(t, post(t, s, CallEnd, payloads[CallEnd]), "success")

	held := s.Held()
	if len(held) != 3 || held[0].Endpoint != CallStart || held[1].CallID != 7 || held[2].Endpoint != CallEnd {
		t.Fatalf("%+v", held)
	}
	if held[0].Traceparent() != trace || held[1].Traceparent() != "" || held[0].At.IsZero() {
		t.Errorf("%+v", held[0])
	}
	if got := s.ByCall(99); len(got) != 2 || !reflect.DeepEqual(got[1], held[2]) {
		t.Errorf("ByCall: %+v", got)
	}
	if s.Count(CallStart) != 2 || s.Count(CallEnd) != 1 || s.Count(NotAnswer) != 0 {
		t.Errorf("%+v", s.Stats())
	}

	for path, want := range map[string]int{
		"/sim/held": 3, "/sim/held?callId=99": 2, "/sim/held?endpoint=createCallStart": 2,
		"/sim/held?callId=99&endpoint=createCallEnd": 1, "/sim/held?callId=1": 0, "/sim/held?endpoint=createNotAnswer": 0,
	} {
		if got := get[[]Held](t, s, path); len(got) != want || got == nil {
			t.Errorf("%s: %+v", path, got)
		}
	}
	all := get[[]Held](t, s, "/sim/held")
	if all[0].Traceparent() != trace || string(all[0].Payload) != payloads[CallStart] {
		t.Errorf("%+v", all[0])
	}
	text := serve(s, httptest.NewRequest(http.MethodGet, "/sim/held", nil)).Body.String()
	if strings.Contains(text, testKey) || strings.Contains(text, "secret") || strings.Contains(strings.ToLower(text), "api-key") {
		t.Errorf("the view shows a secret: %s", text)
	}
	for _, path := range []string{"/sim/held?callId=x", "/sim/held?endpoint=x"} {
		if w := serve(s, httptest.NewRequest(http.MethodGet, path, nil)); w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

func TestViewIsACopy(t *testing.T) {
	s := New(Config{KeepPayloads: true})
	post(t, s, CallStart, payloads[CallStart])
	s.Held()[0].Payload[0] = 'X'
	s.Held()[0].Header.Set("User-Agent", "X")
	if h := s.Held()[0]; string(h.Payload) != payloads[CallStart] || h.Header.Get("User-Agent") == "X" {
		t.Errorf("%+v", h)
	}
}

func TestDuplicates(t *testing.T) {
	for _, keep := range []bool{false, true} {
		s := New(Config{KeepPayloads: keep})
		for _, p := range []struct{ endpoint, payload string }{
			{CallStart, payloads[CallStart]},
			{CallStart, strings.Replace(payloads[CallStart], "ABCD1234", "OTHER", 1)}, // a transfer, not a repeat
			{CallEnd, endOf("d336-1", "13:21:00")},
			{CallEnd, endOf("d336-2", "13:21:00")}, // another attempt
			{NotAnswer, payloads[NotAnswer]},
			{NotAnswer, strings.Replace(payloads[NotAnswer], `,"errorInfo2":"NO_ANSWER"`, "", 1)},
			{NotAnswer, strings.Replace(payloads[NotAnswer], `"BUSY"`, `"NO_ANSWER"`, 1)},
		} {
			wantCode(t, post(t, s, p.endpoint, p.payload), "success")
		}
		if d := s.Duplicates(); len(d) != 0 {
			t.Fatalf("%+v", d)
		}
		setFault(t, s, Fault{Kind: HTTP, Status: 500, Times: 1})
		post(t, s, NotAnswer, payloads[NotAnswer]) // an attempt without effect
		if d := s.Duplicates(); len(d) != 0 {
			t.Fatalf("%+v", d)
		}
		post(t, s, CallEnd, endOf("d336-1", "13:59:59")) // the same attempt with other words
		post(t, s, CallEnd, endOf("d336-1", "13:21:00"))
		post(t, s, NotAnswer, strings.Replace(payloads[NotAnswer], `"callId":99,`, ` "callId": 99, `, 1)) // other white space
		want := []Duplicate{{CallEnd, 99, 3}, {NotAnswer, 99, 2}}
		if d := s.Duplicates(); !reflect.DeepEqual(d, want) {
			t.Errorf("%+v", d)
		}
		if d := get[[]Duplicate](t, s, "/sim/duplicates"); !reflect.DeepEqual(d, want) {
			t.Errorf("%+v", d)
		}
	}
}

func TestCheapModeKeepsNoPayload(t *testing.T) {
	s := New(Config{})
	r := request(t, "", CallStart, payloads[CallStart])
	r.Header.Set("traceparent", "x")
	wantCode(t, serve(s, r), "success")
	if h := s.ByCall(99); len(h) != 1 || h[0].Payload != nil || h[0].Header != nil || h[0].At.IsZero() {
		t.Errorf("%+v", h)
	}
	if st := get[Stats](t, s, "/sim/stats"); st.WithTraceparent != 1 || st.Effects[CallStart] != 1 || st.Outcomes[CallStart]["success"] != 1 {
		t.Errorf("%+v", st)
	}
}

func TestTheOldestMakeRoom(t *testing.T) {
	s := New(Config{MaxHeld: 3})
	ids := func() (out []int64) {
		for _, h := range s.Held() {
			out = append(out, h.CallID)
		}
		return out
	}
	for _, step := range []struct {
		add  int64
		want []int64
	}{
		{1, []int64{1}},
		{2, []int64{1, 2}},
		{1, []int64{1, 2, 1}},
		{3, []int64{2, 1, 3}},
		{4, []int64{1, 3, 4}},
		{5, []int64{3, 4, 5}},
		{6, []int64{4, 5, 6}},
	} {
		wantCode(t, post(t, s, CallStart, startOf(step.add)), "success")
		if got := ids(); !reflect.DeepEqual(got, step.want) {
			t.Fatalf("after %d: %v, want %v", step.add, got, step.want)
		}
	}
	if st := s.Stats(); st.Held != 3 || st.Evicted != 4 || s.Count(CallStart) != 7 || len(s.store.calls) != 3 {
		t.Errorf("%+v", st)
	}
}

func TestReset(t *testing.T) {
	s := New(Config{MaxHeld: 1, KeepPayloads: true})
	post(t, s, CallStart, startOf(1))
	post(t, s, CallStart, startOf(2))
	setFault(t, s, Fault{Kind: HTTP, Status: 500})
	if w := serve(s, httptest.NewRequest(http.MethodDelete, "/sim/held", nil)); w.Code != http.StatusNoContent {
		t.Fatal(w.Code)
	}
	want := Stats{Effects: map[string]int64{}, Outcomes: map[string]map[string]int64{}}
	if st := s.Stats(); !reflect.DeepEqual(st, want) || len(s.Held()) != 0 {
		t.Errorf("%+v", st)
	}
	if w := post(t, s, CallStart, startOf(1)); w.Code != 500 {
		t.Errorf("the fault is gone: %d", w.Code)
	}
}

func TestOnEffect(t *testing.T) {
	type effect struct {
		endpoint string
		callID   int64
	}
	var got []effect
	s := New(Config{OnEffect: func(endpoint string, callID int64, at time.Time) {
		if at.IsZero() {
			t.Error("without a time")
		}
		got = append(got, effect{endpoint, callID})
	}})
	if err := s.SetFault(Fault{Kind: Fail, MessageCode: "WTYP0010", CallID: 2}); err != nil {
		t.Fatal(err)
	}
	for id := range int64(3) {
		post(t, s, CallStart, startOf(id+1))
	}
	if want := []effect{{CallStart, 1}, {CallStart, 3}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v: only what has an effect", got, want)
	}
}
