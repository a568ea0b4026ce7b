package up

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"callrelay/sim/crm"
	"callrelay/sim/kommo"
	"callrelay/sim/pbx"
	"callrelay/sim/topsii"
)

// simHooks is where the simulator is a CRM that takes the calls of a cloud PBX.
const simHooks = "/hooks/calls"

// writeSimTable makes a table of a cloud PBX for the simulator's CRM (callrelay send pbx knows it), and returns where it is.
func writeSimTable(dataDir, simAddr string) (string, error) {
	path := filepath.Join(dataDir, "sim-pbx.json")
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return "", err
	}
	return path, os.WriteFile(path, pbx.Table("http://"+simAddr+simHooks), 0o600)
}

// startSim serves the simulators: TopS.II, a CRM that takes the calls of a cloud PBX and, below /kommo, Kommo. What they hold
// ends with them.
func startSim(addr, apiKey string) (stop func(), err error) {
	listen, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("simulator: %w (--sim-addr takes another address)", err)
	}
	hooks, err := crm.New(pbx.Secret)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/", topsii.New(topsii.Config{APIKey: apiKey, KeepPayloads: true}))
	mux.Handle(simHooks, hooks)
	mux.Handle("/kommo/", http.StripPrefix("/kommo", kommo.New(kommo.Config{ClientID: simClient, ClientSecret: simClientSecret, RedirectURI: simRedirect,
		Accounts: []kommo.AccountConfig{{ID: 9001, Host: "acme.kommo.com", Token: simToken}}})))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
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
