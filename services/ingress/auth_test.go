package ingress

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"callrelay/gen"
	operatorv1 "callrelay/gen/callrelay/operator/v1"
	"callrelay/platform/config"
	"callrelay/platform/rpc"
	"callrelay/platform/telemetry"
)

const (
	viewToken   = "viewer-viewer-viewer-viewer"
	actToken    = "operator-operator-operator"
	phonesToken = "phones-phones-phones-phones"
)

func tokens() string {
	hash := sha256.Sum256([]byte(phonesToken))
	return "vic:viewer:" + viewToken + ",olga:operator:" + actToken + "\nphil:operator+phones:sha256=" + hex.EncodeToString(hash[:])
}

// fakeAdvice answers with who it thinks asks.
type fakeAdvice struct {
	operatorv1.UnimplementedAdviceServiceServer
}

func (fakeAdvice) Diagnose(ctx context.Context, r *operatorv1.DiagnoseRequest) (*operatorv1.DiagnoseResponse, error) {
	c := rpc.CallerOf(ctx)
	return &operatorv1.DiagnoseResponse{Call: r.GetCall(), Step: fmt.Sprintf("%s %s %v", c.Actor, c.Role, c.Masked)}, nil
}

func (fakeAdvice) Resend(ctx context.Context, r *operatorv1.ResendRequest) (*operatorv1.ResendResponse, error) {
	c := rpc.CallerOf(ctx)
	return &operatorv1.ResendResponse{RequestId: r.GetRequestId(), Flow: fmt.Sprintf("%s %s %v", c.Actor, c.Role, c.Masked)}, nil
}

// api is ingress' HTTP side in front of the fake advice.
func api(t *testing.T, env map[string]string) http.Handler { return apiService(t, env).http.Handler }

func apiService(t *testing.T, env map[string]string) *Service {
	t.Helper()
	env["INGRESS_HTTP_ADDR"], env["DATA_DIR"] = "127.0.0.1:0", t.TempDir()
	cfg, err := config.LoadFrom[Config](env)
	if err != nil {
		t.Fatal(err)
	}
	tel := telemetry.NewGroup(nil).Service("test")
	backend := rpc.NewServer(tel.Log())
	operatorv1.RegisterAdviceServiceServer(backend.Registrar(), fakeAdvice{})
	s, err := New(cfg, tel, backend.InProcess(), backend.InProcess())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { backend.Stop(time.Second); _ = s.listen.Close() })
	return s
}

type ask struct {
	method, path, body string
	header             map[string]string
	host, remote       string
}

