// Package pbxtable reads the table of cloud PBX integrations (PBX_INTEGRATIONS, docs/pbx.md): their extensions with the
// tokens of their event URLs, the CRM users behind them, and where registrations go.
//
// It owns the form of the table and its checks. It does not open files and keeps no token, only their hashes; nothing
// that it returns or says holds one.
package pbxtable

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
)

// Table is every integration.
type Table struct {
	Integrations []Integration
	tokens       map[[sha256.Size]byte]*Row
}

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
	KeepLocal    bool        `json:"keep_local"`
	DirectMissed *bool       `json:"direct_missed"`
	Webhook      Webhook     `json:"webhook"`
	Extensions   []Extension `json:"extensions"`
}

// Destination is the name of the queue of its registrations.
func (i *Integration) Destination() string { return "webhook:" + i.ID }

// Webhook says where registrations go (docs/webhook.md).
type Webhook struct {
	URL string `json:"url"`
	// Secret signs them: "whsec_" and the base64 of 24 to 64 bytes.
	Secret Secret `json:"secret"`
	// AllowPrivate are networks that may be reached although they are private, e.g. 10.1.0.0/16.
	AllowPrivate []netip.Prefix `json:"allow_private"`
}

// Secret is a text that does not show itself.
type Secret string

// String hides it.
func (s Secret) String() string { return "***" }

// GoString hides it.
func (s Secret) GoString() string { return "***" }

// Extension is a row of the table.
type Extension struct {
	// ID is the PBX's numeric id.
	ID string `json:"id"`
	// Name is prefix*number.
	Name string `json:"name"`
	// Type is phone, queue, ivr or agent.
	Type string `json:"type"`
	// User is the CRM user; empty: none.
	User string `json:"user"`
	// Tokens are those of its event URLs, /ext-event/TOKEN. Several are valid at once, so that one can be replaced.
	Tokens []Secret `json:"tokens"`
}

// Row is an extension and whose it is, without its tokens.
type Row struct {
	Integration, ExtensionID, Name, Type string
}

// Limits of the table.
const (
	maxIntegrations = 1000
	maxExtensions   = 10_000
	maxTokens       = 8
)

var (
	idForm    = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)
	nameForm  = regexp.MustCompile(`^([0-9]{3,6})\*([0-9]{2,4})$`)
	tokenForm = regexp.MustCompile(`^[A-Za-z0-9_-]{22,128}$`)
)

// Parse reads and checks a table. The error says everything that is wrong, by place, and never shows a token.
func Parse(data []byte) (*Table, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	var file struct {
		Integrations []Integration `json:"integrations"`
	}
	if err := d.Decode(&file); err != nil {
		return nil, inWords(err, data, d.InputOffset())
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is something behind the end of the JSON object")
	}
	t := &Table{Integrations: file.Integrations, tokens: map[[sha256.Size]byte]*Row{}}
	c := checker{t: t, ids: map[string]bool{}}
	if len(t.Integrations) > maxIntegrations {
		c.problem("", "more than %d integrations", maxIntegrations)
	}
	for i := range t.Integrations {
		c.integration(fmt.Sprintf("integrations[%d]", i), &t.Integrations[i])
	}
	return t, errors.Join(c.problems...)
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
		err = fmt.Errorf("%s must be a %s, not a %s", mistyped.Field, mistyped.Type, mistyped.Value)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = errors.New("the JSON ends too early")
	}
	line := 1 + bytes.Count(data[:min(int(offset), len(data))], []byte("\n"))
	return fmt.Errorf("line %d: %w", line, err)
}

type checker struct {
	t        *Table
	ids      map[string]bool
	problems []error
}

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
	if _, err := n.Webhook.Secret.Key(); err != nil {
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
		c.tokens(place, n, x)
	}
}

func (c *checker) tokens(place string, n *Integration, x *Extension) {
	if len(x.Tokens) > maxTokens {
		c.problem(place, "more than %d tokens", maxTokens)
		return
	}
	for i, token := range x.Tokens {
		if !tokenForm.MatchString(string(token)) || bits(string(token)) < 128 {
			c.problem(place, "tokens[%d] must be 128 random bits or more: e.g. 32 hexadecimal digits, at most 128 of A-Z, a-z, 0-9, - and _ (its length is %d)", i, len(token))
			continue
		}
		hash := sha256.Sum256([]byte(token))
		if c.t.tokens[hash] != nil {
			c.problem(place, "tokens[%d] is there twice", i)
		}
		c.t.tokens[hash] = &Row{n.ID, x.ID, x.Name, x.Type}
	}
	x.Tokens = nil
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

// Find returns the row that a token stands for, or nil. It takes as long for every token of a length: what is compared
// are hashes.
func (t *Table) Find(token string) *Row {
	if t == nil || len(token) > 128 {
		return nil
	}
	return t.tokens[sha256.Sum256([]byte(token))]
}
