// Package dialer is a simulator of the Ameyo dialer: it makes the callbacks that
// the dialer sends (from a seed, always the same) and plays them at a relay.
//
// It owns what callbacks look like, in which order and how often they come, and
// what a relay answers to each by the specification. It does not know what a
// relay does with them; what arrived at the CRM is for package topsii to say.
// Every phone number is from a range that nobody has (0300000xxxx, 0900000xxxx).
package dialer

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kind is what a callback says.
type Kind string

const (
	CallStart     Kind = "call_start"
	Connected     Kind = "connected"
	NotAnswered   Kind = "not_answered"   // the only phone failed
	Phone1Failure Kind = "phone1_failure" // a second phone is dialled next
	Phone2Failure Kind = "phone2_failure"
	Malformed     Kind = "malformed" // to be refused
)

// Callback is one GET request of the dialer.
type Callback struct {
	Path   string
	Query  string // encoded, without the question mark
	CallID string // as in the query; a malformed one may have none
	Kind   Kind
	Repeat int // 0 the first time, n for its n-th repetition

	WantStatus int    // the answer that the specification demands
	WantField  string // the field that a refusal must name
}

// URL of the callback at a relay.
func (c Callback) URL(baseURL string) string {
	return strings.TrimSuffix(baseURL, "/") + c.Path + "?" + c.Query
}

// Scenario makes the callbacks of one call, in the order in which the dialer sends them.
type Scenario func(d *Dialer) []Callback

// Dialer makes callbacks. Two of the same seed make the same ones. Not safe for concurrent use.
type Dialer struct {
	// CleanRoutes uses /v1/ameyo/... instead of the names of the PHP relay.
	CleanRoutes bool

	rng    *rand.Rand
	lastID int64
}

// New returns a Dialer. The call ids of two seeds below 900,000 do not meet within a million calls.
func New(seed uint64) *Dialer {
	return &Dialer{rng: rand.New(rand.NewPCG(seed, seed)), lastID: int64(1+seed%900_000) * 1_000_000}
}

// Scenarios are all scenarios of well-formed callbacks in their natural order.
var Scenarios = []Scenario{SinglePhoneNotAnswered, Phone1Connected, BothPhonesFail, Phone2Connected, SameCRTID}

// SinglePhoneNotAnswered is a customer with one phone who does not answer.
func SinglePhoneNotAnswered(d *Dialer) []Callback {
	c := d.newCall(1)
	return []Callback{c.failure(NotAnswered, 0, c.newCRTID())}
}

// Phone1Connected is a conversation on the first phone: call start, then call end.
func Phone1Connected(d *Dialer) []Callback {
	c := d.newCall(1 + d.rng.IntN(2))
	return []Callback{c.start(0), c.connected(0, c.newCRTID())}
}

// BothPhonesFail is a failure on the first phone, then one on the second.
func BothPhonesFail(d *Dialer) []Callback {
	c := d.newCall(2)
	return []Callback{c.failure(Phone1Failure, 0, c.newCRTID()), c.failure(Phone2Failure, 1, c.newCRTID())}
}

// Phone2Connected is a failure on the first phone, then a conversation on the second.
func Phone2Connected(d *Dialer) []Callback {
	c := d.newCall(2)
	return []Callback{c.failure(Phone1Failure, 0, c.newCRTID()), c.start(1), c.connected(1, c.newCRTID())}
}

// SameCRTID is BothPhonesFail or Phone2Connected with one customerCRTId for both phones, as is often seen.
func SameCRTID(d *Dialer) []Callback {
	c := d.newCall(2)
	crt := c.newCRTID()
	if d.rng.IntN(2) == 0 {
		return []Callback{c.failure(Phone1Failure, 0, crt), c.failure(Phone2Failure, 1, crt)}
	}
	return []Callback{c.failure(Phone1Failure, 0, crt), c.start(1), c.connected(1, crt)}
}

// Repeated sends each callback of a scenario one to three times: at once, or at the end of the call.
func Repeated(s Scenario) Scenario {
	return func(d *Dialer) []Callback {
		var out, late []Callback
		for _, c := range s(d) {
			out = append(out, c)
			copies := d.rng.IntN(3)
			atOnce := d.rng.IntN(copies + 1)
			for c.Repeat = 1; c.Repeat <= copies; c.Repeat++ {
				if c.Repeat <= atOnce {
					out = append(out, c)
				} else {
					late = append(late, c)
				}
			}
		}
		return append(out, late...)
	}
}

