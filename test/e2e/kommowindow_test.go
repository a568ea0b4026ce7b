package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"callrelay/sim/kommo"
)

// window sends what a manager did in the call-result window, with a token, until it is taken or refused.
func (r *relay) window(token string, body map[string]any) (a answer) {
	r.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		r.t.Fatal(err)
	}
	r.untilTaken("the window", func() (int, string) {
		req, err := http.NewRequest(http.MethodPost, r.url+"/v1/kommo/9001/call-results", bytes.NewReader(text))
		if err != nil {
			r.t.Fatal(err)
		}
		req.Header.Set("X-Auth-Token", token)
		req.Header.Set("Origin", "https://acme.kommo.com")
		resp, err := r.http.Do(req)
		if err != nil {
			r.t.Fatal(err)
		}
		defer resp.Body.Close()
		a = answer{Header: resp.Header}
		if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
			r.t.Errorf("the answer: %v", err)
		}
		a.Status = resp.StatusCode
		return a.Status, resp.Header.Get("Retry-After")
	})
	return a
}

const manager = 8800123

// windowCall is a call of a test with its window.
type windowCall struct {
	*relay
	account *kommo.Account
	id      string
	phone   string
}

func (c *windowCall) did(state string, more ...any) answer {
	c.t.Helper()
	body := map[string]any{"state": state, "call_id": c.id, "direction": "inbound", "phone": c.phone, "duration": 42}
	for i := 0; i+1 < len(more); i += 2 {
		body[more[i].(string)] = more[i+1]
	}
	return c.window(c.account.WidgetToken(manager), body)
}

func (c *windowCall) reports() {
	c.t.Helper()
	c.reported(map[string]any{"call_id": c.id, "direction": "inbound", "phone": c.phone, "duration": 42, "status": "answered"})
}

// notes are those of the call.
func (c *windowCall) notes() (notes []kommo.Note) {
	for _, n := range c.account.View().Notes {
		if n.Uniq() == c.id {
			notes = append(notes, n)
		}
	}
	return notes
}

// written waits for the call's note and says where it is, with its result.
func (c *windowCall) written(limit time.Duration) (on string, result any) {
	c.t.Helper()
	c.eventually(limit, c.id+" is in Kommo", func() bool { return len(c.notes()) > 0 })
	n := c.notes()[0]
	return fmt.Sprint(n.EntityType, " ", n.EntityID), n.Params["call_result"]
}

