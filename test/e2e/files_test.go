package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"

	"callrelay/sim/topsii"
)

// collector is an OTLP receiver that keeps everything as text.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	mu   sync.Mutex
	text strings.Builder
}

// Export takes what a process sends.
func (c *collector) Export(_ context.Context, req *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintln(&c.text, req.String())
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

func (c *collector) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// collect starts a collector until the test ends.
func collect(t *testing.T) (c *collector, addr string) {
	t.Helper()
	listen, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, server := &collector{}, grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, c)
	go func() { _ = server.Serve(listen) }()
	t.Cleanup(server.Stop)
	return c, listen.Addr().String()
}

var dailyLine = regexp.MustCompile(`^\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2} \| \[([^\]]+)\] \| `)

// readDaily reads the daily files: the lines of each request by the kind of file that they are in.
func readDaily(t *testing.T, dir string) map[string]map[string][]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no daily files: %v", err)
	}
	told := map[string]map[string][]string{}
	for _, file := range files {
		name := filepath.Base(file)
		kind := name[:max(0, len(name)-len("-2006-01-02.log"))]
		if !slices.Contains([]string{"call_start", "call_end", "not_answer", "general"}, kind) {
			t.Errorf("an unknown file: %s", name)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if line == "==== "+strings.TrimSuffix(strings.TrimPrefix(name, kind+"-"), ".log")+" ====\n" {
				continue
			}
			m := dailyLine.FindStringSubmatch(line)
			if m == nil {
				t.Errorf("%s: not a line of the known form: %q", name, line)
				continue
			}
			if told[m[1]] == nil {
				told[m[1]] = map[string][]string{}
			}
			told[m[1]][kind] = append(told[m[1]][kind], line)
		}
	}
	return told
}

// The number that nobody may read, as different parameters write it; 2222 is what stays of it.
const phone, dashed, abroad, phone2 = "09011112222", "090-1111-2222", "+819011112222", "08011112222"

// unmasked are parts of it that no mask leaves.
var unmasked = []string{"9011112", "8011112", "0-1111-2", "1-1112222"}

const apiKey, pathSecret = "Kq7Zw3Rb9Tn5Xc1Vm8Ld4Hs6Jf2Gp0Ya", "Door-Pw4Xk8Nz2Ty6Bq"

// leaks fails when a text holds the number, the API key or the secret path.
func leaks(t *testing.T, what, text string) {
	t.Helper()
	for _, secret := range append([]string{apiKey, pathSecret}, unmasked...) {
		if i := strings.Index(text, secret); i >= 0 {
			t.Errorf("%s holds %q: ...%s...", what, secret, text[max(0, i-160):min(len(text), i+80)])
		}
	}
}

// decoded is JSON with what its strings hold in base64.
func decoded(t *testing.T, text string) string {
	t.Helper()
	var all strings.Builder
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, inner := range v {
				fmt.Fprintf(&all, "\n%s: ", name)
				walk(inner)
			}
		case []any:
			for _, inner := range v {
				walk(inner)
			}
		case string:
			all.WriteString(v)
			if raw, err := base64.StdEncoding.DecodeString(v); err == nil {
				all.WriteString(" = " + string(raw))
			}
		}
	}
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Errorf("not JSON: %v\n%s", err, text)
	}
	walk(v)
	return all.String()
}

