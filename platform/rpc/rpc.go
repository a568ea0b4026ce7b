// Package rpc owns how the services speak gRPC with each other: the server with its interceptors, the client connection, and
// (Pipe, Batches) streams that carry batches.
//
// Every handler, unary or stream, gets: recovery from panics, errors in the one vocabulary of errkind, a deadline that leaves
// time for the way back. It does not know any service's methods, does not retry, and starts no spans: each item of a batch
// has a trace of its own, so tracing belongs to whoever handles the items.
package rpc

import (
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

const (
	// maxMessage bounds one message in both directions. Batches are bounded well below it.
	maxMessage = 4 << 20

	// pingAfter is how long a connection may be silent before it is asked whether it lives: 10 s is the shortest a gRPC
	// client allows itself. A peer that vanished without a word is noticed after both.
	pingAfter = 10 * time.Second
	pingWait  = 5 * time.Second
)

// Dial returns a connection to addr, which it opens with the first call and keeps open from then on. Calls fail at once while
// there is no connection; it reconnects by itself after 100 ms to 2 s.
//
// Several addresses, separated by commas, are replicas of one service: it stays connected to all, and each new call or
// stream goes to the next one that is reachable. A stream stays where it is until it breaks.
//
// The connection is neither encrypted nor authenticated: it is for loopback and for a network that belongs to the relay alone.
// HTTP(S)_PROXY is ignored, since it is meant for the way to the CRM.
func Dial(addr string) (*grpc.ClientConn, error) {
	options := append(clientOptions(), grpc.WithNoProxy())
	replicas := strings.Split(addr, ",")
	if len(replicas) == 1 {
		return grpc.NewClient(addr, options...)
	}
	list := manual.NewBuilderWithScheme("replicas")
	var state resolver.State
	for _, replica := range replicas {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: strings.TrimSpace(replica)})
	}
	list.InitialState(state)
	return grpc.NewClient("replicas:///"+addr, append(options, grpc.WithResolvers(list),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`))...)
}

func clientOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingWait, PermitWithoutStream: true}),
		grpc.WithIdleTimeout(0), // the first callback after a quiet night does not pay for a new connection
		grpc.WithDisableServiceConfig(),
	}
}
