package callback

import "testing"

func TestKeys(t *testing.T) {
	if got := CallKey(Ameyo, "193416"); got != "ameyo/193416" {
		t.Errorf("CallKey = %q", got)
	}
	if got := RequestKey("r1"); got != "request/r1" {
		t.Errorf("RequestKey = %q", got)
	}
}

func TestNormalCallID(t *testing.T) {
	for id, want := range map[string]string{
		"1": "1", "007": "7", "0": "0", "000": "0", "999999999999999999": "999999999999999999", "000000000000000001": "1",
	} {
		if got, ok := NormalCallID(id); got != want || !ok {
			t.Errorf("NormalCallID(%q) = %q, %t", id, got, ok)
		}
	}
	for _, id := range []string{"", "1234567890123456789", "0000000000000000001", "1a", "-1", "+1", "1.0", "１２", " 1"} {
		if got, ok := NormalCallID(id); ok {
			t.Errorf("NormalCallID(%q) = %q", id, got)
		}
	}
}

func TestMask(t *testing.T) {
	for s, want := range map[string]string{
		"07029109978":   "*******9978",
		"070-2910-9978": "***-****-9978",
		"9978":          "9978",
		"":              "",
		`{"phoneList":["07029109978","080 1111 2222"]}`: `{"phoneList":["*******9978","*** **** 2222"]}`,
		"０７０１２３４５６７８":                                   "*******５６７８",
		"090111122223,12345678":                         "********2223,****5678",
	} {
		if got := MaskPhones(s); got != want {
			t.Errorf("MaskPhones(%q) = %q, want %q", s, got, want)
		}
	}
	params := Params{{"unique_id", "1234567"}, {"phone", "1234567"}, {"phoneList", `["1234567"]`}, {"customer_Phone", "1234567"}, {"calleridnum", "1234567"}}
	masked := params.Masked()
	if masked[0].Value != "1234567" || masked[1].Value != "***4567" || masked[2].Value != `["***4567"]` || masked[3].Value != "***4567" || masked[4].Value != "***4567" {
		t.Errorf("Masked = %q", masked)
	}
	if params[1].Value != "1234567" {
		t.Error("Masked changed its receiver")
	}
}
