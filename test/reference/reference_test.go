// Package reference holds docs/configuration.md and .env.example against the code: both are written from the services'
// Config structs, and the tests fail where the files say anything else. It also holds the services against each other
// where they read the same variable.
//
// It does not own what a variable means (that is in the desc tags) nor whether a value is good (each Config's Validate).
package reference

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"callrelay/platform/config"
	"callrelay/services/ingress"
	"callrelay/services/router"
	"callrelay/services/state"
	"callrelay/services/upstream"
)

var update = flag.Bool("update", false, "rewrite docs/configuration.md and .env.example")

const root = "../.."

// section is a table of the reference.
type section struct {
	title, intro string
	fields       []config.Field
}

var services = []section{
	{"ingress", "Takes callbacks and acknowledges them.", config.Fields[ingress.Config]()},
	{"router", "Decides what a callback means.", config.Fields[router.Config]()},
	{"state", "Keeps calls and deliveries in Redis.", config.Fields[state.Config]()},
	{"upstream", "Sends deliveries to TopS.II.", config.Fields[upstream.Config]()},
}

// up is what `callrelay up` reads beside the settings of the services that it starts.
var up = section{"callrelay up", "Beside these, which cannot be given as `NAME_FILE`, it reads the variables of all four services. `METRICS_ADDR` is then one address for all; with `--split` it is that of " +
	"ingress, and router, state and upstream have the next three ports.\n\n" +
	"`--sim` sets where the environment does not: `INDEX_ENV`, `TEST_BASE_URL`, `TEST_API_KEY` and `ENABLE_REAL_SEND`, so that deliveries go to the " +
	"simulator; `CARDS_SECRET`; without `SECRETS_KEY` also `KOMMO_BASE_URL` and `KOMMO_CALLS_SECRETS`; with the private Redis also `PBX_INTEGRATIONS` and, " +
	"without `SECRETS_KEY`, `KOMMO_CLIENT_ID`, `KOMMO_CLIENT_SECRET` and `KOMMO_REDIRECT_URI`.\n\n" +
	"The commands ask at `STATE_GRPC_ADDR`, but `diagnose`, `resend` and `explain --stored` at `ROUTER_GRPC_ADDR`, `integrations` (except `accounts`) at " +
	"`UPSTREAM_GRPC_ADDR`, `cards` at `INGRESS_GRPC_ADDR`; `send` sends to `INGRESS_HTTP_ADDR`.",
	[]config.Field{
		{Name: "DATA_DIR", Default: "data", Desc: "Where the private Redis and the spool keep their data; --data-dir wins."},
		{Name: "REDIS_APPENDFSYNC", Default: "always", Desc: "When the private Redis syncs to disk: always, before it answers; everysec, faster, " +
			"may lose two seconds of acknowledged callbacks; no, whenever the system does."},
	}}

// traces are read by OpenTelemetry in every process.
var traces = section{"Traces", "The standard variables of OpenTelemetry, read by every process; these are the ones that matter. They cannot be given as `NAME_FILE`. " +
	"`OTEL_EXPORTER_OTLP_TRACES_...` wins over `OTEL_EXPORTER_OTLP_...`. `OTEL_SERVICE_NAME` has no effect: each service sets its own name, " +
	"`callrelay-ingress`, `-router`, `-state` or `-upstream`, also where all run in one process.",
	[]config.Field{
		{Name: "OTEL_EXPORTER_OTLP_ENDPOINT", Desc: "Where spans are sent, e.g. http://127.0.0.1:4317; http means without TLS. Empty: tracing is off."},
		{Name: "OTEL_EXPORTER_OTLP_PROTOCOL", Default: "grpc", Desc: "Only grpc is supported."},
		{Name: "OTEL_EXPORTER_OTLP_HEADERS", Desc: "Sent with every export, as name=value,name=value; for the collector's token."},
		{Name: "OTEL_EXPORTER_OTLP_CERTIFICATE", Desc: "File with the certificates that are trusted for TLS; empty means those of the system."},
		{Name: "OTEL_TRACES_EXPORTER", Default: "otlp", Desc: "none switches tracing off."},
		{Name: "OTEL_SDK_DISABLED", Default: "false", Desc: "true switches tracing off."},
		{Name: "OTEL_TRACES_SAMPLER", Default: "parentbased_always_on", Desc: "Which traces are recorded, e.g. parentbased_traceidratio."},
		{Name: "OTEL_TRACES_SAMPLER_ARG", Desc: "The share for parentbased_traceidratio, e.g. 0.1."},
		{Name: "OTEL_RESOURCE_ATTRIBUTES", Desc: "Added to every span, as name=value,name=value, e.g. deployment.environment.name=test."},
		{Name: "OTEL_BSP_SCHEDULE_DELAY", Default: "5000", Desc: "Milliseconds after which spans are sent at the latest."},
		{Name: "OTEL_BSP_MAX_QUEUE_SIZE", Default: "2048", Desc: "Spans that may wait to be sent; more are dropped."},
	}}

func TestFilesAreWhatTheCodeSays(t *testing.T) {
	for name, want := range map[string]string{"docs/configuration.md": reference(), ".env.example": envExample()} {
		path := filepath.Join(root, name)
		if *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Errorf("%s is not what the code says (%v); rewrite it: make docs (in test/: go test ./reference -update)", name, err)
		}
	}
}

// No service takes another's setting for its own misspelt.
func TestNamesAreFarApart(t *testing.T) {
	environ := map[string]string{}
	for _, s := range append([]section{up, traces}, services...) {
		for _, f := range s.fields {
			environ[f.Name] = "x"
		}
	}
	for _, warnings := range [][]string{config.Misspelt[ingress.Config](environ), config.Misspelt[router.Config](environ),
		config.Misspelt[state.Config](environ), config.Misspelt[upstream.Config](environ)} {
		if len(warnings) > 0 {
			t.Error(warnings)
		}
	}
}