// Reordered sends the callbacks of a scenario in any order but the natural one. Whichever of several equal ones
// comes first is the first, the others are its repetitions.
func Reordered(s Scenario) Scenario {
	return func(d *Dialer) []Callback {
		natural := s(d)
		if !slices.ContainsFunc(natural, func(c Callback) bool { return c.Query != natural[0].Query }) {
			return natural // there is no other order
		}
		out := slices.Clone(natural)
		for slices.Equal(out, natural) {
			d.rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
			seen := map[string]int{}
			for i, c := range out {
				out[i].Repeat = seen[c.Query]
				seen[c.Query]++
			}
		}
		return out
	}
}

// defect makes a good callback one that must be refused.
type defect struct {
	start  bool // of a call start; else of a connected call end
	field  string
	spoil  func(q *query)
	status int
}

// defects are every documented refusal that a GET can provoke.
var defects = []defect{
	{start: true, field: "cs_unique_id", spoil: func(q *query) { q.drop("cs_unique_id") }},
	{start: true, field: "cs_unique_id", spoil: func(q *query) { q.set("cs_unique_id", "12x4") }},
	{start: true, field: "userId", spoil: func(q *query) { q.set("userId", "  ") }},
	{start: true, field: "phone", spoil: func(q *query) { q.drop("phone") }},
	{field: "unique_id", spoil: func(q *query) { q.drop("unique_id") }},
	{field: "unique_id", spoil: func(q *query) { q.set("unique_id", "1234567890123456789") }},
	{field: "unique_id", spoil: func(q *query) { q.set("unique_id", "-5") }},
	{field: "customerCRTId", spoil: func(q *query) { q.drop("customerCRTId") }},
	{field: "userId", spoil: func(q *query) { q.drop("userId") }},
	{field: "dialledPhone", spoil: func(q *query) { q.drop("dialledPhone"); q.drop("cstmPhone") }},
	{field: "systemDisposition", spoil: func(q *query) { q.drop("systemDisposition") }},
	{field: "shareablePhonesDialIndex", spoil: func(q *query) { q.set("shareablePhonesDialIndex", "first") }},
	{field: "shareablePhonesDialIndex", spoil: func(q *query) { q.set("shareablePhonesDialIndex", "-1") }},
	{status: http.StatusRequestURITooLong, spoil: func(q *query) { q.set("note", strings.Repeat("x", 17<<10)) }},
}

// MalformedCallback is one callback that must be refused, of a kind drawn from all documented ones.
func MalformedCallback(d *Dialer) []Callback {
	return []Callback{d.malformed(defects[d.rng.IntN(len(defects))])}
}

// AllMalformed is one callback for each documented refusal, each of a call of its own.
func AllMalformed(d *Dialer) []Callback {
	var out []Callback
	for _, def := range defects {
		out = append(out, d.malformed(def))
	}
	return out
}

func (d *Dialer) malformed(def defect) Callback {
	c := d.newCall(1)
	out, q := c.connectedQuery(0, c.newCRTID())
	if def.start {
		out, q = c.startQuery(0)
	}
	def.spoil(&q)
	out.Query, out.Kind, out.WantField, out.WantStatus = q.encode(d), Malformed, def.field, http.StatusBadRequest
	if def.status != 0 {
		out.WantStatus = def.status
	}
	out.CallID = q.get("cs_unique_id") + q.get("unique_id")
	return out
}

// mixWindow is how many calls a Mix has under way at a time.
const mixWindow = 16

// Mix makes calls of scenarios drawn at random and interleaves them as a busy dialer does; each call keeps its own order.
func (d *Dialer) Mix(calls int, scenarios ...Scenario) []Callback {
	var out []Callback
	var open [][]Callback
	for calls > 0 || len(open) > 0 {
		for ; calls > 0 && len(open) < mixWindow; calls-- {
			open = append(open, scenarios[d.rng.IntN(len(scenarios))](d))
		}
		i := d.rng.IntN(len(open))
		out = append(out, open[i][0])
		if open[i] = open[i][1:]; len(open[i]) == 0 {
			open = slices.Delete(open, i, i+1)
		}
	}
	return out
}

// failures are dispositions of calls that nobody took.
var failures = []string{
	"BUSY", "NO_ANSWER", "CALL_NOT_PICKED", "CALL_DROP", "CALL_HANGUP", "ATTEMPT_FAILED",
	"PROVIDER_FAILURE", "PROVIDER_TEMP_FAILURE", "NUMBER_FAILURE", "NUMBER_TEMP_FAILURE",
}

