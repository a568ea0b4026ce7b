package kommo

import (
	"strings"
	"testing"
)

// TestPayloads compares them byte for byte; keys and meanings are those of facts/kommo.md 1.2, 1.9, 2.2, 3.2 and 5.1.
func TestPayloads(t *testing.T) {
	bare := func() *Call {
		return &Call{ID: "pbx7-1767000123.44", VoipMS: 1767000123_000, Voip: &Facts{Direction: Inbound, Phone: "+13055550142"}}
	}
	full := func() *Call {
		return &Call{
			ID: "pbx7-1767000123.44", VoipMS: 1767000200_000, Recording: "rec", Inbound: true,
			Voip:   &Facts{Direction: Inbound, Phone: "+13055550142", Duration: 73, Status: StatusAnswered, StartedMS: 1767000123_456, User: 8800123, DID: "+13055550100"},
			Window: &Window{State: WindowSaved, Result: "wants <two> & a \"half\"", Facts: Facts{User: 1}},
			Entity: Entity{"lead", 410022}, NoteID: 5550001,
		}
	}
	cfg := testConfig()
	cfg.SourceName, cfg.PipelineID, cfg.WidgetCode, cfg.ResponsibleUser = "acme-relay", 33, "acme_voip", 7
	change := func(f func(c *Config)) *Config {
		c := *cfg
		f(&c)
		return &c
	}
	const link = `"link":"https://relay.example/voip/9001/get_call_record/pbx7-1767000123.44"`
	tests := []struct {
		what, got, want string
	}{
		{"call", string(callsPayload(cfg, full())), `[{"direction":"inbound","uniq":"pbx7-1767000123.44","duration":73,"source":"acme-relay / +13055550100",` + link +
			`,"phone":"+13055550142","call_result":"wants <two> & a \"half\"","call_status":4,"call_responsible":8800123,"responsible_user_id":8800123,"created_by":8800123,"created_at":1767000123}]`},
		{"call of which little is known", string(callsPayload(cfg, bare())),
			`[{"direction":"inbound","uniq":"pbx7-1767000123.44","duration":0,"source":"acme-relay","phone":"+13055550142","responsible_user_id":7,"created_at":1767000123}]`},
		{"call without any user", string(callsPayload(change(func(c *Config) { c.ResponsibleUser = 0 }), bare())),
			`[{"direction":"inbound","uniq":"pbx7-1767000123.44","duration":0,"source":"acme-relay","phone":"+13055550142","created_at":1767000123}]`},
		{"note", string(notePayload(cfg, full(), Entity{"contact", 5})), `{"path":{"entity_type":"contact","entity_id":5},"body":{"note_type":"call_in","params":{"uniq":"pbx7-1767000123.44",` +
			`"duration":73,"source":"acme-relay / +13055550100",` + link + `,"phone":"+13055550142","call_result":"wants <two> & a \"half\"","call_status":4,"call_responsible":8800123},` +
			`"responsible_user_id":8800123,"created_by":8800123,"created_at":1767000123}}`},
		{"note without what only the SDK has", string(notePayload(change(func(c *Config) { c.Unconfirmed.NoteStatus = false }), bare(), Entity{"contact", 5})),
			`{"path":{"entity_type":"contact","entity_id":5},"body":{"note_type":"call_in","params":{"uniq":"pbx7-1767000123.44","duration":0,"source":"acme-relay","phone":"+13055550142"},` +
				`"responsible_user_id":7,"created_at":1767000123}}`},
		{"change", string(patchPayload(cfg, full())), `{"path":{"entity_type":"lead","entity_id":410022,"note_id":5550001,"uniq":"pbx7-1767000123.44","phone":"+13055550142"},` +
			`"body":{"note_type":"call_in","params":{"uniq":"pbx7-1767000123.44","duration":73,"source":"acme-relay / +13055550100",` + link +
			`,"phone":"+13055550142","call_result":"wants <two> & a \"half\"","call_status":4,"call_responsible":8800123}}}`},
		{"incoming lead", string(leadPayload(cfg, full())), `[{"source_uid":"acme_voip","source_name":"acme-relay / +13055550100","pipeline_id":33,"created_at":1767000123,` +
			`"metadata":{"uniq":"pbx7-1767000123.44","phone":"+13055550142","from":"+13055550142","call_responsible":8800123,"called_at":1767000123,"duration":73,` + link +
			`,"service_code":"acme_voip","is_call_event_needed":true},"_embedded":{"leads":[{"name":"+13055550142","responsible_user_id":8800123}],` +
			`"contacts":[{"name":"+13055550142","custom_fields_values":[{"field_code":"PHONE","values":[{"value":"+13055550142","enum_code":"WORK"}]}]}]}}]`},
		{"incoming lead the other way", string(leadPayload(change(func(c *Config) {
			c.PipelineID = 0
			c.Unconfirmed.SIPPhone, c.Unconfirmed.SIPFrom, c.Unconfirmed.SIPResponsible, c.Unconfirmed.SIPLinkDummy = SIPUser, SIPNothing, false, "https://none.example"
		}), bare())), `[{"source_uid":"acme_voip","source_name":"acme-relay","created_at":1767000123,"metadata":{"uniq":"pbx7-1767000123.44","phone":"","called_at":1767000123,"duration":0,` +
			`"link":"https://none.example","service_code":"acme_voip","is_call_event_needed":true},"_embedded":{"leads":[{"name":"+13055550142"}],` +
			`"contacts":[{"name":"+13055550142","custom_fields_values":[{"field_code":"PHONE","values":[{"value":"+13055550142","enum_code":"WORK"}]}]}]}}]`},
		{"card", string(popupPayload(&Ringing{Phone: "+13055550142", Users: []int64{8800123, 5}})), `{"add":[{"type":"phone_call","phone_number":"+13055550142","users":[8800123,5]}]}`},
		{"look-up", string(lookupPayload("u1", "+13055550142", Entity{})), `{"path":{"uniq":"u1","phone":"+13055550142"}}`},
		{"look-up on an entity", string(lookupPayload("u1", "", Entity{"lead", 5})), `{"path":{"entity_type":"lead","entity_id":5,"uniq":"u1"}}`},
	}
	for _, test := range tests {
		if test.got != test.want {
			t.Errorf("%s:\n%s\nwant\n%s", test.what, test.got, test.want)
		}
	}

	named := bare()
	named.Voip.UserName, named.Voip.Direction = "extension 101", Outbound
	if got := string(callsPayload(cfg, named)); !strings.Contains(got, `"call_responsible":"extension 101"`) || !strings.Contains(got, `"direction":"outbound"`) {
		t.Error(got)
	}
	if got := string(notePayload(cfg, named, Entity{"contact", 5})); !strings.Contains(got, `"note_type":"call_out"`) {
		t.Error(got)
	}
	long := full()
	long.Window.Result = strings.Repeat("ж", 5001)
	if got := string(callsPayload(cfg, long)); !strings.Contains(got, `"`+strings.Repeat("ж", 5000)+`"`) {
		t.Error("call_result is not cut to 5000 characters")
	}
	long.Dropped = true
	if got := string(callsPayload(cfg, long)); strings.Contains(got, "link") {
		t.Error(got)
	}
}
