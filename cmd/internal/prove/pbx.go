package prove

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"callrelay/callback"
	operatorv1 "callrelay/gen/callrelay/operator/v1"
	"callrelay/sim/dialer"
	"callrelay/sim/pbx"
)

const (
	integration = "prove"
	// onePbxIn is how many calls there are for each that is a cloud PBX's.
	onePbxIn = 5
	// webhookConcurrency is how many registrations the webhook gets at once, of all upstream processes together.
	webhookConcurrency = 8
	// pbxGrace is longer than an event takes in any outage here: what the relay decides without it would not be known.
	pbxGrace = 15 * time.Second
)

var pbxExtensions = []pbx.Extension{
	{ID: "33301", Name: "0003*101", Type: "phone", Token: "bd8e4091b2abed48387a0efc2c86c82b"},
	{ID: "33302", Name: "0003*102", Type: "phone", Token: "617ad7ee1f02aa6b3e60f12a978d68ba"},
	{ID: "33334", Name: "0003*700", Type: "queue", Token: "ecc83e271b7707dc16465d0c681aadad"},
}

// pbxTable writes the table of integrations: one, whose calls are registered at the webhook.
func pbxTable(path, webhook string) error {
	var extensions []map[string]any
	for _, x := range pbxExtensions {
		extensions = append(extensions, map[string]any{"id": x.ID, "name": x.Name, "type": x.Type, "tokens": []string{x.Token}})
	}
	table, err := json.Marshal(map[string]any{"integrations": []any{map[string]any{"id": integration, "prefix": "0003", "extension_len": 3, "extensions": extensions,
		"webhook": map[string]any{"url": webhook, "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "allow_private": []string{"127.0.0.0/8"}}}}})
	if err != nil {
		return err
	}
	return os.WriteFile(path, table, 0o600)
}

// pbxCall makes a call of the cloud PBX; its events come out of order half of the time, and half of them twice. Its events
// are GET requests here, which the dialer can send.
func pbxCall(p *pbx.PBX, id int64, scenario string, reorder bool) (*call, []dialer.Callback, error) {
	p.Start = time.Now().Add(-5 * time.Minute) // of what happened in no time here
	made, err := p.Call(scenario)
	if err != nil {
		return nil, nil, err
	}
	if reorder {
		made.Events = p.Repeat(p.Reorder(made.Events))
	}
	var callbacks []dialer.Callback
	for _, e := range made.Events {
		callbacks = append(callbacks, dialer.Callback{Path: "/ext-event/" + e.Extension.Token, Query: e.Params.Encode(), CallID: made.ID,
			Kind: dialer.Kind("pbx." + e.Params.Get("EventType"))})
	}
	c := newCall(id, callback.PbxCallKey(integration, made.ID))
	c.pbxID, c.registrations = made.ID, made.Registered
	return c, callbacks, nil
}

// newPbx makes calls of the cloud PBX; the same seed makes the same ones.
func newPbx(seed uint64) func(draw int, reorder bool) (*call, []dialer.Callback) {
	p, err := pbx.New(seed, pbxExtensions, time.Time{})
	if err != nil {
		panic(err) // the extensions are above
	}
	made := int64(0)
	return func(draw int, reorder bool) (*call, []dialer.Callback) {
		made++
		c, callbacks, err := pbxCall(p, made, pbx.Scenarios[draw%len(pbx.Scenarios)], reorder)
		if err != nil {
			panic(err) // the scenario is the simulator's own
		}
		return c, callbacks
	}
}

// webhook is the CRM of the cloud PBX. It takes everything, and keeps when it came.
type webhook struct {
	onEffect func(at time.Time)

	mu        sync.Mutex
	got       map[string]map[string][]time.Time // call id of the PBX -> document -> when it came
	now, most int64                             // requests at once
}

func (w *webhook) ServeHTTP(resp http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	w.now++
	w.most = max(w.most, w.now)
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.now--
	}()
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	var doc struct {
		Data struct {
			CallID string `json:"call_id"`
		}
	}
	if err != nil || json.Unmarshal(body, &doc) != nil {
		resp.WriteHeader(http.StatusBadRequest)
		return
	}
	at := time.Now()
	w.mu.Lock()
	of := w.got[doc.Data.CallID]
	if of == nil {
		of = map[string][]time.Time{}
		w.got[doc.Data.CallID] = of
	}
	of[string(body)] = append(of[string(body)], at)
	w.mu.Unlock()
	w.onEffect(at)
	pause(r.Context(), latency.Delay)
}

func (w *webhook) mostAtOnce() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.most
}

// of is what came of a call.
func (w *webhook) of(call string) map[string][]time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string][]time.Time{}
	for doc, times := range w.got[call] {
		out[doc] = times
	}
	return out
}

// judgePbx compares what the PBX was promised with what the relay wrote down and what the webhook has. Of events in any order
// as many registrations have to come as the simulator says.
func judgePbx(c *call, stored *operatorv1.Call, got map[string][]time.Time) verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	var v verdict
	v.answers(c.order, stored)
	known := map[string]bool{}
	for _, request := range receivedOf(stored) {
		if known[request.id] {
			v.say("request %s was taken twice", request.id)
		}
		known[request.id] = true
	}
	v.requests = int64(len(known))
	v.recorded(c.order, func(_ *sending, requestID string) bool { return known[requestID] })
	v.undelivered(stored)
	marks := uncertainOf(stored, func(d *operatorv1.Delivery) string { return d.GetPayload() })
	if len(stored.GetDeliveries()) < c.registrations {
		v.open = true // the grace may not be over
	}
	// The last events stand for the registrations, in the table.
	at := len(c.order)
	next := func() *sending { at = max(at-1, 0); return c.order[at] }
	for doc, times := range got {
		d := delivered{sending: next(), at: times[0], uncertain: min(len(times)-1, marks[doc])}
		if d.doubled = len(times) - 1 - d.uncertain; d.doubled > 0 {
			v.say("DOUBLED: the webhook got a document %d times, and only %d attempts are marked as ones that may have arrived: %s", len(times), marks[doc], doc)
		}
		v.deliveries = append(v.deliveries, d)
	}
	for range c.registrations - len(got) {
		v.say("LOST: of %d registrations the webhook has %d", c.registrations, len(got))
		v.open = true
		v.deliveries = append(v.deliveries, delivered{sending: next()})
	}
	if more := len(got) - c.registrations; more > 0 {
		v.say("DOUBLED: %d registrations of a call with %d", len(got), c.registrations)
		v.deliveries[0].doubled += more
	}
	return v
}

// uncertainOf counts the attempts that may have arrived, by what is sent.
func uncertainOf(stored *operatorv1.Call, identity func(*operatorv1.Delivery) string) map[string]int {
	marks := map[string]int{}
	for _, d := range stored.GetDeliveries() {
		for _, e := range stored.GetJournal() {
			if a := e.GetFact().GetAttempt(); a.GetDelivery() == d.GetFacts().GetNumber() && a.GetUncertain() {
				marks[identity(d)]++
			}
		}
	}
	return marks
}

// isPbx says whether the call is the cloud PBX's.
func (c *call) isPbx() bool { return strings.HasPrefix(c.key, callback.Pbx+"/") }

// atOnce says that too many requests ran at the same time.
func atOnce(where string, most, limit int64) []string {
	if most <= limit {
		return nil
	}
	return []string{fmt.Sprintf("%d requests were at %s at once, of all upstream processes together; %d are allowed", most, where, limit)}
}
