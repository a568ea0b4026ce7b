package router

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"callrelay/callback"
	"callrelay/services/router/ameyo"
	"callrelay/services/router/kommo"
)

// routes say where the calls of a source are logged, besides where its own rules deliver: to Kommo accounts.
type routes map[string][]int64

// routeSource is the form of the sources that can be routed: the dialer, and each integration of a cloud PBX.
var routeSource = regexp.MustCompile(`^(ameyo|pbx/[a-z0-9-]{1,32})$`)

// parseRoutes reads routes like "ameyo=kommo/9001,kommo/9002;pbx/acme=kommo/9001". Its error has all problems.
func parseRoutes(text string) (routes, error) {
	r := routes{}
	var errs []error
	for part := range strings.SplitSeq(text, ";") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		source, targets, ok := strings.Cut(part, "=")
		source = strings.TrimSpace(source)
		if !ok || !routeSource.MatchString(source) {
			errs = append(errs, fmt.Errorf("route %q: want ameyo or the id of a PBX integration like pbx/acme, =, and accounts like kommo/9001", part))
			continue
		}
		if _, again := r[source]; again {
			errs = append(errs, fmt.Errorf("route %q: %s is routed already", part, source))
		}
		for target := range strings.SplitSeq(targets, ",") {
			account, ok := kommo.ParseAccount(strings.TrimSpace(target))
			if !ok || slices.Contains(r[source], account) {
				errs = append(errs, fmt.Errorf("route %q: target %q: want different accounts like kommo/9001", part, target))
				continue
			}
			r[source] = append(r[source], account)
		}
	}
	return r, errors.Join(errs...)
}

// ameyoMessages are those by which a call end of the dialer is logged in Kommo: one to each account, if the rules decided
// that the call is over, and not that it is a repeat or that phone 2 follows. A call end is committed once, so the id of
// its request makes that of its message unique.
func (r routes) ameyoMessages(in *input, effects ameyo.Effects, receivedMS int64, zone *time.Location) []kommo.Message {
	accounts, end := r[callback.Ameyo], in.ameyo.CallEnd
	if len(accounts) == 0 || end == nil || effects.Duplicate {
		return nil
	}
	i := slices.IndexFunc(effects.Facts, func(fact ameyo.Fact) bool {
		d, ok := fact.(ameyo.Decided)
		return ok && d.Rule != ameyo.RuleExpiry && (d.Flow == ameyo.FlowCallEnd || d.Flow == ameyo.FlowNotAnswer)
	})
	if i < 0 {
		return nil
	}
	decided := effects.Facts[i].(ameyo.Decided)
	var messages []kommo.Message
	for _, account := range accounts {
		messages = append(messages, kommo.Message{
			ID: in.call + ">" + effects.RequestID + ">" + strconv.FormatInt(account, 10), To: kommo.CallKey(account, "ameyo:"+end.CallID),
			Input: kommo.Input{RequestID: in.id, Traceparent: in.traceparent, Voip: ameyoReport(end, decided, receivedMS, zone)},
		})
	}
	return messages
}

// ameyoReport says what a call end of the dialer is in Kommo: a call to the customer by the agent.
func ameyoReport(end *callback.CallEnd, decided ameyo.Decided, receivedMS int64, zone *time.Location) *kommo.Voip {
	v := &kommo.Voip{Facts: kommo.Facts{Direction: kommo.Outbound, Phone: end.TargetTel, UserName: end.StaffID, Status: ameyoStatus(decided)}}
	began, ended := parseTime(end.StartTime, zone), parseTime(end.EndTime, zone)
	if ended == 0 {
		ended = receivedMS
	}
	if end.Connected {
		talked := parseTime(end.ConnectedTime, zone)
		if talked == 0 {
			talked = began
		}
		if talked != 0 {
			v.Duration = max(0, (ended-talked)/1000)
		}
	}
	v.StartedMS = ended - v.Duration*1000
	return v
}

// ameyoStatus is the status in Kommo's numbers. What the rules send to TopS.II says how the last number ended.
func ameyoStatus(decided ameyo.Decided) kommo.Status {
	if decided.Flow == ameyo.FlowCallEnd {
		return kommo.StatusAnswered
	}
	switch cmp.Or(decided.ErrorInfo2, decided.ErrorInfo1) {
	case "BUSY":
		return kommo.StatusBusy
	case "NUMBER_FAILURE":
		return kommo.StatusWrongNumber
	}
	return kommo.StatusNoAnswer
}

// parseTime reads a time of a callback; 0 = none.
func parseTime(text string, zone *time.Location) int64 {
	t, err := time.ParseInLocation(callback.TimeLayout, text, zone)
	if err != nil {
		return 0
	}
	return t.UnixMilli()
}
