// Command topsii-sim runs the TopS.II simulator as a process. Everything it does is in package topsii.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"callrelay/sim/topsii"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8090", "listen `address`")
	key := flag.String("api-key", "", "the only API `key` accepted; empty: any of 32 characters")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *addr, *key); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
}

func run(ctx context.Context, out io.Writer, addr, key string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "topsii-sim listens on http://%s\n", ln.Addr())
	srv := &http.Server{Handler: topsii.New(topsii.Config{APIKey: key, KeepPayloads: true})}
	context.AfterFunc(ctx, func() { _ = srv.Close() }) // not Shutdown: a hanging request must not keep it
	return srv.Serve(ln)
}
