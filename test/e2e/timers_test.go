package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
)

// A phone-1 status that phone 2 never takes expires, also across a restart: by PHONE1_EXPIRY it is sent alone or dropped,
// and said so in both cases. Whether a phone 2 may still read it is judged by when that one was received, not by the timer.
func TestPhone1Expires(t *testing.T) {
	for _, expiry := range []string{"send", "drop"} {
		t.Run(expiry, func(t *testing.T) {
			t.Parallel()
			logs := filepath.Join(t.TempDir(), "logs")
			r := startWith(t, []string{"PHONE1_EXPIRY=" + expiry, "PHONE1_STATE_TTL_SECONDS=2", "LOG_DIR=" + logs})
			fails := func(call int, status, index string) answer {
				return r.end("unique_id", strconv.Itoa(call), "customerId", "c", "customerCRTId", "crt"+index, "systemDisposition", status,
					"shareablePhonesDialIndex", index, "callTime", "2026-03-06 13:20:05", "phoneList", `["09000000001","08000000002"]`)
			}
			const alone, late = 4000, 4001
			stored := fails(alone, "BUSY", "0")
			r.accepted(stored)
			r.accepted(fails(late, "BUSY", "0"))
			began := time.Now()
			r.eventually(10*time.Second, "the daily file has it: a view, which a kill may leave behind", func() bool {
				files, _ := filepath.Glob(filepath.Join(logs, "not_answer-*.log"))
				return slices.ContainsFunc(files, func(file string) bool {
					text, _ := os.ReadFile(file)
					return strings.Contains(string(text), "["+stored.RequestID+"] | state | Stored phone1 status")
				})
			})
			// The timer outlives the process, whichever way that ends.
			if expiry == "send" {
				r.kill()
			} else {
				r.interrupt()
			}
			r.launch()
			state := r.operator()

			// Too late by its own time of receipt; the timer, which takes at least 10 s, is later still.
			r.eventually(10*time.Second, "the status is too old", func() bool { return time.Since(began) > 2500*time.Millisecond })
			r.accepted(fails(late, "NO_ANSWER", "1"))
			if expiry == "send" {
				r.becomes(state, late, 2, "delivered")
			} else {
				r.becomes(state, late, 1, "delivered")
			}

			r.eventually(20*time.Second, "the status expires", func() bool { return told(r.stored(state, alone), "expired") })
			both := `{"predictiveCallCreateNotAnswer":{"callId":%d,"callTime":"2026-03-06 13:20:05","errorInfo1":"UNKNOWN","errorInfo2":"NO_ANSWER"}}`
			one := `{"predictiveCallCreateNotAnswer":{"callId":%d,"callTime":"2026-03-06 13:20:05","errorInfo1":"BUSY"}}`
			wantAlone, wantLate := []string{}, []string{fmt.Sprintf(both, late)}
			if expiry == "send" {
				wantAlone, wantLate = []string{fmt.Sprintf(one, alone)}, []string{fmt.Sprintf(one, late), fmt.Sprintf(both, late)}
				r.becomes(state, alone, 1, "delivered")
			}
			if got := r.registered(alone); fmt.Sprint(got) != fmt.Sprint(wantAlone) || len(r.stored(state, alone).GetDeliveries()) != len(wantAlone) {
				t.Errorf("phone 2 never came:\n got %v\nwant %v", got, wantAlone)
			}
			if got := r.registered(late); fmt.Sprint(got) != fmt.Sprint(wantLate) {
				t.Errorf("phone 2 came too late:\n got %v\nwant %v", got, wantLate)
			}
			says(t, "call", r.run(done, "call", strconv.Itoa(alone)), "phone-1 record stored: BUSY", "phone-1 record expired: BUSY")
			if a := fails(alone, "BUSY", "0"); !a.Duplicate {
				t.Errorf("a repeat of the expired phone 1: %d %s", a.Status, a.Body)
			}
			r.interrupt()
			story := strings.Join(readDaily(t, logs)[stored.RequestID]["not_answer"], "")
			says(t, "the daily file", story, "incoming_get", "Stored phone1 status; waiting for phone2", "Phone1 status expired; phone2 never came")
			if sent := strings.Contains(story, "Upstream response received"); sent != (expiry == "send") {
				t.Errorf("the daily file says that it was sent: %v\n%s", sent, story)
			}
		})
	}
}

// told says whether the journal of a call has a phone-1 fact.
func told(call *operatorv1.Call, what string) bool {
	for _, e := range call.GetJournal() {
		if e.GetFact().GetPhone1().GetWhat() == what {
			return true
		}
	}
	return false
}
