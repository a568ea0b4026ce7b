package kommo

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// Account is one simulated account. Its methods are what people do in Kommo.
type Account struct {
	server *Server
	id     int64

	// All below is guarded by the Server's lock.
	host        string
	longLived   string
	grants      []*grant
	codes       map[string]time.Time
	refreshes   int
	unsortedOff bool
	unpaid      bool

	window  []time.Time // of requests in the last second
	until   time.Time   // of the pause that a 429 named
	abuse   int
	limited int
	blocked bool

	entities []*Entity
	notes    []*Note
	unsorted []*Unsorted
	popups   []Popup
	webhooks []string
	hooked   int
}

// Entity is a contact, company, lead or customer.
type Entity struct {
	ID       int64    `json:"id"`
	Type     string   `json:"type"` // contact, company, lead, customer
	Name     string   `json:"name"`
	Phones   []string `json:"phones,omitempty"`
	StatusID int64    `json:"status_id,omitempty"` // of a lead; 142 won, 143 lost
	Links    []int64  `json:"links,omitempty"`     // of a lead: its contacts and companies
	Unsorted bool     `json:"unsorted,omitempty"`  // belongs to an incoming lead that is open
	Deleted  bool     `json:"deleted,omitempty"`
}

// Note is a call note.
type Note struct {
	ID         int64  `json:"id"`
	EntityType string `json:"entity_type"`
	EntityID   int64  `json:"entity_id"`
	NoteType   string `json:"note_type"` // call_in, call_out
	Params     object `json:"params"`
	CreatedAt  int64  `json:"created_at"`
	UpdatedAt  int64  `json:"updated_at"`
	CreatedBy  int64  `json:"created_by"`
	Patches    int    `json:"patches"`
	// From is the operation that made it: calls, notes.create or unsorted.sip.
	From string `json:"from"`
}

// Uniq is the id of its call.
func (n *Note) Uniq() string { return text(n.Params["uniq"]) }

// Unsorted is an incoming lead.
type Unsorted struct {
	UID       string `json:"uid"`
	State     string `json:"state"` // open, accepted, declined
	CreatedAt int64  `json:"created_at"`
	Pipeline  int64  `json:"pipeline_id,omitempty"`
	Metadata  object `json:"metadata"`
	LeadID    int64  `json:"lead_id"`
	ContactID int64  `json:"contact_id,omitempty"`
	CompanyID int64  `json:"company_id,omitempty"`
}

// Popup is a card that was shown.
type Popup struct {
	Phone     string `json:"phone_number"`
	Users     []any  `json:"users"`
	ElementID int64  `json:"element_id,omitempty"`
}

// View is everything an account holds.
type View struct {
	ID       int64      `json:"id"`
	Host     string     `json:"host"`
	Entities []Entity   `json:"entities"`
	Notes    []Note     `json:"notes"`
	Unsorted []Unsorted `json:"unsorted"`
	Popups   []Popup    `json:"popups"`
	// Calls counts notes by the uniq of their call.
	Calls map[string]int `json:"calls"`
	// Limited counts 429 answers, Abuse those within a pause that a 429 had named.
	Limited int  `json:"limited"`
	Abuse   int  `json:"abuse"`
	Blocked bool `json:"blocked"`
	// Webhooks counts what was sent.
	Webhooks int `json:"webhooks"`
}

// View returns a copy of everything the account holds.
func (a *Account) View() View {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	v := View{ID: a.id, Host: a.host, Entities: []Entity{}, Notes: []Note{}, Unsorted: []Unsorted{}, Popups: append([]Popup{}, a.popups...),
		Calls: map[string]int{}, Limited: a.limited, Abuse: a.abuse, Blocked: a.blocked, Webhooks: a.hooked}
	for _, e := range a.entities {
		v.Entities = append(v.Entities, *e)
	}
	for _, n := range a.notes {
		v.Notes = append(v.Notes, *n)
		v.Calls[n.Uniq()]++
	}
	for _, u := range a.unsorted {
		v.Unsorted = append(v.Unsorted, *u)
	}
	return v
}

// Add makes an entity as a person does, and tells the webhooks of a new contact. Links are ids of contacts and companies of a lead.
func (a *Account) Add(kind, name string, phones []string, links ...int64) int64 {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	return a.add(kind, name, phones, links...).ID
}

func (a *Account) add(kind, name string, phones []string, links ...int64) *Entity {
	e := &Entity{ID: a.server.id(), Type: kind, Name: name, Phones: phones, Links: links}
	if kind == "lead" {
		e.StatusID = 1
	}
	a.entities = append(a.entities, e)
	if kind == "contact" {
		a.tellContact(e)
	}
	return e
}

