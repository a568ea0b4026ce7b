package kommo

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
)

// Kommo's bodies (facts/kommo.md, 1 to 5). Optional keys are left out, never null: Kommo stumbles over null.

// The endpoints of deliveries, as Kommo's client knows them (services/upstream/internal/kommo).
const (
	// EndpointCalls posts a call and lets Kommo choose the entity: POST /api/v4/calls.
	EndpointCalls = "calls"
	// EndpointNote puts a call note on an entity: POST /api/v4/{entities}/{id}/notes.
	EndpointNote = "notes.create"
	// EndpointPatch changes a call note: PATCH /api/v4/{entities}/notes/{id}.
	EndpointPatch = "notes.patch"
	// EndpointLead adds an incoming lead: POST /api/v4/leads/unsorted/sip.
	EndpointLead = "unsorted.sip"
	// EndpointPopup shows a ringing card: POST /api/v2/events.
	EndpointPopup = "events.popup"
	// EndpointLookup looks for a call note or incoming lead by uniq.
	EndpointLookup = "lookup.uniq"
)

// Status is how a call went, in Kommo's numbers (facts/kommo.md 1.3).
type Status int32

// The statuses; 0 = not said.
const (
	StatusVoicemail   Status = 1
	StatusCallBack    Status = 2
	StatusAbsent      Status = 3
	StatusAnswered    Status = 4
	StatusWrongNumber Status = 5
	StatusNoAnswer    Status = 6
	StatusBusy        Status = 7
)

// wrapped is a body with what its request needs beside it.
type wrapped struct {
	Path path `json:"path"`
	Body any  `json:"body,omitempty"`
}

type path struct {
	EntityType string `json:"entity_type,omitempty"`
	EntityID   int64  `json:"entity_id,omitempty"`
	NoteID     int64  `json:"note_id,omitempty"`
	Uniq       string `json:"uniq,omitempty"`
	Phone      string `json:"phone,omitempty"`
}

type callBody struct {
	Direction   Direction `json:"direction"`
	Uniq        string    `json:"uniq"`
	Duration    int64     `json:"duration"`
	Source      string    `json:"source"`
	Link        string    `json:"link,omitempty"`
	Phone       string    `json:"phone"`
	Result      string    `json:"call_result,omitempty"`
	Status      Status    `json:"call_status,omitempty"`
	Responsible any       `json:"call_responsible,omitempty"`
	Owner       int64     `json:"responsible_user_id,omitempty"`
	CreatedBy   int64     `json:"created_by,omitempty"`
	CreatedAt   int64     `json:"created_at,omitempty"`
}

type noteBody struct {
	NoteType  string     `json:"note_type"`
	Params    noteParams `json:"params"`
	Owner     int64      `json:"responsible_user_id,omitempty"`
	CreatedBy int64      `json:"created_by,omitempty"`
	CreatedAt int64      `json:"created_at,omitempty"`
}

type noteParams struct {
	Uniq        string `json:"uniq"`
	Duration    int64  `json:"duration"`
	Source      string `json:"source"`
	Link        string `json:"link,omitempty"`
	Phone       string `json:"phone,omitempty"`
	Result      string `json:"call_result,omitempty"`
	Status      Status `json:"call_status,omitempty"`
	Responsible any    `json:"call_responsible,omitempty"`
}

type leadBody struct {
	SourceUID  string       `json:"source_uid"`
	SourceName string       `json:"source_name"`
	PipelineID int64        `json:"pipeline_id,omitempty"`
	CreatedAt  int64        `json:"created_at,omitempty"`
	Metadata   leadMetadata `json:"metadata"`
	Embedded   leadEmbedded `json:"_embedded"`
}

type leadMetadata struct {
	Uniq        string `json:"uniq"`
	Phone       string `json:"phone"`
	From        string `json:"from,omitempty"`
	Responsible any    `json:"call_responsible,omitempty"`
	CalledAt    int64  `json:"called_at,omitempty"`
	Duration    int64  `json:"duration"`
	Link        string `json:"link,omitempty"`
	ServiceCode string `json:"service_code"`
	// CallEvent puts the call itself into the lead, so that it needs no note of its own.
	CallEvent bool `json:"is_call_event_needed"`
}

type leadEmbedded struct {
	Leads    []leadLead    `json:"leads"`
	Contacts []leadContact `json:"contacts"`
}

type leadLead struct {
	Name  string `json:"name"`
	Owner int64  `json:"responsible_user_id,omitempty"`
}

type leadContact struct {
	Name   string       `json:"name"`
	Fields []phoneField `json:"custom_fields_values"`
}

type phoneField struct {
	Code   string       `json:"field_code"`
	Values []phoneValue `json:"values"`
}

type phoneValue struct {
	Value string `json:"value"`
	Code  string `json:"enum_code"`
}

type popupBody struct {
	Add []popup `json:"add"`
}

