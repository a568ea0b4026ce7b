package errkind_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	errorsv1 "callrelay/gen/callrelay/errors/v1"
	"callrelay/platform/errkind"
	"callrelay/platform/rpc"
)

var errCause = errors.New("redis at 10.0.0.3 says no")

func everyKind() []*errkind.Error {
	return []*errkind.Error{
		errkind.Invalid("customerCRTId", "is required when %s", "CONNECTED"),
		errkind.Invalid("", "unreadable"),
		errkind.NotFound("no call %d", 7),
		errkind.Refused("it was delivered"),
		errkind.Forbidden("not from %s", "192.0.2.1"),
		errkind.Unavailable(errCause, "state does not answer"),
		errkind.Limited(1500*time.Millisecond, "slower, please"),
		errkind.Internal(errCause),
	}
}

// failing is a service whose one method fails as told; any generated service will do.
type failing struct {
	healthv1.UnimplementedHealthServer
	err error
}

func (f *failing) Check(context.Context, *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	return nil, f.err
}

func (f *failing) Watch(*healthv1.HealthCheckRequest, healthv1.Health_WatchServer) error {
	return f.err
}

// serve runs f over real sockets. The health service of rpc.Server is in the way, so it is a bare gRPC server.
func serve(t *testing.T, f *failing) healthv1.HealthClient {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	healthv1.RegisterHealthServer(s, f)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	conn, err := rpc.Dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return healthv1.NewHealthClient(conn)
}

func TestErrorSurvivesAHop(t *testing.T) {
	f := &failing{}
	client := serve(t, f)
	for _, sent := range everyKind() {
		want := *sent
		want.Cause = nil
		check := func(how string, err error) {
			t.Helper()
			if strings.Contains(err.Error(), "10.0.0.3") {
				t.Errorf("%v: the cause crossed the hop: %v", sent.Kind, err)
			}
			if got := errkind.From(err); !reflect.DeepEqual(got, &want) {
				t.Errorf("%s: got %+v, want %+v", how, got, &want)
			}
		}
		f.err = fmt.Errorf("wrapped: %w", sent)
		f.err = errkind.From(f.err) // as rpc.Server does
		_, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{})
		check("unary", err)

		stream, err := client.Watch(t.Context(), &healthv1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		check("stream", err)

		if got := errkind.FromProto(sent.Proto()); !reflect.DeepEqual(got, &want) {
			t.Errorf("proto: got %+v, want %+v", got, &want)
		}
	}
}

