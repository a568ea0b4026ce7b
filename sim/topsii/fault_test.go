package topsii

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// start runs a Server behind a real TCP listener.
func start(t *testing.T, cfg Config) (*Server, string) {
	t.Helper()
	s := New(cfg)
	ts := httptest.NewServer(s)
	t.Cleanup(ts.Close)
	t.Cleanup(s.ClearFaults) // first, else Close waits for what hangs
	return s, ts.URL
}

// client follows no redirect and reuses no connection, so that a cut is seen as one.
func client(t *testing.T) *http.Client {
	tr := &http.Transport{DisableKeepAlives: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// do returns what a client sees: an answer, or part of one, or an error.
func do(t *testing.T, r *http.Request) (*http.Response, string, error) {
	t.Helper()
	resp, err := client(t).Do(r)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

func TestFaultsAsAClientSeesThem(t *testing.T) {
	const success = `"result":"success"`
	for _, tc := range []struct {
		name    string
		fault   Fault
		status  int    // 0: no answer at all
		body    string // a part of it
		err     error  // of reading the body
		header  string // name=value
		effect  bool
		outcome string
	}{
		{name: "accept", fault: Fault{Kind: Accept}, status: 200, body: success, effect: true, outcome: "success"},
		{name: "fail", fault: Fault{Kind: Fail, MessageCode: "WTYP0010", SubMessageCode: "WPRDEXTC3203"}, status: 200,
			body: `{"result":"fail","messageCode":"WTYP0010","subMessageCode":"WPRDEXTC3203","message":"The staff is not logged in."}`, outcome: "fault:fail"},
		{name: "fail, call unknown", fault: Fault{Kind: Fail, MessageCode: "WTYP0010", SubMessageCode: "WPRDEXTC3201"}, status: 200, body: "The call does not exist.", outcome: "fault:fail"},
		{name: "fail, staff unknown", fault: Fault{Kind: Fail, MessageCode: "WTYP0010", SubMessageCode: "WPRDEXTC3202"}, status: 200, body: "The staff cannot be identified.", outcome: "fault:fail"},
		{name: "fail, other logical", fault: Fault{Kind: Fail, MessageCode: "WTYP0010", SubMessageCode: "X"}, status: 200, body: "Logical error.", outcome: "fault:fail"},
		{name: "fail, licence", fault: Fault{Kind: Fail, MessageCode: "WTYP0020"}, status: 200, body: `{"result":"fail","messageCode":"WTYP0020","message":"Licence error."}`, outcome: "fault:fail"},
		{name: "fail, application", fault: Fault{Kind: Fail, MessageCode: "ETYP0040"}, status: 200, body: "Application error.", outcome: "fault:fail"},
		{name: "fail, own words", fault: Fault{Kind: Fail, MessageCode: "Z", Message: "No."}, status: 200, body: `"messageCode":"Z","message":"No."`, outcome: "fault:fail"},
		{name: "fail, no code", fault: Fault{Kind: Fail}, status: 200, body: `{"result":"fail","message":"Application error."}`, outcome: "fault:fail"},
		{name: "http", fault: Fault{Kind: HTTP, Status: 503, RetryAfter: "7"}, status: 503, header: "Retry-After=7", body: "503 Service Unavailable", outcome: "fault:http"},
		{name: "http with effect", fault: Fault{Kind: HTTP, Status: 504, Effect: true}, status: 504, effect: true, outcome: "fault:http"},
		{name: "http without a body", fault: Fault{Kind: HTTP, Status: 204}, status: 204, outcome: "fault:http"},
		{name: "delay", fault: Fault{Kind: Delay, Delay: time.Millisecond}, status: 200, body: success, effect: true, outcome: "fault:delay"},
		{name: "cut", fault: Fault{Kind: Cut}, outcome: "fault:cut"},
		{name: "cut with effect", fault: Fault{Kind: Cut, Effect: true}, effect: true, outcome: "fault:cut"},
		{name: "non_json", fault: Fault{Kind: NonJSON}, status: 200, header: "Content-Type=text/html", body: "<html>", outcome: "fault:non_json"},
		{name: "non_json with effect", fault: Fault{Kind: NonJSON, Effect: true}, status: 200, body: "<html>", effect: true, outcome: "fault:non_json"},
		{name: "slow", fault: Fault{Kind: SlowBody, Pace: time.Microsecond}, status: 200, header: "Content-Length=158", body: success, effect: true, outcome: "fault:slow"},
		{name: "partial", fault: Fault{Kind: Partial}, status: 200, body: `{"count":-1`, err: io.ErrUnexpectedEOF, outcome: "fault:partial"},
		{name: "partial with effect", fault: Fault{Kind: Partial, Effect: true}, status: 200, body: `{"count":-1`, err: io.ErrUnexpectedEOF, effect: true, outcome: "fault:partial"},
		{name: "redirect", fault: Fault{Kind: Redirect}, status: 302, header: "Location=/redirected", outcome: "fault:redirect"},
		{name: "redirect elsewhere", fault: Fault{Kind: Redirect, Status: 308, Location: "http://127.0.0.1:1/"}, status: 308, header: "Location=http://127.0.0.1:1/", outcome: "fault:redirect"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, base := start(t, Config{KeepPayloads: true})
			setFault(t, s, tc.fault)
			resp, body, err := do(t, request(t, base, CallStart, payloads[CallStart]))
			if tc.status == 0 {
				if resp != nil || !errors.Is(err, io.EOF) {
					t.Fatalf("want a cut connection, got %v %v", resp, err)
				}
			} else {
				if resp == nil {
					t.Fatal(err)
				}
				if resp.StatusCode != tc.status || !strings.Contains(body, tc.body) || !errors.Is(err, tc.err) {
					t.Errorf("%d %q %v", resp.StatusCode, body, err)
				}
				if name, value, ok := strings.Cut(tc.header, "="); ok && resp.Header.Get(name) != value {
					t.Errorf("%s: %q", name, resp.Header.Get(name))
				}
			}
			held := s.ByCall(99)
			if tc.effect != (len(held) == 1) || tc.effect != (s.Count(CallStart) == 1) {
				t.Errorf("effect %v, want %v", len(held), tc.effect)
			}
			if tc.effect && tc.fault.Kind != Accept && held[0].Fault != string(tc.fault.Kind) {
				t.Errorf("held with fault %q", held[0].Fault)
			}
			if got := s.Stats().Outcomes[CallStart]; !reflect.DeepEqual(got, map[string]int64{tc.outcome: 1}) {
				t.Errorf("%v", got)
			}
		})
	}
}

func TestFollowedRedirectIsSeen(t *testing.T) {
	s, base := start(t, Config{})
	setFault(t, s, Fault{Kind: Redirect})
	c := client(t)
	c.CheckRedirect = nil
	resp, err := c.Do(request(t, base, CallStart, payloads[CallStart]))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if s.Stats().Outcomes[Unknown]["http:404"] != 1 {
		t.Errorf("%+v", s.Stats())
	}
}

func TestHangUntilTheClientGoes(t *testing.T) {
	for _, effect := range []bool{false, true} {
		s, base := start(t, Config{})
		setFault(t, s, Fault{Kind: Hang, Effect: effect, Times: 1})
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error)
		r := request(t, base, CallStart, payloads[CallStart]).WithContext(ctx)
		go func() {
			_, _, err := do(t, r)
			failed <- err
		}()
		await(t, s, func() bool { return s.Stats().Outcomes[CallStart]["fault:hang"] == 1 })
		if st := s.Stats(); st.InFlight != 1 || s.Count(CallStart) != map[bool]int{true: 1}[effect] {
			t.Errorf("%+v", st)
		}
		// The fault is spent: others get through while one hangs.
		if _, body, err := do(t, request(t, base, CallStart, startOf(1))); err != nil || !strings.Contains(body, "success") {
			t.Errorf("%s %v", body, err)
		}
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		await(t, s, func() bool { return s.Stats().InFlight == 0 })
		if st := s.Stats(); st.MaxInFlight != 2 {
			t.Errorf("%+v", st)
		}
	}
}

func TestHangUntilTheFaultGoes(t *testing.T) {
	for name, remove := range map[string]func(s *Server) error{
		"cleared":  func(s *Server) error { s.ClearFaults(); return nil },
		"replaced": func(s *Server) error { return s.SetFault(Fault{Kind: Accept}) },
	} {
		for _, effect := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, effect %v", name, effect), func(t *testing.T) {
				s, base := start(t, Config{})
				setFault(t, s, Fault{Kind: Hang, Effect: effect})
				type result struct {
					body string
					err  error
				}
				got := make(chan result)
				r := request(t, base, CallStart, payloads[CallStart])
				go func() {
					_, body, err := do(t, r)
					got <- result{body, err}
				}()
				await(t, s, func() bool { return s.Stats().Outcomes[CallStart]["fault:hang"] == 1 })
				if err := remove(s); err != nil {
					t.Fatal(err)
				}
				res := <-got
				if effect && (res.err != nil || !strings.Contains(res.body, "success")) {
					t.Errorf("had its effect: %+v", res)
				}
				if !effect && !errors.Is(res.err, io.EOF) {
					t.Errorf("had no effect: %+v", res)
				}
			})
		}
	}
}

