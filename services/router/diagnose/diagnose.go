// Package diagnose walks the debugging checklist of the seed over what is stored of a call: inputs, received, dedupe, phone-1
// state, upstream send, upstream answer (spec/ameyo-topsii.md, Debugging checklist). It says at which step the call stopped,
// why in plain words, and what to do. A call of a cloud PBX has steps of its own (pbx.go).
//
// It owns the steps, what counts as stopped, and all texts in both languages (texts.go). It reads the journal's typed facts
// and what the rules keep of the call, and nothing else: no I/O and no clock.
package diagnose

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
)

// Step is a step of the checklist.
type Step string

// The steps, in their order.
const (
	Inputs         Step = "inputs"
	Received       Step = "received"
	Dedupe         Step = "dedupe"
	Phone1         Step = "phone1"
	UpstreamSend   Step = "upstream_send"
	UpstreamAnswer Step = "upstream_answer"
)

var steps = []Step{Inputs, Received, Dedupe, Phone1, UpstreamSend, UpstreamAnswer}

const (
	skipped = operatorv1.Level_LEVEL_SKIPPED
	ok      = operatorv1.Level_LEVEL_OK
	note    = operatorv1.Level_LEVEL_NOTE
	waiting = operatorv1.Level_LEVEL_WAITING
	failed  = operatorv1.Level_LEVEL_FAILED
)

// Call is what is stored of a call.
type Call struct {
	Key            string
	Record         *statev1.Record
	Deliveries     []*statev1.Delivery
	Journal        []*statev1.JournalEntry
	JournalDropped bool
	// Holds are the destinations that are held, with the reason.
	Holds map[string]string
	// Stuck says of the others why little or nothing leaves; those that are well are not in it.
	Stuck map[string]string
	// Spooled is how many callbacks ingress has acknowledged that are not decided yet.
	Spooled int64
	// NowMS is state's time.
	NowMS int64
}

// Superseded is Action.what of a request that another one replaced.
const Superseded = "superseded"

// late is from when on the time between receipt and record is worth knowing.
const late = time.Minute

// Diagnose walks the checklist. Nothing stored is a finding too.
func Diagnose(call Call) *operatorv1.DiagnoseResponse {
	d := &diagnosis{call: call, superseded: map[string]string{}, findings: map[Step][]*operatorv1.Finding{}}
	for _, e := range call.Journal {
		if a := e.GetAction(); a.GetWhat() == Superseded {
			d.superseded[e.GetRequestId()] = a.GetRequestId()
		}
	}
	if isPbx(call) {
		d.pbx()
		return d.report(pbxSteps)
	}
	d.received()
	d.entries()
	d.phone1()
	if d.inKommo() {
		d.kommo()
	}
	for _, one := range call.Deliveries {
		d.delivery(one)
	}
	return d.report(steps)
}

type diagnosis struct {
	call       Call
	superseded map[string]string // request -> what replaced it
	findings   map[Step][]*operatorv1.Finding
}

// about is what a finding is about; words fill its text: name, value, ...
type about struct {
	request  string
	delivery uint32
	words    []string
}

// with has further words, which win over those of the same names.
func (a about) with(words ...string) about {
	a.words = append(words, a.words...)
	return a
}

func (d *diagnosis) find(step Step, level operatorv1.Level, code string, a about) {
	t, known := texts[code]
	if !known {
		panic("no text for " + code) // a test finds every code
	}
	words := []string{"{request}", cmp.Or(a.request, "-"), "{delivery}", fmt.Sprint(a.delivery), "{call}", d.call.Key}
	for i := 0; i+1 < len(a.words); i += 2 {
		words = append(words, "{"+a.words[i]+"}", cmp.Or(a.words[i+1], "-"))
	}
	fill := strings.NewReplacer(words...)
	say := func(en, ja string) *operatorv1.Text {
		return &operatorv1.Text{En: fill.Replace(d.crm(en)), Ja: fill.Replace(d.crm(ja))}
	}
	f := &operatorv1.Finding{Code: code, Level: level, RequestId: a.request, Delivery: a.delivery, Why: say(t.en, t.ja)}
	if t.adviceEN != "" {
		f.Advice = say(t.adviceEN, t.adviceJA)
	}
	d.findings[step] = append(d.findings[step], f)
}

// inKommo says whether the call is one that is logged in Kommo: its deliveries go there.
func (d *diagnosis) inKommo() bool {
	return strings.HasPrefix(d.call.Key, "kommo/") || strings.HasPrefix(d.call.Key, "kommo-number/")
}

