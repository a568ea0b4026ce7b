package explain

import (
	"regexp"

	"callrelay/callback"
	operatorv1 "callrelay/gen/callrelay/operator/v1"
	"callrelay/services/router/ameyo"
)

// With makes the rules of a text, for all else as those in force; an empty profile is theirs.
func With(inForce *ameyo.Config, name string, text []byte, profile string) (Rules, error) {
	table, err := ameyo.ParseRules(name, text)
	if err != nil {
		return Rules{}, err
	}
	cfg := *inForce
	cfg.Rules = table
	if profile != "" {
		cfg.Profile = profile
	}
	return Rules{Name: name + " (" + cfg.Profile + ")", Config: &cfg}, cfg.Check()
}

var targetTel = regexp.MustCompile(`("targetTel":")((?:[^"\\]|\\.)*)(")`)

// Proto is the answer as it is sent; masked: without phone numbers.
func (a *Answer) Proto(masked bool) *operatorv1.Explanation {
	e := &operatorv1.Explanation{Call: a.Call, Source: a.Source, RefusedField: a.Field, Refused: a.Refused, Notes: a.Notes, Differs: a.Differs()}
	for _, d := range a.Decisions {
		p := &operatorv1.Decision{Rules: d.Rules, Rule: d.Rule, Reason: d.Reason, Flow: d.Flow, Phone1StateUsed: d.Phone1StateUsed, Gate: d.Gate, DuplicateOf: d.Of}
		for _, payload := range d.Payloads {
			if masked {
				payload = targetTel.ReplaceAllFunc(payload, func(found []byte) []byte {
					m := targetTel.FindSubmatch(found)
					return []byte(string(m[1]) + callback.MaskPhones(string(m[2])) + string(m[3]))
				})
			}
			p.Payloads = append(p.Payloads, string(payload))
		}
		e.Decisions = append(e.Decisions, p)
	}
	return e
}
