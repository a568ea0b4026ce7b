// Package words says what is stored in words for people, and masks it. It owns neither the facts nor who may see them.
package words

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"callrelay/callback"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/telemetry"
)

// Entry says one journal entry; further lines are details.
func Entry(e *statev1.JournalEntry) []string {
	switch fact := e.GetFact().(type) {
	case *statev1.JournalEntry_Received:
		f := fact.Received
		line := words("received", f.GetSource(), "from", orDash(f.GetPeer()), "as request", orDash(e.GetRequestId()))
		if f.GetAgeMs() >= 1000 {
			line += fmt.Sprintf(", %v earlier", milliseconds(f.GetAgeMs()))
		}
		if f.GetSpooled() {
			line += ", acknowledged from the spool"
		}
		lines := []string{line}
		if len(f.GetQuery()) > 0 {
			lines = append(lines, Query(f.GetQuery()))
		}
		if f.GetTraceId() != "" {
			lines = append(lines, "trace "+f.GetTraceId())
		}
		return lines
	case *statev1.JournalEntry_Decided:
		return []string{decided(fact.Decided)}
	case *statev1.JournalEntry_Rejected:
		f := fact.Rejected
		return []string{fmt.Sprintf("refused request %s with %d: %s (%s)", orDash(e.GetRequestId()), f.GetStatus(), f.GetMessage(),
			list(about("field ", f.GetField()), words(f.GetMethod(), f.GetPath())))}
	case *statev1.JournalEntry_Duplicate:
		f := fact.Duplicate
		line := fmt.Sprintf("request %s is a duplicate of %s, which is %s", orDash(e.GetRequestId()), orDash(f.GetOf()), f.GetGate())
		if f.GetDiffers() {
			line += "; IT DIFFERS in dial index or disposition"
		}
		return []string{line}
	case *statev1.JournalEntry_Attempt:
		return []string{attempted(fact.Attempt)}
	case *statev1.JournalEntry_Ended:
		f := fact.Ended
		return []string{fmt.Sprintf("delivery %d is %s", f.GetDelivery(), State(f.GetState())) + about(": ", f.GetReason())}
	case *statev1.JournalEntry_Phone1:
		f := fact.Phone1
		return []string{fmt.Sprintf("phone-1 record %s: %s", f.GetWhat(), list(f.GetStatus(), about("customer ", f.GetCustomerId()), about("called ", f.GetCallTime())))}
	case *statev1.JournalEntry_Undecided:
		f := fact.Undecided
		line := "UNDECIDED: " + f.GetReason() + about(" in field ", f.GetField())
		if f.GetAcknowledged() {
			line += "; ITS SENDER HAS A 200 and will not send it again"
		}
		return []string{line}
	case *statev1.JournalEntry_Card:
		return []string{card(fact.Card)}
	case *statev1.JournalEntry_Kommo:
		f := fact.Kommo
		line := f.GetName() + about(": ", f.GetReason())
		if e := f.GetEntity(); e != nil {
			line += fmt.Sprintf(" (%s %d)", e.GetType(), e.GetId())
		}
		return []string{line + queued(f.GetDeliveries())}
	case *statev1.JournalEntry_Note:
		return []string{"note: " + fact.Note}
	case *statev1.JournalEntry_Action:
		f := fact.Action
		line := words(f.GetActor()+":", f.GetWhat())
		if f.GetDelivery() > 0 {
			line += fmt.Sprintf(" delivery %d", f.GetDelivery())
		}
		return []string{line + about(" because ", f.GetReason())}
	default:
		return []string{"(an entry that this version does not know)"}
	}
}

func decided(f *statev1.Decided) string {
	line := fmt.Sprintf("rule %s: %s", orDash(f.GetRule()), f.GetFlow())
	if f.GetLeg() != "" {
		line += ", leg " + f.GetLeg()
	} else if f.GetRule() != "start" {
		line += fmt.Sprintf(" (dial index %d, phones %d)", f.GetDialIndex(), f.GetPhones())
	}
	line += about(" errorInfo1 ", f.GetErrorInfo1()) + about(" errorInfo2 ", f.GetErrorInfo2())
	if f.GetPhone1StateUsed() {
		line += ", phone-1 record used"
	}
	return line + queued(f.GetDeliveries())
}

// queued names the deliveries that a decision queued.
func queued(deliveries []uint32) string {
	var numbers []string
	for _, n := range deliveries {
		numbers = append(numbers, strconv.FormatUint(uint64(n), 10))
	}
	return about(" -> delivery ", list(numbers...))
}

// card says what a user sees from now on.
func card(f *statev1.PbxCard) string {
	line := fmt.Sprintf("card of %s: %s, %s %s on %s", f.GetUser(), f.GetState(), f.GetDirection(), callback.MaskPhones(f.GetNumber()), f.GetExtension())
	return line + about(", taken by ", f.GetTakenBy()) + fmt.Sprintf(", leg %s version %d", f.GetId(), f.GetVersion())
}

