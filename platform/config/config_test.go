package config_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"callrelay/platform/config"
)

type limits struct {
	Rate  int           `env:"RATE" envDefault:"5" desc:"requests per second"`
	Pause time.Duration `env:"PAUSE" envDefault:"250ms" desc:"between two"`
}

type settings struct {
	Addr string `env:"ADDR" envDefault:"127.0.0.1:1" desc:"where"`
	limits
	Test  limits        `envPrefix:"TEST_"`
	Token config.Secret `env:"TOKEN" desc:"the token"`
	Dry   config.Switch `env:"DRY" envDefault:"no" desc:"changes nothing"`
	Hosts []string      `env:"HOSTS" desc:"comma separated"`
	_     string        // no tag: not ours
}

func (s *settings) Validate() error {
	var problems []error
	if s.Rate < 1 {
		problems = append(problems, errors.New("RATE: must be positive"))
	}
	if s.Addr == "nowhere" {
		problems = append(problems, errors.New("ADDR: is nowhere"))
	}
	return errors.Join(problems...)
}

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "value")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadFrom(t *testing.T) {
	defaults := settings{Addr: "127.0.0.1:1", limits: limits{5, 250 * time.Millisecond}, Test: limits{5, 250 * time.Millisecond}}
	with := func(change func(*settings)) settings {
		s := defaults
		change(&s)
		return s
	}
	tests := []struct {
		name    string
		environ map[string]string
		want    settings
	}{
		{"nothing set", nil, defaults},
		{"empty means default", map[string]string{"ADDR": "", "RATE": "", "DRY": "", "TOKEN_FILE": ""}, defaults},
		{"embedded", map[string]string{"RATE": "7"}, with(func(s *settings) { s.Rate = 7 })},
		{"nested with prefix", map[string]string{"TEST_PAUSE": "2s"}, with(func(s *settings) { s.Test.Pause = 2 * time.Second })},
		{"list", map[string]string{"HOSTS": "a,b"}, with(func(s *settings) { s.Hosts = []string{"a", "b"} })},
		{"switch", map[string]string{"DRY": "Yes"}, with(func(s *settings) { s.Dry = true })},
		{"file", map[string]string{"TOKEN_FILE": file(t, "s3cret\n")}, with(func(s *settings) { s.Token = "s3cret" })},
		{"file, one newline only", map[string]string{"TOKEN_FILE": file(t, " s \n\r\n")}, with(func(s *settings) { s.Token = " s \n" })},
		{"file for any type", map[string]string{"TEST_RATE_FILE": file(t, "9")}, with(func(s *settings) { s.Test.Rate = 9 })},
		{"empty file", map[string]string{"ADDR_FILE": file(t, "\n")}, defaults},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := config.LoadFrom[settings](tt.environ)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	_, err := config.LoadFrom[settings](map[string]string{
		"ADDR":          "nowhere", // found by Validate
		"RATE":          "many",    // once, not again by Validate
		"TEST_PAUSE":    "long",
		"TEST_RATE":     "few",
		"DRY":           "perhaps",
		"TOKEN":         "by-value",
		"TOKEN_FILE":    "/by/file",
		"HOSTS_FILE":    "/does/not/exist",
		"UNKNOWN_THING": "is nobody's business",
	})
	if err == nil {
		t.Fatal("no error")
	}
	var got []string
	for line := range strings.Lines(err.Error()) {
		name, _, _ := strings.Cut(line, ":")
		got = append(got, name)
	}
	want := []string{"RATE", "TEST_RATE", "TEST_PAUSE", "TOKEN", "DRY", "HOSTS_FILE", "ADDR"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("problems with %v, want %v:\n%v", got, want, err)
	}
	if strings.Contains(err.Error(), "by-value") {
		t.Errorf("the error shows a secret: %v", err)
	}
}

func TestLoadReadsTheEnvironment(t *testing.T) {
	t.Setenv("ADDR", "10.0.0.1:2")
	got, err := config.Load[settings]()
	if err != nil || got.Addr != "10.0.0.1:2" {
		t.Errorf("got %q, %v", got.Addr, err)
	}
}

func TestBrokenDefaultIsAProblem(t *testing.T) {
	type broken struct {
		Rate int `env:"RATE" envDefault:"a lot"`
	}
	if _, err := config.LoadFrom[broken](nil); err == nil || !strings.Contains(err.Error(), "RATE") {
		t.Errorf("got %v", err)
	}
}

func TestFields(t *testing.T) {
	got := config.Fields[settings]()
	want := []config.Field{
		{Name: "ADDR", Type: "string", Default: "127.0.0.1:1", Desc: "where"},
		{Name: "RATE", Type: "integer", Default: "5", Desc: "requests per second"},
		{Name: "PAUSE", Type: "duration", Default: "250ms", Desc: "between two"},
		{Name: "TEST_RATE", Type: "integer", Default: "5", Desc: "requests per second"},
		{Name: "TEST_PAUSE", Type: "duration", Default: "250ms", Desc: "between two"},
		{Name: "TOKEN", Type: "secret", Desc: "the token", Secret: true},
		{Name: "DRY", Type: "switch", Default: "no", Desc: "changes nothing"},
		{Name: "HOSTS", Type: "list of string", Desc: "comma separated"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestSecretNeverPrints(t *testing.T) {
	const value = "hunter2"
	s := config.Secret(value)
	var out strings.Builder
	holder := struct {
		S config.Secret
		M map[string]config.Secret
	}{s, map[string]config.Secret{"key": s}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%10s"} {
		fmt.Fprintf(&out, verb+verb+verb+"\n", s, &s, holder)
	}
	fmt.Fprintln(&out, s, s.String(), s.GoString(), fmt.Errorf("wrapped: %v", s))
	for _, v := range []any{s, &s, holder} {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(text)
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "s", s, "holder", holder)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "s", s, "holder", holder)
	printed := strings.ToLower(out.String())
	for _, form := range []string{value, fmt.Sprintf("%x", value)} {
		if strings.Contains(printed, form) {
			t.Errorf("%q shows in:\n%s", form, printed)
		}
	}
	if s.Reveal() != value {
		t.Errorf("Reveal: %q", s.Reveal())
	}
	if got := fmt.Sprintf("<%v>", config.Secret("")); got != "<>" {
		t.Errorf("an empty secret prints %q", got)
	}
}

func TestSwitch(t *testing.T) {
	for text, want := range map[string]bool{
		"true": true, "1": true, "YES": true, "On": true, " on ": true,
		"false": false, "0": false, "No": false, "OFF": false, "": false,
	} {
		got := config.Switch(!want)
		if err := got.UnmarshalText([]byte(text)); err != nil || bool(got) != want {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"2", "enabled", "tru", "-1"} {
		if err := new(config.Switch).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

func TestMisspelt(t *testing.T) {
	type service struct {
		Addr  string        `env:"STATE_GRPC_ADDR"`
		Token config.Secret `env:"CRM_TOKEN"`
	}
	got := config.Misspelt[service](map[string]string{
		"STATE_GRPC_ADDR": "a", "CRM_TOKEN_FILE": "f", "ROUTER_GRPC_ADDR": "another service's", "HOME": "/",
		"STATE_GPRC_ADDR": "b", "CRM_TOKENS_FILE": "g",
	})
	want := []string{"CRM_TOKENS_FILE is no setting and is ignored; is CRM_TOKEN meant?", "STATE_GPRC_ADDR is no setting and is ignored; is STATE_GRPC_ADDR meant?"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
