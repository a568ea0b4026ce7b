package callback

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// KommoWindow is what a manager did in Kommo's call-result window (docs/kommo.md): the JSON body of
// POST /v1/kommo/{account_id}/call-results. Who the manager is, its token says (spec/kommo.md, Client).
type KommoWindow struct {
	// State is opened, saved or cancelled.
	State string `json:"state"`
	// CallID is the id by which the VoIP side knows the call: without it nobody could tell that both speak of one.
	CallID string `json:"call_id"`
	// Direction, Phone, Duration and StartedAt are those of KommoCall.
	Direction string `json:"direction"`
	Phone     string `json:"phone"`
	Duration  int64  `json:"duration"`
	StartedAt int64  `json:"started_at"`
	// Entity is where the call is to be; nil: Kommo chooses. Only when saved.
	Entity *KommoEntity `json:"entity"`
	// Result is the manager's text, up to 5000 characters. Only when saved.
	Result string `json:"result"`
	// UserID is the Kommo user; the body has none.
	UserID int64 `json:"-"`
}

// KommoEntity is something in Kommo that a call can be put on.
type KommoEntity struct {
	// Type is contact, company, lead or customer.
	Type string `json:"type"`
	ID   int64  `json:"id"`
}

var (
	kommoStates   = []string{"opened", "saved", "cancelled"}
	kommoEntities = []string{"contact", "company", "lead", "customer"}
)

// MaxKommoResult is the longest text of a manager, in characters: what the rules send of it at most.
const MaxKommoResult = 5000

// DecodeKommoWindow reads what the window sends. Its error is a *FieldError.
func DecodeKommoWindow(body []byte) (KommoWindow, error) {
	var w KommoWindow
	if err := decodeKommo(body, &w); err != nil {
		return w, err
	}
	return w, w.Check()
}

// Check says what is wrong. Its error is a *FieldError.
func (w *KommoWindow) Check() error {
	if err := checkKommo(w.CallID, w.Direction, w.Duration, w.StartedAt, w.UserID, kommoText{"phone", w.Phone}); err != nil {
		return err
	}
	switch saved := w.State == "saved"; {
	case !slices.Contains(kommoStates, w.State):
		return kommoRefusal("state", "must be one of %s", strings.Join(kommoStates, ", "))
	case w.Entity != nil && !saved:
		return kommoRefusal("entity", "can only be given when state is saved")
	case w.Entity != nil && !slices.Contains(kommoEntities, w.Entity.Type):
		return kommoRefusal("entity.type", "must be one of %s", strings.Join(kommoEntities, ", "))
	case w.Entity != nil && w.Entity.ID <= 0:
		return kommoRefusal("entity.id", "must be the id of the entity")
	case w.Result != "" && !saved:
		return kommoRefusal("result", "can only be given when state is saved")
	case !text(w.Result):
		return kommoRefusal("result", "must be at most %d characters of text", MaxKommoResult)
	}
	return nil
}

// text says whether s is what a person can have typed.
func text(s string) bool {
	return utf8.ValidString(s) && utf8.RuneCountInString(s) <= MaxKommoResult &&
		!strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) && !strings.ContainsRune("\n\r\t", r) })
}
