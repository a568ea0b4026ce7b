package callback

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const start = "cs_unique_id=193416&userId=teijin_sv2&phone=0702"

func TestDecodeCallStart(t *testing.T) {
	order := Options{TargetTelOrder: []string{"dstPhone", "phone"}}
	tests := []struct {
		what, query string
		o           Options
		want        CallStart
		field, says string
	}{
		{what: "all", query: start, want: CallStart{CallID: "193416", StaffID: "teijin_sv2", TargetTel: "0702"}},
		{what: "leading zeros", query: "cs_unique_id=00193416&userId=a&phone=1", want: CallStart{CallID: "193416", StaffID: "a", TargetTel: "1"}},
		{what: "callId", query: "cs_unique_id=&callId=2&crm_push_generated_time=3&sessionId=4&userId=a&phone=1", want: CallStart{CallID: "2", StaffID: "a", TargetTel: "1"}},
		{what: "crm_push_generated_time", query: "crm_push_generated_time=3&sessionId=4&userId=a&phone=1", want: CallStart{CallID: "3", StaffID: "a", TargetTel: "1"}},
		{what: "sessionId", query: "sessionId=4&userId=a&phone=1", want: CallStart{CallID: "4", StaffID: "a", TargetTel: "1"}},
		{what: "displayPhone", query: "cs_unique_id=1&userId=a&phone=+&displayPhone=2&dialledPhone=3&dstPhone=4", want: CallStart{CallID: "1", StaffID: "a", TargetTel: "2"}},
		{what: "dialledPhone", query: "cs_unique_id=1&userId=a&dialledPhone=3&dstPhone=4", want: CallStart{CallID: "1", StaffID: "a", TargetTel: "3"}},
		{what: "dstPhone", query: "cs_unique_id=1&userId=a&dstPhone=4", want: CallStart{CallID: "1", StaffID: "a", TargetTel: "4"}},
		{what: "other order", query: start + "&dstPhone=4", o: order, want: CallStart{CallID: "193416", StaffID: "teijin_sv2", TargetTel: "4"}},
		{what: "no id", query: "userId=a&phone=1", field: "cs_unique_id", says: "cs_unique_id is required"},
		{what: "id not digits", query: "cs_unique_id=12a&userId=a&phone=1", field: "cs_unique_id", says: "cs_unique_id must be 1 to 18 digits"},
		{what: "id too long", query: "cs_unique_id=1234567890123456789&userId=a&phone=1", field: "cs_unique_id", says: "cs_unique_id must be 1 to 18 digits"},
		{what: "other id not digits", query: "sessionId=s-1&userId=a&phone=1", field: "cs_unique_id", says: "cs_unique_id must be 1 to 18 digits (taken from sessionId)"},
		{what: "no staff", query: "cs_unique_id=1&userId=+&phone=1", field: "userId", says: "userId is required"},
		{what: "no number", query: "cs_unique_id=1&userId=a", field: "phone", says: "phone is required"},
		{what: "no number in the other order", query: "cs_unique_id=1&userId=a&displayPhone=1", o: order, field: "dstPhone", says: "dstPhone is required"},
		{what: "long staff", query: "cs_unique_id=1&phone=1&userId=" + strings.Repeat("a", 257), field: "userId", says: "userId is longer than 256 bytes"},
		{what: "long number", query: "cs_unique_id=1&userId=a&displayPhone=" + strings.Repeat("1", 257), field: "phone", says: "phone is longer than 256 bytes (taken from displayPhone)"},
	}
	for _, test := range tests {
		got, err := DecodeCallStart(ParseQuery(test.query), test.o)
		checkRefusal(t, test.what, err, test.field, test.says)
		if !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v, want %+v", test.what, got, test.want)
		}
	}
}

