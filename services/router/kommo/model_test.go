package kommo

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// source is one thing that a source will say of a call.
type source struct {
	call string
	in   Input
}

// given is what the sources said of a call, by what they said.
type given struct {
	reported, outbound bool
	results            []string
	recording          bool
	claims             []Entity
}

// play runs a world: pick chooses among n things that can happen next.
type play struct {
	*world
	pick    func(n int) int
	sources []source
	given   map[string]*given
	// faults, repeats and times bound how much goes wrong, is said again, and how often time passes.
	faults, repeats, times int
	// people: contacts appear, leads are accepted and declined, at most so often. away: so often what a call waits for is given up.
	people, away int
	said         []source
}

const digits = "3055550142"

// firstEnd is when a call ended by the window, which says so 3 s before the VoIP side does.
const firstEnd = epoch - 3_000

func (p *play) say(s source) {
	g := p.given[s.call]
	if g == nil {
		g = &given{}
		p.given[s.call] = g
	}
	p.said = append(p.said, s)
	p.input(s.call, s.in)
	dropped := p.call(s.call).Dropped
	if v := s.in.Voip; v != nil {
		g.reported, g.outbound = true, v.Direction == Outbound
		g.recording = g.recording || v.Recording != "" && !dropped
	}
	if n := s.in.Window; n != nil && n.State == WindowSaved {
		g.reported = true
		if p.call(s.call).Voip == nil {
			g.outbound = n.Facts.Direction == Outbound
		}
		g.claims = append(g.claims, n.Entity)
		if n.Result != "" {
			g.results = append(g.results, n.Result)
		}
	}
	g.recording = g.recording || s.in.Recording != "" && !dropped
}

// step lets one of the things happen that can happen now.
func (p *play) step() bool {
	p.t.Helper()
	var can []func()
	if len(p.sources) > 0 {
		for i := range p.sources {
			can = append(can, func() {
				s := p.sources[i]
				p.sources = slices.Delete(slices.Clone(p.sources), i, i+1)
				p.say(s)
			})
		}
	}
	if p.repeats > 0 {
		for i := range p.said {
			can = append(can, func() { p.repeats--; p.say(p.said[i]) })
		}
	}
	for i := range p.messages {
		can = append(can, func() { p.take(i) })
	}
	for _, r := range p.records {
		if len(r.line) > 0 {
			for ending := range endings {
				if ending == arrives || p.faults > 0 {
					can = append(can, func() {
						if ending != arrives {
							p.faults--
						}
						p.deliver(r, ending)
					})
				}
			}
		}
		if len(r.dead) > 0 {
			can = append(can, func() { p.retry(r) })
		}
	}
	if p.times > 0 && slices.ContainsFunc(p.records, func(r *record) bool { return len(r.timers) > 0 }) {
		can = append(can, func() { p.times--; p.fire(1 << 62) })
	}
	if p.away > 0 && !p.givesUp {
		can = append(can, func() { p.away, p.givesUp = p.away-1, true })
	}
	if p.people > 0 {
		for _, webhook := range []bool{true, false} {
			if p.crm.contacts[digits] == 0 {
				can = append(can, func() { p.people--; p.appear(digits, webhook) })
			}
			for _, l := range p.crm.leads {
				if l.open {
					can = append(can, func() { p.people--; p.close(l, true, webhook) })
				}
			}
		}
		for _, l := range p.crm.leads {
			if l.open {
				can = append(can, func() { p.people--; p.close(l, false, false) })
			}
		}
	}
	if len(can) == 0 {
		return false
	}
	can[p.pick(len(can))]()
	return true
}

// finish lets everything that is still to happen happen, well, and checks what came of it.
func (p *play) finish() {
	p.t.Helper()
	for len(p.sources) > 0 {
		s := p.sources[0]
		p.sources = p.sources[1:]
		p.say(s)
	}
	for range 3 {
		for _, r := range p.records {
			for len(r.dead) > 0 {
				p.retry(r)
			}
		}
		p.pass(100 * 3600_000)
	}
	for id, g := range p.given {
		p.checkCall(id, g)
	}
	for _, r := range p.records {
		if len(r.timers)+len(r.line)+len(r.dead) > 0 {
			p.t.Errorf("%s is not at rest: %v %v", r.key, r.timers, r.line)
		}
		if r.number != nil && (r.number.Phase != Idle || slices.ContainsFunc(r.number.Waiting, func(u Unknown) bool { return !u.Waits })) {
			p.t.Errorf("%s: %+v", r.key, r.number)
		}
	}
}

