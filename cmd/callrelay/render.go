package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
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

// words joins what is not empty with spaces, list with commas.
func words(parts ...string) string { return join(" ", parts) }
func list(parts ...string) string  { return join(", ", parts) }

func join(separator string, parts []string) string {
	var given []string
	for _, p := range parts {
		if p = strings.TrimSpace(p); p != "" {
			given = append(given, printable(p))
		}
	}
	return strings.Join(given, separator)
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

func stateName(s statev1.DeliveryState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "DELIVERY_STATE_"))
}

func stateInWords(d *statev1.Delivery) string {
	if d.GetUncertain() {
		return stateName(d.GetState()) + " (uncertain)"
	}
	return stateName(d.GetState())
}