func (a ask) of(h http.Handler) *httptest.ResponseRecorder {
	r := httptest.NewRequest(a.method, a.path, strings.NewReader(a.body))
	r.Host, r.RemoteAddr = "127.0.0.1:8080", "127.0.0.1:5000"
	if a.host != "" {
		r.Host = a.host
	}
	if a.remote != "" {
		r.RemoteAddr = a.remote
	}
	if a.method == http.MethodPost {
		r.Header.Set("Content-Type", "application/json")
	}
	for k, v := range a.header {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func bearer(token string) map[string]string {
	return map[string]string{"Authorization": "Bearer " + token}
}

const (
	look = "/v1/calls/ameyo/1:diagnose"
	act  = "/v1/requests/ABC:resend"
)

// With tokens: who may do what, and who the services think it is, whatever headers say.
func TestTokens(t *testing.T) {
	h := api(t, map[string]string{"OPERATOR_TOKENS": tokens()})
	forged := func(token string) map[string]string {
		m := bearer(token)
		for _, name := range []string{"X-Callrelay-Actor", "X-Callrelay-Role", "X-Callrelay-Mask"} {
			m[name], m["Grpc-Metadata-"+name], m["Grpcgateway-"+name] = "root", "root", "root"
		}
		return m
	}
	for _, c := range []struct {
		name   string
		ask    ask
		status int
		body   string
	}{
		{"nobody", ask{method: "GET", path: look}, 401, "token is required"},
		{"a wrong token", ask{method: "GET", path: look, header: bearer("x")}, 401, "not known"},
		{"another scheme", ask{method: "GET", path: look, header: map[string]string{"Authorization": "Basic " + viewToken}}, 401, ""},
		{"a viewer looks", ask{method: "GET", path: look, header: forged(viewToken)}, 200, "vic viewer true"},
		{"a bare id", ask{method: "GET", path: "/v1/calls/1:diagnose", header: bearer(viewToken)}, 200, "vic viewer true"},
		{"a viewer acts", ask{method: "POST", path: act, body: "{}", header: forged(viewToken)}, 403, "role operator"},
		{"an operator acts", ask{method: "POST", path: act, body: `{"reason":"x"}`, header: forged(actToken)}, 200, "olga operator true"},
		{"one who may see numbers", ask{method: "POST", path: act, body: "{}", header: forged(phonesToken)}, 200, "phil operator false"},
		{"from anywhere", ask{method: "GET", path: look, header: bearer(viewToken), remote: "192.0.2.1:1", host: "relay.test"}, 200, ""},
		{"the wrong method", ask{method: "DELETE", path: look, header: bearer(actToken)}, 405, "GET"},
		{"no such route", ask{method: "GET", path: "/v1/secrets", header: bearer(actToken)}, 404, ""},
		{"the override header", ask{method: "POST", path: act, body: "{}", header: map[string]string{"Authorization": "Bearer " + viewToken, "X-HTTP-Method-Override": "GET"}}, 403, ""},
		{"a form", ask{method: "POST", path: act, body: "a=b", header: map[string]string{"Authorization": "Bearer " + actToken, "Content-Type": "application/x-www-form-urlencoded"}}, 415, "application/json"},
		{"a foreign page", ask{method: "GET", path: look, header: map[string]string{"Authorization": "Bearer " + actToken, "Origin": "https://evil.test"}}, 403, "origins"},
		{"our page", ask{method: "GET", path: look, header: map[string]string{"Authorization": "Bearer " + actToken, "Origin": "http://127.0.0.1:8080"}}, 200, ""},
		{"a body without end", ask{method: "POST", path: act, body: `{"reason":"` + strings.Repeat("x", maxBody) + `"}`, header: bearer(actToken)}, 413, ""},
		{"a key of three parts", ask{method: "GET", path: "/v1/calls/kommo/9001/x:diagnose", header: bearer(viewToken)}, 200, `"call":"kommo/9001/x"`},
		{"an escaped key", ask{method: "GET", path: "/v1/calls/pbx%2Facme%2Fx:diagnose", header: bearer(viewToken)}, 200, `"call":"pbx/acme/x"`},
		{"a key with an escaped id", ask{method: "GET", path: "/v1/calls/pbx/acme/" + strings.Repeat("%25D0%25B6", 64) + ":diagnose", header: bearer(viewToken)}, 200, `"call":"pbx/acme/` + strings.Repeat("%D0%B6", 64) + `"`},
		{"no key", ask{method: "GET", path: "/v1/calls/:diagnose", header: bearer(viewToken)}, 404, ""},
		{"an unknown parameter", ask{method: "GET", path: "/v1/deliveries?stat=dead", header: bearer(viewToken)}, 400, `there is no parameter \"stat\" here; there are: state, destination, page_size, page_token","field":"stat"`},
		{"a known one before it", ask{method: "GET", path: "/v1/accounting?check=true&Since=1h", header: bearer(viewToken)}, 400, "since, check"},
		{"any parameter where there is none", ask{method: "GET", path: look + "?x", header: bearer(viewToken)}, 400, "takes none"},
		{"a parameter beside a body", ask{method: "POST", path: act + "?reason=x", body: "{}", header: bearer(actToken)}, 400, "takes none"},
		{"no number", ask{method: "GET", path: "/v1/deliveries?page_size=x", header: bearer(viewToken)}, 400, `"page_size must be a whole number, not \"x\"","field":"page_size"`},
		{"no truth", ask{method: "GET", path: "/v1/accounting?check=maybe", header: bearer(viewToken)}, 400, `"check must be true or false, not \"maybe\"","field":"check"`},
		{"of the live tail", ask{method: "GET", path: "/v1/journal:watch?afer=x", header: bearer(viewToken)}, 400, "filter, after"},
		{"a query that cannot be read", ask{method: "GET", path: "/v1/deliveries?state=%zz", header: bearer(viewToken)}, 400, "cannot be read"},
		{"nobody learns names without a token", ask{method: "GET", path: "/v1/deliveries?x=1"}, 401, ""},
		{"no JSON", ask{method: "POST", path: act, body: `{`, header: bearer(actToken)}, 400, ""},
	} {
		w := c.ask.of(h)
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s: %d %s, want %d with %q", c.name, w.Code, w.Body, c.status, c.body)
		}
		if w.Header().Get("Access-Control-Allow-Origin") != "" || w.Code < 300 && w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: headers %v", c.name, w.Header())
		}
	}
}

