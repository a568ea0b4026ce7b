// Command kommo-sim runs the Kommo simulator as a process. Everything it does is in package kommo.
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

	"callrelay/sim/kommo"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8091", "listen `address`")
	token := flag.String("token", "simulated", "long-lived access `token` of account 9001")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *addr, *token); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
}

func run(ctx context.Context, out io.Writer, addr, token string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "kommo-sim listens on http://%s\n", ln.Addr())
	srv := &http.Server{Handler: kommo.New(kommo.Config{Accounts: []kommo.AccountConfig{{ID: 9001, Host: "acme.kommo.com", Token: token}}})}
	context.AfterFunc(ctx, func() { _ = srv.Close() }) // not Shutdown: a hanging request must not keep it
	return srv.Serve(ln)
}
