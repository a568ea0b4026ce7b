package prove

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
)

// model is what the specification (spec/ameyo-topsii.md) expects of one call, as far as the dialer's scenarios go: one
// customer, well-formed callbacks, no time limit reached. It shares nothing with the relay's own rules, so that both would
// have to be wrong in the same way.
type model struct {
	gates  map[string]*gate
	record *record // of phone 1
	mark   *mark   // absorbs one late phone 1
}

type gate struct{ connected bool }

type record struct {
	status  string
	by      *gate
	takenBy string
}

type mark struct {
	by   string
	used bool
}

// nothing is due to TopS.II for a callback that is a repeat, or that only says how phone 1 ended.
const nothing = ""

// take says what TopS.II has to get for the next callback of the call, in the words of identity.
func (m *model) take(query string) string {
	q, err := url.ParseQuery(query)
	if err != nil {
		return "a callback that cannot be read: " + query
	}
	if m.gates == nil {
		m.gates = map[string]*gate{}
	}
	if q.Has("cs_unique_id") {
		key := "start " + q.Get("userId") + " " + q.Get("phone")
		if m.gates[key] != nil {
			return nothing
		}
		m.gates[key] = &gate{}
		return identity("createCallStart", q.Get("userId"), q.Get("phone"))
	}
	var phones struct{ PhoneList []string }
	if err := json.Unmarshal([]byte(q.Get("phoneList")), &phones); err != nil {
		return "a callback that cannot be read: " + query
	}
	var (
		key       = q.Get("customerCRTId")
		status    = q.Get("systemDisposition")
		connected = status == "CONNECTED"
		second    = q.Get("shareablePhonesDialIndex") != "0"
		readable  = m.record != nil && (m.record.takenBy == "" || m.record.takenBy == key)
		waits     = !connected && !second && (len(phones.PhoneList) >= 2 || readable)
	)
	if g := m.gates[key]; g != nil {
		waiting := m.record != nil && m.record.by == g && m.record.takenBy == ""
		if !(waiting && !waits) && !(connected && !g.connected) {
			return nothing
		}
	}
	g := &gate{connected: connected}
	m.gates[key] = g
	if waits {
		if m.mark != nil && !m.mark.used {
			m.mark.used = true
			return nothing
		}
		m.record, m.mark = &record{status: status, by: g}, nil
		return nothing
	}
	phone1 := ""
	switch {
	case readable:
		phone1, m.record.takenBy = m.record.status, key
	case second && (m.mark == nil || m.mark.by != key):
		m.mark = &mark{by: key}
	}
	tel := q.Get("dialledPhone")
	if second {
		tel = q.Get("cstmPhone")
	}
	switch {
	case connected && !second:
		return identity("createCallEnd", key, q.Get("userId"), tel, "")
	case connected:
		return identity("createCallEnd", key, q.Get("userId"), tel, phone1)
	case second && phone1 == "":
		return identity("createNotAnswer", "UNKNOWN", status)
	case second:
		return identity("createNotAnswer", phone1, status)
	default:
		return identity("createNotAnswer", status, "")
	}
}

// identity is what TopS.II gets, without its times: the same for a request and its repeat, different for any two others of
// a call.
func identity(endpoint string, fields ...string) string {
	return endpoint + " " + strings.Join(fields, "|")
}

// identify is the identity of a payload.
func identify(endpoint string, payload []byte) string {
	var envelope map[string]struct {
		PredictiveStaffID, TargetTel, SubCtiHistoryID, ErrorInfo, ErrorInfo1, ErrorInfo2 string
	}
	if err := json.Unmarshal(payload, &envelope); err != nil || len(envelope) != 1 {
		return fmt.Sprintf("%s with an unreadable payload %s", endpoint, payload)
	}
	for _, p := range envelope {
		switch endpoint {
		case "createCallStart":
			return identity(endpoint, p.PredictiveStaffID, p.TargetTel)
		case "createCallEnd":
			return identity(endpoint, p.SubCtiHistoryID, p.PredictiveStaffID, p.TargetTel, p.ErrorInfo)
		}
		return identity(endpoint, p.ErrorInfo1, p.ErrorInfo2)
	}
	return ""
}