// Without tokens: this machine only, and nothing that could be somebody else's.
func TestLoopbackOnly(t *testing.T) {
	h := api(t, map[string]string{})
	for _, c := range []struct {
		name   string
		ask    ask
		status int
	}{
		{"here", ask{method: "GET", path: look}, 200},
		{"here, by name", ask{method: "GET", path: look, host: "localhost:8080"}, 200},
		{"here, IPv6", ask{method: "GET", path: look, host: "[::1]:8080", remote: "[::1]:99"}, 200},
		{"acts", ask{method: "POST", path: act, body: "{}"}, 200},
		{"elsewhere", ask{method: "GET", path: look, remote: "192.0.2.1:99"}, 403},
		{"elsewhere, in disguise", ask{method: "GET", path: look, remote: "192.0.2.1:99", header: map[string]string{"X-Forwarded-For": "127.0.0.1"}}, 403},
		{"through a proxy here", ask{method: "GET", path: look, header: map[string]string{"X-Forwarded-For": "192.0.2.1"}}, 403},
		{"through another proxy here", ask{method: "GET", path: look, header: map[string]string{"Forwarded": "for=192.0.2.1"}}, 403},
		{"through yet another", ask{method: "GET", path: look, header: map[string]string{"Via": "1.1 x"}}, 403},
		{"DNS rebinding", ask{method: "GET", path: look, host: "evil.test:8080"}, 403},
		{"a name that begins like ours", ask{method: "GET", path: look, host: "127.0.0.1.evil.test"}, 403},
		{"a page of another port", ask{method: "POST", path: act, body: "{}", header: map[string]string{"Origin": "http://127.0.0.1:3000"}}, 403},
		{"a sandboxed page", ask{method: "POST", path: act, body: "{}", header: map[string]string{"Origin": "null"}}, 403},
		{"a page's image", ask{method: "GET", path: look, header: map[string]string{"Sec-Fetch-Site": "cross-site"}}, 403},
		{"a page's simple POST", ask{method: "POST", path: act, body: "{}", header: map[string]string{"Content-Type": "text/plain"}}, 415},
	} {
		if w := c.ask.of(h); w.Code != c.status {
			t.Errorf("%s: %d %s, want %d", c.name, w.Code, w.Body, c.status)
		}
	}
}