// crm makes a text name the CRM of the call.
func (d *diagnosis) crm(text string) string {
	if d.inKommo() {
		return strings.ReplaceAll(text, "TopS.II", "Kommo")
	}
	return text
}

// received looks at which callbacks there are.
func (d *diagnosis) received() {
	all, starts, ends, refused, last := 0, 0, 0, 0, ""
	for _, e := range d.call.Journal {
		if e.GetRejected() != nil {
			refused++
		}
		r := e.GetReceived()
		if r == nil {
			continue
		}
		last = e.GetRequestId()
		all++
		switch r.GetSource() {
		case "ameyo.call_start":
			starts++
		case "ameyo.call_end":
			ends++
		}
		if age := time.Duration(r.GetAgeMs()) * time.Millisecond; age >= late {
			d.find(Received, note, "received_late", about{e.GetRequestId(), 0, []string{"age", age.Round(time.Second).String()}})
		}
	}
	switch {
	case last == "" && refused == 0 && d.inKommo() && len(d.call.Journal) > 0:
		d.find(Received, ok, "received_inside", about{})
	case last == "" && refused == 0:
		d.find(Inputs, skipped, "inputs_unread", about{})
		d.find(Dedupe, skipped, "dedupe_ok", about{})
		if d.call.Spooled > 0 {
			d.find(Received, waiting, "received_spooled", about{words: []string{"count", fmt.Sprint(d.call.Spooled)}})
		} else {
			d.find(Received, failed, "received_nothing", about{})
		}
	case refused > 0:
		d.find(Received, ok, "received_refused", about{})
	default:
		d.find(Received, ok, "received_ok", about{last, 0, []string{"count", fmt.Sprint(all)}})
		if ends == 0 && starts > 0 {
			d.find(Received, note, "received_start_only", about{})
		}
		if starts == 0 && ends > 0 {
			d.find(Received, note, "received_no_start", about{})
		}
	}
	if d.call.JournalDropped {
		d.find(Received, note, "received_journal_full", about{})
	}
}

// entries looks at each fact that a step can be told from alone.
func (d *diagnosis) entries() {
	odd := map[string]bool{}
	for _, e := range d.call.Journal {
		request := e.GetRequestId()
		if by := d.superseded[request]; by != "" {
			if e.GetAction().GetWhat() == Superseded {
				d.find(Dedupe, note, "dedupe_superseded", about{request, 0, []string{"of", by}})
			}
			continue
		}
		switch f := e.GetFact().(type) {
		case *statev1.JournalEntry_Rejected:
			r := f.Rejected
			code := "inputs_refused"
			if r.GetField() == "" {
				code = "inputs_method"
			}
			d.find(Inputs, failed, code, about{request, 0, []string{"status", fmt.Sprint(r.GetStatus()), "message", r.GetMessage(), "field", r.GetField()}})
		case *statev1.JournalEntry_Undecided:
			d.find(Inputs, failed, "inputs_panicked", about{request, 0, []string{"message", f.Undecided.GetReason()}})
		case *statev1.JournalEntry_Note:
			if reason, undecided := strings.CutPrefix(f.Note, "undecided: "); undecided {
				d.find(Inputs, failed, "inputs_panicked", about{request, 0, []string{"message", reason}})
			} else if !odd[f.Note] {
				odd[f.Note] = true // each repeat has the same parameters
				d.find(Inputs, note, "inputs_odd", about{request, 0, []string{"note", f.Note}})
			}
		case *statev1.JournalEntry_Duplicate:
			code := "dedupe_repeat"
			if f.Duplicate.GetDiffers() {
				code = "dedupe_differs"
			}
			d.find(Dedupe, note, code, about{request, 0, []string{"of", f.Duplicate.GetOf(), "gate", f.Duplicate.GetGate()}})
		}
	}
}

