package callback

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits of a callback; the specification names none. A longer value is refused.
const (
	// maxValue bounds every single value that is used, in bytes.
	maxValue = 256
	// maxPhoneList bounds the JSON of phoneList, in bytes; a longer one counts as unreadable.
	maxPhoneList = 16 << 10
	// maxPhones is where the counting of phones ends: only none, one and several differ.
	maxPhones = 100
)

// TimeLayout is how TopS.II wants times: YYYY-MM-DD HH:mm:ss.
const TimeLayout = "2006-01-02 15:04:05"

// tokyo is Asia/Tokyo, which has had no summer time since 1951; so the default needs no time-zone files.
var tokyo = time.FixedZone("Asia/Tokyo", 9*60*60)

// FieldError is a refusal: a field is missing or malformed.
type FieldError struct {
	// Field is the first source name of the field's row in spec/ameyo-topsii.md, HTTP in.
	Field string
	// Message names the field and says what is wanted, e.g. "customerCRTId is required when systemDisposition is CONNECTED".
	Message string
}

func (e *FieldError) Error() string { return e.Message }

// Options are the parts of the configuration that decoding needs. The zero value is the default.
type Options struct {
	// Zone is that of the times sent to TopS.II and of times without a zone; nil is Asia/Tokyo.
	Zone *time.Location
	// TargetTelOrder are the sources of a call start's targetTel, the first given one wins (ParseTargetTelOrder); empty
	// is phone, displayPhone, dialledPhone, dstPhone.
	TargetTelOrder []string
}

// DefaultZone returns Asia/Tokyo without reading time-zone files.
func DefaultZone() *time.Location { return tokyo }

func (o Options) zone() *time.Location {
	if o.Zone == nil {
		return tokyo
	}
	return o.Zone
}

var targetTelSources = []string{"phone", "displayPhone", "dialledPhone", "dstPhone"}

func (o Options) targetTelOrder() []string {
	if len(o.TargetTelOrder) == 0 {
		return targetTelSources
	}
	return o.TargetTelOrder
}

// ParseTargetTelOrder reads a comma-separated Options.TargetTelOrder: some or all of phone, displayPhone, dialledPhone
// and dstPhone, none twice. An empty text is the default order.
func ParseTargetTelOrder(text string) ([]string, error) {
	var order []string
	for name := range strings.SplitSeq(text, ",") {
		name = strings.TrimSpace(name)
		switch {
		case name == "" && strings.TrimSpace(text) == "":
			return nil, nil
		case !slices.Contains(targetTelSources, name):
			return nil, fmt.Errorf("unknown source %q of targetTel: want some of %s", name, strings.Join(targetTelSources, ", "))
		case slices.Contains(order, name):
			return nil, fmt.Errorf("source %q of targetTel is given twice", name)
		}
		order = append(order, name)
	}
	return order, nil
}

// CallStart is a decoded and checked call start: the agent's screen is to pop.
type CallStart struct {
	// CallID is 1 to 18 digits without leading zeros.
	CallID    string
	StaffID   string
	TargetTel string
	// Notes are worth journaling and changed nothing, in words. They hold no phone numbers.
	Notes []string
}

// CallEnd is a decoded and checked call end: one dialling attempt is over, connected or not.
type CallEnd struct {
	// CallID is 1 to 18 digits without leading zeros.
	CallID string
	// CustomerID may be empty.
	CustomerID string
	// AttemptID is crtObjectId, else customerCRTId; it may be empty.
	AttemptID string
	// CustomerCRTID is not empty when Connected.
	CustomerCRTID string
	// Disposition is systemDisposition: CONNECTED in capitals, everything else as it came. Empty only with a HangupCause.
	Disposition string
	Connected   bool
	// HangupCause is digits without leading zeros, or empty.
	HangupCause string
	// DialIndex is 0 for phone 1.
	DialIndex uint32
	// Phones are the distinct numbers that the callback names, 0 to 100.
	Phones uint32
	// TargetTel and StaffID are not empty when Connected.
	TargetTel string
	StaffID   string
	// Times in TimeLayout, in Options.Zone; empty when not given.
	ConnectedTime string
	StartTime     string
	EndTime       string
	CallTime      string
	// Notes are worth journaling, in words: what could not be read and what was done instead. They hold no phone numbers.
	Notes []string
}

// decoder reads values, remembers the first refusal and collects notes.
type decoder struct {
	params Params
	err    *FieldError
	notes  []string
}

func (d *decoder) refuse(field, message string) {
	if d.err == nil {
		d.err = &FieldError{Field: field, Message: field + " " + message}
	}
}

func (d *decoder) note(format string, args ...any) {
	d.notes = append(d.notes, fmt.Sprintf(format, args...))
}

