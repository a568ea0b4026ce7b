// Package callback is what the edge, the rules and explain know of a callback: how its query is read, which of its
// values count, and every check that needs no state, so that all three refuse the same callbacks with the same words.
//
// It owns the reading of queries as the old PHP relay read them, the decoded forms of Ameyo's call start and call end,
// the canonical keys of calls and requests, and the masking of phone numbers in queries.
//
// It does not own what a callback means (callrelay/services/router/ameyo), nor HTTP, gRPC, the clock or any state: it
// is pure, and a test keeps it so.
package callback

import (
	"net/url"
	"strings"
)

// Param is one parameter of a query, decoded.
type Param struct{ Name, Value string }

// Params are the parameters of a query in the order received, repeated ones included.
type Params []Param

// maxParams is PHP's max_input_vars: it reads no further parameters.
const maxParams = 1000

// phpSpace is what PHP's trim removes at both ends of a value.
const phpSpace = " \t\n\r\x00\v"

// Get returns the value of the parameter, trimmed. Of a repeated one the last counts, even if it is empty; an empty
// value and an absent parameter are the same (spec/ameyo-topsii.md, HTTP in).
func (p Params) Get(name string) string {
	for i := len(p) - 1; i >= 0; i-- {
		if p[i].Name == name {
			return strings.Trim(p[i].Value, phpSpace)
		}
	}
	return ""
}

// first returns the first of the named parameters that is given, and its name ("" and "" when none is).
func (p Params) first(names ...string) (value, name string) {
	for _, name := range names {
		if v := p.Get(name); v != "" {
			return v, name
		}
	}
	return "", ""
}

// ParseQuery reads a raw query (without '?') as PHP reads it (spec/ameyo-topsii.md, HTTP in). It never fails: ';' is an
// ordinary character, '+' is a space, a bad %-escape stays as it is, bytes that are not UTF-8 become U+FFFD (the caller
// keeps the raw query), values are trimmed, parameters without a name and those after the 1000th are left out.
//
// Names follow PHP too, because some of ours contain what it makes of other characters: leading spaces go, and ' ',
// '.' and '[' become '_', so "unique.id" is unique_id. One difference: PHP turns "a[b]=c" into an array named a, which
// the relay could not use; here it is the unknown parameter "a_b]".
func ParseQuery(raw string) Params {
	params := make(Params, 0, min(strings.Count(raw, "&")+1, maxParams))
	for pair := range strings.SplitSeq(raw, "&") {
		name, value, _ := strings.Cut(pair, "=")
		name = phpNames.Replace(strings.TrimLeft(clean(name), " "))
		if name == "" {
			continue
		}
		if len(params) == maxParams {
			break
		}
		params = append(params, Param{Name: name, Value: strings.Trim(clean(value), phpSpace)})
	}
	return params
}

var phpNames = strings.NewReplacer(" ", "_", ".", "_", "[", "_")

// clean decodes the escapes of s and replaces what is not UTF-8.
func clean(s string) string {
	return strings.ToValidUTF8(unescape(s), "\uFFFD")
}

// unescape is PHP's urldecode: '+' is a space, and a '%' without two hex digits is a '%'.
func unescape(s string) string {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '+':
			b = append(b, ' ')
		case isEscape(s, i):
			b = append(b, unhex(s[i+1])<<4|unhex(s[i+2]))
			i += 2
		default:
			b = append(b, s[i])
		}
	}
	return string(b)
}

func isEscape(s string, i int) bool {
	return s[i] == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2])
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c >= 'a':
		return c - 'a' + 10
	}
	return c - 'A' + 10
}

// Encode writes a query that says the same: each name once, with the value that counts (Get), in the order of the counting
// occurrences.
func (p Params) Encode() string {
	var b strings.Builder
	for i, param := range p {
		if p[i+1:].has(param.Name) {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('&')
		}
		b.WriteString(url.QueryEscape(param.Name))
		b.WriteByte('=')
		b.WriteString(url.QueryEscape(strings.Trim(param.Value, phpSpace)))
	}
	return b.String()
}

func (p Params) has(name string) bool {
	for i := range p {
		if p[i].Name == name {
			return true
		}
	}
	return false
}
