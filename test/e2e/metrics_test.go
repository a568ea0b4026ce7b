package e2e

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

const deploy = "../../deploy"

// expressions are the queries of the shipped dashboard and alert rules, by where they stand.
func expressions(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	read := func(name string, unmarshal func([]byte, any) error, into any) {
		raw, err := os.ReadFile(filepath.Join(deploy, name))
		if err == nil {
			err = unmarshal(raw, into)
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	read("grafana/dashboards/callrelay.json", json.Unmarshal, &dashboard)
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			all[p.Title+": "+target.Expr] = target.Expr
		}
	}
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	read("prometheus/alerts.yml", func(raw []byte, into any) error { return yaml.Unmarshal(raw, into) }, &rules)
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			all[r.Alert] = r.Expr
		}
	}
	if len(all) < 25 {
		t.Fatalf("only %d expressions were found", len(all))
	}
	return all
}

// What the shipped dashboard and alert rules ask for is what a relay serves: metrics, labels and the values of labels, from its
// first minute on, since an alert on something absent is silent.
func TestDashboardAndAlerts(t *testing.T) {
	t.Parallel()
	r := start(t)
	r.accepted(r.end(connectedEnd(1)...))
	r.becomes(r.operator(), 1, 1, "delivered")
	r.run(done, "accounting", "--check") // else the first comparison comes after ten seconds
	addr := r.env[slices.IndexFunc(r.env, func(v string) bool { return strings.HasPrefix(v, "METRICS_ADDR=") })]
	resp, err := r.http.Get("http://" + strings.TrimPrefix(addr, "METRICS_ADDR=") + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	metrics := string(raw)
	served := map[string]bool{}
	for _, word := range regexp.MustCompile(`\w+`).FindAllString(regexp.MustCompile(`(?m)^#.*`).ReplaceAllString(metrics, ""), -1) {
		served[word] = true
	}
	for where, expr := range expressions(t) {
		for _, name := range regexp.MustCompile(`callrelay_\w+`).FindAllString(expr, -1) {
			if !served[name] {
				t.Errorf("%s: there is no %s", where, name)
			}
		}
		for _, label := range regexp.MustCompile(`(callrelay_\w+)!?=("[^"]*")`).FindAllStringSubmatch(expr, -1) {
			if !strings.Contains(metrics, label[1]+"="+label[2]) {
				t.Errorf("%s: no %s is %s", where, label[1], label[2])
			}
		}
	}
}
