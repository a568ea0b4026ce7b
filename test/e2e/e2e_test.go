package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const connected = "CONNECTED"

// connectedEnd is rule 1 for a call.
func connectedEnd(call int) []string {
	return []string{"unique_id", strconv.Itoa(call), "customerId", "c" + strconv.Itoa(call), "customerCRTId", "crt-" + strconv.Itoa(call),
		"systemDisposition", connected, "userId", "agent1", "dialledPhone", "03000000001"}
}

func TestThousandDistinctCallbacksAreDeliveredOnce(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *relay) {
		const n, first = 1000, 100_000
		concurrently(n, 64, func(i int) { r.accepted(r.end(connectedEnd(first + i)...)) })
		r.eventually(30*time.Second, "all are delivered", func() bool { return r.effects() >= n })
		if got := r.effects(); got != n {
			t.Errorf("delivered %d, want %d", got, n)
		}
		for i := range n {
			if got := r.held(first + i); len(got) != 1 {
				t.Errorf("call %d is held %d times", first+i, len(got))
			}
		}
	})
}

func TestTwoHundredCopiesGiveOneDelivery(t *testing.T) {
	for mode, args := range map[string][]string{"one process": nil, "four processes": {"--split"}} {
		t.Run(mode, func(t *testing.T) {
			// Each waits for the commits before it; on a busy machine the last would be spooled, and told so without a word of
			// the one it repeats.
			r := startWith(t, []string{"ACK_BUDGET=50s"}, args...)
			var fresh, repeats atomic.Int32
			concurrently(200, 200, func(int) {
				switch a := r.end(connectedEnd(7)...); {
				case a.Status != 200:
					t.Errorf("%d %s", a.Status, a.Body)
				case a.Duplicate:
					repeats.Add(1)
				default:
					fresh.Add(1)
				}
			})
			if fresh.Load() != 1 || repeats.Load() != 199 {
				t.Errorf("%d new and %d duplicates, want 1 and 199", fresh.Load(), repeats.Load())
			}
			r.eventually(10*time.Second, "it is delivered", func() bool { return r.effects() == 1 })
		})
	}
}

// Every rule of the table (spec/ameyo-topsii.md), as sequences of callbacks and what TopS.II holds afterwards.
func TestEveryRule(t *testing.T) {
	two := `{"phoneList":["09000000001","08000000002"]}`
	const at = "2026-03-06 13:20:05"
	fails := func(call int, status, index, phones string) []string {
		v := []string{"unique_id", strconv.Itoa(call), "customerId", "c", "customerCRTId", "crt-" + strconv.Itoa(call), "systemDisposition", status,
			"shareablePhonesDialIndex", index, "dialledPhone", "09000000001", "callTime", at, "phoneList", phones}
		return v
	}
	connects := func(call int, index, phones string) []string {
		return append(fails(call, connected, index, phones), "userId", "agent1", "cstmPhone", "08000000002", "callStartTime", at, "callEndTime", at)
	}
	end := func(call int, tel, errorInfo string) string {
		s := fmt.Sprintf(`{"predictiveCallCreateCallEnd":{"callId":%d,"callStartTime":"%s","callEndTime":"%s","subCtiHistoryId":"crt-%d","targetTel":"%s","predictiveStaffId":"agent1"`, call, at, at, call, tel)
		if errorInfo != "" {
			s += `,"errorInfo":"` + errorInfo + `"`
		}
		return s + "}}"
	}
	notAnswer := func(call int, one, second string) string {
		s := fmt.Sprintf(`{"predictiveCallCreateNotAnswer":{"callId":%d,"callTime":"%s","errorInfo1":"%s"`, call, at, one)
		if second != "" {
			s += `,"errorInfo2":"` + second + `"`
		}
		return s + "}}"
	}
	for _, name := range []string{"one process", "four processes"} {
		t.Run(name, func(t *testing.T) {
			var args []string
			if name == "four processes" {
				args = append(args, "--split")
			}
			r := start(t, args...)
			for i, c := range []struct {
				name      string
				callbacks func(call int) [][]string
				want      func(call int) []string
			}{
				{"1 connected on phone 1", func(n int) [][]string { return [][]string{connects(n, "0", two)} },
					func(n int) []string { return []string{end(n, "09000000001", "")} }},
				{"2 connected on phone 2 after phone 1 failed", func(n int) [][]string { return [][]string{fails(n, "BUSY", "0", two), connects(n, "1", two)} },
					func(n int) []string { return []string{end(n, "08000000002", "BUSY")} }},
				{"2 connected on phone 2, nothing known of phone 1", func(n int) [][]string { return [][]string{connects(n, "1", two)} },
					func(n int) []string { return []string{end(n, "08000000002", "")} }},
				{"3 single phone", func(n int) [][]string { return [][]string{fails(n, "NO_ANSWER", "0", `["09000000001"]`)} },
					func(n int) []string { return []string{notAnswer(n, "NO_ANSWER", "")} }},
				{"4 phone 1 of two waits", func(n int) [][]string { return [][]string{fails(n, "BUSY", "0", two)} },
					func(int) []string { return nil }},
				{"5 both failed", func(n int) [][]string { return [][]string{fails(n, "BUSY", "0", two), fails(n, "NO_ANSWER", "1", two)} },
					func(n int) []string { return []string{notAnswer(n, "BUSY", "NO_ANSWER")} }},
				{"5 phone 2 before phone 1, which is absorbed", func(n int) [][]string { return [][]string{fails(n, "NO_ANSWER", "1", two), fails(n, "BUSY", "0", two)} },
					func(n int) []string { return []string{notAnswer(n, "UNKNOWN", "NO_ANSWER")} }},
				{"a phone-1 repeat between phone 1 and phone 2 changes nothing", func(n int) [][]string {
					return [][]string{fails(n, "BUSY", "0", two), fails(n, "BUSY", "0", two), fails(n, "NO_ANSWER", "1", two)}
				}, func(n int) []string { return []string{notAnswer(n, "BUSY", "NO_ANSWER")} }},
			} {
				call := 1000 + i
				for _, values := range c.callbacks(call) {
					if a := r.end(values...); a.Status != 200 {
						t.Errorf("%s: %d %s", c.name, a.Status, a.Body)
					}
				}
				want := c.want(call)
				r.eventually(10*time.Second, c.name, func() bool { return len(r.held(call)) >= len(want) })
				if got := r.registered(call); fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("%s:\n got %v\nwant %v", c.name, got, want)
				}
			}
			r.accepted(r.begin("cs_unique_id", "00042", "userId", "agent1", "phone", "03000000001"))
			r.eventually(10*time.Second, "call start", func() bool { return len(r.held(42)) == 1 })
			if got := r.registered(42)[0]; got != `{"predictiveCallCreateCallStart":{"callId":42,"predictiveStaffId":"agent1","targetTel":"03000000001"}}` {
				t.Errorf("call start: %s", got)
			}
		})
	}
}

