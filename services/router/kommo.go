package router

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"callrelay/callback"
	routerv1 "callrelay/gen/callrelay/router/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/accounts"
	"callrelay/platform/config"
	"callrelay/platform/errkind"
	"callrelay/services/router/kommo"
)

// kommoConfig is what can be set of the rules of Kommo for all accounts.
type kommoConfig struct {
	Routes     string        `env:"ROUTES" desc:"Where calls of a source are logged besides: e.g. ameyo=kommo/9001;pbx/acme=kommo/9001 for the calls of the dialer and of the PBX integration acme; several accounts separated by commas. Empty means nowhere."`
	Retention  time.Duration `env:"KOMMO_RETENTION" envDefault:"26280h" desc:"How long a call of Kommo is kept after the last open thing in it ended, so that it is never logged twice: 3 years."`
	ClaimDelay time.Duration `env:"KOMMO_CLAIM_DELAY" envDefault:"5s" desc:"How long a call waits for the manager to choose its entity, where the account's settings do not say; at most 1h."`
	WindowMax  time.Duration `env:"KOMMO_WINDOW_MAX" envDefault:"15m" desc:"How long an open call-result window holds its call."`
	Settle     time.Duration `env:"KOMMO_SETTLE" envDefault:"20s" desc:"How long Kommo may still work on a request whose answer did not come, at most 1h; not looked for and not sent again before. Unconfirmed."`
	JoinLead   config.Switch `env:"KOMMO_JOIN_LEAD" envDefault:"true" desc:"Put further calls of an unknown number as notes on its open incoming lead; off: they wait until it is accepted. Unconfirmed."`
}

// check reports every problem.
func (c *kommoConfig) check() (routes, error) {
	routes, err := parseRoutes(c.Routes)
	if err != nil {
		err = fmt.Errorf("ROUTES: %w", err)
	}
	if c.Retention < 72*time.Hour || c.Retention > 20*365*24*time.Hour {
		err = errors.Join(err, fmt.Errorf("KOMMO_RETENTION: must be 72h to 20 years, not %v", c.Retention))
	}
	if c.Settle <= 0 || c.Settle > time.Hour { // the longest pause of the rules
		err = errors.Join(err, fmt.Errorf("KOMMO_SETTLE: must be positive and at most 1h, not %v", c.Settle))
	}
	_, wrong := c.account(1, nil)
	return routes, errors.Join(err, wrong)
}

// kommoSettings are those of one account, as they are stored (docs/kommo.md). What is left out has its default.
type kommoSettings struct {
	PipelineID      int64  `json:"pipeline_id"`
	WidgetCode      string `json:"widget_code"`
	ResponsibleUser int64  `json:"responsible_user_id"`
	SourceName      string `json:"source_name"`
	SourceFormat    string `json:"source_format"`
	// ClaimDelay and PopupMaxAge in seconds.
	ClaimDelay  *int `json:"claim_delay"`
	PopupMaxAge *int `json:"popup_max_age"`
}

// account are the rules of one account with its settings.
func (c *kommoConfig) account(id int64, settings []byte) (*kommo.Config, error) {
	var s kommoSettings
	if len(bytes.TrimSpace(settings)) > 0 {
		d := json.NewDecoder(bytes.NewReader(settings))
		d.DisallowUnknownFields()
		err := d.Decode(&s)
		if err == nil && d.Decode(&struct{}{}) != io.EOF {
			err = errors.New("there is something behind the object")
		}
		if err != nil {
			return nil, fmt.Errorf("settings: %w", err)
		}
	}
	rules := kommo.DefaultConfig(id)
	rules.ClaimDelay, rules.WindowMax, rules.LookFirst = c.ClaimDelay, c.WindowMax, max(rules.LookFirst, c.Settle)
	if !c.JoinLead {
		rules.Unconfirmed.JoinLead = kommo.JoinByWaiting
	}
	rules.PipelineID, rules.ResponsibleUser = s.PipelineID, s.ResponsibleUser
	rules.WidgetCode = cmp.Or(s.WidgetCode, rules.WidgetCode)
	rules.SourceName = cmp.Or(s.SourceName, rules.SourceName)
	rules.SourceFormat = cmp.Or(s.SourceFormat, rules.SourceFormat)
	for _, o := range []struct {
		name  string
		given *int
		most  time.Duration
		to    *time.Duration
	}{
		{"claim_delay", s.ClaimDelay, kommo.MaxClaimDelay, &rules.ClaimDelay},
		{"popup_max_age", s.PopupMaxAge, kommo.MaxPopupAge, &rules.PopupMaxAge},
	} {
		if o.given == nil {
			continue
		}
		if most := int(o.most / time.Second); *o.given < 0 || *o.given > most {
			return nil, fmt.Errorf("settings: %s must be 0 to %d seconds, not %d", o.name, most, *o.given)
		}
		*o.to = time.Duration(*o.given) * time.Second
	}
	rules.Link = func(string) string { return "" } // no source of this router gives recordings
	return rules, rules.Check()
}

