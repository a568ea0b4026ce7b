package ingress

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A token opens the cards it was made for until its end, and nothing that was changed in it opens any.
func TestCardTokens(t *testing.T) {
	key, other := []byte("a key that is long enough to be one"), []byte("another key, as long as the first one")
	rapid.Check(t, func(t *rapid.T) {
		of := cardUser{rapid.StringMatching(`[a-z0-9-]{1,32}`).Draw(t, "integration"), rapid.StringN(1, 40, 128).Draw(t, "user")}
		now := time.Unix(rapid.Int64Range(1e9, 4e9).Draw(t, "now"), 0)
		end := now.Add(time.Duration(rapid.Int64Range(1, 43200).Draw(t, "ttl")) * time.Second)
		token := signCardToken(key, of, end)
		if got, until, ok := readCardToken(key, token, now); !ok || got != of || !until.Equal(end) {
			t.Fatalf("%s: %v %v %v", token, got, until, ok)
		}
		refused := func(what string, key []byte, token string, now time.Time) {
			if got, _, ok := readCardToken(key, token, now); ok {
				t.Fatalf("%s: %s opens %v", what, token, got)
			}
		}
		refused("its time is over", key, token, end)
		refused("another key", other, token, now)
		refused("no key", nil, signCardToken(nil, of, end), now)
		refused("too long a life", key, signCardToken(key, of, now.Add(13*time.Hour)), now)
		at := rapid.IntRange(0, len(token)-2).Draw(t, "at") // the last character has bits that say nothing
		changed := []byte(token)
		if changed[at]++; string(changed) != token {
			refused("changed", key, string(changed), now)
		}
		refused("cut", key, token[:at], now)
	})
}
