package kommo

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"callrelay/platform/telemetry"
	"callrelay/services/upstream/internal/delivery"
	"callrelay/services/upstream/internal/roundtrip"
)

// kind is what one request came to.
type kind int

// The zero kind is uncertain: what nobody classified may have arrived.
const (
	// uncertain: it may have had its effect and no definite answer came.
	uncertain kind = iota
	// done: Kommo did it, or answered what was asked.
	done
	// notFound: Kommo has no such entity, note or lead. A definite answer.
	notFound
	// invalid: Kommo will never take this request.
	invalid
	// unauthorized: the access token is not accepted. Nothing was done.
	unauthorized
	// limited: too many requests. Nothing was done, and nothing may be sent for a while.
	limited
	// held: the account is at fault, not the request. Nothing was done.
	held
	// unavailable: nothing was done, and later it may be.
	unavailable
	// unsent: nothing left.
	unsent
	// tooMany: there is more in Kommo than is looked through. A definite answer, and for a person to decide.
	tooMany
)

// outcomes is how delivery acts on each kind.
var outcomes = map[kind]delivery.Outcome{
	uncertain: delivery.Uncertain, done: delivery.Delivered, notFound: delivery.Delivered, invalid: delivery.Dead,
	unauthorized: delivery.Hold, limited: delivery.Hold, held: delivery.Hold, unavailable: delivery.Transport, unsent: delivery.Unsent, tooMany: delivery.Dead,
}

// result is what is known after a request.
type result struct {
	kind kind
	// reason says in plain words why it is not done and what to check.
	reason string
	status int
	body   []byte
	// after is how long Kommo wants to be left alone.
	after time.Duration
}

// response is an HTTP answer as far as it could be read.
type response struct {
	status int
	header http.Header
	body   []byte
	// readErr says why the body is incomplete; empty when it is not.
	readErr string
}

// maxRetryAfter bounds what an answer may ask for: a mistaken date must not stop an account for weeks.
const maxRetryAfter = 24 * time.Hour

// classify is what each answer of Kommo means (facts/kommo.md, 1.6 and 7). reads says that the request changes nothing.
func classify(endpoint string, reads bool, r response, now time.Time) result {
	var body said
	isJSON := json.Unmarshal(r.body, &body) == nil
	after, given := roundtrip.RetryAfter(r.header, now, maxRetryAfter)
	if !given {
		after = time.Duration(min(max(body.RetryAfter, 0), maxRetryAfter.Seconds())) * time.Second
	}
	out := result{status: r.status, body: r.body, after: after}
	is := func(k kind, format string, args ...any) result {
		out.kind, out.reason = k, fmt.Sprintf(format, args...)
		return out
	}
	// What it means that nobody can say what was done: of a question nothing, it is asked again.
	unknown := uncertain
	if reads {
		unknown = unavailable
	}
	switch status := r.status; {
	case status >= 200 && status < 300:
		switch {
		case r.readErr != "":
			return is(unknown, "Kommo took the request, but its answer was cut off: %s", r.readErr)
		case status == http.StatusNoContent || len(r.body) == 0:
			return is(done, "")
		case !isJSON:
			return is(unknown, "HTTP %d, but the answer is not one of Kommo (no JSON): check what answers at the account's address", status)
		case endpoint == Calls && body.entityNotFound():
			return is(notFound, "Kommo has no entity with this number")
		}
		return is(done, "")
	case status >= 300 && status < 400:
		return is(held, "Kommo answers with a redirect (HTTP %d), which is never followed: check the account's address", status)
	case status == http.StatusBadRequest && names[endpoint] && body.entityNotFound():
		return is(notFound, "Kommo has no entity with this number")
	case status == http.StatusBadRequest && body.missingRights():
		return is(held, "Kommo says that rights are missing (code 244): check the rights of the user who connected the account, and its plan")
	case status == http.StatusUnauthorized:
		return is(unauthorized, "Kommo does not accept the access token (HTTP 401)%s", words(&body))
	case status == http.StatusPaymentRequired:
		return is(held, "the Kommo account is not paid (HTTP 402): nothing works until it is")
	case status == http.StatusForbidden:
		return is(held, "Kommo refuses us (HTTP 403): the address or account is blocked after too many requests, or rights are missing%s", words(&body))
	case status == http.StatusNotFound && isJSON && named404[endpoint]:
		return is(notFound, "Kommo has nothing of this id (HTTP 404)%s", words(&body))
	case status == http.StatusNotFound:
		return is(held, "Kommo has nothing at this address (HTTP 404): check the account's address; was it renamed?")
	case status == http.StatusRequestTimeout:
		return is(unknown, "Kommo did not wait for the request (HTTP 408)")
	case status == http.StatusTooManyRequests:
		if out.after == 0 {
			out.after = defaultRetryAfter
		}
		return is(limited, "too many requests to this Kommo account (HTTP 429): it wants to be left alone for %v", out.after)
	case status >= 400 && status < 500:
		return is(invalid, "Kommo refuses it for good (HTTP %d)%s", status, words(&body))
	}
	return is(unknown, "Kommo or something in front of it cannot work now (HTTP %d)", r.status)
}

// names are the endpoints whose 400 may say that Kommo knows nobody of this number or id.
var names = map[string]bool{Calls: true, NotesCreate: true, NotesPatch: true}

// named404 are the endpoints whose path names something that may be gone.
var named404 = map[string]bool{NotesCreate: true, NotesPatch: true, noteGet: true}

// words is what an error body says, for people: bounded, and no number unmasked.
func words(s *said) string {
	var all []string
	for _, v := range s.Validation {
		for _, e := range v.Errors {
			all = append(all, e.Path+": "+e.Detail+" ("+e.Code+")")
		}
	}
	if len(all) == 0 {
		for _, text := range []string{s.Hint, s.Title, s.Detail} {
			if text != "" {
				all = append(all, text)
			}
		}
	}
	if len(all) == 0 {
		return ""
	}
	return ": " + telemetry.MaskDigits(roundtrip.Bounded(strings.Join(all, "; "), 500))
}
