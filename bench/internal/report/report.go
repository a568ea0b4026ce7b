// Package report makes of the figures of several rounds one answer: medians, ratios, tables, JSON. It does not know how a
// figure was measured; the names that it shows in its tables are those that package contest writes.
package report

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// Figures are what was measured, by name.
type Figures map[string]float64

// Run is one contender in one round.
type Run struct {
	Name    string
	Figures Figures
}

// Row is one contender over all rounds.
type Row struct {
	Name   string    `json:"name"`
	Median Figures   `json:"median"` // of each figure on its own
	Rounds []Figures `json:"rounds"`
}

// Ratio of two contenders' sustained rates, as the quotient of their medians.
type Ratio struct {
	Name   string  `json:"name"`
	Over   string  `json:"over"`
	Ratio  float64 `json:"ratio"`
	Wanted float64 `json:"wanted"` // at least
}

// Report is the whole comparison.
type Report struct {
	Machine  map[string]string `json:"machine"`
	Settings map[string]string `json:"settings"`
	Rows     []Row             `json:"rows"`
	Ratios   []Ratio           `json:"ratios"`
}

// wanted are the ratios that callrelay promises (issue 4, point 2).
var wanted = []Ratio{
	{Name: "callrelay/one/everysec/off", Over: "asynq/everysec", Wanted: 1.8},
	{Name: "callrelay/one/always/off", Over: "asynq/everysec", Wanted: 1.3},
	{Name: "callrelay/one/everysec/off", Over: "memory", Wanted: 0.6},
	{Name: "callrelay/four/everysec/off", Over: "callrelay/one/everysec/off", Wanted: 0.75},
	{Name: "callrelay/four/always/off", Over: "callrelay/one/always/off", Wanted: 0.75},
	{Name: "callrelay/one/everysec/full", Over: "callrelay/one/everysec/off", Wanted: 0.75},
	{Name: "callrelay/one/always/full", Over: "callrelay/one/always/off", Wanted: 0.75},
}

// New sums runs up, in the order in which their names first come.
func New(runs []Run) *Report {
	r := &Report{}
	index := map[string]int{}
	for _, run := range runs {
		i, ok := index[run.Name]
		if !ok {
			i = len(r.Rows)
			index[run.Name] = i
			r.Rows = append(r.Rows, Row{Name: run.Name})
		}
		r.Rows[i].Rounds = append(r.Rows[i].Rounds, run.Figures)
	}
	for i := range r.Rows {
		r.Rows[i].Median = medians(r.Rows[i].Rounds)
	}
	for _, w := range wanted {
		one, other := r.sustained(w.Name), r.sustained(w.Over)
		if one > 0 && other > 0 {
			w.Ratio = one / other
			r.Ratios = append(r.Ratios, w)
		}
	}
	return r
}

const sustained = "sustained.delivered_per_s"

func (r *Report) sustained(name string) float64 {
	i := slices.IndexFunc(r.Rows, func(row Row) bool { return row.Name == name })
	if i < 0 {
		return 0
	}
	return r.Rows[i].Median[sustained]
}

func medians(rounds []Figures) Figures {
	values := map[string][]float64{}
	for _, f := range rounds {
		for name, v := range f {
			values[name] = append(values[name], v)
		}
	}
	out := Figures{}
	for name, list := range values {
		out[name] = Median(list)
	}
	return out
}

// Median of values, the mean of the middle two where their number is even. It sorts them.
func Median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	if n == 0 {
		return 0
	}
	return (values[(n-1)/2] + values[n/2]) / 2
}