// Phone 1 and phone 2 at the same instant: whichever is first, TopS.II gets exactly one createNotAnswer with phone 2's
// status, and phone 1's or UNKNOWN.
func TestBothPhonesAtTheSameInstant(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *relay) {
		const n, first = 1000, 500_000
		two := `["09000000001","08000000002"]`
		concurrently(2*n, 64, func(i int) {
			call, index := first+i/2, i%2
			a := r.end("unique_id", strconv.Itoa(call), "customerId", "c", "customerCRTId", "same", "systemDisposition", []string{"BUSY", "NO_ANSWER"}[index],
				"shareablePhonesDialIndex", strconv.Itoa(index), "phoneList", two)
			if a.Status != 200 {
				t.Errorf("%d %s", a.Status, a.Body) // a phone 1 that comes second repeats the gate of phone 2
			}
		})
		r.eventually(60*time.Second, "all are delivered", func() bool { return r.effects() >= n })
		unknown := 0
		for i := range n {
			got := r.registered(first + i)
			switch {
			case len(got) != 1:
				t.Errorf("call %d: %d not-answers: %v", first+i, len(got), got)
			case strings.Contains(got[0], `"errorInfo1":"UNKNOWN","errorInfo2":"NO_ANSWER"`):
				unknown++
			case !strings.Contains(got[0], `"errorInfo1":"BUSY","errorInfo2":"NO_ANSWER"`):
				t.Errorf("call %d: %s", first+i, got[0])
			}
		}
		t.Logf("phone 2 was first in %d of %d", unknown, n)
	})
}

// What cannot be read is refused with the field, can be found, and harms nobody else.
func TestBadInputHarmsNobody(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *relay) {
		for _, c := range []struct {
			name, path, query string
			status            int
			field             string
		}{
			{"no call id", "/index.php", "systemDisposition=BUSY", 400, "unique_id"},
			{"connected without customerCRTId", "/v1/ameyo/call-end", "unique_id=1&systemDisposition=connected&userId=a&dialledPhone=1", 400, "customerCRTId"},
			{"no digits", "/call_start.php", "cs_unique_id=abc&userId=a&phone=1", 400, "cs_unique_id"},
			{"100 KB", "/index.php", "unique_id=1&x=" + strings.Repeat("x", 100<<10), 414, ""},
		} {
			a := r.get(c.path, c.query)
			if a.Status != c.status || a.Field != c.field || a.Success || a.Message == "" || a.RequestID == "" {
				t.Errorf("%s: %d %s", c.name, a.Status, a.Body)
				continue
			}
			if out, err := r.callrelay("call", "request/"+a.RequestID); err != nil || !strings.Contains(out, strconv.Itoa(c.status)) {
				t.Errorf("%s: the refused request is not found: %v\n%s", c.name, err, out)
			}
		}
		// Shift-JIS bytes, a repeated parameter, a semicolon and a bad escape.
		r.accepted(r.send("/index.php", "unique_id=8&unique_id=9&customerId=\x83\x65\x83\x58&customerCRTId=a;b%zz&systemDisposition=BUSY"))
		r.eventually(10*time.Second, "the odd one is delivered", func() bool { return len(r.held(9)) == 1 })

		resp, err := r.http.Post(r.url+"/index.php", "application/x-www-form-urlencoded", strings.NewReader("unique_id=1"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET" {
			t.Errorf("POST: %d, Allow %q", resp.StatusCode, resp.Header.Get("Allow"))
		}
	})
}

// Ctrl-C ends everything within 5 s; what was accepted and not yet delivered is delivered after the next start; a private
// Redis left over from a kill is adopted.
func TestStopAndKillLoseNothing(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *relay) {
		out, err := r.callrelay("hold", "topsii", "--reason", "test")
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		concurrently(50, 16, func(i int) { r.accepted(r.end(connectedEnd(200 + i)...)) })
		if took := r.interrupt(); took > 5*time.Second {
			t.Errorf("Ctrl-C took %s", took)
		}
		r.launch()
		concurrently(50, 16, func(i int) { r.accepted(r.end(connectedEnd(300 + i)...)) })
		r.kill()
		r.launch()
		if got := r.effects(); got != 0 {
			t.Errorf("%d were sent under a hold", got)
		}
		if out, err := r.callrelay("release", "topsii"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		r.eventually(30*time.Second, "all are delivered", func() bool { return r.effects() >= 100 })
		if d := r.duplicates(); len(d) != 0 || r.effects() != 100 {
			t.Errorf("%d delivered, duplicates %v", r.effects(), d)
		}
	})
}