// checkCall: one call on one entity or in one incoming lead, with what was given; or visibly none, where there was no
// place for it.
func (p *play) checkCall(id string, g *given) {
	p.t.Helper()
	c, e := p.call(id), p.crm.event(id)
	switch {
	case !g.reported:
		if e != nil || c.Phase != Collecting {
			p.t.Errorf("%s: nobody reported it, but it is in Kommo: %+v", id, c)
		}
		return
	case p.record(CallKey(account, id)).undecided: // recorded as such; its number must not mind
		return
	case e == nil:
		joinable := p.crm.notesOnLeads && p.cfg.Unconfirmed.JoinLead == JoinByNote
		if c.Phase != NoEntity || p.appearedMS != 0 && p.appearedMS < firstEnd+p.cfg.ParkFor.Milliseconds() || !g.outbound && !p.crm.unsortedOff && joinable && !p.declined() ||
			slices.Contains(g.claims, Entity{"lead", 777}) {
			p.t.Errorf("%s is lost: %+v", id, c)
		}
		if !c.Dropped {
			p.t.Errorf("%s: its recording can still be heard", id)
		}
		return
	}
	if c.Phase != Written || c.Entity != e.entity {
		p.t.Errorf("%s is on %v, but the record says %+v", id, e.entity, c)
	}
	if e.lead != nil && (e.lead.gone || e.lead.open && p.crm.lateEvents) {
		return // cannot be changed any more, or not before somebody accepts it
	}
	if len(g.results) > 0 && !slices.Contains(g.results, e.result) || e.result != c.resultText() {
		p.t.Errorf("%s: result %q, want %q, one of %q", id, e.result, c.resultText(), g.results)
	}
	if c.WrittenRev != c.Rev {
		p.t.Errorf("%s: Kommo has revision %d of %d", id, c.WrittenRev, c.Rev)
	}
	if (e.link != "") != (g.recording && !c.Dropped) {
		p.t.Errorf("%s: link %q, recording given: %t; %+v", id, e.link, g.recording, c)
	}
	if c.Voip != nil && e.length != c.Voip.Duration {
		p.t.Errorf("%s: duration %d, want %d", id, e.length, c.Voip.Duration)
	}
}

func (p *play) declined() bool {
	return slices.ContainsFunc(p.crm.leads, func(l *crmLead) bool { return l.gone })
}

func voip(direction Direction, recording string) Input {
	return Input{Voip: &Voip{Recording: recording, Facts: Facts{
		Direction: direction, Phone: "+1 305 555-0142", Duration: 73, Status: StatusAnswered, StartedMS: epoch - 73_000, User: 8800123, DID: "+13055550100"}}}
}

func window(state WindowState, direction Direction, entity Entity, result string) Input {
	return Input{Window: &Window{State: state, Entity: entity, Result: result, Facts: Facts{
		Direction: direction, Phone: "3055550142", Duration: 70, Status: StatusAnswered, StartedMS: epoch - 73_000, User: 8800123}}}
}

var chosen, missing = Entity{"lead", 777}, Entity{"contact", 666}

