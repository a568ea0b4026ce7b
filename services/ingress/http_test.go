package ingress

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	routerv1 "callrelay/gen/callrelay/router/v1"
	"callrelay/platform/config"
	"callrelay/platform/errkind"
	"callrelay/platform/rpc"
	"callrelay/platform/telemetry"
)

// fakeRouter remembers what it is given and answers as told.
type fakeRouter struct {
	routerv1.UnimplementedRouterServiceServer
	mu     sync.Mutex
	items  []*routerv1.RouteItem
	answer func(*routerv1.RouteItem) *routerv1.RouteAnswer // nil = silence
}

func (f *fakeRouter) Route(stream grpc.BidiStreamingServer[routerv1.RouteRequest, routerv1.RouteResponse]) error {
	rpc.Receive(stream, nil, func(req *routerv1.RouteRequest) bool {
		resp := &routerv1.RouteResponse{}
		for _, item := range req.GetItems() {
			f.mu.Lock()
			f.items = append(f.items, item)
			answer := f.answer
			f.mu.Unlock()
			if a := answer(item); a != nil {
				a.Id = item.GetId()
				resp.Answers = append(resp.Answers, a)
			}
		}
		_ = stream.Send(resp)
		return true
	})
	return nil
}

func (f *fakeRouter) last() *routerv1.RouteItem {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.items) == 0 {
		return &routerv1.RouteItem{}
	}
	return f.items[len(f.items)-1]
}

func accept(*routerv1.RouteItem) *routerv1.RouteAnswer { return &routerv1.RouteAnswer{} }

// serve runs ingress' HTTP side in front of the fake router.
func serve(t testing.TB, f routerv1.RouterServiceServer, env map[string]string) *httptest.Server {
	t.Helper()
	front, _ := serveService(t, f, env)
	return front
}

func serveService(t testing.TB, f routerv1.RouterServiceServer, env map[string]string) (*httptest.Server, *Service) {
	t.Helper()
	s := newService(t, f, env)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.pipe.Run(ctx) })
	wg.Go(func() { s.spool.run(ctx) })
	s.refused.run()
	front := httptest.NewServer(s.http.Handler)
	t.Cleanup(func() {
		front.Close()
		s.refused.stop()
		cancel()
		wg.Wait()
	})
	return front, s
}

// newService makes a service that does not run yet, in front of the fake router.
func newService(t testing.TB, f routerv1.RouterServiceServer, env map[string]string) *Service {
	t.Helper()
	env["INGRESS_HTTP_ADDR"] = "127.0.0.1:0"
	if env["SPOOL_DIR"] == "" {
		env["SPOOL_DIR"] = t.TempDir()
	}
	cfg, err := config.LoadFrom[Config](env)
	if err != nil {
		t.Fatal(err)
	}
	tel := telemetry.NewGroup(nil).Service("test")
	backend := rpc.NewServer(tel.Log())
	routerv1.RegisterRouterServiceServer(backend.Registrar(), f)
	s, err := New(cfg, tel, backend.InProcess(), backend.InProcess())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		backend.Stop(time.Second)
		_ = s.Close()
	})
	return s
}

func do(t *testing.T, method, url string, header map[string]string) (*http.Response, string) {
	t.Helper()
	return sendBody(t, method, url, header, "")
}

// sendBody is do with a body.
func sendBody(t *testing.T, method, url string, header map[string]string, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(answer)
}

const good = "unique_id=00193416&customerId=5501&customerCRTId=d336&systemDisposition=Connected&userId=a&dialledPhone=07029109978"