// A whole run: every request's lines are in one daily file, the right one, and neither they nor anything else that a person
// or a machine reads of the run holds the API key, the secret path or a phone number.
func TestFilesAndSecrets(t *testing.T) {
	t.Parallel()
	spans, otlp := collect(t)
	logs := filepath.Join(t.TempDir(), "logs")
	r := startWith(t, append([]string{"LOG_DIR=" + logs, "TEST_API_KEY=" + apiKey, "AMEYO_PATH_SECRET=" + pathSecret, "BREAKER_FAILURES=1000",
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + otlp, "OTEL_BSP_SCHEDULE_DELAY=50"}, impatient...), "--split")
	state := r.operator()

	files := map[string]string{} // request -> its file
	var calls []string           // for `callrelay call`
	send := func(file, path string, status int, values ...string) answer {
		t.Helper()
		a := r.send("/"+pathSecret+path, query(values))
		if files[a.RequestID] = file; a.Status != status || a.RequestID == "" {
			t.Errorf("%s %v: %d %s", path, values, a.Status, a.Body)
		}
		leaks(t, "an answer", a.Body+fmt.Sprint(a.Header))
		if status != 200 {
			calls = append(calls, "request/"+a.RequestID)
		}
		return a
	}
	phones := func(call int, more ...string) []string {
		calls = append(calls, strconv.Itoa(call))
		return append([]string{"customerId", "c", "customerCRTId", "crt", "userId", "agent1", "phone", phone, "displayPhone", dashed, "dialledPhone", phone,
			"dialedPhone", abroad, "dstPhone", phone, "cstmPhone", dashed, "phone1", phone, "phone2", phone2,
			"phoneList", `{"phoneList":["` + phone + `","` + phone2 + `"]}`, "unique_id", strconv.Itoa(call), "cs_unique_id", strconv.Itoa(call)}, more...)
	}
	begin := func(call int, more ...string) answer {
		t.Helper()
		return send("call_start", "/call_start.php", 200, phones(call, more...)...)
	}
	end := func(file string, call int, disposition, index string, more ...string) answer {
		t.Helper()
		return send(file, "/index.php", 200, phones(call, append([]string{"systemDisposition", disposition, "shareablePhonesDialIndex", index}, more...)...)...)
	}
	fault := func(call int, f topsii.Fault) { f.CallID = int64(call); r.fault(f) }
	const one = `["` + phone + `"]`

	begin(5000)
	begin(5000) // a duplicate
	ended := end("call_end", 5000, connected, "0")
	end("call_end", 5000, connected, "0")
	end("call_end", 5000, connected, "1") // a duplicate that differs
	end("not_answer", 5001, "BUSY", "0")
	end("not_answer", 5001, "BUSY", "0")
	end("not_answer", 5001, "NO_ANSWER", "1")
	end("not_answer", 5001, "NO_ANSWER", "1")
	end("not_answer", 5002, "BUSY", "0")
	end("call_end", 5002, connected, "1")
	end("call_end", 5002, "BUSY", "0") // a repeat of the call end, by its key
	end("not_answer", 5003, "NO_ANSWER", "0", "phoneList", one)
	end("not_answer", 5003, "NO_ANSWER", "0", "phoneList", one)
	end("not_answer", 5004, "NO_ANSWER", "1")
	end("not_answer", 5004, "BUSY", "0", "customerCRTId", "other")    // late, absorbed
	end("not_answer", 5005, "NO_ANSWER", "0", "phoneList", "["+phone) // not JSON
	end("not_answer", 5006, "CALL_DROP", "0", "phoneList", phone+";"+dashed+" / "+abroad)

	// Faults whose words name the number.
	begin(5100, "displayPhone", "")
	fault(5101, topsii.Fault{Kind: topsii.Fail, MessageCode: "WTYP0010", SubMessageCode: "WPRDEXTC3203", Message: "nobody at " + phone, Times: 1})
	dead := end("call_end", 5101, connected, "0")
	fault(5102, topsii.Fault{Kind: topsii.Fail, MessageCode: "ETYP0040", Message: "cannot call " + dashed, Times: 2})
	end("not_answer", 5102, "BUSY", "0", "phoneList", one)
	fault(5103, topsii.Fault{Kind: topsii.Cut, Times: 1})
	end("call_end", 5103, connected, "1")
	fault(5104, topsii.Fault{Kind: topsii.HTTP, Status: 503, Times: 1})
	begin(5104)
	fault(5105, topsii.Fault{Kind: topsii.Redirect, Location: "http://crm.example/?tel=" + phone, Times: 1})
	end("call_end", 5105, connected, "0")
	fault(5106, topsii.Fault{Kind: topsii.NonJSON, Times: 1})
	end("not_answer", 5106, "BUSY", "0", "phoneList", one)

	// Refusals.
	send("general", "/index.php", 400, phones(5200, "systemDisposition", connected, "customerCRTId", "")...)
	send("general", "/index.php", 400, phones(5200, "systemDisposition", "BUSY", "shareablePhonesDialIndex", "second")...)
	send("general", "/call_start.php", 400, phones(5200, "cs_unique_id", "x1")...)
	send("general", "/index.php", 414, phones(5200, "phoneList", strings.Repeat(phone+",", 2000))...)
	calls = slices.DeleteFunc(calls, func(c string) bool { return c == "5200" }) // of it nothing is stored
	posted, err := r.http.Post(r.url+"/"+pathSecret+"/index.php?phone="+phone, "application/x-www-form-urlencoded", strings.NewReader("dialledPhone="+phone))
	if err != nil {
		t.Fatal(err)
	}
	posted.Body.Close()
	files[posted.Header.Get("X-Request-Id")] = "general"
	if resp, err := r.http.Get(r.url + "/index.php?phone=" + url.QueryEscape(abroad)); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("without the secret: %v %v", resp, err)
	} else {
		resp.Body.Close()
	}

	// What operators do, and what they read.
	r.becomes(state, 5101, 1, "dead")
	says(t, "deliveries", r.run(done, "deliveries"), "ameyo/5101")
	for _, args := range []string{"deliveries", "destinations"} {
		leaks(t, args, r.run(done, args))
		leaks(t, args+" --json", decoded(t, r.run(done, args, "--json")))
	}
	r.run(done, "retry", "5101", "1")
	r.becomes(state, 5101, 1, "delivered")
	r.eventually(30*time.Second, "everything is delivered", func() bool { d := r.destination(state); return d.GetWaiting()+d.GetSending() == 0 })
	slices.Sort(calls)
	for _, call := range slices.Compact(calls) {
		leaks(t, "call "+call, r.run(done, "call", call))
		leaks(t, "call "+call+" --json", decoded(t, r.run(done, "call", call, "--json")))
	}
	_ = r.interrupt()

	told := readDaily(t, logs)
	for request, file := range files {
		var kinds []string
		for kind := range told[request] {
			kinds = append(kinds, kind)
		}
		if !slices.Equal(kinds, []string{file}) {
			t.Errorf("request %s is in %v, want %s alone: %v", request, kinds, file, told[request])
		}
		says(t, "request "+request, strings.Join(told[request][file], ""), "| incoming_get | ")
		for _, lines := range told[request] {
			leaks(t, "the daily files", strings.Join(lines, ""))
		}
	}
	for request := range told {
		if files[request] == "" {
			t.Errorf("lines of nobody's request: %v", told[request])
		}
	}
	// The grep means something: everything is there, masked.
	trace := strings.Split(ended.Header.Get("Traceparent"), "-")[1]
	story := strings.Join(told[ended.RequestID]["call_end"], "")
	says(t, "the story of one call end", story, "| decision | ", "| upstream_request | ", "| http_client | ", "| upstream_response | ", "status=success",
		`"targetTel":"*******2222"`, `"cstmPhone":"***-****-2222"`, `"dialedPhone":"+********2222"`, "trace_id="+trace)
	if n := strings.Count(story, "\n"); n != 5 {
		t.Errorf("the story of one call end has %d lines:\n%s", n, story)
	}
	output := r.output.String()
	says(t, "the output", output, dead.RequestID, strings.Split(dead.Header.Get("Traceparent"), "-")[1], "callrelay-ingress", "callrelay-state", "callrelay-upstream")
	leaks(t, "the output", output)
	says(t, "the spans", spans.String(), "GET /index.php", "ingress.accept", "router.decide", "state.commit", "upstream.deliver", ended.RequestID)
	leaks(t, "the spans", spans.String())
}
