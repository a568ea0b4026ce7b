package state

import (
	"testing"
	"time"

	errorsv1 "callrelay/gen/callrelay/errors/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/redistest"
	"callrelay/platform/rpc"
)

// What makes a handler panic fails alone, as an unknown outcome: its neighbours in the message are done and answered, and the stream
// and the process go on.
func TestPanicFailsItsItemAlone(t *testing.T) {
	b := startHere(t, redistest.Start(t).URL(), nil)
	broken := &Service{cfg: b.cfg, tel: b.tel, store: b.store, dispatch: b.dispatch, feed: b.feed, stopping: make(chan struct{})} // cards are nil
	host := rpc.NewServer(b.tel.Log())
	statev1.RegisterStateServiceServer(host.Registrar(), &server{Service: broken})
	t.Cleanup(func() { close(broken.stopping); host.Stop(time.Second) })
	client := statev1.NewStateServiceClient(host.InProcess())

	commits, err := client.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	item := func(id uint64, call string, cards ...*statev1.PbxCard) *statev1.CommitItem {
		return &statev1.CommitItem{Id: id, Call: call, InputId: "i" + call, CommitId: "c" + call, Record: []byte("r"), Cards: cards}
	}
	for range 2 {
		if err := commits.Send(&statev1.CommitRequest{Items: []*statev1.CommitItem{item(1, "a"), item(2, "b", &statev1.PbxCard{}), item(3, "c")}}); err != nil {
			t.Fatal(err)
		}
		resp, err := commits.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for i, a := range resp.GetAnswers() { // that it was written already is found by its input id
			if a.GetId() != uint64(i+1) || a.GetError() != nil || a.GetStatus() != statev1.CommitStatus_COMMIT_STATUS_EARLIER {
				t.Errorf("commit %d: answered %v", i+1, a)
			}
		}
	}

	b.arrive("ameyo/1", 1, statev1.Bucket_BUCKET_UNSPECIFIED)
	leases, err := client.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := leases.Send(&statev1.LeaseRequest{Destination: dest, Credit: 1}); err != nil {
		t.Fatal(err)
	}
	leased, err := leases.Recv()
	if err != nil {
		t.Fatal(err)
	}
	work := leased.GetWork()[0]
	if err := leases.Send(&statev1.LeaseRequest{Results: []*statev1.LeaseResult{
		{Id: 1, Call: "ameyo/2", Delivery: 1, Destination: dest, Result: (*statev1.LeaseResult_Retry)(nil)},
		{Id: 2, Call: work.GetCall(), Delivery: 1, Destination: dest, Token: work.GetToken(), Result: &statev1.LeaseResult_Done{Done: &statev1.Done{}}},
	}}); err != nil {
		t.Fatal(err)
	}
	answered, err := leases.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if a := answered.GetAnswers(); len(a) != 2 || a[0].GetError().GetKind() != errorsv1.Kind_KIND_UNAVAILABLE || a[1].GetError() != nil || a[1].GetSuperseded() {
		t.Errorf("results: answered %v", a)
	}
}
