package ameyo

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestDefaultRules has every combination of inputs of both profiles (spec/ameyo-topsii.md, Rules).
func TestDefaultRules(t *testing.T) {
	type in struct {
		connected, given  bool
		dialIndex, phones uint32
	}
	type out struct {
		rule      string
		action    action
		errorInfo errorInfo
	}
	const yes, no = true, false
	one := out{"1", "createCallEnd", "none"}
	two := out{"2", "createCallEnd", "phone1"}
	three := out{"3", "createNotAnswer", "status"}
	four := out{"4", "wait", "none"}
	five := out{"5", "createNotAnswer", "phone1+status"}
	tests := []struct {
		in                 in
		seed, hangupSignal out
	}{
		{in{yes, yes, 0, 0}, one, one},
		{in{yes, yes, 0, 1}, one, one},
		{in{yes, yes, 0, 2}, one, one},
		{in{yes, yes, 0, 3}, one, one},
		{in{yes, yes, 1, 0}, two, two},
		{in{yes, yes, 1, 1}, two, two},
		{in{yes, yes, 1, 2}, two, two},
		{in{yes, yes, 7, 3}, two, two},
		{in{no, yes, 0, 0}, three, three},
		{in{no, yes, 0, 1}, three, three},
		{in{no, yes, 1, 0}, three, three},
		{in{no, yes, 1, 1}, three, three},
		{in{no, no, 0, 0}, three, three},
		{in{no, no, 0, 1}, three, three},
		{in{no, no, 1, 0}, three, three},
		{in{no, no, 1, 1}, three, three},
		{in{no, yes, 0, 2}, four, three},
		{in{no, yes, 0, 9}, four, three},
		{in{no, no, 0, 2}, four, four},
		{in{no, no, 0, 9}, four, four},
		{in{no, yes, 1, 2}, five, five},
		{in{no, yes, 9, 9}, five, five},
		{in{no, no, 1, 2}, five, five},
	}
	rules := DefaultRules()
	for _, test := range tests {
		for profile, want := range map[string]out{"seed": test.seed, "hangup-signal": test.hangupSignal} {
			row := rules.row(profile, test.in.connected, test.in.given, test.in.dialIndex, test.in.phones)
			if got := (out{row.rule, row.action, row.errorInfo}); got != want {
				t.Errorf("%s, %+v: %+v, want %+v", profile, test.in, got, want)
			}
		}
	}
	if got := rules.Profiles(); !slices.Equal(got, []string{"hangup-signal", "seed"}) {
		t.Errorf("profiles %q", got)
	}
}

// TestCauses has every code of the specification's cause table, and every other code up to 9999 as unknown.
func TestCauses(t *testing.T) {
	table := map[string][]int{
		"BUSY":                {17, 18, 19, 486, 600},
		"NUMBER_FAILURE":      {1, 2, 3, 4, 5, 22, 28, 55, 87, 90, 300, 301, 302, 305, 380, 404, 420, 604, 761},
		"NUMBER_TEMP_FAILURE": {20, 21, 29, 46, 81, 413, 414, 603},
		"CALL_HANGUP":         {7, 8, 9, 16, 30, 31, 100, 180, 181, 182, 183, 200, 421, 423, 484, 504},
		"ATTEMPT_FAILED":      {760, 762, 763},
		"PROVIDER_TEMP_FAILURE": {0, 26, 34, 38, 39, 40, 41, 42, 44, 45, 47, 62, 83, 84, 85, 86, 91, 95, 96, 98, 101, 102, 110, 127,
			408, 480, 481, 482, 483, 485, 487, 491, 500, 502, 503, 513, 759},
		"PROVIDER_FAILURE": {6, 27, 43, 49, 50, 52, 53, 54, 57, 58, 63, 65, 66, 69, 70, 79, 82, 88, 97, 99, 103, 111, 400, 401, 402,
			405, 406, 407, 410, 415, 416, 422, 488, 493, 501, 505, 606},
		"PROVIDER_FAILURE_403": {403}, // PROVIDER_FAILURE, overridden
	}
	want := map[int]string{}
	for status, codes := range table {
		for _, code := range codes {
			want[code] = status
		}
	}
	for code := range 10000 {
		status, known := DefaultRules().status("", strconv.Itoa(code))
		if expected, ok := want[code]; known != ok || ok && status != expected || !ok && status != "UNKNOWN" {
			t.Errorf("cause %d is %s (known: %t), want %s", code, status, known, expected)
		}
	}
	for _, cause := range []string{"99999999999999999999", ""} {
		if status, known := DefaultRules().status("", cause); status != "UNKNOWN" || known {
			t.Errorf("cause %q is %s", cause, status)
		}
	}
}

