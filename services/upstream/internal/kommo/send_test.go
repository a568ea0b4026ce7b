package kommo

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"pgregory.net/rapid"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/services/upstream/internal/delivery"
	sim "callrelay/sim/kommo"
)

const (
	number  = "+1 305 555 0142"
	aCall   = `[{"direction":"inbound","duration":73,"source":"relay / 2001","phone":"+13055550142","uniq":"u1","call_status":4}]`
	aLead   = `[{"source_uid":"w","source_name":"relay","metadata":{"uniq":"u1","phone":"+13055550142","from":"+13055550142","service_code":"w","is_call_event_needed":true},"_embedded":{"leads":[{"name":"call"}],"contacts":[{"name":"?","custom_fields_values":[{"field_code":"PHONE","values":[{"value":"+13055550142"}]}]}]}}]`
	aPopup  = `{"add":[{"type":"phone_call","phone_number":"+13055550142","users":[7]}]}`
	aLookup = `{"path":{"uniq":"u1","phone":"+13055550142"}}`
)

func aNote(kind string, id int64) string {
	return fmt.Sprintf(`{"path":{"entity_type":%q,"entity_id":%d},"body":{"note_type":"call_in","params":{"uniq":"u1","phone":"+13055550142","duration":73}}}`, kind, id)
}

func aPatch(kind string, id, note int64) string {
	return fmt.Sprintf(`{"path":{"entity_type":%q,"entity_id":%d,"note_id":%d,"uniq":"u1"},"body":{"note_type":"call_in","params":{"uniq":"u1","duration":73,"link":"https://r/1"}}}`, kind, id, note)
}

func send(t *testing.T, a *Account, endpoint, payload string) (Reply, delivery.Answer) {
	t.Helper()
	answer := a.Send(context.Background(), endpoint, []byte(payload))
	var reply Reply
	if answer.Outcome == delivery.Delivered {
		if err := json.Unmarshal(answer.Reply, &reply); err != nil {
			t.Fatal(err)
		}
	}
	if (answer.Reason == "") != (answer.Outcome == delivery.Delivered) {
		t.Errorf("outcome %d, reason %q", answer.Outcome, answer.Reason)
	}
	return reply, answer
}

// TestSend walks a call through every endpoint.
func TestSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		a := w.connect()
		if reply, _ := send(t, a, Calls, aCall); reply != (Reply{Outcome: NotFound}) {
			t.Errorf("a number nobody has: %+v", reply)
		}
		if reply, _ := send(t, a, LookupUniq, aLookup); reply != (Reply{Outcome: NotFound}) {
			t.Errorf("nothing to find: %+v", reply)
		}
		lead, _ := send(t, a, UnsortedSIP, aLead)
		v := w.acc.View()
		if u := v.Unsorted; len(u) != 1 || lead != (Reply{Outcome: OK, UID: u[0].UID, LeadID: u[0].LeadID, ContactID: u[0].ContactID, EntityType: "lead", EntityID: u[0].LeadID}) {
			t.Errorf("%+v, holds %+v", lead, u)
		}
		if reply, _ := send(t, a, LookupUniq, aLookup); reply != lead {
			t.Errorf("looked up %+v, want %+v", reply, lead)
		}
		w.acc.Decide(lead.UID, false)

		ann := w.acc.Add("contact", "Ann", []string{number})
		w.acc.Add("contact", "seven digits alike", []string{"+1 999 555 0142"})
		written, _ := send(t, a, Calls, aCall)
		if n := w.acc.View().Notes; written != (Reply{Outcome: OK, NoteID: n[len(n)-1].ID, EntityType: "contact", EntityID: ann}) {
			t.Errorf("%+v, holds %+v", written, n)
		}
		if reply, _ := send(t, a, LookupUniq, aLookup); reply != written {
			t.Errorf("looked up %+v, want %+v", reply, written)
		}
		if reply, _ := send(t, a, NotesPatch, aPatch("contact", ann, written.NoteID)); reply != written {
			t.Errorf("patched %+v", reply)
		}
		company := w.acc.Add("company", "ACME", nil)
		if reply, _ := send(t, a, NotesCreate, aNote("company", company)); reply.EntityID != company || reply.EntityType != "company" || reply.NoteID == 0 {
			t.Errorf("%+v", reply)
		}
		if reply, _ := send(t, a, NotesCreate, aNote("lead", 5)); reply.Outcome != NotFound {
			t.Errorf("a note on nothing: %+v", reply)
		}
		if reply, _ := send(t, a, EventsPopup, aPopup); reply.Outcome != OK || len(w.acc.View().Popups) != 1 {
			t.Errorf("%+v", reply)
		}
		if found, r := a.search(context.Background(), "contact", number); r.kind != done || len(found) == 0 || found[0] != (entity{"contact", ann}) {
			t.Errorf("contacts %+v %+v", found, r)
		}
		if v := w.acc.View(); v.Limited != 0 || v.Notes[1].Params["link"] != "https://r/1" {
			t.Errorf("holds %+v", v)
		}
	})
}

