package dailylog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"callrelay/callback"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/telemetry"
	"callrelay/services/state/internal/words"
)

// maxBody is how much of an answer's body a line shows, in bytes.
const maxBody = 512

// view makes lines of facts.
type view struct {
	zone *time.Location
	pii  bool
}

// line is one line, its line break included, and where it belongs.
type line struct {
	file kind
	day  string
	text []byte
}

// head is what a line begins with.
type head struct {
	at      int64
	request string
	file    kind
}

func (v *view) line(h head, label, message string, fields ...field) line {
	at := time.UnixMilli(h.at).In(v.zone)
	if h.request == "" {
		h.request = "-"
	}
	b := at.AppendFormat(make([]byte, 0, 512), time.DateTime)
	b = append(b, " | ["+safe(h.request)+"] | "+label+" | "+safe(message)...)
	for _, f := range fields {
		if f.key != "" {
			b = append(b, " | "+f.key+"="+f.value...)
		}
	}
	return line{h.file, at.Format(time.DateOnly), append(b, '\n')}
}

// story is what the lines of one commit or result have in common.
type story struct {
	*view
	file       kind
	callID     string // empty for a request that belongs to no call
	trace      string
	deliveries []*statev1.Delivery
	lines      []line
}

func (s *story) add(h head, label, message string, fields ...field) {
	s.lines = append(s.lines, s.line(h, label, message, append(fields, given("trace_id", s.trace))...))
}

// lines tells an event.
func (v *view) lines(e event) ([]line, error) {
	if e.item == nil {
		return v.completed(e.result, e.atMS), nil
	}
	return v.committed(e.item)
}

func (v *view) committed(item *statev1.CommitItem) ([]line, error) {
	journal := &statev1.Journal{}
	if err := proto.Unmarshal(item.GetJournal(), journal); err != nil {
		return nil, fmt.Errorf("the journal of a commit cannot be read: %w", err)
	}
	s := story{view: v, callID: callID(item.GetCall()), trace: telemetry.TraceID(item.GetTraceparent()), deliveries: item.GetDeliveries()}
	s.file = s.fileOf(journal.GetEntries())
	for _, e := range journal.GetEntries() {
		if id := e.GetReceived().GetTraceId(); id != "" {
			s.trace = id
		}
	}
	for _, e := range journal.GetEntries() {
		s.tell(e)
	}
	return s.lines, nil
}

func (v *view) completed(r *statev1.LeaseResult, atMS int64) []line {
	e := &statev1.JournalEntry{AtMs: atMS, RequestId: r.GetRequestId()}
	if r.GetAttempt() != nil {
		e.Fact = &statev1.JournalEntry_Attempt{Attempt: r.GetAttempt()}
	} else {
		e.Fact = &statev1.JournalEntry_Ended{Ended: &statev1.Ended{Delivery: r.GetDelivery(), State: r.GetEnd().GetState(), Reason: r.GetEnd().GetReason()}}
	}
	s := story{view: v, callID: callID(r.GetCall()), deliveries: []*statev1.Delivery{{Number: r.GetDelivery(), Endpoint: r.GetEndpoint()}}}
	s.file = s.fileOf([]*statev1.JournalEntry{e})
	s.tell(e)
	return s.lines
}

// fileOf says where the lines of a request go.
func (s *story) fileOf(entries []*statev1.JournalEntry) kind {
	file, source := general, ""
	for _, e := range entries {
		switch f := e.GetFact().(type) {
		case *statev1.JournalEntry_Received:
			source = f.Received.GetSource()
		case *statev1.JournalEntry_Decided:
			file = flowFile(f.Decided.GetFlow()) // of several the last: those before it are about earlier callbacks
		case *statev1.JournalEntry_Duplicate:
			file = flowFile(repeatedFlow(f.Duplicate, source))
		case *statev1.JournalEntry_Attempt:
			file = flowFile(f.Attempt.GetEndpoint())
		case *statev1.JournalEntry_Ended:
			file = flowFile(s.delivery(f.Ended.GetDelivery()).GetEndpoint())
		case *statev1.JournalEntry_Action:
			file = flowFile(s.delivery(f.Action.GetDelivery()).GetEndpoint())
		case *statev1.JournalEntry_Phone1:
			if file == general { // a record that expired, which no callback decided
				file = notAnswer
			}
		}
	}
	return file
}

