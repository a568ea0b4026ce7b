package router

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"

	"callrelay/callback"
	"callrelay/callback/wire"
	errorsv1 "callrelay/gen/callrelay/errors/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/errkind"
	"callrelay/platform/rpc"
	"callrelay/services/router/ameyo"
	"callrelay/services/router/explain"
)

type server struct {
	routerv1.UnimplementedRouterServiceServer
	engine   *engine
	stopping <-chan struct{}
}

// Route decides each item on its own and answers with whatever is done when the stream is free.
func (s *server) Route(stream grpc.BidiStreamingServer[routerv1.RouteRequest, routerv1.RouteResponse]) error {
	answers := rpc.Gather[*routerv1.RouteAnswer]{Max: batch, Send: func(answers []*routerv1.RouteAnswer) {
		_ = stream.Send(&routerv1.RouteResponse{Answers: answers}) // a broken stream ends Receive too
	}}
	items := rpc.NewWorkers(256)
	defer items.Close()
	slots := make(chan struct{}, underWay)
	// What was accepted by this process is finished even if ingress leaves meanwhile.
	ctx := context.WithoutCancel(stream.Context())
	rpc.Receive(stream, s.stopping, func(req *routerv1.RouteRequest) bool {
		now := time.Now()
		for _, item := range req.GetItems() {
			slots <- struct{}{}
			s.engine.running.begin()
			items.Go(func() {
				defer func() {
					<-slots
					s.engine.running.end()
				}()
				answers.Add(s.route(ctx, item, now))
			})
		}
		return true
	})
	return nil
}

func (s *server) route(ctx context.Context, item *routerv1.RouteItem, now time.Time) (answer *routerv1.RouteAnswer) {
	answer = &routerv1.RouteAnswer{Id: item.GetId()}
	defer func() {
		if p := recover(); p != nil {
			s.engine.tel.Log().Error("panic", "request_id", item.GetRequestId(), "panic", p, "stack", string(debug.Stack()))
			answer.Error = errkind.Internal(errors.New("panic")).Proto()
			if item.GetSpooled() { // it is not committed, so it must not leave the spool
				answer.Error = errkind.Unavailable(nil, "the callback could not be recorded").Proto()
			}
		}
	}()
	if item.GetBudgetMs() > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, now.Add(time.Duration(item.GetBudgetMs())*time.Millisecond))
		defer cancel()
	}
	in, err := s.engine.input(item, now)
	if err == nil {
		err = s.engine.kommo.use(ctx, in)
	}
	if err != nil && item.GetSpooled() && item.GetRequestId() != "" && errkind.From(err).Kind != errorsv1.Kind_KIND_UNAVAILABLE {
		in = unreadable(item, now, err)
	} else if err != nil {
		answer.Error = errkind.From(err).Proto()
		return answer
	}
	answer.Duplicate, err = s.engine.process(ctx, in)
	if err == nil {
		answer.Window = windowReply(in)
	}
	answer.Error = errkind.From(err).Proto()
	return answer
}

// unreadable is the input of a callback that its sender believes to be taken and that cannot be: it is recorded under its
// request id, with its query.
func unreadable(item *routerv1.RouteItem, now time.Time, err error) *input {
	in := newInput(item, now)
	in.call, in.unreadable = callback.RequestKey(item.GetRequestId()), err
	return in
}

// input makes what the engine takes of a callback. Ingress has made the same checks; an internal client may not have. A panic is
// this item's error.
func (e *engine) input(item *routerv1.RouteItem, now time.Time) (in *input, err error) {
	defer func() {
		if p := recover(); p != nil {
			e.tel.Log().Error("panic", "request_id", item.GetRequestId(), "panic", p, "stack", string(debug.Stack()))
			err = errkind.Internal(fmt.Errorf("panic: %v", p))
		}
	}()
	if item.GetRequestId() == "" {
		return nil, errkind.Invalid("request_id", "request_id is required")
	}
	in = newInput(item, now)
	switch c := item.GetCallback().(type) {
	case *routerv1.RouteItem_AmeyoCallStart:
		start, err := callback.DecodeCallStart(wire.Params(c.AmeyoCallStart), e.options)
		if err != nil {
			return nil, invalid(err)
		}
		in.call, in.ameyo.CallStart = callback.CallKey(callback.Ameyo, start.CallID), &start
	case *routerv1.RouteItem_AmeyoCallEnd:
		end, err := callback.DecodeCallEnd(wire.Params(c.AmeyoCallEnd), e.options)
		if err != nil {
			return nil, invalid(err)
		}
		in.call, in.ameyo.CallEnd = callback.CallKey(callback.Ameyo, end.CallID), &end
	case *routerv1.RouteItem_PbxEvent:
		if err := e.pbx.event(in, c.PbxEvent); err != nil {
			return nil, err
		}
	case *routerv1.RouteItem_KommoCall:
		if err := e.kommo.report(in, c.KommoCall); err != nil {
			return nil, err
		}
	case *routerv1.RouteItem_KommoWindow:
		if err := e.kommo.window(in, c.KommoWindow); err != nil {
			return nil, err
		}
	case *routerv1.RouteItem_Refused:
		r := c.Refused
		in.call = callback.RequestKey(in.id)
		in.rejected = &statev1.Rejected{Status: r.GetStatus(), Field: r.GetField(), Message: r.GetMessage(), Method: r.GetMethod(), Path: r.GetPath()}
	default:
		if len(item.ProtoReflect().GetUnknown()) > 0 { // of a newer ingress, whose spool keeps it for a newer router
			return nil, errkind.Unavailable(nil, "this router is older than ingress and does not know this kind of callback")
		}
		return nil, errkind.Invalid("callback", "callback is required")
	}
	in.terms, in.phones = terms(item)
	return in, nil
}

func newInput(item *routerv1.RouteItem, now time.Time) *input {
	return &input{
		id: item.GetRequestId(), traceparent: item.GetTraceparent(),
		since: now.Add(-time.Duration(max(0, item.GetAgeMs())) * time.Millisecond),
		received: &statev1.Received{Source: source(item), Query: item.GetQuery(), Peer: item.GetPeer(), Spooled: item.GetSpooled(),
			TraceId: traceID(item.GetTraceparent())},
		ameyo: ameyo.Input{RequestID: item.GetRequestId(), Traceparent: item.GetTraceparent()},
	}
}

const (
	// sourceKommo is a call that a VoIP service reported for Kommo.
	sourceKommo = "kommo.call"
	// sourceWindow is what a manager did in Kommo's call-result window.
	sourceWindow = "kommo.window"
)

// source is how the journal names what a callback is; of an event of a PBX its kind says it, once that is read.
func source(item *routerv1.RouteItem) string {
	switch item.GetCallback().(type) {
	case *routerv1.RouteItem_AmeyoCallStart:
		return explain.SourceStart
	case *routerv1.RouteItem_AmeyoCallEnd:
		return explain.SourceEnd
	case *routerv1.RouteItem_KommoCall:
		return sourceKommo
	case *routerv1.RouteItem_KommoWindow:
		return sourceWindow
	}
	return ""
}

func invalid(err error) error {
	var field *callback.FieldError
	if errors.As(err, &field) {
		return errkind.Invalid(field.Field, "%s", field.Message)
	}
	return errkind.Internal(err)
}