// TestRefused has what is said of deliveries that Kommo, or nobody, takes.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		set               func(w *world)
		endpoint, payload string
		want              delivery.Outcome
		reason            string
		after             time.Duration
	}{
		"malformed":         {nil, Calls, `[{"direction":"in","phone":"1","source":"s","duration":1}]`, delivery.Dead, "direction", 0},
		"no payload of us":  {nil, Calls, `[]`, delivery.Dead, "expected one item", 0},
		"not paid":          {func(w *world) { w.acc.SetUnpaid(true) }, Calls, aCall, delivery.Hold, "not paid", 0},
		"revoked":           {func(w *world) { w.acc.Revoke() }, Calls, aCall, delivery.Hold, "connect the account again", 0},
		"renamed":           {func(w *world) { w.acc.Rename("other.kommo.com") }, Calls, aCall, delivery.Hold, "renamed", 0},
		"blocked":           {fault(sim.Fault{Kind: sim.HTTP, Status: 403, Body: "Forbidden"}), Calls, aCall, delivery.Hold, "blocked", 0},
		"too many":          {fault(sim.Fault{Kind: sim.HTTP, Status: 429, Body: `{"retry_after":77}`}), Calls, aCall, delivery.Hold, "1m17s", 77 * time.Second},
		"a search is down":  {fault(sim.Fault{Kind: sim.HTTP, Status: 502}), LookupUniq, aLookup, delivery.Transport, "HTTP 502", 0},
		"down":              {fault(sim.Fault{Kind: sim.HTTP, Status: 502}), Calls, aCall, delivery.Uncertain, "HTTP 502", settle},
		"it hangs":          {fault(sim.Fault{Kind: sim.Hang}), Calls, aCall, delivery.Uncertain, "not within 15s", settle},
		"a search hangs":    {fault(sim.Fault{Kind: sim.Hang}), LookupUniq, aLookup, delivery.Transport, "not within 15s", 0},
		"leads are off":     {func(w *world) { w.acc.SetUnsortedOff(true) }, UnsortedSIP, aLead, delivery.Delivered, "", 0},
		"a malformed lead":  {nil, UnsortedSIP, `[{}]`, delivery.Dead, "source_uid", 0},
		"a patch of nobody": {nil, NotesPatch, aPatch("lead", 5, 6), delivery.Delivered, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := start(t, sim.Config{})
				a := w.connect()
				if c.set != nil {
					c.set(w)
				}
				reply, answer := send(t, a, c.endpoint, c.payload)
				if answer.Outcome != c.want || !strings.Contains(answer.Reason, c.reason) || answer.RetryAfter != c.after {
					t.Errorf("outcome %d (%s) after %v, want %d", answer.Outcome, answer.Reason, answer.RetryAfter, c.want)
				}
				if strings.HasPrefix(name, "leads are off") && reply.Outcome != UnsortedOff || strings.HasPrefix(name, "a patch") && reply.Outcome != NotFound {
					t.Errorf("%+v", reply)
				}
				w.sim.ClearFaults()
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		if _, answer := send(t, w.Account(5), Calls, aCall); answer.Outcome != delivery.Hold || !strings.Contains(answer.Reason, "kommo/5 is not connected") {
			t.Errorf("%+v", answer)
		}
	})
}

func fault(f sim.Fault) func(*world) {
	return func(w *world) {
		if err := w.sim.AddFault(f); err != nil {
			w.Fatal(err)
		}
	}
}

