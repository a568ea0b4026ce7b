package upstream_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"callrelay/platform/config"
	"callrelay/services/upstream"
	"callrelay/sim/pbx"
)

const key32 = "0123456789abcdef0123456789abcdef"

func TestConfigDefaults(t *testing.T) {
	cfg, err := config.LoadFrom[upstream.Config](nil)
	if err != nil {
		t.Fatalf("an empty environment does not start: %v", err)
	}
	if cfg.RealSend || cfg.Environment != "TEST" || cfg.Uncertain != "retry" || cfg.Concurrency != 32 || cfg.LeaseTime != 45*time.Second ||
		cfg.ConnectTimeout != 10*time.Second || cfg.Timeout != 30*time.Second || cfg.MaxAttempts != 20 || cfg.AppErrorMaxAttempts != 5 ||
		cfg.MaxAge != 24*time.Hour || cfg.RetryBase != time.Second || cfg.RetryMax != 5*time.Minute || cfg.ProbeInterval != 30*time.Second ||
		cfg.GRPCAddr != "127.0.0.1:9083" || cfg.StateAddr != "127.0.0.1:9082" || cfg.MetricsAddr != "127.0.0.1:9183" ||
		cfg.PathPrefix != "/fasthelp5-server/service/callmanage/predictiveCallApiService/" {
		t.Errorf("defaults differ from the documented ones: %+v", cfg)
	}
}

func TestEveryVariableIsDescribed(t *testing.T) {
	for _, f := range config.Fields[upstream.Config]() {
		if f.Desc == "" {
			t.Errorf("%s has no description", f.Name)
		}
		if (strings.HasSuffix(f.Name, "_KEY") || strings.HasSuffix(f.Name, "_SECRET")) != f.Secret {
			t.Errorf("%s: secret %v", f.Name, f.Secret)
		}
	}
}

func TestConfigProblems(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "pbx.json"), filepath.Join(dir, "bad.json")
	sealing := "test:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
	if err := errors.Join(os.WriteFile(good, pbx.Table("http://127.0.0.1:1"), 0o600), os.WriteFile(bad, []byte(`{"integrations":[{"id":"hunter2"}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		env  map[string]string
		want []string // the beginning of each problem, nothing else
	}{
		"TEST complete": {env: map[string]string{"ENABLE_REAL_SEND": "true", "TEST_BASE_URL": "http://127.0.0.1:8081", "TEST_API_KEY": key32}},
		"PROD complete": {env: map[string]string{"ENABLE_REAL_SEND": "yes", "INDEX_ENV": "PROD", "PROD_BASE_URL": "https://crm.example.jp/base", "PROD_API_KEY": key32}},
		"sending without the chosen environment": {
			env:  map[string]string{"ENABLE_REAL_SEND": "true", "INDEX_ENV": "PROD", "TEST_BASE_URL": "http://127.0.0.1:8081", "TEST_API_KEY": key32},
			want: []string{"PROD_BASE_URL: is required with ENABLE_REAL_SEND=true and INDEX_ENV=PROD", "PROD_API_KEY: is required"},
		},
		"sending without a key":     {env: map[string]string{"ENABLE_REAL_SEND": "on", "TEST_BASE_URL": "http://127.0.0.1:8081"}, want: []string{"TEST_API_KEY: is required"}},
		"not sending needs neither": {env: map[string]string{"ENABLE_REAL_SEND": "off"}},
		"everything wrong": {
			env: map[string]string{"INDEX_ENV": "test", "TEST_BASE_URL": "crm.example.jp", "PROD_BASE_URL": "https://user:hunter2@crm.example.jp", "TEST_API_KEY": "short",
				"TOPSII_UNCERTAIN": "maybe", "TOPSII_CONCURRENCY": "0", "RETRY_BASE": "-1s", "LEASE_TIME": "44s"},
			want: []string{"TEST_BASE_URL: must be an absolute", "PROD_BASE_URL: must be an absolute", "TEST_API_KEY: must be 32 characters, not 5",
				`INDEX_ENV: must be TEST or PROD, not "test"`, `TOPSII_UNCERTAIN: must be retry or ask, not "maybe"`, "TOPSII_CONCURRENCY: must be at least 1",
				"RETRY_BASE: must be positive", "LEASE_TIME: must be at least TOPSII_CONNECT_TIMEOUT + TOPSII_TIMEOUT + 5s = 45s, not 44s"},
		},
		"an address with a query":                {env: map[string]string{"TEST_BASE_URL": "http://crm.example.jp/?a=b"}, want: []string{"TEST_BASE_URL:"}},
		"another scheme":                         {env: map[string]string{"TEST_BASE_URL": "ftp://crm.example.jp"}, want: []string{"TEST_BASE_URL:"}},
		"a Kommo integration without its secret": {env: map[string]string{"KOMMO_CLIENT_ID": "c"}, want: []string{"KOMMO_CLIENT_ID: needs KOMMO_CLIENT_SECRET"}},
		"everything of Kommo wrong": {
			env: map[string]string{"SECRETS_KEY": "a:b", "KOMMO_BASE_URL": "x", "KOMMO_CONCURRENCY": "0", "KOMMO_RATE": "8", "KOMMO_TIMEOUT": "41s",
				"KOMMO_REQUEST_TIMEOUT": "2m", "KOMMO_REFRESH_BEFORE": "1s", "KOMMO_SETTLE": "-1s"},
			want: []string{`SECRETS_KEY: key "a": expected the base64 of 32 bytes`, "KOMMO_BASE_URL:", "KOMMO_CONCURRENCY:", "KOMMO_RATE: must be 1 to 7", "KOMMO_REQUEST_TIMEOUT:",
				"KOMMO_TIMEOUT: must be at least", "LEASE_TIME: must be at least KOMMO_TIMEOUT", "KOMMO_REFRESH_BEFORE:", "KOMMO_SETTLE:"},
		},
		"integrations without a key":       {env: map[string]string{"PBX_INTEGRATIONS": good}, want: []string{"PBX_INTEGRATIONS: needs SECRETS_KEY"}},
		"integrations that are not there":  {env: map[string]string{"PBX_INTEGRATIONS": good + ".not", "SECRETS_KEY": sealing}, want: []string{"PBX_INTEGRATIONS: open "}},
		"integrations that cannot be read": {env: map[string]string{"PBX_INTEGRATIONS": bad, "SECRETS_KEY": sealing}, want: []string{"PBX_INTEGRATIONS: "}},
		"integrations":                     {env: map[string]string{"PBX_INTEGRATIONS": good, "SECRETS_KEY": sealing}},
		"an unclear switch":                {env: map[string]string{"ENABLE_REAL_SEND": "maybe"}, want: []string{"ENABLE_REAL_SEND:"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.LoadFrom[upstream.Config](c.env)
			var got []string
			if err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if len(got) != len(c.want) {
				t.Fatalf("problems %q, want %q", got, c.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], c.want[i]) {
					t.Errorf("problem %q, want %q", got[i], c.want[i])
				}
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Error("a secret is shown")
			}
		})
	}
}
