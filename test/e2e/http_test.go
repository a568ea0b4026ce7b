package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"callrelay/sim/topsii"
)

// operate sends a request of an operator's and returns the status and the answer.
func (r *relay) operate(method, path, body string, header ...string) (int, map[string]any) {
	r.t.Helper()
	req, err := http.NewRequest(method, r.url+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := r.http.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	var last map[string]any
	for d := json.NewDecoder(resp.Body); ; { // of a stream the last message
		if err := d.Decode(&last); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			r.t.Fatalf("%s %s: %d %v", method, path, resp.StatusCode, err)
		}
	}
	return resp.StatusCode, last
}

// text is an answer as JSON, without the white space that varies.
func text(v any) string {
	raw, _ := json.Marshal(v)
	return string(raw)
}

// The operator's whole API over HTTP, in one process and in four.
func TestOperatorOverHTTP(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *relay) {
		a := r.end("unique_id", "71", "customerId", "c-71", "customerCRTId", "x", "systemDisposition", "BUSY", "dialledPhone", "090-1234-5678", "userId", "agent9")
		r.accepted(a)
		r.eventually(10*time.Second, "it is delivered", func() bool { return len(r.held(71)) == 1 })
		r.end("unique_id", "71", "customerId", "c-71", "customerCRTId", "x", "systemDisposition", "BUSY", "dialledPhone", "090-1234-5678", "userId", "agent9")
		bad := r.end("unique_id", "")

		ok := func(method, path, body string, parts ...string) map[string]any {
			t.Helper()
			status, answer := r.operate(method, path, body)
			if status != 200 {
				t.Errorf("%s %s: %d %v", method, path, status, answer)
			}
			says(t, method+" "+path, text(answer), parts...)
			return answer
		}
		r.eventually(10*time.Second, "the index has it", func() bool {
			_, answer := r.operate("POST", "/v1/calls:search", `{"query":"c-71"}`)
			return strings.Contains(text(answer), `"ameyo/71"`)
		})
		for _, query := range []string{"71", "5678", "+81 90 1234 5678", "agent9", a.RequestID} {
			ok("POST", "/v1/calls:search", text(map[string]string{"query": query}), `"ameyo/71"`)
		}
		ok("GET", "/v1/calls/ameyo/71", "", `"state":"delivered"`, "is a duplicate of "+a.RequestID)
		ok("GET", "/v1/calls/71", "", `"call":"ameyo/71"`)
		ok("GET", "/v1/calls/request/"+bad.RequestID, "", "unique_id")
		ok("GET", "/v1/requests/"+a.RequestID, "", `"bucket":"delivered"`, `"call":"ameyo/71"`)
		ok("GET", "/v1/requests/"+bad.RequestID, "", `"bucket":"refused"`)
		ok("GET", "/v1/accounting?since=2h&check=true", "", `"received":"3"`, `"refused":"1"`, `"duplicate":"1"`, `"accepted":"1"`, `"delivered":"1"`, `"differences":[]`)
		ok("GET", "/v1/deliveries?state=delivered", "", `"ameyo/71/1"`)

		// A hold is an alarm and is journaled with who did it; nobody can say from outside who they are.
		status, answer := r.operate("POST", "/v1/destinations/topsii:hold", `{"reason":"maintenance"}`, "Grpc-Metadata-X-Callrelay-Actor", "the boss", "X-Callrelay-Actor", "the boss")
		if status != 200 || strings.Contains(text(ok("GET", "/v1/calls/destination/topsii", "", "hold because maintenance")), "the boss") {
			t.Errorf("hold: %d %v", status, answer)
		}
		ok("GET", "/v1/alarms", "", "destination_held", "topsii is held: maintenance")
		says(t, "the first line", r.run(done, "destinations"), "ALARM: topsii is held: maintenance")
		r.accepted(r.end(connectedEnd(72)...))
		ok("GET", "/v1/deliveries?state=held&destination=topsii", "", `"ameyo/72/1"`, `"state":"held"`)
		ok("POST", "/v1/destinations/topsii:release", `{}`, `"held":false`)
		r.eventually(10*time.Second, "it is sent", func() bool { return len(r.held(72)) == 1 })

		// One by one and in bulk.
		for call := 80; call < 84; call++ {
			r.fault(topsii.Fault{Kind: topsii.Fail, CallID: int64(call), MessageCode: "WTYP0010", SubMessageCode: "WPRDEXTC3203", Times: 1})
			r.accepted(r.end(connectedEnd(call)...))
		}
		r.eventually(10*time.Second, "all are dead", func() bool {
			_, answer := r.operate("GET", "/v1/deliveries?state=dead", "")
			return len(answer["deliveries"].([]any)) == 4
		})
		ok("POST", "/v1/deliveries/ameyo/80/1:retry", `{"reason":"logged in"}`, `"ameyo/80/1"`)
		if status, answer := r.operate("POST", "/v1/deliveries/ameyo/81/1:discard", `{}`); status != 400 || answer["field"] != "reason" {
			t.Errorf("discard without a reason: %d %v", status, answer)
		}
		ok("POST", "/v1/deliveries/ameyo/81/1:discard", `{"reason":"by hand"}`, `"discarded"`)
		if status, answer := r.operate("POST", "/v1/deliveries/ameyo/81/1:discard", `{"reason":"by hand"}`); status != 409 {
			t.Errorf("a second click: %d %v", status, answer)
		}
		ok("POST", "/v1/deliveries:retry", `{"filter":{"state":["dead"]}}`, `"finished":true`, `"done":"2"`)
		r.eventually(10*time.Second, "they are sent", func() bool { return r.effects() == 5 })
		ok("GET", "/v1/accounting?check=true", "", `"differences":[]`, `"discarded":"1"`)
		says(t, "accounting", r.run(done, "accounting", "--check"), "difference: none")
		says(t, "calls", r.run(done, "calls", "5678"), "ameyo/71")
		says(t, "request", r.run(done, "request", a.RequestID), "delivered")

		for path, want := range map[string]int{
			"/v1/calls/ameyo/999": 404, "/v1/requests/none": 404, "/v1/deliveries?state=lost": 400, "/v1/accounting?since=never": 400,
			"/v1/nothing": 404, "/v1/deliveries?page_token=x": 400, "/v1/destinations": 200, "/openapi.json": 200,
		} {
			if status, answer := r.operate("GET", path, ""); status != want {
				t.Errorf("%s: %d %v, want %d", path, status, answer, want)
			}
		}
		if status, answer := r.operate("POST", "/v1/calls:search", `{"query":"`+strings.Repeat("x", 70<<10)+`"}`); status != 400 {
			t.Errorf("a long body: %d %v", status, answer)
		}
		if d := r.duplicates(); len(d) != 0 {
			t.Errorf("TopS.II got twice: %v", d)
		}
	})
}

