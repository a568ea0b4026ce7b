package pbx

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"callrelay/callback"
)

// The documents of docs/webhook.md. null means: not known, or there is none.

type document struct {
	Type string `json:"type"`
	// Timestamp is when the leg or call ended, by the PBX.
	Timestamp string `json:"timestamp"`
	Data      any    `json:"data"`
}

type registration struct {
	Integration    string  `json:"integration"`
	CallID         string  `json:"call_id"`
	SubCallID      string  `json:"sub_call_id"`
	Direction      string  `json:"direction"`
	Status         string  `json:"status"`
	Success        bool    `json:"success"`
	Missed         bool    `json:"missed"`
	Number         string  `json:"number"`
	Extension      string  `json:"extension"`
	ExtensionID    string  `json:"extension_id"`
	User           *string `json:"user"`
	DID            *string `json:"did"`
	StartedAt      *string `json:"started_at"`
	AnsweredAt     *string `json:"answered_at"`
	EndedAt        *string `json:"ended_at"`
	DurationUS     int64   `json:"duration_us"`
	DurationS      int64   `json:"duration_s"`
	RecordID       *string `json:"record_id"`
	RawStatus      *string `json:"raw_status"`
	AnswerInferred bool    `json:"answer_inferred"`
	Reconciled     bool    `json:"reconciled"`
}

type recording struct {
	Integration string `json:"integration"`
	CallID      string `json:"call_id"`
	SubCallID   string `json:"sub_call_id"`
	RecordID    string `json:"record_id"`
}

// What registration.Status says besides the PBX's own words.
const (
	statusAnswered  = "answered"
	statusForwarded = "forwarded"
	statusMissed    = "missed"
	statusFailed    = "failed"
)

// unsuccessful is the status of an outgoing attempt that failed (P10); the raw word is kept beside it.
func unsuccessful(raw string) string {
	if slices.Contains([]string{"CANCEL", "BUSY", "NOANSWER", "CONGESTION", "CHANUNAVAIL"}, raw) {
		return strings.ToLower(raw)
	}
	return statusFailed
}

// registerLeg queues the registration of a leg.
func (d *decision) registerLeg(l *Leg, rule, status string, inferred bool) {
	number, _ := d.party(l)
	r := d.registration(l, number, d.flow(l), status)
	if status == statusAnswered || status == statusForwarded {
		r.Success, r.AnswerInferred = true, inferred
		r.Reconciled = !l.Answer.seen() && !inferred || !l.Hangup.seen()
		r.AnsweredAt = moment(l.answeredUS())
		r.DurationUS, r.DurationS = l.durationUS(), callback.PbxSeconds(l.durationUS())
		r.RecordID = optional(l.recordID())
		l.Recorded = l.recordID() != ""
	}
	if status == statusForwarded {
		d.forwarder(l, &r)
	}
	l.Delivery = d.queue(EndpointCall, encode(EndpointCall, ended(l), r))
	l.Outcome = rule + " registered"
	d.journal(Decided{Rule: rule, What: "registered as " + direction(r.Direction) + ", " + status, Leg: l.SubCallID, Delivery: l.Delivery, RequestID: d.call.RequestID})
}

// forwarder makes the registration of a forwarding to the outside one of the original caller (P19): that of the leg of
// the same extension that came in last before, else of any leg from outside.
func (d *decision) forwarder(l *Leg, r *registration) {
	r.Direction, r.Number = callback.PbxIn, ""
	if caller := l.first(func(s *Said) string { return s.Caller }); !d.cfg.Local(caller) {
		r.Number = caller
	}
	var from *Leg
	for i := range d.call.Legs {
		o := &d.call.Legs[i]
		if _, where := d.party(o); o.SubCallID == l.SubCallID || d.flow(o) != callback.PbxIn && !o.service() || where != outside {
			continue
		}
		if from == nil || originates(o, from, l) {
			from = o
		}
	}
	if from == nil {
		return
	}
	r.Number, _ = d.party(from)
	r.DID = optional(cmp.Or(l.did(), from.did()))
}

// originates says that a is rather the call that l forwarded than b.
func originates(a, b, l *Leg) bool {
	rank := func(o *Leg) int {
		switch {
		case o.ExtensionID == l.ExtensionID && o.beganUS() <= l.beganUS():
			return 0
		case !o.service():
			return 1
		}
		return 2
	}
	if rank(a) != rank(b) {
		return rank(a) < rank(b)
	}
	return order(a, b) > 0
}

// registerMissed queues the registration of the CallID's missed call.
func (d *decision) registerMissed(l *Leg, rule, number string) {
	r := d.registration(l, number, callback.PbxIn, statusMissed)
	r.Missed, r.RawStatus = true, nil // a queue or IVR that took the call says ANSWER
	d.call.Missed = d.queue(EndpointCall, encode(EndpointCall, ended(l), r))
	l.Delivery, l.Outcome = d.call.Missed, rule+" missed" // never a second one of this leg, whatever is learned later
	d.journal(Decided{Rule: rule, What: "registered as missed on " + l.Extension, Leg: l.SubCallID, Delivery: d.call.Missed, RequestID: d.call.RequestID})
}

func (d *decision) registration(l *Leg, number, flow, status string) registration {
	r := registration{
		Integration: d.cfg.Integration, CallID: d.call.CallID, SubCallID: l.SubCallID, Direction: flow, Status: status,
		Number: number, Extension: l.Extension, ExtensionID: l.ExtensionID,
		User: optional(d.cfg.Users[l.Extension]), DID: optional(l.did()), StartedAt: moment(l.beganUS()), RawStatus: optional(l.Hangup.Status),
	}
	if l.Hangup.seen() {
		r.EndedAt = moment(l.Hangup.AtUS)
	}
	return r
}

func direction(flow string) string {
	if flow == callback.PbxOut {
		return "outgoing"
	}
	return "incoming"
}

func ended(l *Leg) int64 {
	if l.Hangup.seen() {
		return l.Hangup.AtUS
	}
	return l.answeredUS() + l.durationUS()
}

func recordingDocument(cfg *Config, call *Call, l *Leg) []byte {
	return encode(EndpointRecording, ended(l), recording{cfg.Integration, call.CallID, l.SubCallID, l.recordID()})
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func moment(us int64) *string {
	s := time.UnixMicro(us).UTC().Format("2006-01-02T15:04:05.000000Z")
	return &s
}

// encode writes a document. Unlike json.Marshal it leaves <, > and & as they are.
func encode(kind string, atUS int64, data any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(document{kind, *moment(atUS), data}); err != nil {
		panic(err) // texts and numbers always encode
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