// Write writes the tables as Markdown that can also be read as it is.
func (r *Report) Write(out io.Writer) error {
	var b strings.Builder
	for _, of := range []map[string]string{r.Machine, r.Settings} {
		for _, name := range slices.Sorted(maps.Keys(of)) {
			fmt.Fprintf(&b, "%s %s; ", name, of[name])
		}
	}
	fmt.Fprintln(&b)
	r.table(&b, "Sustained, backlog bounded (closed loop; latencies in ms)", sustainedColumns(r))
	r.table(&b, "Open loop (latencies in ms from the moment the callback was due)", []column{
		{"callbacks/s", one("open.rate", 0)},
		{"ack p50 / p99 / max", latency("open.ack")},
		{"delivery p50 / p99 / max", latency("open.delivery")},
		{"generator late p99", one("open.late_p99_ms", 2)},
	})
	r.table(&b, "At rest, one callback at a time (ms)", []column{
		{"ack p50 / p99 / max", latency("idle.ack")},
		{"delivery p50 / p99 / max", latency("idle.delivery")},
		{"a script call p50", one("idle.script_p50_ms", 3)},
		{"ack in script calls", one("idle.ack_scripts", 2)},
		{"start to ready", one("ready_ms", 0)},
	})
	r.table(&b, "Deliveries held, then released", []column{
		{"acks/s", one("held.acks_per_s", 0)},
		{"ack p50 / p99 / max", latency("held.ack")},
		{"drained/s", one("held.drained_per_s", 0)},
	})
	r.table(&b, "A CRM that takes 200 ms, open loop", []column{
		{"acks/s", one("slow.acks_per_s", 0)},
		{"ack p50 / p99 / max", latency("slow.ack")},
		{"delivered/s under load", one("slow.delivered_per_s", 0)},
		{"drained/s after it", one("slow.drained_per_s", 0)},
	})
	r.table(&b, "Processor time per callback, sustained (us; bench is dialer and CRM)", r.perProcess("cpu_us.", 0))
	r.table(&b, "Memory at the end of the sustained load (MB)", r.perProcess("rss_mb.", 0))
	r.table(&b, "Long constant load: MB and goroutines after a tenth of it and at its end", slices.Concat(
		[]column{{"minutes", one("soak.minutes", 0)}, {"acks/s", one("soak.acks_per_s", 0)}},
		r.grown("MB", "soak_first_mb.", "soak_last_mb."), r.grown("goroutines", "soak_first_goroutines.", "soak_last_goroutines.")))
	r.table(&b, "Of all callbacks of a round", []column{
		{"accepted", one("accepted", 0)},
		{"refused", one("refused", 0)},
		{"delivered twice", one("doubled", 0)},
		{"Redis bytes per call", one("redis_bytes_per_call", 0)},
		{"spans per callback", one("spans_per_callback", 1)},
	})
	rows := [][]string{{"sustained rate of", "over", "ratio", "wanted"}}
	for _, q := range r.Ratios {
		rows = append(rows, []string{q.Name, q.Over, fmt.Sprintf("%.2f", q.Ratio), fmt.Sprintf("%.2f", q.Wanted)})
	}
	if len(r.Ratios) > 0 {
		writeTable(&b, "Ratios of medians", rows)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func sustainedColumns(r *Report) []column {
	over := func(name string) func(Row) string {
		return func(row Row) string {
			if other := r.sustained(name); other > 0 && row.Median[sustained] > 0 {
				return fmt.Sprintf("%.2f", row.Median[sustained]/other)
			}
			return ""
		}
	}
	return []column{
		{"acks/s", one("sustained.acks_per_s", 0)},
		{"delivered/s", one(sustained, 0)},
		{"lowest-highest", spread(sustained)},
		{"x asynq", over("asynq/everysec")},
		{"x memory", over("memory")},
		{"ack p50 / p99 / max", latency("sustained.ack")},
		{"delivery p50 / p99 / max", latency("sustained.delivery")},
	}
}

// column of a table; an empty text means that there is no such figure.
type column struct {
	title string
	text  func(Row) string
}

func one(name string, digits int) func(Row) string {
	return func(row Row) string {
		v, ok := row.Median[name]
		if !ok {
			return ""
		}
		return fmt.Sprintf("%.*f", digits, v)
	}
}

func latency(name string) func(Row) string {
	return func(row Row) string {
		if _, ok := row.Median[name+"_p50_ms"]; !ok {
			return ""
		}
		return fmt.Sprintf("%.2f / %.1f / %.1f", row.Median[name+"_p50_ms"], row.Median[name+"_p99_ms"], row.Median[name+"_max_ms"])
	}
}

func spread(name string) func(Row) string {
	return func(row Row) string {
		var values []float64
		for _, f := range row.Rounds {
			if v, ok := f[name]; ok {
				values = append(values, v)
			}
		}
		if len(values) < 2 {
			return ""
		}
		return fmt.Sprintf("%.0f-%.0f", slices.Min(values), slices.Max(values))
	}
}

// perProcess has one column for each process that any row names.
func (r *Report) perProcess(prefix string, digits int) (columns []column) {
	names := map[string]bool{}
	for _, row := range r.Rows {
		for name := range row.Median {
			if process, ok := strings.CutPrefix(name, prefix); ok {
				names[process] = true
			}
		}
	}
	for _, process := range slices.Sorted(maps.Keys(names)) {
		columns = append(columns, column{process, one(prefix+process, digits)})
	}
	return columns
}

// grown has one column for each process that any row names: a figure at first and at last.
func (r *Report) grown(what, first, last string) (columns []column) {
	before, after := r.perProcess(first, 0), r.perProcess(last, 0)
	for i, c := range before {
		columns = append(columns, column{c.title + " " + what, func(row Row) string {
			if c.text(row) == "" {
				return ""
			}
			return c.text(row) + " to " + after[i].text(row)
		}})
	}
	return columns
}

// table writes the rows that have any of the figures, and nothing where none has.
func (r *Report) table(b *strings.Builder, title string, columns []column) {
	head := []string{"relay"}
	for _, c := range columns {
		head = append(head, c.title)
	}
	rows := [][]string{head}
	for _, row := range r.Rows {
		cells, any := []string{row.Name}, false
		for _, c := range columns {
			text := c.text(row)
			any = any || text != ""
			cells = append(cells, text)
		}
		if any {
			rows = append(rows, cells)
		}
	}
	if len(rows) > 1 {
		writeTable(b, title, rows)
	}
}

func writeTable(b *strings.Builder, title string, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len(cell))
		}
	}
	fmt.Fprintf(b, "\n### %s\n\n", title)
	for n, row := range rows {
		for i, cell := range row {
			format := "| %*s "
			if i == 0 {
				format = "| %-*s "
			}
			fmt.Fprintf(b, format, width[i], cell)
		}
		b.WriteString("|\n")
		if n == 0 {
			for i := range row {
				line := strings.Repeat("-", width[i]+2)
				if i > 0 {
					line = line[1:] + ":"
				}
				b.WriteString("|" + line)
			}
			b.WriteString("|\n")
		}
	}
}
