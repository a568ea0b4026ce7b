package pbxtable

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)

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
	rows := New(got)
	for _, known := range []string{token, other} {
		if row := rows.Find(known, now); row == nil || *row != (Row{"acme", "33301", "0003*101", "phone", sha256.Sum256([]byte(known)), time.Time{}}) {
			t.Errorf("%+v", row)
		}
	}
	for _, unknown := range []string{"", token + "x", strings.ToUpper(token), strings.Repeat("x", 1000)} {
		if row := rows.Find(unknown, now); row != nil {
			t.Errorf("%q is %+v", unknown, row)
		}
	}
	n := &got[0]
	if n.Destination() != "webhook:acme" || n.DirectMissed != nil || len(n.Extensions) != 2 || n.Extensions[0].User != "u101" {
		t.Errorf("%+v", n)
	}
	if text := fmt.Sprintf("%v %+v %#v", got, got, got); strings.Contains(text, token) || strings.Contains(text, secret) {
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
		{other, "sha256=" + other, "tokens[1] must be 128 random bits"},
		{`"` + other + `"`, `7`, "tokens must be a string, not a number"},
		{`"queue"`, `"queue", "ending": [{"token": "` + token + `", "until": "2026-11-22T10:00:00Z"}]`, "ending[0].token is there twice"},
		{`"queue"`, `"queue", "ending": [{"token": "ecc83e271b7707dc16465d0c681aadad", "until": "` + secret + `"}]`, "ending[0].until must be a time"},
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

// What state keeps says the same as the file, and holds neither token nor secret.
func TestStored(t *testing.T) {
	file, err := Parse(table())
	if err != nil {
		t.Fatal(err)
	}
	digest, err := file[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(Stored{Integration: file[0].Hashed(), File: digest})
	if err != nil || strings.Contains(string(text), token) || strings.Contains(string(text), other) || strings.Contains(string(text), secret[6:]) {
		t.Fatalf("%s, %v", text, err)
	}
	stored, err := ParseStored("pbx/acme", append(text[:len(text)-1], `,"later":1}`...))
	if err != nil {
		t.Fatal(err)
	}
	if row := New([]Integration{stored.Integration}).Find(token, now); row == nil || row.ExtensionID != "33301" {
		t.Errorf("row %v", row)
	}
	if stored.Integration.Webhook.Secret.Hash() != file[0].Webhook.Secret.Hash() || stored.File != digest {
		t.Errorf("stored %s", text)
	}
	if again, err := stored.Integration.Digest(); err != nil || again != digest {
		t.Errorf("the digest of what is stored is another one: %v", err)
	}
	// What was listed can be put again.
	listed, err := json.Marshal(stored.Integration)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseOne(listed, nil); err != nil {
		t.Error(err)
	}
	if _, err := ParseOne(listed, file); err == nil || !strings.Contains(err.Error(), "integration (acme): extensions[0]: tokens[0] is there twice") {
		t.Errorf("another integration has the token: %v", err)
	}
	for _, bad := range []struct{ id, text string }{{"pbx/acme", "{"}, {"pbx/other", string(text)}, {"acme", string(text)}} {
		if _, err := ParseStored(bad.id, []byte(bad.text)); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}

// A token that was replaced works until its end, and no longer.
func TestRotate(t *testing.T) {
	const first, second, third = token, other, "ecc83e271b7707dc16465d0c681aadad"
	n := Integration{ID: "acme", Extensions: []Extension{{ID: "1", Tokens: []Token{NewToken(first)}}}}
	x := &n.Extensions[0]
	valid := func(at time.Time, want ...string) {
		t.Helper()
		rows := New([]Integration{n})
		for _, text := range []string{first, second, third} {
			if got := rows.Find(text, at) != nil; got != slices.Contains(want, text) {
				t.Errorf("at %v %s: %v", at, text, got)
			}
		}
	}
	if err := x.Rotate(NewToken(second), now.Add(time.Hour), now); err != nil {
		t.Fatal(err)
	}
	valid(now, first, second)
	valid(now.Add(time.Hour-time.Millisecond), first, second)
	valid(now.Add(time.Hour), second)
	later := now.Add(2 * time.Hour)
	leaked := Extension{ID: "1", Tokens: []Token{NewToken(first)}}
	n.Extensions[0], leaked = leaked, n.Extensions[0]
	if err := errors.Join(x.Rotate(NewToken(second), later, now), x.Rotate(NewToken(third), now, now)); err != nil {
		t.Fatal(err)
	}
	valid(now, third) // also the one of an earlier rotation ends
	n.Extensions[0] = leaked
	if err := x.Rotate(NewToken(third), later, later); err != nil { // at once
		t.Fatal(err)
	}
	valid(later, third)
	if len(x.Ending) != 0 {
		t.Errorf("kept for nothing: %d", len(x.Ending))
	}
	for i := range MaxTokens {
		err := x.Rotate(NewToken(fmt.Sprintf("%032x", i)), later.Add(time.Hour), later)
		if (err != nil) != (i == MaxTokens-1) {
			t.Errorf("token %d: %v", i, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(table())
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Parse(data)
		if err != nil && strings.Contains(err.Error(), token) {
			t.Error(err)
		}
		if err == nil {
			New(got).Find(token, now)
		}
	})
}
