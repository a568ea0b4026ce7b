package rpc

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// Calls go to both replicas in turn, and only to the one that is left when the other ends.
func TestDialReplicas(t *testing.T) {
	var served [2]atomic.Int64
	var servers [2]*Server
	addr := ""
	for i := range servers {
		p := &probe{unary: func(context.Context) error { served[i].Add(1); return nil }}
		servers[i] = NewServer(slog.New(slog.NewTextHandler(io.Discard, nil)))
		p.register(servers[i].Registrar())
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = servers[i].Serve(l) }()
		defer servers[i].Stop(time.Second)
		addr += map[bool]string{true: ", "}[i > 0] + l.Addr().String()
	}
	conn, err := Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for served[0].Load() == 0 || served[1].Load() == 0 {
		if err := unary(ctx, conn, 0); err != nil {
			t.Fatalf("%v; served %d and %d", err, served[0].Load(), served[1].Load())
		}
	}
	servers[0].Stop(time.Second)
	before := served[1].Load()
	for served[1].Load() < before+10 {
		if err := unary(ctx, conn, 0); err != nil && ctx.Err() != nil { // one may meet the end of the other
			t.Fatal(err)
		}
	}
}