func await(t *testing.T, s *Server, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Await(ctx, done); err != nil {
		t.Fatal(err)
	}
}

func TestTimesOfDelayAndSlowBody(t *testing.T) {
	for _, tc := range []struct {
		fault Fault
		want  time.Duration
	}{
		{Fault{Kind: Delay, Delay: 3 * time.Second}, 3 * time.Second},
		{Fault{Kind: Accept, Delay: time.Second}, time.Second},
		{Fault{Kind: HTTP, Status: 500, Delay: time.Minute}, time.Minute},
		{Fault{Kind: Fail, Delay: time.Minute}, time.Minute},
		{Fault{Kind: SlowBody}, 158 * defaultPace},
		{Fault{Kind: SlowBody, Pace: time.Second, Delay: time.Second}, 159 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := New(Config{})
			setFault(t, s, tc.fault)
			begin := time.Now()
			post(t, s, CallStart, payloads[CallStart])
			if took := time.Since(begin); took != tc.want {
				t.Errorf("%+v took %v, want %v", tc.fault, took, tc.want)
			}
		})
	}
}

func TestDelayIsEffectFirstAndEndsWithTheFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		setFault(t, s, Fault{Kind: Delay, Delay: time.Hour})
		begin := time.Now()
		done := make(chan *httptest.ResponseRecorder)
		go func() { done <- post(t, s, CallStart, payloads[CallStart]) }()
		synctest.Wait()
		if st := s.Stats(); st.InFlight != 1 || s.Count(CallStart) != 1 {
			t.Errorf("%+v", st)
		}
		s.ClearFaults()
		wantCode(t, <-done, "success")
		if took := time.Since(begin); took != 0 {
			t.Errorf("took %v", took)
		}

		setFault(t, s, Fault{Kind: Delay, Delay: time.Hour})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		serve(s, request(t, "", CallStart, payloads[CallStart]).WithContext(ctx))
		if took := time.Since(begin); took != time.Second {
			t.Errorf("a client that goes is waited for: %v", took)
		}
	})
}

