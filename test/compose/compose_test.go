// Package compose holds docker-compose.yml against the code: names, values and addresses of every service's environment.
// It does not show that images build or that the stack starts; there is no Docker on the development machine.
package compose

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"callrelay/platform/config"
	"callrelay/services/ingress"
	"callrelay/services/router"
	"callrelay/services/state"
	"callrelay/services/upstream"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

const root = "../.."

// service is what the code knows of one service.
type service struct {
	fields []config.Field
	load   func(map[string]string) error
	serves []string // the variables that say where it listens; all other addresses are dialled
}

func of[T any](serves ...string) service {
	return service{
		fields: config.Fields[T](),
		load: func(env map[string]string) error {
			_, err := config.LoadFrom[T](env)
			return err
		},
		serves: append(serves, "METRICS_ADDR"),
	}
}

var services = map[string]service{
	"ingress":  of[ingress.Config]("INGRESS_HTTP_ADDR", "INGRESS_GRPC_ADDR"),
	"router":   of[router.Config]("ROUTER_GRPC_ADDR"),
	"state":    of[state.Config]("STATE_GRPC_ADDR"),
	"upstream": of[upstream.Config]("UPSTREAM_GRPC_ADDR"),
}

// load reads the compose file with the given variables set where it is run.
func load(t *testing.T, variables ...string) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{filepath.Join(root, "docker-compose.yml")},
		cli.WithProfiles([]string{"*"}), cli.WithConsistency(true), cli.WithEnv(variables))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return project
}

func environment(s types.ServiceConfig) map[string]string {
	env := map[string]string{}
	for name, value := range s.Environment {
		if value != nil {
			env[name] = *value
		}
	}
	return env
}

func TestEnvironmentIsThatOfTheServices(t *testing.T) {
	for _, variables := range [][]string{nil, {"ENABLE_REAL_SEND=true"}} {
		project := load(t, variables...)
		for name, s := range services {
			env := environment(project.Services[name])
			if len(env) == 0 {
				t.Errorf("%s is not in the compose file", name)
			}
			for variable := range env {
				known := strings.HasPrefix(variable, "OTEL_") || slices.ContainsFunc(s.fields, func(f config.Field) bool {
					return variable == f.Name || variable == f.Name+"_FILE"
				})
				if !known {
					t.Errorf("%s does not know %s", name, variable)
				}
			}
			if err := s.load(env); err != nil {
				t.Errorf("%s would not start with %v: %v", name, variables, err)
			}
		}
	}
}

func TestAddresses(t *testing.T) {
	project := load(t)
	// Who listens where inside the network, from the services' own settings.
	listens := map[string]bool{"jaeger:4317": true, "redis:6379": true, "topsii-sim:8090": true}
	for name, s := range services {
		env := environment(project.Services[name])
		for _, variable := range s.serves {
			host, port, err := net.SplitHostPort(env[variable])
			if err != nil || host != "0.0.0.0" {
				t.Errorf("%s: %s=%q: nobody outside of the container reaches it, it has to be 0.0.0.0:port", name, variable, env[variable])
			}
			listens[net.JoinHostPort(name, port)] = true
		}
	}
	for name, s := range services {
		for variable, value := range environment(project.Services[name]) {
			dialled := value
			if _, after, isURL := strings.Cut(value, "://"); isURL {
				dialled, _, _ = strings.Cut(after, "/")
			} else if !strings.HasSuffix(variable, "_ADDR") || slices.Contains(s.serves, variable) {
				continue
			}
			if !listens[dialled] {
				t.Errorf("%s: %s=%q: nobody listens there", name, variable, value)
			}
		}
		// A default address is on loopback, where in a container nobody else is.
		for _, f := range s.fields {
			if strings.HasSuffix(f.Name, "_ADDR") && environment(project.Services[name])[f.Name] == "" {
				t.Errorf("%s: %s is not set, and its default is %s", name, f.Name, f.Default)
			}
		}
	}
}

func TestPublishedOnlyOnLoopback(t *testing.T) {
	for name, s := range load(t).Services {
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s publishes port %s on every address", name, port.Published)
			}
		}
	}
}

// What the operator's callrelay asks, and /readyz of each service, can be reached from this machine, where the commands look
// for it: at the port that the service has by itself.
func TestOperatorReachesEveryService(t *testing.T) {
	project := load(t)
	for name, s := range services {
		service := project.Services[name]
		env := environment(service)
		for _, variable := range s.serves {
			_, port, err := net.SplitHostPort(env[variable])
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(service.Ports, func(p types.ServicePortConfig) bool {
				return p.HostIP == "127.0.0.1" && p.Published == port && strconv.Itoa(int(p.Target)) == port
			}) {
				t.Errorf("%s: %s=%q is not published on 127.0.0.1:%s", name, variable, env[variable], port)
			}
			i := slices.IndexFunc(s.fields, func(f config.Field) bool { return f.Name == variable })
			if _, usual, err := net.SplitHostPort(s.fields[i].Default); err != nil || usual != port {
				t.Errorf("%s: %s is at port %s, and %s by itself (%v)", name, variable, port, usual, err)
			}
		}
	}
}

// What .env says of alarms, keys and tokens reaches who reads it.
func TestSecretsArePassedOn(t *testing.T) {
	given := map[string]string{"ALARM_WEBHOOK_URL": "https://alarms.example", "ALARM_WEBHOOK_SECRET": "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3",
		"SECRETS_KEY": "k1:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", "OPERATOR_TOKENS": "ann:operator:0123456789abcdef01234567"}
	var variables []string
	for name, value := range given {
		variables = append(variables, name+"="+value)
	}
	project := load(t, variables...)
	for variable, reader := range map[string]string{"ALARM_WEBHOOK_URL": "state", "ALARM_WEBHOOK_SECRET": "state", "SECRETS_KEY": "upstream", "OPERATOR_TOKENS": "ingress"} {
		env := environment(project.Services[reader])
		if env[variable] != given[variable] {
			t.Errorf("%s has %s=%q", reader, variable, env[variable])
		}
		if err := services[reader].load(env); err != nil {
			t.Errorf("%s would not start: %v", reader, err)
		}
	}
}

func TestBuildsExistingPrograms(t *testing.T) {
	built := 0
	for name, s := range load(t).Services {
		if s.Build == nil {
			if strings.HasSuffix(s.Image, ":latest") || !strings.Contains(s.Image, ":") {
				t.Errorf("%s: image %q is not pinned", name, s.Image)
			}
			continue
		}
		built++
		program := s.Build.Args["SERVICE"]
		if program == nil {
			t.Errorf("%s: no SERVICE", name)
			continue
		}
		dir := filepath.Join(root, "services", *program, "cmd", *program)
		if *program == "topsii-sim" {
			dir = filepath.Join(root, "sim", "cmd", *program)
		}
		if _, err := os.Stat(filepath.Join(dir, "main.go")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if built != 5 {
		t.Errorf("%d programs are built, want 5", built)
	}
}

func TestRedisIsDurable(t *testing.T) {
	command := strings.Join(load(t).Services["redis"].Command, " ")
	for _, want := range []string{"--save  ", "--appendonly yes", "--appendfsync always", "--maxmemory-policy noeviction",
		"--hash-max-listpack-entries 256", "--hash-max-listpack-value 8192"} {
		if !strings.Contains(command, want) {
			t.Errorf("redis runs without %s", want)
		}
	}
}