// phone1 looks at what became of phone-1 statuses.
func (d *diagnosis) phone1() {
	sent := -1 // the last entry that led to a delivery
	for i, e := range d.call.Journal {
		if len(e.GetDecided().GetDeliveries()) > 0 {
			sent = i
		}
	}
	for i, e := range d.call.Journal {
		request := e.GetRequestId()
		if d.superseded[request] != "" {
			continue
		}
		if f := e.GetDecided(); f != nil {
			switch {
			case f.GetRule() == "phone1-expiry":
				d.find(Phone1, note, "phone1_expired_sent", about{request, 0, []string{"status", f.GetErrorInfo1()}})
			case f.GetPhone1StateUsed():
				d.find(Phone1, ok, "phone1_used", about{request: request})
			case f.GetErrorInfo1() == "UNKNOWN" && f.GetErrorInfo2() != "":
				d.find(Phone1, note, "phone1_unknown", about{request: request})
			}
		}
		f := e.GetPhone1()
		words := []string{"status", f.GetStatus()}
		switch f.GetWhat() {
		case "absorbed":
			d.find(Phone1, note, "phone1_absorbed", about{request, 0, words})
		case "replaced":
			d.find(Phone1, note, "phone1_replaced", about{request, 0, words})
		case "expired":
			if sent < i { // neither PHONE1_EXPIRY=send nor a later callback sent anything
				d.find(Phone1, failed, "phone1_expired", about{cmp.Or(f.GetRequestId(), d.stored(f, request)), 0, words})
			}
		}
	}
	for _, g := range d.call.Record.GetGates() {
		if !g.GetWaitingPhone2() {
			continue
		}
		for _, p := range d.call.Record.GetPhone1() {
			if p.GetGate() != g.GetKey() || p.GetRequestId() != g.GetOwner() || p.GetLateMark() {
				continue
			}
			code := "phone1_waiting"
			if d.call.NowMS >= p.GetExpiresMs() {
				code = "phone1_overdue"
			}
			d.find(Phone1, waiting, code, about{p.GetRequestId(), 0, []string{"status", p.GetStatus()}})
		}
	}
}

// stored is the request that left a phone-1 status. Its end may be told by another's entry.
func (d *diagnosis) stored(f *statev1.Phone1Fact, otherwise string) string {
	for _, e := range slices.Backward(d.call.Journal) {
		if s := e.GetPhone1(); s.GetWhat() == "stored" && s.GetCustomerId() == f.GetCustomerId() && s.GetCallTime() == f.GetCallTime() {
			return e.GetRequestId()
		}
	}
	return otherwise
}

// delivery looks at one delivery and TopS.II's last answer to it.
func (d *diagnosis) delivery(one *statev1.Delivery) {
	if d.superseded[one.GetRequestId()] != "" {
		return
	}
	last := d.lastAttempt(one)
	a := about{one.GetRequestId(), one.GetNumber(), []string{"endpoint", one.GetEndpoint(), "destination", one.GetDestination(),
		"reason", one.GetReason(), "attempts", fmt.Sprint(one.GetAttempts())}}
	answered := d.answer(one, last, a)
	send := func(level operatorv1.Level, code string) { d.find(UpstreamSend, level, code, a) }
	hold, held := d.call.Holds[one.GetDestination()]
	switch one.GetState() {
	case statev1.DeliveryState_DELIVERY_STATE_QUEUED:
		switch {
		case answered: // it was sent; the answer is what stopped it
			send(ok, "send_ok")
		case held:
			d.find(UpstreamSend, failed, "send_held", a.with("reason", cmp.Or(hold, one.GetReason())))
		case last.GetNext() == "retry":
			d.find(UpstreamSend, waiting, "send_retrying", a.with("reason", last.GetError()))
		default:
			d.waits(UpstreamSend, one, a)
		}
	case statev1.DeliveryState_DELIVERY_STATE_LEASED:
		send(waiting, "send_sending")
	case statev1.DeliveryState_DELIVERY_STATE_DELIVERED:
		send(ok, "send_ok")
		if one.GetUncertain() && one.GetAttempts() > 1 {
			send(note, "send_maybe_twice")
		}
	case statev1.DeliveryState_DELIVERY_STATE_DEAD:
		if answered {
			send(ok, "send_ok")
		} else {
			send(failed, "send_dead")
		}
	case statev1.DeliveryState_DELIVERY_STATE_EXPIRED:
		send(failed, "send_expired")
	case statev1.DeliveryState_DELIVERY_STATE_DISCARDED:
		send(note, "send_discarded")
	case statev1.DeliveryState_DELIVERY_STATE_SEND_DISABLED:
		send(failed, "send_disabled")
	case statev1.DeliveryState_DELIVERY_STATE_ASKED:
		send(failed, "send_asked")
	default:
		send(failed, "send_unknown_state")
	}
}

// lastAttempt is the last attempt to send a delivery; nil: there was none.
func (d *diagnosis) lastAttempt(one *statev1.Delivery) *statev1.Attempt {
	for _, e := range slices.Backward(d.call.Journal) {
		if a := e.GetAttempt(); a != nil && a.GetDelivery() == one.GetNumber() {
			return a
		}
	}
	return nil
}

