package dialer

import (
	"encoding/json"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func params(t *testing.T, c Callback) url.Values {
	t.Helper()
	q, err := url.ParseQuery(c.Query)
	if err != nil {
		t.Fatalf("%+v: %v", c, err)
	}
	return q
}

func kinds(callbacks []Callback) string {
	var out []string
	for _, c := range callbacks {
		out = append(out, string(c.Kind))
	}
	return strings.Join(out, " ")
}

// everything is each scenario many times, with repetitions, another order and defects.
func everything(seed uint64) []Callback {
	scenarios := slices.Clone(Scenarios)
	for _, s := range Scenarios {
		scenarios = append(scenarios, Repeated(s), Reordered(s), Reordered(Repeated(s)))
	}
	return New(seed).Mix(500, append(scenarios, MalformedCallback)...)
}

func TestASeedAlwaysMakesTheSame(t *testing.T) {
	if !reflect.DeepEqual(everything(7), everything(7)) {
		t.Error("the same seed makes other callbacks")
	}
	ids := map[string]bool{}
	for _, c := range everything(7) {
		ids[c.CallID] = true
	}
	for _, c := range everything(8) {
		if c.CallID != "" && ids[c.CallID] && c.Kind != Malformed {
			t.Fatalf("call id %s of two seeds", c.CallID)
		}
	}
}

func TestEveryNumberIsFictitious(t *testing.T) {
	fictitious := regexp.MustCompile(`^(0300000|0900000)\d{4}$`)
	seen := 0
	for _, c := range everything(1) {
		q := params(t, c)
		var numbers []string
		for _, name := range []string{"phone", "dialledPhone", "cstmPhone"} {
			numbers = append(numbers, q[name]...)
		}
		if list := q.Get("phoneList"); list != "" {
			var v struct{ PhoneList []string }
			if err := json.Unmarshal([]byte(list), &v); err != nil {
				t.Fatal(err)
			}
			numbers = append(numbers, v.PhoneList...)
		}
		for _, n := range numbers {
			seen++
			if !fictitious.MatchString(n) {
				t.Errorf("%q in %s", n, c.Query)
			}
		}
	}
	if seen < 1000 {
		t.Errorf("only %d numbers seen", seen)
	}
}

func TestScenarios(t *testing.T) {
	for _, tc := range []struct {
		name     string
		scenario Scenario
		kinds    string
		sameCRT  bool
	}{
		{"single phone", SinglePhoneNotAnswered, "not_answered", true},
		{"phone 1 connected", Phone1Connected, "call_start connected", true},
		{"both fail", BothPhonesFail, "phone1_failure phone2_failure", false},
		{"phone 2 connected", Phone2Connected, "phone1_failure call_start connected", false},
		{"same CRT id", SameCRTID, "phone1_failure( phone2_failure| call_start connected)", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := New(1)
			for range 50 {
				callbacks := tc.scenario(d)
				if !regexp.MustCompile("^" + tc.kinds + "$").MatchString(kinds(callbacks)) {
					t.Fatalf("%s", kinds(callbacks))
				}
				crts := map[string]bool{}
				for _, c := range callbacks {
					checkWellFormed(t, c)
					if c.CallID != callbacks[0].CallID {
						t.Errorf("two calls: %+v", callbacks)
					}
					if c.Kind != CallStart {
						crts[params(t, c).Get("customerCRTId")] = true
					}
				}
				if (len(crts) == 1) != tc.sameCRT {
					t.Errorf("customerCRTIds %v", crts)
				}
			}
		})
	}
}

// checkWellFormed checks what the documentation says of each kind of callback.
func checkWellFormed(t *testing.T, c Callback) {
	t.Helper()
	q := params(t, c)
	if c.WantStatus != http.StatusOK || c.WantField != "" || c.Repeat != 0 {
		t.Errorf("%+v", c)
	}
	if c.Kind == CallStart {
		if c.Path != "/call_start.php" || q.Get("cs_unique_id") != c.CallID || q.Get("userId") == "" || q.Get("phone") == "" {
			t.Errorf("%+v", c)
		}
		return
	}
	index := map[Kind]string{NotAnswered: "0", Phone1Failure: "0", Phone2Failure: "1"}[c.Kind]
	phones := strings.Count(q.Get("phoneList"), "00000")
	switch {
	case c.Path != "/index.php" || q.Get("unique_id") != c.CallID || q.Get("customerId") == "" || q.Get("customerCRTId") == "" || q.Get("dialledPhone") == "":
		t.Errorf("%+v", c)
	case c.Kind == Connected:
		if q.Get("systemDisposition") != "CONNECTED" || q.Get("userId") == "" || !strings.HasPrefix(q.Get("callConnectedTime"), "2026") {
			t.Errorf("%+v", c)
		}
	case q.Get("systemDisposition") == "CONNECTED" || q.Get("shareablePhonesDialIndex") != index || (c.Kind == NotAnswered) != (phones == 1):
		t.Errorf("%+v", c)
	}
}

