// Package pbx plays a cloud PBX: it makes the events of realistic calls and sends them to the URLs of its extensions, in
// order, out of order, repeated or with losses.
//
// It owns the shape and the timing of events (facts/pbx.md). It knows nothing of the relay but its address, and nothing of
// its rules: what must come of a call is said by whoever makes it up.
package pbx

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Extension is an extension of the PBX with the token of its event URL.
type Extension struct {
	Integration, ID, Name, Type, Token string
}

// Extensions reads the extensions of an integration (docs/pbx.md) that have a token. An empty id is the first one.
func Extensions(table []byte, integration string) ([]Extension, error) {
	var file struct {
		Integrations []struct {
			ID         string
			Extensions []struct {
				ID, Name, Type string
				Tokens         []string
			}
		}
	}
	if err := json.Unmarshal(table, &file); err != nil {
		return nil, errors.New("the table is not JSON of the right shape")
	}
	for _, n := range file.Integrations {
		if integration != "" && n.ID != integration {
			continue
		}
		var out []Extension
		for _, x := range n.Extensions {
			if len(x.Tokens) > 0 {
				out = append(out, Extension{n.ID, x.ID, x.Name, x.Type, x.Tokens[0]})
			}
		}
		return out, nil
	}
	return nil, fmt.Errorf("there is no integration %q in the table", integration)
}

// Event is one HTTP request.
type Event struct {
	Extension Extension
	// At is when it happens, from the beginning of the call.
	At     time.Duration
	Params url.Values
}

// Call is a call with all its events in order.
type Call struct {
	ID     string
	Events []Event
	// Registered is how many registrations must come of it when no event is lost.
	Registered int
}

// PBX makes calls. Make it with New.
type PBX struct {
	random *rand.Rand
	// Start is when calls begin; EventTime counts from there.
	Start  time.Time
	phones []Extension
	queue  Extension
}

// New makes a PBX with these extensions: at least two phones and a queue. The same seed makes the same calls.
func New(seed uint64, extensions []Extension, start time.Time) (*PBX, error) {
	p := &PBX{random: rand.New(rand.NewPCG(seed, 1)), Start: start}
	for _, x := range extensions {
		switch x.Type {
		case "phone":
			p.phones = append(p.phones, x)
		case "queue":
			p.queue = x
		}
	}
	if len(p.phones) < 2 || p.queue.Token == "" {
		return nil, errors.New("the PBX needs two phones and a queue that have tokens")
	}
	return p, nil
}

// Scenarios that Call makes.
var Scenarios = []string{"answered", "missed", "parallel", "transfer", "outgoing", "busy", "local"}

// maker makes the events of one call.
type maker struct {
	*PBX
	call Call
	at   time.Duration
}

// Call makes a call of a scenario.
func (p *PBX) Call(scenario string) (Call, error) {
	m := &maker{PBX: p, call: Call{ID: p.hex()}}
	client, did := fmt.Sprintf("+7999%07d", p.random.IntN(1e7)), "78120000001"
	one, two := p.phones[0], p.phones[1]
	in := func(caller, remote string) url.Values {
		v := url.Values{"CallFlow": {"in"}, "CallerIDNum": {caller}, "CallerIDName": {caller}, "CalledDID": {did}}
		if remote != "" {
			v.Set("RemoteNumber", remote)
		}
		return v
	}
	out := func(to string) url.Values { return url.Values{"CallFlow": {"out"}, "CalledNumber": {to}} }
	switch scenario {
	case "answered":
		m.talk(one, "dial-in", in(client, ""))
		m.call.Registered = 1
	case "missed", "parallel":
		legs := []string{p.leg(one), p.leg(two)}
		rung := func(caller string) url.Values { // by the queue
			v := in(caller, "")
			v.Set("CallerExtension", p.queue.Name+"@pbx.example.net")
			v.Set("CallerExtensionID", p.queue.ID)
			return v
		}
		for i, x := range []Extension{one, two} {
			m.event(x, legs[i], "dial-in", rung(client), "CallStatus", "CALLING")
		}
		m.at += 20 * time.Second
		answered := scenario == "parallel"
		if answered {
			m.event(two, legs[1], "answer", rung(two.Name), "CallStatus", "ANSWER")
		}
		m.event(one, legs[0], "hangup", rung(client), "CallStatus", "CANCEL", "Duration", "0")
		bridged := "no"
		if answered {
			bridged = "yes"
			m.at += 30 * time.Second
			m.event(two, legs[1], "hangup", rung(client), "CallStatus", "ANSWER", "Duration", "30000000", "RecID", p.leg(two))
		} else {
			m.event(two, legs[1], "hangup", rung(client), "CallStatus", "CANCEL", "Duration", "0")
		}
		m.event(p.queue, p.leg(p.queue), "hangup", in(client, ""), "CallStatus", "ANSWER", "Bridged", bridged, "Duration", micros(m.at))
		m.call.Registered = 1
	case "transfer":
		m.talk(one, "dial-in", in(client, ""))
		m.talk(two, "dial-in", in(one.Name, client))
		m.call.Registered = 2
	case "outgoing":
		m.talk(one, "dial-out", out(client))
		m.call.Registered = 1
	case "busy":
		leg := p.leg(one)
		m.event(one, leg, "dial-out", out(client), "CallStatus", "CALLING")
		m.at += 3 * time.Second
		m.event(one, leg, "hangup", out(client), "CallStatus", "BUSY", "Duration", "0")
		m.call.Registered = 1
	case "local":
		m.talk(one, "dial-out", out(two.Name))
		m.talk(two, "dial-in", in(one.Name, ""))
	default:
		return Call{}, fmt.Errorf("there is no scenario %q: %s", scenario, strings.Join(Scenarios, ", "))
	}
	return m.call, nil
}

