package callback

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// KommoCall is a call that a VoIP service reports for a Kommo account (docs/kommo.md): the JSON body of
// POST /v1/kommo/{account_id}/calls.
type KommoCall struct {
	// CallID is the service's own id: 1 to 128 bytes of printable characters.
	CallID string `json:"call_id"`
	// Direction is "inbound" or "outbound".
	Direction string `json:"direction"`
	// Phone is the client's number in either direction; empty: it was withheld.
	Phone string `json:"phone"`
	// Duration in seconds, 0 to 7 days; 0 for a call that nobody answered.
	Duration int64 `json:"duration"`
	// Status is answered, no_answer, busy, wrong_number, voicemail or empty.
	Status string `json:"status"`
	// StartedAt in seconds since 1970; 0 = unknown.
	StartedAt int64 `json:"started_at"`
	// UserID is the Kommo user who spoke; User an extension or name where that is not known.
	UserID int64  `json:"user_id"`
	User   string `json:"user"`
	// DID is the number that the client called.
	DID string `json:"did"`
}

// kommoStatuses are how a call can have gone.
var kommoStatuses = []string{"answered", "no_answer", "busy", "wrong_number", "voicemail"}

const (
	maxKommoText     = 128 // bytes
	maxKommoDuration = 7 * 24 * 3600
	maxKommoTime     = 4102444800 // the year 2100
)

// DecodeKommoCall reads a report. Its error is a *FieldError.
func DecodeKommoCall(body []byte) (KommoCall, error) {
	var c KommoCall
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	err := d.Decode(&c)
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrong) && wrong.Field != "":
		return c, &FieldError{wrong.Field, fmt.Sprintf("%s must be %s, not a JSON %s", wrong.Field, kommoTypes[wrong.Type.String()], wrong.Value)}
	case err != nil && strings.Contains(err.Error(), "unknown field"):
		name := strings.Trim(strings.TrimPrefix(err.Error(), "json: unknown field "), `"`)
		return c, &FieldError{strings.ToValidUTF8(name[:min(len(name), 64)], ""), "there is no such field"}
	case err != nil:
		return c, &FieldError{"", "the body must be one JSON object"}
	}
	if _, err := d.Token(); err != io.EOF {
		return c, &FieldError{"", "the body must be one JSON object, and nothing behind it"}
	}
	return c, c.Check()
}

var kommoTypes = map[string]string{"string": "a string", "int64": "a whole number"}

// Check says what is wrong with a report. Its error is a *FieldError.
func (c *KommoCall) Check() error {
	refuse := func(field, format string, args ...any) error {
		return &FieldError{field, field + " " + fmt.Sprintf(format, args...)}
	}
	printable := func(s string) bool {
		return utf8.ValidString(s) && strings.TrimSpace(s) == s && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
	}
	for _, text := range []struct{ field, value string }{{"phone", c.Phone}, {"user", c.User}, {"did", c.DID}} {
		if len(text.value) > maxKommoText || !printable(text.value) {
			return refuse(text.field, "must be at most %d bytes of printable characters, without spaces around it", maxKommoText)
		}
	}
	switch {
	case c.CallID == "":
		return refuse("call_id", "is required")
	case len(c.CallID) > maxKommoText || !printable(c.CallID):
		return refuse("call_id", "must be 1 to %d bytes of printable characters, without spaces around it", maxKommoText)
	case c.Direction != "inbound" && c.Direction != "outbound":
		return refuse("direction", "must be inbound or outbound")
	case c.Duration < 0 || c.Duration > maxKommoDuration:
		return refuse("duration", "must be 0 to %d seconds", maxKommoDuration)
	case c.Status != "" && !slices.Contains(kommoStatuses, c.Status):
		return refuse("status", "must be one of %s", strings.Join(kommoStatuses, ", "))
	case c.StartedAt < 0 || c.StartedAt > maxKommoTime:
		return refuse("started_at", "must be seconds since 1970")
	case c.UserID < 0:
		return refuse("user_id", "must be the id of a Kommo user")
	}
	return nil
}
