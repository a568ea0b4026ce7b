package callback

import (
	"slices"
	"strings"
	"unicode"
)

// phoneParams are the parameters whose values are phone numbers, or a JSON list of them.
var phoneParams = []string{
	"phone", "displayPhone", "dialledPhone", "dialedPhone", "dstPhone", "cstmPhone", "phone1", "phone2", "phoneList",
	"CallerIDNum", "CallerIDName", "CalledNumber", "CalledDID", "RemoteNumber", "Diversion", "did",
}

// Masked returns a copy for logs in which the phone numbers of known parameters keep only their last four digits.
func (p Params) Masked() Params {
	masked := slices.Clone(p)
	for i := range masked {
		if slices.ContainsFunc(phoneParams, func(name string) bool { return strings.EqualFold(name, masked[i].Name) }) {
			masked[i].Value = MaskPhones(masked[i].Value)
		}
	}
	return masked
}

// MaskPhones replaces every digit of each number in s by '*', but for its last four. Numbers are separated by commas,
// quotes or brackets, so a JSON list keeps its shape; hyphens and spaces belong to a number.
func MaskPhones(s string) string {
	runes := []rune(s)
	digits := 0 // of the current number, counted from its end
	for i := len(runes) - 1; i >= 0; i-- {
		switch {
		case strings.ContainsRune(`,"[]{}`, runes[i]):
			digits = 0
		case unicode.IsDigit(runes[i]):
			if digits++; digits > 4 {
				runes[i] = '*'
			}
		}
	}
	return string(runes)
}
