package config

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// Secret is a string that does not print itself: whatever formats, logs or marshals it gets "***", or "" when it is empty.
// fmt does not see the methods of unexported fields, nor encoding/json those of map keys: a Secret belongs into neither.
type Secret string

// Reveal is the one way to the value.
func (s Secret) Reveal() string { return string(s) }

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}

// GoString covers %#v where Format is not asked.
func (s Secret) GoString() string { return s.String() }

// Format covers every verb, also those that would print the bytes (%x, %q).
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalText covers encoding/json too.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Switch is a bool that is written the ways people write one.
type Switch bool

// UnmarshalText accepts true, 1, yes, on and false, 0, no, off, empty, in any case.
func (s *Switch) UnmarshalText(text []byte) error {
	switch strings.ToLower(strings.TrimSpace(string(text))) {
	case "true", "1", "yes", "on":
		*s = true
	case "false", "0", "no", "off", "":
		*s = false
	default:
		return fmt.Errorf("%q is neither on (true, 1, yes, on) nor off (false, 0, no, off)", text)
	}
	return nil
}