func checkRefusal(t *testing.T, what string, err error, field, message string) {
	t.Helper()
	var refusal *FieldError
	switch {
	case field == "" && err != nil:
		t.Errorf("%s: refused: %v", what, err)
	case field != "" && !errors.As(err, &refusal):
		t.Errorf("%s: not refused", what)
	case field != "" && (refusal.Field != field || refusal.Message != message || refusal.Error() != message):
		t.Errorf("%s: refused with %q, %q; want %q, %q", what, refusal.Field, refusal.Message, field, message)
	}
}

func TestDecodeCallEndRefusals(t *testing.T) {
	const connected = "unique_id=1&systemDisposition=connected&customerCRTId=c&userId=u&dialledPhone=1"
	long := strings.Repeat("x", 257)
	tests := []struct{ query, field, says string }{
		{connected, "", ""},
		{"unique_id=1&systemDisposition=BUSY", "", ""},
		{"unique_id=1&hangupCauseCode=17", "", ""},
		{"systemDisposition=BUSY", "unique_id", "unique_id is required"},
		{"unique_id=x&systemDisposition=BUSY", "unique_id", "unique_id must be 1 to 18 digits"},
		{"unique_id=1234567890123456789&systemDisposition=BUSY", "unique_id", "unique_id must be 1 to 18 digits"},
		{connected + "&customerCRTId=", "customerCRTId", "customerCRTId is required when systemDisposition is CONNECTED"},
		{connected + "&customerCRTId=&crtObjectId=o", "customerCRTId", "customerCRTId is required when systemDisposition is CONNECTED"},
		{connected + "&userId=", "userId", "userId is required when systemDisposition is CONNECTED"},
		{connected + "&dialledPhone=", "dialledPhone", "dialledPhone is required when systemDisposition is CONNECTED"},
		{connected + "&dialledPhone=&dialedPhone=1", "", ""},
		{connected + "&dialledPhone=&dstPhone=1", "", ""},
		{connected + "&dialledPhone=&cstmPhone=1", "", ""},
		{"unique_id=1", "systemDisposition", "systemDisposition is required unless hangupCauseCode is given"},
		{"unique_id=1&hangupCauseCode=x", "hangupCauseCode", "hangupCauseCode must be numeric"},
		{"unique_id=1&hangupCauseCode=-1", "hangupCauseCode", "hangupCauseCode must be numeric"},
		{"unique_id=1&hangupCauseCode=x&systemDisposition=BUSY", "", ""},
		{"unique_id=1&systemDisposition=BUSY&shareablePhonesDialIndex=-1", "shareablePhonesDialIndex", "shareablePhonesDialIndex must be a non-negative integer"},
		{"unique_id=1&systemDisposition=BUSY&shareablePhonesDialIndex=1.0", "shareablePhonesDialIndex", "shareablePhonesDialIndex must be a non-negative integer"},
		{"unique_id=1&systemDisposition=BUSY&shareablePhonesDialIndex=x", "shareablePhonesDialIndex", "shareablePhonesDialIndex must be a non-negative integer"},
		{"unique_id=1&systemDisposition=BUSY&shareablePhonesDialIndex=4294967296", "shareablePhonesDialIndex", "shareablePhonesDialIndex must be a non-negative integer"},
		{"unique_id=1&systemDisposition=BUSY&shareablePhonesDialIndex=4294967295", "", ""},
		{"unique_id=1&systemDisposition=BUSY&customerId=" + long, "customerId", "customerId is longer than 256 bytes"},
		{"unique_id=1&systemDisposition=BUSY&crtObjectId=" + long, "crtObjectId", "crtObjectId is longer than 256 bytes"},
		{"unique_id=1&systemDisposition=BUSY&customerCRTId=" + long, "crtObjectId", "crtObjectId is longer than 256 bytes (taken from customerCRTId)"},
		{"unique_id=1&systemDisposition=" + long, "systemDisposition", "systemDisposition is longer than 256 bytes"},
		{"unique_id=1&systemDisposition=BUSY&dstPhone=" + long, "dialledPhone", "dialledPhone is longer than 256 bytes (taken from dstPhone)"},
		// The first row of the table wins.
		{"systemDisposition=CONNECTED", "unique_id", "unique_id is required"},
	}
	for _, test := range tests {
		got, err := DecodeCallEnd(ParseQuery(test.query), Options{})
		checkRefusal(t, test.query, err, test.field, test.says)
		if err != nil && !reflect.DeepEqual(got, CallEnd{}) {
			t.Errorf("%s: refused, but decoded %+v", test.query, got)
		}
	}
}

