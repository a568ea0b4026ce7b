package callback

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestKommoCallID(t *testing.T) {
	for id, ok := range map[string]bool{`33301-a1`: true, `sip:a@b/c`: true, `é`: true, ``: false, `a\tb`: false, `a\u0000`: false, `a\u007f`: false, ` a`: false, `a\n`: false} {
		if _, err := DecodeKommoCall([]byte(`{"call_id":"` + id + `","direction":"inbound"}`)); (err == nil) != ok {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// What a refusal says is text, wherever a name is cut.
func TestKommoCallUnknownField(t *testing.T) {
	for n := range 8 {
		_, err := DecodeKommoCall([]byte(`{"` + strings.Repeat("x", n) + strings.Repeat("é€😀\xff", 20) + `":1}`))
		var refusal *FieldError
		if !errors.As(err, &refusal) || !utf8.ValidString(refusal.Field) || !utf8.ValidString(refusal.Message) || len(refusal.Field) < 60 {
			t.Errorf("%d: %#v", n, err)
		}
	}
}