func TestStatus(t *testing.T) {
	for in, want := range map[[2]string]string{
		{"BUSY", ""}:                         "BUSY",
		{"BUSY", "404"}:                      "BUSY", // the disposition wins
		{"PROVIDER_FAILURE", "403"}:          "PROVIDER_FAILURE_403",
		{"PROVIDER_FAILURE", "404"}:          "PROVIDER_FAILURE",
		{"PROVIDER_FAILURE", ""}:             "PROVIDER_FAILURE",
		{"PROVIDER_TEMP_FAILURE", "403"}:     "PROVIDER_TEMP_FAILURE",
		{"something of its own", "12345678"}: "something of its own",
	} {
		if status, known := DefaultRules().status(in[0], in[1]); status != want || !known {
			t.Errorf("disposition %q with cause %q is %q (known: %t), want %q", in[0], in[1], status, known, want)
		}
	}
}

const oneProfile = `
rule p 1 yes any 0 any createCallEnd none
rule p 2 yes any 1+ any createCallEnd phone1
rule p 3 no any any 0-1 createNotAnswer status
rule p 4 no any 0 2+ wait none
rule p 5 no any 1+ 2+ createNotAnswer phone1+status
`

func TestParseRules(t *testing.T) {
	const file = oneProfile + "override BUSY 17 ENGAGED # a comment\n\n#cause X 1\ncause BUSY 17-18\t20\r\n"
	for _, text := range []string{file, "\uFEFF" + file, strings.ReplaceAll(file, "\n", "\r\n")} {
		rules, err := ParseRules("f", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if got := rules.Profiles(); !slices.Equal(got, []string{"p"}) {
			t.Errorf("profiles %q", got)
		}
		if got, _ := rules.status("", "17"); got != "ENGAGED" {
			t.Errorf("cause 17 is %s", got)
		}
		if got, known := rules.status("", "19"); got != "UNKNOWN" || known {
			t.Errorf("cause 19 is %s", got)
		}
	}
}

func TestParseRulesErrors(t *testing.T) {
	tests := []struct{ what, text, want string }{
		{"empty", "# nothing\n", "f: there is no rule"},
		{"unknown kind", oneProfile + "role p", `f:7: unknown kind of line "role": want rule, cause or override`},
		{"too few words", oneProfile + "rule q 1 yes", "f:7: a rule has 3 words, want 8: profile, rule, connected, disposition, dial_index, phones, action and error_info"},
		{"no words", oneProfile + "rule", "f:7: a rule has 0 words, want 8: profile, rule, connected, disposition, dial_index, phones, action and error_info"},
		{"too many words", oneProfile + "rule q 1 yes any 0 any createCallEnd none x", "f:7: a rule has 9 words, want 8: profile, rule, connected, disposition, dial_index, phones, action and error_info"},
		{"unknown words", oneProfile + "rule q 1 maybe some 2 1 createCall none", `f:7: unknown connected "maybe": want one of any, no, yes
f:7: unknown disposition "some": want one of absent, any, given
f:7: unknown dial_index "2": want one of 0, 1+, any
f:7: unknown phones "1": want one of 0-1, 2+, any
f:7: unknown action "createCall": want one of createCallEnd, createNotAnswer, wait`},
		{"error_info of another action", oneProfile + "rule q 1 yes any 0 any createCallEnd status", `f:7: unknown error_info "status" of createCallEnd: want one of [none phone1]`},
		{"wait with error_info", oneProfile + "rule q 1 no any 0 any wait status", `f:7: unknown error_info "status" of wait: want one of [none]`},
		{"createCallEnd unconnected", oneProfile + "rule q 1 no any 0 any createCallEnd none", "f:7: createCallEnd needs connected=yes"},
		{"createCallEnd in any case", oneProfile + "rule q 1 any any 0 any createCallEnd none", "f:7: createCallEnd needs connected=yes"},
		{"wait connected", oneProfile + "rule q 1 yes any 0 any wait none", "f:7: wait needs connected=no"},
		{"createNotAnswer in any case", oneProfile + "rule q 1 any any 0 any createNotAnswer status", "f:7: createNotAnswer needs connected=no"},
		{"overlap", oneProfile + "rule p 6 no given 0 2+ createNotAnswer status", "f:7: profile p: connected=no disposition=given dial_index=0 phones=2+ is decided by line 5 already"},
		{"never applies", oneProfile + "rule p 6 yes absent 0 any createCallEnd none", "f:7: profile p: the rule never applies: connected means that the disposition is given"},
		{"gaps", strings.Replace(oneProfile, "rule p 4 no any 0 2+", "rule p 4 no absent 0 2+", 1) + "rule q 1 yes any any any createCallEnd none",
			`f: profile p: no rule for connected=no disposition=given dial_index=0 phones=2+
f: profile q: no rule for connected=no disposition=absent dial_index=0 phones=0-1
f: profile q: no rule for connected=no disposition=given dial_index=0 phones=0-1
f: profile q: no rule for connected=no disposition=absent dial_index=1+ phones=0-1
f: profile q: no rule for connected=no disposition=given dial_index=1+ phones=0-1
f: profile q: no rule for connected=no disposition=absent dial_index=0 phones=2+
f: profile q: no rule for connected=no disposition=given dial_index=0 phones=2+
f: profile q: no rule for connected=no disposition=absent dial_index=1+ phones=2+
f: profile q: no rule for connected=no disposition=given dial_index=1+ phones=2+`},
		{"cause without code", oneProfile + "cause BUSY", "f:7: a cause wants a status and at least one code"},
		{"malformed status", oneProfile + "cause busy 17", `f:7: malformed status "busy": want capitals, digits and underscores`},
		{"malformed codes", oneProfile + "cause BUSY x 017 19-17 17- 10000 17-017", `f:7: malformed code "x": want a number from 0 to 9999 without leading zeros, or a range like 17-19
f:7: malformed code "017": want a number from 0 to 9999 without leading zeros, or a range like 17-19
f:7: malformed code "19-17": want a number from 0 to 9999 without leading zeros, or a range like 17-19
f:7: malformed code "17-": want a number from 0 to 9999 without leading zeros, or a range like 17-19
f:7: malformed code "10000": want a number from 0 to 9999 without leading zeros, or a range like 17-19
f:7: malformed code "17-017": want a number from 0 to 9999 without leading zeros, or a range like 17-19`},
		{"code twice", oneProfile + "cause BUSY 17\ncause GONE 16-18", "f:8: code 17 is BUSY by line 7 already"},
		{"override of too many", oneProfile + "override BUSY 17 18 X", "f:7: an override has 4 words, want 3: status, code and the status to send"},
		{"malformed override", oneProfile + "override BUSY x GONE\noverride BUSY 17 gone\noverride busy 17 GONE", `f:7: malformed code "x": want a number from 0 to 9999 without leading zeros
f:8: malformed status "gone": want capitals, digits and underscores
f:9: malformed status "busy": want capitals, digits and underscores`},
		{"override twice", oneProfile + "override BUSY 17 A\noverride BUSY 17 B", "f:8: BUSY with cause 17 is overridden by line 7 already"},
		{"all at once", "rule p 1 yes any 0 any createCallEnd nothing\nfoo\ncause BUSY -", `f:1: unknown error_info "nothing" of createCallEnd: want one of [none phone1]
f:2: unknown kind of line "foo": want rule, cause or override
f:3: malformed code "-": want a number from 0 to 9999 without leading zeros, or a range like 17-19`},
	}
	for _, test := range tests {
		rules, err := ParseRules("f", []byte(test.text))
		if rules != nil || err == nil || err.Error() != test.want {
			t.Errorf("%s:\n%v\nwant\n%s", test.what, err, test.want)
		}
	}
}

func TestCheck(t *testing.T) {
	if err := DefaultConfig().Check(); err != nil {
		t.Error(err)
	}
	bad := Config{
		Rules: DefaultRules(), Profile: "sead", DedupeTTL: -1, Phone1TTL: 0, Phone1Expiry: "keep", CallStartMaxAge: -time.Second,
	}
	const want = `AMEYO_PROFILE "sead" is not a profile of rules.txt: want one of [hangup-signal seed]
REQUEST_DEDUPE_TTL_SECONDS must not be negative
PHONE1_STATE_TTL_SECONDS must be positive
PHONE1_EXPIRY "keep": want drop or send
CALL_START_MAX_AGE_SECONDS must not be negative`
	if err := bad.Check(); err == nil || err.Error() != want {
		t.Errorf("%v\nwant\n%s", err, want)
	}
	if err := (&Config{Phone1TTL: 1, Phone1Expiry: "send"}).Check(); err == nil || err.Error() != "there are no rules" {
		t.Error(err)
	}
}

func FuzzParseRules(f *testing.F) {
	f.Add(string(defaultRules))
	f.Add(oneProfile)
	f.Fuzz(func(t *testing.T, text string) {
		rules, err := ParseRules("f", []byte(text))
		if err != nil {
			return
		}
		for _, profile := range rules.Profiles() {
			for i := range combinations {
				if possible(i) && rules.profiles[profile][i] == nil {
					t.Errorf("profile %s has no row for %s", profile, describe(i))
				}
			}
		}
	})
}
