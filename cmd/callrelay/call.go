package main

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"callrelay/callback"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/telemetry"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

func newCall() *cobra.Command {
	c := &cobra.Command{
		Use:     "call <id>",
		Short:   "Show what became of a call: its journal and its deliveries",
		Example: "  callrelay call 193416\n  callrelay call ameyo/193416 --json\n  callrelay call pbx/acme/31573def04f4624d233bfa37ab23dc5c",
		Args:    cobra.ExactArgs(1),
	}
	asJSON := jsonFlag(c)
	return asksState(c, func(ctx context.Context, state statev1.StateServiceClient, args []string) error {
		key, err := callKey(args[0])
		if err != nil {
			return err
		}
		call, err := state.GetCall(ctx, &statev1.GetCallRequest{Call: key})
		if err != nil {
			return err
		}
		if call.GetVersion() == "" && len(call.GetJournal().GetEntries()) == 0 {
			return fmt.Errorf("%w: nothing is stored of %s", errNotFound, key)
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), maskCall(call))
		}
		return renderCall(c.OutOrStdout(), call, time.Local)
	})
}

// renderCall writes the story of a call, oldest first.
func renderCall(out io.Writer, call *statev1.GetCallResponse, zone *time.Location) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", call.GetCall())
	day := ""
	for _, e := range call.GetJournal().GetEntries() {
		at := time.UnixMilli(e.GetAtMs()).In(zone)
		if d := at.Format("2006-01-02 (-07:00)"); d != day {
			day = d
			fmt.Fprintf(&b, "\n%s\n", day)
		}
		for i, line := range describe(e) {
			if i == 0 {
				fmt.Fprintf(&b, "  %s  %s\n", at.Format("15:04:05.000"), line)
			} else {
				fmt.Fprintf(&b, "  %12s  %s\n", "", line)
			}
		}
	}
	if n := call.GetJournalDropped(); n > 0 {
		fmt.Fprintf(&b, "  (the journal is full: %d more bytes were not kept)\n", n)
	}
	if deliveries := call.GetDeliveries(); len(deliveries) > 0 {
		fmt.Fprintln(&b)
		w := table(&b, "DELIVERY", "TO", "STATE", "ATTEMPTS", "CREATED", "ENDED", "REASON")
		for _, d := range deliveries {
			row(w, d.GetNumber(), d.GetDestination()+" "+d.GetEndpoint(), stateInWords(d), d.GetAttempts(),
				moment(d.GetCreatedMs(), zone), moment(d.GetFinalMs(), zone), orDash(d.GetReason()))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(&b, "\nno deliveries\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// describe says one journal entry in words; further lines are details.
func describe(e *statev1.JournalEntry) []string {
	switch fact := e.GetFact().(type) {
	case *statev1.JournalEntry_Received:
		f := fact.Received
		line := fmt.Sprintf("received %s from %s as request %s", f.GetSource(), orDash(f.GetPeer()), orDash(e.GetRequestId()))
		if f.GetAgeMs() >= 1000 {
			line += fmt.Sprintf(", %v earlier", milliseconds(f.GetAgeMs()))
		}
		if f.GetSpooled() {
			line += ", acknowledged from the spool"
		}
		lines := []string{line}
		if len(f.GetQuery()) > 0 {
			lines = append(lines, queryInWords(f.GetQuery()))
		}
		if f.GetTraceId() != "" {
			lines = append(lines, "trace "+f.GetTraceId())
		}
		return lines
	case *statev1.JournalEntry_Decided:
		return []string{decided(fact.Decided)}
	case *statev1.JournalEntry_Rejected:
		f := fact.Rejected
		return []string{fmt.Sprintf("refused request %s with %d: %s (%s)", orDash(e.GetRequestId()), f.GetStatus(), printable(f.GetMessage()),
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
		return []string{fmt.Sprintf("delivery %d is %s", f.GetDelivery(), stateName(f.GetState())) + about(": ", f.GetReason())}
	case *statev1.JournalEntry_Phone1:
		f := fact.Phone1
		return []string{fmt.Sprintf("phone-1 record %s: %s", f.GetWhat(), list(f.GetStatus(), about("customer ", f.GetCustomerId()), about("called ", f.GetCallTime())))}
	case *statev1.JournalEntry_Card:
		return []string{card(fact.Card)}
	case *statev1.JournalEntry_Note:
		return []string{"note: " + printable(fact.Note)}
	case *statev1.JournalEntry_Undecided:
		f := fact.Undecided
		line := "UNDECIDED: " + printable(f.GetReason()) + about(" in field ", f.GetField())
		if f.GetAcknowledged() {
			line += "; ITS SENDER HAS A 200 and will not send it again"
		}
		return []string{line}
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
		line += ", leg " + printable(f.GetLeg())
	} else if f.GetRule() != "start" {
		line += fmt.Sprintf(" (dial index %d, phones %d)", f.GetDialIndex(), f.GetPhones())
	}
	line += about(" errorInfo1 ", f.GetErrorInfo1()) + about(" errorInfo2 ", f.GetErrorInfo2())
	if f.GetPhone1StateUsed() {
		line += ", phone-1 record used"
	}
	for i, n := range f.GetDeliveries() {
		line += fmt.Sprintf("%s%d", []string{" -> delivery ", ", "}[min(i, 1)], n)
	}
	return line
}

// card says what a user sees from now on.
func card(f *statev1.PbxCard) string {
	line := fmt.Sprintf("card of %s: %s, %s %s on %s", printable(f.GetUser()), f.GetState(), f.GetDirection(),
		printable(callback.MaskPhones(f.GetNumber())), f.GetExtension())
	return line + about(", taken by ", f.GetTakenBy()) + fmt.Sprintf(", leg %s version %d", printable(f.GetId()), f.GetVersion())
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

// queryInWords shows a query decoded, with masked phone numbers.
func queryInWords(query []byte) string {
	var parts []string
	for _, p := range callback.ParseQuery(string(query)).Masked() {
		parts = append(parts, p.Name+"="+printable(p.Value))
	}
	return strings.Join(parts, " ")
}

var payloadPhone = regexp.MustCompile(`("(?:targetTel|number|did)"\s*:\s*")([^"]*)(")`)

// maskCall returns a copy in which no phone number is left in queries and payloads.
func maskCall(call *statev1.GetCallResponse) *statev1.GetCallResponse {
	masked := proto.CloneOf(call)
	for _, e := range masked.GetJournal().GetEntries() {
		if f := e.GetReceived(); f != nil {
			f.Query = []byte(queryInWords(f.GetQuery()))
		}
		if f := e.GetAttempt(); f != nil {
			f.Body = []byte(telemetry.MaskDigits(string(f.GetBody())))
		}
		if f := e.GetDuplicate(); f != nil {
			f.Key = maskGate(f.GetKey())
		}
	}
	for _, e := range masked.GetJournal().GetEntries() {
		if f := e.GetCard(); f != nil {
			f.Number, f.Did = callback.MaskPhones(f.GetNumber()), callback.MaskPhones(f.GetDid())
		}
	}
	if r := masked.GetRecord(); r != nil {
		r.Blobs = nil // what rules keep for themselves; the journal says what it came to
	}
	for _, g := range masked.GetRecord().GetGates() {
		g.Key = maskGate(g.GetKey())
	}
	for _, d := range masked.GetDeliveries() {
		maskDelivery(d)
	}
	return masked
}

// maskGate masks the number at the end of a call start's gate.
func maskGate(key string) string {
	if i := strings.LastIndexByte(key, '/'); strings.HasPrefix(key, "start/") && i >= 0 {
		return key[:i] + callback.MaskPhones(key[i:])
	}
	return key
}

func maskDelivery(d *statev1.Delivery) {
	d.Gate = maskGate(d.GetGate())
	d.Payload = payloadPhone.ReplaceAllFunc(d.GetPayload(), func(m []byte) []byte {
		parts := payloadPhone.FindSubmatch(m)
		return []byte(string(parts[1]) + callback.MaskPhones(string(parts[2])) + string(parts[3]))
	})
}
