package router

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
		{"AMEYO_PROFILE", "sead"},
		{"AMEYO_RULES_FILE", "/does/not/exist"},
		{"REQUEST_DEDUPE_TTL_SECONDS", "-1"},
		{"PHONE1_STATE_TTL_SECONDS", "0"},
		{"PHONE1_EXPIRY", "keep"},
		{"CALL_START_MAX_AGE_SECONDS", "-1"},
		{"TIMEZONE", "Moon/Base"},
		{"CALL_START_TARGET_TEL", "phone,fax"},
		{"KOMMO_SETTLE", "61m"},
		{"KOMMO_CLAIM_DELAY", "61m"},
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
