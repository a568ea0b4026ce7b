package upstream

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"callrelay/callback/pbxtable"
	statev1 "callrelay/gen/callrelay/state/v1"
	upstreamv1 "callrelay/gen/callrelay/upstream/v1"
	"callrelay/platform/accounts"
	"callrelay/platform/errkind"
	"callrelay/platform/seal"
)

// integrations are those of cloud PBXs (docs/pbx.md). State keeps them, with hashes in place of tokens and secrets; what the
// webhooks are signed with is sealed here.
type integrations struct {
	accounts statev1.AccountServiceClient
	log      *slog.Logger
	keys     *seal.Keys             // nil: there is no SECRETS_KEY
	file     []pbxtable.Integration // of PBX_INTEGRATIONS
	loaded   atomic.Bool            // the file, once
}

// readIntegrations reads PBX_INTEGRATIONS.
func readIntegrations(path string) ([]pbxtable.Integration, error) {
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("PBX_INTEGRATIONS: %w", err)
	}
	file, err := pbxtable.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("PBX_INTEGRATIONS: %w", err)
	}
	return file, nil
}

// load brings what the file says into state: at first each entry that is not the one that was loaded last, later only what is
// missing there. So whatever was changed since stays until its entry in the file changes.
func (i *integrations) load(ctx context.Context, list accounts.List) error {
	stored := map[string]*statev1.Account{}
	for _, a := range list.Accounts {
		stored[a.GetId()] = a
	}
	var problems []error
	again := false
	for _, n := range i.file {
		digest, err := n.Digest()
		if err != nil {
			return err
		}
		a := stored[pbxtable.AccountPrefix+n.ID]
		if a != nil {
			known, err := pbxtable.ParseStored(a.GetId(), a.GetSettings())
			if i.loaded.Load() || err == nil && known.File == digest {
				continue
			}
		}
		switch _, err := i.write(ctx, a, n, digest); {
		case errors.Is(err, errChanged):
			again = true // by another upstream with the same file, as the next look will show
		case err != nil:
			problems = append(problems, fmt.Errorf("%s: %w", n.ID, err))
		}
	}
	i.loaded.Store(i.loaded.Load() || len(problems) == 0 && !again)
	return errors.Join(problems...)
}

// errChanged: somebody else has changed the integration meanwhile.
var errChanged = errkind.Unavailable(nil, "the integration was changed by somebody else at the same time, try again")

// write stores an integration in place of what was read of it, nil where there was nothing. It is false when nothing changes.
func (i *integrations) write(ctx context.Context, was *statev1.Account, n pbxtable.Integration, file string) (changed bool, err error) {
	a := &statev1.Account{Id: pbxtable.AccountPrefix + n.ID, Version: rand.Text()}
	if a.Settings, err = json.Marshal(pbxtable.Stored{Integration: n.Hashed(), File: file}); err != nil {
		return false, errkind.Internal(err)
	}
	known, _ := i.secret(was)
	switch {
	case known != "" && known.Hash() == n.Webhook.Secret.Hash():
		if a.Credentials = was.GetCredentials(); bytes.Equal(a.Settings, was.GetSettings()) {
			return false, nil
		}
	case n.Webhook.Secret.Hashed():
		return false, errkind.Invalid("webhook.secret", "webhook.secret is the hash of a secret that is not known here: give the secret itself")
	case i.keys == nil:
		return false, errkind.Refused("integrations cannot be kept: %v, which seals the secrets of webhooks (docs/secrets.md)", errNoKey)
	default:
		a.Credentials = i.keys.Seal([]byte(n.Webhook.Secret), a.Id)
	}
	return true, i.put(ctx, a, was.GetVersion())
}

func (i *integrations) put(ctx context.Context, a *statev1.Account, expected string) error {
	answer, err := i.accounts.PutAccount(ctx, &statev1.PutAccountRequest{Account: a, ExpectedVersion: expected})
	switch {
	case err != nil:
		return err
	case !answer.GetWritten():
		return errChanged
	}
	i.log.Info("an integration was stored", "integration", a.GetId())
	return nil
}

// secret opens what an integration's webhook is signed with.
func (i *integrations) secret(a *statev1.Account) (pbxtable.Secret, error) {
	switch {
	case a == nil:
		return "", errors.New("there is no such integration")
	case i.keys == nil:
		return "", errNoKey
	}
	plain, err := i.keys.Open(a.GetCredentials(), a.GetId())
	if err != nil {
		return "", fmt.Errorf("the secret of its webhook cannot be opened (SECRETS_KEY): %w", err)
	}
	return pbxtable.Secret(plain), nil
}

// reseal seals a secret with the newest key, so that older ones can go.
func (i *integrations) reseal(ctx context.Context, a *statev1.Account, secret pbxtable.Secret) error {
	if i.keys.Current(a.GetCredentials()) {
		return nil
	}
	fresh := &statev1.Account{Id: a.GetId(), Version: rand.Text(), Settings: a.GetSettings(),
		Credentials: i.keys.Seal([]byte(secret), a.GetId())}
	return i.put(ctx, fresh, a.GetVersion())
}

// kept is an integration as state keeps it.
type kept struct {
	account *statev1.Account
	pbxtable.Stored
	problem error // set: it cannot be read
}

// list reads all integrations, and state's clock.
func (i *integrations) list(ctx context.Context) (all []kept, now time.Time, err error) {
	list, _, err := accounts.NewFollower(i.accounts, pbxtable.AccountPrefix).Look(ctx)
	if err != nil {
		return nil, now, err
	}
	for _, a := range list.Accounts {
		one := kept{account: a}
		stored, err := pbxtable.ParseStored(a.GetId(), a.GetSettings())
		if one.problem = err; err == nil {
			one.Stored = *stored
		}
		all = append(all, one)
	}
	return all, time.UnixMilli(list.NowMS), nil
}

