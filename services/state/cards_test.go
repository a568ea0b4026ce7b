package state

import (
	"context"
	"fmt"
	"testing"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/redistest"
	"callrelay/platform/rpc"
	"callrelay/services/state/internal/store"
)

// cardsOf watches the cards that a state process tells.
func cardsOf(t *testing.T, b *bench) <-chan *statev1.WatchCardsResponse {
	t.Helper()
	host := rpc.NewServer(b.tel.Log())
	statev1.RegisterCardServiceServer(host.Registrar(), &cards{Service: b.Service})
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := statev1.NewCardServiceClient(host.InProcess()).WatchCards(ctx, &statev1.WatchCardsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	told, ended := make(chan *statev1.WatchCardsResponse, 1024), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			told <- m
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		host.Stop(time.Second)
	})
	if first := <-told; !first.GetAll() {
		t.Errorf("first %v, want all that are open", first)
	}
	return told
}

func (b *bench) card(call string, version uint32, openMS int64) {
	b.t.Helper()
	id := fmt.Sprint(call, version)
	item := &statev1.CommitItem{Call: call, InputId: "i" + id, ExpectedVersion: b.version[call], CommitId: "c" + id, Record: []byte{},
		Journal: store.MarshalJournal(&statev1.JournalEntry{AtMs: b.store.Now(), RequestId: "i" + id, Fact: &statev1.JournalEntry_Note{Note: "a card"}}),
		Cards:   []*statev1.PbxCard{{Id: "leg", User: "u101", State: "ringing", Version: version, OpenMs: openMS}}}
	answers, errs := b.dispatch.Commit(b.t.Context(), []*statev1.CommitItem{item})
	if errs[0] != nil || answers[0].GetStatus() != statev1.CommitStatus_COMMIT_STATUS_OK {
		b.t.Fatalf("%v %v", answers[0], errs[0])
	}
	b.version[call] = item.GetCommitId()
	b.committed(item)
}

// A card that is committed through one state process is told to those who watch at another, at once and not with the next list;
// one whose time is over is in no list.
func TestCardsOfAnotherProcess(t *testing.T) {
	url := redistest.Start(t).URL()
	here, there := startHere(t, url, nil), startHere(t, url, nil)
	told := cardsOf(t, there)
	redistest.Poll(t, 10*time.Second, "they know of each other", func() bool { return !here.dispatch.Alone() })
	began := time.Now()
	here.card("pbx/acme/C1", 1, time.Hour.Milliseconds())
	here.card("pbx/acme/C2", 1, 50)
	for m := range told {
		if m.GetAll() {
			if time.Since(began) > cardsEvery {
				t.Fatal("it was only told with a list")
			}
			continue
		}
		if c := m.GetCards()[0]; c.GetCall() == "pbx/acme/C1" {
			if c.GetCard().GetUser() != "u101" || c.GetCard().GetState() != "ringing" || c.GetUntilMs() < c.GetAtMs()+time.Hour.Milliseconds() {
				t.Errorf("told %v", c)
			}
			break
		}
	}
	for m := range told { // the list after that
		if !m.GetAll() {
			continue
		}
		if len(m.GetCards()) != 1 || m.GetCards()[0].GetCall() != "pbx/acme/C1" {
			t.Errorf("the list has %v", m.GetCards())
		}
		break
	}
}
