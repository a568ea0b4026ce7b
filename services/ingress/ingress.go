// Package ingress is the door: HTTP callbacks become protobuf here (grpc-gateway, in process), are checked as far as that
// needs no state, and are acknowledged once router says that they are committed, or once they are on the local disk where
// that takes too long. It owns sources, limits, request ids, the spool and the words of every answer. It does not know rules that need state, and it does not know Redis.
package ingress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"
	"google.golang.org/grpc"

	ingressv1 "callrelay/gen/callrelay/ingress/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/accounts"
	"callrelay/platform/rpc"
	"callrelay/platform/telemetry"
	"callrelay/services/ingress/internal/spool"
)

// Service is ingress; it implements run.Service.
type Service struct {
	cfg          Config
	tel          *telemetry.Telemetry
	pipe         *routePipe
	spool        *spooling
	callbacks    *callbacks
	refused      *refusals
	strangers    *strangers
	ameyo        *ameyoServer
	pbx          *pbxServer
	cards        *cardServer
	integrations *integrations
	kommoHosts   kommoHosts
	http         *http.Server
	listen       net.Listener
	connections  *connections
	router       grpc.ClientConnInterface

	load     load
	stopping atomic.Bool

	state    grpc.ClientConnInterface
	upstream *grpc.ClientConn

	// serving ends with endStreams: it ends what would not end by itself, the operators' requests and who watches cards.
	serving    context.Context
	endStreams context.CancelFunc
}

type routePipe = rpc.Pipe[*routerv1.RouteItem, *routerv1.RouteAnswer]

// New opens the HTTP address and the spool, so that a taken port or directory fails at once; requests are served by Run.
func New(cfg Config, tel *telemetry.Telemetry, router, state grpc.ClientConnInterface) (*Service, error) {
	s := &Service{cfg: cfg, tel: tel, router: router, state: state, pipe: newPipe(routerv1.NewRouterServiceClient(router)),
		load: load{max: int64(cfg.MaxRequests)}}
	s.serving, s.endStreams = context.WithCancel(context.Background())
	counts, err := newMetrics(tel.Meter())
	if err != nil {
		return nil, err
	}
	s.integrations = newIntegrations(cfg.Pbx, cfg.spoolDir(), tel.Log())
	s.spool = &spooling{pipe: s.pipe, tel: tel, metrics: counts, share: s.integrations.waitingShare}
	s.callbacks = &callbacks{ackBudget: cfg.AckBudget, tel: tel, metrics: counts, pipe: s.pipe, spool: s.spool, load: &s.load}
	s.refused = newRefusals(s.callbacks, cfg.RefusedBytes)
	s.callbacks.refused = s.refused
	if s.strangers, err = newStrangers(tel); err != nil {
		return nil, err
	}
	s.ameyo = &ameyoServer{callbacks: s.callbacks, options: cfg.options()}
	s.pbx = &pbxServer{callbacks: s.callbacks, integrations: s.integrations}
	s.cards = &cardServer{s: s, view: newCardView()}
	if s.upstream, err = rpc.Dial(cfg.Kommo.UpstreamAddr); err != nil {
		return nil, fmt.Errorf("UPSTREAM_GRPC_ADDR: %w", err)
	}
	handler, err := newHandler(s)
	if err != nil {
		return nil, err
	}
	if s.listen, err = net.Listen("tcp", cfg.HTTPAddr); err != nil {
		return nil, fmt.Errorf("INGRESS_HTTP_ADDR: %w", err)
	}
	if s.spool.spool, err = spool.Open(cfg.spoolDir(), spool.Limits{Bytes: cfg.SpoolBytes, Items: cfg.SpoolItems}, tel.Log()); err != nil {
		return nil, errors.Join(fmt.Errorf("SPOOL_DIR: %w", err), s.listen.Close())
	}
	s.integrations.load()
	if err := observeSpool(tel.Meter(), s.spool.spool); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.connections = &connections{max: cfg.MaxConnections, idle: map[net.Conn]struct{}{}}
	s.http = &http.Server{
		Handler:           handler,
		ConnState:         s.connections.state,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       90 * time.Second,
		MaxHeaderBytes:    128 << 10, // a query that is too long shall get our 414, not a bare 431
	}
	return s, nil
}

// Close ends a service that was never run.
func (s *Service) Close() error {
	return errors.Join(s.spool.spool.Close(), s.listen.Close(), s.upstream.Close())
}

