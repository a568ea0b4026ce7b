package kommo

import (
	"encoding/json"
	"strings"
	"time"
)

// Unconfirmed has what Kommo's documentation leaves open or contradicts itself about (facts/kommo.md, 11), as far as it
// changes what this client does. Everything that rests on a guess is in this file; `callrelay integrations check` measures it.
type Unconfirmed struct {
	// CallIDIsNoteID: calls[].id of an answer is the id of the note. While false a note is read before it is changed, and
	// looked for by its uniq where it is another call's: one request more per change, and no risk.
	CallIDIsNoteID bool
	// Settle is how long Kommo may still be busy with a request whose answer did not come. Nobody looks for its effect, or
	// sends it again, before that.
	Settle time.Duration
	// PauseAddress: a 429 stops the whole outgoing address and not only the account. The documentation says both.
	PauseAddress bool
}

// defaultRetryAfter is the wait after a 429 that names none: the one of the documentation's example.
const defaultRetryAfter = 300 * time.Second

// said is an error body in any of the shapes that were seen.
type said struct {
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Hint   string `json:"hint"`
	// RetryAfter is in seconds.
	RetryAfter float64         `json:"retry_after"`
	Code       json.RawMessage `json:"code"`
	// Errors is a list in answers of /calls, and something else elsewhere.
	Errors     json.RawMessage `json:"errors"`
	Validation []struct {
		Errors []struct {
			Code   string `json:"code"`
			Path   string `json:"path"`
			Detail string `json:"detail"`
		} `json:"errors"`
	} `json:"validation-errors"`
}

// statusNotFound is the number that an integrator saw in an answer to a call of an unknown number.
const statusNotFound = 263

// entityNotFound tells the 400 of /calls that means "nobody has this number" from the one that means "this is malformed".
// The only full sample is of 2020: errors with the title "Entity not found", and probably status 263.
func (s *said) entityNotFound() bool {
	if len(s.Validation) > 0 {
		return false
	}
	var list []struct {
		Title  string  `json:"title"`
		Detail string  `json:"detail"`
		Status float64 `json:"status"`
	}
	_ = json.Unmarshal(s.Errors, &list) // another shape is no list of errors
	for _, e := range list {
		if e.Status == statusNotFound || isNotFound(e.Title) || isNotFound(e.Detail) {
			return true
		}
	}
	return len(list) == 0 && isNotFound(s.Title)
}

// ofCard is what an answer means when a card was to be shown. Cards are only in Kommo's old API (/api/v2/events), and nobody could
// confirm that it is still there, for which rights and plans, nor what it says where it is not. So where another answer would hold the
// account, the card is only not shown: if it is the account, the next call finds out.
func (r result) ofCard() result {
	if r.kind == held {
		r.kind = invalid
	}
	return r
}

func isNotFound(text string) bool {
	return strings.EqualFold(strings.TrimSpace(text), "entity not found")
}

// missingRights is "code 244": the user who granted the token lacks rights, or the plan lacks the feature.
func (s *said) missingRights() bool {
	return strings.Trim(string(s.Code), `"`) == "244" || strings.Contains(s.Detail, "code 244")
}