// Answers byte for byte (spec/ameyo-topsii.md, HTTP in).
func TestAnswers(t *testing.T) {
	f := &fakeRouter{answer: accept}
	front, s := serveService(t, f, map[string]string{})
	long := strings.Repeat("x", 16<<10)
	for _, c := range []struct {
		name, method, target string
		answer               func(*routerv1.RouteItem) *routerv1.RouteAnswer
		status               int
		body                 string // with <id> for the request id
		recorded             string // what router was told: "call_end", "call_start", or the status of a refusal
	}{
		{"accepted", "GET", "/index.php?" + good, accept, 200, `{"success":true,"message":"Data Received","requestId":"<id>"}`, "call_end"},
		{"clean route", "GET", "/v1/ameyo/call-end?" + good, accept, 200, `{"success":true,"message":"Data Received","requestId":"<id>"}`, "call_end"},
		{"call start", "GET", "/call_start.php?cs_unique_id=1&userId=a&displayPhone=03", accept, 200, `{"success":true,"message":"Data Received","requestId":"<id>"}`, "call_start"},
		{"clean call start", "GET", "/v1/ameyo/call-start?sessionId=1&userId=a&phone=03", accept, 200, `{"success":true,"message":"Data Received","requestId":"<id>"}`, "call_start"},
		{"duplicate", "GET", "/index.php?" + good, func(*routerv1.RouteItem) *routerv1.RouteAnswer { return &routerv1.RouteAnswer{Duplicate: true} },
			200, `{"success":true,"message":"Data Received","duplicate":true,"requestId":"<id>"}`, "call_end"},
		{"a field is missing", "GET", "/index.php?unique_id=1&systemDisposition=CONNECTED&userId=a&dialledPhone=1", accept, 400,
			`{"success":false,"message":"customerCRTId is required when systemDisposition is CONNECTED","field":"customerCRTId","requestId":"<id>"}`, "400"},
		{"not GET", "POST", "/index.php?" + good, accept, 405, `{"success":false,"message":"use GET","requestId":"<id>"}`, "405"},
		{"HEAD", "HEAD", "/index.php?" + good, accept, 405, "", "405"},
		{"too long", "GET", "/index.php?" + good + "&x=" + long, accept, 414, `{"success":false,"message":"the query is longer than 16384 bytes","requestId":"<id>"}`, "414"},
		{"only the spool can take it", "GET", "/index.php?" + good,
			func(item *routerv1.RouteItem) *routerv1.RouteAnswer {
				if item.GetSpooled() {
					return &routerv1.RouteAnswer{}
				}
				return &routerv1.RouteAnswer{Error: errkind.Unavailable(nil, "the store does not answer").Proto()}
			}, 200, `{"success":true,"message":"Data Received","requestId":"<id>"}`, "call_end"},
		{"a bug behind", "GET", "/index.php?" + good,
			func(*routerv1.RouteItem) *routerv1.RouteAnswer {
				return &routerv1.RouteAnswer{Error: errkind.Internal(io.EOF).Proto()}
			},
			500, `{"success":false,"message":"internal error","requestId":"<id>"}`, "call_end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.mu.Lock()
			f.items, f.answer = nil, c.answer
			f.mu.Unlock()
			resp, body := do(t, c.method, front.URL+c.target, nil)
			id := resp.Header.Get("X-Request-Id")
			if id == "" {
				t.Error("no X-Request-Id")
			}
			if want := strings.ReplaceAll(c.body, "<id>", id); resp.StatusCode != c.status || body != want {
				t.Errorf("got %d %s\nwant %d %s", resp.StatusCode, body, c.status, want)
			}
			if c.status == 405 && resp.Header.Get("Allow") != "GET" {
				t.Errorf("Allow: %q", resp.Header.Get("Allow"))
			}
			if c.status == 503 && resp.Header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
			poll(t, 5*time.Second, "router was told", func() bool { return f.last().GetRequestId() == id }) // a refusal is recorded afterwards
			item, got := f.last(), ""
			switch cb := item.GetCallback().(type) {
			case *routerv1.RouteItem_AmeyoCallEnd:
				got = "call_end"
			case *routerv1.RouteItem_AmeyoCallStart:
				got = "call_start"
			case *routerv1.RouteItem_Refused:
				got = strconv.Itoa(int(cb.Refused.GetStatus()))
			}
			if got != c.recorded || item.GetRequestId() != id {
				t.Errorf("router was told %q as %s, want %q as %s", got, item.GetRequestId(), c.recorded, id)
			}
			poll(t, 10*time.Second, "nothing is left for the next case", s.spool.spool.Empty)
		})
	}
}

// The query reaches the journal as it came, and the rules as PHP read it.
func TestQueryAsPHPReadIt(t *testing.T) {
	f := &fakeRouter{answer: accept}
	front := serve(t, f, map[string]string{})
	raw := "unique_id=1&unique_id=+2+&customerId=\x83\x65&customerCRTId=a;b%zz&systemDisposition=BUSY&unknown=x&customer_id=evil"
	u := front.Listener.Addr().String()
	req := &http.Request{Method: "GET", URL: mustURL(t, "http://"+u+"/index.php"), Host: u}
	req.URL.RawQuery = raw
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	item := f.last()
	if resp.StatusCode != 200 || string(item.GetQuery()) != raw {
		t.Errorf("status %d, journaled query %q", resp.StatusCode, item.GetQuery())
	}
	end := item.GetAmeyoCallEnd()
	if end.GetUniqueId() != "2" || end.GetCustomerCrtId() != "a;b%zz" || end.GetCustomerId() != "\uFFFDe" {
		t.Errorf("got %q", end)
	}
}

// No header of a request changes what becomes of its callback: gRPC's, which the gateway would obey, neither.
func TestHeadersMeanNothing(t *testing.T) {
	front := serve(t, &fakeRouter{answer: accept}, map[string]string{})
	for name, value := range map[string]string{"Grpc-Timeout": "1n", "grpc-timeout": "soon", "Grpc-Metadata-X-Bin": "%", "Accept": "text/html", "X-HTTP-Method-Override": "POST"} {
		if resp, body := do(t, "GET", front.URL+"/index.php?"+good, map[string]string{name: value}); resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %s", name, resp.StatusCode, body)
		}
	}
}