// end decodes a callback whose phoneList is readable unless the query says otherwise.
func end(t *testing.T, query string) CallEnd {
	t.Helper()
	c, err := DecodeCallEnd(ParseQuery("unique_id=1&systemDisposition=BUSY&phoneList=[]&"+query), Options{})
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return c
}

func TestDecodeCallEnd(t *testing.T) {
	got, err := DecodeCallEnd(ParseQuery(sampleQuery), Options{})
	want := CallEnd{
		CallID: "193416", CustomerID: "5501", AttemptID: "d336-69a6d5e5-vce-103", CustomerCRTID: "d336-69a6d5e5-vce-103",
		Disposition: "CONNECTED", Connected: true, Phones: 1, TargetTel: "07029109978", StaffID: "teijin_sv2",
		ConnectedTime: "2026-03-06 13:53:43",
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

func TestIdentityAndDisposition(t *testing.T) {
	if c := end(t, "crtObjectId=o&customerCRTId=c&customerId=k"); c.AttemptID != "o" || c.CustomerCRTID != "c" || c.CustomerID != "k" {
		t.Errorf("crtObjectId first: %+v", c)
	}
	if c := end(t, "customerCRTId=c"); c.AttemptID != "c" || c.CustomerCRTID != "c" || c.CustomerID != "" {
		t.Errorf("else customerCRTId: %+v", c)
	}
	if c := end(t, ""); c.AttemptID != "" || c.CustomerCRTID != "" {
		t.Errorf("neither: %+v", c)
	}
	if c := end(t, "systemDisposition=cOnNeCtEd&customerCRTId=c&userId=u&dialledPhone=1"); c.Disposition != "CONNECTED" || !c.Connected {
		t.Errorf("connected in any case: %+v", c)
	}
	if c := end(t, "systemDisposition=No_Answer%3C"); c.Disposition != "No_Answer<" || c.Connected {
		t.Errorf("others pass as they are: %+v", c)
	}
	if c := end(t, "systemDisposition=&hangupCauseCode=0486"); c.Disposition != "" || c.HangupCause != "486" || c.Connected {
		t.Errorf("cause alone: %+v", c)
	}
	if c := end(t, "hangupCauseCode=000"); c.HangupCause != "0" || len(c.Notes) != 0 {
		t.Errorf("cause 0: %+v", c)
	}
	if c := end(t, "hangupCauseCode=abc"); c.HangupCause != "" || !slices.Equal(c.Notes, []string{"hangupCauseCode is not numeric and counts as absent"}) {
		t.Errorf("cause not numeric: %+v", c)
	}
}

func TestPhones(t *testing.T) {
	const fallback = "phoneList %s: counted phone1, phone2, cstmPhone and the dialled number instead (%d)"
	var many []string
	for i := range 150 {
		many = append(many, strconv.Quote(strconv.Itoa(i)))
	}
	tests := []struct {
		query  string
		phones uint32
		note   string
	}{
		{`phoneList={"phoneList":["090","080"]}`, 2, ""},
		{`phoneList={"phoneList":["090"]}`, 1, ""},
		{`phoneList={"phoneList":["090","090"," 090 ","",null]}`, 1, ""},
		{`phoneList={"phoneList":[]}`, 0, ""},
		{`phoneList=["090","080","070"]`, 3, ""},
		{`phoneList=[]&phone1=1&phone2=2`, 0, ""},
		{`phoneList=+["090","080"]+`, 2, ""},
		{"phoneList=[" + strings.Join(many, ",") + "]", 100, ""},
		{`phoneList=`, 0, fmt.Sprintf(fallback, "is absent", 0)},
		{`phoneList=&dialledPhone=1`, 1, fmt.Sprintf(fallback, "is absent", 1)},
		{`phoneList=&phone1=1&phone2=2&cstmPhone=3&dialledPhone=4`, 4, fmt.Sprintf(fallback, "is absent", 4)},
		{`phoneList=&phone1=1&phone2=2&cstmPhone=2&dialledPhone=1`, 2, fmt.Sprintf(fallback, "is absent", 2)},
		{`phoneList=&phone1=1&dialedPhone=2`, 2, fmt.Sprintf(fallback, "is absent", 2)},
		{`phoneList=&phone1=1&dstPhone=2`, 2, fmt.Sprintf(fallback, "is absent", 2)},
		{`phoneList=090,080&phone1=1`, 1, fmt.Sprintf(fallback, "is not JSON", 1)},
		{`phoneList=["090"&phone1=1`, 1, fmt.Sprintf(fallback, "is not JSON", 1)},
		{`phoneList={"phoneList":["090"]&phone1=1`, 1, fmt.Sprintf(fallback, "is not JSON", 1)},
		{`phoneList={"phones":["090","080"]}&phone1=1`, 1, fmt.Sprintf(fallback, "is of an unknown shape", 1)},
		{`phoneList={"phoneList":"090"}&phone1=1`, 1, fmt.Sprintf(fallback, "is of an unknown shape", 1)},
		{`phoneList={"phoneList":null}&phone1=1`, 1, fmt.Sprintf(fallback, "is of an unknown shape", 1)},
		{`phoneList=[90,80]&phone1=1`, 1, fmt.Sprintf(fallback, "is of an unknown shape", 1)},
		{`phoneList="090"&phone1=1`, 1, fmt.Sprintf(fallback, "is of an unknown shape", 1)},
		{`phoneList=null&phone1=1`, 1, fmt.Sprintf(fallback, "is of an unknown shape", 1)},
		{`phoneList=["` + strings.Repeat("1", maxPhoneList) + `"]&phone1=1`, 1, fmt.Sprintf(fallback, "is too long", 1)},
	}
	for _, test := range tests {
		c := end(t, test.query)
		if c.Phones != test.phones || strings.Join(c.Notes, "; ") != test.note {
			t.Errorf("%.80s: %d phones, notes %q; want %d, %q", test.query, c.Phones, c.Notes, test.phones, test.note)
		}
	}
}

func TestDialIndexAndTargetTel(t *testing.T) {
	const two = `phoneList=["A","B"]&`
	tests := []struct {
		query  string
		index  uint32
		target string
	}{
		{"shareablePhonesDialIndex=0", 0, ""},
		{"shareablePhonesDialIndex=1", 1, ""},
		{"shareablePhonesDialIndex=007", 7, ""},
		{two + "dialledPhone=A", 0, "A"},
		{two + "dialledPhone=B", 1, "B"},
		{two + "dialedPhone=B", 1, "B"},
		{two + "dstPhone=B", 1, "B"},
		{two + "cstmPhone=B", 1, "B"},
		{two + "dialledPhone=A&cstmPhone=B", 0, "A"},
		{two + "dialledPhone=B&cstmPhone=A", 1, "A"},
		{two + "dialledPhone=C", 0, "C"},
		{two, 0, ""},
		{two + "shareablePhonesDialIndex=0&dialledPhone=B", 0, "B"},
		{`phoneList=["B","B"]&dialledPhone=B`, 0, "B"},
		{`phoneList=["A","A","B"]&dialledPhone=B`, 1, "B"},
		{`phoneList=["A"]&phone2=B&dialledPhone=B`, 0, "B"},
		{"phoneList=&phone1=A&phone2=B&dialledPhone=B", 1, "B"},
		{"phoneList=&phone1=A&phone2=B&dialledPhone=A", 0, "A"},
		{"phoneList=&phone2=B&dialledPhone=B", 0, "B"},
		{"phoneList=&cstmPhone=A&dialledPhone=B", 0, "B"},
		{"dialledPhone=1&dialedPhone=2&dstPhone=3&cstmPhone=4", 0, "1"},
		{"dialedPhone=2&dstPhone=3&cstmPhone=4", 0, "2"},
		{"dstPhone=3&cstmPhone=4", 0, "3"},
		{"cstmPhone=4", 0, "4"},
		{"shareablePhonesDialIndex=1&dialledPhone=1&cstmPhone=4", 1, "4"},
		{"shareablePhonesDialIndex=1&dialledPhone=1", 1, "1"},
	}
	for _, test := range tests {
		if c := end(t, test.query); c.DialIndex != test.index || c.TargetTel != test.target {
			t.Errorf("%s: dial index %d, target %q; want %d, %q", test.query, c.DialIndex, c.TargetTel, test.index, test.target)
		}
	}
}

func TestTimes(t *testing.T) {
	const unreadable = "callConnectedTime cannot be read and counts as absent"
	tests := []struct{ value, want, note string }{
		{"2026%2F03%2F06+13:20:05+%2B0900", "2026-03-06 13:20:05", ""},
		{"2026/03/06+13:20:05++0900", "2026-03-06 13:20:05", ""}, // the plus came as a space
		{"2026/03/06%2013:20:05%20+0900", "2026-03-06 13:20:05", ""},
		{"2026/03/06+13:20:05+0900", "2026-03-06 13:20:05", ""},
		{"2026/03/06+13:20:05%2B0900", "2026-03-06 13:20:05", ""},
		{"2026/03/06+13:20:05+%2B09:00", "2026-03-06 13:20:05", ""},
		{"2026/03/06+13:20:05+%2B0530", "2026-03-06 16:50:05", ""},
		{"2026/03/06+13:20:05+-0500", "2026-03-07 03:20:05", ""},
		{"2026/03/06+20:00:00+%2B0000", "2026-03-07 05:00:00", ""},
		{"2026-03-06+13:20:05", "2026-03-06 13:20:05", ""},
		{"2026/03/06+13:20:05", "2026-03-06 13:20:05", ""},
		{"", "", ""},
		{"2026-02-30+13:20:05", "", unreadable},
		{"2026-03-06+25:20:05", "", unreadable},
		{"2026-03-06", "", unreadable},
		{"2026-03-06+13:20:05+JST", "", unreadable},
		{"2026-03-06+13:20:05+%2B9", "", unreadable},
		{"2026-03-06+13:20:05.123", "", unreadable},
		{"1772770805", "", unreadable},
	}
	for _, test := range tests {
		c := end(t, "callConnectedTime="+test.value)
		if c.ConnectedTime != test.want || strings.Join(c.Notes, "; ") != test.note {
			t.Errorf("callConnectedTime=%s: %q, notes %q; want %q, %q", test.value, c.ConnectedTime, c.Notes, test.want, test.note)
		}
	}

	kolkata := Options{Zone: time.FixedZone("Asia/Kolkata", 5*3600+1800)}
	for value, want := range map[string]string{"2026-03-06+13:20:05": "2026-03-06 13:20:05", "2026/03/06+13:20:05++0900": "2026-03-06 09:50:05"} {
		c, err := DecodeCallEnd(ParseQuery("unique_id=1&systemDisposition=BUSY&callConnectedTime="+value), kolkata)
		if err != nil || c.ConnectedTime != want {
			t.Errorf("in Kolkata, callConnectedTime=%s: %q, %v; want %q", value, c.ConnectedTime, err, want)
		}
	}

	c := end(t, "callStartTime=2026-03-06+13:00:01&callEndTime=2026-03-06+13:00:02&callTime=2026-03-06+13:00:03")
	if c.StartTime != "2026-03-06 13:00:01" || c.EndTime != "2026-03-06 13:00:02" || c.CallTime != "2026-03-06 13:00:03" || c.Notes != nil {
		t.Errorf("given times: %+v", c)
	}
	for _, bad := range []string{"2026/03/06+13:00:01", "2026-03-06T13:00:01", "2026-02-30+13:00:01", "2026-03-06+13:00:01.5", "2026-03-06+1:00:01", "13:00:01", "x"} {
		c := end(t, "callStartTime="+bad+"&callEndTime="+bad+"&callTime="+bad)
		want := []string{
			"callStartTime is not of the form YYYY-MM-DD HH:mm:ss and counts as absent",
			"callEndTime is not of the form YYYY-MM-DD HH:mm:ss and counts as absent",
			"callTime is not of the form YYYY-MM-DD HH:mm:ss and counts as absent",
		}
		if c.StartTime != "" || c.EndTime != "" || c.CallTime != "" || !slices.Equal(c.Notes, want) {
			t.Errorf("times %s: %+v", bad, c)
		}
	}
}

func TestParseTargetTelOrder(t *testing.T) {
	for text, want := range map[string][]string{
		"": nil, " ": nil, "dstPhone": {"dstPhone"}, " dstPhone , phone ": {"dstPhone", "phone"},
	} {
		if got, err := ParseTargetTelOrder(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("ParseTargetTelOrder(%q) = %q, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"phone,fax":   `unknown source "fax" of targetTel: want some of phone, displayPhone, dialledPhone, dstPhone`,
		"phone,":      `unknown source "" of targetTel: want some of phone, displayPhone, dialledPhone, dstPhone`,
		"phone,phone": `source "phone" of targetTel is given twice`,
	} {
		if _, err := ParseTargetTelOrder(text); err == nil || err.Error() != want {
			t.Errorf("ParseTargetTelOrder(%q): %v", text, err)
		}
	}
}

func FuzzDecodeCallEnd(f *testing.F) {
	f.Fuzz(func(t *testing.T, raw string) {
		params := ParseQuery(raw)
		c, err := DecodeCallEnd(params, Options{})
		var refusal *FieldError
		if err != nil {
			if !errors.As(err, &refusal) || refusal.Field == "" || !strings.HasPrefix(refusal.Message, refusal.Field) {
				t.Errorf("%q: %v", raw, err)
			}
			return
		}
		if id, ok := NormalCallID(c.CallID); !ok || id != c.CallID {
			t.Errorf("%q: call id %q", raw, c.CallID)
		}
		if c.Connected && (c.CustomerCRTID == "" || c.StaffID == "" || c.TargetTel == "" || c.Disposition != "CONNECTED") {
			t.Errorf("%q: connected without %+v", raw, c)
		}
		if c.Disposition == "" && c.HangupCause == "" {
			t.Errorf("%q: neither disposition nor cause", raw)
		}
		for _, at := range []string{c.ConnectedTime, c.StartTime, c.EndTime, c.CallTime} {
			if at != "" && len(at) != len(TimeLayout) {
				t.Errorf("%q: time %q", raw, at)
			}
		}
	})
}

// What plainPhones reads, encoding/json reads the same.
func FuzzPlainPhones(f *testing.F) {
	for _, text := range []string{`["1"]`, `["1","+81-3 4"]`, `["",""]`, `{"phoneList":["1","2"]}`, `["]`, `["1"]}`, `{"phoneList":["1"]`, `["1",""2"]`, `["1","]`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		phones, ok := plainPhones(text)
		if !ok {
			return
		}
		var list []string
		if err := json.Unmarshal([]byte(strings.TrimSuffix(strings.TrimPrefix(text, `{"phoneList":`), "}")), &list); err != nil || !slices.Equal(phones, list) || !json.Valid([]byte(text)) {
			t.Errorf("%q: %q, as JSON %q, %v", text, phones, list, err)
		}
	})
}

func FuzzDecodeCallStart(f *testing.F) {
	f.Fuzz(func(t *testing.T, raw string) {
		c, err := DecodeCallStart(ParseQuery(raw), Options{})
		if err == nil && (c.CallID == "" || c.StaffID == "" || c.TargetTel == "") {
			t.Errorf("%q: %+v", raw, c)
		}
	})
}
