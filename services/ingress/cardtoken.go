package ingress

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"strconv"
	"strings"
	"time"
)

const (
	defaultCardTime = time.Hour
	maxCardTime     = 12 * time.Hour
	// maxCardToken is the longest token that is looked at: three parts, each in base64.
	maxCardToken = 1024
)

var base64url = base64.RawURLEncoding

// signCardToken makes a token for the cards of one user: integration, user and end (Unix seconds), and their HMAC.
func signCardToken(key []byte, of cardUser, end time.Time) string {
	text := of.integration + "." + base64url.EncodeToString([]byte(of.user)) + "." + strconv.FormatInt(end.Unix(), 10)
	return text + "." + base64url.EncodeToString(cardMAC(key, text))
}

// cardMAC has a prefix of its own, so that nothing else that is ever signed with the key passes for a token.
func cardMAC(key []byte, text string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("callrelay caller cards v1\n" + text))
	return mac.Sum(nil)
}

// readCardToken says whose cards a token opens, and until when. Nothing in it is looked at before its signature.
func readCardToken(key []byte, token string, now time.Time) (of cardUser, end time.Time, ok bool) {
	last := strings.LastIndexByte(token, '.')
	if len(key) == 0 || len(token) > maxCardToken || last < 0 {
		return of, end, false
	}
	signature, err := base64url.DecodeString(token[last+1:])
	if err != nil || !hmac.Equal(signature, cardMAC(key, token[:last])) {
		return of, end, false
	}
	parts := strings.Split(token[:last], ".")
	if len(parts) != 3 {
		return of, end, false
	}
	user, err := base64url.DecodeString(parts[1])
	seconds, err2 := strconv.ParseInt(parts[2], 10, 64)
	if end = time.Unix(seconds, 0); err != nil || err2 != nil || !now.Before(end) || end.Sub(now) > maxCardTime+time.Minute {
		return cardUser{}, time.Time{}, false
	}
	return cardUser{parts[0], string(user)}, end, true
}
