package state

import (
	"maps"
	"strings"
	"testing"

	"callrelay/platform/config"
)

func TestValidate(t *testing.T) {
	valid := map[string]string{"REDIS_URL": "redis://127.0.0.1:6379/0"}
	if _, err := config.LoadFrom[Config](valid); err != nil {
		t.Fatalf("the defaults: %v", err)
	}
	all := maps.Clone(valid)
	variables := map[string]bool{}
	for _, wrong := range []struct{ variable, value string }{
		{"REDIS_URL", "http://127.0.0.1"},
		{"REDIS_URL", "redis://127.0.0.1:6379/0?nonsense=1"},
		{"REDIS_URL", "redis://127.0.0.1:26379?master_name="},
		{"REDIS_URL", "unix:///run/redis.sock?master_name=relay"},
		{"REDIS_URL", "redis://127.0.0.1:26379?master_name=relay&addr=nowhere"},
		{"REDIS_URL", ""},
		{"STATE_REPLICAS_ACK", "-1"},
		{"STATE_REPLICAS_ACK", "17"},
		{"CALL_RETENTION", "59m"},
		{"LEASE_TIME", "999ms"},
		{"JOURNAL_LIMIT", "1023"},
		{"JOURNAL_LIMIT", "1048577"},
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
