package up

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"callrelay/sim/kommo"
	"callrelay/sim/topsii"
)

// startSim serves the TopS.II simulator and, below /kommo, that of Kommo; what they hold ends with them.
func startSim(addr, apiKey string) (stop func(), err error) {
	listen, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("simulator: %w (--sim-addr takes another address)", err)
	}
	crm := topsii.New(topsii.Config{APIKey: apiKey, KeepPayloads: true})
	accounts := http.StripPrefix("/kommo", kommo.New(kommo.Config{Accounts: []kommo.AccountConfig{{ID: 9001, Host: "acme.kommo.com", Token: simToken}}}))
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/kommo/") {
			accounts.ServeHTTP(w, r)
			return
		}
		crm.ServeHTTP(w, r)
	})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(listen) // ends with Close
	}()
	return func() {
		_ = server.Close()
		<-ended
	}, nil
}
