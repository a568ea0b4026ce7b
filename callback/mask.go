package callback

import (
	"slices"
	"strings"
	"unicode"
)

// phoneParams are the parameters whose values are phone numbers although "phone" is not in their names, or texts that may have some.
var phoneParams = []string{"CallerIDNum", "CallerIDName", "CalledNumber", "CalledDID", "RemoteNumber", "Diversion", "did", "result"}

// Masked returns a copy for people who may not see phone numbers, and for logs: of the digits of each only the last four are left.
// Whatever has "phone" in its name counts as one, or as a JSON list of them.
func (p Params) Masked() Params {
	masked := slices.Clone(p)
	for i := range masked {
		name := masked[i].Name
		if strings.Contains(strings.ToLower(name), "phone") ||
			slices.ContainsFunc(phoneParams, func(known string) bool { return strings.EqualFold(known, name) }) {
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