func TestTheMostSpecificFaultActs(t *testing.T) {
	s := New(Config{})
	setFault(t, s, Fault{Kind: HTTP, Status: 501})
	setFault(t, s, Fault{Kind: HTTP, Status: 502, Endpoint: CallEnd})
	setFault(t, s, Fault{Kind: HTTP, Status: 503, CallID: 99})
	setFault(t, s, Fault{Kind: HTTP, Status: 504, Endpoint: CallStart, CallID: 99, Times: 2})
	setFault(t, s, Fault{Kind: Accept, CallID: 7})
	status := func(endpoint, payload string) int { return post(t, s, endpoint, payload).Code }
	end7 := strings.Replace(payloads[CallEnd], "99", "7", 1)
	end8 := strings.Replace(payloads[CallEnd], "99", "8", 1)
	for i, got := range []int{
		status(CallStart, payloads[CallStart]), status(CallStart, payloads[CallStart]), // two times
		status(CallStart, payloads[CallStart]), // spent
		status(CallEnd, payloads[CallEnd]), status(CallEnd, end8), status(CallEnd, end7), status(CallStart, startOf(1)),
	} {
		if want := []int{504, 504, 503, 503, 502, 200, 501}[i]; got != want {
			t.Errorf("request %d: %d, want %d", i, got, want)
		}
	}
	set := s.Faults()
	if len(set) != 5 || set[4].Fault.Endpoint != CallStart || set[4].Acted != 2 || !set[4].Spent || set[0].Acted != 1 || set[0].Spent {
		t.Errorf("%+v", set)
	}
	setFault(t, s, Fault{Kind: Accept}) // in place of the widest
	if got := status(CallStart, startOf(1)); got != 200 {
		t.Error(got)
	}
}

