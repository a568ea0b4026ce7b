package topsii

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"callrelay/services/upstream/internal/delivery"
	"callrelay/services/upstream/internal/roundtrip"
)

const (
	// keptBody is how much of an answer is kept for people.
	keptBody = 1 << 10
	// keptWord bounds the codes taken out of an answer.
	keptWord = 64
	// maxRetryAfter bounds what a Retry-After may ask for.
	maxRetryAfter = time.Hour
)

// response is an HTTP answer as far as it could be read.
type response struct {
	status int
	header http.Header
	body   []byte
	// readErr says why the body is incomplete; empty when it is not.
	readErr string
}

// classify is the answer table of the specification (spec/ameyo-topsii.md, HTTP out).
func classify(r response, now time.Time) delivery.Answer {
	answer := delivery.Answer{HTTPCode: r.status, Body: r.body[:min(len(r.body), keptBody)]}
	answer.RetryAfter, _ = roundtrip.RetryAfter(r.header, now, maxRetryAfter)
	switch {
	case r.status == http.StatusOK:
		return classifyOK(answer, r)
	case r.status >= 300 && r.status < 400:
		answer.Outcome = delivery.Hold
		answer.Reason = fmt.Sprintf("TopS.II answers with a redirect%s (HTTP %d), which is never followed: check the base URL and TOPSII_PATH_PREFIX",
			redirectTarget(r.header), r.status)
	case r.status == http.StatusUnauthorized, r.status == http.StatusForbidden:
		answer.Outcome = delivery.Hold
		answer.Reason = fmt.Sprintf("TopS.II refuses us (HTTP %d): check the API key of the chosen environment and that TopS.II admits this address", r.status)
	case r.status == http.StatusNotFound:
		answer.Outcome = delivery.Hold
		answer.Reason = "TopS.II has nothing at this address (HTTP 404): check the base URL and TOPSII_PATH_PREFIX"
	default:
		answer.Outcome = delivery.Transport
		answer.Reason = fmt.Sprintf("TopS.II or something in front of it cannot work now (HTTP %d)", r.status)
	}
	return answer
}

// classifyOK reads the body, because TopS.II answers HTTP 200 for errors too.
func classifyOK(answer delivery.Answer, r response) delivery.Answer {
	if r.readErr != "" {
		answer.Outcome = delivery.Uncertain
		answer.Reason = "TopS.II took the request, but its answer was cut off: " + r.readErr
		return answer
	}
	var said struct {
		Result         string `json:"result"`
		MessageCode    string `json:"messageCode"`
		SubMessageCode string `json:"subMessageCode"`
	}
	var mistyped *json.UnmarshalTypeError
	if err := json.Unmarshal(r.body, &said); err != nil && !errors.As(err, &mistyped) || said.Result == "" && said.MessageCode == "" {
		answer.Outcome = delivery.Transport
		answer.Reason = "HTTP 200, but the answer is not one of TopS.II (no JSON with a result): check what answers at the base URL"
		return answer
	}
	answer.Result, answer.MessageCode, answer.SubMessageCode = clip(said.Result), clip(said.MessageCode), clip(said.SubMessageCode)
	switch {
	case said.Result == "success":
		answer.Outcome = delivery.Delivered
	case said.MessageCode == "WTYP0010":
		answer.Outcome = delivery.Dead
		answer.Reason = logicalError(answer.SubMessageCode)
	case said.MessageCode == "WTYP0020":
		answer.Outcome = delivery.Hold
		answer.Reason = "TopS.II has no licence for this (WTYP0020): the licence has to be put right in TopS.II"
	case said.MessageCode == "WTYP0030":
		answer.Outcome = delivery.Hold
		answer.Reason = "TopS.II does not accept the API key (WTYP0030): check the API key of the chosen environment"
	default:
		answer.Outcome = delivery.AppError
		answer.Reason = fmt.Sprintf("TopS.II failed to process it (result %q, code %q)", answer.Result, answer.MessageCode)
	}
	return answer
}

// logicalError says in words what TopS.II will never accept, and what to check.
func logicalError(code string) string {
	switch code {
	case "WPRDEXTC3201":
		return "the call does not exist in TopS.II (WPRDEXTC3201): check callId, and that its call start was delivered"
	case "WPRDEXTC3202":
		return "TopS.II cannot identify the staff (WPRDEXTC3202): check predictiveStaffId"
	case "WPRDEXTC3203":
		return "the staff is not logged in to TopS.II (WPRDEXTC3203): check predictiveStaffId, and that this operator is logged in"
	case "":
		code = "no sub-code"
	}
	return fmt.Sprintf("TopS.II refuses it for good (WTYP0010, %s): check customerCRTId, callId, callTime, predictiveStaffId and targetTel", code)
}

// redirectTarget names where a redirect points, without its query.
func redirectTarget(header http.Header) string {
	target, err := url.Parse(header.Get("Location"))
	if err != nil || target.Host == "" {
		return ""
	}
	return " to " + clip(target.Scheme+"://"+target.Host)
}

// clip bounds a word from outside.
func clip(word string) string { return roundtrip.Bounded(word, keptWord) }