func TestBytesThatAreNotUTF8Arrive(t *testing.T) {
	client := serve(t, &failing{err: errkind.Invalid("dst\xff", "no number: %s", "\xd0")})
	_, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{})
	want := &errkind.Error{Kind: errorsv1.Kind_KIND_INVALID, Field: "dst\uFFFD", Message: "no number: \uFFFD"}
	if got := errkind.From(err); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestFrom(t *testing.T) {
	known := errkind.Refused("no")
	secret := errors.New("password=hunter2")
	tests := []struct {
		name    string
		err     error
		kind    errorsv1.Kind
		message string
	}{
		{"its own", known, errorsv1.Kind_KIND_REFUSED, "no"},
		{"its own, wrapped", fmt.Errorf("while x: %w", known), errorsv1.Kind_KIND_REFUSED, "no"},
		{"its own, joined", errors.Join(secret, known), errorsv1.Kind_KIND_REFUSED, "no"},
		{"unknown", secret, errorsv1.Kind_KIND_INTERNAL, "internal error"},
		{"canceled", fmt.Errorf("x: %w", context.Canceled), errorsv1.Kind_KIND_UNAVAILABLE, "the time for the request ran out"},
		{"deadline", context.DeadlineExceeded, errorsv1.Kind_KIND_UNAVAILABLE, "the time for the request ran out"},
		{"status canceled", status.Error(codes.Canceled, "x"), errorsv1.Kind_KIND_UNAVAILABLE, "the time for the request ran out"},
		{"status deadline", status.Error(codes.DeadlineExceeded, "x"), errorsv1.Kind_KIND_UNAVAILABLE, "the time for the request ran out"},
		{"status unavailable", status.Error(codes.Unavailable, "dial 10.0.0.3"), errorsv1.Kind_KIND_UNAVAILABLE, "temporarily unavailable"},
		{"status aborted", status.Error(codes.Aborted, "x"), errorsv1.Kind_KIND_UNAVAILABLE, "temporarily unavailable"},
		{"status invalid", status.Error(codes.InvalidArgument, "m"), errorsv1.Kind_KIND_INVALID, "m"},
		{"status not found", status.Error(codes.NotFound, "m"), errorsv1.Kind_KIND_NOT_FOUND, "m"},
		{"status precondition", status.Error(codes.FailedPrecondition, "m"), errorsv1.Kind_KIND_REFUSED, "m"},
		{"status exists", status.Error(codes.AlreadyExists, "m"), errorsv1.Kind_KIND_REFUSED, "m"},
		{"status denied", status.Error(codes.PermissionDenied, "m"), errorsv1.Kind_KIND_FORBIDDEN, "m"},
		{"status unauthenticated", status.Error(codes.Unauthenticated, "m"), errorsv1.Kind_KIND_FORBIDDEN, "m"},
		{"status exhausted", status.Error(codes.ResourceExhausted, "m"), errorsv1.Kind_KIND_LIMITED, "m"},
		{"status unimplemented", status.Error(codes.Unimplemented, "m"), errorsv1.Kind_KIND_INTERNAL, "internal error"},
		{"status unknown", status.Error(codes.Unknown, "password"), errorsv1.Kind_KIND_INTERNAL, "internal error"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := errkind.From(tt.err)
			if got.Kind != tt.kind || got.Message != tt.message {
				t.Errorf("got %v %q", got.Kind, got.Message)
			}
			if sent := got.Proto().String() + got.GRPCStatus().String(); strings.Contains(sent, "hunter2") {
				t.Errorf("sends %s", sent)
			}
			if got != known && !errors.Is(got, tt.err) {
				t.Error("the cause is not kept for the log")
			}
		})
	}
}

func TestNil(t *testing.T) {
	if errkind.From(nil) != nil || errkind.FromProto(nil) != nil || (*errkind.Error)(nil).Proto() != nil {
		t.Error("no error became one")
	}
	// The usual slip: a nil *Error in an error variable. It is still no error.
	if err := error((*errkind.Error)(nil)); errkind.From(err) != nil {
		t.Error("a typed nil became an error")
	}
}

func TestRetryAfterIsNeverShorter(t *testing.T) {
	for d, want := range map[time.Duration]int64{0: 0, time.Nanosecond: 1, time.Millisecond: 1, 1001 * time.Microsecond: 2} {
		if got := errkind.Limited(d, "x").Proto().GetRetryAfterMs(); got != want {
			t.Errorf("%v: %d ms, want %d", d, got, want)
		}
	}
}

// Each kind of the proto has its pair of statuses, and code and kind agree in both directions.
func TestEveryKindIsMapped(t *testing.T) {
	want := map[errorsv1.Kind]int{
		errorsv1.Kind_KIND_UNSPECIFIED: 500, errorsv1.Kind_KIND_INVALID: 400, errorsv1.Kind_KIND_NOT_FOUND: 404,
		errorsv1.Kind_KIND_REFUSED: 409, errorsv1.Kind_KIND_FORBIDDEN: 403, errorsv1.Kind_KIND_UNAVAILABLE: 503,
		errorsv1.Kind_KIND_INTERNAL: 500, errorsv1.Kind_KIND_LIMITED: 429, 1000: 500,
	}
	for n := range errorsv1.Kind_name {
		if _, ok := want[errorsv1.Kind(n)]; !ok {
			t.Errorf("kind %d is not tested", n)
		}
	}
	for kind, http := range want {
		if got := errkind.HTTPStatus(kind); got != http {
			t.Errorf("%v: HTTP %d, want %d", kind, got, http)
		}
	}
	for _, e := range everyKind() {
		bare := status.Error(e.GRPCStatus().Code(), "without details")
		if got := errkind.From(bare).Kind; got != e.Kind {
			t.Errorf("%v comes back as %v", e.Kind, got)
		}
	}
}

func TestErrorText(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{errkind.Invalid("unique_id", "is required"), "unique_id: is required"},
		{errkind.Unavailable(errCause, "no state"), "no state: redis at 10.0.0.3 says no"},
		{errkind.Internal(nil), "internal error"},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}
