package topsii

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const testKey = "0123456789abcdef0123456789abcdef"

var payloads = map[string]string{
	CallStart: `{"predictiveCallCreateCallStart":{"callId":99,"predictiveStaffId":"ABCD1234","targetTel":"03000000001"}}`,
	CallEnd: `{"predictiveCallCreateCallEnd":{"callId":99,"callStartTime":"2026-03-06 13:20:05","callEndTime":"2026-03-06 13:21:00",` +
		`"subCtiHistoryId":"d336-1","targetTel":"03000000001","predictiveStaffId":"ABCD1234"}}`,
	NotAnswer: `{"predictiveCallCreateNotAnswer":{"callId":99,"callTime":"2026-03-06 13:20:05","errorInfo1":"BUSY","errorInfo2":"NO_ANSWER"}}`,
}

func startOf(callID int64) string {
	return fmt.Sprintf(`{"predictiveCallCreateCallStart":{"callId":%d,"predictiveStaffId":"A","targetTel":"03000000001"}}`, callID)
}

// request is a correct one, for a test to change.
func request(t testing.TB, base, endpoint, payload string) *http.Request {
	t.Helper()
	body := url.Values{"jsonData": {payload}}.Encode()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+DefaultPathPrefix+endpoint+".json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set(KeyHeader, testKey)
	return r
}

