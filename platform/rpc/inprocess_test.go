package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"callrelay/platform/errkind"
)

type key struct{}

// A stream within the process ends, breaks and keeps order as one over a network does.
func TestStreams(t *testing.T) {
	text := func(s interface{ RecvMsg(any) error }) (string, error) {
		m := new(wrapperspb.StringValue)
		err := s.RecvMsg(m)
		return m.GetValue(), err
	}
	for _, tt := range []struct {
		name  string
		serve func(grpc.ServerStream) error
		use   func(grpc.ClientStream, context.CancelFunc) error
	}{
		{"messages keep their order, and the client's end is the server's",
			func(s grpc.ServerStream) error {
				for n := 0; ; n++ {
					got, err := text(s)
					if errors.Is(err, io.EOF) {
						return s.SendMsg(wrapperspb.String(fmt.Sprint("end after ", n)))
					}
					if err != nil || got != fmt.Sprint(n) {
						return errkind.Refused("%q %v instead of %d", got, err, n)
					}
					if err := s.SendMsg(wrapperspb.String(got)); err != nil {
						return err
					}
				}
			},
			func(s grpc.ClientStream, _ context.CancelFunc) error {
				go func() {
					for n := range 1000 {
						_ = s.SendMsg(wrapperspb.String(fmt.Sprint(n)))
					}
					_ = s.CloseSend()
				}()
				for n := range 1001 {
					want := fmt.Sprint(n)
					if n == 1000 {
						want = "end after 1000"
					}
					if got, err := text(s); got != want {
						return fmt.Errorf("%q %w instead of %q", got, err, want)
					}
				}
				if _, err := text(s); !errors.Is(err, io.EOF) {
					return fmt.Errorf("at the end: %w", err)
				}
				return nil
			}},
		{"what was sent before the end arrives, then why it ended",
			func(s grpc.ServerStream) error {
				_ = s.SendMsg(wrapperspb.String("last"))
				return errkind.Refused("enough")
			},
			func(s grpc.ClientStream, _ context.CancelFunc) error {
				if got, err := text(s); got != "last" || err != nil {
					return fmt.Errorf("%q %w", got, err)
				}
				if _, err := text(s); errkind.From(err).Message != "enough" {
					return fmt.Errorf("ended with %w", err)
				}
				for range 100 { // the end may not have reached the sender yet
					if err := s.SendMsg(wrapperspb.String("x")); errors.Is(err, io.EOF) {
						return nil
					}
				}
				return errors.New("a message could be sent after the end")
			}},
		{"a client that leaves ends the handler",
			func(s grpc.ServerStream) error {
				_ = s.SendMsg(wrapperspb.String("here"))
				<-s.Context().Done()
				return s.Context().Err()
			},
			func(s grpc.ClientStream, leave context.CancelFunc) error {
				if got, err := text(s); got != "here" {
					return fmt.Errorf("%q %w", got, err)
				}
				leave()
				if _, err := text(s); status.Code(err) != codes.Canceled {
					return fmt.Errorf("the client got %w", err)
				}
				return nil
			}},
		{"nobody reads: the sender waits, until the client leaves",
			func(s grpc.ServerStream) error {
				<-s.Context().Done()
				return nil
			},
			func(s grpc.ClientStream, leave context.CancelFunc) error {
				time.AfterFunc(20*time.Millisecond, leave)
				big := wrapperspb.String(string(make([]byte, maxMessage/8)))
				for range 100 {
					if err := s.SendMsg(big); err != nil {
						return nil
					}
				}
				return errors.New("messages pile up without a bound")
			}},
		{"metadata crosses, other values do not",
			func(s grpc.ServerStream) error {
				sent, _ := metadata.FromIncomingContext(s.Context())
				if s.Context().Value(key{}) != nil || strings.Join(sent["who"], " ") != "ann" {
					return errkind.Refused("got %v, %v", s.Context().Value(key{}), sent)
				}
				return nil
			},
			func(s grpc.ClientStream, _ context.CancelFunc) error {
				if _, err := text(s); !errors.Is(err, io.EOF) {
					return err
				}
				return nil
			}},
	} {
		p := &probe{}
		_, conns, _ := start(t, p)
		for way, conn := range conns {
			t.Run(tt.name+", "+way, func(t *testing.T) {
				served := make(chan struct{})
				p.stream = func(s grpc.ServerStream) error { defer close(served); return tt.serve(s) }
				ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.WithValue(t.Context(), key{}, "x"), "Who", "ann"))
				defer cancel()
				stream, err := openStream(ctx, conn)
				if err != nil {
					t.Fatal(err)
				}
				if err := tt.use(stream, cancel); err != nil {
					t.Error(err)
				}
				select {
				case <-served:
				case <-time.After(10 * time.Second):
					t.Error("the handler does not end")
				}
			})
		}
	}
}

// Nothing is copied on the way: that is what it is for.
func TestHandedOver(t *testing.T) {
	p := &probe{stream: func(s grpc.ServerStream) error {
		m := new(wrapperspb.BytesValue)
		if err := s.RecvMsg(m); err != nil {
			return err
		}
		return s.SendMsg(m)
	}}
	_, conns, _ := start(t, p)
	stream, err := openStream(t.Context(), conns["in process"])
	if err != nil {
		t.Fatal(err)
	}
	sent, got := wrapperspb.Bytes([]byte("x")), new(wrapperspb.BytesValue)
	if err := errors.Join(stream.SendMsg(sent), stream.RecvMsg(got)); err != nil || &sent.GetValue()[0] != &got.GetValue()[0] {
		t.Errorf("copied, %v", err)
	}
}