func attempted(f *statev1.Attempt) string {
	line := fmt.Sprintf("delivery %d, attempt %d, %s %s:", f.GetDelivery(), f.GetNumber(), f.GetDestination(), f.GetEndpoint())
	if f.GetHttpCode() > 0 {
		line += fmt.Sprintf(" HTTP %d", f.GetHttpCode())
	}
	line = words(line, f.GetResult(), f.GetMessageCode(), f.GetSubMessageCode(), f.GetError())
	line += fmt.Sprintf(" after %v", max(milliseconds(f.GetDurationMs()), time.Millisecond))
	if f.GetUncertain() {
		line += "; IT MAY HAVE ARRIVED"
	}
	if f.GetNext() != "" {
		line += " -> " + f.GetNext()
	}
	if f.GetRetryInMs() > 0 {
		line += fmt.Sprintf(" in %v", milliseconds(f.GetRetryInMs()))
	}
	return line
}

// Query shows a query decoded.
func Query(query []byte) string {
	var parts []string
	for _, p := range callback.ParseQuery(string(query)) {
		parts = append(parts, p.Name+"="+p.Value)
	}
	return strings.Join(parts, " ")
}

// State is the last word of a delivery state's name.
func State(s statev1.DeliveryState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "DELIVERY_STATE_"))
}

// words joins what is not empty with spaces, list with commas.
func words(parts ...string) string { return join(" ", parts) }
func list(parts ...string) string  { return join(", ", parts) }

func join(separator string, parts []string) string {
	var given []string
	for _, p := range parts {
		if p = strings.TrimSpace(p); p != "" {
			given = append(given, p)
		}
	}
	return strings.Join(given, separator)
}

// about introduces a value, and is nothing without one.
func about(intro, value string) string {
	if value == "" {
		return ""
	}
	return intro + value
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func milliseconds(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }

// Mask hides all phone numbers of an entry but for their last digits.
func Mask(e *statev1.JournalEntry) {
	switch f := e.GetFact().(type) {
	case *statev1.JournalEntry_Received:
		f.Received.Query = []byte(callback.ParseQuery(string(f.Received.GetQuery())).Masked().Encode())
	case *statev1.JournalEntry_Attempt:
		f.Attempt.Body = []byte(telemetry.MaskDigits(string(f.Attempt.GetBody())))
	case *statev1.JournalEntry_Duplicate:
		f.Duplicate.Key = MaskGate(f.Duplicate.GetKey())
	case *statev1.JournalEntry_Rejected:
		f.Rejected.Message, f.Rejected.Path = telemetry.MaskDigits(f.Rejected.GetMessage()), telemetry.MaskDigits(f.Rejected.GetPath())
	case *statev1.JournalEntry_Card:
		f.Card.Number, f.Card.Did = callback.MaskPhones(f.Card.GetNumber()), callback.MaskPhones(f.Card.GetDid())
	case *statev1.JournalEntry_Action:
		f.Action.Reason = telemetry.MaskDigits(f.Action.GetReason())
	}
}

// MaskDelivery does the same for a delivery.
func MaskDelivery(d *statev1.Delivery) {
	d.Gate = MaskGate(d.GetGate())
	d.Reason = telemetry.MaskDigits(d.GetReason())
	d.Payload = MaskPayload(d.GetPayload())
}

// phoneText finds the texts of a payload that hold numbers: targetTel for TopS.II, number and did for a webhook, the others for Kommo,
// which gets a number as the name of a new lead, too, and what a manager wrote.
var phoneText = regexp.MustCompile(`("(?:targetTel|number|did|phone|phone_number|name|value|from|source|source_name|call_result)"\s*:\s*)("(?:[^"\\]|\\.)*")`)

// MaskPayload masks the phone numbers of a payload, which stays JSON.
func MaskPayload(payload []byte) []byte {
	return phoneText.ReplaceAllFunc(payload, func(found []byte) []byte {
		m := phoneText.FindSubmatch(found)
		var text string
		if json.Unmarshal(m[2], &text) != nil {
			return []byte(string(m[1]) + callback.MaskPhones(string(m[2]))) // not JSON, so neither is the rest
		}
		masked := callback.MaskPhones(text)
		if masked == text {
			return found
		}
		quoted, _ := json.Marshal(masked) // a string always encodes
		return append(m[1][:len(m[1]):len(m[1])], quoted...)
	})
}

// MaskGate masks the number at the end of a call start's gate.
func MaskGate(key string) string {
	if i := strings.LastIndexByte(key, '/'); strings.HasPrefix(key, "start/") && i >= 0 {
		return key[:i] + callback.MaskPhones(key[i:])
	}
	return key
}