// value returns the first given of the sources of a row, which is named after its first source.
func (d *decoder) value(sources ...string) string {
	value, source := d.params.first(sources...)
	if len(value) > maxValue {
		d.refuse(sources[0], fmt.Sprintf("is longer than %d bytes%s", maxValue, takenFrom(source, sources[0])))
	}
	return value
}

func takenFrom(source, row string) string {
	if source == row {
		return ""
	}
	return " (taken from " + source + ")"
}

func (d *decoder) callID(sources ...string) string {
	value, source := d.params.first(sources...)
	if value == "" {
		d.refuse(sources[0], "is required")
		return ""
	}
	id, ok := NormalCallID(value)
	if !ok {
		d.refuse(sources[0], "must be 1 to 18 digits"+takenFrom(source, sources[0]))
	}
	return id
}

// DecodeCallStart decodes and checks a call start (spec/ameyo-topsii.md, Call start parameters). The error is a
// *FieldError. Values longer than 256 bytes are refused.
func DecodeCallStart(p Params, o Options) (CallStart, error) {
	d := decoder{params: p}
	var c CallStart
	c.CallID = d.callID("cs_unique_id", "callId", "crm_push_generated_time", "sessionId")
	c.StaffID = d.value("userId")
	if c.StaffID == "" {
		d.refuse("userId", "is required")
	}
	order := o.targetTelOrder()
	c.TargetTel = d.value(order...)
	if c.TargetTel == "" {
		d.refuse(order[0], "is required")
	}
	if d.err != nil {
		return CallStart{}, d.err
	}
	c.Notes = d.notes
	return c, nil
}

// DecodeCallEnd decodes and checks a call end (spec/ameyo-topsii.md, Call end / not answered parameters). The error is a
// *FieldError.
//
// Where the specification is silent: a value longer than 256 bytes is refused; of phoneList the first 100 distinct
// numbers count; a hangupCauseCode that is not numeric is refused when systemDisposition is absent, since then nothing
// says what happened, and counts as absent, journaled, when it is given.
func DecodeCallEnd(p Params, o Options) (CallEnd, error) {
	d, c := callEnd(p)
	if d.err != nil {
		return CallEnd{}, d.err
	}
	c.ConnectedTime = d.connectedTime(o.zone())
	c.StartTime = d.plainTime("callStartTime")
	c.EndTime = d.plainTime("callEndTime")
	c.CallTime = d.plainTime("callTime")
	c.Notes = d.notes
	return c, nil
}

// CheckCallEnd is DecodeCallEnd for who wants to know only whether there is an error, and the call's id.
func CheckCallEnd(p Params) (callID string, err error) {
	d, c := callEnd(p)
	if d.err != nil {
		return "", d.err
	}
	return c.CallID, nil
}

// callEnd decodes everything that can be refused; times cannot.
func callEnd(p Params) (d decoder, c CallEnd) {
	d.params = p
	c.CallID = d.callID("unique_id")
	c.CustomerID = d.value("customerId")
	c.AttemptID = d.value("crtObjectId", "customerCRTId")
	c.CustomerCRTID = d.value("customerCRTId")
	d.disposition(&c)
	if c.Connected && c.CustomerCRTID == "" {
		d.refuse("customerCRTId", "is required when systemDisposition is CONNECTED")
	}
	d.phones(&c)
	c.StaffID = d.value("userId")
	if c.Connected && c.StaffID == "" {
		d.refuse("userId", "is required when systemDisposition is CONNECTED")
	}
	if c.Connected && c.TargetTel == "" {
		d.refuse("dialledPhone", "is required when systemDisposition is CONNECTED")
	}
	return d, c
}

func (d *decoder) disposition(c *CallEnd) {
	c.Disposition = d.value("systemDisposition")
	if strings.EqualFold(c.Disposition, "CONNECTED") {
		c.Disposition, c.Connected = "CONNECTED", true
	}
	cause := d.value("hangupCauseCode")
	switch {
	case isDigits(cause):
		c.HangupCause = trimZeros(cause)
	case cause == "" && c.Disposition == "":
		d.refuse("systemDisposition", "is required unless hangupCauseCode is given")
	case cause != "" && c.Disposition == "":
		d.refuse("hangupCauseCode", "must be numeric")
	case cause != "":
		d.note("hangupCauseCode is not numeric and counts as absent")
	}
}

// phones fills DialIndex, Phones and TargetTel, which depend on one another.
func (d *decoder) phones(c *CallEnd) {
	dialled := d.value("dialledPhone", "dialedPhone", "dstPhone")
	customer := d.value("cstmPhone")
	phone1 := d.value("phone1")
	phone2 := d.value("phone2")

	phones, problem := parsePhoneList(d.params.Get("phoneList"))
	switch {
	case problem != "":
		phones = distinct([]string{phone1, phone2, customer, dialled})
		d.note("phoneList %s: counted phone1, phone2, cstmPhone and the dialled number instead (%d)", problem, len(phones))
	case len(phones) > 1:
		phone2 = phones[1]
	}
	c.Phones = uint32(len(phones))

	c.TargetTel = cmp.Or(dialled, customer)
	c.DialIndex = d.dialIndex(len(phones) > 1 && c.TargetTel == phone2)
	if c.DialIndex >= 1 && customer != "" {
		c.TargetTel = customer
	}
}