// talk is a leg that is answered after some seconds and lasts some more.
func (m *maker) talk(x Extension, kind string, params url.Values) {
	leg := m.leg(x)
	m.event(x, leg, kind, params, "CallStatus", "CALLING")
	m.at += time.Duration(2+m.random.IntN(10)) * time.Second
	params = copied(params)
	params.Del("RemoteNumber") // it comes with the dialling alone
	m.event(x, leg, "answer", params, "CallStatus", "ANSWER")
	talk := time.Duration(1+m.random.IntN(60_000)) * time.Millisecond
	m.at += talk
	m.event(x, leg, "hangup", params, "CallStatus", "ANSWER", "Duration", micros(talk), "RecID", m.leg(x))
}

func copied(v url.Values) url.Values {
	c := url.Values{}
	for name, values := range v {
		c[name] = values
	}
	return c
}

func (m *maker) event(x Extension, leg, kind string, params url.Values, more ...string) {
	v := copied(params)
	v.Set("EventType", kind)
	v.Set("EventTime", strconv.FormatInt(m.Start.Add(m.at).UnixMicro(), 10))
	v.Set("CallID", m.call.ID)
	v.Set("SubCallID", leg)
	v.Set("CallAPIID", "3584709739-"+m.call.ID)
	if v.Get("CallFlow") == "in" {
		v.Set("CalledNumber", x.Name)
		v.Set("CalledExtension", x.Name+"@pbx.example.net")
		v.Set("CalledExtensionID", x.ID)
	} else {
		v.Set("CallerIDNum", x.Name)
		v.Set("CallerExtension", x.Name+"@pbx.example.net")
		v.Set("CallerExtensionID", x.ID)
	}
	for i := 0; i < len(more); i += 2 {
		v.Set(more[i], more[i+1])
	}
	m.call.Events = append(m.call.Events, Event{x, m.at, v})
	m.at += 10 * time.Millisecond
}

func (p *PBX) hex() string { return fmt.Sprintf("%016x%016x", p.random.Uint64(), p.random.Uint64()) }

func (p *PBX) leg(x Extension) string { return x.ID + "-" + p.hex() }

func micros(d time.Duration) string { return strconv.FormatInt(d.Microseconds(), 10) }

// Reorder returns the events in another order.
func (p *PBX) Reorder(events []Event) []Event {
	events = slices.Clone(events)
	p.random.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
	return events
}

// Repeat returns the events, about half of them twice.
func (p *PBX) Repeat(events []Event) []Event {
	var out []Event
	for _, e := range events {
		if out = append(out, e); p.random.IntN(2) == 0 {
			out = append(out, e)
		}
	}
	return out
}

// Lose returns the events but for about a fifth of them.
func (p *PBX) Lose(events []Event) []Event {
	return slices.DeleteFunc(slices.Clone(events), func(Event) bool { return p.random.IntN(5) == 0 })
}

// Send posts an event to the relay as the PBX does. It returns the request id of the answer; any but 200 is an error.
func Send(ctx context.Context, client *http.Client, to string, e Event) (requestID string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(to, "/")+"/ext-event/"+e.Extension.Token, strings.NewReader(e.Params.Encode()))
	if err != nil {
		return "", errors.New("the address of the relay cannot be used")
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	answer, err := client.Do(request)
	if err != nil {
		var cause *url.Error
		if errors.As(err, &cause) {
			err = cause.Err // which, unlike it, does not show the URL with its token
		}
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 4<<10))
	if err != nil {
		return "", err
	}
	var ack struct {
		Success   bool   `json:"success"`
		RequestID string `json:"requestId"`
	}
	if err := json.Unmarshal(body, &ack); answer.StatusCode != http.StatusOK || err != nil || !ack.Success {
		return ack.RequestID, fmt.Errorf("%s: %s", answer.Status, strings.TrimSpace(string(body)))
	}
	return ack.RequestID, nil
}
