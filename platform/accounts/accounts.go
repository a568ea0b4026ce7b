// Package accounts keeps a process's copy of accounts that state keeps, so that no callback asks for one.
//
// It owns when the copy is brought up to date. It does not know what an account says.
package accounts

import (
	"context"
	"maps"
	"slices"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
)

// Every is how often a copy is brought up to date, and the longest that one look may take: while state answers, a copy is at most
// twice as old.
const Every = 2 * time.Second

// soon is how long a look that was asked for waits for others that ask.
const soon = 50 * time.Millisecond

// List is a copy.
type List struct {
	// Accounts are all, by id.
	Accounts []*statev1.Account
	// Began is when the look began: what was changed before is in it. NowMS was state's clock then, or a little later.
	Began time.Time
	NowMS int64
}

// Follower keeps the copy of the accounts whose ids begin with a prefix. It is used by one goroutine, but for Wake.
type Follower struct {
	client statev1.AccountServiceClient
	prefix string
	copied map[string]*statev1.Account
	wake   chan struct{}
	news   bool // something changed since `looked` was last told; true at first, so that it is told of an empty copy too
}

// NewFollower begins with nothing.
func NewFollower(client statev1.AccountServiceClient, prefix string) *Follower {
	return &Follower{client: client, prefix: prefix, copied: map[string]*statev1.Account{}, wake: make(chan struct{}, 1), news: true}
}

// Wake asks for a look soon: something is missing that may be there by now.
func (f *Follower) Wake() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Run brings the copy up to date again and again until ctx ends, and tells `looked` after each look that state answered.
// While it does not, the copy stays as it is.
func (f *Follower) Run(ctx context.Context, looked func(list List, changed bool)) {
	tick := time.NewTicker(Every)
	defer tick.Stop()
	for {
		if list, changed, err := f.Look(ctx); err == nil {
			looked(list, changed)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-f.wake:
			select {
			case <-ctx.Done():
			case <-time.After(soon):
			}
		}
	}
}

// Look brings the copy up to date and says whether anything changed since the last one that succeeded. One that breaks off is
// continued by the next.
func (f *Follower) Look(ctx context.Context) (list List, changed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, Every)
	defer cancel()
	list.Began = time.Now()
	for more := true; more; {
		known := make(map[string]string, len(f.copied))
		for id, a := range f.copied {
			known[id] = a.GetVersion()
		}
		answer, err := f.client.SyncAccounts(ctx, &statev1.SyncAccountsRequest{Prefix: f.prefix, Known: known})
		if err != nil {
			return list, false, err
		}
		there := map[string]bool{}
		for _, id := range answer.GetIds() {
			there[id] = true
		}
		maps.DeleteFunc(f.copied, func(id string, _ *statev1.Account) bool {
			f.news = f.news || !there[id]
			return !there[id]
		})
		for _, a := range answer.GetAccounts() {
			f.copied[a.GetId()], f.news = a, true
		}
		list.NowMS, more = answer.GetNowMs(), answer.GetMore()
	}
	for _, id := range slices.Sorted(maps.Keys(f.copied)) {
		list.Accounts = append(list.Accounts, f.copied[id])
	}
	changed, f.news = f.news, false
	return list, changed, nil
}
