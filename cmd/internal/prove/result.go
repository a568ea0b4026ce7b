package prove

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Result is what the proof found. Its JSON is for programs; durations are milliseconds.
type Result struct {
	Seed     uint64  `json:"seed"`
	Seconds  float64 `json:"seconds"`
	Rate     float64 `json:"rate"`
	Replicas int     `json:"replicas"`
	Passed   bool    `json:"passed"`

	Faults []Row `json:"faults"` // one for each kind of fault, and one for the time before the first
	Total  Row   `json:"total"`

	Calls      int   `json:"calls"`
	Answers    int   `json:"answers"`    // acknowledgements, repeats included
	Unanswered int   `json:"unanswered"` // callbacks that were never acknowledged although the relay had the time
	AckP50     int64 `json:"ackP50Ms"`   // from the first sending until the 200, retries included
	AckP99     int64 `json:"ackP99Ms"`
	DelivP50   int64 `json:"deliveryP50Ms"` // from the first sending until TopS.II has it
	DelivP99   int64 `json:"deliveryP99Ms"`

	MaxInFlight   int64          `json:"maxInFlight"` // requests at TopS.II at once
	InFlightLimit int64          `json:"inFlightLimit"`
	LogLines      map[string]int `json:"logLines"` // of each process

	Problems []string `json:"problems,omitempty"` // the first ones, in words
	Dir      string   `json:"dir,omitempty"`      // kept when the proof failed

	problemCalls []string
}

// Row is what belongs to one kind of fault: the callbacks that were first sent from its beginning until the next fault.
type Row struct {
	Fault     string `json:"fault"`
	Times     int    `json:"times"`
	Accepted  int    `json:"accepted"`  // callbacks that were acknowledged
	Delivered int    `json:"delivered"` // deliveries that TopS.II has
	Combined  int    `json:"combined"`  // callbacks that ask for no delivery: phone 1 kept for phone 2, or a repeat by its key
	Lost      int    `json:"lost"`
	Doubled   int    `json:"doubled"`
	Uncertain int    `json:"uncertain"` // repeats of a delivery of which an attempt was marked as one that may have arrived
	// The longest silence after the end of a fault of the kind.
	AckRecovery      int64 `json:"ackRecoveryMs"`
	DeliveryRecovery int64 `json:"deliveryRecoveryMs"`
}

// maxProblems bounds what is told in words.
const maxProblems = 20

// Holds says whether nothing was lost, doubled or out of order.
func (r *Result) Holds() bool { return r != nil && r.Passed }

func newResult(o Options, c *cluster, l *load, windows []window, verdicts []verdict, effects []time.Time, miscounted []string) *Result {
	stats := c.topsii.Stats()
	r := &Result{Seed: o.Seed, Seconds: o.For.Seconds(), Rate: o.Rate, Replicas: o.Replicas, Calls: len(l.calls), Answers: len(l.acks),
		MaxInFlight: stats.MaxInFlight, InFlightLimit: concurrency, LogLines: map[string]int{}, Problems: append(c.strays(), miscounted...)}
	slices.SortFunc(l.acks, time.Time.Compare)
	faults := newFaultRows(windows, l.acks, effects)
	var waits []time.Duration
	for i, v := range verdicts {
		waits = append(waits, faults.count(l.calls[i], v)...)
		r.Unanswered += v.unanswered
		if len(v.problems) > 0 {
			r.problemCalls = append(r.problemCalls, l.calls[i].key)
			r.Problems = append(r.Problems, fmt.Sprintf("call %s: %s", l.calls[i].key, strings.Join(v.problems, "; ")))
		}
	}
	r.Faults = faults.all()
	r.Total.Fault = "all"
	for _, row := range r.Faults {
		r.Total.add(row)
	}
	r.Total.Times--
	r.AckP50, r.AckP99 = percentile(l.waits, 50), percentile(l.waits, 99)
	r.DelivP50, r.DelivP99 = percentile(waits, 50), percentile(waits, 99)
	for _, s := range services {
		for _, p := range c.processes[s] {
			text, _ := os.ReadFile(p.logPath)
			r.LogLines[p.name] = bytes.Count(text, []byte("\n"))
		}
	}
	if r.Unanswered > 0 {
		r.Problems = append(r.Problems, fmt.Sprintf("%d callbacks were never acknowledged, up to %v after the last fault", r.Unanswered, drainLimit))
	}
	if r.Total.Accepted == 0 {
		r.Problems = append(r.Problems, "nothing was accepted at all")
	}
	r.Problems = append(r.Problems, atOnce("TopS.II", r.MaxInFlight, r.InFlightLimit)...)
	r.Problems = append(r.Problems, atOnce("the webhook", c.webhook.mostAtOnce(), webhookConcurrency)...)
	r.Passed = len(r.Problems) == 0
	return r
}

// faultRows are a row for each kind of fault, and one for the time before the first.
type faultRows struct {
	windows []window
	before  Row
	kinds   map[string]*Row
}

func newFaultRows(windows []window, acks, effects []time.Time) *faultRows {
	f := &faultRows{windows: windows, before: Row{Fault: "(before the first)", Times: 1}, kinds: map[string]*Row{}}
	for i, w := range windows {
		row := f.kinds[w.fault.kind()]
		if row == nil {
			row = &Row{Fault: w.fault.kind()}
			f.kinds[row.Fault] = row
		}
		next := time.Now()
		if i+1 < len(windows) {
			next = windows[i+1].begin
		}
		row.Times++
		row.AckRecovery = max(row.AckRecovery, silence(acks, w.end, next).Milliseconds())
		row.DeliveryRecovery = max(row.DeliveryRecovery, silence(effects, w.end, next).Milliseconds())
	}
	return f
}

