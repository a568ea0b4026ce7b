package upstream

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"callrelay/callback/pbxtable"
	errorsv1 "callrelay/gen/callrelay/errors/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	upstreamv1 "callrelay/gen/callrelay/upstream/v1"
	"callrelay/platform/accounts"
	"callrelay/platform/errkind"
	"callrelay/platform/seal"
)

const (
	token  = "f2a8vdrfae0s1ku5d2rj3iximjf3twyz"
	secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	acme   = `{"id":"acme","prefix":"0003","extension_len":3,"webhook":{"url":"https://crm.example/hook","secret":"` + secret + `"},
		"extensions":[{"id":"33301","name":"0003*101","type":"phone","user":"u101","tokens":["` + token + `"]}]}`
)

// fakeAccounts keeps accounts in memory, with state's compare-and-set.
type fakeAccounts struct {
	statev1.AccountServiceClient
	mu   sync.Mutex
	kept map[string]*statev1.Account
	puts int
}

func (f *fakeAccounts) SyncAccounts(context.Context, *statev1.SyncAccountsRequest, ...grpc.CallOption) (*statev1.SyncAccountsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &statev1.SyncAccountsResponse{Ids: slices.Sorted(maps.Keys(f.kept)), NowMs: 1_795_000_000_000}
	for _, id := range answer.Ids {
		answer.Accounts = append(answer.Accounts, proto.CloneOf(f.kept[id]))
	}
	return answer, nil
}

func (f *fakeAccounts) GetAccount(_ context.Context, req *statev1.GetAccountRequest, _ ...grpc.CallOption) (*statev1.GetAccountResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &statev1.GetAccountResponse{Account: f.kept[req.GetId()]}, nil
}

func (f *fakeAccounts) PutAccount(_ context.Context, req *statev1.PutAccountRequest, _ ...grpc.CallOption) (*statev1.PutAccountResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kept[req.GetAccount().GetId()].GetVersion() != req.GetExpectedVersion() {
		return &statev1.PutAccountResponse{}, nil
	}
	f.puts++
	f.kept[req.GetAccount().GetId()] = req.GetAccount()
	return &statev1.PutAccountResponse{Written: true}, nil
}

func (f *fakeAccounts) DeleteAccount(_ context.Context, req *statev1.DeleteAccountRequest, _ ...grpc.CallOption) (*statev1.DeleteAccountResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.kept, req.GetId())
	return &statev1.DeleteAccountResponse{Deleted: true}, nil
}

func newFakePbx(t *testing.T) (*fakeAccounts, *pbxServer) {
	t.Helper()
	keys, err := seal.Parse("new:" + base64.StdEncoding.EncodeToString([]byte(strings.Repeat("n", 32))) + ",old:" + base64.StdEncoding.EncodeToString([]byte(strings.Repeat("o", 32))))
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeAccounts{kept: map[string]*statev1.Account{}}
	return f, &pbxServer{integrations: &integrations{accounts: f, log: slog.New(slog.DiscardHandler), keys: keys}}
}

// table is what readers of state make of it.
func (f *fakeAccounts) table(t *testing.T) *pbxtable.Table {
	t.Helper()
	var all []pbxtable.Integration
	for id, a := range f.kept {
		stored, err := pbxtable.ParseStored(id, a.GetSettings())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, stored.Integration)
	}
	return pbxtable.New(all)
}

func kindOf(err error) errorsv1.Kind {
	if err == nil {
		return errorsv1.Kind_KIND_UNSPECIFIED
	}
	return errkind.From(err).Kind
}