// waits says what a delivery waits for that nothing was tried of: one before it, its destination, or nothing but its turn.
func (d *diagnosis) waits(step Step, one *statev1.Delivery, a about) {
	for _, before := range d.call.Deliveries {
		if before.GetNumber() < one.GetNumber() && before.GetDestination() == one.GetDestination() &&
			(before.GetState() == statev1.DeliveryState_DELIVERY_STATE_QUEUED || before.GetState() == statev1.DeliveryState_DELIVERY_STATE_LEASED) {
			d.find(step, waiting, "send_behind", a.with("before", fmt.Sprint(before.GetNumber())))
			return
		}
	}
	if why := d.call.Stuck[one.GetDestination()]; why != "" {
		d.find(step, waiting, "send_stuck", a.with("reason", why))
		return
	}
	d.find(step, waiting, "send_queued", a)
}

// answer judges TopS.II's last answer, and says whether that is what the delivery stopped at.
func (d *diagnosis) answer(one *statev1.Delivery, last *statev1.Attempt, a about) bool {
	switch one.GetState() {
	case statev1.DeliveryState_DELIVERY_STATE_DELIVERED:
		d.find(UpstreamAnswer, ok, "answer_ok", a)
		return false
	case statev1.DeliveryState_DELIVERY_STATE_QUEUED, statev1.DeliveryState_DELIVERY_STATE_DEAD:
	default:
		return false
	}
	var codes []string
	if last.GetHttpCode() != 0 {
		codes = append(codes, fmt.Sprintf("HTTP %d", last.GetHttpCode()))
	}
	for _, word := range []string{last.GetMessageCode(), last.GetSubMessageCode()} {
		if word != "" {
			codes = append(codes, word)
		}
	}
	a = a.with("codes", strings.Join(codes, ", "))
	code := ""
	switch {
	case last.GetMessageCode() == "WTYP0010":
		code = cmp.Or(map[string]string{"WPRDEXTC3201": "no_such_call", "WPRDEXTC3202": "no_such_staff", "WPRDEXTC3203": "staff_not_logged_in"}[last.GetSubMessageCode()],
			"logical_error")
	case last.GetMessageCode() == "WTYP0020":
		code = "licence"
	case last.GetMessageCode() == "WTYP0030", last.GetHttpCode() == 401, last.GetHttpCode() == 403:
		code = "api_key"
	case last.GetHttpCode() == 404, last.GetHttpCode() >= 300 && last.GetHttpCode() < 400:
		code = "address"
	case last.GetMessageCode() != "" || last.GetResult() != "":
		code = "app_error"
		if one.GetState() == statev1.DeliveryState_DELIVERY_STATE_QUEUED {
			d.find(UpstreamAnswer, waiting, "app_error_retrying", a)
			return false
		}
	default:
		return false
	}
	if one.GetState() == statev1.DeliveryState_DELIVERY_STATE_QUEUED && last.GetNext() != "hold" {
		return false // a person had it tried again since
	}
	d.find(UpstreamAnswer, failed, code, a)
	return true
}

// quiet is what a step says that found nothing.
var quiet = map[Step]string{Inputs: "inputs_ok", Dedupe: "dedupe_ok", Phone1: "phone1_none", UpstreamSend: "send_nothing", UpstreamAnswer: "answer_none",
	Understood: "pbx_understood", Decided: "pbx_decided_none", Registered: "pbx_registered_none", Delivered: "send_nothing"}

func (d *diagnosis) report(steps []Step) *operatorv1.DiagnoseResponse {
	r := &operatorv1.DiagnoseResponse{Call: d.call.Key}
	for _, step := range steps {
		if len(d.findings[step]) == 0 {
			level := ok
			if step != Inputs && step != Dedupe && step != Understood {
				level = skipped
			}
			d.find(step, level, quiet[step], about{})
		}
		found := d.findings[step]
		slices.SortStableFunc(found, func(a, b *operatorv1.Finding) int { return cmp.Compare(b.GetLevel(), a.GetLevel()) })
		s := &operatorv1.DiagnosisStep{Step: string(step), Level: found[0].GetLevel(), Findings: found,
			Title: &operatorv1.Text{En: d.crm(titles[step].en), Ja: d.crm(titles[step].ja)}}
		if s.GetLevel() > r.GetLevel() {
			r.Level, r.Step = s.GetLevel(), s.GetStep()
		}
		r.Steps = append(r.Steps, s)
	}
	return r
}