// newPipe speaks the Route stream.
func newPipe(client routerv1.RouterServiceClient) *routePipe {
	return rpc.NewPipe(rpc.PipeConfig[*routerv1.RouteItem, *routerv1.RouteAnswer]{
		Open: func(ctx context.Context) (rpc.PipeStream[*routerv1.RouteItem, *routerv1.RouteAnswer], error) {
			stream, err := client.Route(ctx)
			return rpc.PipeStream[*routerv1.RouteItem, *routerv1.RouteAnswer]{
				Send: func(items []*routerv1.RouteItem) error {
					return stream.Send(&routerv1.RouteRequest{Items: items})
				},
				Recv: func() ([]*routerv1.RouteAnswer, error) {
					resp, err := stream.Recv()
					return resp.GetAnswers(), err
				},
			}, err
		},
		SetID:    func(item *routerv1.RouteItem, id uint64) { item.Id = id },
		ID:       (*routerv1.RouteAnswer).GetId,
		MaxBatch: 64,
		MaxItems: 4096,
	})
}

// Register adds the gRPC services.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	ingressv1.RegisterAmeyoServiceServer(r, s.ameyo)
	ingressv1.RegisterPbxServiceServer(r, s.pbx)
	ingressv1.RegisterCardServiceServer(r, s.cards)
}

// Ready is nil while callbacks can be acknowledged: without router too, as long as the spool takes them. A balancer that
// turned away from here then would find the same router gone elsewhere.
func (s *Service) Ready() error {
	if s.stopping.Load() {
		return errors.New("stopping")
	}
	if s.integrations.begins.Load() { // at most two seconds, with or without state
		return errors.New("reading the integrations")
	}
	return s.spool.ready()
}

// HTTPAddr is the address that callbacks reach, also when the configured port was 0.
func (s *Service) HTTPAddr() string { return s.listen.Addr().String() }

// Run serves until ctx ends, then answers what is under way.
func (s *Service) Run(ctx context.Context) error {
	s.warnOpen()
	// The spool and the pipe outlive the HTTP server: requests under way still need them.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.integrations.begins.Store(true)
	var wg sync.WaitGroup
	wg.Go(func() { s.pipe.Run(background) })
	wg.Go(func() { s.spool.run(background) })
	s.refused.run()
	wg.Go(func() { s.integrations.run(background, statev1.NewAccountServiceClient(s.state)) })
	if s.cfg.Kommo.App.complete() {
		wg.Go(func() {
			accounts.NewFollower(statev1.NewAccountServiceClient(s.state), kommoAccounts).Run(background,
				func(list accounts.List, changed bool) {
					if changed {
						s.kommoHosts.take(list)
					}
				})
		})
	}
	wg.Go(func() { s.cards.run(background, statev1.NewCardServiceClient(s.state)) })
	wg.Go(func() { s.report(background, statev1.NewStateServiceClient(s.state)) })
	defer func() {
		s.refused.stop()
		stop()
		wg.Wait()
		s.spool.away.Store(true) // nobody waits for the pipe any more
		_ = s.upstream.Close()
		if err := s.spool.spool.Close(); err != nil {
			s.tel.Log().Error("closing the spool", "error", err)
		}
	}()
	defer s.endStreams()

	served := make(chan error, 1)
	go func() { served <- s.http.Serve(netutil.LimitListener(s.listen, s.cfg.MaxConnections)) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	// Not ready any more, and every answer asks its client to come back over a new connection, which goes elsewhere.
	s.stopping.Store(true)
	select {
	case err := <-served:
		return err
	case <-time.After(s.cfg.StopDelay):
	}
	s.endStreams()
	return s.drain()
}

// drain takes no more connections and lets the requests under way be answered. http.Server.Shutdown alone would also wait
// for connections on which nothing was ever sent.
func (s *Service) drain() error {
	limit, cancel := context.WithTimeout(context.Background(), s.cfg.AckBudget)
	defer cancel()
	idle := make(chan struct{})
	go func() { defer close(idle); _ = s.http.Shutdown(limit) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for s.load.now.Load() > 0 {
		select {
		case <-tick.C:
		case <-limit.Done():
			_ = s.http.Close()
			return errors.New("requests were still under way")
		}
	}
	select {
	case <-idle:
	case <-time.After(100 * time.Millisecond): // for the last bytes of the last answer
	}
	return s.http.Close()
}

// warnOpen says loudly when anybody on the network could send callbacks.
func (s *Service) warnOpen() {
	if len(s.cfg.AllowedNetworks) > 0 || s.cfg.PathSecret != "" {
		return
	}
	addr, err := netip.ParseAddrPort(s.HTTPAddr())
	if err == nil && addr.Addr().IsLoopback() {
		return
	}
	s.tel.Log().Warn("ANYBODY WHO REACHES THIS ADDRESS CAN SEND CALLBACKS: set AMEYO_ALLOWED_NETWORKS or AMEYO_PATH_SECRET", "address", s.HTTPAddr())
}