// The live tail as server-sent events: it is resumed behind the last event that was seen.
func TestTailOverHTTP(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *relay) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		open := func(after, filter string) *bufio.Scanner {
			req, err := http.NewRequestWithContext(ctx, "GET", r.url+"/v1/journal:watch?filter="+url.QueryEscape(filter), nil)
			if err != nil {
				t.Fatal(err)
			}
			if after != "" {
				req.Header.Set("Last-Event-ID", after)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { resp.Body.Close() })
			if resp.Header.Get("Content-Type") != "text/event-stream" {
				t.Fatalf("%d %v", resp.StatusCode, resp.Header)
			}
			return bufio.NewScanner(resp.Body)
		}
		next := func(s *bufio.Scanner) (id, data string) {
			t.Helper()
			for s.Scan() {
				if v, ok := strings.CutPrefix(s.Text(), "id: "); ok {
					id = v
				}
				if v, ok := strings.CutPrefix(s.Text(), "data: "); ok {
					return id, v
				}
			}
			t.Fatalf("the tail ended: %v", s.Err())
			return "", ""
		}
		tail := open("", "")
		r.accepted(r.end(connectedEnd(91)...))
		id, data := next(tail)
		says(t, "the first event", data, "ameyo/91", "received ameyo.call_end")
		for id == "" { // of entries that were written together the last one has the place to go on behind
			id, _ = next(tail)
		}
		r.accepted(r.end(connectedEnd(92)...))
		if _, data := next(open(id, "ameyo/92 attempt delivered")); !strings.Contains(data, "ameyo/92") {
			t.Errorf("resumed with %s", data)
		}
		if took := r.interrupt(); took > 5*time.Second {
			t.Errorf("with a reader Ctrl-C took %s", took)
		}
	})
}