// reference is docs/configuration.md.
func reference() string {
	var b strings.Builder
	b.WriteString(`# Configuration

Written by ` + "`make docs`" + ` from the services' Config structs (services/*/config.go): change it there.

Everything is set by environment variables. An empty variable means its default. Each variable of a service can also be
given as ` + "`NAME_FILE`" + `, the path of a file that holds the value, which is meant for secrets; giving both is an error. A service
reports all problems of its configuration at once and does not start with any; of a name that is nearly one of these it warns. Durations are written like ` + "`500ms` or `24h`" + `,
switches as true, 1, yes, on or false, 0, no, off. ` + "`METRICS_ADDR`" + ` also serves /healthz, /readyz and /debug/pprof/.

[.env.example](../.env.example) has the same variables to copy.
`)
	for _, s := range append(append([]section{up}, services...), traces) {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| name | default | meaning |\n|---|---|---|\n", s.title, s.intro)
		for _, f := range s.fields {
			value, meaning := "", strings.ReplaceAll(f.Desc, "|", `\|`)
			if f.Default != "" {
				value = "`" + f.Default + "`"
			}
			if f.Secret {
				meaning += " Secret."
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.Name, value, meaning)
		}
	}
	return b.String()
}

// envExample is .env.example: every variable once.
func envExample() string {
	var b strings.Builder
	b.WriteString(`# Every setting with its default; see docs/configuration.md. Written by ` + "`make docs`" + `.
#
# Copy it to .env, chmod 600 .env, and take the # from what you change. docker compose reads .env by itself (for the
# variables that its file names); for everything else:  set -a; . ./.env; set +a; make run
# A value with blanks, ; & # $ or quotes belongs between single quotes:  ROUTES='ameyo=kommo/9001;pbx/acme=kommo/9001'
`)
	shared := section{title: "several services"}
	groups := []section{up}
	for _, s := range services {
		group := section{title: s.title}
		for _, f := range s.fields {
			switch readers := readersOf(f.Name); {
			case len(readers) == 1:
				group.fields = append(group.fields, f)
			case readers[0] == s.title: // the others read the same
				f.Desc = fmt.Sprintf("%s (%s)", f.Desc, strings.Join(readers, ", "))
				if f.Name == "METRICS_ADDR" {
					f.Desc += " Default of ingress; the others have the next three ports."
				}
				shared.fields = append(shared.fields, f)
			}
		}
		groups = append(groups, group)
	}
	groups = append(groups, shared, traces)
	for _, g := range groups {
		fmt.Fprintf(&b, "\n# ---- %s ----\n", g.title)
		for _, f := range g.fields {
			fmt.Fprintf(&b, "\n# %s\n#%s=%s\n", f.Desc, f.Name, f.Default)
		}
	}
	return b.String()
}

// readersOf names the services that read a variable.
func readersOf(name string) (titles []string) {
	for _, s := range services {
		for _, f := range s.fields {
			if f.Name == name {
				titles = append(titles, s.title)
			}
		}
	}
	return titles
}

func TestServicesAgree(t *testing.T) {
	first := map[string]config.Field{}
	for _, s := range services {
		for _, f := range s.fields {
			if f.Desc == "" || !strings.HasSuffix(f.Desc, ".") {
				t.Errorf("%s: the meaning of %s is %q, not a sentence", s.title, f.Name, f.Desc)
			}
			before, known := first[f.Name]
			if !known {
				first[f.Name] = f
				continue
			}
			if f.Name == "METRICS_ADDR" { // an address of its own for each
				f.Default = before.Default
			}
			if f.Name == "LEASE_TIME" { // kept by state, and reckoned with by upstream
				f.Desc = before.Desc
			}
			if f != before {
				t.Errorf("%s reads %+v, another service reads %+v", s.title, f, before)
			}
		}
	}
	for _, name := range []string{"TIMEZONE", "LEASE_TIME", "CALL_START_TARGET_TEL", "METRICS_ADDR", "ROUTER_GRPC_ADDR", "STATE_GRPC_ADDR", "KOMMO_CLIENT_ID",
		"KOMMO_CLIENT_SECRET", "KOMMO_REDIRECT_URI"} {
		if len(readersOf(name)) < 2 {
			t.Errorf("%s is read by %v: where it was renamed in one service, the services no longer agree", name, readersOf(name))
		}
	}
}

// A variable that is read past the Config structs is documented here by hand: in up or traces.
func TestNoVariableIsReadInSecret(t *testing.T) {
	named := reference()
	reads := regexp.MustCompile(`(?:os\.Getenv\(|os\.LookupEnv\(|\benv\[)"([A-Z_]+)"|"(OTEL_[A-Z_]+)"`)
	read := map[string]bool{"SUDO_USER": false, "NO_COLOR": false} // who acts, and what every program honours: no settings
	for _, dir := range []string{"callback", "cmd", "platform", "services", "sim"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			source, err := os.ReadFile(path)
			for _, match := range reads.FindAllStringSubmatch(string(source), -1) {
				name := strings.Replace(match[1]+match[2], "OTLP_TRACES_", "OTLP_", 1)
				if _, known := read[name]; !known && !strings.Contains(named, "`"+name+"`") {
					t.Errorf("%s reads %s, which docs/configuration.md does not name", path, name)
				}
				read[name] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range up.fields {
		if !read[f.Name] {
			t.Errorf("%s is documented, but nobody reads it", f.Name)
		}
	}
}