// Only the listed networks may send, behind trusted proxies by X-Forwarded-For.
func TestAllowedNetworks(t *testing.T) {
	for _, c := range []struct {
		name, allowed, proxies, forwarded string
		status                            int
	}{
		{"nobody is listed", "", "", "", 200},
		{"loopback is listed", "127.0.0.0/8", "", "", 200},
		{"another network", "10.0.0.0/8", "", "", 403},
		{"a header of somebody who is no proxy", "10.0.0.0/8", "", "10.1.2.3", 403},
		{"behind a proxy", "10.0.0.0/8", "127.0.0.1", "10.1.2.3", 200},
		{"behind two proxies", "10.0.0.0/8", "127.0.0.1,192.0.2.0/24", "10.1.2.3, 192.0.2.7", 200},
		{"a forged first hop", "10.0.0.0/8", "127.0.0.1", "10.1.2.3, 203.0.113.9", 403},
		{"a broken header", "10.0.0.0/8", "127.0.0.1", "nonsense", 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fakeRouter{answer: accept}
			front, s := serveService(t, f, map[string]string{"AMEYO_ALLOWED_NETWORKS": c.allowed, "TRUSTED_PROXIES": c.proxies})
			var logged bytes.Buffer
			s.strangers.log = slog.New(slog.NewTextHandler(&logged, nil))
			header := map[string]string{}
			if c.forwarded != "" {
				header["X-Forwarded-For"] = c.forwarded
			}
			resp, body := do(t, "GET", front.URL+"/index.php?"+good, header)
			if resp.StatusCode != c.status {
				t.Errorf("got %d %s, want %d", resp.StatusCode, body, c.status)
			}
			if resp, _ := do(t, "GET", front.URL+"/healthz", nil); resp.StatusCode != 200 {
				t.Errorf("healthz: %d", resp.StatusCode)
			}
			counted := map[int]int{200: 0, 403: 1}[c.status]
			if want := fmt.Sprintf(`callrelay_tokens_wrong_total{callrelay_door="ameyo",callrelay_outcome="address",service_name="test"} %d`, counted); !strings.Contains(metricsOf(s), want) {
				t.Errorf("no %s", want)
			}
			if logged := logged.String(); strings.Count(logged, "AMEYO_ALLOWED_NETWORKS") != counted || counted > 0 && !strings.Contains(logged, "door=ameyo from=") {
				t.Errorf("logged: %s", logged)
			}
		})
	}
}

func metricsOf(s *Service) string {
	w := httptest.NewRecorder()
	s.tel.MetricsHandler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return w.Body.String()
}

// With a secret path, callbacks are taken only there, everything else looks unknown, and the secret reaches nobody. Callbacks
// without it are counted, and logged without what they came with.
func TestPathSecret(t *testing.T) {
	const secret = "s3cret-s3cret-s3cret"
	f := &fakeRouter{answer: accept}
	front, s := serveService(t, f, map[string]string{"AMEYO_PATH_SECRET": secret})
	var logged bytes.Buffer
	s.strangers.log = slog.New(slog.NewTextHandler(&logged, nil))
	for target, status := range map[string]int{
		"/" + secret + "/index.php?" + good:         200,
		"/" + secret + "/v1/ameyo/call-end?" + good: 200,
		"/index.php?" + good:                        404,
		"/wrong/index.php?" + good:                  404,
		"/" + secret + "x/index.php?" + good:        404,
		"/" + secret + "/nothing":                   404,
		"/wrong/v1/ameyo/call-start":                404,
		"/" + secret + "/wrong/index.php":           404,
		"/wrong":                                    404,
		"/wrong/":                                   404,
		"/favicon.ico":                              404,
		"/healthz":                                  200,
	} {
		if resp, body := do(t, "GET", front.URL+target, nil); resp.StatusCode != status {
			t.Errorf("%s: got %d %s, want %d", target, resp.StatusCode, body, status)
		}
	}
	if resp, _ := do(t, "POST", front.URL+"/"+secret+"/index.php", nil); resp.StatusCode != 405 {
		t.Errorf("POST: %d", resp.StatusCode)
	}
	const strangers = 4 // /index.php, /wrong/index.php, /SECRETx/index.php, /wrong/v1/ameyo/call-start
	if want := fmt.Sprintf(`callrelay_tokens_wrong_total{callrelay_door="ameyo",callrelay_outcome="wrong",service_name="test"} %d`, strangers); !strings.Contains(metricsOf(s), want) {
		t.Errorf("no %s", want)
	}
	if logged := logged.String(); strings.Count(logged, "door=ameyo from=127.0.0.1") != strangers || strings.Contains(logged, secret) || strings.Contains(logged, "/wrong") {
		t.Errorf("logged:\n%s", logged)
	}
	if callbackBehind("") || callbackBehind("*") || callbackBehind("/") || !callbackBehind("//index.php") {
		t.Error("what is a callback but for its secret")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, item := range f.items {
		if strings.Contains(item.String(), secret) {
			t.Errorf("the secret went to router: %v", item)
		}
	}
}

func mustURL(t *testing.T, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestOpenAPI(t *testing.T) {
	front := serve(t, &fakeRouter{answer: accept}, map[string]string{})
	_, body := do(t, "GET", front.URL+"/openapi.json", nil)
	var doc struct{ Paths map[string]any }
	if err := json.Unmarshal([]byte(body), &doc); err != nil {
		t.Fatal(err)
	}
	for path := range callbackPaths {
		if doc.Paths[path] == nil {
			t.Errorf("%s is not described", path)
		}
	}
}
