package pbx

import "fmt"

// Secret signs what the webhook of the sample table is sent.
const Secret = "whsec_c2ltdWxhdG9yLXNpbXVsYXRvci1zaW11bGF0b3ItMDA="

// Table is a sample table of one integration (docs/pbx.md), for trying out: its tokens are no secrets.
func Table(webhookURL string) []byte {
	return fmt.Appendf(nil, `{"integrations": [{
  "id": "demo",
  "prefix": "0003",
  "extension_len": 3,
  "webhook": {"url": %q, "secret": %q, "allow_private": ["127.0.0.0/8", "::1/128"]},
  "extensions": [
    {"id": "33301", "name": "0003*101", "type": "phone", "user": "u101", "tokens": ["5d7f0c1b9a2e48d6b3c4f1e08a7d6952"]},
    {"id": "33302", "name": "0003*102", "type": "phone", "user": "u102", "tokens": ["c81e4b7d02f9463aa5d6e90b13f8c427"]},
    {"id": "33303", "name": "0003*103", "type": "phone", "user": "u103", "tokens": ["3f96a2d8e5b04c17908d7be1f4c2a360"]},
    {"id": "33334", "name": "0003*700", "type": "queue", "tokens": ["e04d9b8c71a25f36bd18c7f2603e95a4"]}
  ]
}]}
`, webhookURL, Secret)
}