// CheckKommoSettings says what is wrong with the settings of an account.
func CheckKommoSettings(settings []byte) error {
	c, err := config.LoadFrom[Config](nil)
	if err == nil {
		_, err = c.Kommo.account(1, settings)
	}
	return err
}

// kommoRules are the rules of all accounts.
type kommoRules struct {
	config   kommoConfig
	routes   routes
	client   statev1.AccountServiceClient
	follower *accounts.Follower
	// accounts are those that are connected; nil = not known yet.
	accounts atomic.Pointer[map[int64]kommoAccount]
}

// kommoAccount is what is known of an account: how its calls are decided, or why they cannot be.
type kommoAccount struct {
	version string
	rules   *kommo.Config
	problem error
}

// take makes the rules of the accounts that state keeps.
func (r *kommoRules) take(list accounts.List, log func(msg string, args ...any)) {
	before, now := map[int64]kommoAccount{}, map[int64]kommoAccount{}
	if known := r.accounts.Load(); known != nil {
		before = *known
	}
	for _, a := range list.Accounts {
		id, ok := kommo.ParseAccount(a.GetId())
		if !ok {
			continue
		}
		one, known := before[id]
		if !known || one.version != a.GetVersion() {
			one.version = a.GetVersion()
			if one.rules, one.problem = r.config.account(id, a.GetSettings()); one.problem != nil {
				log("the settings of an account cannot be used", "account", a.GetId(), "error", one.problem)
			}
		}
		now[id] = one
	}
	r.accounts.Store(&now)
}

// errNotConnected: nothing can be decided for the account now.
type errNotConnected struct{ account int64 }

func (e errNotConnected) Error() string {
	return fmt.Sprintf("Kommo account %d is not connected: see callrelay integrations connect", e.account)
}

// of are the rules of an account.
func (r *kommoRules) of(account int64) (*kommo.Config, error) {
	known := r.accounts.Load()
	if known == nil {
		return nil, errkind.Unavailable(nil, "the Kommo accounts are not known yet")
	}
	one, ok := (*known)[account]
	switch {
	case !ok:
		return nil, errNotConnected{account}
	case one.problem != nil:
		return nil, errkind.Unavailable(one.problem, "the settings of Kommo account %d cannot be used", account)
	}
	return one.rules, nil
}

// record are the rules of a record of an account. Those of a number are the same whatever the account's settings, so its inputs do not
// wait for the account: a result given up meanwhile would leave the number in its phase for ever, and each further call waiting.
func (r *kommoRules) record(account int64, number bool) (*kommo.Config, error) {
	if number {
		return r.config.account(account, nil)
	}
	return r.of(account)
}

// kommoInput is an input of a record of Kommo's rules.
type kommoInput struct {
	rules *kommo.Config
	input kommo.Input
	// result is set instead: how a delivery ended is the record's to say.
	result *statev1.DeliveryResult
	// token is the window's; reply is what the rules say to it, once they were asked.
	token *oneTime
	reply kommo.WindowReply
}

// accountPatience is how long a report that was acknowledged into a spool waits for its account to be connected, again maybe: its
// sender was told 200 and never 404. It keeps its place on ingress' disk meanwhile.
const accountPatience = time.Hour

// report makes what the engine takes of a call that a VoIP service reported.
func (r *kommoRules) report(in *input, m *routerv1.KommoCall) error {
	c := callback.KommoCall{CallID: m.GetCallId(), Direction: m.GetDirection(), Phone: m.GetPhone(), Duration: m.GetDuration(), Status: m.GetStatus(),
		StartedAt: m.GetStartedAt(), UserID: m.GetUserId(), User: m.GetUser(), DID: m.GetDid()}
	if err := c.Check(); err != nil {
		return invalid(err)
	}
	in.call = kommo.CallKey(m.GetAccountId(), c.CallID)
	rules, err := r.reported(in, m.GetAccountId())
	if err != nil {
		return err
	}
	in.kommo = &kommoInput{rules: rules, input: kommo.Input{RequestID: in.id, Traceparent: in.traceparent, Voip: &kommo.Voip{Facts: kommo.Facts{
		Direction: kommo.Direction(c.Direction), Phone: c.Phone, Duration: c.Duration, Status: kommoStatus[c.Status],
		StartedMS: c.StartedAt * 1000, User: c.UserID, UserName: c.User, DID: c.DID}}}}
	return nil
}

