package callback

import (
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParseQuery(t *testing.T) {
	tests := []struct {
		what, raw string
		want      Params
	}{
		{"nothing", "", nil},
		{"plain", "a=1&b=2", Params{{"a", "1"}, {"b", "2"}}},
		{"values are trimmed", "a=+1%09%0A%0D%00%0B&b=%20", Params{{"a", "1"}, {"b", ""}}},
		{"no other space is trimmed", "a=%C2%A01", Params{{"a", "\u00a01"}}},
		{"plus is space, %2B is plus", "a=1+2%2B3", Params{{"a", "1 2+3"}}},
		{"semicolon is ordinary", "a=1;b=2", Params{{"a", "1;b=2"}}},
		{"bad escapes stay", "a=%&b=%4&c=%zz1&d=100%&e=%4z", Params{{"a", "%"}, {"b", "%4"}, {"c", "%zz1"}, {"d", "100%"}, {"e", "%4z"}}},
		{"escape of either case", "a=%4a%4A", Params{{"a", "JJ"}}},
		{"not UTF-8", "a=x%FFy&b=\xffz", Params{{"a", "x\uFFFDy"}, {"b", "\uFFFDz"}}},
		{"UTF-8", "a=%E7%94%B0", Params{{"a", "田"}}},
		{"repeats are kept in order", "a=1&b=2&a=3", Params{{"a", "1"}, {"b", "2"}, {"a", "3"}}},
		{"no equals sign", "a&b=1", Params{{"a", ""}, {"b", "1"}}},
		{"equals sign in the value", "a=b=c", Params{{"a", "b=c"}}},
		{"no name", "=1&&+=2&%20=3", nil},
		{"names as in PHP", "unique.id=1&unique+id=2&+unique_id=3&unique[id=4", Params{{"unique_id", "1"}, {"unique_id", "2"}, {"unique_id", "3"}, {"unique_id", "4"}}},
		{"an array is unknown", "phoneList[]=1&a[b]=2", Params{{"phoneList_]", "1"}, {"a_b]", "2"}}},
		{"an escaped name", "%61=1", Params{{"a", "1"}}},
	}
	for _, test := range tests {
		if got := ParseQuery(test.raw); !slices.Equal(got, test.want) {
			t.Errorf("%s: ParseQuery(%q) = %q, want %q", test.what, test.raw, got, test.want)
		}
	}
	if got := len(ParseQuery(strings.Repeat("a=1&", 1500))); got != maxParams {
		t.Errorf("%d parameters were read, want %d", got, maxParams)
	}
}

func TestGet(t *testing.T) {
	p := Params{{"a", "1"}, {"b", "2"}, {"a", " 3\t"}, {"b", " "}}
	for name, want := range map[string]string{"a": "3", "b": "", "c": ""} {
		if got := p.Get(name); got != want {
			t.Errorf("Get(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestEncode(t *testing.T) {
	tests := []struct{ raw, want string }{
		{"", ""},
		{"a=1&b=2&a=3", "b=2&a=3"},
		{"a=1&a=", "a="},
		{"a=x;y&b=%&c=+1+", "a=x%3By&b=%25&c=1"},
		{"a=%FF", "a=%EF%BF%BD"},
		{"unique.id=5&cs_unique_id=6&crm_push_generated_time=7", "unique_id=5&cs_unique_id=6&crm_push_generated_time=7"},
		{"customer_id=1&a[b]=2&a b=3", "customer_id=1&a_b%5D=2&a_b=3"},
	}
	for _, test := range tests {
		if got := ParseQuery(test.raw).Encode(); got != test.want {
			t.Errorf("Encode of %q = %q, want %q", test.raw, got, test.want)
		}
	}
}

func FuzzParseQuery(f *testing.F) {
	f.Fuzz(func(t *testing.T, raw string) {
		for _, p := range ParseQuery(raw) {
			if p.Name == "" || !utf8.ValidString(p.Name) || !utf8.ValidString(p.Value) || p.Value != strings.Trim(p.Value, phpSpace) {
				t.Errorf("ParseQuery(%q) has %q", raw, p)
			}
		}
	})
}

func FuzzEncode(f *testing.F) {
	f.Fuzz(func(t *testing.T, raw string) {
		params := ParseQuery(raw)
		encoded := params.Encode()
		values, err := url.ParseQuery(encoded)
		if err != nil {
			t.Fatalf("Encode of %q is %q: %v", raw, encoded, err)
		}
		for _, p := range params {
			if got := values[p.Name]; len(got) != 1 || got[0] != params.Get(p.Name) {
				t.Errorf("Encode of %q is %q: %q is %q", raw, encoded, p.Name, got)
			}
		}
		for name := range values {
			if !params.has(name) {
				t.Errorf("Encode of %q is %q: %q is new", raw, encoded, name)
			}
		}
	})
}

func BenchmarkParseQueryAndDecode(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeCallEnd(ParseQuery(sampleQuery), Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

const sampleQuery = "unique_id=193416&customerId=5501&customerCRTId=d336-69a6d5e5-vce-103&systemDisposition=CONNECTED&shareablePhonesDialIndex=0&userId=teijin_sv2&dialledPhone=07029109978&phoneList=%7B%22phoneList%22%3A%5B%2207029109978%22%5D%7D&callConnectedTime=2026%2F03%2F06+13%3A53%3A43+%2B0900"
