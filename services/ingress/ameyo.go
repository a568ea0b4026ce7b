package ingress

import (
	"context"

	"callrelay/callback"
	callbackv1 "callrelay/gen/callrelay/callback/v1"
	ingressv1 "callrelay/gen/callrelay/ingress/v1"
	routerv1 "callrelay/gen/callrelay/router/v1"
)

// ameyoServer takes Ameyo's callbacks, from the gateway and from gRPC clients alike.
type ameyoServer struct {
	ingressv1.UnimplementedAmeyoServiceServer
	callbacks *callbacks
	options   callback.Options
}

// CallStart takes a call-start callback.
func (s *ameyoServer) CallStart(ctx context.Context, m *callbackv1.AmeyoCallStart) (*ingressv1.Ack, error) {
	ctx, r := requestOf(ctx, m)
	c, err := callback.DecodeCallStart(r.params, s.options)
	return s.callbacks.accept(ctx, r, callback.CallKey(callback.Ameyo, c.CallID), err, &routerv1.RouteItem{Callback: &routerv1.RouteItem_AmeyoCallStart{AmeyoCallStart: m}})
}

// CallEnd takes a call-end or not-answered callback.
func (s *ameyoServer) CallEnd(ctx context.Context, m *callbackv1.AmeyoCallEnd) (*ingressv1.Ack, error) {
	ctx, r := requestOf(ctx, m)
	id, err := callback.CheckCallEnd(r.params)
	return s.callbacks.accept(ctx, r, callback.CallKey(callback.Ameyo, id), err, &routerv1.RouteItem{Callback: &routerv1.RouteItem_AmeyoCallEnd{AmeyoCallEnd: m}})
}