// TestYesToNothing has the answers of success that do not say what was made. Only one that says that it is nothing, and why, is a
// refusal.
func TestYesToNothing(t *testing.T) {
	const refused = `"errors":[{"title":"Phone is not valid","detail":"of +13055550142","status":400}]`
	for name, c := range map[string]struct {
		endpoint, body string
		want           delivery.Outcome
		reason         string
	}{
		"no call":                 {Calls, `{"_total_items":0,"errors":[],"_embedded":{"calls":[]}}`, delivery.Uncertain, "not what it made"},
		"refused":                 {Calls, `{"_total_items":0,` + refused + `,"_embedded":{"calls":[]}}`, delivery.Dead, `Phone is not valid","detail":"of ********0142`},
		"refused, in other words": {Calls, `{"_total_items":0,"errors":[{"msg":"no"}]}`, delivery.Dead, "took nothing"},
		"refused, without total":  {Calls, `{` + refused + `}`, delivery.Uncertain, "not what it made"},
		"refused, and made":       {Calls, `{"_total_items":1,` + refused + `,"_embedded":{"calls":[]}}`, delivery.Uncertain, "not what it made"},
		"no ids":                  {Calls, `{"_total_items":1,"_embedded":{"calls":[{}]}}`, delivery.Uncertain, "not what it made"},
		"another shape":           {Calls, `{"_embedded":{"calls":{"id":1}}}`, delivery.Uncertain, "not what it made"},
		"a note of nothing":       {NotesCreate, `{"_embedded":{"notes":[]}}`, delivery.Uncertain, "not what it made"},
		"a lead of nothing":       {UnsortedSIP, `{"_embedded":{"unsorted":[{"uid":""}]}}`, delivery.Uncertain, "not what it made"},
		"a lead, refused":         {UnsortedSIP, `{"_total_items":0,` + refused + `}`, delivery.Dead, "took nothing"},
		"not found, and made":     {Calls, `{"errors":[{"title":"Entity not found"}],"_embedded":{"calls":[{"id":5,"entity_id":6,"entity_type":"lead"}]}}`, delivery.Delivered, ""},
		"a card":                  {EventsPopup, `{}`, delivery.Delivered, ""},
		"an odd field":            {Calls, `{"_embedded":{"calls":[{"id":5,"entity_id":6,"entity_type":2}]}}`, delivery.Delivered, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := start(t, sim.Config{})
				a := w.connect()
				fault(sim.Fault{Kind: sim.HTTP, Status: 200, Body: c.body, Endpoint: c.endpoint})(w)
				payload := map[string]string{Calls: aCall, NotesCreate: aNote("contact", w.acc.Add("contact", "Ann", []string{number})), UnsortedSIP: aLead, EventsPopup: aPopup}
				reply, answer := send(t, a, c.endpoint, payload[c.endpoint])
				if answer.Outcome != c.want || !strings.Contains(answer.Reason, c.reason) || answer.Outcome == delivery.Delivered && reply.Outcome != OK {
					t.Errorf("outcome %d %s (%s), want %d (%s)", answer.Outcome, reply.Outcome, answer.Reason, c.want, c.reason)
				}
			})
		})
	}
}

// TestUnknownOutcome: whatever happens to a request and its answer, in the end the call is there, once.
func TestUnknownOutcome(t *testing.T) {
	for endpoint, payload := range map[string]func(w *world) string{
		Calls:       func(*world) string { return aCall },
		NotesCreate: func(w *world) string { return aNote("lead", w.acc.Add("lead", "L", nil)) },
		UnsortedSIP: func(*world) string { return aLead },
	} {
		for name, f := range map[string]sim.Fault{
			"cut before":  {Kind: sim.Cut},
			"cut after":   {Kind: sim.Cut, Effect: true},
			"504 before":  {Kind: sim.HTTP, Status: 504},
			"504 after":   {Kind: sim.HTTP, Status: 504, Effect: true},
			"hang before": {Kind: sim.Hang},
			"hang after":  {Kind: sim.Hang, Effect: true},
			"half":        {Kind: sim.Partial},
			"HTML before": {Kind: sim.NonJSON},
			"HTML after":  {Kind: sim.NonJSON, Effect: true},
			"{} before":   {Kind: sim.Hollow},
			"{} after":    {Kind: sim.Hollow, Effect: true},
			"204 before":  {Kind: sim.Hollow, Status: 204},
			"204 after":   {Kind: sim.Hollow, Status: 204, Effect: true},
			"very late":   {Kind: sim.Delay, DelayMS: 60_000},
		} {
			t.Run(endpoint+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := start(t, sim.Config{})
					a := w.connect()
					if endpoint != UnsortedSIP {
						w.acc.Add("contact", "Ann", []string{number})
					}
					f.Times, f.Endpoint = 2, endpoint
					fault(f)(w)
					answer, attempts := relay(a, endpoint, payload(w), 5)
					var reply Reply
					_ = json.Unmarshal(answer.Reply, &reply)
					if answer.Outcome != delivery.Delivered || reply.Outcome != OK || reply.EntityID == 0 {
						t.Fatalf("%+v %+v after %d attempts", answer, reply, attempts)
					}
					if v := w.acc.View(); v.Calls["u1"] != 1 || len(v.Unsorted) > 1 {
						t.Errorf("%d notes, %d leads after %d attempts", v.Calls["u1"], len(v.Unsorted), attempts)
					}
				})
			})
		}
	}
}

