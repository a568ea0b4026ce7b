package state

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/redistest"
	"callrelay/services/state/internal/store"
)

// mute stands before a Redis. What Redis answers to a text is lost with its connection.
type mute struct {
	net.Listener
	text atomic.Pointer[string]
}

func startMute(t *testing.T, redis string) *mute {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &mute{Listener: l}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", redis)
			if err != nil {
				_ = in.Close()
				continue
			}
			var lost atomic.Bool
			pass := func(to, from net.Conn, stop func([]byte) bool) {
				defer to.Close()
				for b := make([]byte, 64<<10); ; {
					n, err := from.Read(b)
					if err != nil || stop(b[:n]) {
						return
					}
					if _, err := to.Write(b[:n]); err != nil {
						return
					}
				}
			}
			go pass(out, in, func(b []byte) bool {
				if text := m.text.Load(); text != nil && bytes.Contains(b, []byte(*text)) {
					lost.Store(true)
				}
				return false
			})
			go pass(in, out, func([]byte) bool { return lost.Load() })
		}
	}()
	return m
}

func (m *mute) url() string { return "redis://" + m.Addr().String() }

// commit sends one commit as router does.
func (b *bench) commit(item *statev1.CommitItem) *statev1.CommitAnswer {
	b.t.Helper()
	stream, err := b.state.Commit(b.t.Context())
	if err == nil {
		err = stream.Send(&statev1.CommitRequest{Items: []*statev1.CommitItem{item}})
	}
	if err != nil {
		b.t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		b.t.Fatal(err)
	}
	_ = stream.CloseSend()
	return resp.GetAnswers()[0]
}

// found is how often a search finds the call.
func (b *bench) found(query, call string) (n int) {
	b.t.Helper()
	resp, err := b.relay.SearchCalls(b.t.Context(), &operatorv1.SearchCallsRequest{Query: query})
	if err != nil {
		b.t.Fatal(err)
	}
	for _, c := range resp.GetCalls() {
		if c.GetCall() == call {
			n++
		}
	}
	return n
}

