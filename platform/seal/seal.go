// Package seal encrypts what must be secret at rest: AES-256-GCM with keys that can be rotated.
//
// It owns the form of a sealed value and of SECRETS_KEY (docs/secrets.md). It does not know what is sealed or where it is kept.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

const (
	version = 1
	keySize = 32
	maxID   = 32
)

// Keys seal with the first key and open with any.
type Keys struct {
	first string
	byID  map[string]cipher.AEAD
}

// Parse reads SECRETS_KEY: one or more "id:base64 of 32 bytes", separated by commas or white space, the newest first. Its
// errors name the key's id and never its value.
func Parse(text string) (*Keys, error) {
	k := &Keys{byID: map[string]cipher.AEAD{}}
	for i, entry := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || unicode.IsSpace(r) }) {
		id, encoded, ok := strings.Cut(entry, ":")
		if !ok || id == "" || len(id) > maxID {
			return nil, fmt.Errorf("key %d: expected id:key, the id 1 to %d characters, e.g. 2026a:$(openssl rand -base64 32)", i+1, maxID)
		}
		key, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil || len(key) != keySize {
			return nil, fmt.Errorf("key %q: expected the base64 of %d bytes, e.g. from openssl rand -base64 32", id, keySize)
		}
		if k.byID[id] != nil {
			return nil, fmt.Errorf("key %q: is there twice", id)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", id, err)
		}
		if k.byID[id], err = cipher.NewGCMWithRandomNonce(block); err != nil {
			return nil, fmt.Errorf("key %q: %w", id, err)
		}
		if k.first == "" {
			k.first = id
		}
	}
	if k.first == "" {
		return nil, errors.New("at least one key is needed, e.g. 2026a:$(openssl rand -base64 32)")
	}
	return k, nil
}

// Seal encrypts with the first key. What is sealed can only be opened with the same bound, e.g. the id of its record: it
// cannot be moved to another.
func (k *Keys) Seal(plain []byte, bound string) []byte {
	head := append([]byte{version, byte(len(k.first))}, k.first...)
	return k.byID[k.first].Seal(head, nil, plain, []byte(bound))
}

// Open decrypts what was sealed with any of the keys for the same bound.
func (k *Keys) Open(sealed []byte, bound string) ([]byte, error) {
	id, rest, err := split(sealed)
	if err != nil {
		return nil, err
	}
	key := k.byID[id]
	if key == nil {
		return nil, fmt.Errorf("it was sealed with key %q, which is not in SECRETS_KEY", id)
	}
	plain, err := key.Open(nil, nil, rest, []byte(bound))
	if err != nil {
		return nil, fmt.Errorf("it cannot be opened with key %q: another key of that id, or it was changed", id)
	}
	return plain, nil
}

// Current says whether something is sealed with the first key; else it should be sealed again.
func (k *Keys) Current(sealed []byte) bool {
	id, _, err := split(sealed)
	return err == nil && id == k.first
}

func split(sealed []byte) (id string, rest []byte, err error) {
	if len(sealed) < 2 || sealed[0] != version || len(sealed) < 2+int(sealed[1]) {
		return "", nil, errors.New("it is not a sealed value")
	}
	n := 2 + int(sealed[1])
	return string(sealed[2:n]), sealed[n:], nil
}
