package state

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/errkind"
	"callrelay/platform/telemetry"
	"callrelay/services/state/internal/store"
)

const (
	// lookEvery is how long an alarm may go unnoticed.
	lookEvery = 5 * time.Second
	// tellTries is how often one alarm is sent; then it is only in the API and the log.
	tellTries = 5
)

// watchman looks for what somebody should know of, and tells the webhook of what is new and of what is over. Alarms follow from
// what is stored and from what ingress reports. While Redis is away, which is when spools fill, this process' memory of the
// reports has to do; then each state process tells the webhook.
type watchman struct {
	*Service
	client *http.Client

	mu    sync.Mutex
	heard map[string]heard // by ingress process

	// Only run uses these: what there was when Redis was last asked, and what was told since, while it was away.
	known []string
	blind map[string]*operatorv1.Alarm
}

// heard is the last report of an ingress process.
type heard struct {
	report *statev1.ReportRequest
	at     time.Time
}

func newWatchman(s *Service) *watchman {
	return &watchman{Service: s, client: &http.Client{Timeout: 10 * time.Second}, heard: map[string]heard{}, blind: map[string]*operatorv1.Alarm{}}
}

func (w *watchman) hear(r *statev1.ReportRequest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard[r.GetInstance()] = heard{r, time.Now()}
	maps.DeleteFunc(w.heard, func(_ string, h heard) bool { return time.Since(h.at) > store.SpoolKept })
}

// remembered is the sum of what the living ingress processes reported to this process.
func (w *watchman) remembered() *statev1.ReportRequest {
	w.mu.Lock()
	defer w.mu.Unlock()
	sum := &statev1.ReportRequest{}
	for _, h := range w.heard {
		if time.Since(h.at) > store.SpoolKept {
			continue
		}
		store.AddReport(sum, h.report)
	}
	return sum
}

// Report takes what an ingress process says of its spool.
func (s *server) Report(ctx context.Context, req *statev1.ReportRequest) (*statev1.ReportResponse, error) {
	if req.GetInstance() == "" || len(req.GetInstance()) > 200 {
		return nil, errkind.Invalid("instance", "instance is required")
	}
	s.watch.hear(req)
	if err := s.store.Report(ctx, req); err != nil {
		return nil, unavailable(err)
	}
	return &statev1.ReportResponse{}, nil
}

// run looks until ctx ends.
func (w *watchman) run(ctx context.Context) {
	var telling sync.WaitGroup
	defer telling.Wait()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		_ = w.maintain(ctx) // without Redis later
		alarms, err := w.look(ctx)
		var begun, over map[string]int64
		if err == nil {
			begun, over, err = w.store.Alarms(ctx, alarmKeys(alarms))
		}
		if err != nil { // Redis is gone, which the service says once
			alarms = w.withoutRedis()
		}
		for _, a := range alarms {
			key := alarmKey(a)
			_, first := begun[key]
			if err != nil {
				first = !slices.Contains(w.known, key)
			}
			if !first || w.blind[key] != nil {
				continue // told
			}
			if err != nil {
				w.blind[key] = a
			}
			w.tel.Log().WarnContext(ctx, "ALARM: "+a.GetText(), "alarm", a.GetName(), "subject", a.GetSubject())
			telling.Go(func() { w.tell(ctx, "alarm.begun", a) })
		}
		if err != nil {
			continue // nobody can say what is over
		}
		w.known = alarmKeys(alarms)
		for key, a := range w.blind {
			if !slices.Contains(w.known, key) {
				over[key] = a.GetSinceMs()
			}
		}
		clear(w.blind)
		for key, since := range over {
			name, subject, _ := strings.Cut(key, " ")
			a := &operatorv1.Alarm{Name: name, Subject: subject, SinceMs: since, Text: "over"}
			w.tel.Log().InfoContext(ctx, "alarm is over", "alarm", name, "subject", subject)
			telling.Go(func() { w.tell(ctx, "alarm.over", a) })
		}
	}
}

