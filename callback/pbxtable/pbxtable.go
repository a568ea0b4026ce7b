// Package pbxtable is the table of cloud PBX integrations (docs/pbx.md): their extensions with the tokens of their event
// URLs, the CRM users behind them, and where registrations go.
//
// It owns the form of the table, its checks, and how a token is replaced. It opens no files and keeps no token, only their
// hashes. The secret of a webhook is in what Parse returns, until Hashed replaces it; nothing that is said here shows one.
package pbxtable

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Integration is one PBX and the CRM it belongs to.
type Integration struct {
	// ID names it in URLs, keys and logs: 1 to 32 of a-z, 0-9 and -.
	ID string `json:"id"`
	// Prefix begins the names of its extensions, before the star: 3 to 6 digits.
	Prefix string `json:"prefix"`
	// ExtensionLen is how many digits follow the star: 2 to 4.
	ExtensionLen int `json:"extension_len"`
	// KeepLocal registers calls between extensions too. DirectMissed, true where absent, registers missed calls that came
	// through no queue or IVR.
	KeepLocal    bool        `json:"keep_local,omitempty"`
	DirectMissed *bool       `json:"direct_missed,omitempty"`
	Webhook      Webhook     `json:"webhook"`
	Extensions   []Extension `json:"extensions"`
}

// Destination is the name of the queue of its registrations.
func (i *Integration) Destination() string { return "webhook:" + i.ID }

// Webhook says where registrations go (docs/webhook.md).
type Webhook struct {
	URL string `json:"url"`
	// Secret signs them: "whsec_" and the base64 of 24 to 64 bytes; where state keeps the table, only its hash.
	Secret Secret `json:"secret"`
	// AllowPrivate are networks that may be reached although they are private, e.g. 10.1.0.0/16.
	AllowPrivate []netip.Prefix `json:"allow_private,omitempty"`
}

// Extension is a row of the table.
type Extension struct {
	// ID is the PBX's numeric id.
	ID string `json:"id"`
	// Name is prefix*number.
	Name string `json:"name"`
	// Type is phone, queue, ivr or agent.
	Type string `json:"type"`
	// User is the CRM user; empty: none.
	User string `json:"user,omitempty"`
	// Tokens are those of its event URLs, /ext-event/TOKEN. Several are valid at once, so that one can be replaced.
	Tokens []Token `json:"tokens,omitempty"`
	// Ending are tokens that were replaced and still work for a while.
	Ending []Ending `json:"ending,omitempty"`
}

// Ending is a token that works until a moment.
type Ending struct {
	Token Token `json:"token"`
	Until Time  `json:"until"`
}

// Time is a moment, in JSON like 2026-11-22T10:00:00Z. What cannot be read is zero, which the checks refuse without showing
// what was there.
type Time struct{ time.Time }

// UnmarshalJSON reads it.
func (t *Time) UnmarshalJSON(data []byte) error {
	if t.Time.UnmarshalJSON(data) != nil {
		t.Time = time.Time{}
	}
	return nil
}

// Row is an extension and whose it is, as a token stands for it.
type Row struct {
	Integration, ExtensionID, Name, Type string
	// Token is the one that stands for it here.
	Token Hash
	until time.Time // zero = without an end
}

// Limits of the table. MaxTokens bounds those of an extension, the ending ones included.
const (
	MaxTokens       = 8
	maxIntegrations = 1000
	maxExtensions   = 10_000
)

var (
	idForm    = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)
	nameForm  = regexp.MustCompile(`^([0-9]{3,6})\*([0-9]{2,4})$`)
	tokenForm = regexp.MustCompile(`^[A-Za-z0-9_-]{22,128}$`)
)

// Parse reads and checks a file. The error says everything that is wrong, by place, and never shows a token.
func Parse(data []byte) ([]Integration, error) {
	var file struct {
		Integrations []Integration `json:"integrations"`
	}
	if err := decode(data, &file); err != nil {
		return nil, err
	}
	c := newChecker()
	if len(file.Integrations) > maxIntegrations {
		c.problem("", "more than %d integrations", maxIntegrations)
	}
	for i := range file.Integrations {
		c.integration(fmt.Sprintf("integrations[%d]", i), &file.Integrations[i])
	}
	return file.Integrations, errors.Join(c.problems...)
}