// callState is one call while its callbacks are made.
type callState struct {
	d        *Dialer
	id       string
	customer string
	agent    string
	phones   []string
	at       time.Time
}

var tokyo = time.FixedZone("JST", 9*60*60)

func (d *Dialer) newCall(phones int) *callState {
	d.lastID++
	c := &callState{
		d: d, id: strconv.FormatInt(d.lastID, 10),
		customer: strconv.Itoa(1000 + d.rng.IntN(9000)),
		agent:    fmt.Sprintf("sim_sv%d", 1+d.rng.IntN(40)),
		phones:   []string{fmt.Sprintf("0300000%04d", d.rng.IntN(10_000))},
		at:       time.Date(2026, 3, 6, 9, 0, 0, 0, tokyo).Add(time.Duration(d.rng.IntN(8*60*60)) * time.Second),
	}
	if phones == 2 {
		c.phones = append(c.phones, fmt.Sprintf("0900000%04d", d.rng.IntN(10_000)))
	}
	return c
}

func (c *callState) newCRTID() string {
	return fmt.Sprintf("d336-%08x-vce-%d", c.d.rng.Uint32(), 100+c.d.rng.IntN(900))
}

func (c *callState) callback(route, cleanRoute string, kind Kind) Callback {
	out := Callback{Path: route, CallID: c.id, Kind: kind, WantStatus: http.StatusOK}
	if c.d.CleanRoutes {
		out.Path = cleanRoute
	}
	return out
}

func (c *callState) start(phone int) Callback {
	out, q := c.startQuery(phone)
	out.Query = q.encode(c.d)
	return out
}

func (c *callState) startQuery(phone int) (Callback, query) {
	return c.callback("/call_start.php", "/v1/ameyo/call-start", CallStart), query{
		{"cs_unique_id", c.id}, {"userId", c.agent}, {"phone", c.phones[phone]}, {"customerId", c.customer},
	}
}

func (c *callState) failure(kind Kind, phone int, crt string) Callback {
	out, q := c.end(kind, phone, crt, failures[c.d.rng.IntN(len(failures))])
	out.Query = q.encode(c.d)
	return out
}

func (c *callState) connected(phone int, crt string) Callback {
	out, q := c.connectedQuery(phone, crt)
	out.Query = q.encode(c.d)
	return out
}

func (c *callState) connectedQuery(phone int, crt string) (Callback, query) {
	out, q := c.end(Connected, phone, crt, "CONNECTED")
	q = append(q, pair{"userId", c.agent})
	layout := "2006/01/02 15:04:05 -0700"
	if c.d.rng.IntN(4) == 0 {
		layout = "2006-01-02 15:04:05"
	}
	return out, append(q, pair{"callConnectedTime", c.at.Format(layout)})
}

func (c *callState) end(kind Kind, phone int, crt, disposition string) (Callback, query) {
	q := query{
		{"unique_id", c.id}, {"customerId", c.customer}, {"customerCRTId", crt},
		{"systemDisposition", disposition}, {"shareablePhonesDialIndex", strconv.Itoa(phone)},
		{"dialledPhone", c.phones[phone]}, {"phoneList", phoneList(c.phones)},
	}
	if phone > 0 {
		q = append(q, pair{"cstmPhone", c.phones[phone]})
	}
	return c.callback("/index.php", "/v1/ameyo/call-end", kind), q
}

func phoneList(phones []string) string {
	b, err := json.Marshal(map[string][]string{"phoneList": phones})
	if err != nil {
		panic(err) // strings always can be encoded
	}
	return string(b)
}

type pair struct{ name, value string }

// query keeps its parameters in the order in which the dialer writes them, which url.Values does not.
type query []pair

func (q *query) drop(name string) {
	*q = slices.DeleteFunc(*q, func(p pair) bool { return p.name == name })
}

func (q *query) set(name, value string) {
	q.drop(name)
	*q = append(*q, pair{name, value})
}

func (q query) get(name string) string {
	for _, p := range q {
		if p.name == name {
			return p.value
		}
	}
	return ""
}

// encode writes the query. In one of four the plus of a time zone stays bare, and so arrives as a space: the dialer does that.
func (q query) encode(d *Dialer) string {
	parts := make([]string, len(q))
	for i, p := range q {
		parts[i] = p.name + "=" + url.QueryEscape(p.value)
	}
	out := strings.Join(parts, "&")
	if d.rng.IntN(4) == 0 {
		out = strings.ReplaceAll(out, "%2B", "+")
	}
	return out
}
