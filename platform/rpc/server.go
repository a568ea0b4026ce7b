package rpc

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/test/bufconn"
)

// Server is a gRPC server with health service and reflection. Health says NOT_SERVING until SetServing(true).
type Server struct {
	grpc    *grpc.Server
	health  *health.Server
	streams *streams

	inProcess     sync.Once
	inProcessConn *inProcess
}

// NewServer returns a server that logs bugs (panics, internal errors) to log.
func NewServer(log *slog.Logger) *Server {
	base, cut := context.WithCancel(context.Background())
	s := &Server{
		health: health.NewServer(),
		grpc: grpc.NewServer(
			grpc.ChainUnaryInterceptor(unaryErrors(log), unaryDeadline),
			grpc.ChainStreamInterceptor(streamErrors(log)),
			grpc.MaxRecvMsgSize(maxMessage),
			grpc.MaxSendMsgSize(maxMessage),
			grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingAfter, Timeout: pingWait}),
			// Half of what our clients do, so that none is ever thrown out for a ping that came a little early.
			grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingAfter / 2, PermitWithoutStream: true}),
		),
	}
	s.streams = &streams{grpc: s.grpc, intercept: streamErrors(log), handlers: map[string]func(grpc.ServerStream) error{}, base: base, cut: cut}
	s.SetServing(false)
	healthv1.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	return s
}

// Registrar takes the services. All must be registered before Serve and InProcess.
func (s *Server) Registrar() grpc.ServiceRegistrar { return s.streams }

// SetServing sets what the health service says.
func (s *Server) SetServing(serving bool) {
	status := healthv1.HealthCheckResponse_NOT_SERVING
	if serving {
		status = healthv1.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus("", status)
}

// Serve serves l until Stop; it closes l. A server that was stopped ends without an error.
func (s *Server) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// InProcess returns the connection to this server that does not touch the network, the same one each time. Stop closes it.
func (s *Server) InProcess() grpc.ClientConnInterface {
	s.inProcess.Do(func() {
		l := bufconn.Listen(32 << 10)
		go func() { _ = s.Serve(l) }() // ends with Stop, and never otherwise: no network can break it
		conn, err := grpc.NewClient("passthrough:///in-process", append(clientOptions(),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))...)
		if err != nil {
			panic(err) // all arguments are constants
		}
		s.inProcessConn = &inProcess{ClientConn: conn, server: s}
	})
	return s.inProcessConn
}

// Stop refuses new calls, waits up to timeout for those under way, and then cuts what is left. Streams count as calls under
// way: whoever serves long ones ends them first.
func (s *Server) Stop(timeout time.Duration) {
	s.health.Shutdown()
	cut := time.AfterFunc(timeout, s.grpc.Stop)
	defer cut.Stop()
	var handed sync.WaitGroup
	handed.Go(func() { s.streams.stop(timeout) })
	s.grpc.GracefulStop()
	handed.Wait()
	s.inProcess.Do(func() {}) // from now on nobody opens it
	if s.inProcessConn != nil {
		_ = s.inProcessConn.Close()
	}
}