func (d *decoder) dialIndex(dialledSecond bool) uint32 {
	given := d.value("shareablePhonesDialIndex")
	if given == "" {
		if dialledSecond {
			return 1
		}
		return 0
	}
	index, err := strconv.ParseUint(given, 10, 32)
	if err != nil {
		d.refuse("shareablePhonesDialIndex", "must be a non-negative integer")
	}
	return uint32(index)
}

// parsePhoneList returns the distinct numbers of a phoneList, or in words why it cannot be read.
func parsePhoneList(text string) (phones []string, problem string) {
	if text == "" {
		return nil, "is absent"
	}
	if len(text) > maxPhoneList {
		return nil, "is too long"
	}
	if phones, ok := plainPhones(text); ok {
		return distinct(phones), ""
	}
	var list *[]string
	var err error
	if text[0] == '[' {
		err = json.Unmarshal([]byte(text), &list)
	} else {
		var object struct {
			PhoneList *[]string `json:"phoneList"`
		}
		err = json.Unmarshal([]byte(text), &object)
		list = object.PhoneList
	}
	switch {
	case err != nil && !json.Valid([]byte(text)):
		return nil, "is not JSON"
	case err != nil || list == nil:
		return nil, "is of an unknown shape"
	}
	return distinct(*list), ""
}

// plainPhones reads a phoneList as dialers write it: {"phoneList":["0312345678","+81-90-1234-5678"]} or the list alone. Any
// other one is for encoding/json, which takes ten times as long, and each callback is read twice.
func plainPhones(text string) (phones []string, ok bool) {
	list := text
	if object, is := strings.CutPrefix(text, `{"phoneList":`); is && strings.HasSuffix(object, "}") {
		list = object[:len(object)-1]
	}
	if len(list) < len(`[""]`) || list[:2] != `["` || list[len(list)-2:] != `"]` {
		return nil, false
	}
	for phone := range strings.SplitSeq(list[2:len(list)-2], `","`) {
		if strings.Trim(phone, "0123456789+- ") != "" {
			return nil, false
		}
		phones = append(phones, phone)
	}
	return phones, true
}

// distinct leaves the different, non-empty numbers in order, at most maxPhones.
func distinct(numbers []string) []string {
	phones := numbers[:0]
	for _, number := range numbers {
		number = strings.Trim(number, phpSpace)
		if number != "" && len(phones) < maxPhones && !slices.Contains(phones, number) {
			phones = append(phones, number)
		}
	}
	return phones
}

// plainTime reads a time that is used as it is when it has TopS.II's form.
func (d *decoder) plainTime(name string) string {
	value := d.params.Get(name)
	if value == "" {
		return ""
	}
	// Parsing alone would let fractions of a second and one-digit hours pass.
	t, err := time.Parse(TimeLayout, value)
	if err != nil || string(t.AppendFormat(make([]byte, 0, 32), TimeLayout)) != value {
		d.note("%s is not of the form YYYY-MM-DD HH:mm:ss and counts as absent", name)
		return ""
	}
	return value
}

// connectedTime reads callConnectedTime: date with '/' or '-', clock, and possibly an offset whose plus may have arrived
// as a space.
func (d *decoder) connectedTime(zone *time.Location) string {
	value := d.params.Get("callConnectedTime")
	if value == "" {
		return ""
	}
	connected, ok := parseConnectedTime(value, zone)
	if !ok {
		d.note("callConnectedTime cannot be read and counts as absent")
	}
	return connected
}

func parseConnectedTime(value string, zone *time.Location) (text string, ok bool) {
	const dateAndClock = len(TimeLayout)
	if len(value) < dateAndClock {
		return "", false
	}
	local, offset := strings.ReplaceAll(value[:dateAndClock], "/", "-"), strings.TrimLeft(value[dateAndClock:], " ")
	t, err := time.ParseInLocation(TimeLayout, local, zone)
	if err != nil {
		return "", false
	}
	inZone := t.AppendFormat(make([]byte, 0, 32), TimeLayout+"-0700")
	if string(inZone[:dateAndClock]) == local && offset == string(inZone[dateAndClock:]) {
		return local, true // as the dialer sends it
	}
	if offset != "" {
		if isDigits(offset[:1]) {
			offset = "+" + offset
		}
		if t, err = time.Parse(TimeLayout+"-0700", local+strings.Replace(offset, ":", "", 1)); err != nil {
			return "", false
		}
	}
	return t.In(zone).Format(TimeLayout), true
}