// serve answers in process.
func serve(s *Server, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func post(t testing.TB, s *Server, endpoint, payload string) *httptest.ResponseRecorder {
	t.Helper()
	return serve(s, request(t, "", endpoint, payload))
}

// code is "success" or the message code of a 200 answer.
func code(t testing.TB, w *httptest.ResponseRecorder) string {
	t.Helper()
	var a struct{ Result, MessageCode, SubMessageCode, Message string }
	if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil || w.Code != http.StatusOK {
		t.Fatalf("%d %s: %v", w.Code, w.Body, err)
	}
	if a.Result == "success" {
		return a.Result
	}
	if a.Result != "fail" || a.Message == "" {
		t.Fatalf("not a failure with a message: %s", w.Body)
	}
	return strings.TrimSuffix(a.MessageCode+"/"+a.SubMessageCode, "/")
}

func wantCode(t testing.TB, w *httptest.ResponseRecorder, want string) {
	t.Helper()
	if got := code(t, w); got != want {
		t.Fatalf("answer %s, want %s: %s", got, want, w.Body)
	}
}

func setFault(t testing.TB, s *Server, f Fault) {
	t.Helper()
	if err := s.SetFault(f); err != nil {
		t.Fatal(err)
	}
}

func TestSuccessIsTheDocumentedAnswer(t *testing.T) {
	s := New(Config{APIKey: testKey, KeepPayloads: true})
	// The lengths are those in the log of the relay that runs against the real one.
	for endpoint, length := range map[string]int{CallStart: 158, CallEnd: 156, NotAnswer: 158} {
		w := post(t, s, endpoint, payloads[endpoint])
		want := `{"count":-1,"limit":-1,"offset":-1,"result":"success","service":"` + DefaultPathPrefix + endpoint + `.json","size":1}`
		if w.Code != http.StatusOK || w.Body.String() != want || w.Body.Len() != length {
			t.Errorf("%s: %d %s", endpoint, w.Code, w.Body)
		}
		if got := w.Header().Get("Content-Type"); got != "application/json;charset=UTF-8" {
			t.Errorf("Content-Type %s", got)
		}
		if held := s.HeldBy(endpoint); len(held) != 1 || held[0].CallID != 99 || string(held[0].Payload) != payloads[endpoint] {
			t.Errorf("%s holds %+v", endpoint, held)
		}
	}
}

func TestOptionalFieldsAndFieldOrderAreFree(t *testing.T) {
	for endpoint, payload := range map[string]string{
		CallEnd: `{"predictiveCallCreateCallEnd":{"errorInfo":"BUSY","predictiveStaffId":"A","targetTel":"0","subCtiHistoryId":"x",` +
			`"callEndTime":"2026-03-06 00:00:00","callStartTime":"2026-03-06 00:00:00","callId":999999999999999999}}`,
		NotAnswer: ` { "predictiveCallCreateNotAnswer" : { "callId" : 0, "callTime":"2026-03-06 13:20:05", "errorInfo1":"UNKNOWN" } } `,
	} {
		wantCode(t, post(t, New(Config{}), endpoint, payload), "success")
	}
}

func TestWrongPayloadsAreNoticed(t *testing.T) {
	replace := func(endpoint, old, new string) string {
		out := strings.Replace(payloads[endpoint], old, new, 1)
		if out == payloads[endpoint] {
			t.Fatalf("%s has no %s", endpoint, old)
		}
		return out
	}
	for _, tc := range []struct{ name, endpoint, payload, says string }{
		{"call id as text", CallStart, replace(CallStart, "99", `"99"`), "callId must be a JSON number"},
		{"call id negative", CallStart, replace(CallStart, "99", "-99"), "callId must be a JSON number"},
		{"call id with fraction", CallStart, replace(CallStart, "99", "99.0"), "callId must be a JSON number"},
		{"call id with exponent", CallStart, replace(CallStart, "99", "1e3"), "callId must be a JSON number"},
		{"call id with leading zero", CallStart, replace(CallStart, "99", "099"), "not JSON"},
		{"call id of 19 digits", CallStart, replace(CallStart, "99", "1234567890123456789"), "callId must be a JSON number"},
		{"call id null", CallStart, replace(CallStart, "99", "null"), "callId must be a JSON number"},
		{"no call id", CallStart, replace(CallStart, `"callId":99,`, ""), "callId is required"},
		{"no staff", CallStart, replace(CallStart, `"predictiveStaffId":"ABCD1234",`, ""), "predictiveStaffId is required"},
		{"no number", CallStart, replace(CallStart, `,"targetTel":"03000000001"`, ""), "targetTel is required"},
		{"empty staff", CallStart, replace(CallStart, "ABCD1234", ""), "predictiveStaffId must be a string"},
		{"telephone number as number", CallStart, replace(CallStart, `"03000000001"`, "3000000001"), "targetTel must be a string"},
		{"field twice", CallStart, replace(CallStart, `"callId":99,`, `"callId":99,"callId":99,`), "callId is given twice"},
		{"field in other case", CallStart, replace(CallStart, "callId", "callID"), `no field "callID"`},
		{"value is an object", CallStart, replace(CallStart, `"ABCD1234"`, `{"a":1}`), "predictiveStaffId must be a string"},
		{"field of another endpoint", CallStart, replace(CallStart, `"callId"`, `"callTime":"2026-03-06 13:20:05","callId"`), `no field "callTime"`},
		{"end: no sub id", CallEnd, replace(CallEnd, `"subCtiHistoryId":"d336-1",`, ""), "subCtiHistoryId is required"},
		{"end: no start time", CallEnd, replace(CallEnd, `"callStartTime":"2026-03-06 13:20:05",`, ""), "callStartTime is required"},
		{"end: no end time", CallEnd, replace(CallEnd, `"callEndTime":"2026-03-06 13:21:00",`, ""), "callEndTime is required"},
		{"end: empty errorInfo", CallEnd, replace(CallEnd, `"callId"`, `"errorInfo":"","callId"`), "errorInfo must be a string"},
		{"end: errorInfo null", CallEnd, replace(CallEnd, `"callId"`, `"errorInfo":null,"callId"`), "errorInfo must be a string"},
		{"end: errorInfo1", CallEnd, replace(CallEnd, `"callId"`, `"errorInfo1":"BUSY","callId"`), `no field "errorInfo1"`},
		{"time with slashes", CallEnd, replace(CallEnd, "2026-03-06 13:20:05", "2026/03/06 13:20:05"), "callStartTime must be a time"},
		{"time with zone", CallEnd, replace(CallEnd, "13:21:00", "13:21:00 +0900"), "callEndTime must be a time"},
		{"time with T", NotAnswer, replace(NotAnswer, "06 13", "06T13"), "callTime must be a time"},
		{"time with fraction", NotAnswer, replace(NotAnswer, "13:20:05", "13:20:05.5"), "callTime must be a time"},
		{"time with short hour", NotAnswer, replace(NotAnswer, "13:20:05", "3:20:05"), "callTime must be a time"},
		{"no such day", NotAnswer, replace(NotAnswer, "03-06", "02-30"), "callTime must be a time"},
		{"not-answer: sub id", NotAnswer, replace(NotAnswer, `"callId"`, `"subCtiHistoryId":"x","callId"`), `no field "subCtiHistoryId"`},
		{"not-answer: no error", NotAnswer, replace(NotAnswer, `"errorInfo1":"BUSY",`, ""), "errorInfo1 is required"},
		{"not-answer: no time", NotAnswer, replace(NotAnswer, `"callTime":"2026-03-06 13:20:05",`, ""), "callTime is required"},
		{"payload of another endpoint", NotAnswer, payloads[CallEnd], "predictiveCallCreateNotAnswer"},
		{"no wrapper", CallStart, `{"callId":99,"predictiveStaffId":"A","targetTel":"0"}`, "predictiveCallCreateCallStart"},
		{"a list", CallStart, "[" + payloads[CallStart] + "]", `must have "{" here`},
		{"second wrapper", CallStart, replace(CallStart, "}}", `},"more":{}}`), `must have "}" here`},
		{"something behind", CallStart, payloads[CallStart] + "{}", "goes on"},
		{"unfinished", CallStart, strings.TrimSuffix(payloads[CallStart], "}"), "not JSON"},
		{"not JSON", CallStart, "callId=99", "not JSON"},
		{"not UTF-8", CallStart, replace(CallStart, "ABCD1234", "\xff"), "not UTF-8"},
		{"empty", CallStart, "", "not JSON"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := New(Config{})
			setFault(t, s, Fault{Kind: HTTP, Status: 500}) // does not hide it
			w := post(t, s, tc.endpoint, tc.payload)
			wantCode(t, w, "ETYP0040")
			var a struct{ Message string }
			if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil || !strings.Contains(a.Message, tc.says) {
				t.Errorf("message %q, want %q", a.Message, tc.says)
			}
			if got := s.Stats(); got.Held != 0 || got.Outcomes[tc.endpoint]["ETYP0040"] != 1 {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestWrongFormsAreNoticed(t *testing.T) {
	good := url.Values{"jsonData": {payloads[CallStart]}}.Encode()
	const form = "application/x-www-form-urlencoded"
	for _, tc := range []struct{ name, contentType, query, body, says string }{
		{"JSON body", "application/json", "", payloads[CallStart], "Content-Type"},
		{"no content type", "", "", good, "Content-Type"},
		{"no field", form, "", "", "jsonData is missing"},
		{"field of other case", form, "", strings.Replace(good, "jsonData", "jsondata", 1), "jsonData is missing"},
		{"field in the URL", form, good, "", "must have no query"},
		{"second field", form, "", good + "&more=1", "only form field"},
		{"field twice", form, "", good + "&" + good, "only form field"},
		{"bad escape", form, "", good + "%zz", "not a form"},
		{"too long", form, "", good + strings.Repeat("+", maxBody), "longer than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, DefaultPathPrefix+CallStart+".json?"+tc.query, strings.NewReader(tc.body))
			r.Header.Set("Content-Type", tc.contentType)
			r.Header.Set(KeyHeader, testKey)
			w := serve(New(Config{}), r)
			wantCode(t, w, "ETYP0040")
			if !strings.Contains(w.Body.String(), tc.says) {
				t.Errorf("%s does not say %q", w.Body, tc.says)
			}
		})
	}
	r := request(t, "", CallStart, payloads[CallStart])
	r.Header.Set("Content-Type", form+"; charset=UTF-8")
	wantCode(t, serve(New(Config{}), r), "success")
}

func TestKey(t *testing.T) {
	other := strings.Repeat("x", 32)
	for _, tc := range []struct {
		name, configured string
		sent             []string
		want             string
	}{
		{"right", testKey, []string{testKey}, "success"},
		{"wrong", testKey, []string{other}, "WTYP0030"},
		{"none", testKey, nil, "WTYP0030"},
		{"twice", testKey, []string{testKey, testKey}, "WTYP0030"},
		{"any of 32", "", []string{other}, "success"},
		{"any, too short", "", []string{other[1:]}, "WTYP0030"},
		{"any, none", "", nil, "WTYP0030"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := request(t, "", CallStart, payloads[CallStart])
			r.Header.Del(KeyHeader)
			for _, v := range tc.sent {
				r.Header.Add(KeyHeader, v)
			}
			wantCode(t, serve(New(Config{APIKey: tc.configured}), r), tc.want)
		})
	}
}

func TestPathsAndMethods(t *testing.T) {
	s := New(Config{})
	for _, path := range []string{"/", DefaultPathPrefix, DefaultPathPrefix + CallStart, DefaultPathPrefix + "createCall.json", "/" + CallStart + ".json"} {
		if w := serve(s, httptest.NewRequest(http.MethodPost, path, nil)); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	w := serve(s, httptest.NewRequest(http.MethodGet, DefaultPathPrefix+CallStart+".json", nil))
	if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != http.MethodPost {
		t.Errorf("GET: %d", w.Code)
	}
	if got := s.Stats().Outcomes; got[Unknown]["http:404"] != 5 || got[CallStart]["http:405"] != 1 {
		t.Errorf("%v", got)
	}

	other := New(Config{PathPrefix: "/other"})
	r := request(t, "", CallStart, payloads[CallStart])
	r.URL.Path = "/other/" + CallStart + ".json"
	if w := serve(other, r); !strings.Contains(w.Body.String(), `"service":"/other/createCallStart.json"`) {
		t.Errorf("%s", w.Body)
	}
}

func TestStrictOrder(t *testing.T) {
	s := New(Config{StrictOrder: true})
	wantCode(t, post(t, s, CallEnd, payloads[CallEnd]), "WTYP0010/WPRDEXTC3201")
	wantCode(t, post(t, s, NotAnswer, payloads[NotAnswer]), "WTYP0010/WPRDEXTC3201")

	setFault(t, s, Fault{Kind: HTTP, Status: 500, Times: 1}) // a start without effect is no start
	post(t, s, CallStart, payloads[CallStart])
	wantCode(t, post(t, s, CallEnd, payloads[CallEnd]), "WTYP0010/WPRDEXTC3201")

	wantCode(t, post(t, s, CallStart, startOf(98)), "success") // nor is another call's
	wantCode(t, post(t, s, CallEnd, payloads[CallEnd]), "WTYP0010/WPRDEXTC3201")

	wantCode(t, post(t, s, CallStart, payloads[CallStart]), "success")
	wantCode(t, post(t, s, CallEnd, payloads[CallEnd]), "success")
	wantCode(t, post(t, s, NotAnswer, payloads[NotAnswer]), "success")
	if got := s.Stats().Outcomes[CallEnd]; got["WTYP0010/WPRDEXTC3201"] != 3 || got["success"] != 1 {
		t.Errorf("%v", got)
	}
}

func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		go func() {
			<-time.After(time.Second)
			post(t, s, CallStart, payloads[CallStart])
		}()
		start := time.Now()
		if err := s.Await(t.Context(), func() bool { return s.Count(CallStart) == 1 }); err != nil || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Await(ctx, func() bool { return false }); err == nil || !strings.Contains(err.Error(), "createCallStart") {
			t.Errorf("an Await that ends in vain must say what there was: %v", err)
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	for _, keep := range []bool{false, true} {
		s := New(Config{KeepPayloads: keep})
		const workers, each = 16, 200
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for i := range each {
					if got := code(t, post(t, s, CallStart, startOf(int64(w*each+i)))); got != "success" {
						t.Errorf("%s", got)
					}
					if i%50 == 0 {
						s.Held()
						s.Stats()
						s.Duplicates()
					}
				}
			})
		}
		wg.Wait()
		st := s.Stats()
		if st.Requests != workers*each || st.Held != workers*each || st.InFlight != 0 || st.MaxInFlight < 1 || st.MaxInFlight > workers {
			t.Errorf("%+v", st)
		}
		if d := s.Duplicates(); len(d) != 0 {
			t.Errorf("%v", d)
		}
	}
}

func BenchmarkServeHTTP(b *testing.B) {
	for _, keep := range []bool{false, true} {
		for _, calls := range []int{1, 1_000_000} {
			b.Run(fmt.Sprintf("keep=%v/calls=%d", keep, calls), func(b *testing.B) {
				s := New(Config{KeepPayloads: keep, MaxHeld: 10_000})
				r := request(b, "", CallEnd, "")
				n := 0
				b.ReportAllocs()
				for b.Loop() {
					n++
					payload := strings.Replace(payloads[CallEnd], "99", strconv.Itoa(n%calls), 1)
					r.Body = io.NopCloser(strings.NewReader("jsonData=" + url.QueryEscape(payload)))
					s.ServeHTTP(httptest.NewRecorder(), r)
				}
				if s.Count(CallEnd) != n {
					b.Fatal(s.Stats())
				}
			})
		}
	}
}
