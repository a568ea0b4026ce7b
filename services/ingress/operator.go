package ingress

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/rpc"
)

const (
	// operatorTime bounds one question; the streams (bulk actions, live tail) have no bound.
	operatorTime = 30 * time.Second
	// sayAlive is how often a live tail without news says that it lives, for proxies that cut what is silent.
	sayAlive = 15 * time.Second
	// reportEvery is how often state is told what is spooled.
	reportEvery = 5 * time.Second
)

// callerMetadata is what the services hear of who asks; operatorAPI, which let the request in, has put it into the context.
func callerMetadata(ctx context.Context) metadata.MD {
	caller, ok := ctx.Value(callerKey{}).(rpc.Caller)
	if !ok {
		caller = rpc.Caller{Actor: "nobody", Role: "none", Masked: true}
	}
	return caller.Metadata()
}

// operatorHandler is the operator's API: what state and router serve of it, behind the tokens.
func operatorHandler(s *Service) (*operatorAPI, error) {
	gateway, client := newOperatorGateway(), operatorv1.NewOperatorServiceClient(s.state)
	if err := operatorv1.RegisterOperatorServiceHandlerClient(context.Background(), gateway, client); err != nil {
		return nil, err
	}
	if err := operatorv1.RegisterAdviceServiceHandlerClient(context.Background(), gateway, operatorv1.NewAdviceServiceClient(s.router)); err != nil {
		return nil, err
	}
	return newOperatorAPI(s, s.operatorRequests(gateway, client)), nil
}

// operatorRequests bounds what an operator asks in time, and serves the live tail itself.
func (s *Service) operatorRequests(gateway http.Handler, client operatorv1.OperatorServiceClient) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(s.serving, cancel)() // the streams end with the service
		switch r.URL.Path {
		case "/v1/journal:watch":
			if r.Method == http.MethodGet {
				s.tail(w, r.WithContext(ctx), client)
				return
			}
		case "/v1/deliveries:retry", "/v1/deliveries:discard":
			_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
		default:
			var stop context.CancelFunc
			ctx, stop = context.WithTimeout(ctx, operatorTime)
			defer stop()
		}
		gateway.ServeHTTP(w, r.WithContext(ctx))
	})
}

// unparsed is what the gateway says of a parameter that is no number or no truth value.
var unparsed = regexp.MustCompile(`^parsing field "([^"]+)": strconv\.Parse(\w+): parsing (".*"): `)

func writeOperatorError(w http.ResponseWriter, err error) {
	e := refusalOf(err)
	if m := unparsed.FindStringSubmatch(e.message); m != nil {
		want := map[string]string{"Bool": "true or false"}[m[2]]
		e.field, e.message = m[1], fmt.Sprintf("%s must be %s, not %s", m[1], cmp.Or(want, "a whole number"), m[3])
	}
	writeError(w, e, "")
}

// operatorPath says whether a path is one of the operator's API.
func operatorPath(path string) bool {
	return strings.HasPrefix(path, "/v1/") && !callbackPaths[path]
}

// tail is the live tail as server-sent events: an entry is a message whose id resumes it, `missed` says that there is a gap.
func (s *Service) tail(w http.ResponseWriter, r *http.Request, client operatorv1.OperatorServiceClient) {
	ctx := metadata.NewOutgoingContext(r.Context(), callerMetadata(r.Context()))
	after := r.Header.Get("Last-Event-ID")
	if after == "" {
		after = r.URL.Query().Get("after")
	}
	stream, err := client.WatchJournal(ctx, &operatorv1.WatchJournalRequest{Filter: r.URL.Query().Get("filter"), After: after})
	if err != nil {
		writeOperatorError(w, err)
		return
	}
	type message struct {
		*operatorv1.WatchJournalResponse
		err error
	}
	messages := make(chan message)
	go func() {
		defer close(messages)
		for {
			m, err := stream.Recv()
			select {
			case messages <- message{m, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	out := http.NewResponseController(w)
	_ = out.SetWriteDeadline(time.Time{})
	begun := false
	write := func(parts ...string) bool {
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "text/event-stream")
			w.Header().Set("X-Accel-Buffering", "no")
		}
		_, err := io.WriteString(w, strings.Join(parts, ""))
		return err == nil && out.Flush() == nil
	}
	// A refusal comes at once; else the stream is silent until something happens, and the reader wants to know that it is open.
	alive := time.NewTimer(100 * time.Millisecond)
	defer alive.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-alive.C:
			if !write(": watching\n\n") {
				return
			}
			alive.Reset(sayAlive)
		case m, ok := <-messages:
			switch {
			case !ok:
				return
			case m.err != nil && !begun:
				writeOperatorError(w, m.err)
				return
			case m.err != nil:
				return // the reader comes back with its Last-Event-ID
			case m.GetMissed():
				if !write("event: missed\ndata: {}\n\n") {
					return
				}
			default:
				raw, err := protojson.Marshal(m.GetEntry())
				id := ""
				if m.GetEntry().GetId() != "" { // an empty one would make the reader forget its place
					id = "id: " + m.GetEntry().GetId() + "\n"
				}
				if err != nil || !write(id, "data: ", string(raw), "\n\n") {
					return
				}
			}
		}
	}
}

// report tells state what is spooled until ctx ends.
func (s *Service) report(ctx context.Context, state statev1.StateServiceClient) {
	instance := rand.Text()
	reporting(ctx, state, func() *statev1.ReportRequest {
		stats := s.spool.spool.Stats()
		return &statev1.ReportRequest{Instance: instance, Spooled: int64(stats.Items), OldestMs: stats.Oldest.Milliseconds(),
			RefusedAfterAck: s.spool.refusedLate.Load(), RefusedUnrecorded: s.refused.unrecorded.count(),
			NotAcknowledged: s.callbacks.metrics.notAcknowledged.count(), SpoolDamaged: int64(s.spool.spool.Damaged())}
	})
}

func reporting(ctx context.Context, state statev1.StateServiceClient, now func() *statev1.ReportRequest) {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		asking, cancel := context.WithTimeout(ctx, reportEvery)
		_, _ = state.Report(asking, now()) // the next one says it too
		cancel()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
