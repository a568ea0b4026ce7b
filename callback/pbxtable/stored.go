package pbxtable

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
)

// AccountPrefix begins the ids of integrations where state keeps them.
const AccountPrefix = "pbx/"

// Stored is an integration as state keeps it: with hashes in place of tokens and secret.
type Stored struct {
	Integration Integration `json:"integration"`
	// File is the digest of the entry of PBX_INTEGRATIONS that was loaded last; empty: none was.
	File string `json:"file,omitempty"`
}

// Hashed is the integration with the hash of its webhook's secret in place of that.
func (i Integration) Hashed() Integration {
	i.Webhook.Secret = Secret(writeHash(i.Webhook.Secret.Hash()))
	return i
}

// Digest tells an entry of a file from a changed one.
func (i Integration) Digest() (string, error) {
	text, err := json.Marshal(i.Hashed())
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), err
}

// ParseStored reads what state keeps of an integration. Fields of later versions are skipped.
func ParseStored(id string, settings []byte) (*Stored, error) {
	s := &Stored{}
	if err := json.Unmarshal(settings, s); err != nil {
		return nil, fmt.Errorf("what is stored of %s cannot be read: %w", id, err)
	}
	if AccountPrefix+s.Integration.ID != id || strings.Contains(s.Integration.ID, "/") {
		return nil, fmt.Errorf("what is stored of %s is another integration's", id)
	}
	return s, nil
}
