package router

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"callrelay/callback"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/services/router/kommo"
	"callrelay/services/router/pbx"
)

// pbxRegistration is what Kommo needs of a registration (docs/webhook.md).
type pbxRegistration struct {
	Data struct {
		CallID    string    `json:"call_id"`
		SubCallID string    `json:"sub_call_id"`
		Direction string    `json:"direction"`
		Status    string    `json:"status"`
		Success   bool      `json:"success"`
		Missed    bool      `json:"missed"`
		Number    string    `json:"number"`
		Extension string    `json:"extension"`
		User      string    `json:"user"`
		DID       string    `json:"did"`
		StartedAt time.Time `json:"started_at"`
		DurationS int64     `json:"duration_s"`
	} `json:"data"`
}

// pbxMessages are those by which what was registered of a PBX call is logged in Kommo, too: each leg, and the missed call, is a
// call of its own (spec/kommo.md). It is registered once, so its id makes that of its message unique. Calls between extensions
// have no client.
func (r routes) pbxMessages(callKey string, config *pbx.Config, effects pbx.Effects, traceparent string) ([]*statev1.Message, error) {
	accounts := r[callback.Pbx+"/"+config.Integration]
	var messages []kommo.Message
	for _, d := range effects.Deliveries {
		if d.Endpoint != pbx.EndpointCall || len(accounts) == 0 {
			continue
		}
		var registered pbxRegistration
		if err := json.Unmarshal(d.Payload, &registered); err != nil {
			return nil, fmt.Errorf("a registration that is not one: %w", err)
		}
		if config.Local(registered.Data.Number) {
			continue
		}
		id, voip := pbxReport(&registered)
		for _, account := range accounts {
			messages = append(messages, kommo.Message{
				ID: callKey + ">" + id + ">" + strconv.FormatInt(account, 10), To: kommo.CallKey(account, id),
				Input: kommo.Input{RequestID: d.RequestID, Traceparent: traceparent, Voip: voip},
			})
		}
	}
	return kommoMessages(messages)
}

// pbxReport says what a registration is in Kommo, and by which id it is known there.
func pbxReport(r *pbxRegistration) (id string, v *kommo.Voip) {
	d := &r.Data
	v = &kommo.Voip{Facts: kommo.Facts{Direction: kommo.Inbound, Phone: d.Number, Duration: d.DurationS, StartedMS: d.StartedAt.UnixMilli(), DID: d.DID}}
	if d.Direction == callback.PbxOut {
		v.Direction = kommo.Outbound
	}
	switch {
	case d.Success:
		v.Status = kommo.StatusAnswered
	case d.Status == "busy":
		v.Status = kommo.StatusBusy
	default:
		v.Status = kommo.StatusNoAnswer
	}
	if d.Missed { // nobody spoke
		return "missed:" + kommoID(d.CallID), v
	}
	if v.User = kommoUser(d.User); v.User == 0 {
		v.UserName = cmp.Or(d.User, d.Extension)
	}
	return kommoID(d.SubCallID), v
}

// kommoID is an id as it can be part of a key. Escaped is only what must be: by the others Kommo knows calls already.
func kommoID(id string) string {
	if strings.ContainsFunc(id, func(r rune) bool { return r == '%' || unicode.IsControl(r) }) {
		return url.QueryEscape(id)
	}
	return id
}
