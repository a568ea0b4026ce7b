package pbxtable

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
)

// Hash is the SHA-256 of a token or secret.
type Hash = [sha256.Size]byte

// hashed begins a token or secret of which only the hash is given, in hex.
const hashed = "sha256="

func readHash(text string) (h Hash, ok bool) {
	digits, ok := strings.CutPrefix(text, hashed)
	if !ok || len(digits) != hex.EncodedLen(len(h)) {
		return h, false
	}
	_, err := hex.Decode(h[:], []byte(digits))
	return h, err == nil
}

func writeHash(h Hash) string { return hashed + hex.EncodeToString(h[:]) }

// Token is a token of an event URL, of which nothing is kept but its hash. In JSON it is read as it is or as sha256= and its
// hash in hex, and written as the latter.
type Token struct {
	Hash   Hash
	length int
	wrong  bool
}

// NewToken is the token that a text is.
func NewToken(text string) Token {
	if h, ok := readHash(text); ok {
		return Token{Hash: h}
	}
	return Token{Hash: sha256.Sum256([]byte(text)), length: len(text), wrong: !tokenForm.MatchString(text) || bits(text) < 128}
}

// UnmarshalText reads a token; what is wrong with it is said by the checks, which know the place.
func (t *Token) UnmarshalText(text []byte) error {
	*t = NewToken(string(text))
	return nil
}

// MarshalText writes the hash.
func (t Token) MarshalText() ([]byte, error) { return []byte(writeHash(t.Hash)), nil }

// Secret is a text that does not show itself, but in JSON.
type Secret string

// String hides it.
func (s Secret) String() string { return "***" }

// GoString hides it.
func (s Secret) GoString() string { return "***" }

// Key is the key that a webhook's secret holds (Standard Webhooks).
func (s Secret) Key() ([]byte, error) {
	text, ok := strings.CutPrefix(string(s), "whsec_")
	key, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(key) < 24 || len(key) > 64 {
		return nil, errors.New("must be whsec_ and the base64 of 24 to 64 random bytes")
	}
	return key, nil
}

// Hashed says whether it is only the hash of a secret.
func (s Secret) Hashed() bool { _, ok := readHash(string(s)); return ok }

// Hash is its hash, also where it is only that.
func (s Secret) Hash() Hash {
	if h, ok := readHash(string(s)); ok {
		return h
	}
	return sha256.Sum256([]byte(s))
}
