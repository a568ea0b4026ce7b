// Package baseline has the relays that callrelay is compared with, each as short as it can be while it is still written
// well: Bare only answers, Memory keeps everything in memory, Asynq queues in Redis with github.com/hibiken/asynq, and Floor
// does what no relay can do without that keeps its calls in Redis.
//
// It owns what such a relay needs: the TopS.II request that a call end becomes, and dedupe. It does not own what they are
// compared in: they know the one callback that the benchmark sends, they have no traces, no journal and no rules.
package baseline

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/hibiken/asynq"
)

// Workers is how many deliveries are under way at a time.
const Workers = 64

const ack = `{"success":true,"message":"Data Received"}`

func answer(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, text) // a client that has gone is its own business
}

func unavailable(w http.ResponseWriter, err error) {
	http.Error(w, err.Error(), http.StatusServiceUnavailable)
}

// Bare answers and does nothing.
func Bare() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w, ack) })
}

// Memory accepts each callback once and delivers it from a queue in memory.
type Memory struct {
	crm   *CRM
	queue chan []byte

	mu   sync.Mutex
	seen map[string]bool
}

// NewMemory starts a relay that delivers until the process ends.
func NewMemory(crm *CRM) *Memory {
	m := &Memory{crm: crm, queue: make(chan []byte, 1<<20), seen: map[string]bool{}}
	for range Workers {
		go func() {
			for payload := range m.queue {
				for crm.Deliver(context.Background(), payload) != nil {
					<-time.After(time.Second)
				}
			}
		}()
	}
	return m
}

func (m *Memory) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key, payload, err := read(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	m.mu.Lock()
	duplicate := m.seen[key]
	m.seen[key] = true
	m.mu.Unlock()
	if !duplicate {
		m.queue <- payload
	}
	answer(w, ack)
}

// Asynq accepts each callback once, by the id of its task, and delivers it from a queue in Redis. A repeat is recognised until
// the delivery is done; recognising it for longer (asynq.Retention) would only cost more.
type Asynq struct {
	client *asynq.Client
	server *asynq.Server
}

const taskType = "topsii:deliver"

// NewAsynq starts a relay whose queue is in the Redis at a unix socket.
func NewAsynq(crm *CRM, socket string) (*Asynq, error) {
	redis := asynq.RedisClientOpt{Network: "unix", Addr: socket, PoolSize: 2 * Workers}
	a := &Asynq{client: asynq.NewClient(redis), server: asynq.NewServer(redis, asynq.Config{
		Concurrency: Workers,
		LogLevel:    asynq.WarnLevel,
		// With the default of a second an empty queue would cost each next delivery up to one and a half.
		TaskCheckInterval: 5 * time.Millisecond,
	})}
	return a, a.server.Start(asynq.HandlerFunc(func(ctx context.Context, t *asynq.Task) error {
		return crm.Deliver(ctx, t.Payload())
	}))
}

// Close ends the deliveries.
func (a *Asynq) Close() error {
	a.server.Shutdown()
	return a.client.Close()
}

func (a *Asynq) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key, payload, err := read(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_, err = a.client.EnqueueContext(r.Context(), asynq.NewTask(taskType, payload), asynq.TaskID(key), asynq.MaxRetry(20), asynq.Timeout(30*time.Second))
	if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
		unavailable(w, err)
		return
	}
	answer(w, ack)
}

// callEnd is createCallEnd of TopS.II.
type callEnd struct {
	Payload struct {
		CallID          json.Number `json:"callId"`
		CallStartTime   string      `json:"callStartTime"`
		CallEndTime     string      `json:"callEndTime"`
		SubCTIHistoryID string      `json:"subCtiHistoryId"`
		TargetTel       string      `json:"targetTel"`
		StaffID         string      `json:"predictiveStaffId"`
	} `json:"predictiveCallCreateCallEnd"`
}

// read makes of a callback the key of its dedupe and the body of its delivery.
func read(r *http.Request) (key string, payload []byte, err error) {
	q := r.URL.Query()
	var end callEnd
	p := &end.Payload
	p.CallID, p.SubCTIHistoryID, p.TargetTel, p.StaffID = json.Number(q.Get("unique_id")), q.Get("customerCRTId"), q.Get("dialledPhone"), q.Get("userId")
	if p.CallID == "" || p.SubCTIHistoryID == "" || p.TargetTel == "" || p.StaffID == "" {
		return "", nil, errors.New("a field is missing")
	}
	connected, err := time.Parse("2006/01/02 15:04:05 -0700", q.Get("callConnectedTime"))
	if err != nil {
		return "", nil, err
	}
	p.CallStartTime, p.CallEndTime = connected.Format(time.DateTime), time.Now().In(connected.Location()).Format(time.DateTime)
	if payload, err = json.Marshal(end); err != nil {
		return "", nil, err
	}
	return q.Get("unique_id") + ":" + p.SubCTIHistoryID, []byte("jsonData=" + url.QueryEscape(string(payload))), nil
}

// CRM is the way to TopS.II.
type CRM struct {
	url    string
	client *http.Client
}

// APIKey is the key that is sent.
const APIKey = "benchmark-benchmark-benchmark-00"

// NewCRM returns a client of the TopS.II at baseURL.
func NewCRM(baseURL string) *CRM {
	return &CRM{url: baseURL + "/fasthelp5-server/service/callmanage/predictiveCallApiService/createCallEnd.json",
		client: &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: Workers}}}
}

// Deliver sends one payload; nil means that TopS.II took it.
func (c *CRM) Deliver(ctx context.Context, payload []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, strings.NewReader(string(payload)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("X-FastHelp-API-Key", APIKey)
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var result struct{ Result, Message string }
	if err := json.NewDecoder(resp.Body).Decode(&result); err != nil {
		return err
	}
	if result.Result != "success" {
		return errors.New(result.Message)
	}
	return nil
}