// pbxServer answers for the integrations.
type pbxServer struct {
	upstreamv1.UnimplementedPbxServiceServer
	integrations *integrations
}

// PutIntegration creates or replaces one.
func (s *pbxServer) PutIntegration(ctx context.Context, req *upstreamv1.PutIntegrationRequest) (*upstreamv1.PutIntegrationResponse, error) {
	all, _, err := s.integrations.list(ctx)
	if err != nil {
		return nil, err
	}
	var named struct {
		ID string `json:"id"`
	}
	_ = json.Unmarshal(req.GetIntegration(), &named) // ParseOne says what is wrong
	var was kept
	var others []pbxtable.Integration
	for _, one := range all {
		if one.account.GetId() == pbxtable.AccountPrefix+named.ID {
			was = one
		} else {
			others = append(others, one.Integration)
		}
	}
	n, err := pbxtable.ParseOne(req.GetIntegration(), others)
	if err != nil {
		return nil, errkind.Invalid("integration", "%v", err)
	}
	changed, err := s.integrations.write(ctx, was.account, *n, was.File)
	return &upstreamv1.PutIntegrationResponse{Changed: changed}, err
}

// ListIntegrations lists them without secrets.
func (s *pbxServer) ListIntegrations(ctx context.Context, _ *upstreamv1.ListIntegrationsRequest) (*upstreamv1.ListIntegrationsResponse, error) {
	all, _, err := s.integrations.list(ctx)
	if err != nil {
		return nil, err
	}
	resp := &upstreamv1.ListIntegrationsResponse{}
	for _, one := range all {
		out := &upstreamv1.Integration{Id: strings.TrimPrefix(one.account.GetId(), pbxtable.AccountPrefix), FromFile: one.File != ""}
		problem := one.problem
		if problem == nil {
			if out.Integration, err = json.Marshal(one.Integration); err != nil {
				return nil, errkind.Internal(err)
			}
			_, problem = s.integrations.secret(one.account)
		}
		if problem != nil {
			out.Problem = problem.Error()
		}
		resp.Integrations = append(resp.Integrations, out)
	}
	return resp, nil
}

// DeleteIntegration forgets one.
func (s *pbxServer) DeleteIntegration(ctx context.Context, req *upstreamv1.DeleteIntegrationRequest) (*upstreamv1.DeleteIntegrationResponse, error) {
	if slices.ContainsFunc(s.integrations.file, func(n pbxtable.Integration) bool { return n.ID == req.GetId() }) {
		return nil, errkind.Refused("%s is in the file PBX_INTEGRATIONS, which would bring it back: take it out there and restart upstream first", req.GetId())
	}
	found, err := s.integrations.accounts.GetAccount(ctx, &statev1.GetAccountRequest{Id: pbxtable.AccountPrefix + req.GetId()})
	if err != nil {
		return nil, err
	}
	account := found.GetAccount()
	if account == nil {
		return nil, errkind.NotFound("there is no integration %q: callrelay integrations list", req.GetId())
	}
	answer, err := s.integrations.accounts.DeleteAccount(ctx, &statev1.DeleteAccountRequest{Id: account.GetId(), ExpectedVersion: account.GetVersion()})
	switch {
	case err != nil:
		return nil, err
	case !answer.GetDeleted():
		return nil, errChanged
	}
	s.integrations.log.Info("an integration was deleted", "integration", account.GetId())
	return &upstreamv1.DeleteIntegrationResponse{}, nil
}

// maxOverlap bounds how long a token that was replaced still works.
const maxOverlap = 90 * 24 * time.Hour

// RotateToken gives an extension a new token.
func (s *pbxServer) RotateToken(ctx context.Context, req *upstreamv1.RotateTokenRequest) (*upstreamv1.RotateTokenResponse, error) {
	overlap := time.Duration(req.GetOverlapS()) * time.Second
	if req.GetOverlapS() < 0 || req.GetOverlapS() > int64(maxOverlap/time.Second) {
		return nil, errkind.Invalid("overlap_s", "the overlap must be 0 to %v, not %d s", maxOverlap, req.GetOverlapS())
	}
	all, now, err := s.integrations.list(ctx)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(all, func(one kept) bool { return one.account.GetId() == pbxtable.AccountPrefix+req.GetIntegrationId() })
	if at < 0 {
		return nil, errkind.NotFound("there is no integration %q: callrelay integrations list", req.GetIntegrationId())
	}
	n := all[at].Integration
	row := slices.IndexFunc(n.Extensions, func(x pbxtable.Extension) bool { return x.ID == req.GetExtension() || x.Name == req.GetExtension() })
	if row < 0 {
		return nil, errkind.NotFound("%s has no extension %q: callrelay integrations list %[1]s", req.GetIntegrationId(), req.GetExtension())
	}
	answer := &upstreamv1.RotateTokenResponse{Token: strings.ToLower(rand.Text())}
	if len(n.Extensions[row].Tokens) > 0 && overlap > 0 {
		answer.EarlierEndMs = now.Add(overlap).UnixMilli()
	}
	if err := n.Extensions[row].Rotate(pbxtable.NewToken(answer.Token), now.Add(overlap), now); err != nil {
		return nil, errkind.Refused("%v", err)
	}
	if _, err := s.integrations.write(ctx, all[at].account, n, all[at].File); err != nil {
		return nil, err
	}
	return answer, nil
}
