// Package crm is a CRM that takes registered calls at a webhook (docs/webhook.md): it checks the signature, drops what it has seen
// and shows what it holds.
//
// It owns what a good receiver does. It knows nothing of the relay.
package crm

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	maxBody = 64 << 10
	// kept is how many documents are held; the oldest are forgotten first.
	kept = 1000
	// tolerance is how old a message may be.
	tolerance = 5 * time.Minute
)

// CRM is an http.Handler: POST takes a document, GET shows those that are held. Make it with New.
type CRM struct {
	key []byte

	mu   sync.Mutex
	held []Document
	seen map[string]bool
}

// Document is one that was taken.
type Document struct {
	ID   string          `json:"id"`
	Body json.RawMessage `json:"body"`
}

// New makes a CRM that shares a secret (whsec_...) with the relay.
func New(secret string) (*CRM, error) {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	return &CRM{key: key, seen: map[string]bool{}}, err
}

// ServeHTTP answers 204 to a document, also to one that it has already, and 401 to a wrong signature.
func (c *CRM) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodPost:
		c.take(w, r)
	case http.MethodGet:
		c.mu.Lock()
		defer c.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(struct {
			Held []Document `json:"held"`
		}{append([]Document{}, c.held...)})
	default:
		w.Header().Set("Allow", "GET, POST")
		http.Error(w, "use GET or POST", http.StatusMethodNotAllowed)
	}
}

func (c *CRM) take(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, "the document is cut off or too long", http.StatusRequestEntityTooLarge)
		return
	}
	id, at := r.Header.Get("Webhook-Id"), r.Header.Get("Webhook-Timestamp")
	seconds, err := strconv.ParseInt(at, 10, 64)
	if off := time.Since(time.Unix(seconds, 0)); id == "" || err != nil || off > tolerance || off < -tolerance || !c.signed(r, id, at, body) {
		http.Error(w, "the signature is wrong or old", http.StatusUnauthorized)
		return
	}
	if !json.Valid(body) {
		http.Error(w, "not JSON", http.StatusUnprocessableEntity)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.seen[id] {
		c.seen[id] = true
		if c.held = append(c.held, Document{id, body}); len(c.held) > kept {
			delete(c.seen, c.held[0].ID)
			c.held = c.held[1:]
		}
	}
	w.WriteHeader(http.StatusNoContent)
}

func (c *CRM) signed(r *http.Request, id, at string, body []byte) bool {
	mac := hmac.New(sha256.New, c.key)
	fmt.Fprintf(mac, "%s.%s.%s", id, at, body)
	want := []byte("v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	for _, signature := range strings.Fields(r.Header.Get("Webhook-Signature")) {
		if hmac.Equal([]byte(signature), want) {
			return true
		}
	}
	return false
}
