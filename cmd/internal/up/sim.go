package up

import (
	"fmt"
	"net"
	"net/http"
	"time"

	"callrelay/sim/topsii"
)

// startSim serves the TopS.II simulator; what it holds ends with it.
func startSim(addr, apiKey string) (stop func(), err error) {
	listen, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("TopS.II simulator: %w (--sim-addr takes another address)", err)
	}
	server := &http.Server{Handler: topsii.New(topsii.Config{APIKey: apiKey, KeepPayloads: true}), ReadHeaderTimeout: 5 * time.Second}
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
