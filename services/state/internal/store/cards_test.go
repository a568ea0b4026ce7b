package store

import (
	"testing"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/redistest"
)

// A card is there from the commit that opens it to the one that ends it; what is not committed opens none.
func TestCards(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	commit := func(input, version, commit string, open int64) statev1.CommitStatus {
		t.Helper()
		it := item("pbx/acme/C", input, version, commit, 0)
		it.Deliveries = nil
		it.Cards = []*statev1.PbxCard{{Id: "leg", User: "u", Version: 1, OpenMs: open}}
		answers, _, errs := s.Commit(t.Context(), []*statev1.CommitItem{it}, nil)
		if errs[0] != nil {
			t.Fatal(errs[0])
		}
		return answers[0].GetStatus()
	}
	there := func(what string, want int) {
		t.Helper()
		if cards, err := s.Cards(t.Context()); err != nil || len(cards) != want {
			t.Errorf("%s: %v %v, want %d", what, cards, err, want)
		}
	}
	commit("i1", "", "c1", 60_000)
	there("opened", 1)
	if got := commit("i2", "other", "c2", 0); got != statev1.CommitStatus_COMMIT_STATUS_CONFLICT {
		t.Error(got)
	}
	there("not committed", 1)
	commit("i3", "c1", "c3", 0)
	there("ended", 0)
	commit("i1", "", "c1", 60_000)
	there("the first commit again", 0)

	// One that nobody ends is over after its time, and forgotten by whoever notices.
	commit("i4", "c3", "c4", 30)
	redistest.Poll(t, 5*time.Second, "the card's time is over", func() bool {
		cards, err := s.Cards(t.Context())
		return err == nil && len(cards) == 0 && s.client.HLen(t.Context(), keyCards(Partition("pbx/acme/C"))).Val() == 0
	})
}