// flowFile says where the lines of a flow go; the name of an endpoint is a flow too.
func flowFile(flow string) kind {
	switch flow {
	case "createCallStart":
		return callStart
	case "createCallEnd":
		return callEnd
	case "createNotAnswer", "wait for phone 2", "absorb late phone 1":
		return notAnswer
	}
	return general
}

// repeatedFlow is the flow of what a duplicate repeats.
func repeatedFlow(d *statev1.Duplicate, source string) string {
	if d.GetFlow() != "" {
		return d.GetFlow()
	}
	if source == "ameyo.call_start" {
		return "createCallStart"
	}
	return "createNotAnswer"
}

// delivery returns the commit's delivery with the number, or nil.
func (s *story) delivery(number uint32) *statev1.Delivery {
	i := slices.IndexFunc(s.deliveries, func(d *statev1.Delivery) bool { return d.GetNumber() == number })
	if i < 0 {
		return nil
	}
	return s.deliveries[i]
}

// tell adds the lines of one entry.
func (s *story) tell(e *statev1.JournalEntry) {
	h := head{e.GetAtMs(), e.GetRequestId(), s.file}
	switch fact := e.GetFact().(type) {
	case *statev1.JournalEntry_Received:
		s.received(h, fact.Received)
	case *statev1.JournalEntry_Decided:
		s.decided(h, fact.Decided)
	case *statev1.JournalEntry_Rejected:
		f := fact.Rejected
		s.add(h, "response", "Sent error response", text("status", strconv.Itoa(int(f.GetStatus()))), given("field", f.GetField()),
			text("message", s.masked(f.GetMessage())), given("method", f.GetMethod()), given("path", s.masked(f.GetPath())))
	case *statev1.JournalEntry_Duplicate:
		f := fact.Duplicate
		fields := append([]field{text("reason", f.GetGate())}, s.gateKey(f.GetKey())...)
		s.add(h, "dedupe", "Skipped duplicate request", append(fields, given("callId", s.callID), given("of", f.GetOf()),
			given("duplicate_differs", yes(f.GetDiffers())))...)
	case *statev1.JournalEntry_Attempt:
		s.attempt(h, fact.Attempt)
	case *statev1.JournalEntry_Ended:
		f := fact.Ended
		s.add(h, "upstream_response", "Ended without a request", given("callId", s.callID), text("delivery", decimal(f.GetDelivery())),
			text("status", words.State(f.GetState())), given("error", s.masked(f.GetReason())))
	case *statev1.JournalEntry_Phone1:
		f := fact.Phone1
		message := phone1Messages[f.GetWhat()]
		if message == "" {
			message = "Phone1 status " + f.GetWhat()
		}
		s.add(h, "state", message, text("customerId", f.GetCustomerId()), given("callId", s.callID),
			text("callTime", f.GetCallTime()), text("phone1Status", f.GetStatus()))
	case *statev1.JournalEntry_Note:
		s.add(h, "note", s.masked(fact.Note), given("callId", s.callID))
	case *statev1.JournalEntry_Undecided:
		f := fact.Undecided
		s.add(h, "note", "undecided: "+s.masked(f.GetReason()), given("callId", s.callID), given("field", f.GetField()),
			given("acknowledged", yes(f.GetAcknowledged())))
	case *statev1.JournalEntry_Action:
		f := fact.Action
		s.add(h, "operator", "Operator action: "+f.GetWhat(), given("callId", s.callID), text("delivery", decimal(f.GetDelivery())),
			text("actor", f.GetActor()), given("reason", s.masked(f.GetReason())))
	}
}

