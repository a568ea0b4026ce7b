package ameyo

import (
	"bytes"
	"encoding/json"
	"strings"

	"callrelay/callback"
)

// TopS.II's payloads: an object with one field, the name of the payload, and in it the fields in the order of the
// specification (spec/ameyo-topsii.md, HTTP out). They are written by hand because reflection would be a tenth of deciding.

func callStartPayload(c *callback.CallStart) []byte {
	return newPayload("predictiveCallCreateCallStart", c.CallID).
		text("predictiveStaffId", c.StaffID).
		text("targetTel", c.TargetTel).end()
}

func callEndPayload(c *callback.CallEnd, start, end, errorInfo string) []byte {
	return newPayload("predictiveCallCreateCallEnd", c.CallID).
		text("callStartTime", start).
		text("callEndTime", end).
		text("subCtiHistoryId", c.CustomerCRTID).
		text("targetTel", c.TargetTel).
		text("predictiveStaffId", c.StaffID).
		given("errorInfo", errorInfo).end()
}

func notAnswerPayload(callID, callTime, errorInfo1, errorInfo2 string) []byte {
	return newPayload("predictiveCallCreateNotAnswer", callID).
		text("callTime", callTime).
		text("errorInfo1", errorInfo1).
		given("errorInfo2", errorInfo2).end()
}

// payload is what is written of one.
type payload []byte

// newPayload begins one; the call id is a number.
func newPayload(name, callID string) payload {
	p := append(make(payload, 0, 256), `{"`...)
	p = append(p, name...)
	p = append(p, `":{"callId":`...)
	return append(p, callID...)
}

func (p payload) text(name, value string) payload {
	p = append(p, `,"`...)
	p = append(p, name...)
	p = append(p, `":`...)
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' }) {
		return append(p, quoted(value)...)
	}
	p = append(p, '"')
	p = append(p, value...)
	return append(p, '"')
}

// given leaves out what no rule gives.
func (p payload) given(name, value string) payload {
	if value == "" {
		return p
	}
	return p.text(name, value)
}

func (p payload) end() []byte { return append(p, "}}"...) }

// quoted is text as JSON. Unlike json.Marshal it leaves <, > and & as they are.
func quoted(text string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(text); err != nil {
		panic(err) // a string always encodes
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