func alarmKey(a *operatorv1.Alarm) string { return a.GetName() + " " + a.GetSubject() }

func alarmKeys(alarms []*operatorv1.Alarm) []string {
	keys := make([]string, len(alarms))
	for i, a := range alarms {
		keys[i] = alarmKey(a)
	}
	return keys
}

// look says what is wrong now.
func (w *watchman) look(ctx context.Context) ([]*operatorv1.Alarm, error) {
	var alarms []*operatorv1.Alarm
	now := w.store.Now()
	last, err := w.ledger.latest(ctx)
	if err != nil {
		return nil, err
	}
	if len(last.GetDifferences()) > 0 {
		d := last.GetDifferences()[0]
		alarms = append(alarms, &operatorv1.Alarm{Name: "accounting_difference", SinceMs: last.GetCheckedMs(), Text: fmt.Sprintf(
			"counters and journals differ, first in %s: %d counted, %d journaled", d.GetBucket(), d.GetCounted(), d.GetJournaled())})
	}
	if list := last.GetUnreadable(); len(list) > 0 {
		alarms = append(alarms, &operatorv1.Alarm{Name: "calls_unreadable", SinceMs: last.GetCheckedMs(), Text: fmt.Sprintf(
			"what is stored of %d calls cannot be read, first %s", len(list), telemetry.MaskCall(list[0]))})
	}
	holds, err := w.store.Holds(ctx)
	if err != nil {
		return nil, err
	}
	planned, err := w.store.Maintenances(ctx)
	if err != nil {
		return nil, err
	}
	for name, h := range holds {
		if maintained(h, planned[name]) {
			continue // as it was planned
		}
		if h.Held() {
			alarms = append(alarms, &operatorv1.Alarm{Name: "destination_held", Subject: name, SinceMs: h.SinceMS,
				Text: name + " is held: " + telemetry.MaskDigits(h.Reason)}) // the webhook and the log show no number to anybody
		}
		if name == store.Rules {
			continue
		}
		_, _, letters, oldest, err := w.store.Backlog(ctx, name)
		if err != nil {
			return nil, err
		}
		if most := int64(w.cfg.AlarmDead); most > 0 && letters >= most {
			alarms = append(alarms, &operatorv1.Alarm{Name: "dead_letters", Subject: name, SinceMs: now,
				Text: fmt.Sprintf("%d deliveries to %s wait for a person (callrelay deliveries)", letters, name)})
		}
		if age := time.Duration(now-oldest) * time.Millisecond; oldest != 0 && age > w.cfg.AlarmOldest {
			alarms = append(alarms, &operatorv1.Alarm{Name: "oldest_waiting", Subject: name, SinceMs: oldest,
				Text: fmt.Sprintf("the oldest delivery to %s has been due for %s", name, age.Round(time.Second))})
		}
	}
	spool, err := w.store.Reports(ctx)
	if err != nil {
		return nil, err
	}
	return append(alarms, w.spoolAlarms(spool)...), nil
}

// withoutRedis says what is known while Redis is away: since when it is, and what ingress reported to this process. A single
// command that failed is no alarm.
func (w *watchman) withoutRedis() (alarms []*operatorv1.Alarm) {
	if not := w.notReady.Load(); not != nil {
		alarms = append(alarms, &operatorv1.Alarm{Name: "redis_away", SinceMs: not.since.UnixMilli(),
			Text: not.why + "; callbacks go to the spool and nothing is delivered until it is back, all by itself"})
	}
	return append(alarms, w.spoolAlarms(w.remembered())...)
}