var phone1Messages = map[string]string{
	"stored":   "Stored phone1 status; waiting for phone2",
	"replaced": "Replaced phone1 status; phone1 was dialled again",
	"taken":    "Used and removed phone1 status",
	"expired":  "Phone1 status expired; phone2 never came",
	"absorbed": "Ignored late phone1 status; phone2 was here before it",
}

func (s *story) received(h head, f *statev1.Received) {
	message := "Received dialer callback"
	if f.GetSource() == "ameyo.call_start" {
		message = "Received call start callback"
	}
	age := ""
	if f.GetAgeMs() >= 1000 { // it lay in a spool
		age = milliseconds(f.GetAgeMs())
	}
	s.add(h, "incoming_get", message, field{"query", s.query(f.GetQuery())},
		field{"client", pairs("request_id", h.request, "ip", f.GetPeer())}, given("age", age), given("spooled", yes(f.GetSpooled())))
}

// query shows a query as PHP's json_encode($_GET): of a repeated parameter the last value, at the place of the first.
func (v *view) query(raw []byte) string {
	params := callback.ParseQuery(string(raw))
	if !v.pii {
		params = params.Masked()
	}
	last := make(map[string]string, len(params))
	for _, p := range params {
		last[p.Name] = p.Value
	}
	shown := make([]string, 0, 2*len(params))
	for _, p := range params {
		if value, ok := last[p.Name]; ok {
			shown = append(shown, p.Name, value)
			delete(last, p.Name)
		}
	}
	return pairs(shown...)
}

// pairs is a JSON object of names and values.
func pairs(namesAndValues ...string) string {
	b := []byte{'{'}
	for i, s := range namesAndValues {
		switch {
		case i%2 == 1:
			b = append(b, ':')
		case i > 0:
			b = append(b, ',')
		}
		b = appendQuoted(b, s)
	}
	return string(append(b, '}'))
}

// decided adds the decision and the requests that it prepared.
func (s *story) decided(h head, f *statev1.Decided) {
	for _, n := range f.GetDeliveries() {
		// A callback may find that the phone-1 record of an earlier one expired; what is sent then is that one's.
		if d := s.delivery(n); d != nil && d.GetRequestId() != h.request {
			h.request, h.file = d.GetRequestId(), flowFile(f.GetFlow())
		}
	}
	message := f.GetFlow()
	fields := []field{given("callId", s.callID), text("rule", f.GetRule()), text("flow", f.GetFlow())}
	if f.GetFlow() != "createCallStart" {
		fields = append(fields, text("dialIndex", decimal(f.GetDialIndex())), text("phones", decimal(f.GetPhones())))
	}
	switch f.GetFlow() {
	case "createCallEnd":
		message = "Phone1 connected -> createCallEnd (no phone2)"
		if f.GetDialIndex() > 0 {
			message = "Phone2 connected -> createCallEnd (with phone1 errorInfo from state if available)"
		}
		fields = append(fields, given("errorInfo", f.GetErrorInfo1()), text("phone1_state_used", strconv.FormatBool(f.GetPhone1StateUsed())))
	case "createNotAnswer":
		message = "Not connected -> createNotAnswer (errorInfo1 only)"
		if f.GetErrorInfo2() != "" {
			message = "Not connected -> createNotAnswer (errorInfo1 and errorInfo2)"
		}
		fields = append(fields, text("errorInfo1", f.GetErrorInfo1()), text("errorInfo2", f.GetErrorInfo2()),
			text("phone1_state_used", strconv.FormatBool(f.GetPhone1StateUsed())))
	}
	s.add(h, "decision", message, fields...)
	for _, n := range f.GetDeliveries() {
		if d := s.delivery(n); d != nil {
			s.add(h, "upstream_request", "Prepared upstream request", given("callId", s.callID), text("delivery", decimal(n)),
				text("endpoint", d.GetEndpoint()), object("payload", s.payload(d.GetPayload())))
		}
	}
}

