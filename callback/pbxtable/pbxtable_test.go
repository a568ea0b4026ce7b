package pbxtable

import (
	"fmt"
	"strings"
	"testing"
)

const (
	token  = "f2a8vdrfae0s1ku5d2rj3iximjf3twyz"
	other  = "bd8e4091b2abed48387a0efc2c86c82b"
	secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
)

// table is a good one, with changes.
func table(changes ...string) []byte {
	text := `{"integrations": [{
 "id": "acme", "prefix": "0003", "extension_len": 3,
 "webhook": {"url": "https://crm.example/hook", "secret": "` + secret + `", "allow_private": ["10.0.0.0/8"]},
 "extensions": [
  {"id": "33301", "name": "0003*101", "type": "phone", "user": "u101", "tokens": ["` + token + `", "` + other + `"]},
  {"id": "33334", "name": "0003*700", "type": "queue"}
 ]}]}`
	return []byte(strings.NewReplacer(changes...).Replace(text))
}

func TestParse(t *testing.T) {
	got, err := Parse(table())
	if err != nil {
		t.Fatal(err)
	}
	for _, known := range []string{token, other} {
		if row := got.Find(known); row == nil || *row != (Row{"acme", "33301", "0003*101", "phone"}) {
			t.Errorf("%+v", row)
		}
	}
	for _, unknown := range []string{"", token + "x", strings.ToUpper(token), strings.Repeat("x", 1000)} {
		if row := got.Find(unknown); row != nil {
			t.Errorf("%q is %+v", unknown, row)
		}
	}
	n := &got.Integrations[0]
	if n.Destination() != "webhook:acme" || n.DirectMissed != nil || len(n.Extensions) != 2 || n.Extensions[0].User != "u101" {
		t.Errorf("%+v", n)
	}
	if text := fmt.Sprintf("%v %+v %#v", *got, *got, *got); strings.Contains(text, token) || strings.Contains(text, secret) {
		t.Errorf("a secret shows: %s", text)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, test := range []struct{ from, to, want string }{
		{`"extension_len": 3`, `"extension_len": "3"`, "line 2: integrations.extension_len must be a int, not a string"},
		{`"prefix"`, `"praefix"`, `unknown field "praefix"`},
		{`]}]}`, `]}]`, "the JSON ends too early"},
		{`]}]}`, `]}]} x`, "behind the end"},
		{`"acme"`, `"Acme GmbH"`, "id must be 1 to 32"},
		{`"0003",`, `"03",`, "prefix must be 3 to 6 digits"},
		{`: 3,`, `: 5,`, "(acme): extension_len must be 2 to 4"},
		{`https://crm.example/hook`, `ftp://crm.example/hook`, "webhook.url must be"},
		{`https://crm.example/hook`, `https://me:it@crm.example/hook`, "webhook.url must be"},
		{secret, `secret`, "webhook.secret must be whsec_"},
		{`"33334"`, `"33301"`, "extensions[1]: id must be"},
		{`"33334"`, `"q"`, "extensions[1]: id must be"},
		{`0003*700`, `0003*101`, "extensions[1]: name must be 0003*NUMBER"},
		{`0003*700`, `0004*700`, "extensions[1]: name must be 0003*NUMBER"},
		{`"queue"`, `"fax"`, "type must be phone, queue, ivr or agent"},
		{`u101`, strings.Repeat("u", 129), "user is longer"},
		{other, token, "tokens[1] is there twice"},
		{other, other[:31], "tokens[1] must be 128 random bits"},
		{other, token[:24], "tokens[1] must be 128 random bits"},
		{other, strings.Repeat("ab", 40), "tokens[1] must be 128 random bits"},
		{other, token + "/", "tokens[1] must be 128 random bits"},
	} {
		_, err := Parse(table(test.from, test.to))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.to, err, test.want)
		}
		if err != nil && (strings.Contains(err.Error(), token) || strings.Contains(err.Error(), other[:24]) || strings.Contains(err.Error(), secret)) {
			t.Errorf("a secret shows: %v", err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(table())
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Parse(data)
		if err == nil && got == nil || err != nil && strings.Contains(err.Error(), token) {
			t.Errorf("%v, %v", got, err)
		}
	})
}
