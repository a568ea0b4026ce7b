package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
)

// table begins a table for people.
func table(out io.Writer, heads ...any) *tabwriter.Writer {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row(w, heads...)
	return w
}

func row(w io.Writer, cells ...any) {
	text := make([]string, len(cells))
	for i, c := range cells {
		text[i] = printable(fmt.Sprint(c))
	}
	fmt.Fprintln(w, strings.Join(text, "\t"))
}

// printable replaces what would move the cursor: text from outside must not play with a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return '.'
		}
		return r
	}, s)
}

// words joins what is not empty with spaces.
func words(parts ...string) string {
	var given []string
	for _, p := range parts {
		if p = strings.TrimSpace(p); p != "" {
			given = append(given, printable(p))
		}
	}
	return strings.Join(given, " ")
}

// about introduces a value, and is nothing without one.
func about(intro, value string) string {
	if value == "" {
		return ""
	}
	return intro + printable(value)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func milliseconds(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }

func moment(ms int64, zone *time.Location) string {
	if ms == 0 {
		return "-"
	}
	return time.UnixMilli(ms).In(zone).Format("2006-01-02 15:04:05")
}

func stateInWords(d *operatorv1.Delivery) string {
	if d.GetFacts().GetUncertain() {
		return d.GetState() + " (uncertain)"
	}
	return d.GetState()
}
