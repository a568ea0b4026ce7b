package ameyo

import (
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Rules are the decision tables by profile, the cause table and the status overrides (spec/ameyo-topsii.md, Rules).
type Rules struct {
	name      string
	profiles  map[string]*table
	causes    map[string]status
	overrides map[override]status
}

// table has the row for every combination of inputs.
type table [combinations]*row

type override struct{ status, cause string }

// status is a status and the line it comes from.
type status struct {
	name string
	line int
}

// row is one row of a decision table.
type row struct {
	line      int
	rule      string
	action    action
	errorInfo errorInfo
}

type action string

const (
	createCallEnd   action = FlowCallEnd
	createNotAnswer action = FlowNotAnswer
	wait            action = "wait"
)

type errorInfo string

const (
	infoNone         errorInfo = "none"
	infoPhone1       errorInfo = "phone1"
	infoStatus       errorInfo = "status"
	infoPhone1Status errorInfo = "phone1+status"
)

// errorInfos are the values of error_info that make sense for an action.
var errorInfos = map[action][]errorInfo{
	createCallEnd:   {infoNone, infoPhone1},
	createNotAnswer: {infoStatus, infoPhone1Status},
	wait:            {infoNone},
}

func (i errorInfo) usesPhone1() bool { return i == infoPhone1 || i == infoPhone1Status }

// The inputs of a decision table, one bit each; a bit not set is the other value.
const (
	isConnected  = 1 << iota // else not connected
	isGiven                  // systemDisposition; else absent
	isPhone2                 // dial index >= 1; else 0
	isManyPhones             // 2 or more; else 0 or 1
	combinations = 1 << iota
)

// columns are the words of the inputs: each admits the combinations whose masked bits have the value.
var columns = []struct {
	name  string
	words map[string]struct{ mask, value int }
}{
	{"connected", map[string]struct{ mask, value int }{"yes": {isConnected, isConnected}, "no": {isConnected, 0}, "any": {}}},
	{"disposition", map[string]struct{ mask, value int }{"given": {isGiven, isGiven}, "absent": {isGiven, 0}, "any": {}}},
	{"dial_index", map[string]struct{ mask, value int }{"0": {isPhone2, 0}, "1+": {isPhone2, isPhone2}, "any": {}}},
	{"phones", map[string]struct{ mask, value int }{"0-1": {isManyPhones, 0}, "2+": {isManyPhones, isManyPhones}, "any": {}}},
}

// possible: a connected callback has a disposition.
func possible(combination int) bool { return combination&isConnected == 0 || combination&isGiven != 0 }

// describe names a combination in the words of the table.
func describe(combination int) string {
	var b strings.Builder
	for _, column := range columns {
		for _, word := range slices.Sorted(maps.Keys(column.words)) {
			if w := column.words[word]; w.mask != 0 && combination&w.mask == w.value {
				fmt.Fprintf(&b, " %s=%s", column.name, word)
			}
		}
	}
	return b.String()[1:]
}

//go:embed rules.txt
var defaultRules []byte

// DefaultRules returns the built-in rules with the profiles seed and hangup-signal.
var DefaultRules = sync.OnceValue(func() *Rules {
	r, err := ParseRules("rules.txt", defaultRules)
	if err != nil {
		panic(err)
	}
	return r
})

// Profiles returns the names of the profiles, sorted.
func (r *Rules) Profiles() []string { return slices.Sorted(maps.Keys(r.profiles)) }

// ParseRules reads a rules file, whose format the built-in rules.txt explains. The error has all problems, each with
// the name of the file and, where there is one, the line.
func ParseRules(name string, data []byte) (*Rules, error) {
	p := parser{
		rules: &Rules{
			name:      name,
			profiles:  map[string]*table{},
			causes:    map[string]status{},
			overrides: map[override]status{},
		},
		broken: map[string]bool{},
	}
	for line := range strings.Lines(strings.TrimPrefix(string(data), "\uFEFF")) {
		p.line++
		line, _, _ = strings.Cut(line, "#")
		if words := strings.Fields(line); len(words) > 0 {
			p.parse(words)
		}
	}
	p.checkComplete()
	if len(p.errs) > 0 {
		return nil, errors.Join(p.errs...)
	}
	return p.rules, nil
}

type parser struct {
	rules *Rules
	line  int
	errs  []error
	// broken profiles have rows with errors; what else is missing in them cannot be said.
	broken map[string]bool
}

func (p *parser) errorf(format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf("%s:%d: %s", p.rules.name, p.line, fmt.Sprintf(format, args...)))
}

func (p *parser) parse(words []string) {
	switch words[0] {
	case "rule":
		p.rule(words[1:])
	case "cause":
		p.cause(words[1:])
	case "override":
		p.override(words[1:])
	default:
		p.errorf("unknown kind of line %q: want rule, cause or override", words[0])
	}
}

