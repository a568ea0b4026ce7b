package kommo

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// hookTimeout is how long Kommo waits for an answer.
const hookTimeout = 2 * time.Second

// AddWebhook tells an address of new contacts and of what becomes of incoming leads, as the account's settings do.
func (a *Account) AddWebhook(address string) {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	a.webhooks = append(a.webhooks, address)
}

func (a *Account) postWebhook(r request) *reply {
	var said struct {
		Destination string   `json:"destination"`
		Settings    []string `json:"settings"`
	}
	if err := json.Unmarshal(r.body, &said); err != nil || said.Destination == "" || len(said.Settings) == 0 {
		return problem(http.StatusBadRequest, "destination and settings are required.")
	}
	a.webhooks = append(a.webhooks, said.Destination)
	return ok(object{"id": a.server.id(), "destination": said.Destination, "disabled": false, "settings": said.Settings})
}

// Hooks waits until every webhook that was due has been answered or given up.
func (s *Server) Hooks() { s.hooks.Wait() }

func (a *Account) tellContact(e *Entity) {
	form := url.Values{"contacts[add][0][id]": {text(e.ID)}, "contacts[add][0][name]": {e.Name}, "contacts[add][0][type]": {"contact"},
		"contacts[add][0][custom_fields][0][code]": {"PHONE"}}
	for i, p := range e.Phones {
		form.Set("contacts[add][0][custom_fields][0][values]["+text(i)+"][value]", p)
	}
	a.tell(form)
}

func (a *Account) tellDecision(u *Unsorted, accepted bool) {
	action := "decline"
	if accepted {
		action = "accept"
	}
	a.tell(url.Values{"unsorted[delete][0][uid]": {u.UID}, "unsorted[delete][0][action]": {action},
		"unsorted[delete][0][" + action + "_result][leads][0]": {text(u.LeadID)}})
}

// tell sends a webhook, once: what Kommo repeats after minutes is nothing a test waits for.
func (a *Account) tell(form url.Values) {
	sub, _, _ := strings.Cut(a.host, ".")
	form.Set("account[id]", text(a.id))
	form.Set("account[subdomain]", sub)
	for _, address := range a.webhooks {
		a.hooked++
		a.server.hooks.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), hookTimeout)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(form.Encode()))
			if err != nil {
				return
			}
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			if resp, err := http.DefaultClient.Do(req); err == nil {
				_ = resp.Body.Close()
			}
		})
	}
}