func TestProbabilityIsDrawnFromTheSeed(t *testing.T) {
	draw := func(seed uint64) (pattern string, hits int) {
		s := New(Config{})
		setFault(t, s, Fault{Kind: HTTP, Status: 503, Probability: 0.3, Seed: seed})
		for range 1000 {
			if post(t, s, CallStart, payloads[CallStart]).Code == 503 {
				pattern, hits = pattern+"x", hits+1
			} else {
				pattern += "."
			}
		}
		return pattern, hits
	}
	a, hits := draw(1)
	if hits < 230 || hits > 370 {
		t.Errorf("%d of 1000", hits)
	}
	if again, _ := draw(1); again != a {
		t.Error("the same seed draws otherwise")
	}
	if other, _ := draw(2); other == a {
		t.Error("another seed draws the same")
	}

	s := New(Config{})
	setFault(t, s, Fault{Kind: HTTP, Status: 503, Probability: 0.5, Times: 3})
	hits = 0
	for range 100 {
		if post(t, s, CallStart, payloads[CallStart]).Code == 503 {
			hits++
		}
	}
	if hits != 3 {
		t.Errorf("Times counts the requests acted on: %d", hits)
	}
}

func TestWrongFaultsAreRefused(t *testing.T) {
	s := New(Config{})
	for _, f := range []Fault{
		{}, {Kind: "x"}, {Kind: Cut, Endpoint: "x"}, {Kind: Cut, CallID: -1}, {Kind: Cut, Times: -1}, {Kind: Cut, Delay: -1},
		{Kind: Cut, Probability: 1.5}, {Kind: Cut, Probability: -0.1}, {Kind: HTTP}, {Kind: HTTP, Status: 100}, {Kind: HTTP, Status: 600},
		{Kind: Delay}, {Kind: Hang, Delay: 1}, {Kind: Fail, Effect: true}, {Kind: Redirect, Status: 200}, {Kind: SlowBody, Pace: -1},
	} {
		if err := s.SetFault(f); err == nil {
			t.Errorf("%+v is accepted", f)
		}
	}
	if len(s.Faults()) != 0 {
		t.Errorf("%+v", s.Faults())
	}
}

func TestFaultsOverHTTP(t *testing.T) {
	s := New(Config{})
	put := func(body string) int {
		return serve(s, httptest.NewRequest(http.MethodPut, "/sim/fault", strings.NewReader(body))).Code
	}
	for _, body := range []string{"", "x", `{"kind":"x"}`, `{"kind":"cut","sometimes":3}`, `{"kind":"delay","delay":"soon"}`, `{"kind":"delay","delay":5}`} {
		if got := put(body); got != http.StatusBadRequest {
			t.Errorf("%s: %d", body, got)
		}
	}
	if got := put(`{"kind":"http","status":503,"retryAfter":"2","endpoint":"createCallStart","callId":5,"times":3,"probability":1,"seed":4,"effect":true,"delay":"1ms","pace":"2ms"}`); got != 200 {
		t.Fatal(got)
	}
	want := Fault{Kind: HTTP, Status: 503, RetryAfter: "2", Endpoint: CallStart, CallID: 5, Times: 3, Probability: 1, Seed: 4, Effect: true,
		Delay: time.Millisecond, Pace: 2 * time.Millisecond}
	if got := s.Faults(); len(got) != 1 || got[0].Fault != want {
		t.Errorf("%+v", got)
	}
	if got := get[[]ActiveFault](t, s, "/sim/fault"); len(got) != 1 || got[0].Fault != want {
		t.Errorf("%+v", got)
	}
	text, err := json.Marshal(want)
	if err != nil || strings.Contains(string(text), "location") {
		t.Errorf("%s %v", text, err)
	}
	if w := serve(s, httptest.NewRequest(http.MethodDelete, "/sim/fault", nil)); w.Code != http.StatusNoContent || len(s.Faults()) != 0 {
		t.Errorf("%d %+v", w.Code, s.Faults())
	}
	if got := get[[]ActiveFault](t, s, "/sim/fault"); got == nil || len(got) != 0 {
		t.Errorf("%+v", got)
	}
	if w := serve(s, httptest.NewRequest(http.MethodPost, "/sim/fault", nil)); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", w.Code)
	}
}
