package telemetry

import (
	"regexp"
	"strings"
	"unicode/utf8"
)

// MaskPhone keeps the last 4 characters and writes '*' for each other one; a string of 4 or fewer is masked completely.
// A byte that is not UTF-8 counts as a character.
func MaskPhone(s string) string {
	const kept = 4
	n := utf8.RuneCountInString(s)
	if n <= kept {
		return strings.Repeat("*", n)
	}
	from := len(s)
	for range kept {
		_, size := utf8.DecodeLastRuneInString(s[:from])
		from -= size
	}
	return strings.Repeat("*", n-kept) + s[from:]
}

// Seven digits are the shortest number somebody can be called under from outside.
var number = regexp.MustCompile(`\+?[0-9](?:[-+ ]*[0-9]){6,}`)

// MaskDigits masks everything in free text that may be a phone number: runs of 7 or more digits, which '+', '-' and spaces
// do not interrupt.
func MaskDigits(s string) string { return number.ReplaceAllStringFunc(s, MaskPhone) }

// MaskCall masks the key of a record that is one client's number (kommo-number/ACCOUNT/DIGITS); other keys have no number.
func MaskCall(key string) string {
	slash := strings.LastIndexByte(key, '/')
	if !strings.HasPrefix(key, "kommo-number/") || slash < 0 {
		return key
	}
	return key[:slash+1] + MaskPhone(key[slash+1:])
}
