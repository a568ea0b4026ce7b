package ingress

import (
	"maps"
	"strings"
	"testing"

	"callrelay/platform/config"
)

func TestValidate(t *testing.T) {
	valid := map[string]string{}
	if _, err := config.LoadFrom[Config](valid); err != nil {
		t.Fatalf("the defaults: %v", err)
	}
	all := maps.Clone(valid)
	variables := map[string]bool{}
	for _, wrong := range []struct{ variable, value string }{
		{"ACK_BUDGET", "99ms"},
		{"ACK_BUDGET", "61s"},
		{"ACK_BUDGET", "soon"},
		{"SPOOL_MAX_BYTES", "1000"},
		{"SPOOL_MAX_ITEMS", "0"},
		{"INGRESS_MAX_CONNECTIONS", "15"},
		{"INGRESS_MAX_REQUESTS", "0"},
		{"INGRESS_STOP_DELAY", "2m"},
		{"AMEYO_ALLOWED_NETWORKS", "10.0.0.0/8,office"},
		{"TRUSTED_PROXIES", "10.0.0.0/33"},
		{"AMEYO_PATH_SECRET", "fifteen-letters"},
		{"AMEYO_PATH_SECRET", "sixteen/and/more/letters"},
		{"KOMMO_REDIRECT_URI", "relay.example/callback"},
		{"TIMEZONE", "Moon/Base"},
		{"CALL_START_TARGET_TEL", "phone,fax"},
		{"CALL_START_TARGET_TEL", "phone,phone"},
	} {
		env := maps.Clone(valid)
		env[wrong.variable], all[wrong.variable] = wrong.value, wrong.value
		variables[wrong.variable] = true
		_, err := config.LoadFrom[Config](env)
		if err == nil || !strings.HasPrefix(err.Error(), wrong.variable) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s=%q: got %v, want one problem with this variable", wrong.variable, wrong.value, err)
		}
	}
	_, err := config.LoadFrom[Config](all)
	if err == nil {
		t.Fatal("no error")
	}
	problems := strings.Split(err.Error(), "\n")
	if len(problems) != len(variables) {
		t.Errorf("%d problems, want one for each of %d variables:\n%v", len(problems), len(variables), err)
	}
	for variable := range variables {
		if !strings.Contains("\n"+err.Error(), "\n"+variable) {
			t.Errorf("%s is not named:\n%v", variable, err)
		}
	}
}