// ParseOne reads and checks one integration that is to be beside others, whose tokens must be different ones.
func ParseOne(data []byte, others []Integration) (*Integration, error) {
	n := &Integration{}
	if err := decode(data, n); err != nil {
		return nil, err
	}
	c := newChecker()
	for i := range others {
		for row := range others[i].rows() {
			c.tokens[row.Token] = true
		}
	}
	if len(others) >= maxIntegrations {
		c.problem("", "more than %d integrations", maxIntegrations)
	}
	c.integration("integration", n)
	return n, errors.Join(c.problems...)
}

func decode(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return inWords(err, data, d.InputOffset())
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind the end of the JSON object")
	}
	return nil
}

// inWords says where the JSON is wrong, without quoting it.
func inWords(err error, data []byte, offset int64) error {
	var syntax *json.SyntaxError
	var mistyped *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
		err = errors.New("not JSON")
	case errors.As(err, &mistyped):
		offset = mistyped.Offset
		want := mistyped.Type.String()
		if mistyped.Type == reflect.TypeFor[Token]() {
			want = "string"
		}
		err = fmt.Errorf("%s must be a %s, not a %s", mistyped.Field, want, mistyped.Value)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = errors.New("the JSON ends too early")
	}
	line := 1 + bytes.Count(data[:min(int(offset), len(data))], []byte("\n"))
	return fmt.Errorf("line %d: %w", line, err)
}

type checker struct {
	ids      map[string]bool
	tokens   map[Hash]bool
	problems []error
}

func newChecker() *checker { return &checker{ids: map[string]bool{}, tokens: map[Hash]bool{}} }

func (c *checker) problem(where, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if where != "" {
		text = where + ": " + text
	}
	c.problems = append(c.problems, errors.New(text))
}