// TestAnyFaults is the same for any sequence of faults of any request, look-ups included.
func TestAnyFaults(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		endpoint := rapid.SampledFrom([]string{Calls, UnsortedSIP}).Draw(rt, "endpoint")
		cfg := sim.Config{CallIDsAreNotNotes: rapid.Bool().Draw(rt, "other ids"), PerSecond: 7}
		faults := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) sim.Fault {
			return sim.Fault{Kind: rapid.SampledFrom([]sim.Kind{sim.Cut, sim.HTTP, sim.Hang, sim.Partial, sim.NonJSON, sim.Hollow}).Draw(rt, "kind"), Status: rapid.SampledFrom([]int{500, 504, 408}).Draw(rt, "status"),
				Effect: rapid.Bool().Draw(rt, "effect"), Times: rapid.IntRange(1, 2).Draw(rt, "times"), Probability: rapid.SampledFrom([]float64{0, 0.5}).Draw(rt, "p"),
				Endpoint: rapid.SampledFrom([]string{"", endpoint, "contacts.list", "notes.list", "unsorted.list"}).Draw(rt, "where")}
		}), 0, 6).Draw(rt, "faults")
		problem := ""
		synctest.Test(t, func(t *testing.T) {
			w := start(t, cfg)
			a := w.connect()
			payload := aLead
			if endpoint == Calls {
				payload = aCall
				w.acc.Add("contact", "Ann", []string{number})
			}
			for _, f := range faults {
				fault(f)(w)
			}
			answer, attempts := relay(a, endpoint, payload, 40)
			if v := w.acc.View(); answer.Outcome != delivery.Delivered || v.Calls["u1"] != 1 || v.Limited != 0 {
				problem = fmt.Sprintf("outcome %d (%s): %d notes after %d attempts, %d limited", answer.Outcome, answer.Reason, v.Calls["u1"], attempts, v.Limited)
			}
			w.sim.ClearFaults()
		})
		if problem != "" {
			rt.Fatal(problem) // not in the bubble: it would end the wrong goroutine
		}
	})
}

// A card that may have been shown is not shown again.
func TestPopupOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		a := w.connect()
		fault(sim.Fault{Kind: sim.Cut, Effect: true, Times: 1, Endpoint: EventsPopup})(w)
		if answer, _ := relay(a, EventsPopup, aPopup, 3); answer.Outcome != delivery.Dead || len(w.acc.View().Popups) != 1 {
			t.Errorf("%+v, shown %d times", answer, len(w.acc.View().Popups))
		}
	})
}

// What only cards meet holds no account: their endpoint may be gone, or need rights that calls do not. What says that nothing may be sent
// does.
func TestPopupHoldsNothing(t *testing.T) {
	for status, c := range map[int]struct{ card, call delivery.Outcome }{
		301: {delivery.Dead, delivery.Hold}, 402: {delivery.Dead, delivery.Hold}, 403: {delivery.Dead, delivery.Hold},
		404: {delivery.Dead, delivery.Hold}, 422: {delivery.Dead, delivery.Dead}, 429: {delivery.Hold, delivery.Unsent},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := start(t, sim.Config{})
			a := w.connect()
			fault(sim.Fault{Kind: sim.HTTP, Status: status, Body: "{}", Times: 2})(w)
			_, card := send(t, a, EventsPopup, aPopup)
			_, call := send(t, a, Calls, aCall)
			if card.Outcome != c.card || call.Outcome != c.call {
				t.Errorf("HTTP %d: a card %d (%s), a call %d (%s)", status, card.Outcome, card.Reason, call.Outcome, call.Reason)
			}
		})
	}
}

// A patch reaches the call's own note, whatever the id that /calls answered.
func TestPatchTheRightNote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{CallIDsAreNotNotes: true})
		a := w.connect()
		ann := w.acc.Add("contact", "Ann", []string{number})
		written, _ := send(t, a, Calls, aCall)
		right := w.acc.View().Notes[0].ID
		other, _ := send(t, a, NotesCreate, strings.ReplaceAll(aNote("contact", ann), "u1", "u2"))
		if written.NoteID == right {
			t.Fatal("the simulator gives the note's id")
		}
		for _, wrong := range []int64{written.NoteID, other.NoteID, 0} {
			if reply, answer := send(t, a, NotesPatch, aPatch("contact", ann, wrong)); reply.NoteID != right {
				t.Errorf("%+v %+v, want note %d", reply, answer, right)
			}
		}
		for _, n := range w.acc.View().Notes {
			if (n.Patches == 3) != (n.ID == right) {
				t.Errorf("note %d was patched %d times", n.ID, n.Patches)
			}
		}
	})
}

