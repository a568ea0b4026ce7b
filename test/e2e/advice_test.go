package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"callrelay/sim/topsii"
)

// ask makes one request of the operator's API.
func (r *relay) ask(method, path, token, body string) (status int, answer map[string]any) {
	r.t.Helper()
	req, err := http.NewRequest(method, r.url+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := r.http.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		r.t.Errorf("%s %s: %q is not JSON", method, path, text)
	}
	return resp.StatusCode, answer
}

// What stopped a call is said, over HTTP and by command, and a resend corrects it once, however often one clicks.
func TestDiagnoseAndResend(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *relay) {
		state := r.operator()
		const call = 4100
		r.fault(topsii.Fault{Kind: topsii.Fail, CallID: call, MessageCode: "WTYP0010", SubMessageCode: "WPRDEXTC3202", Times: 1})
		first := r.end(connectedEnd(call)...)
		r.accepted(first)
		r.becomes(state, call, 1, "dead")

		code, d := r.ask("GET", "/v1/calls/4100:diagnose", "", "")
		if code != 200 || d["level"] != "LEVEL_FAILED" || d["step"] != "upstream_answer" {
			t.Errorf("diagnose: %d %v", code, d)
		}
		says(t, "diagnose", r.run(2, "diagnose", "4100"), "6. STOP", "cannot identify the staff", "userId")
		says(t, "diagnose in Japanese", r.run(2, "diagnose", "4100", "--lang", "ja"), "担当者を特定できません")
		says(t, "diagnose of nothing", r.run(notFound, "diagnose", "4199"), "2. STOP")

		body := `{"call":"4100","set":{"userId":"agent7"},"reason":"a wrong agent"}`
		code, one := r.ask("POST", "/v1/requests/"+first.RequestID+":resend", "", body)
		if code != 200 || one["flow"] != "createCallEnd" || one["already"] == true {
			t.Fatalf("resend: %d %v", code, one)
		}
		r.eventually(10*time.Second, "it is delivered", func() bool { return len(r.held(call)) == 1 })
		concurrently(10, 10, func(int) {
			if code, again := r.ask("POST", "/v1/requests/"+first.RequestID+":resend", "", body); code != 200 || again["requestId"] != one["requestId"] || again["already"] != true {
				t.Errorf("a further click: %d %v", code, again)
			}
		})
		if got := r.registered(call); len(got) != 1 || !strings.Contains(got[0], `"predictiveStaffId":"agent7"`) {
			t.Errorf("TopS.II holds %v", got)
		}
		r.becomes(state, call, 1, "discarded")
		r.becomes(state, call, 2, "delivered")
		if a := r.end(connectedEnd(call)...); !a.Duplicate {
			t.Errorf("a late repeat of the first passes: %s", a.Body)
		}
		r.run(done, "diagnose", "4100")
		says(t, "the journal", r.run(done, "call", "4100"), "resend", "superseded", "a wrong agent")

		// What was delivered needs force, and then it goes once.
		again := "/v1/requests/" + one["requestId"].(string) + ":resend"
		if code, a := r.ask("POST", again, "", `{"call":"4100","reason":"deleted by mistake"}`); code != 409 || !strings.Contains(a["message"].(string), "force") {
			t.Errorf("without force: %d %v", code, a)
		}
		concurrently(8, 8, func(int) {
			if code, a := r.ask("POST", again, "", `{"call":"4100","reason":"deleted by mistake","force":true}`); code != 200 {
				t.Errorf("with force: %d %v", code, a)
			}
		})
		r.becomes(state, call, 3, "delivered")
		if got := r.stored(state, call).GetDeliveries(); len(got) != 3 {
			t.Errorf("%d deliveries after clicking eight times, want 3", len(got))
		}

		// A refused callback, corrected.
		bad := r.end("unique_id", "4101", "customerId", "c", "systemDisposition", connected, "userId", "a", "dialledPhone", "0300000001")
		if bad.Status != 400 {
			t.Fatalf("%d %s", bad.Status, bad.Body)
		}
		says(t, "diagnose", r.run(2, "diagnose", "request/"+bad.RequestID), "1. STOP", "customerCRTId")
		r.run(failed, "resend", bad.RequestID, "--reason", "not corrected")
		for range 2 {
			says(t, "resend", r.run(done, "resend", bad.RequestID, "--set", "customerCRTId=d336-1", "--reason", "left out by the dialer"), "ameyo/4101", "rule 1")
		}
		r.eventually(10*time.Second, "the corrected one is delivered", func() bool { return len(r.held(4101)) == 1 })
		if code, d := r.ask("GET", "/v1/calls/request/"+bad.RequestID+":diagnose", "", ""); code != 200 || d["level"] == "LEVEL_FAILED" {
			t.Errorf("after it was replaced: %d %v", code, d)
		}
		if d := r.duplicates(); len(d) != 1 { // the forced one
			t.Errorf("duplicates %v, want that of the force", d)
		}
	})
}

// Explain has no effect; by command it reads the old relay's logs and says where decisions differ.
func TestExplain(t *testing.T) {
	t.Parallel()
	r := startWith(t, []string{"OPERATOR_TOKENS=vic:viewer:viewer-viewer-viewer-viewer"})
	const token = "viewer-viewer-viewer-viewer"
	body := `{"stored":true,"callbacks":["http://relay/index.php?unique_id=4200&customerId=c&customerCRTId=x&systemDisposition=CONNECTED&userId=a&dialledPhone=07029109978"]}`
	for range 2 {
		code, a := r.ask("POST", "/v1/callbacks:explain", token, body)
		text, _ := json.Marshal(a)
		if code != 200 || !strings.Contains(string(text), `createCallEnd`) || strings.Contains(string(text), "07029109978") || !strings.Contains(string(text), "9978") {
			t.Errorf("explain: %d %s", code, text)
		}
	}
	if code, _ := r.ask("POST", "/v1/callbacks:explain", "", body); code != 401 {
		t.Errorf("without a token: %d", code)
	}
	if n := len(r.stored(r.operator(), 4200).GetJournal()); n != 0 {
		t.Errorf("explaining left %d entries", n)
	}
	sample := filepath.Join("..", "..", "services", "router", "explain", "testdata", "php-relay.txt")
	says(t, "the old relay's log", r.run(done, "explain", "--log", sample), "7 callbacks compared: 7 the same, 0 different")
	rules := filepath.Join("..", "..", "services", "router", "ameyo", "rules.txt")
	says(t, "another profile", r.run(attention, "explain", "--rules", rules, "--profile", "hangup-signal",
		`unique_id=1&systemDisposition=BUSY&shareablePhonesDialIndex=0&phoneList=["1","2"]`), "THE RULES DIFFER", "wait for phone 2", "createNotAnswer")
}