type popup struct {
	Type  string  `json:"type"`
	Phone string  `json:"phone_number"`
	Users []int64 `json:"users,omitempty"`
}

// callsPayload is the body of EndpointCalls.
func callsPayload(cfg *Config, c *Call) []byte {
	f := c.facts()
	return encode([]callBody{{
		Direction: f.Direction, Uniq: c.ID, Duration: f.Duration, Source: cfg.source(f), Link: c.link(cfg), Phone: f.Phone,
		Result: c.result(cfg), Status: f.Status, Responsible: responsible(f), Owner: cfg.owner(f), CreatedBy: f.User, CreatedAt: seconds(f.StartedMS),
	}})
}

// notePayload is that of EndpointNote for a note on the entity.
func notePayload(cfg *Config, c *Call, entity Entity) []byte {
	f := c.facts()
	body := noteBody{
		NoteType: noteType(f.Direction == Inbound), Params: noteParameters(cfg, c, f),
		Owner: cfg.owner(f), CreatedBy: f.User, CreatedAt: seconds(f.StartedMS),
	}
	return encode(wrapped{Path: path{EntityType: entity.Type, EntityID: entity.ID}, Body: body})
}

// patchPayload is that of EndpointPatch for the call's note, with complete params.
func patchPayload(cfg *Config, c *Call) []byte {
	return encode(wrapped{
		Path: path{EntityType: c.Entity.Type, EntityID: c.Entity.ID, NoteID: c.NoteID, Uniq: c.ID, Phone: c.facts().Phone},
		Body: noteBody{NoteType: noteType(c.Inbound), Params: noteParameters(cfg, c, c.facts())},
	})
}

func noteParameters(cfg *Config, c *Call, f *Facts) noteParams {
	p := noteParams{Uniq: c.ID, Duration: f.Duration, Source: cfg.source(f), Link: c.link(cfg), Phone: f.Phone}
	if cfg.Unconfirmed.NoteStatus {
		p.Result, p.Status, p.Responsible = c.result(cfg), f.Status, responsible(f)
	}
	return p
}

// leadPayload is the body of EndpointLead, with the call in it.
func leadPayload(cfg *Config, c *Call) []byte {
	f, u := c.facts(), &cfg.Unconfirmed
	user := f.UserName
	if f.User != 0 {
		user = strconv.FormatInt(f.User, 10)
	}
	side := map[string]string{SIPClient: f.Phone, SIPUser: user}
	lead := leadLead{Name: f.Phone}
	if u.SIPResponsible {
		lead.Owner = cfg.owner(f)
	}
	link := c.link(cfg)
	if link == "" {
		link = u.SIPLinkDummy
	}
	return encode([]leadBody{{
		SourceUID: cfg.WidgetCode, SourceName: cfg.source(f), PipelineID: cfg.PipelineID, CreatedAt: seconds(f.StartedMS),
		Metadata: leadMetadata{
			Uniq: c.ID, Phone: side[u.SIPPhone], From: side[u.SIPFrom], Responsible: responsible(f), CalledAt: seconds(f.StartedMS),
			Duration: f.Duration, Link: link, ServiceCode: cfg.WidgetCode, CallEvent: true,
		},
		Embedded: leadEmbedded{
			Leads:    []leadLead{lead},
			Contacts: []leadContact{{Name: f.Phone, Fields: []phoneField{{Code: "PHONE", Values: []phoneValue{{Value: f.Phone, Code: "WORK"}}}}}},
		},
	}})
}

// popupPayload is the body of EndpointPopup.
func popupPayload(r *Ringing) []byte {
	return encode(popupBody{Add: []popup{{Type: "phone_call", Phone: r.Phone, Users: r.Users}}})
}

// lookupPayload is that of EndpointLookup: a uniq, looked for at the entities of the number.
func lookupPayload(uniq, phone string, entity Entity) []byte {
	return encode(wrapped{Path: path{EntityType: entity.Type, EntityID: entity.ID, Uniq: uniq, Phone: phone}})
}

// source is the name of the VoIP service with the number that was called; the seed demands it.
func (c *Config) source(f *Facts) string {
	if f.DID == "" {
		return c.SourceName
	}
	return strings.NewReplacer("{name}", c.SourceName, "{did}", f.DID).Replace(c.SourceFormat)
}

// owner is the user to whom the call belongs.
func (c *Config) owner(f *Facts) int64 {
	if f.User != 0 {
		return f.User
	}
	return c.ResponsibleUser
}

// responsible is who is shown: a Kommo user by id, anybody else by name.
func responsible(f *Facts) any {
	switch {
	case f.User != 0:
		return f.User
	case f.UserName != "":
		return f.UserName
	}
	return nil
}

func noteType(inbound bool) string {
	if inbound {
		return "call_in"
	}
	return "call_out"
}

func seconds(ms int64) int64 { return ms / 1000 }

// encode is json.Marshal that leaves <, > and & as they are.
func encode(body any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(body); err != nil {
		panic(err) // strings and numbers always encode
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
