package callback

import "strings"

// Ameyo is the source of calls that the Ameyo dialer reports.
const Ameyo = "ameyo"

// MaxCallKey bounds what can be the key of a call, in bytes: 128 of an id become up to 384 where they are escaped, and there is
// what stands before it.
const MaxCallKey = 512

// CallKey returns the canonical key of a call, e.g. "ameyo/193416". The id must be normalised (NormalCallID). No other
// place makes such a key.
func CallKey(source, id string) string { return source + "/" + id }

// RequestKey returns the key of the record of a request that belongs to no call, e.g. "request/01J...".
func RequestKey(id string) string { return "request/" + id }

// NormalCallID returns a call id without leading zeros ("0" for zero), and false when it is not 1 to 18 ASCII digits
// (spec/ameyo-topsii.md, HTTP in).
func NormalCallID(id string) (string, bool) {
	if len(id) > 18 || !isDigits(id) {
		return "", false
	}
	return trimZeros(id), true
}

func isDigits(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// trimZeros removes leading zeros from digits and leaves at least one.
func trimZeros(digits string) string {
	trimmed := strings.TrimLeft(digits, "0")
	if trimmed == "" {
		return "0"
	}
	return trimmed
}