// What Redis wrote without its answer coming back is in the search index, the live tail and the daily files once it was
// repeated, and there once, however often that is.
func TestLostAnswers(t *testing.T) {
	redis, dir := redistest.Start(t), t.TempDir()
	m := startMute(t, redis.Addr)
	b := startHere(t, m.url(), map[string]string{"LOG_DIR": dir})
	other := startHere(t, redis.URL(), nil)
	told := b.feed.next
	// lost does something while no answer comes to the text.
	lost := func(text string, do func() (failed bool)) {
		t.Helper()
		m.text.Store(&text)
		defer m.text.Store(nil)
		if !do() {
			t.Fatal("the answer came")
		}
	}
	item := func(n int) *statev1.CommitItem {
		id, call := fmt.Sprintf("R%d", n), fmt.Sprintf("ameyo/%d", n)
		return &statev1.CommitItem{Call: call, InputId: id, CommitId: "c" + id, Record: []byte{},
			Moves: []*statev1.Move{{RequestId: id, To: statev1.Bucket_BUCKET_NOTHING_TO_SEND}}, Terms: []string{"customer-" + id}, Phones: []string{fmt.Sprintf("0901234%04d", n)},
			Deliveries: []*statev1.Delivery{{Number: 1, Destination: dest, Endpoint: "createCallEnd", RequestId: id, Payload: []byte(`{}`)}},
			Journal: store.MarshalJournal(&statev1.JournalEntry{AtMs: b.store.Now(), RequestId: id, Fact: &statev1.JournalEntry_Received{
				Received: &statev1.Received{Source: "ameyo.call_end", Query: []byte("unique_id=1")}}})}
	}
	// lines is how many lines of the daily files are of a request.
	lines := func(id string) (n int) {
		paths, _ := filepath.Glob(filepath.Join(dir, "*.log"))
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.SplitSeq(string(text), "\n") {
				if strings.Contains(line, "["+id+"]") {
					n++
				}
			}
		}
		return n
	}

	// delivery leases that of a commit and returns what sends its result.
	delivery := func(of *statev1.CommitItem) (complete func() *statev1.LeaseAnswer) {
		t.Helper()
		work, _, err := b.store.Lease(t.Context(), dest, []string{of.GetCall()})
		if err != nil || len(work) != 1 {
			t.Fatalf("%v %v", work, err)
		}
		r := &statev1.LeaseResult{Id: 1, Call: of.GetCall(), Destination: dest, Token: work[0].GetToken(), Delivery: 1, RequestId: of.GetInputId(), Endpoint: "createCallEnd",
			Attempt: &statev1.Attempt{Delivery: 1, Number: 1, Destination: dest, Next: "delivered"}, Result: &statev1.LeaseResult_Done{Done: &statev1.Done{}}}
		return func() *statev1.LeaseAnswer {
			return (&server{Service: b.Service}).complete(t.Context(), dest, []*statev1.LeaseResult{r})[0]
		}
	}

	// Redis knows the scripts from here on: else it would run nothing of what its answer is lost to.
	zero := item(0)
	if a := b.commit(zero); a.GetStatus() != statev1.CommitStatus_COMMIT_STATUS_OK {
		t.Fatal(a)
	}
	if a := delivery(zero)(); a.GetError() != nil || a.GetSuperseded() {
		t.Fatal(a)
	}

	one := item(1)
	lost(one.GetCommitId(), func() bool { return b.commit(one).GetError() != nil })
	for range 2 {
		if a := b.commit(one); a.GetStatus() != statev1.CommitStatus_COMMIT_STATUS_EARLIER {
			t.Fatalf("the repeat: %v", a)
		}
	}
	redistest.Poll(t, 10*time.Second, "a search finds it", func() bool { return b.found("09012340001", one.GetCall()) == 1 })
	redistest.Poll(t, 10*time.Second, "it is in the daily files", func() bool { return lines("R1") > 0 })
	if n := b.found("", one.GetCall()); n != 1 {
		t.Errorf("it is listed %d times", n)
	}

	// Its result.
	complete := delivery(one)
	before := lines("R1")
	lost(one.GetCall(), func() bool { return complete().GetError() != nil })
	for range 2 {
		if a := complete(); !a.GetSuperseded() {
			t.Fatalf("the repeat: %v", a)
		}
	}
	redistest.Poll(t, 10*time.Second, "its result is in the daily files", func() bool { return lines("R1") > before })

	// Only another process gets the repeat: a search finds the call there.
	two := item(2)
	lost(two.GetCommitId(), func() bool { return b.commit(two).GetError() != nil })
	if a := other.commit(two); a.GetStatus() != statev1.CommitStatus_COMMIT_STATUS_EARLIER {
		t.Fatalf("the repeat: %v", a)
	}
	redistest.Poll(t, 10*time.Second, "a search finds it", func() bool { return other.found("09012340002", two.GetCall()) == 1 })

	// One that was answered is told once.
	three := item(3)
	for i, want := range []statev1.CommitStatus{statev1.CommitStatus_COMMIT_STATUS_OK, statev1.CommitStatus_COMMIT_STATUS_EARLIER} {
		if a := b.commit(three); a.GetStatus() != want {
			t.Fatalf("%d: %v", i, a)
		}
	}
	redistest.Poll(t, 10*time.Second, "it is in the daily files", func() bool { return lines("R3") > 0 })
	if lost, answered := lines("R1"), lines("R0"); lost != answered || lines("R3") != before {
		t.Errorf("%d lines of what was answered at last, %d of what was at once; of a mere commit %d and %d", lost, answered, before, lines("R3"))
	}
	events, _, _, _ := b.feed.since(told)
	var of []string
	for _, e := range events {
		of = append(of, e.call)
	}
	if got := strings.Join(of, " "); got != "ameyo/0 ameyo/0 ameyo/1 ameyo/1 ameyo/3" {
		t.Errorf("the live tail told of %s", got)
	}
}

func TestUnsureIsBounded(t *testing.T) {
	var u unsure[int]
	for n := range 10 * unsureKept {
		u.add(fmt.Sprint(n), n)
		if len(u.young)+len(u.old) > 2*unsureKept {
			t.Fatalf("%d are remembered", len(u.young)+len(u.old))
		}
	}
	for n := 9 * unsureKept; n < 10*unsureKept; n++ {
		if got, ok := u.take(fmt.Sprint(n)); !ok || got != n {
			t.Fatalf("%d: %d %t", n, got, ok)
		}
		if _, ok := u.take(fmt.Sprint(n)); ok {
			t.Fatalf("%d twice", n)
		}
	}
}