// Integrations come, change and go; state never holds a token or a secret that somebody could read there.
func TestIntegrations(t *testing.T) {
	f, s := newFakePbx(t)
	ctx := t.Context()
	put := func(text string, want errorsv1.Kind, part string) bool {
		t.Helper()
		answer, err := s.PutIntegration(ctx, &upstreamv1.PutIntegrationRequest{Integration: []byte(text)})
		if kindOf(err) != want || err != nil && (!strings.Contains(err.Error(), part) || strings.Contains(err.Error(), token) || strings.Contains(err.Error(), secret)) {
			t.Errorf("%.60s: %v, want %v %q", text, err, want, part)
		}
		return answer.GetChanged()
	}
	const invalid, fine = errorsv1.Kind_KIND_INVALID, errorsv1.Kind_KIND_UNSPECIFIED
	if !put(acme, fine, "") || put(acme, fine, "") || f.puts != 1 {
		t.Errorf("put twice, stored %d times", f.puts)
	}
	kept := f.kept["pbx/acme"].String()
	if strings.Contains(kept, token) || strings.Contains(kept, secret[6:]) {
		t.Errorf("state can read it: %s", kept)
	}
	now := time.UnixMilli(1_795_000_000_000)
	if row := f.table(t).Find(token, now); row == nil || row.ExtensionID != "33301" {
		t.Errorf("the token stands for %v", row)
	}
	put(strings.Replace(acme, `"0003",`, `"3",`, 1), invalid, "integration (acme): prefix must be")
	put(strings.Replace(acme, `"acme"`, `"umbrella"`, 1), invalid, "extensions[0]: tokens[0] is there twice")
	put(`{`, invalid, "the JSON ends too early")

	// What is listed can be put again, changed, without its secrets.
	list, err := s.ListIntegrations(ctx, &upstreamv1.ListIntegrationsRequest{})
	if err != nil || len(list.GetIntegrations()) != 1 || list.GetIntegrations()[0].GetProblem() != "" || list.GetIntegrations()[0].GetFromFile() {
		t.Fatalf("%v, %v", list, err)
	}
	listed := string(list.GetIntegrations()[0].GetIntegration())
	if strings.Contains(listed, token) || strings.Contains(listed, secret) {
		t.Errorf("listed %s", listed)
	}
	if put(listed, fine, "") || !put(strings.Replace(listed, "u101", "u102", 1), fine, "") {
		t.Error("what was listed is something else")
	}
	if got, err := s.integrations.secret(f.kept["pbx/acme"]); err != nil || got != secret {
		t.Errorf("the secret is %q, %v", string(got), err)
	}
	put(strings.ReplaceAll(strings.Replace(strings.Replace(listed, `"acme"`, `"umbrella"`, 1), `"tokens"`, `"ending"`, 1), `["sha256`, `[],"tokens":["sha256=0`), invalid, "")
	other := strings.Replace(strings.Replace(acme, `"acme"`, `"umbrella"`, 1), token, "bd8e4091b2abed48387a0efc2c86c82b", 1)
	put(strings.Replace(other, secret, "sha256="+strings.Repeat("0", 64), 1), invalid, "webhook.secret is the hash of a secret that is not known here")

	// A new token; the old one ends.
	rotate := func(extension string, overlap int64) (*upstreamv1.RotateTokenResponse, error) {
		return s.RotateToken(ctx, &upstreamv1.RotateTokenRequest{IntegrationId: "acme", Extension: extension, OverlapS: overlap})
	}
	answer, err := rotate("0003*101", 3600)
	if err != nil || answer.GetEarlierEndMs() != now.Add(time.Hour).UnixMilli() {
		t.Fatalf("%v, %v", answer, err)
	}
	at := func(after time.Duration, text string) bool { return f.table(t).Find(text, now.Add(after)) != nil }
	if !at(0, answer.GetToken()) || !at(59*time.Minute, token) || at(time.Hour, token) || !at(time.Hour, answer.GetToken()) {
		t.Error("the old token and the new one")
	}
	if leaked, err := rotate("33301", 0); err != nil || leaked.GetEarlierEndMs() != 0 || at(0, answer.GetToken()) || !at(0, leaked.GetToken()) {
		t.Errorf("a leaked token works on: %v", err)
	}
	for _, bad := range []struct {
		extension string
		overlap   int64
		want      errorsv1.Kind
	}{{"33302", 0, errorsv1.Kind_KIND_NOT_FOUND}, {"33301", -1, invalid}, {"33301", 1 << 62, invalid}} {
		if _, err := rotate(bad.extension, bad.overlap); kindOf(err) != bad.want {
			t.Errorf("%v: %v", bad, err)
		}
	}

	if _, err := s.DeleteIntegration(ctx, &upstreamv1.DeleteIntegrationRequest{Id: "acme"}); err != nil || len(f.kept) != 0 {
		t.Errorf("deleted: %v, %v", err, f.kept)
	}
	if _, err := s.DeleteIntegration(ctx, &upstreamv1.DeleteIntegrationRequest{Id: "acme"}); kindOf(err) != errorsv1.Kind_KIND_NOT_FOUND {
		t.Errorf("deleted again: %v", err)
	}
	s.integrations.keys = nil
	put(acme, errorsv1.Kind_KIND_REFUSED, "SECRETS_KEY is not set")
}