// reported are the rules for what somebody outside said of an account.
func (r *kommoRules) reported(in *input, account int64) (*kommo.Config, error) {
	rules, err := r.of(account)
	var gone errNotConnected
	switch {
	case errors.As(err, &gone) && in.received.Spooled && time.Since(in.since) < accountPatience:
		return nil, errkind.Unavailable(gone, "%s", gone.Error())
	case errors.As(err, &gone):
		return nil, errkind.NotFound("%s", gone.Error())
	}
	return rules, err
}

// kommoStatus are the words of a report.
var kommoStatus = map[string]kommo.Status{
	"answered": kommo.StatusAnswered, "no_answer": kommo.StatusNoAnswer, "busy": kommo.StatusBusy,
	"wrong_number": kommo.StatusWrongNumber, "voicemail": kommo.StatusVoicemail,
}

// entry makes what the engine takes of an entry of a record of Kommo's rules: a timer, or the result of a delivery.
func (r *kommoRules) entry(in *input, entry *statev1.Entry) error {
	account, _, number, _ := kommo.ParseKey(in.call)
	rules, err := r.record(account, number)
	if err != nil {
		return err
	}
	in.kommo = &kommoInput{rules: rules, result: entry.GetResult()}
	if in.kommo.result == nil {
		in.kommo.input.Timer = entry.GetTimer()
	}
	return nil
}

// message makes what the engine takes of a message to a record of Kommo's rules.
func (r *kommoRules) message(m *statev1.Message) (*input, error) {
	in := &input{id: m.GetId(), call: m.GetTo(), since: time.Now()}
	account, _, number, ok := kommo.ParseKey(m.GetTo())
	if !ok {
		in.unreadable = fmt.Errorf("%q takes no messages", m.GetTo())
		return in, nil
	}
	rules, err := r.record(account, number)
	if err != nil {
		return nil, err
	}
	in.kommo = &kommoInput{rules: rules}
	if in.kommo.input, in.unreadable = kommoMessageInput(m.GetBody()); in.kommo.input.Voip != nil {
		f := &in.kommo.input.Voip.Facts
		in.terms, in.phones = addTerms(nil, f.UserName), addTerms(nil, f.Phone, f.DID)
	}
	in.traceparent, in.receivedMS = in.kommo.input.Traceparent, in.kommo.input.ReceivedMS
	return in, nil
}

// decideKommo asks the rules and makes the commit of what they say.
func (e *engine) decideKommo(in *input, state *statev1.CallState, receivedMS, nowMS int64) (*statev1.CommitItem, bool, error) {
	record, err := readRecord(state)
	if err != nil {
		return nil, false, err
	}
	call, number, err := readKommo(in.call, record)
	if err != nil {
		return nil, false, err
	}
	what := in.kommo.input
	what.ReceivedMS = receivedMS
	if r := in.kommo.result; r != nil {
		n := int(r.GetDelivery())
		if n < 1 || n > len(state.GetDeliveries()) {
			return nil, false, fmt.Errorf("the call has no delivery %d", n)
		}
		d := state.GetDeliveries()[n-1]
		if !final(d) { // a person retried it since: there will be another result
			return newCommit(in, state.GetVersion(), nowMS), false, nil
		}
		if what.Result, err = kommoResult(d, r.GetReply()); err != nil {
			return nil, false, err
		}
	}
	var effects kommo.Effects
	request, first := what.RequestID, "" // whose the facts are; who reported the call before
	if number != nil {
		var next kommo.Number
		next, effects = kommo.DecideNumber(in.kommo.rules, *number, what, nowMS)
		number = &next
	} else {
		first = call.RequestID
		var next kommo.Call
		next, effects = kommo.Decide(in.kommo.rules, *call, what, nowMS)
		call, request, in.kommo.reply = &next, cmp.Or(request, next.RequestID), effects.Reply
	}
	var entries []*statev1.JournalEntry
	if in.received != nil {
		entries = append(entries, received(in, nowMS, receivedMS))
	}
	for _, fact := range effects.Facts {
		entries = append(entries, kommoJournalEntry(fact, request, nowMS))
	}
	if in.received != nil && effects.Duplicate {
		entries = append(entries, &statev1.JournalEntry{AtMs: nowMS, RequestId: in.id,
			Fact: &statev1.JournalEntry_Duplicate{Duplicate: &statev1.Duplicate{Of: first, Gate: "known", Key: call.ID, Flow: "kommo"}}})
	}
	item := newCommit(in, state.GetVersion(), nowMS, entries...)
	item.Outcome = outcomes[effects.Duplicate]
	e.notices(in.kommo.rules.AccountID, effects.Notices)
	if !effects.Changed {
		return item, effects.Duplicate, nil
	}
	item.CommitId = rand.Text()
	if what.Ringing == nil { // a card is forgotten like any call
		item.RetentionMs = e.kommo.config.Retention.Milliseconds()
	}
	if item.Record, err = writeKommo(call, number, record); err != nil {
		return nil, false, err
	}
	item.Deliveries = kommoDeliveries(effects.Deliveries)
	for _, t := range effects.SetTimers {
		item.SetTimers = append(item.SetTimers, &statev1.Timer{Name: t.Name, InMs: t.InMS})
	}
	item.CancelTimers = effects.CancelTimers
	item.Messages, err = kommoMessages(effects.Messages)
	return item, effects.Duplicate, err
}