// However many deliver at once, in two processes, and however long requests and answers are under way: Kommo never says "too
// many", and its limit is made use of.
func TestRateIsShared(t *testing.T) {
	for _, jitter := range []time.Duration{0, 150 * time.Millisecond, 3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			w := start(t, sim.Config{})
			w.connect()
			w.jitter = jitter
			a, b := w.process(w.state).Account(9001), w.process(w.state).Account(9001)
			w.acc.Add("contact", "Ann", []string{number})
			began := time.Now()
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					for n := range 20 {
						payload := strings.ReplaceAll(aCall, "u1", fmt.Sprintf("call-%d-%d", i, n))
						if answer, _ := relay([]*Account{a, b}[i%2], Calls, payload, 50); answer.Outcome != delivery.Delivered {
							t.Errorf("%+v", answer)
						}
					}
				})
			}
			wg.Wait()
			if v := w.acc.View(); v.Limited != 0 || len(v.Calls) != 160 || len(v.Notes) != 160 {
				t.Errorf("%d limited, %d calls, %d notes", v.Limited, len(v.Calls), len(v.Notes))
			}
			// A place is taken for a request, its answer and a second.
			if took, most := time.Since(began), 160/7*(jitter+time.Second)*3/2; took > most {
				t.Errorf("with a jitter of %v it took %v, more than %v", jitter, took, most)
			}
		})
	}
}

// net/http makes a GET again by itself where a connection that was used before breaks; it would arrive twice with one place.
func TestNoRequestIsRepeated(t *testing.T) {
	var arrived atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 || len(r.TransferEncoding) != 0 {
			t.Errorf("a GET with a body: %d %v", r.ContentLength, r.TransferEncoding)
		}
		if arrived.Add(1) > 1 {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, "{}")
	}))
	defer server.Close()
	w := start(t, sim.Config{})
	w.options.Trace, w.options.BaseURL = nil, server.URL
	c := New(w.options)
	for i, want := range []kind{done, unavailable} {
		if r := c.round(t.Context(), host, call{endpoint: lookup, method: http.MethodGet, path: "/"}, func(http.Header) {}); r.kind != want || arrived.Load() != int32(i+1) {
			t.Errorf("%+v, %d requests arrived", r, arrived.Load())
		}
	}
}

// A 429 stops the account in all processes until the time it names, and no request is abuse.
func TestLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{PerSecond: 1})
		a := w.connect()
		w.acc.Add("contact", "Ann", []string{number})
		var answer delivery.Answer
		for range 3 {
			if _, answer = send(t, a, Calls, aCall); answer.Outcome == delivery.Hold {
				break
			}
		}
		if answer.Outcome != delivery.Hold || answer.RetryAfter < 299*time.Second {
			t.Fatalf("%+v", answer)
		}
		for _, other := range []*Account{a, w.process(w.state).Account(9001)} {
			if _, answer := send(t, other, Calls, aCall); answer.Outcome != delivery.Unsent || answer.RetryAfter < 299*time.Second {
				t.Errorf("%+v", answer)
			}
		}
		if err := sleep(t.Context(), answer.RetryAfter+2*time.Second); err != nil {
			t.Fatal(err)
		}
		if _, answer := send(t, a, Calls, aCall); answer.Outcome != delivery.Delivered || w.acc.View().Abuse != 0 {
			t.Errorf("after the pause: %+v, %d abuses", answer, w.acc.View().Abuse)
		}
	})
}

// mute is a state that never answers about a pause.
type mute struct{ *fakeState }

func (mute) Pause(ctx context.Context, _ *statev1.PauseRequest, _ ...grpc.CallOption) (*statev1.PauseResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// A pause that state does not answer keeps no delivery: its hold stops the account, too.
func TestPauseWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, sim.Config{})
		a := w.connect()
		synctest.Wait() // for places that are given back
		w.options.Limits = mute{w.state}
		fault(sim.Fault{Kind: sim.HTTP, Status: 429, Times: 1})(w)
		began := time.Now()
		_, answer := send(t, a, Calls, aCall)
		if took := time.Since(began); answer.Outcome != delivery.Hold || answer.RetryAfter != defaultRetryAfter || took > 2*time.Second {
			t.Errorf("%+v after %v", answer, took)
		}
	})
}
