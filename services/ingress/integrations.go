package ingress

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	"callrelay/callback/pbxtable"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/accounts"
	"callrelay/platform/errkind"
)

// integrations are the cloud PBXs whose events are taken: a copy of what state keeps, in memory, and beside the spool for a
// start without state. No event asks for it.
type integrations struct {
	cfg  pbxConfig
	path string // of the copy on disk
	log  *slog.Logger
	// known is nil until state was heard or a copy found.
	known atomic.Pointer[integrationTable]
	// begins: state is asked for the first time.
	begins atomic.Bool
}

// integrationTable is never changed, only replaced; the shares go from one to the next.
type integrationTable struct {
	rows   *pbxtable.Table
	ahead  time.Duration // of state's clock before this machine's
	shares sync.Map      // pbxtable.Hash of a token -> *share
	cfg    pbxConfig
	users  map[cardUser]bool
	// secrets are the hashes of the integrations' own secrets.
	secrets map[string]pbxtable.Hash
}

func newIntegrations(cfg pbxConfig, dir string, log *slog.Logger) *integrations {
	return &integrations{cfg: cfg, path: filepath.Join(dir, "integrations"), log: log}
}

// errUnknownYet: a start without state and without a copy.
var errUnknownYet = func() *errkind.Error {
	e := errkind.Unavailable(nil, "the integrations are not known yet; send the event again")
	e.RetryAfter = time.Second
	return e
}()

// load takes the copy on disk, which is as old as it is: better than to lose every event while state is away.
func (i *integrations) load() {
	data, err := os.ReadFile(i.path)
	copied := &statev1.SyncAccountsResponse{}
	if err == nil {
		err = proto.Unmarshal(data, copied)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		i.log.Error("the copy of the integrations cannot be read; until state is heard their events are answered 503", "file", i.path, "error", err)
	default:
		i.take(accounts.List{Accounts: copied.GetAccounts(), NowMS: time.Now().UnixMilli()})
	}
}

// run follows state until ctx ends.
func (i *integrations) run(ctx context.Context, client statev1.AccountServiceClient) {
	looked := func(list accounts.List, changed bool) {
		if !changed {
			return
		}
		i.take(list)
		if err := i.save(list); err != nil {
			i.log.Error("the copy of the integrations cannot be written; a start without state would not know them", "error", err)
		}
	}
	follower := accounts.NewFollower(client, pbxtable.AccountPrefix)
	if list, changed, err := follower.Look(ctx); err == nil {
		looked(list, changed)
	}
	i.begins.Store(false)
	follower.Run(ctx, looked)
}

// take makes the table of what state keeps. What cannot be read hurts no other integration.
func (i *integrations) take(list accounts.List) {
	before := i.known.Load()
	now := &integrationTable{cfg: i.cfg, ahead: time.Duration(list.NowMS-time.Now().UnixMilli()) * time.Millisecond,
		users: map[cardUser]bool{}, secrets: map[string]pbxtable.Hash{}}
	var all []pbxtable.Integration
	for _, a := range list.Accounts {
		stored, err := pbxtable.ParseStored(a.GetId(), a.GetSettings())
		if err != nil {
			i.log.Error("an integration cannot be used: its events are answered 404", "integration", a.GetId(), "error", err)
			continue
		}
		n := stored.Integration
		all = append(all, n)
		now.secrets[n.ID] = n.Webhook.Secret.Hash()
		for _, x := range n.Extensions {
			if x.User != "" {
				now.users[cardUser{n.ID, x.User}] = true
			}
		}
	}
	now.rows = pbxtable.New(all)
	if before != nil {
		before.shares.Range(func(token, one any) bool {
			if now.rows.Has(token.(pbxtable.Hash)) {
				now.shares.Store(token, one)
			}
			return true
		})
	}
	i.known.Store(now)
}

// save replaces the copy.
func (i *integrations) save(list accounts.List) error {
	copied := &statev1.SyncAccountsResponse{}
	for _, a := range list.Accounts {
		copied.Accounts = append(copied.Accounts, &statev1.Account{Id: a.GetId(), Version: a.GetVersion(), Settings: a.GetSettings()})
	}
	data, err := proto.Marshal(copied)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(i.path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), i.path)
}

// event is what the door knows of an event with this token, which counts against its share. An error: errUnknownYet or NOT_FOUND.
func (i *integrations) event(token string) (*pbxEvent, error) {
	known := i.known.Load()
	if known == nil {
		return nil, errUnknownYet
	}
	row := known.rows.Find(token, time.Now().Add(known.ahead))
	if row == nil {
		return nil, errkind.NotFound("not found")
	}
	share := known.share(row.Token)
	return &pbxEvent{row: row, share: share, over: share.over()}, nil
}

func (t *integrationTable) share(token pbxtable.Hash) *share {
	if one, ok := t.shares.Load(token); ok {
		return one.(*share)
	}
	one, _ := t.shares.LoadOrStore(token, &share{limit: rate.NewLimiter(rate.Limit(t.cfg.TokenRate), t.cfg.TokenBurst), room: int64(t.cfg.TokenSpool)})
	return one.(*share)
}

// waitingShare is the share that a spooled event waits for; nil: none, or its token has ended meanwhile.
func (i *integrations) waitingShare(token []byte) *share {
	known := i.known.Load()
	if len(token) != len(pbxtable.Hash{}) || known == nil || !known.rows.Has(pbxtable.Hash(token)) {
		return nil
	}
	return known.share(pbxtable.Hash(token))
}