// A trusted proxy here does not make its clients local either.
func TestTrustedProxyIsNotLoopback(t *testing.T) {
	h := api(t, map[string]string{"TRUSTED_PROXIES": "127.0.0.1"})
	if w := (ask{method: "GET", path: look, header: map[string]string{"X-Forwarded-For": "127.0.0.1"}}).of(h); w.Code != 403 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// Wrong tokens are counted by source; others are not shut out, and after a minute nobody is.
func TestGuessing(t *testing.T) {
	logged := &bytes.Buffer{}
	s := apiService(t, map[string]string{"OPERATOR_TOKENS": tokens()})
	s.strangers.log = slog.New(slog.NewTextHandler(logged, nil))
	h := s.http.Handler
	synctest.Test(t, func(t *testing.T) {
		guess := ask{method: "GET", path: look, header: bearer("a-wrong-one"), remote: "192.0.2.1:1"}
		known := ask{method: "DELETE", path: look, header: bearer(viewToken), remote: "192.0.2.1:1"} // 405: nothing behind is asked
		other := known
		other.remote = "192.0.2.2:1"
		for i := range maxFailures {
			if w := guess.of(h); w.Code != 401 {
				t.Fatalf("guess %d: %d", i, w.Code)
			}
		}
		if w := guess.of(h); w.Code != 429 || w.Header().Get("Retry-After") == "" {
			t.Errorf("one more: %d %v", w.Code, w.Header())
		}
		if w := known.of(h); w.Code != 429 {
			t.Errorf("a right token from there: %d, which tells that it is right", w.Code)
		}
		if w := other.of(h); w.Code != 405 {
			t.Errorf("from elsewhere: %d", w.Code)
		}
		if log := logged.String(); strings.Count(log, "a wrong token") != maxFailures || !strings.Contains(log, "192.0.2.1") || strings.Contains(log, "a-wrong-one") {
			t.Errorf("logged:\n%s", log)
		}
		w := httptest.NewRecorder()
		s.tel.MetricsHandler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		for _, want := range []string{`"wrong",service_name="test"} 10`, `"shut_out",service_name="test"} 2`} {
			if want = `callrelay_tokens_wrong_total{callrelay_door="operator",callrelay_outcome=` + want; !strings.Contains(w.Body.String(), want) {
				t.Errorf("no %s", want)
			}
		}
		<-time.After(failureTime)
		if w := known.of(h); w.Code != 405 {
			t.Errorf("a minute later: %d", w.Code)
		}
	})
}

func TestTokenList(t *testing.T) {
	for text, problem := range map[string]string{
		"":                                     "",
		"# a comment\n\na:viewer:" + viewToken: "",
		"a:viewer":                             "three parts",
		"a:root:" + viewToken:                  "no such role",
		"a:viewer+phones:" + viewToken:         "no such role",
		"a:viewer:short":                       "24",
		"a b:viewer:" + viewToken:              "name",
		"a:viewer:sha256=12":                   "64 hex",
		"a:viewer:" + viewToken + ",a:viewer:" + actToken:    "twice",
		"a:viewer:" + viewToken + ",b:operator:" + viewToken: "twice",
	} {
		var list Tokens
		err := list.UnmarshalText([]byte(text))
		if (err == nil) != (problem == "") || err != nil && (!strings.Contains(err.Error(), problem) || strings.Contains(err.Error(), viewToken)) {
			t.Errorf("%q: %v, want %q", text, err, problem)
		}
	}
	var list Tokens
	if err := list.UnmarshalText([]byte(tokens())); err != nil {
		t.Fatal(err)
	}
	if s := fmt.Sprintf("%v %+v %#v %x", list, list, list, list); strings.Contains(s, "vic") || strings.Contains(s, hex.EncodeToString(list[0].hash[:4])) {
		t.Errorf("printed as %s", s)
	}
}

// The contract, the table in the code and docs/routes.md name the same routes.
func TestRoutes(t *testing.T) {
	var contract struct {
		Paths map[string]map[string]struct {
			Parameters []struct{ Name, In string }
		}
	}
	if err := json.Unmarshal(gen.OpenAPI, &contract); err != nil {
		t.Fatal(err)
	}
	// OpenAPI cannot write several segments.
	plain := func(p string) string {
		p = regexp.MustCompile(`\{([^}=]*)(=[^}]*)?\}`).ReplaceAllString(p, "{}")
		return p
	}
	served, query := map[string]bool{}, map[string][]string{}
	for path, methods := range contract.Paths {
		for method, operation := range methods {
			route := strings.ToUpper(method) + " " + plain(path)
			served[route] = true
			for _, p := range operation.Parameters {
				if p.In == "query" {
					query[route] = append(query[route], p.Name)
				}
			}
		}
	}
	table := map[string]bool{"GET " + pbxPath + "{}": true, "GET " + cardsWatchPath: true, "POST " + cardsTokenPath: true}
	for path := range callbackPaths {
		table["GET "+path] = true
	}
	table["GET "+pbxPath+"{}"] = true
	for _, r := range operatorRoutes {
		table[r.method+" "+plain(r.pattern)] = true
		var names []string
		for _, name := range strings.Fields(r.query) {
			names = append(names, jsonName(name))
		}
		if want := query[r.method+" "+plain(r.pattern)]; !slices.Equal(names, want) {
			t.Errorf("%s %s takes %v in the code and %v in the contract", r.method, r.pattern, names, want)
		}
	}
	for route := range served {
		if !table[route] {
			t.Errorf("%s is in the contract and in no table: it is not served", route)
		}
	}
	for route := range table {
		if !served[route] {
			t.Errorf("%s is in the code and not in the contract", route)
		}
	}

	text, err := os.ReadFile("../../docs/routes.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented, want []string
	for _, m := range regexp.MustCompile("(?m)^\\| ([A-Z]+) \\| `([^`]+)` \\| (\\w+) \\|").FindAllStringSubmatch(string(text), -1) {
		documented = append(documented, m[1]+" "+m[2]+" "+m[3])
	}
	for path := range callbackPaths {
		want = append(want, "GET "+path+" dialer")
	}
	for _, r := range operatorRoutes {
		want = append(want, r.method+" "+r.pattern+" "+r.role)
	}
	want = append(want, "GET "+cardsWatchPath+" user", "POST "+cardsTokenPath+" operator", kommoCalls+" VoIP", kommoWindow+" widget", kommoPreflight+" browser", kommoRedirect+" Kommo",
		"GET "+pbxPath+"{token} PBX")
	for _, path := range []string{"/healthz", "/readyz", "/openapi.json"} {
		want = append(want, "GET "+path+" anybody")
	}
	slices.Sort(documented)
	slices.Sort(want)
	if !slices.Equal(documented, want) {
		t.Errorf("docs/routes.md has\n%s\nthe code has\n%s", strings.Join(documented, "\n"), strings.Join(want, "\n"))
	}

	h := api(t, map[string]string{})
	for _, path := range []string{"/healthz", "/openapi.json"} {
		if w := (ask{method: "GET", path: path, remote: "192.0.2.1:1"}).of(h); w.Code != 200 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

// No path reaches an operator's action with a viewer's token.
func TestNoPathAround(t *testing.T) {
	h := api(t, map[string]string{"OPERATOR_TOKENS": tokens()})
	rapid.Check(t, func(t *rapid.T) {
		path := "/v1/" + strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"requests", "/", "ABC", ":resend", "%2F", "%3Aresend", "..", "calls", "ameyo", ":diagnose", "v1", ";", "%2e%2e"}), 1, 7).Draw(t, "path"), "")
		w := ask{method: "POST", path: path, body: "{}", header: bearer(viewToken)}.of(h)
		if w.Code == 200 {
			t.Fatalf("%s: %d %s", path, w.Code, w.Body)
		}
	})
}