func (p *parser) rule(words []string) {
	const want = "profile, rule, connected, disposition, dial_index, phones, action and error_info"
	if len(words) != 8 {
		if len(words) > 0 {
			p.broken[words[0]] = true
		}
		p.errorf("a rule has %d words, want 8: %s", len(words), want)
		return
	}
	profile := words[0]
	r := &row{line: p.line, rule: words[1], action: action(words[6]), errorInfo: errorInfo(words[7])}
	problems := len(p.errs)
	mask, value := 0, 0
	for i, column := range columns {
		word := words[2+i]
		bits, ok := column.words[word]
		if !ok {
			p.errorf("unknown %s %q: want one of %s", column.name, word, strings.Join(slices.Sorted(maps.Keys(column.words)), ", "))
		}
		mask, value = mask|bits.mask, value|bits.value
	}
	infos, ok := errorInfos[r.action]
	switch {
	case !ok:
		p.errorf("unknown action %q: want one of %s, %s, %s", r.action, createCallEnd, createNotAnswer, wait)
	case !slices.Contains(infos, r.errorInfo):
		p.errorf("unknown error_info %q of %s: want one of %v", r.errorInfo, r.action, infos)
	case mask&isConnected == 0, (value&isConnected != 0) != (r.action == createCallEnd):
		p.errorf("%s needs connected=%s", r.action, map[bool]string{true: "yes", false: "no"}[r.action == createCallEnd])
	}
	if len(p.errs) > problems {
		p.broken[profile] = true
		return
	}
	p.place(profile, r, mask, value)
}

// place puts the row at every combination that it is for.
func (p *parser) place(profile string, r *row, mask, value int) {
	t := p.rules.profiles[profile]
	if t == nil {
		t = new(table)
		p.rules.profiles[profile] = t
	}
	applies := false
	for combination := range combinations {
		if combination&mask != value || !possible(combination) {
			continue
		}
		applies = true
		if other := t[combination]; other != nil {
			p.errorf("profile %s: %s is decided by line %d already", profile, describe(combination), other.line)
			continue
		}
		t[combination] = r
	}
	if !applies {
		p.errorf("profile %s: the rule never applies: connected means that the disposition is given", profile)
	}
}

func (p *parser) checkComplete() {
	if len(p.rules.profiles) == 0 && len(p.broken) == 0 {
		p.errs = append(p.errs, fmt.Errorf("%s: there is no rule", p.rules.name))
	}
	for _, profile := range p.rules.Profiles() {
		for combination, r := range p.rules.profiles[profile] {
			if r == nil && possible(combination) && !p.broken[profile] {
				p.errs = append(p.errs, fmt.Errorf("%s: profile %s: no rule for %s", p.rules.name, profile, describe(combination)))
			}
		}
	}
}

var (
	statusWord = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`)
	codeWord   = regexp.MustCompile(`^(0|[1-9][0-9]{0,3})$`)
	rangeWord  = regexp.MustCompile(`^(0|[1-9][0-9]{0,3})-([1-9][0-9]{0,3})$`)
)

func (p *parser) status(word string) bool {
	if !statusWord.MatchString(word) {
		p.errorf("malformed status %q: want capitals, digits and underscores", word)
		return false
	}
	return true
}

func (p *parser) cause(words []string) {
	if len(words) < 2 {
		p.errorf("a cause wants a status and at least one code")
		return
	}
	if !p.status(words[0]) {
		return
	}
	for _, word := range words[1:] {
		first, last, ok := codes(word)
		if !ok {
			p.errorf("malformed code %q: want a number from 0 to 9999 without leading zeros, or a range like 17-19", word)
			continue
		}
		for code := first; code <= last; code++ {
			key := strconv.Itoa(code)
			if other, ok := p.rules.causes[key]; ok {
				p.errorf("code %d is %s by line %d already", code, other.name, other.line)
				continue
			}
			p.rules.causes[key] = status{words[0], p.line}
		}
	}
}

// codes reads "17" or "17-19".
func codes(word string) (first, last int, ok bool) {
	if codeWord.MatchString(word) {
		first, _ = strconv.Atoi(word)
		return first, first, true
	}
	bounds := rangeWord.FindStringSubmatch(word)
	if bounds == nil {
		return 0, 0, false
	}
	first, _ = strconv.Atoi(bounds[1])
	last, _ = strconv.Atoi(bounds[2])
	return first, last, first < last
}

func (p *parser) override(words []string) {
	if len(words) != 3 {
		p.errorf("an override has %d words, want 3: status, code and the status to send", len(words))
		return
	}
	if !p.status(words[0]) || !p.status(words[2]) {
		return
	}
	if !codeWord.MatchString(words[1]) {
		p.errorf("malformed code %q: want a number from 0 to 9999 without leading zeros", words[1])
		return
	}
	key := override{words[0], words[1]}
	if other, ok := p.rules.overrides[key]; ok {
		p.errorf("%s with cause %s is overridden by line %d already", words[0], words[1], other.line)
		return
	}
	p.rules.overrides[key] = status{words[2], p.line}
}

// unknown is the status of a cause that is not in the table and of a phone 1 that nobody reported.
const unknown = "UNKNOWN"

// status returns the status of a callback that is not connected: its disposition, else that of its cause, either
// possibly overridden. known is false when the cause was needed and is not in the table.
func (r *Rules) status(disposition, cause string) (name string, known bool) {
	name, known = disposition, true
	if name == "" {
		var mapped status
		if mapped, known = r.causes[cause]; known {
			name = mapped.name
		} else {
			name = unknown
		}
	}
	if o, ok := r.overrides[override{name, cause}]; ok {
		name = o.name
	}
	return name, known
}

// row returns the row of the profile for a callback. The profile must exist (Config.Check).
func (r *Rules) row(profile string, connected, given bool, dialIndex, phones uint32) *row {
	combination := 0
	if connected {
		combination |= isConnected
	}
	if given {
		combination |= isGiven
	}
	if dialIndex >= 1 {
		combination |= isPhone2
	}
	if phones >= 2 {
		combination |= isManyPhones
	}
	return r.profiles[profile][combination]
}
