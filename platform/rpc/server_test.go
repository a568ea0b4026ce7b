package rpc

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	errorsv1 "callrelay/gen/callrelay/errors/v1"
	"callrelay/platform/errkind"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// probe is a service of one unary method and one stream that do as told.
type probe struct {
	unary  func(context.Context) error
	stream func(grpc.ServerStream) error
}

func (p *probe) register(r grpc.ServiceRegistrar) {
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Probe",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: "Unary",
			Handler: func(_ any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
				req := new(wrapperspb.BytesValue)
				if err := decode(req); err != nil {
					return nil, err
				}
				return intercept(ctx, req, &grpc.UnaryServerInfo{FullMethod: "/test.Probe/Unary"},
					func(ctx context.Context, _ any) (any, error) { return req, p.unary(ctx) })
			},
		}},
		Streams: []grpc.StreamDesc{{
			StreamName: "Stream", ServerStreams: true, ClientStreams: true,
			Handler: func(_ any, stream grpc.ServerStream) error { return p.stream(stream) },
		}},
	}, p)
}

func unary(ctx context.Context, conn grpc.ClientConnInterface, size int) error {
	return conn.Invoke(ctx, "/test.Probe/Unary", wrapperspb.Bytes(make([]byte, size)), new(wrapperspb.BytesValue))
}

func openStream(ctx context.Context, conn grpc.ClientConnInterface) (grpc.ClientStream, error) {
	return conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Probe/Stream")
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start returns the server's connections, over a socket and in process.
func start(t testing.TB, p *probe) (*Server, map[string]grpc.ClientConnInterface, *lockedBuffer) {
	t.Helper()
	logged := &lockedBuffer{}
	s := NewServer(slog.New(slog.NewTextHandler(logged, nil)))
	p.register(s.Registrar())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn, err := Dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		s.Stop(5 * time.Second)
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	if first, second := s.InProcess(), s.InProcess(); first != second {
		t.Error("InProcess gives two connections")
	}
	return s, map[string]grpc.ClientConnInterface{"socket": conn, "in process": s.InProcess()}, logged
}

func TestErrorsCrossWithTheirKind(t *testing.T) {
	outcomes := []struct {
		name string
		do   func() error
		kind errorsv1.Kind
		text string // of the log; empty: nothing is logged
	}{
		{"kind", func() error { return errkind.Refused("no") }, errorsv1.Kind_KIND_REFUSED, ""},
		{"unknown", func() error { return errors.New("hunter2") }, errorsv1.Kind_KIND_INTERNAL, "hunter2"},
		{"panic", func() error { panic("hunter3") }, errorsv1.Kind_KIND_INTERNAL, "server_test.go"},
		{"panic with an error", func() error { panic(errkind.Refused("hunter4")) }, errorsv1.Kind_KIND_INTERNAL, "hunter4"},
	}
	p := &probe{}
	_, conns, logged := start(t, p)
	for _, o := range outcomes {
		p.unary = func(context.Context) error { return o.do() }
		p.stream = func(grpc.ServerStream) error { return o.do() }
		for way, conn := range conns {
			check := func(err error) {
				t.Helper()
				if e := errkind.From(err); e == nil || e.Kind != o.kind {
					t.Errorf("%s, %s: got %v", o.name, way, e)
				}
				if strings.Contains(err.Error(), "hunter") {
					t.Errorf("%s, %s: shows %v", o.name, way, err)
				}
			}
			before := len(logged.String())
			check(unary(t.Context(), conn, 0))
			stream, err := openStream(t.Context(), conn)
			if err != nil {
				t.Fatal(err)
			}
			check(stream.RecvMsg(new(emptypb.Empty)))
			if text := logged.String()[before:]; o.text == "" && text != "" || strings.Count(text, "level=ERROR") != 2*min(len(o.text), 1) || !strings.Contains(text, o.text) {
				t.Errorf("%s, %s: logged %q", o.name, way, text)
			}
		}
	}
	p.unary = func(context.Context) error { return nil }
	for way, conn := range conns {
		if err := unary(t.Context(), conn, 0); err != nil {
			t.Errorf("%s: after the panics: %v", way, err)
		}
	}
}

func TestMessageBound(t *testing.T) {
	p := &probe{unary: func(context.Context) error { return nil }}
	_, conns, _ := start(t, p)
	for way, conn := range conns {
		if err := unary(t.Context(), conn, maxMessage-1024); err != nil {
			t.Errorf("%s: %v", way, err)
		}
		if err := unary(t.Context(), conn, maxMessage+1); err == nil {
			t.Errorf("%s: a message over the bound passed", way)
		}
	}
}

func TestDeadlineIsShaved(t *testing.T) {
	for _, tt := range []struct {
		left, handler time.Duration // 0: none, refused
	}{
		{0, 0}, {29 * time.Millisecond, 0}, {30 * time.Millisecond, 10 * time.Millisecond}, {time.Second, 980 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), tt.left)
			defer cancel()
			var got time.Duration
			_, err := unaryDeadline(ctx, nil, nil, func(ctx context.Context, _ any) (any, error) {
				deadline, _ := ctx.Deadline()
				got = time.Until(deadline)
				return nil, nil
			})
			if got != tt.handler {
				t.Errorf("%v left: the handler got %v, want %v", tt.left, got, tt.handler)
			}
			if refused := err != nil; refused != (tt.handler == 0) || refused && errkind.From(err).Kind != errorsv1.Kind_KIND_UNAVAILABLE {
				t.Errorf("%v left: %v", tt.left, err)
			}
		})
	}
	_, err := unaryDeadline(t.Context(), nil, nil, func(ctx context.Context, _ any) (any, error) {
		if _, has := ctx.Deadline(); has {
			t.Error("a deadline out of nothing")
		}
		return nil, nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestHealth(t *testing.T) {
	s, conns, _ := start(t, &probe{})
	for _, serving := range []bool{false, true, false} {
		s.SetServing(serving)
		for way, conn := range conns {
			resp, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
			if err != nil || (resp.GetStatus() == healthv1.HealthCheckResponse_SERVING) != serving {
				t.Errorf("%s: %v, %v; want serving %v", way, resp, err, serving)
			}
		}
	}
}

// A stream that nobody ends is cut when the time is up, and not before.
func TestStopIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		entered := make(chan struct{}, 1)
		p := &probe{stream: func(stream grpc.ServerStream) error {
			entered <- struct{}{}
			<-stream.Context().Done()
			return stream.Context().Err()
		}}
		s := NewServer(slog.New(slog.DiscardHandler))
		p.register(s.Registrar())
		stream, err := openStream(t.Context(), s.InProcess())
		if err != nil {
			t.Fatal(err)
		}
		<-entered
		began := time.Now()
		s.Stop(3 * time.Second)
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("Stop took %v", took)
		}
		if kind := errkind.From(stream.RecvMsg(new(emptypb.Empty))).Kind; kind != errorsv1.Kind_KIND_UNAVAILABLE {
			t.Errorf("the cut stream ended as %v", kind)
		}
		if err := s.Serve(bufconn.Listen(1)); err != nil {
			t.Errorf("Serve after Stop: %v", err)
		}
	})
}

func TestDialFailsAtOnceWithoutServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	conn, err := Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	e := errkind.From(unary(t.Context(), conn, 0)) // without a deadline: waiting would hang the test
	if e.Kind != errorsv1.Kind_KIND_UNAVAILABLE || strings.Contains(e.Message, addr) {
		t.Errorf("got %v %q", e.Kind, e.Message)
	}
}
