package router

import (
	"net/url"
	"strings"
	"testing"

	"callrelay/callback"
)

// TestAdviceKey: advice is given on whatever key a call can have.
func TestAdviceKey(t *testing.T) {
	id := url.QueryEscape(strings.Repeat("ж", 64))
	for text, want := range map[string]string{
		"007":                             "ameyo/7",
		"kommo/9223372036854775807/" + id: "kommo/9223372036854775807/" + id,
		"pbx/acme/" + id:                  "pbx/acme/" + id,
		"ameyo/x":                         "",
		"pbx/" + strings.Repeat("x", callback.MaxCallKey): "",
	} {
		if got, err := callKey(text); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
}
