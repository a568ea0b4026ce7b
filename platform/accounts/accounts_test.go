package accounts

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	statev1 "callrelay/gen/callrelay/state/v1"
)

// oneByOne is a state that tells one account in each answer, and fails when told to.
type oneByOne struct {
	statev1.AccountServiceClient
	versions map[string]string
	fail     int // after so many answers; 0 = never
}

func (s *oneByOne) SyncAccounts(_ context.Context, req *statev1.SyncAccountsRequest, _ ...grpc.CallOption) (*statev1.SyncAccountsResponse, error) {
	if s.fail--; s.fail == 0 {
		return nil, errors.New("away")
	}
	answer := &statev1.SyncAccountsResponse{NowMs: 7}
	for id, version := range s.versions {
		answer.Ids = append(answer.Ids, id)
		switch {
		case req.GetKnown()[id] == version:
		case len(answer.Accounts) > 0:
			answer.More = true
		default:
			answer.Accounts = append(answer.Accounts, &statev1.Account{Id: id, Version: version})
		}
	}
	slices.Sort(answer.Ids)
	return answer, nil
}

func TestLook(t *testing.T) {
	s := &oneByOne{versions: map[string]string{}}
	f := NewFollower(s, "pbx/")
	look := func(wantChanged, wantError bool, want ...string) {
		t.Helper()
		list, changed, err := f.Look(t.Context())
		if changed != wantChanged || (err != nil) != wantError {
			t.Errorf("changed %v, %v", changed, err)
		}
		var got []string
		for _, a := range list.Accounts {
			got = append(got, fmt.Sprint(a.GetId(), "=", a.GetVersion()))
		}
		if !slices.Equal(got, want) || err == nil && (list.NowMS != 7 || list.Began.IsZero()) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	look(true, false) // that there is nothing is news, once
	look(false, false)
	s.versions = map[string]string{"pbx/a": "1", "pbx/b": "1", "pbx/c": "1"}
	look(true, false, "pbx/a=1", "pbx/b=1", "pbx/c=1")
	look(false, false, "pbx/a=1", "pbx/b=1", "pbx/c=1")

	// A look that breaks off tells nothing, and what it brought is news for the next.
	s.versions, s.fail = map[string]string{"pbx/a": "2", "pbx/b": "2"}, 2
	look(false, true)
	look(true, false, "pbx/a=2", "pbx/b=2")
	delete(s.versions, "pbx/b")
	s.fail = 1
	look(false, true)
	look(true, false, "pbx/a=2")
	look(false, false, "pbx/a=2")
}

// Looks come at their interval, and soon after somebody missed something.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &oneByOne{versions: map[string]string{"pbx/a": "1"}}
		f := NewFollower(s, "pbx/")
		var at []time.Duration
		began := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			f.Run(ctx, func(List, bool) { at = append(at, time.Since(began)) })
		}()
		time.AfterFunc(Every/2, func() { f.Wake(); f.Wake() })
		<-time.After(Every + time.Millisecond)
		cancel()
		<-ended
		if want := []time.Duration{0, Every/2 + soon, Every}; !slices.Equal(at, want) && !slices.Equal(at, slices.Insert(want, 2, Every/2+2*soon)) {
			t.Errorf("looked at %v, want %v", at, want)
		}
	})
}