func final(d *statev1.Delivery) bool {
	switch d.GetState() {
	case statev1.DeliveryState_DELIVERY_STATE_QUEUED, statev1.DeliveryState_DELIVERY_STATE_LEASED:
		return false
	}
	return true
}

func kommoMessages(messages []kommo.Message) ([]*statev1.Message, error) {
	var out []*statev1.Message
	for _, m := range messages {
		body, err := kommoMessage(m.Input)
		if err != nil {
			return nil, err
		}
		out = append(out, &statev1.Message{Id: m.ID, To: m.To, Body: body})
	}
	return out, nil
}

// noticeTime bounds the writing of a notice.
const noticeTime = 10 * time.Second

// notices tells the account's people. Each is repeated by the rules as often as its cause shows, so losing one with this
// process is harmless.
func (e *engine) notices(account int64, notices []kommo.Notice) {
	for _, n := range notices {
		e.running.begin()
		go func() {
			defer e.running.end()
			ctx, cancel := context.WithTimeout(context.Background(), noticeTime)
			defer cancel()
			if err := e.kommo.notice(ctx, account, n); err != nil {
				e.tel.Log().Warn("a notice could not be kept", "account", account, "notice", n.Code, "error", err)
			}
		}()
	}
}

func (r *kommoRules) notice(ctx context.Context, account int64, n kommo.Notice) error {
	const tries = 5
	for range tries {
		read, err := r.client.GetAccount(ctx, &statev1.GetAccountRequest{Id: kommo.AccountKey(account)})
		a := read.GetAccount()
		if err != nil || a == nil {
			return err
		}
		if slices.ContainsFunc(a.GetNotices(), func(known *statev1.Notice) bool { return known.GetCode() == n.Code }) {
			return nil
		}
		expected := a.GetVersion()
		a.Version, a.Notices = rand.Text(), append(a.GetNotices(), &statev1.Notice{Code: n.Code, Text: n.Text})
		put, err := r.client.PutAccount(ctx, &statev1.PutAccountRequest{Account: a, ExpectedVersion: expected})
		if err != nil || put.GetWritten() {
			return err
		}
	}
	return errors.New("the account keeps changing")
}

// relay takes a message to the call that it is for, and only then lets its sender forget it. Its id is the input id there,
// so a second time changes nothing.
func (e *engine) relay(ctx context.Context, sender *input, m *statev1.Message, givenUp error) error {
	in := &input{id: m.GetId(), call: m.GetTo(), since: time.Now(), unreadable: givenUp}
	if givenUp == nil {
		var err error
		if in, err = e.kommo.message(m); err != nil {
			return err
		}
	}
	_, refused := e.process(ctx, in)
	if refused != nil && tryAgain(refused) {
		return refused
	}
	sender.done, sender.unreadable = true, nil
	if _, err := e.process(ctx, sender); err != nil {
		return err
	}
	return refused // recorded at the other call as undecided
}
