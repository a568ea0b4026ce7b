package explain

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"callrelay/callback"
)

// logLine is one line of the PHP relay's daily logs: time | [request id] | label | message | key=value | ...
type logLine struct {
	at             time.Time // as written, in UTC
	request, label string
	message        string
	fields         []string
}

func (l *logLine) value(key string) string {
	for _, f := range l.fields {
		if v, ok := strings.CutPrefix(f, key+"="); ok {
			return v
		}
	}
	return ""
}

// source tells a call start from a call end by what an incoming_get line says.
func (l *logLine) source() string {
	if strings.Contains(strings.ToLower(l.message), "call start") {
		return SourceStart
	}
	return SourceEnd
}

var fieldStart = regexp.MustCompile(` \| ([A-Za-z0-9_]+)=`)

// readLine reads a line. A field reaches to the next " | name=".
func readLine(line string) (logLine, bool) {
	parts := strings.SplitN(line, " | ", 4)
	if len(parts) < 4 {
		return logLine{}, false
	}
	at, err := time.Parse(time.DateTime, strings.TrimSpace(parts[0]))
	if err != nil {
		return logLine{}, false
	}
	l := logLine{at: at, request: strings.Trim(parts[1], "[]"), label: parts[2]}
	rest := parts[3]
	starts := fieldStart.FindAllStringIndex(rest, -1)
	end := len(rest)
	for _, start := range slices.Backward(starts) {
		l.fields = append(l.fields, rest[start[0]+3:end])
		end = start[0]
	}
	l.message = rest[:end]
	return l, true
}

// Logged is a callback as the PHP relay's logs tell it, and what it did.
type Logged struct {
	RequestID string
	At        time.Time // as written, in UTC
	Line      string    // file and line, for people
	Source    string
	Params    callback.Params
	// Flow is that of Decision, "refused", or empty when the log does not tell.
	Flow    string
	Payload []byte
	// Said is the PHP relay's own word for what it did.
	Said string

	rank int
}

// flowRefused is Logged.Flow of a refused callback.
const flowRefused = "refused"

// maxLine bounds a line of a log, in bytes.
const maxLine = 1 << 20

// heading is a file's name above its lines, where several were put into one.
var heading = regexp.MustCompile(`^#+ +(\S+\.log)\s*$`)

// Logs collects what daily files tell.
type Logs struct {
	byID  map[string]*Logged
	order []*Logged
	// Skipped counts lines that are not of the known form.
	Skipped int
}

// Read adds a file. Several may be added, in any order; one request's lines are in one of them.
func (g *Logs) Read(name string, r io.Reader) error {
	if g.byID == nil {
		g.byID = map[string]*Logged{}
	}
	file := filepath.Base(name)
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, maxLine)
	number := 0
	for scan.Scan() {
		number++
		text := strings.TrimRight(scan.Text(), "\r")
		if m := heading.FindStringSubmatch(text); m != nil {
			file = m[1]
			continue
		}
		if text == "" || strings.HasPrefix(text, "====") || strings.HasPrefix(text, "#") {
			continue
		}
		l, ok := readLine(text)
		if !ok {
			g.Skipped++
			continue
		}
		g.add(&l, fmt.Sprintf("%s:%d", file, number), rank(file))
	}
	if err := scan.Err(); err != nil {
		return fmt.Errorf("%s: line %d: %w", name, number+1, err)
	}
	return nil
}

// rank orders callbacks of the same second, which is all that the logs tell: a call starts, its first phone is not answered,
// then it ends.
func rank(file string) int {
	return slices.IndexFunc([]string{"call_start", "not_answer", "call_end", ""}, func(p string) bool { return strings.HasPrefix(file, p) })
}

func (g *Logs) add(l *logLine, where string, rank int) {
	one := g.byID[l.request]
	if l.label == "incoming_get" {
		if one != nil {
			return
		}
		params, err := object([]byte(l.value("query")))
		if err != nil {
			g.Skipped++
			return
		}
		one = &Logged{RequestID: l.request, At: l.at, Line: where, rank: rank, Source: l.source(), Params: params}
		g.byID[l.request], g.order = one, append(g.order, one)
		return
	}
	if one == nil {
		return
	}
	switch {
	case l.label == "dedupe":
		one.Flow, one.Said = FlowDuplicate, l.message
	case l.label == "state" && strings.HasPrefix(l.message, "Stored phone1"):
		one.Flow, one.Said = "wait for phone 2", l.message
	case l.label == "decision":
		one.Said = l.message
	case l.label == "upstream_request":
		one.Payload = []byte(l.value("payload"))
		one.Flow = flowOf(one.Payload)
	case l.label == "response" && strings.Contains(l.message, "error response"):
		one.Flow, one.Said = flowRefused, l.value("message")
	}
}

// flowOf is the endpoint that a payload is for.
func flowOf(payload []byte) string {
	var envelope map[string]json.RawMessage
	if json.Unmarshal(payload, &envelope) == nil {
		for name := range envelope {
			if rest, ok := strings.CutPrefix(name, "predictiveCallC"); ok {
				return "c" + rest
			}
		}
	}
	return ""
}

// Compared is a callback with both decisions.
type Compared struct {
	*Logged
	Answer Answer
	// Difference says in words in what they differ; empty when they do not.
	Difference string
}

// Compare decides what the logs tell, oldest first, and says where the decisions differ from the PHP relay's. The session
// must have one set of rules; zone is that of the logs' times.
func (g *Logs) Compare(s *Session, zone *time.Location) []Compared {
	order := slices.Clone(g.order)
	slices.SortStableFunc(order, func(a, b *Logged) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.rank, b.rank)) })
	out := make([]Compared, 0, len(order))
	for _, one := range order {
		y, m, d := one.At.Date()
		at := time.Date(y, m, d, one.At.Hour(), one.At.Minute(), one.At.Second(), 0, zone)
		answer, _ := s.Decide(one.Source, one.Params, one.RequestID, at.UnixMilli()) // without stored calls there is no error
		out = append(out, Compared{one, answer, difference(one, &answer)})
	}
	return out
}

func difference(l *Logged, a *Answer) string {
	flow, payload := flowRefused, []byte(nil)
	if a.Refused == "" {
		flow = a.Decisions[0].Flow
		if p := a.Decisions[0].Payloads; len(p) > 0 {
			payload = p[len(p)-1] // the callback's own is the last
		}
	}
	switch {
	case l.Flow == "":
		return "the log does not tell what the PHP relay did"
	case l.Flow != flow:
		return fmt.Sprintf("the PHP relay: %s; callrelay: %s", l.Flow, flow)
	case !sameJSON(l.Payload, payload):
		return fmt.Sprintf("the payloads differ: the PHP relay %s; callrelay %s", l.Payload, payload)
	}
	return ""
}

// sameJSON compares texts of JSON by what they say.
func sameJSON(a, b []byte) bool {
	if len(a) == 0 || len(b) == 0 {
		return len(a) == len(b)
	}
	var x, y any
	dx, dy := json.NewDecoder(bytes.NewReader(a)), json.NewDecoder(bytes.NewReader(b))
	dx.UseNumber()
	dy.UseNumber()
	if dx.Decode(&x) != nil || dy.Decode(&y) != nil {
		return bytes.Equal(a, b)
	}
	return reflect.DeepEqual(x, y)
}
