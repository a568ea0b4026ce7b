package ameyo

import (
	"bytes"
	"encoding/json"
)

// TopS.II's payloads. The order of the fields is that of the specification (spec/ameyo-topsii.md, HTTP out); fields
// marked omitempty are left out when a rule does not give them. callId is a JSON number.

// digits is written as a JSON number.
type digits = json.Number

type callStartPayload struct {
	CallID    digits `json:"callId"`
	StaffID   string `json:"predictiveStaffId"`
	TargetTel string `json:"targetTel"`
}

type callEndPayload struct {
	CallID          digits `json:"callId"`
	CallStartTime   string `json:"callStartTime"`
	CallEndTime     string `json:"callEndTime"`
	SubCTIHistoryID string `json:"subCtiHistoryId"`
	TargetTel       string `json:"targetTel"`
	StaffID         string `json:"predictiveStaffId"`
	ErrorInfo       string `json:"errorInfo,omitempty"`
}

type notAnswerPayload struct {
	CallID     digits `json:"callId"`
	CallTime   string `json:"callTime"`
	ErrorInfo1 string `json:"errorInfo1"`
	ErrorInfo2 string `json:"errorInfo2,omitempty"`
}

// encode wraps a payload into the object that its endpoint wants. Unlike json.Marshal it leaves <, > and & as they are.
func encode(payload any) []byte {
	var envelope any
	switch p := payload.(type) {
	case callStartPayload:
		envelope = struct {
			P callStartPayload `json:"predictiveCallCreateCallStart"`
		}{p}
	case callEndPayload:
		envelope = struct {
			P callEndPayload `json:"predictiveCallCreateCallEnd"`
		}{p}
	case notAnswerPayload:
		envelope = struct {
			P notAnswerPayload `json:"predictiveCallCreateNotAnswer"`
		}{p}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(envelope); err != nil {
		panic(err) // strings and digits always encode
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
