// Package router decides: it asks the rules (packages ameyo, pbx and kommo) what each input means for its call, and commits the new
// call with all its effects, or nothing. It owns the lanes (one input of a call at a time), the conversion between the stored
// record and the rules' own types, and the work in `rules`, the queue of timers, messages between calls and results of deliveries.
// It does not know Redis and speaks to no CRM.
package router

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"

	"callrelay/callback/pbxtable"
	operatorv1 "callrelay/gen/callrelay/operator/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/accounts"
	"callrelay/platform/rpc"
	"callrelay/platform/telemetry"
	"callrelay/services/router/kommo"
)

// StopTimeout is how long Run of a process of its own may take to end: of the same half is for the entries under way to finish, the
// rest for telling state of those that could not.
const StopTimeout = 4 * time.Second

// Service is router; it implements run.Service.
type Service struct {
	tel    *telemetry.Telemetry
	engine *engine
	state  statev1.StateServiceClient
	advice *advice

	stopping chan struct{} // closed when Run begins to end: the long streams end with it
}

// New prepares the service. The configuration must have passed Validate.
func New(cfg Config, tel *telemetry.Telemetry, state grpc.ClientConnInterface) (*Service, error) {
	rules, options, err := cfg.Rules()
	if err != nil {
		return nil, err
	}
	client := statev1.NewStateServiceClient(state)
	e, err := newEngine(rules, options, tel, client)
	if err != nil {
		return nil, err
	}
	stored := statev1.NewAccountServiceClient(state)
	e.pbx.config, e.pbx.follower = cfg.Pbx, accounts.NewFollower(stored, pbxtable.AccountPrefix)
	e.kommo.config, e.kommo.client, e.kommo.follower = cfg.Kommo, stored, accounts.NewFollower(stored, kommo.AccountPrefix)
	e.kommo.routes, err = cfg.Kommo.check()
	e.entryMaxAge, e.stopTimeout = cfg.EntryMaxAge, cmp.Or(cfg.StopTimeout, e.stopTimeout)
	return &Service{tel: tel, state: client, engine: e, advice: &advice{engine: e, shelf: &shelf{operatorv1.NewOperatorServiceClient(state)}}, stopping: make(chan struct{})}, err
}

// Register adds the gRPC services.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	routerv1.RegisterRouterServiceServer(r, &server{engine: s.engine, stopping: s.stopping})
	operatorv1.RegisterAdviceServiceServer(r, s.advice)
}

// Ready is nil while there are streams to state.
func (s *Service) Ready() error {
	if !s.engine.load.Connected() || !s.engine.commit.Connected() {
		return errors.New("no connection to state")
	}
	return nil
}

// Run keeps the streams to state and works off due entries until ctx ends. The streams end last: inputs under way still
// need them.
func (s *Service) Run(ctx context.Context) error {
	pipes, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { s.engine.load.Run(pipes) })
	wg.Go(func() { s.engine.commit.Run(pipes) })
	wg.Go(func() {
		s.engine.kommo.follower.Run(pipes, func(list accounts.List, _ bool) { s.engine.kommo.take(list, s.tel.Log().Error) })
	})
	wg.Go(func() {
		s.engine.pbx.follower.Run(pipes, func(list accounts.List, _ bool) { s.engine.pbx.take(list, s.tel.Log().Error) })
	})
	var entries sync.WaitGroup
	entries.Go(func() { s.engine.entries(ctx, s.state) })
	<-ctx.Done()
	close(s.stopping)
	entries.Wait()
	s.engine.running.wait()
	stop()
	wg.Wait()
	return nil
}

type (
	loadPipe   = rpc.Pipe[*statev1.LoadItem, loaded]
	commitPipe = rpc.Pipe[*statev1.CommitItem, committed]
)

// loaded and committed are answers with the clock of the message they came in.
type loaded struct {
	*statev1.LoadAnswer
	nowMS int64
}

type committed struct {
	*statev1.CommitAnswer
	nowMS int64
}

const (
	// batch bounds a message to state, messages how many are under way: while state is busy with them, batches grow.
	batch    = 64
	messages = 2
	// underWay bounds the inputs of this process that are being decided.
	underWay = 4096
)

func newLoadPipe(client statev1.StateServiceClient) *loadPipe {
	return rpc.NewPipe(rpc.PipeConfig[*statev1.LoadItem, loaded]{
		Open: func(ctx context.Context) (rpc.PipeStream[*statev1.LoadItem, loaded], error) {
			stream, err := client.Load(ctx)
			return rpc.PipeStream[*statev1.LoadItem, loaded]{
				Send: func(items []*statev1.LoadItem) error { return stream.Send(&statev1.LoadRequest{Items: items}) },
				Recv: func() ([]loaded, error) {
					resp, err := stream.Recv()
					answers := make([]loaded, len(resp.GetAnswers()))
					for i, a := range resp.GetAnswers() {
						answers[i] = loaded{a, resp.GetNowMs()}
					}
					return answers, err
				},
			}, err
		},
		SetID:    func(item *statev1.LoadItem, id uint64) { item.Id = id },
		ID:       func(a loaded) uint64 { return a.GetId() },
		MaxBatch: batch, MaxMessages: messages, MaxItems: underWay,
	})
}

func newCommitPipe(client statev1.StateServiceClient) *commitPipe {
	return rpc.NewPipe(rpc.PipeConfig[*statev1.CommitItem, committed]{
		Open: func(ctx context.Context) (rpc.PipeStream[*statev1.CommitItem, committed], error) {
			stream, err := client.Commit(ctx)
			return rpc.PipeStream[*statev1.CommitItem, committed]{
				Send: func(items []*statev1.CommitItem) error { return stream.Send(&statev1.CommitRequest{Items: items}) },
				Recv: func() ([]committed, error) {
					resp, err := stream.Recv()
					answers := make([]committed, len(resp.GetAnswers()))
					for i, a := range resp.GetAnswers() {
						answers[i] = committed{a, resp.GetNowMs()}
					}
					return answers, err
				},
			}, err
		},
		SetID:    func(item *statev1.CommitItem, id uint64) { item.Id = id },
		ID:       func(a committed) uint64 { return a.GetId() },
		MaxBatch: batch, MaxMessages: messages, MaxItems: underWay,
	})
}
