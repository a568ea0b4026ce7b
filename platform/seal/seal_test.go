package seal

import (
	"encoding/base64"
	"strings"
	"testing"
)

func key(id string, b byte) string {
	return id + ":" + base64.StdEncoding.EncodeToString([]byte(strings.Repeat(string(b), 32)))
}

func parse(t *testing.T, text string) *Keys {
	t.Helper()
	k, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSeal(t *testing.T) {
	old := parse(t, key("old", 'a'))
	sealed := old.Seal([]byte("token"), "kommo/1")
	if strings.Contains(string(sealed), "token") {
		t.Error("it is not encrypted")
	}
	rotated := parse(t, key("new", 'b')+","+key("old", 'a'))
	if rotated.Current(sealed) || !rotated.Current(rotated.Seal(nil, "")) {
		t.Error("what is sealed with an old key is not known from what is sealed with the first")
	}
	changed := append([]byte{}, sealed...)
	changed[len(changed)-1] ^= 1
	for name, c := range map[string]struct {
		keys   *Keys
		sealed []byte
		bound  string
		reason string // empty: it opens
	}{
		"the same key":           {old, sealed, "kommo/1", ""},
		"an older key":           {rotated, sealed, "kommo/1", ""},
		"another record":         {old, sealed, "kommo/2", "changed"},
		"a key that was taken":   {parse(t, key("new", 'b')), sealed, "kommo/1", `"old"`},
		"another key, same id":   {parse(t, key("old", 'b')), sealed, "kommo/1", "another key"},
		"changed":                {old, changed, "kommo/1", "changed"},
		"cut":                    {old, sealed[:10], "kommo/1", "cannot be opened"},
		"nothing":                {old, nil, "kommo/1", "not a sealed value"},
		"a length that is wrong": {old, []byte{1, 200, 'x'}, "kommo/1", "not a sealed value"},
	} {
		t.Run(name, func(t *testing.T) {
			plain, err := c.keys.Open(c.sealed, c.bound)
			if c.reason == "" && (err != nil || string(plain) != "token") {
				t.Errorf("%q %v", plain, err)
			}
			if c.reason != "" && (err == nil || !strings.Contains(err.Error(), c.reason)) {
				t.Errorf("%q %v", plain, err)
			}
		})
	}
}

func TestParse(t *testing.T) {
	secret := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("s", 31)))
	for name, c := range map[string]struct{ text, reason string }{
		"none":           {" ", "at least one"},
		"no id":          {secret, "id:key"},
		"too short":      {"a:" + secret, "32 bytes"},
		"no base64":      {"a:%%%", "32 bytes"},
		"the same twice": {key("a", 'a') + " " + key("a", 'b'), "twice"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(c.text)
			if err == nil || !strings.Contains(err.Error(), c.reason) || strings.Contains(err.Error(), secret) {
				t.Error(err)
			}
		})
	}
}
