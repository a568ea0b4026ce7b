package callback

import "testing"

func TestKommoCallID(t *testing.T) {
	for id, ok := range map[string]bool{`33301-a1`: true, `sip:a@b/c`: true, `é`: true, ``: false, `a\tb`: false, `a\u0000`: false, `a\u007f`: false, ` a`: false, `a\n`: false} {
		if _, err := DecodeKommoCall([]byte(`{"call_id":"` + id + `","direction":"inbound"}`)); (err == nil) != ok {
			t.Errorf("%s: %v", id, err)
		}
	}
}
