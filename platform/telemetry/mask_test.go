package telemetry_test

import (
	"testing"

	"callrelay/platform/telemetry"
)

func TestMaskPhone(t *testing.T) {
	for in, want := range map[string]string{
		"":                  "",
		"1":                 "*",
		"1234":              "****",
		"12345":             "*2345",
		"+79001234567":      "********4567",
		"8 900 123-45-67":   "***********5-67",
		"телефон":           "***ефон",
		"\xff\xfe\xfd":      "***",
		"12\xff34\xfe56":    "****4\xfe56",
		"\xd0\xd0+7900\xd0": "****900\xd0",
	} {
		if got := telemetry.MaskPhone(in); got != want {
			t.Errorf("MaskPhone(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestMaskDigits(t *testing.T) {
	for in, want := range map[string]string{
		"":                                "",
		"nothing here":                    "nothing here",
		"code 123456 is short":            "code 123456 is short",
		"call 1234567 back":               "call ***4567 back",
		"to=+79001234567&x=1":             "to=********4567&x=1",
		"8 900 123-45-67, then 12":        "***********5-67, then 12",
		"+7-900-1234567 or +7+9001234567": "**********4567 or *********4567",
		"a79001234567b79007654321c":       "a*******4567b*******4321c",
		"12 34 5":                         "12 34 5",
		"1,234,567,890":                   "1,234,567,890",
		"\xff79001234567\xfe":             "\xff*******4567\xfe",
		"тел. 79001234567 и всё":          "тел. *******4567 и всё",
	} {
		if got := telemetry.MaskDigits(in); got != want {
			t.Errorf("MaskDigits(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestMaskCall(t *testing.T) {
	for key, want := range map[string]string{
		"kommo-number/9001/3055550142": "kommo-number/9001/******0142",
		"kommo/9001/call-1234567890":   "kommo/9001/call-1234567890", "ameyo/193416": "ameyo/193416",
	} {
		if got := telemetry.MaskCall(key); got != want {
			t.Errorf("%s: %s, want %s", key, got, want)
		}
	}
}