// Change changes an entity: its status, phones or whether it is deleted. Nothing happens where there is none.
func (a *Account) Change(id int64, change func(*Entity)) {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	if e := a.entity(id); e != nil {
		change(e)
	}
}

// Unblock lets a blocked account in again.
func (a *Account) Unblock() {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	a.blocked, a.abuse, a.until, a.window = false, 0, time.Time{}, nil
}

// SetUnpaid answers 402 to everything.
func (a *Account) SetUnpaid(unpaid bool) {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	a.unpaid = unpaid
}

// SetUnsortedOff switches incoming leads off or on.
func (a *Account) SetUnsortedOff(off bool) {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	a.unsortedOff = off
}

// Decide accepts or declines an incoming lead; false where none with this uid is open.
func (a *Account) Decide(uid string, accept bool) bool {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	return a.decide(uid, accept) != nil
}

func (a *Account) decide(uid string, accept bool) *Unsorted {
	for _, u := range a.unsorted {
		if u.UID != uid || u.State != "open" {
			continue
		}
		u.State = map[bool]string{true: "accepted", false: "declined"}[accept]
		for _, id := range []int64{u.LeadID, u.ContactID, u.CompanyID} {
			if e := a.entity(id); e != nil {
				e.Unsorted, e.Deleted = false, !accept
				if accept && e.Type == "contact" {
					a.tellContact(e)
				}
			}
		}
		a.tellDecision(u, accept)
		return u
	}
	return nil
}

func (a *Account) entity(id int64) *Entity {
	for _, e := range a.entities {
		if e.ID == id && id != 0 {
			return e
		}
	}
	return nil
}

// limit is the account's rate: 429 when there were too many in the last second and until the pause ends; then, to who does
// not listen, 403.
func (a *Account) limit() *reply {
	cfg, now := a.server.cfg, a.server.cfg.Now()
	if a.blocked {
		r := page(http.StatusForbidden)
		r.contentType, r.body = "text/plain", []byte("Forbidden")
		return r
	}
	if cfg.PerSecond < 0 {
		return nil
	}
	a.window = slices.DeleteFunc(a.window, func(t time.Time) bool { return now.Sub(t) >= time.Second })
	switch {
	case now.Before(a.until):
		if a.abuse++; a.abuse >= cfg.BlockAfter {
			a.blocked = true
		}
	case len(a.window) >= cfg.PerSecond:
		a.until = now.Add(cfg.RetryAfter)
	default:
		a.window = append(a.window, now)
		return nil
	}
	a.limited++
	seconds := int64(a.until.Sub(now)/time.Second) + 1
	r := problem(http.StatusTooManyRequests, "Too many requests")
	r.body = mustJSON(object{"title": "Too many requests", "type": "https://httpstatus.es/429", "status": 429,
		"detail": "The request limit is exceeded.", "retry_after": seconds})
	if cfg.RetryAfterHeader {
		r.retryAfter = text(seconds)
	}
	return r
}

func (s *Server) id() int64 {
	s.nextID++
	return s.nextID
}

// last are the last n digits of a number.
func last(phone string, n int) string {
	digits := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, phone)
	return digits[max(0, len(digits)-n):]
}

// find is the oldest entity of a kind with this number, by its last digits.
func (a *Account) find(kind, phone string, digits int, unsorted bool) *Entity {
	wanted := last(phone, digits)
	for _, e := range a.entities {
		if e.Type == kind && !e.Deleted && (unsorted || !e.Unsorted) && wanted != "" &&
			slices.ContainsFunc(e.Phones, func(p string) bool { return last(p, digits) == wanted }) {
			return e
		}
	}
	return nil
}

// match is Kommo's own choice for a call: contact or company by the last digits; its active lead where there is exactly one.
func (a *Account) match(phone string, digits int, companyFirst bool) *Entity {
	kinds := []string{"contact", "company"}
	if companyFirst {
		slices.Reverse(kinds)
	}
	for _, kind := range kinds {
		e := a.find(kind, phone, digits, a.server.cfg.MatchUnsorted)
		if e == nil {
			continue
		}
		var active []*Entity
		for _, lead := range a.entities {
			if lead.Type == "lead" && !lead.Deleted && !lead.Unsorted && lead.StatusID != 142 && lead.StatusID != 143 && slices.Contains(lead.Links, e.ID) {
				active = append(active, lead)
			}
		}
		if len(active) == 1 {
			return active[0]
		}
		return e
	}
	return nil
}
