package kommo

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// control is the simulator's own API. account= names the account by its id; without it the first one is meant.
//
//	GET    /sim/view             View
//	POST   /sim/entities         {"type":"contact","name":"Ann","phones":["+1305..."],"links":[1]}: Add
//	POST   /sim/accept?uid=      Decide, also /sim/decline
//	POST   /sim/code             Code: a new authorization code
//	POST   /sim/token?user=      WidgetToken, as text
//	POST   /sim/unblock          Unblock
//	GET    /sim/fault            Faults
//	PUT    /sim/fault            AddFault
//	DELETE /sim/fault            ClearFaults
func (s *Server) control(w http.ResponseWriter, r *http.Request) {
	a := s.accounts[0]
	if id := r.URL.Query().Get("account"); id != "" {
		if a = s.Account(number(id)); a == nil {
			controlError(w, fmt.Errorf("there is no account %q", id))
			return
		}
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		controlError(w, err)
		return
	}
	switch r.Method + " " + r.URL.Path {
	case "GET /sim/view":
		controlJSON(w, http.StatusOK, a.View())
	case "POST /sim/entities":
		var e Entity
		err := json.Unmarshal(body, &e)
		if err == nil && plural(e.Type) == "" {
			err = fmt.Errorf("type must be contact, company, lead or customer, not %q", e.Type)
		}
		if err != nil {
			controlError(w, err)
			return
		}
		controlJSON(w, http.StatusOK, object{"id": a.Add(e.Type, e.Name, e.Phones, e.Links...)})
	case "POST /sim/accept", "POST /sim/decline":
		if uid := r.URL.Query().Get("uid"); !a.Decide(uid, r.URL.Path == "/sim/accept") {
			controlError(w, fmt.Errorf("no incoming lead %q is open", uid))
			return
		}
		w.WriteHeader(http.StatusNoContent)
	case "POST /sim/code":
		controlJSON(w, http.StatusOK, object{"code": a.Code()})
	case "POST /sim/token":
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, a.WidgetToken(number(r.URL.Query().Get("user")))) // a client that has gone is its own business
	case "POST /sim/unblock":
		a.Unblock()
		w.WriteHeader(http.StatusNoContent)
	case "GET /sim/fault":
		controlJSON(w, http.StatusOK, s.Faults())
	case "PUT /sim/fault":
		var f Fault
		err := json.Unmarshal(body, &f)
		if err == nil {
			err = s.AddFault(f)
		}
		if err != nil {
			controlError(w, err)
			return
		}
		controlJSON(w, http.StatusOK, f)
	case "DELETE /sim/fault":
		s.ClearFaults()
		w.WriteHeader(http.StatusNoContent)
	default:
		controlJSON(w, http.StatusNotFound, object{"error": "there is no " + r.Method + " " + r.URL.Path})
	}
}

func controlJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a client that has gone is its own business
}

func controlError(w http.ResponseWriter, err error) {
	controlJSON(w, http.StatusBadRequest, object{"error": err.Error()})
}
