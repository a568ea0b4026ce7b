// Package delivery works off one destination's queue: it leases deliveries from state, makes one request for each
// through a Sender, and reports each result until state has answered it.
//
// It owns the lease stream, the workers, and what follows from an answer: retry, dead letter, hold, ask, expiry, circuit
// breaking. It does not know any destination's protocol (that is a Sender's, see package topsii), keeps nothing across
// a restart, and never decides order: state leases only what may go now.
package delivery

import (
	"context"
	"time"
)

// Sender makes requests to one destination.
type Sender interface {
	// Send makes exactly one request and never follows it up by another. It returns when ctx ends.
	Send(ctx context.Context, endpoint string, payload []byte) Answer
	// URL is where Send would post to, for people.
	URL(endpoint string) string
}

// Outcome says what one request came to.
type Outcome int

// The zero Outcome is Uncertain: what nobody classified may have arrived.
const (
	// Uncertain: the request may have left and no definite answer came.
	Uncertain Outcome = iota
	// Delivered: the destination has it.
	Delivered
	// Unsent: nothing left; the same request may be made again without any risk.
	Unsent
	// Transport: an answer came from something on the way, or the destination could not work just now.
	Transport
	// AppError: the destination failed to process it and did not say why.
	AppError
	// Dead: the destination will never take this delivery.
	Dead
	// Hold: the destination is at fault, not the delivery; every other delivery would meet the same.
	Hold
)

// Answer is what is known after a request.
type Answer struct {
	Outcome Outcome
	// Reason says in plain words why it was not delivered and what to check; empty when it was. It holds no secret and
	// no unmasked phone number.
	Reason string
	// HTTPCode is 0 when no answer came.
	HTTPCode int
	// Result, MessageCode and SubMessageCode are the destination's own words.
	Result, MessageCode, SubMessageCode string
	// Body is the beginning of the answer, as it came.
	Body []byte
	// Reply is what the rules get to know of a success, e.g. the ids of what it made; empty where they need nothing.
	Reply []byte
	// RetryAfter is how long the destination asked to be left alone; 0 = it did not.
	RetryAfter time.Duration
}

// transportFailure reports whether the circuit breaker counts the answer: nothing that understood the request answered.
func (a Answer) transportFailure() bool {
	return a.Outcome == Uncertain || a.Outcome == Unsent || a.Outcome == Transport
}
