package state

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/errkind"
)

type accounts struct {
	statev1.UnimplementedAccountServiceServer
	*Service
}

const (
	maxName       = 128
	maxAccount    = 64 << 10
	maxTable      = 3 << 20 // of a cloud PBX with all its extensions
	maxRenewal    = 10 * time.Minute
	maxToken      = 48 * time.Hour
	accountHelp   = "id must be 1 to 128 bytes, e.g. kommo/9001"
	maxNotices    = 32
	accountPrefix = "accounts are listed by the beginning of their id, at most 128 bytes"
)

func named(name string) bool { return name != "" && len(name) <= maxName }

// GetAccount reads one account.
func (s *accounts) GetAccount(ctx context.Context, req *statev1.GetAccountRequest) (*statev1.GetAccountResponse, error) {
	if !named(req.GetId()) {
		return nil, errkind.Invalid("id", accountHelp)
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	account, err := s.store.Account(ctx, req.GetId())
	if err != nil {
		return nil, unavailable(err)
	}
	return &statev1.GetAccountResponse{Account: account}, nil
}

// ListAccounts lists accounts by id.
func (s *accounts) ListAccounts(ctx context.Context, req *statev1.ListAccountsRequest) (*statev1.ListAccountsResponse, error) {
	if len(req.GetPrefix()) > maxName {
		return nil, errkind.Invalid("prefix", accountPrefix)
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	found, err := s.store.Accounts(ctx, req.GetPrefix())
	if err != nil {
		return nil, unavailable(err)
	}
	return &statev1.ListAccountsResponse{Accounts: found}, nil
}

// SyncAccounts brings a copy up to date.
func (s *accounts) SyncAccounts(ctx context.Context, req *statev1.SyncAccountsRequest) (*statev1.SyncAccountsResponse, error) {
	if len(req.GetPrefix()) > maxName {
		return nil, errkind.Invalid("prefix", accountPrefix)
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	ids, changed, more, err := s.store.SyncAccounts(ctx, req.GetPrefix(), req.GetKnown())
	if err != nil {
		return nil, unavailable(err)
	}
	return &statev1.SyncAccountsResponse{Ids: ids, Accounts: changed, More: more, NowMs: s.store.Now()}, nil
}

// PutAccount creates or changes an account.
func (s *accounts) PutAccount(ctx context.Context, req *statev1.PutAccountRequest) (*statev1.PutAccountResponse, error) {
	a := req.GetAccount()
	most := maxAccount
	if strings.HasPrefix(a.GetId(), "pbx/") {
		most = maxTable
	}
	switch {
	case !named(a.GetId()):
		return nil, errkind.Invalid("account.id", accountHelp)
	case !named(a.GetVersion()) || a.GetVersion() == req.GetExpectedVersion():
		return nil, errkind.Invalid("account.version", "version must be a new id of 1 to %d bytes", maxName)
	case proto.Size(a) > most:
		return nil, errkind.Invalid("account", "an account has at most %d bytes, this one has %d", most, proto.Size(a))
	case len(a.GetNotices()) > maxNotices:
		return nil, errkind.Invalid("account.notices", "an account has at most %d notices", maxNotices)
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	written, err := s.store.PutAccount(ctx, a, req.GetExpectedVersion())
	if err != nil {
		return nil, unavailable(err)
	}
	resp := &statev1.PutAccountResponse{Written: written}
	if !written {
		if resp.Current, err = s.store.Account(ctx, a.GetId()); err != nil {
			return nil, unavailable(err)
		}
	}
	return resp, nil
}

// DeleteAccount ends an account.
func (s *accounts) DeleteAccount(ctx context.Context, req *statev1.DeleteAccountRequest) (*statev1.DeleteAccountResponse, error) {
	if !named(req.GetId()) {
		return nil, errkind.Invalid("id", accountHelp)
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	deleted, err := s.store.DeleteAccount(ctx, req.GetId(), req.GetExpectedVersion())
	if err != nil {
		return nil, unavailable(err)
	}
	return &statev1.DeleteAccountResponse{Deleted: deleted}, nil
}

// AcquireAccount makes one process the only one that renews an account's credentials.
func (s *accounts) AcquireAccount(ctx context.Context, req *statev1.AcquireAccountRequest) (*statev1.AcquireAccountResponse, error) {
	length := time.Duration(req.GetForMs()) * time.Millisecond
	switch {
	case !named(req.GetId()):
		return nil, errkind.Invalid("id", accountHelp)
	case !named(req.GetToken()):
		return nil, errkind.Invalid("token", "token must be 1 to %d bytes", maxName)
	case length <= 0 || length > maxRenewal:
		return nil, errkind.Invalid("for_ms", "for_ms must be 1 to %d", maxRenewal.Milliseconds())
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	wait, err := s.store.Acquire(ctx, req.GetId(), req.GetToken(), length)
	if err != nil {
		return nil, unavailable(err)
	}
	return &statev1.AcquireAccountResponse{Acquired: wait == 0, WaitMs: wait.Milliseconds()}, nil
}

// ReleaseAccount lets it go.
func (s *accounts) ReleaseAccount(ctx context.Context, req *statev1.ReleaseAccountRequest) (*statev1.ReleaseAccountResponse, error) {
	if !named(req.GetId()) {
		return nil, errkind.Invalid("id", accountHelp)
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	if err := s.store.ReleaseLease(ctx, req.GetId(), req.GetToken()); err != nil {
		return nil, unavailable(err)
	}
	return &statev1.ReleaseAccountResponse{}, nil
}

// UseToken makes a one-time token one request's.
func (s *accounts) UseToken(ctx context.Context, req *statev1.UseTokenRequest) (*statev1.UseTokenResponse, error) {
	length := time.Duration(req.GetForMs()) * time.Millisecond
	switch {
	case !named(req.GetToken()):
		return nil, errkind.Invalid("token", "token must be 1 to %d bytes", maxName)
	case !named(req.GetRequestId()):
		return nil, errkind.Invalid("request_id", "request_id must be 1 to %d bytes", maxName)
	case length <= 0 || length > maxToken:
		return nil, errkind.Invalid("for_ms", "for_ms must be 1 to %d", maxToken.Milliseconds())
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	ours, err := s.store.UseToken(ctx, req.GetToken(), req.GetRequestId(), length)
	if err != nil {
		return nil, unavailable(err)
	}
	return &statev1.UseTokenResponse{Ours: ours}, nil
}
