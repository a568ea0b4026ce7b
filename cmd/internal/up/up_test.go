package up

import (
	"slices"
	"strings"
	"testing"
	"time"

	"callrelay/platform/config"
)

func TestSettingsImpliedBySim(t *testing.T) {
	o := Options{DataDir: "/data", SimAddr: "127.0.0.1:8090", Environment: map[string]string{"TEST_API_KEY": "", "OTHER": "x"}}
	env := settings(o)
	for name, want := range map[string]string{
		"INDEX_ENV": "TEST", "TEST_BASE_URL": "http://127.0.0.1:8090", "TEST_API_KEY": simAPIKey, "ENABLE_REAL_SEND": "true",
		"KOMMO_BASE_URL": "http://127.0.0.1:8090/kommo", "KOMMO_CALLS_SECRETS": "9001=whsec_" + simSecret,
		"OTHER": "x", "DATA_DIR": "/data",
	} {
		if env[name] != want {
			t.Errorf("%s=%q, want %q", name, env[name], want)
		}
	}
	if o.Environment["INDEX_ENV"] != "" {
		t.Error("the caller's environment was changed")
	}
}

func TestEnvironmentWinsOverSim(t *testing.T) {
	env := settings(Options{SimAddr: "127.0.0.1:8090", Environment: map[string]string{
		"ENABLE_REAL_SEND": "false", "TEST_BASE_URL": "http://crm.test", "TEST_API_KEY_FILE": "/run/secrets/key", "SECRETS_KEY_FILE": "/run/secrets/own",
	}})
	if env["SECRETS_KEY"] != "" || env["KOMMO_BASE_URL"] != "" || env["KOMMO_CALLS_SECRETS"] != "" {
		t.Errorf("accounts of their own would be sent to the simulator: %v", env)
	}
	if env["ENABLE_REAL_SEND"] != "false" || env["TEST_BASE_URL"] != "http://crm.test" || env["TEST_API_KEY"] != "" {
		t.Errorf("got %v", env)
	}
}

func TestWithoutSimNothingIsImplied(t *testing.T) {
	if env := settings(Options{DataDir: "/d", Environment: map[string]string{}}); len(env) != 1 {
		t.Errorf("got %v", env)
	}
}

func TestLoadReportsEachProblemOfAllServicesOnce(t *testing.T) {
	_, err := load(map[string]string{"REDIS_URL": "redis://h", "TIMEZONE": "Moon/Base", "INDEX_ENV": "STAGE", "ACK_BUDGET": "soon"})
	if err == nil {
		t.Fatal("no error")
	}
	for _, name := range []string{"TIMEZONE", "INDEX_ENV", "ACK_BUDGET"} {
		if n := strings.Count(err.Error(), "  "+name); n != 1 {
			t.Errorf("%s is named %d times:\n%v", name, n, err)
		}
	}
}

func TestBanner(t *testing.T) {
	o := Options{DataDir: "/data", SimAddr: "127.0.0.1:8090", Program: "bin/callrelay"}
	env := settings(Options{SimAddr: o.SimAddr, Environment: map[string]string{"REDIS_URL": "redis://h"}})
	c, err := load(env)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1772758800, 0)
	late := o
	late.late = &[]string{"state", "router"}
	if got := banner(late, c, "0.0.0.0:8080", now); strings.Contains(got, "is ready") || !strings.Contains(got, "but state, router did not get ready") {
		t.Errorf("with two that are late: %s", got)
	}
	got := banner(o, c, "0.0.0.0:8080", now)
	for _, want := range []string{
		"callrelay is ready: one process, data in /data\n",
		`curl "http://127.0.0.1:8080/index.php?unique_id=1772758800&customerId=`,
		"bin/callrelay call 1772758800\n",
		"curl http://127.0.0.1:8090/sim/held\n",
		"echo simulated | bin/callrelay integrations connect acme.kommo.com\n",
		"curl http://127.0.0.1:8090/kommo/sim/view\n",
		"Deliveries go to http://127.0.0.1:8090 (TEST).",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("misses %q:\n%s", want, got)
		}
	}

	elsewhere := c
	elsewhere.upstream.Environment, elsewhere.upstream.ProdBaseURL = "PROD", "https://crm.example"
	if got := banner(o, elsewhere, "127.0.0.1:8080", now); !strings.Contains(got, "ATTENTION: the environment sends deliveries to https://crm.example (PROD), NOT to the simulator") {
		t.Error(got)
	}

	off := c
	off.upstream.RealSend = false
	if got := banner(Options{Split: true, Program: "callrelay"}, off, "127.0.0.1:8080", now); !strings.Contains(got, "SENDING IS DISABLED") ||
		!strings.Contains(got, "four processes") || strings.Contains(got, "/sim/held") {
		t.Error(got)
	}

	secret := c
	secret.ingress.PathSecret = config.Secret("0123456789abcdef")
	if got := banner(o, secret, "127.0.0.1:8080", now); strings.Contains(got, "0123456789abcdef") || !strings.Contains(got, `curl "http://127.0.0.1:8080/$AMEYO_PATH_SECRET/index.php?`) {
		t.Error(got)
	}
}

func TestBudgetLeavesTimeForTheRest(t *testing.T) {
	b := &budget{parts: 3}
	if first := b.next(); first > stopTime-2*partTime || first < stopTime-2*partTime-100*time.Millisecond {
		t.Errorf("the first gets %v", first)
	}
	b.end = time.Now() // it took all the time there is
	if next := b.next(); next != partTime {
		t.Errorf("the second gets %v", next)
	}
}

func TestEachServiceHasItsMetricsAddr(t *testing.T) {
	for _, c := range []struct{ name, given, want string }{
		{"ingress", "127.0.0.1:7000", "METRICS_ADDR=127.0.0.1:7000"}, {"router", "127.0.0.1:7000", "METRICS_ADDR=127.0.0.1:7001"},
		{"upstream", ":7000", "METRICS_ADDR=:7003"}, {"state", "127.0.0.1:0", "METRICS_ADDR=127.0.0.1:0"}, {"state", "", "METRICS_ADDR="},
	} {
		if got := environ(map[string]string{"METRICS_ADDR": c.given, "A": "1"}, c.name); !slices.Equal(got, []string{"A=1", c.want}) {
			t.Errorf("%s: %v, want %s", c.name, got, c.want)
		}
	}
}
