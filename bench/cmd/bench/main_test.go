package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"callrelay/bench/internal/report"
)

// The relays that are compared are this program, here the test.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestCompare(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "report.json")
	var out strings.Builder
	err := compare(t.Context(), []string{"-only", "bare|memory|asynq|floor/everysec", "-rounds", "1", "-warmup", "50ms", "-duration", "1s", "-singles", "3",
		"-dir", dir, "-json", file}, &out)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r report.Report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Rows) != 4 || !strings.Contains(out.String(), "| asynq/everysec |") {
		t.Fatalf("%s", out.String())
	}
	for _, row := range r.Rows {
		f := row.Median
		if f["sustained.acks_per_s"] <= 0 || f["open.rate"] <= 0 || f["idle.ack_p50_ms"] <= 0 || f["accepted"] <= 0 || f["refused"] != 0 || f["doubled"] != 0 || f["rss_mb.relay"] <= 0 {
			t.Errorf("%s: %v", row.Name, f)
		}
		if delivers := row.Name != "bare"; delivers && (f["sustained.delivered_per_s"] <= 0 || f["open.delivery_p50_ms"] < f["open.ack_p50_ms"]/10) {
			t.Errorf("%s: %v", row.Name, f)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "callrelay-bench-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestList(t *testing.T) {
	var out strings.Builder
	if err := compare(t.Context(), []string{"-list", "-only", "asynq"}, &out); err != nil || out.String() != "asynq/everysec\n" {
		t.Errorf("%q %v", out.String(), err)
	}
	if err := compare(t.Context(), []string{"-only", "("}, &out); err == nil {
		t.Error("a wrong expression and no error")
	}
}
