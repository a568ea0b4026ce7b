package dailylog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// field is one key=value of a line; the zero field is left out.
type field struct{ key, value string }

// text is a field that is always there.
func text(key, value string) field { return field{key, safe(value)} }

// given is a field that is left out when it is empty.
func given(key, value string) field {
	if value == "" {
		return field{}
	}
	return text(key, value)
}

// object is a field whose value is JSON; what is not valid JSON is text.
func object(key string, raw []byte) field {
	var compact bytes.Buffer
	if json.Compact(&compact, raw) != nil {
		return text(key, string(raw))
	}
	return field{key, string(appendEscaped(nil, valid(compact.String()), false))}
}

// safe returns a value that cannot break its line: as it is, or as a JSON string where it holds something that ends a line,
// separates fields or cannot be seen, or where it would be taken for a JSON string or lose a space.
func safe(s string) string {
	s = valid(s)
	if !strings.ContainsFunc(s, needsEscape) && !strings.HasPrefix(s, `"`) && strings.Trim(s, " ") == s {
		return s
	}
	return string(appendQuoted(nil, s))
}

func valid(s string) string { return strings.ToValidUTF8(s, string(utf8.RuneError)) }

// needsEscape says that a character cannot stand in a line: the separator, and everything that is not visible, such as line
// breaks, control characters and those that turn the direction of writing.
func needsEscape(r rune) bool { return r == '|' || !unicode.IsGraphic(r) }

// appendQuoted appends a JSON string.
func appendQuoted(b []byte, s string) []byte {
	return append(appendEscaped(append(b, '"'), valid(s), true), '"')
}

// appendEscaped appends what stands between the quotes of a JSON string, or, without quotes, JSON in which only characters
// inside strings can need an escape.
func appendEscaped(b []byte, s string, quotes bool) []byte {
	for _, r := range s {
		switch {
		case quotes && (r == '"' || r == '\\'):
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, `\n`...)
		case r == '\r':
			b = append(b, `\r`...)
		case r == '\t':
			b = append(b, `\t`...)
		case needsEscape(r):
			for _, unit := range utf16.AppendRune(nil, r) {
				b = fmt.Appendf(b, `\u%04x`, unit)
			}
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return b
}
