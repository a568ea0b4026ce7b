package up

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"strings"

	"callrelay/platform/config"
	"callrelay/services/ingress"
	"callrelay/services/router"
	"callrelay/services/state"
	"callrelay/services/upstream"
)

const (
	// simAPIKey is what the relay and its simulator agree on; 32 characters, as TopS.II has them.
	simAPIKey = "simulator-simulator-simulator-00"
	// simSecret is for the simulated Kommo account, 9001: it is sent with reports of its calls.
	simSecret = "c2ltdWxhdG9yLXNpbXVsYXRvci1zaW11bGF0b3ItMDA="
	// simToken connects it.
	simToken = "simulated"
	// Its integration, whose widget has the call-result window.
	simClient       = "simulator"
	simClientSecret = "simulator-client-secret"
	simRedirect     = "http://127.0.0.1:8080/v1/kommo/oauth/callback"
)

// simCardsSecret signs the tokens of caller cards where everything is tried out.
const simCardsSecret = "simulator-simulator-simulator-simulator"

// settings are the environment and, where it does not say, what the options imply. A variable that is empty says nothing.
func settings(o Options) map[string]string {
	env := maps.Clone(o.Environment)
	imply := func(name, value string) {
		if !given(env, name) {
			env[name] = value
		}
	}
	env["DATA_DIR"] = o.DataDir // the spool is below it
	if o.SimAddr != "" {
		imply("INDEX_ENV", "TEST")
		imply("TEST_BASE_URL", "http://"+o.SimAddr)
		imply("TEST_API_KEY", simAPIKey)
		imply("ENABLE_REAL_SEND", "true")
		if !given(env, "SECRETS_KEY") { // who has one has accounts of their own
			imply("KOMMO_BASE_URL", simKommo(o))
			imply("KOMMO_CALLS_SECRETS", "9001=whsec_"+simSecret)
			if !given(env, "REDIS_URL") && !given(env, "KOMMO_CLIENT_ID") && !given(env, "KOMMO_CLIENT_SECRET") { // its SECRETS_KEY will be made
				env["KOMMO_CLIENT_ID"], env["KOMMO_CLIENT_SECRET"], env["KOMMO_REDIRECT_URI"] = simClient, simClientSecret, simRedirect
			}
		}
		imply("CARDS_SECRET", simCardsSecret)
	}
	return env
}

// simKommo is where the Kommo simulator is.
func simKommo(o Options) string { return "http://" + o.SimAddr + "/kommo" }

// given says whether the environment has the variable, by value or by file.
func given(env map[string]string, name string) bool {
	return cmp.Or(env[name], env[name+"_FILE"]) != ""
}

// configs are those of the four services.
type configs struct {
	ingress  ingress.Config
	router   router.Config
	state    state.Config
	upstream upstream.Config
}

// misspelt are the names in the environment that are nearly a setting of a service.
func misspelt(env map[string]string) []string {
	all := slices.Concat(config.Misspelt[ingress.Config](env), config.Misspelt[router.Config](env),
		config.Misspelt[state.Config](env), config.Misspelt[upstream.Config](env))
	slices.Sort(all)
	return slices.Compact(all)
}

// load reads all configurations and reports the problems of all, each once.
func load(env map[string]string) (configs, error) {
	var c configs
	var errs [4]error
	c.ingress, errs[0] = config.LoadFrom[ingress.Config](env)
	c.router, errs[1] = config.LoadFrom[router.Config](env)
	c.state, errs[2] = config.LoadFrom[state.Config](env)
	c.upstream, errs[3] = config.LoadFrom[upstream.Config](env)
	var problems []error
	seen := map[string]bool{}
	for _, err := range errs {
		if err == nil {
			continue
		}
		for line := range strings.SplitSeq(err.Error(), "\n") {
			if !seen[line] {
				seen[line] = true
				problems = append(problems, errors.New("  "+line))
			}
		}
	}
	return c, errors.Join(problems...)
}
