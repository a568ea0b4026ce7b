package e2e

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	callbackv1 "callrelay/gen/callrelay/callback/v1"
	errorsv1 "callrelay/gen/callrelay/errors/v1"
	ingressv1 "callrelay/gen/callrelay/ingress/v1"
)

// dial connects to one of the services as any gRPC client does.
func (r *relay) dial(t testing.TB, name string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(r.grpc[name], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// The same callbacks get the same answers over gRPC as over HTTP, and each door knows what came through the other.
func TestGRPCAnswersLikeHTTP(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *relay) {
		client := ingressv1.NewAmeyoServiceClient(r.dial(t, "INGRESS"))
		overHTTP := func(a answer) *ingressv1.Ack {
			return &ingressv1.Ack{Success: a.Success, Message: a.Message, Duplicate: a.Duplicate, RequestId: a.RequestID}
		}
		overGRPC := func(ack *ingressv1.Ack, err error) *ingressv1.Ack {
			if err != nil {
				t.Errorf("over gRPC: %v", err)
			}
			return ack
		}
		endHTTP := func(call int) *ingressv1.Ack { return overHTTP(r.end(connectedEnd(call)...)) }
		endGRPC := func(call int) *ingressv1.Ack {
			n := strconv.Itoa(call)
			return overGRPC(client.CallEnd(t.Context(), &callbackv1.AmeyoCallEnd{UniqueId: n, CustomerId: "c" + n, CustomerCrtId: "crt-" + n,
				SystemDisposition: connected, UserId: "agent1", DialledPhone: "03000000001"}))
		}
		startHTTP := func(call int) *ingressv1.Ack {
			return overHTTP(r.begin("cs_unique_id", strconv.Itoa(call), "userId", "agent1", "phone", "03000000001"))
		}
		startGRPC := func(call int) *ingressv1.Ack {
			return overGRPC(client.CallStart(t.Context(), &callbackv1.AmeyoCallStart{CsUniqueId: strconv.Itoa(call), UserId: "agent1", Phone: "03000000001"}))
		}
		ids := map[string]bool{}
		for i, c := range []struct {
			name          string
			first, repeat func(call int) *ingressv1.Ack
		}{
			{"call end over gRPC, then HTTP", endGRPC, endHTTP},
			{"call end over HTTP, then gRPC", endHTTP, endGRPC},
			{"call end over gRPC twice", endGRPC, endGRPC},
			{"call start over gRPC, then HTTP", startGRPC, startHTTP},
			{"call start over HTTP, then gRPC", startHTTP, startGRPC},
		} {
			call := 700 + i
			first, repeat := c.first(call), c.repeat(call)
			for _, ack := range []*ingressv1.Ack{first, repeat} {
				if !ack.GetSuccess() || ack.GetMessage() != "Data Received" || ack.GetRequestId() == "" || ids[ack.GetRequestId()] {
					t.Errorf("%s: answer %v", c.name, ack)
				}
				ids[ack.GetRequestId()] = true
			}
			if first.GetDuplicate() || !repeat.GetDuplicate() {
				t.Errorf("%s: duplicates are %v, %v, want false, true", c.name, first.GetDuplicate(), repeat.GetDuplicate())
			}
			r.eventually(10*time.Second, c.name, func() bool { return len(r.held(call)) == 1 })
		}
		if d := r.duplicates(); len(d) != 0 {
			t.Errorf("delivered twice: %v", d)
		}

		_, errEnd := client.CallEnd(t.Context(), &callbackv1.AmeyoCallEnd{UniqueId: "1", SystemDisposition: connected, UserId: "a", DialledPhone: "1"})
		_, errStart := client.CallStart(t.Context(), &callbackv1.AmeyoCallStart{CsUniqueId: "abc", UserId: "a", Phone: "1"})
		for _, c := range []struct {
			err  error
			http answer
		}{
			{errEnd, r.end("unique_id", "1", "systemDisposition", connected, "userId", "a", "dialledPhone", "1")},
			{errStart, r.begin("cs_unique_id", "abc", "userId", "a", "phone", "1")},
		} {
			s := status.Convert(c.err)
			if s.Code() != codes.InvalidArgument || len(s.Details()) != 1 {
				t.Errorf("malformed: %v, details %v", c.err, s.Details())
				continue
			}
			e, _ := s.Details()[0].(*errorsv1.Error)
			if e.GetKind() != errorsv1.Kind_KIND_INVALID || e.GetField() == "" || e.GetField() != c.http.Field || e.GetMessage() != c.http.Message {
				t.Errorf("malformed: over gRPC %v, over HTTP %s", e, c.http.Body)
			}
		}
	})
}

// Every service says over gRPC what it offers and that it serves.
func TestHealthAndReflection(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *relay) {
		for name, own := range map[string]string{
			"INGRESS":  "callrelay.ingress.v1.AmeyoService callrelay.ingress.v1.CardService callrelay.ingress.v1.PbxService",
			"ROUTER":   "callrelay.operator.v1.AdviceService callrelay.router.v1.RouterService",
			"STATE":    "callrelay.operator.v1.OperatorService callrelay.state.v1.AccountService callrelay.state.v1.CardService callrelay.state.v1.LimitService callrelay.state.v1.StateService",
			"UPSTREAM": "callrelay.upstream.v1.KommoService callrelay.upstream.v1.PbxService",
		} {
			conn := r.dial(t, name)
			// Health follows readiness within a moment (platform/run), so it may come after /readyz.
			r.eventually(5*time.Second, name+" is SERVING", func() bool {
				health, _ := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
				return health.GetStatus() == healthv1.HealthCheckResponse_SERVING
			})
			var ours []string
			for _, service := range listServices(t, conn) {
				if strings.HasPrefix(service, "callrelay.") {
					ours = append(ours, service)
				}
			}
			if got := strings.Join(ours, " "); got != own {
				t.Errorf("%s: reflection lists %q, want %q", name, got, own)
			}
		}
	})
}

// listServices asks reflection.
func listServices(t *testing.T, conn *grpc.ClientConn) (names []string) {
	t.Helper()
	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.CloseSend()
	for _, service := range answer.GetListServicesResponse().GetService() {
		names = append(names, service.GetName())
	}
	if !slices.Contains(names, "grpc.health.v1.Health") {
		t.Errorf("reflection does not list health: %v", names)
	}
	return names
}