// of is the row of what was first sent then.
func (f *faultRows) of(first time.Time) *Row {
	i, _ := slices.BinarySearchFunc(f.windows, first, func(w window, at time.Time) int { return w.begin.Compare(at) })
	if i == 0 {
		return &f.before
	}
	return f.kinds[f.windows[i-1].fault.kind()]
}

// count adds what became of a call, and returns how long its deliveries took.
func (f *faultRows) count(c *call, v verdict) (waits []time.Duration) {
	due := map[*sending]bool{}
	for _, d := range v.deliveries {
		due[d.sending] = true
		row := f.of(d.sending.first)
		if d.at.IsZero() {
			row.Lost++
			continue
		}
		waits = append(waits, d.at.Sub(d.sending.first))
		row.Delivered++
		row.Doubled += d.doubled
		row.Uncertain += d.uncertain
	}
	for _, s := range c.order {
		if len(s.acks) > 0 {
			f.of(s.first).Accepted++
			if !due[s] && !slices.Contains(v.unrecorded, s) {
				f.of(s.first).Combined++
			}
		}
	}
	for _, s := range v.unrecorded {
		f.of(s.first).Lost++
	}
	return waits
}

// all are the rows in the order of kinds, without those of faults that never happened.
func (f *faultRows) all() []Row {
	rows := []Row{f.before}
	for _, kind := range kinds() {
		if row := f.kinds[kind.kind()]; row != nil {
			rows = append(rows, *row)
		}
	}
	return rows
}

func (r *Row) add(other Row) {
	r.Times += other.Times
	r.Accepted += other.Accepted
	r.Delivered += other.Delivered
	r.Combined += other.Combined
	r.Lost += other.Lost
	r.Doubled += other.Doubled
	r.Uncertain += other.Uncertain
	r.AckRecovery = max(r.AckRecovery, other.AckRecovery)
	r.DeliveryRecovery = max(r.DeliveryRecovery, other.DeliveryRecovery)
}

// afterwards is how long after a fault a silence may begin that still belongs to it: what was under way comes first.
const afterwards = 300 * time.Millisecond

// silence is the longest time without any of the moments that lasts, or begins soon, after the end of a fault.
func silence(moments []time.Time, end, next time.Time) (longest time.Duration) {
	i, _ := slices.BinarySearchFunc(moments, end, time.Time.Compare)
	from := end
	for ; i < len(moments) && from.Before(end.Add(afterwards)) && from.Before(next); i++ {
		longest = max(longest, moments[i].Sub(from))
		from = moments[i]
	}
	return longest
}

func percentile(all []time.Duration, p int) int64 {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[(len(all)*p+99)/100-1].Milliseconds()
}

// JSON writes the result for programs.
func (r *Result) JSON(out io.Writer) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// Table writes the result for people.
func (r *Result) Table(out io.Writer, program string) error {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "FAULT\tTIMES\tACCEPTED\tDELIVERED\tNOTHING DUE\tLOST\tDOUBLED\tUNCERTAIN\tACKS BACK IN\tDELIVERIES IN\t")
	for _, row := range append(slices.Clone(r.Faults), r.Total) {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%v\t%v\t\n", row.Fault, row.Times, row.Accepted, row.Delivered, row.Combined, row.Lost,
			row.Doubled, row.Uncertain, ms(row.AckRecovery), ms(row.DeliveryRecovery))
	}
	_ = w.Flush() // a strings.Builder takes everything
	fmt.Fprintf(&b, "\n%d calls, %d acknowledgements with repeats; ack p50 %v, p99 %v; delivery p50 %v, p99 %v; outages included\n",
		r.Calls, r.Answers, ms(r.AckP50), ms(r.AckP99), ms(r.DelivP50), ms(r.DelivP99))
	fmt.Fprintf(&b, "one call in %d is of a cloud PBX, which may wait %v for what its events did not say\n", onePbxIn, pbxGrace)
	fmt.Fprintf(&b, "at most %d requests at TopS.II at once (limit %d, of all upstream processes together)\n", r.MaxInFlight, r.InFlightLimit)
	if r.Total.Uncertain > 0 {
		fmt.Fprintf(&b, "uncertain: it came again because an attempt had no answer and may have arrived (TOPSII_UNCERTAIN=ask asks a person instead)\n")
	}
	if r.Passed {
		fmt.Fprintf(&b, "PASSED: nothing lost, nothing doubled, nothing out of order, the accounting agrees. --seed %d repeats it.\n", r.Seed)
		_, err := io.WriteString(out, b.String())
		return err
	}
	fmt.Fprintf(&b, "FAILED (--seed %d):\n%s\n", r.Seed, lines(r.Problems[:min(len(r.Problems), maxProblems)]))
	if more := len(r.Problems) - maxProblems; more > 0 {
		fmt.Fprintf(&b, "  and %d more\n", more)
	}
	fmt.Fprintf(&b, "\nEverything is kept in %s: logs/ of each process, data/ with its Redis", r.Dir)
	if len(r.problemCalls) > 0 {
		fmt.Fprintf(&b, ", calls/ with the whole story of each such call.\n"+
			"To look at a call with the relay's own eyes:\n  %s up --sim --data-dir %s/data\n  %s call %s", program, r.Dir, program, r.problemCalls[0])
	}
	fmt.Fprintln(&b)
	_, err := io.WriteString(out, b.String())
	return err
}

func lines(all []string) string { return "  " + strings.Join(all, "\n  ") }

func ms(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