// TestEveryOrder goes through every order in which the sources of a call, its timers, deliveries with one fault of each
// kind, messages and a contact can come.
func TestEveryOrder(t *testing.T) {
	var (
		report    = source{"a", voip(Inbound, "")}
		outgoing  = source{"a", voip(Outbound, "rec")}
		opened    = source{"a", window(WindowOpened, Inbound, Entity{}, "")}
		saved     = source{"a", window(WindowSaved, Inbound, chosen, "will buy")}
		result    = source{"a", window(WindowSaved, Inbound, Entity{}, "will buy")}
		nowhere   = source{"a", window(WindowSaved, Inbound, missing, "will buy")}
		cancelled = source{"a", window(WindowCancelled, Inbound, Entity{}, "no")}
		recording = source{"a", Input{Recording: "rec"}}
		second    = source{"b", voip(Inbound, "rec")}
	)
	tests := []struct {
		name                           string
		sources                        []source
		known, off                     bool
		faults, repeats, times, people int
	}{
		{"three sources, known", []source{report, saved, recording}, true, false, 1, 0, 1, 0},
		{"three sources, unknown", []source{report, saved, recording}, false, false, 0, 0, 1, 0},
		{"a claim, unknown", []source{report, saved}, false, false, 1, 0, 1, 0},
		{"result, unknown", []source{report, result}, false, false, 1, 0, 1, 0},
		{"a missing entity", []source{report, nowhere}, false, false, 1, 0, 1, 0},
		{"opened and cancelled", []source{report, opened, cancelled}, true, false, 1, 0, 1, 0},
		{"repeats", []source{report, saved}, true, false, 0, 2, 1, 0},
		{"outgoing, unknown", []source{outgoing}, false, false, 1, 0, 2, 1},
		{"two calls, unknown", []source{report, second}, false, false, 1, 0, 1, 0},
		{"two calls, a contact appears", []source{report, second}, false, false, 0, 0, 1, 1},
		{"in and out, incoming leads off", []source{outgoing, second}, false, true, 0, 0, 1, 1},
	}
	for _, test := range tests {
		runs := 0
		for script := []int{}; script != nil; runs++ {
			p := &play{world: newWorld(t), sources: slices.Clone(test.sources), given: map[string]*given{},
				faults: test.faults, repeats: test.repeats, times: test.times, people: test.people}
			p.crm.unsortedOff = test.off
			if test.known {
				p.appear(digits, false)
			}
			var widths []int
			p.pick = func(n int) int {
				if len(widths) == len(script) {
					script = append(script, 0)
				}
				widths = append(widths, n)
				return script[len(widths)-1]
			}
			for p.step() {
			}
			p.finish()
			if t.Failed() {
				t.Fatalf("%s: script %v", test.name, script)
			}
			script = following(script, widths)
		}
		t.Logf("%s: %d orders", test.name, runs)
	}
}

// following is the next script of choices after one that was played, or nil.
func following(script, widths []int) []int {
	for i := len(widths) - 1; i >= 0; i-- {
		if script[i]+1 < widths[i] {
			script[i]++
			return script[:i+1]
		}
	}
	return nil
}

// TestModel lets calls of one number come in every way, with everything that can go wrong, against a model of Kommo.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := &play{world: newWorld(t), given: map[string]*given{}, faults: rapid.IntRange(0, 5).Draw(t, "faults"),
			repeats: rapid.IntRange(0, 3).Draw(t, "repeats"), times: rapid.IntRange(0, 12).Draw(t, "times"), people: rapid.IntRange(0, 3).Draw(t, "people"),
			away: rapid.SampledFrom([]int{0, 0, 1, 2}).Draw(t, "away"),
			pick: func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "next") }}
		p.crm.unsortedOff = rapid.IntRange(0, 4).Draw(t, "off") == 0
		p.crm.notesOnLeads = rapid.IntRange(0, 3).Draw(t, "notesOnLeads") > 0
		p.crm.lateEvents = rapid.IntRange(0, 3).Draw(t, "lateEvents") == 0
		p.cfg.Unconfirmed.JoinLead = rapid.SampledFrom([]string{JoinByNote, JoinByNote, JoinByWaiting}).Draw(t, "join")
		p.cfg.Unconfirmed.JoinOnto = rapid.SampledFrom([]string{"lead", "contact"}).Draw(t, "onto")
		if rapid.IntRange(0, 2).Draw(t, "known") == 0 {
			p.appear(digits, false)
		}
		for i := range rapid.IntRange(1, 4).Draw(t, "calls") {
			id := fmt.Sprint("call", i)
			direction := rapid.SampledFrom([]Direction{Inbound, Inbound, Outbound}).Draw(t, "direction")
			kinds := []Input{
				voip(direction, rapid.SampledFrom([]string{"", "rec"}).Draw(t, "recorded")),
				window(WindowOpened, direction, Entity{}, ""),
				window(WindowSaved, direction, rapid.SampledFrom([]Entity{{}, chosen, missing}).Draw(t, "entity"), rapid.SampledFrom([]string{"", "will buy"}).Draw(t, "result")),
				window(WindowCancelled, direction, Entity{}, "no"),
				{Recording: "rec"},
			}
			if direction == Outbound {
				kinds = append(kinds, attempt(StatusBusy))
			}
			for _, in := range kinds {
				if rapid.Bool().Draw(t, "said") {
					p.sources = append(p.sources, source{id, in})
				}
			}
		}
		for range rapid.IntRange(0, 80).Draw(t, "steps") {
			if !p.step() {
				break
			}
		}
		p.finish()
	})
}