// The file counts when its entry has changed; what was changed otherwise since stays.
func TestIntegrationsOfTheFile(t *testing.T) {
	f, s := newFakePbx(t)
	ctx := t.Context()
	start := func(text string) *integrations {
		t.Helper()
		i := &integrations{accounts: f, log: slog.New(slog.DiscardHandler), keys: s.integrations.keys}
		var err error
		if i.file, err = pbxtable.Parse([]byte(`{"integrations":[` + text + `]}`)); err != nil {
			t.Fatal(err)
		}
		list, _, err := accounts.NewFollower(f, "pbx/").Look(ctx)
		if err == nil {
			err = i.load(ctx, list)
		}
		if err != nil || !i.loaded.Load() {
			t.Fatalf("loaded %v, %v", i.loaded.Load(), err)
		}
		return i
	}
	userOf := func() string {
		t.Helper()
		stored, err := pbxtable.ParseStored("pbx/acme", f.kept["pbx/acme"].GetSettings())
		if err != nil {
			t.Fatal(err)
		}
		return stored.Integration.Extensions[0].User
	}
	start(acme)
	start(acme)
	if f.puts != 1 {
		t.Errorf("the same file was stored %d times", f.puts)
	}
	rotated, err := s.RotateToken(ctx, &upstreamv1.RotateTokenRequest{IntegrationId: "acme", Extension: "33301"})
	if err != nil {
		t.Fatal(err)
	}
	running := start(acme)
	if row := f.table(t).Find(rotated.GetToken(), time.Now()); row == nil || f.table(t).Find(token, time.Now()) != nil {
		t.Error("a restart brought the old token back")
	}
	start(strings.Replace(acme, "u101", "u999", 1))
	if userOf() != "u999" {
		t.Errorf("the changed file does not count: %s", userOf())
	}
	list, _, err := accounts.NewFollower(f, "pbx/").Look(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// Another upstream with the earlier file goes on running: the two do not fight.
	if err := running.load(ctx, list); err != nil || userOf() != "u999" {
		t.Errorf("%s, %v", userOf(), err)
	}
	s.integrations.file = running.file
	if _, err := s.DeleteIntegration(ctx, &upstreamv1.DeleteIntegrationRequest{Id: "acme"}); kindOf(err) != errorsv1.Kind_KIND_REFUSED {
		t.Errorf("deleted, and the file brings it back: %v", err)
	}
	delete(f.kept, "pbx/acme") // Redis was begun anew
	if err := running.load(ctx, accounts.List{}); err != nil || userOf() != "u101" {
		t.Errorf("%v", err)
	}
}

// What an older key sealed is sealed with the newest, so that the older can go.
func TestIntegrationsAreSealedAgain(t *testing.T) {
	f, s := newFakePbx(t)
	ctx := t.Context()
	old, err := seal.Parse("old:" + base64.StdEncoding.EncodeToString([]byte(strings.Repeat("o", 32))))
	if err != nil {
		t.Fatal(err)
	}
	before := &integrations{accounts: f, log: slog.New(slog.DiscardHandler), keys: old}
	n, err := pbxtable.ParseOne([]byte(acme), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := before.write(ctx, nil, *n, ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.integrations.reseal(ctx, f.kept["pbx/acme"], secret); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.integrations.secret(f.kept["pbx/acme"]); err != nil || got != secret || !s.integrations.keys.Current(f.kept["pbx/acme"].GetCredentials()) || f.puts != 2 {
		t.Errorf("%v, %d puts", err, f.puts)
	}
	if _, err := before.secret(f.kept["pbx/acme"]); err == nil {
		t.Error("it still opens with the old key")
	}
	var stored pbxtable.Stored
	if err := json.Unmarshal(f.kept["pbx/acme"].GetSettings(), &stored); err != nil || stored.Integration.ID != "acme" {
		t.Errorf("%v %v", stored, err)
	}
}