func (w *watchman) spoolAlarms(spool *statev1.ReportRequest) (alarms []*operatorv1.Alarm) {
	now := w.store.Now()
	if n := spool.GetSpooled(); n > 0 {
		alarms = append(alarms, &operatorv1.Alarm{Name: "spool_in_use", SinceMs: now - spool.GetOldestMs(),
			Text: fmt.Sprintf("%d callbacks are in the spool of ingress, the oldest for %s", n, (time.Duration(spool.GetOldestMs()) * time.Millisecond).Round(time.Second))})
	}
	if n := spool.GetRefusedAfterAck(); n > 0 {
		alarms = append(alarms, &operatorv1.Alarm{Name: "refused_after_ack", SinceMs: now,
			Text: fmt.Sprintf("%d callbacks were acknowledged out of the spool and then refused", n)})
	}
	if n := spool.GetNotAcknowledged(); n > 0 {
		alarms = append(alarms, &operatorv1.Alarm{Name: "not_acknowledged", SinceMs: now,
			Text: fmt.Sprintf("%d callbacks of the last hour were not acknowledged (503, or the sender did not wait); they are lost unless they are sent again", n)})
	}
	if n := spool.GetSpoolDamaged(); n > 0 {
		alarms = append(alarms, &operatorv1.Alarm{Name: "spool_damaged", SinceMs: now,
			Text: fmt.Sprintf("%d files or items of the spool could not be read; what was intact went on", n)})
	}
	if n := spool.GetRefusedUnrecorded(); n > 0 {
		alarms = append(alarms, &operatorv1.Alarm{Name: "refused_unrecorded", SinceMs: now,
			Text: fmt.Sprintf("so many malformed requests come in that %d of the last hour were answered but not recorded (REFUSED_BYTES_PER_HOUR): look who sends them (callrelay tail refused)", n)})
	}
	return alarms
}

// ListAlarms lists what somebody should look at now.
func (o *operator) ListAlarms(ctx context.Context, _ *operatorv1.ListAlarmsRequest) (*operatorv1.ListAlarmsResponse, error) {
	alarms, err := o.watch.look(ctx)
	if err != nil {
		if alarms = o.watch.withoutRedis(); len(alarms) == 0 {
			return nil, unavailable(err)
		}
	}
	return &operatorv1.ListAlarmsResponse{Alarms: alarms}, nil
}

// tell sends an alarm to the webhook, by the headers of Standard Webhooks (https://www.standardwebhooks.com), until it is
// taken or was tried often enough.
func (w *watchman) tell(ctx context.Context, kind string, a *operatorv1.Alarm) {
	if w.cfg.AlarmWebhookURL.Reveal() == "" {
		return
	}
	now := time.UnixMilli(w.store.Now())
	body, err := json.Marshal(map[string]any{"type": kind, "timestamp": now.UTC().Format(time.RFC3339), "data": map[string]any{
		"name": a.GetName(), "subject": a.GetSubject(), "text": a.GetText(), "since": time.UnixMilli(a.GetSinceMs()).UTC().Format(time.RFC3339)}})
	if err != nil {
		return // strings only
	}
	id := "msg_" + rand.Text()
	for try := range tellTries {
		if err = w.post(ctx, id, now, body); err == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second << (2 * try)):
		}
	}
	w.tel.Log().ErrorContext(ctx, "the alarm webhook does not take an alarm", "alarm", a.GetName(), "error", err)
}

func (w *watchman) post(ctx context.Context, id string, now time.Time, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.cfg.AlarmWebhookURL.Reveal(), bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ALARM_WEBHOOK_URL cannot be called")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("webhook-id", id)
	req.Header.Set("webhook-timestamp", strconv.FormatInt(now.Unix(), 10))
	req.Header.Set("webhook-signature", sign(w.cfg.webhookKey(), id, now, body))
	resp, err := w.client.Do(req)
	if err != nil {
		return fmt.Errorf("no answer") // the error would name the URL, which may hold a secret
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("HTTP %d", resp.StatusCode)
	}
	return nil
}

// sign is the signature of Standard Webhooks, version 1.
func sign(key []byte, id string, at time.Time, body []byte) string {
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%d.%s", id, at.Unix(), body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}
