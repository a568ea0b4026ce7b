package topsii

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
)

// controlHandler is the simulator's own API:
//
//	GET    /sim/held?callId=&endpoint=   what is held
//	DELETE /sim/held                     Reset
//	GET    /sim/duplicates               Duplicates
//	GET    /sim/stats                    Stats
//	GET    /sim/fault                    Faults
//	PUT    /sim/fault                    SetFault
//	DELETE /sim/fault                    ClearFaults
func (s *Server) controlHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /sim/held", s.getHeld)
	mux.HandleFunc("DELETE /sim/held", func(w http.ResponseWriter, _ *http.Request) {
		s.Reset()
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /sim/duplicates", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, s.Duplicates())
	})
	mux.HandleFunc("GET /sim/stats", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, s.Stats())
	})
	mux.HandleFunc("GET /sim/fault", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, s.Faults())
	})
	mux.HandleFunc("PUT /sim/fault", s.putFault)
	mux.HandleFunc("DELETE /sim/fault", func(w http.ResponseWriter, _ *http.Request) {
		s.ClearFaults()
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}

func (s *Server) getHeld(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	endpoint := q.Get("endpoint")
	if _, ok := shapes[endpoint]; !ok && endpoint != "" {
		writeError(w, fmt.Errorf("no endpoint %q", endpoint))
		return
	}
	id := q.Get("callId")
	if id == "" {
		writeJSON(w, http.StatusOK, s.HeldBy(endpoint))
		return
	}
	callID, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		writeError(w, fmt.Errorf("callId: %w", err))
		return
	}
	out := []Held{}
	for _, h := range s.ByCall(callID) {
		if endpoint == "" || h.Endpoint == endpoint {
			out = append(out, h)
		}
	}
	writeJSON(w, http.StatusOK, out)
}

func (s *Server) putFault(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	var f Fault
	if err == nil {
		err = json.Unmarshal(body, &f)
	}
	if err == nil {
		err = s.SetFault(f)
	}
	if err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, f)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a client that has gone is its own business
}

func writeError(w http.ResponseWriter, err error) {
	writeJSON(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
}