// The window and the VoIP side in any order, or the window alone, end as one note where the manager wanted it; who wants it elsewhere
// afterwards is told where it is. Without a window the relay would wait for one, so what is there sooner was decided by one.
func TestKommoWindow(t *testing.T) {
	r, account, _ := withKommo(t, "KOMMO_CLAIM_DELAY=20s")
	var calls []*windowCall
	var chosen []int64 // a lead that the number does not lead to
	for i, name := range []string{"voip first", "window first", "window alone", "cancelled", "too late"} {
		c := &windowCall{r, account, strings.ReplaceAll(name, " ", "-"), fmt.Sprintf("+1305555%04d", i)}
		account.Add("contact", name, []string{c.phone})
		calls, chosen = append(calls, c), append(chosen, account.Add("lead", name, nil))
	}
	lead := func(i int) map[string]any { return map[string]any{"type": "lead", "id": chosen[i]} }
	taken := func(a answer) {
		t.Helper()
		if a.Status != 200 || a.Duplicate || a.RequestID == "" || a.Header.Get("Access-Control-Allow-Origin") != "https://acme.kommo.com" {
			t.Errorf("%d %s %v", a.Status, a.Message, a.Header)
		}
	}
	r.eventually(30*time.Second, "ingress knows the account's host", func() bool {
		return calls[0].did("closed").Header.Get("Access-Control-Allow-Origin") != ""
	})

	calls[0].reports()
	taken(calls[0].did("opened"))
	if out, _ := r.callrelay("diagnose", "kommo/9001/voip-first"); !strings.Contains(out, "the call-result window is open") {
		t.Errorf("diagnosed while the window is open: %s", out)
	}
	taken(calls[0].did("saved", "entity", lead(0), "result", "will buy"))
	taken(calls[1].did("opened"))
	taken(calls[1].did("saved", "entity", lead(1), "result", "will buy"))
	calls[1].reports()
	taken(calls[2].did("saved", "entity", lead(2), "result", "will buy"))
	calls[3].reports()
	taken(calls[3].did("opened"))
	taken(calls[3].did("cancelled"))
	calls[4].reports()
	taken(calls[4].did("saved", "result", "will buy"))

	began := time.Now()
	for i, c := range calls[:3] {
		if on, result := c.written(15 * time.Second); on != fmt.Sprint("lead ", chosen[i]) || result != "will buy" {
			t.Errorf("%s is on %s with %v", c.id, on, result)
		}
	}
	if on, result := calls[3].written(15 * time.Second); !strings.HasPrefix(on, "contact") || result != nil {
		t.Errorf("cancelled is on %s with %v", on, result)
	}
	on, _ := calls[4].written(15 * time.Second)
	r.eventually(30*time.Second, "the relay knows where it is", func() bool {
		out, err := r.callrelay("call", "kommo/9001/too-late")
		return err == nil && strings.Contains(out, "Call event created")
	})
	if waited := time.Since(began); waited > 20*time.Second {
		t.Errorf("waited %v, as without a window", waited)
	}

	// The same request again is the same, with the same token and body; the token is good for no other.
	token := account.WidgetToken(manager)
	late := map[string]any{"state": "saved", "call_id": "too-late", "direction": "inbound", "phone": calls[4].phone, "duration": 42, "entity": lead(4), "result": "will not buy"}
	var first answer
	for i := range 2 {
		a := r.window(token, late)
		if a.Status != 409 || !strings.Contains(a.Message, on) || a.Duplicate != (i > 0) {
			t.Errorf("another entity afterwards: %d %v %s", a.Status, a.Duplicate, a.Message)
		}
		if i == 0 {
			first = a
		} else if a.RequestID != first.RequestID {
			t.Errorf("request %s again as %s", first.RequestID, a.RequestID)
		}
	}
	late["result"] = "will buy after all"
	if a := r.window(token, late); a.Status != 401 {
		t.Errorf("the token of another request: %d %s", a.Status, a.Message)
	}
	r.eventually(30*time.Second, "the result is changed", func() bool { return calls[4].notes()[0].Params["call_result"] == "will not buy" })
	for _, c := range calls {
		if n := c.notes(); len(n) != 1 {
			t.Errorf("%s has %d notes: %+v", c.id, len(n), n)
		}
	}
	out, err := r.callrelay("call", "kommo/9001/too-late")
	if err != nil || strings.Count(out, first.RequestID) == 0 || !strings.Contains(out, "kommo.window") || strings.Contains(out, calls[4].phone) {
		t.Errorf("%v %s", err, out)
	}
	says(t, "accounting", r.run(done, "accounting", "--check"), "difference: none")
}

// While the store stands still what a manager does is kept on the disk, and decided afterwards: once, however often it was sent, and
// not at all where its token had been used for something else.
func TestKommoWindowSpooled(t *testing.T) {
	r, account, _ := withKommo(t)
	lead := account.Add("lead", "chosen", nil)
	c := &windowCall{r, account, "spooled", "+13055550142"}
	said := map[string]any{"state": "saved", "call_id": c.id, "direction": "inbound", "phone": c.phone, "duration": 42,
		"entity": map[string]any{"type": "lead", "id": lead}, "result": "will buy"}
	token := account.WidgetToken(manager)
	thaw := r.freezeRedis()
	var ids []string
	for i := range 3 {
		if i == 2 {
			said["result"] = "will not buy"
		}
		a := r.window(token, said)
		if a.Status != 200 {
			t.Errorf("%d %s", a.Status, a.Message)
		}
		ids = append(ids, a.RequestID)
	}
	thaw()
	if on, result := c.written(60 * time.Second); on != fmt.Sprint("lead ", lead) || result != "will buy" {
		t.Errorf("on %s with %v", on, result)
	}
	r.eventually(60*time.Second, "the token of another request is recorded", func() bool {
		out, err := r.callrelay("call", "request/"+ids[2])
		return err == nil && strings.Contains(out, "UNDECIDED") && strings.Contains(out, "used for another request")
	})
	if ids[0] != ids[1] || ids[1] == ids[2] || len(c.notes()) != 1 || c.notes()[0].Params["call_result"] != "will buy" {
		t.Errorf("requests %v, notes %+v", ids, c.notes())
	}
	says(t, "accounting", r.run(done, "accounting", "--check"), "difference: none")
}