// attempt adds the lines of one HTTP request, or of one that was not made because sending is disabled.
func (s *story) attempt(h head, f *statev1.Attempt) {
	if f.GetNext() == "send_disabled" {
		s.add(h, "payload_prepared", "Sending disabled", given("callId", s.callID), text("delivery", decimal(f.GetDelivery())),
			text("url", f.GetUrl()), text("send_enabled", "0"))
		return
	}
	sent, answered, code := "Response received", "Upstream response received", strconv.Itoa(int(f.GetHttpCode()))
	if f.GetHttpCode() == 0 {
		sent, answered, code = "No response", "No upstream response", ""
	}
	failure := s.masked(f.GetError())
	s.add(h, "http_client", sent, given("callId", s.callID), text("delivery", decimal(f.GetDelivery())), text("attempt", decimal(f.GetNumber())),
		text("url", f.GetUrl()), given("http_code", code), given("error", failure), text("duration", milliseconds(f.GetDurationMs())))

	status, retry := "success", ""
	if f.GetNext() != "delivered" {
		status = "error"
	}
	if f.GetNext() == "retry" {
		retry = milliseconds(f.GetRetryInMs())
	}
	s.add(h, "upstream_response", answered, given("callId", s.callID), text("delivery", decimal(f.GetDelivery())), text("status", status),
		given("result", f.GetResult()), given("messageCode", f.GetMessageCode()), given("subMessageCode", f.GetSubMessageCode()),
		text("next", f.GetNext()), given("retry_in", retry), given("uncertain", yes(f.GetUncertain())),
		given("error", failure), given("body", s.body(f.GetBody())), given("http_code", code))
}

// gateKey shows the key of a gate in the words of the old relay; its form is that of callrelay/services/router/ameyo.
func (v *view) gateKey(key string) []field {
	parts := strings.SplitN(key, "/", 4)
	if len(parts) == 4 {
		id, _ := url.QueryUnescape(parts[2])
		switch parts[0] {
		case "end":
			return []field{text("crtObjectId", parts[3]), text("customerId", id)}
		case "start":
			return []field{text("userId", id), text("targetTel", v.phone(parts[3]))}
		}
	}
	return []field{text("key", v.masked(key))}
}

// payload masks the numbers in a payload.
func (v *view) payload(raw []byte) []byte {
	if v.pii {
		return raw
	}
	return words.MaskPayload(raw)
}

// body is the beginning of an answer. It is masked before it is cut: half a number is not recognised as one.
func (v *view) body(raw []byte) string {
	var compact bytes.Buffer
	if json.Compact(&compact, raw) == nil {
		raw = compact.Bytes()
	}
	s := v.masked(valid(string(raw)))
	if len(s) > maxBody {
		s = strings.ToValidUTF8(s[:maxBody], "") + "..."
	}
	return s
}

// phone masks a phone number.
func (v *view) phone(s string) string {
	if v.pii {
		return s
	}
	return callback.MaskPhones(s)
}

// masked masks what may be phone numbers in free text.
func (v *view) masked(s string) string {
	if v.pii {
		return s
	}
	return telemetry.MaskDigits(s)
}

// callID is the call's id at the dialer; empty for the record of a request that belongs to no call.
func callID(key string) string {
	if id, ok := strings.CutPrefix(key, callback.CallKey(callback.Ameyo, "")); ok {
		return id
	}
	return ""
}

func decimal(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

func milliseconds(n int64) string { return (time.Duration(n) * time.Millisecond).String() }

// yes is "true", or empty for a field that is then left out.
func yes(b bool) string {
	if b {
		return "true"
	}
	return ""
}