func (c *checker) integration(where string, n *Integration) {
	switch {
	case !idForm.MatchString(n.ID):
		c.problem(where, "id must be 1 to 32 of a-z, 0-9 and -, not %q", n.ID)
	case c.ids[n.ID]:
		c.problem(where, "id %q is there twice", n.ID)
	default:
		where += " (" + n.ID + ")"
	}
	c.ids[n.ID] = true
	if len(n.Prefix) < 3 || len(n.Prefix) > 6 || strings.Trim(n.Prefix, "0123456789") != "" {
		c.problem(where, "prefix must be 3 to 6 digits, not %q", n.Prefix)
	}
	if n.ExtensionLen < 2 || n.ExtensionLen > 4 {
		c.problem(where, "extension_len must be 2 to 4, not %d", n.ExtensionLen)
	}
	u, err := url.Parse(n.Webhook.URL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.Fragment != "" {
		c.problem(where, "webhook.url must be an absolute http or https address without user and fragment")
	}
	if _, err := n.Webhook.Secret.Key(); err != nil && !n.Webhook.Secret.Hashed() {
		c.problem(where, "webhook.secret %v", err)
	}
	if len(n.Extensions) > maxExtensions {
		c.problem(where, "more than %d extensions", maxExtensions)
		return
	}
	ids, names := map[string]bool{}, map[string]bool{}
	for i := range n.Extensions {
		x := &n.Extensions[i]
		place := fmt.Sprintf("%s: extensions[%d]", where, i)
		if x.ID == "" || len(x.ID) > 20 || strings.Trim(x.ID, "0123456789") != "" || ids[x.ID] {
			c.problem(place, "id must be a number that no other extension has, not %q", x.ID)
		}
		if m := nameForm.FindStringSubmatch(x.Name); m == nil || m[1] != n.Prefix || names[x.Name] {
			c.problem(place, "name must be %s*NUMBER and no other extension's, not %q", n.Prefix, x.Name)
		}
		ids[x.ID], names[x.Name] = true, true
		switch x.Type {
		case "phone", "queue", "ivr", "agent":
		default:
			c.problem(place, "type must be phone, queue, ivr or agent, not %q", x.Type)
		}
		if len(x.User) > 128 {
			c.problem(place, "user is longer than 128 bytes")
		}
		c.extensionTokens(place, x)
	}
}

func (c *checker) extensionTokens(place string, x *Extension) {
	if len(x.Tokens)+len(x.Ending) > MaxTokens {
		c.problem(place, "more than %d tokens", MaxTokens)
		return
	}
	check := func(what string, token Token) {
		switch {
		case token.wrong:
			c.problem(place, "%s must be 128 random bits or more: e.g. 32 hexadecimal digits, at most 128 of A-Z, a-z, 0-9, - and _ (its length is %d)", what, token.length)
		case c.tokens[token.Hash]:
			c.problem(place, "%s is there twice", what)
		}
		c.tokens[token.Hash] = true
	}
	for i, token := range x.Tokens {
		check(fmt.Sprintf("tokens[%d]", i), token)
	}
	for i, ending := range x.Ending {
		check(fmt.Sprintf("ending[%d].token", i), ending.Token)
		if ending.Until.IsZero() {
			c.problem(place, "ending[%d].until must be a time like 2026-11-22T10:00:00Z", i)
		}
	}
}

// bits is how much a random token of its length and characters can hold at most; few different ones are not random.
func bits(token string) float64 {
	different := map[rune]bool{}
	for _, r := range token {
		different[r] = true
	}
	alphabet := 64.0
	switch {
	case len(different) < 8:
		return 0
	case strings.Trim(strings.ToLower(token), "0123456789abcdef") == "":
		alphabet = 16
	case token == strings.ToLower(token) || token == strings.ToUpper(token):
		alphabet = 36
	}
	return float64(len(token)) * math.Log2(alphabet)
}

// Table finds rows by their tokens.
type Table struct {
	rows map[Hash]*Row
}

// New makes the table of some integrations that were checked.
func New(integrations []Integration) *Table {
	t := &Table{rows: map[Hash]*Row{}}
	for i := range integrations {
		for row := range integrations[i].rows() {
			if t.rows[row.Token] == nil { // a token is never two rows', see ParseOne
				t.rows[row.Token] = &row
			}
		}
	}
	return t
}

// rows are the rows of an integration, one for each token.
func (i *Integration) rows() iter.Seq[Row] {
	return func(yield func(Row) bool) {
		for _, x := range i.Extensions {
			row := Row{Integration: i.ID, ExtensionID: x.ID, Name: x.Name, Type: x.Type}
			for _, token := range x.Tokens {
				if row.Token = token.Hash; !yield(row) {
					return
				}
			}
			for _, ending := range x.Ending {
				if row.Token, row.until = ending.Token.Hash, ending.Until.Time; !yield(row) {
					return
				}
			}
		}
	}
}

// Find returns the row that a token stands for now, or nil. What is compared are hashes, so the time it takes says nothing of
// the tokens in the table.
func (t *Table) Find(token string, now time.Time) *Row {
	if t == nil || len(token) > 128 {
		return nil
	}
	row := t.rows[sha256.Sum256([]byte(token))]
	if row == nil || !row.until.IsZero() && !now.Before(row.until) {
		return nil
	}
	return row
}

// Has says whether a token is in the table.
func (t *Table) Has(token Hash) bool { return t.rows[token] != nil }

// Rotate gives an extension a new token. Those it has work until the given moment; those of earlier rotations keep their own end.
// If that moment is not after now, all of them end at once: one of them has leaked.
func (x *Extension) Rotate(fresh Token, until, now time.Time) error {
	x.Ending = slices.DeleteFunc(x.Ending, func(e Ending) bool { return !now.Before(e.Until.Time) })
	if now.Before(until) {
		for _, token := range x.Tokens {
			x.Ending = append(x.Ending, Ending{token, Time{until.UTC().Truncate(time.Second)}})
		}
	} else {
		x.Ending = nil
	}
	x.Tokens = []Token{fresh}
	if len(x.Ending) >= MaxTokens {
		return fmt.Errorf("an extension has at most %d tokens at once, this one has %d that still work: wait for the end of some, or end them all with an overlap of 0", MaxTokens, len(x.Ending))
	}
	return nil
}
