package callback

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
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
	if err := decodeKommo(body, &c); err != nil {
		return c, err
	}
	return c, c.Check()
}

// decodeKommo reads a body with one JSON object. Its error is a *FieldError, or nil.
func decodeKommo(body []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrong) && wrong.Field != "":
		return &FieldError{wrong.Field, fmt.Sprintf("%s must be %s, not a JSON %s", wrong.Field, kommoTypes[wrong.Type.Kind()], wrong.Value)}
	case err != nil && strings.Contains(err.Error(), "unknown field"):
		name := strings.Trim(strings.TrimPrefix(err.Error(), "json: unknown field "), `"`)
		return &FieldError{strings.ToValidUTF8(name[:min(len(name), 64)], ""), "there is no such field"}
	case err != nil:
		return &FieldError{"", "the body must be one JSON object"}
	}
	if _, err := d.Token(); err != io.EOF {
		return &FieldError{"", "the body must be one JSON object, and nothing behind it"}
	}
	return nil
}

var kommoTypes = map[reflect.Kind]string{reflect.String: "a string", reflect.Int64: "a whole number", reflect.Struct: "an object"}

// Check says what is wrong with a report. Its error is a *FieldError.
func (c *KommoCall) Check() error {
	if err := checkKommo(c.CallID, c.Direction, c.Duration, c.StartedAt, c.UserID, kommoText{"phone", c.Phone}, kommoText{"user", c.User}, kommoText{"did", c.DID}); err != nil {
		return err
	}
	if c.Status != "" && !slices.Contains(kommoStatuses, c.Status) {
		return kommoRefusal("status", "must be one of %s", strings.Join(kommoStatuses, ", "))
	}
	return nil
}

// kommoText is a field that may be empty.
type kommoText struct{ field, value string }

// checkKommo checks what a report and the window have in common. Its error is a *FieldError, or nil.
func checkKommo(callID, direction string, duration, startedAt, userID int64, texts ...kommoText) error {
	for _, text := range texts {
		if len(text.value) > maxKommoText || !printable(text.value) {
			return kommoRefusal(text.field, "must be at most %d bytes of printable characters, without spaces around it", maxKommoText)
		}
	}
	switch {
	case callID == "":
		return kommoRefusal("call_id", "is required")
	case len(callID) > maxKommoText || !printable(callID):
		return kommoRefusal("call_id", "must be 1 to %d bytes of printable characters, without spaces around it", maxKommoText)
	case direction != "inbound" && direction != "outbound":
		return kommoRefusal("direction", "must be inbound or outbound")
	case duration < 0 || duration > maxKommoDuration:
		return kommoRefusal("duration", "must be 0 to %d seconds", maxKommoDuration)
	case startedAt < 0 || startedAt > maxKommoTime:
		return kommoRefusal("started_at", "must be seconds since 1970")
	case userID < 0:
		return kommoRefusal("user_id", "must be the id of a Kommo user")
	}
	return nil
}

func kommoRefusal(field, format string, args ...any) *FieldError {
	return &FieldError{field, field + " " + fmt.Sprintf(format, args...)}
}

func printable(s string) bool {
	return utf8.ValidString(s) && strings.TrimSpace(s) == s && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
