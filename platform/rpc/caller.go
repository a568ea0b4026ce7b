package rpc

import (
	"context"
	"slices"

	"google.golang.org/grpc/metadata"
)

// Caller is on whose behalf an operator's call is made. Ingress sets it for HTTP requests, from their token; no HTTP header
// can. A gRPC client on the relay's own network is trusted: without metadata it is the local operator.
type Caller struct {
	// Actor is who acts, for the journal.
	Actor string
	// Role is viewer or operator.
	Role string
	// Masked: phone numbers are not to be shown.
	Masked bool
}

// Names of the metadata that carry a Caller.
const (
	callerActor = "x-callrelay-actor"
	callerRole  = "x-callrelay-role"
	callerMask  = "x-callrelay-mask"
)

// Roles of a Caller.
const (
	RoleViewer   = "viewer"
	RoleOperator = "operator"
)

// Metadata is how the caller travels.
func (c Caller) Metadata() metadata.MD {
	md := metadata.Pairs(callerActor, c.Actor, callerRole, c.Role)
	if c.Masked {
		md.Set(callerMask, "true")
	}
	return md
}

// CallerOf reads the caller of a gRPC call.
func CallerOf(ctx context.Context) Caller {
	md, _ := metadata.FromIncomingContext(ctx)
	c := Caller{Actor: "local", Role: RoleOperator, Masked: slices.Contains(md.Get(callerMask), "true")}
	if v := md.Get(callerActor); len(v) > 0 && v[0] != "" {
		c.Actor = v[0]
	}
	if v := md.Get(callerRole); len(v) > 0 {
		c.Role = v[0]
	}
	return c
}