func TestRepeated(t *testing.T) {
	d := New(1)
	most := 0
	for range 100 {
		first := map[string]int{}
		for _, c := range Repeated(Phone2Connected)(d) {
			if c.Repeat != first[c.Query] {
				t.Errorf("repetition %d of %s, want %d", c.Repeat, c.Query, first[c.Query])
			}
			first[c.Query]++
			most = max(most, first[c.Query])
		}
		if len(first) != 3 {
			t.Errorf("%v", first)
		}
	}
	if most != 3 {
		t.Errorf("at most %d times", most)
	}
}

func TestReordered(t *testing.T) {
	d := New(1)
	seen := map[string]bool{}
	for range 100 {
		seen[kinds(Reordered(Phone2Connected)(d))] = true
	}
	if len(seen) != 5 || seen["phone1_failure call_start connected"] {
		t.Errorf("%v", seen)
	}
	for range 100 {
		if got := Reordered(Repeated(SinglePhoneNotAnswered))(d); got[0].Kind != NotAnswered || got[0].Repeat != 0 {
			t.Errorf("%+v", got)
		}
		first := map[string]int{}
		for _, c := range Reordered(Repeated(BothPhonesFail))(d) {
			if c.Repeat != first[c.Query] {
				t.Errorf("repetition %d of %s, want %d", c.Repeat, c.Query, first[c.Query])
			}
			first[c.Query]++
		}
	}
}

func TestMalformed(t *testing.T) {
	all := AllMalformed(New(1))
	queries := map[string]bool{}
	for i, c := range all {
		queries[c.Query] = true
		wantStatus, wantField := http.StatusBadRequest, defects[i].field
		if len(c.Query) > 16<<10 {
			wantStatus, wantField = http.StatusRequestURITooLong, ""
		}
		if c.Kind != Malformed || c.WantStatus != wantStatus || c.WantField != wantField {
			t.Errorf("%+v", c)
		}
		params(t, c)
	}
	if len(queries) != len(defects) {
		t.Errorf("%d queries for %d defects", len(queries), len(defects))
	}
	d := New(1)
	seen := map[string]bool{}
	for range 500 {
		seen[MalformedCallback(d)[0].WantField] = true
	}
	want := map[string]bool{}
	for _, def := range defects {
		want[def.field] = true
	}
	if !reflect.DeepEqual(seen, want) {
		t.Errorf("%v", seen)
	}
}

func TestMixKeepsTheOrderOfACallAndInterleavesCalls(t *testing.T) {
	callbacks := New(1).Mix(100, Phone2Connected)
	perCall := map[string][]Callback{}
	for _, c := range callbacks {
		perCall[c.CallID] = append(perCall[c.CallID], c)
	}
	if len(callbacks) != 300 || len(perCall) != 100 {
		t.Fatalf("%d callbacks of %d calls", len(callbacks), len(perCall))
	}
	for id, cs := range perCall {
		if kinds(cs) != "phone1_failure call_start connected" {
			t.Errorf("%s: %s", id, kinds(cs))
		}
	}
	if callbacks[0].CallID == callbacks[1].CallID && callbacks[1].CallID == callbacks[2].CallID {
		t.Error("calls are not interleaved")
	}
}

func TestRoutesAndQueriesAsTheyAreSent(t *testing.T) {
	d := New(1)
	d.CleanRoutes = true
	got := Phone1Connected(d)
	if got[0].Path != "/v1/ameyo/call-start" || got[1].Path != "/v1/ameyo/call-end" {
		t.Errorf("%+v", got)
	}
	if url := got[0].URL("http://x/"); !strings.HasPrefix(url, "http://x/v1/ameyo/call-start?cs_unique_id=") {
		t.Error(url)
	}
	forms := map[string]bool{}
	for range 100 {
		c := Phone1Connected(d)[1]
		_, at, _ := strings.Cut(c.Query, "callConnectedTime=2026")
		forms[regexp.MustCompile(`\d`).ReplaceAllString(at, "0")] = true
	}
	want := map[string]bool{"%0F00%0F00+00%0A00%0A00+%0B0000": true, "%0F00%0F00+00%0A00%0A00++0000": true, "-00-00+00%0A00%0A00": true}
	if !reflect.DeepEqual(forms, want) {
		t.Errorf("%v", forms)
	}
}
