package store

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	statev1 "callrelay/gen/callrelay/state/v1"
)

//go:embed lua/account.lua
var accountLua string

//go:embed lua/acquire.lua
var acquireLua string

var (
	accountScript = newScript("", accountLua)
	acquireScript = newScript("", acquireLua)
)

// Account reads one account; nil = there is none.
func (s *Store) Account(ctx context.Context, id string) (*statev1.Account, error) {
	fields, err := s.client.HGetAll(ctx, keyAccount(id)).Result()
	if err != nil || len(fields) == 0 {
		return nil, err
	}
	return s.account(fields)
}

// Accounts lists the accounts whose ids begin with prefix, by id.
func (s *Store) Accounts(ctx context.Context, prefix string) ([]*statev1.Account, error) {
	ids, err := s.client.SMembers(ctx, keyAccounts).Result()
	if err != nil {
		return nil, err
	}
	slices.Sort(ids)
	p := s.client.Pipeline()
	var cmds []*redis.MapStringStringCmd
	for _, id := range ids {
		if strings.HasPrefix(id, prefix) {
			cmds = append(cmds, p.HGetAll(ctx, keyAccount(id)))
		}
	}
	if len(cmds) == 0 {
		return nil, nil
	}
	if _, err := p.Exec(ctx); err != nil {
		return nil, err
	}
	var out []*statev1.Account
	for _, cmd := range cmds {
		if len(cmd.Val()) == 0 {
			continue // deleted since its id was read
		}
		a, err := s.account(cmd.Val())
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// syncBytes is about how much one answer of SyncAccounts holds: a message has at most 4 MiB, and one account may have 3.
const syncBytes = 1 << 20

// SyncAccounts lists the ids that begin with prefix, and reads the accounts whose versions are not the known ones; more: not all
// of them.
func (s *Store) SyncAccounts(ctx context.Context, prefix string, known map[string]string) (ids []string, changed []*statev1.Account, more bool, err error) {
	all, err := s.client.SMembers(ctx, keyAccounts).Result()
	if err != nil {
		return nil, nil, false, err
	}
	all = slices.DeleteFunc(all, func(id string) bool { return !strings.HasPrefix(id, prefix) })
	slices.Sort(all)
	p := s.client.Pipeline()
	versions, sizes := make([]*redis.StringCmd, len(all)), make([]*redis.IntCmd, len(all))
	for i, id := range all {
		versions[i], sizes[i] = p.HGet(ctx, keyAccount(id), "v"), p.HStrLen(ctx, keyAccount(id), "b")
	}
	if len(all) > 0 {
		_, _ = p.Exec(ctx) // each has its own error
	}
	p = s.client.Pipeline()
	var read []*redis.MapStringStringCmd
	room := int64(syncBytes)
	for i, id := range all {
		version, err := versions[i].Result()
		switch {
		case errors.Is(err, redis.Nil):
			continue // deleted since its id was read
		case err != nil:
			return nil, nil, false, err
		}
		ids = append(ids, id)
		if known[id] == version {
			continue
		}
		if room -= sizes[i].Val(); room < 0 && len(read) > 0 {
			more = true
			continue
		}
		read = append(read, p.HGetAll(ctx, keyAccount(id)))
	}
	if len(read) > 0 {
		if _, err := p.Exec(ctx); err != nil {
			return nil, nil, false, err
		}
	}
	for _, cmd := range read {
		if len(cmd.Val()) == 0 {
			continue
		}
		a, err := s.account(cmd.Val())
		if err != nil {
			return nil, nil, false, err
		}
		changed = append(changed, a)
	}
	return ids, changed, more, nil
}

func (s *Store) account(fields map[string]string) (*statev1.Account, error) {
	a := &statev1.Account{}
	if err := proto.Unmarshal([]byte(fields["b"]), a); err != nil {
		return nil, fmt.Errorf("a stored account cannot be read: %w", err)
	}
	a.Version = fields["v"]
	if x, ok := fields["x"]; ok {
		a.Expires, a.ExpiresInMs = true, atoi(x)-s.clock.Now()
	}
	return a, nil
}

// PutAccount writes an account that still has the expected version ("" = there is none). The same put again answers as before.
func (s *Store) PutAccount(ctx context.Context, a *statev1.Account, expected string) (written bool, err error) {
	now, ends := s.clock.Now(), ""
	if a.GetExpires() {
		ends = strconv.FormatInt(now+a.GetExpiresInMs(), 10)
	}
	kept := proto.CloneOf(a)
	kept.Version, kept.Expires, kept.ExpiresInMs = "", false, 0
	for _, n := range kept.GetNotices() {
		if n.GetSinceMs() == 0 {
			n.SinceMs = now
		}
	}
	body, err := proto.Marshal(kept)
	if err != nil {
		return false, err
	}
	return s.writeAccount(ctx, a.GetId(), expected, a.GetVersion(), body, ends)
}

// DeleteAccount ends an account that still has the expected version. What is gone stays gone.
func (s *Store) DeleteAccount(ctx context.Context, id, expected string) (deleted bool, err error) {
	return s.writeAccount(ctx, id, expected, "", nil, "")
}

func (s *Store) writeAccount(ctx context.Context, id, expected, version string, body []byte, ends string) (bool, error) {
	replies, errs := s.run(ctx, []invocation{invoke(accountScript, []string{keyAccount(id), keyAccounts}, id, expected, version, body, ends)})
	return replies[0] == int64(1), errs[0]
}

// Acquire makes token the only holder of an account's lease for d, or says when the present holder's time ends.
func (s *Store) Acquire(ctx context.Context, id, token string, d time.Duration) (wait time.Duration, err error) {
	replies, errs := s.run(ctx, []invocation{invoke(acquireScript, []string{keyAccountLease(id)}, "acquire", token, d.Milliseconds())})
	ms, _ := replies[0].(int64)
	return time.Duration(ms) * time.Millisecond, errs[0]
}

// ReleaseLease lets an account's lease go, if it is the token's.
func (s *Store) ReleaseLease(ctx context.Context, id, token string) error {
	_, errs := s.run(ctx, []invocation{invoke(acquireScript, []string{keyAccountLease(id)}, "release", token, 0)})
	return errs[0]
}

// UseToken makes a one-time token the request's that comes with it first, for d, and says whether it is this one's. The same request
// again is answered the same.
func (s *Store) UseToken(ctx context.Context, token, request string, d time.Duration) (ours bool, err error) {
	replies, errs := s.run(ctx, []invocation{invoke(acquireScript, []string{keyToken(token)}, "acquire", request, d.Milliseconds())})
	return replies[0] == int64(0), errs[0]
}
