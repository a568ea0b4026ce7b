package pbxtable

import (
	"encoding/base64"
	"errors"
	"strings"
)

// Key is the key that a webhook's secret holds (Standard Webhooks).
func (s Secret) Key() ([]byte, error) {
	text, ok := strings.CutPrefix(string(s), "whsec_")
	key, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(key) < 24 || len(key) > 64 {
		return nil, errors.New("must be whsec_ and the base64 of 24 to 64 random bytes")
	}
	return key, nil
}
