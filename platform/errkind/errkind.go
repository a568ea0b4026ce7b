// Package errkind is the one error vocabulary of the project: who has to act, what is at fault, when to try again.
//
// It owns the way of an error over a hop: error <-> gRPC status with details <-> item of a batch <-> HTTP status. It does not
// know what any service refuses, or why. The cause of an error stays in the process that saw it; it is for that process's log.
package errkind

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	errorsv1 "callrelay/gen/callrelay/errors/v1"
)

// Error is an error with a kind. It survives a gRPC hop unchanged, except for Cause, which never crosses one, and for bytes
// in Field and Message that are not UTF-8, which are replaced.
type Error struct {
	Kind       errorsv1.Kind
	Field      string        // the parameter at fault, or empty
	Message    string        // for people; no secrets, no unmasked phone numbers
	RetryAfter time.Duration // when a repeat may succeed, in whole milliseconds; 0 = unknown
	Cause      error
}

// opaque is all that the outside learns of a bug.
const opaque = "internal error"

// Invalid says that the caller sent something malformed in field (empty: in nothing that has a name).
func Invalid(field, format string, a ...any) *Error {
	e := newError(errorsv1.Kind_KIND_INVALID, format, a)
	e.Field = field
	return e
}

// NotFound says that there is no such thing.
func NotFound(format string, a ...any) *Error {
	return newError(errorsv1.Kind_KIND_NOT_FOUND, format, a)
}

// Refused says that the thing is in a state that forbids the action.
func Refused(format string, a ...any) *Error {
	return newError(errorsv1.Kind_KIND_REFUSED, format, a)
}

// Forbidden says that this source or token may not do it.
func Forbidden(format string, a ...any) *Error {
	return newError(errorsv1.Kind_KIND_FORBIDDEN, format, a)
}

// Unavailable says that nothing is wrong with the request; the outcome may be unknown.
func Unavailable(cause error, format string, a ...any) *Error {
	e := newError(errorsv1.Kind_KIND_UNAVAILABLE, format, a)
	e.Cause = cause
	return e
}

// Limited says that there were too many requests; retryAfter 0 = unknown.
func Limited(retryAfter time.Duration, format string, a ...any) *Error {
	e := newError(errorsv1.Kind_KIND_LIMITED, format, a)
	e.RetryAfter = retryAfter
	return e
}

// Internal says that there is a bug: cause is for the log, the outside sees nothing of it.
func Internal(cause error) *Error {
	return &Error{Kind: errorsv1.Kind_KIND_INTERNAL, Message: opaque, Cause: cause}
}

func newError(kind errorsv1.Kind, format string, a []any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, a...)}
}

// Error includes the cause: it is for logs. What the outside may see is Message.
func (e *Error) Error() string {
	text := e.Message
	if e.Field != "" {
		text = e.Field + ": " + text
	}
	if e.Cause != nil {
		text += ": " + e.Cause.Error()
	}
	return text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// GRPCStatus is how gRPC sends the error: as its code, with the whole error as a detail.
func (e *Error) GRPCStatus() *status.Status {
	p := e.Proto()
	s := status.New(mapping(p.Kind).code, p.Message)
	if detailed, err := s.WithDetails(p); err == nil {
		return detailed
	}
	return s
}

// Proto is how the error travels beside an item of a batch. The proto of a nil error is nil.
func (e *Error) Proto() *errorsv1.Error {
	if e == nil {
		return nil
	}
	return &errorsv1.Error{
		Kind:    e.Kind,
		Field:   valid(e.Field),
		Message: valid(e.Message),
		// Up, so that nobody comes back a moment too early.
		RetryAfterMs: (e.RetryAfter + time.Millisecond - 1).Milliseconds(),
	}
}

// valid keeps a stray byte from making the whole message unsendable.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// FromProto rebuilds an error; nil gives nil. The result is a *Error: stored in an error variable, a nil one would no longer
// equal nil, so compare before storing.
func FromProto(p *errorsv1.Error) *Error {
	if p == nil {
		return nil
	}
	return &Error{
		Kind:       p.GetKind(),
		Field:      p.GetField(),
		Message:    p.GetMessage(),
		RetryAfter: time.Duration(p.GetRetryAfterMs()) * time.Millisecond,
	}
}

// From finds or makes the kind of any error: nil gives nil (see FromProto about storing it), an Error anywhere in the chain is
// returned as it is, a gRPC status is rebuilt from its detail or else from its code, the end of a context is unavailable, and
// everything else is internal and opaque.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return Unavailable(err, "the time for the request ran out")
	}
	s, ok := status.FromError(err)
	if !ok {
		return Internal(err)
	}
	for _, d := range s.Details() {
		if p, ok := d.(*errorsv1.Error); ok {
			return FromProto(p)
		}
	}
	return fromCode(s, err)
}

// fromCode judges a status that this vocabulary did not make. For unavailable and internal it is usually gRPC itself that
// speaks, of addresses and sockets that are nothing for the outside.
func fromCode(s *status.Status, err error) *Error {
	switch s.Code() {
	case codes.Canceled, codes.DeadlineExceeded:
		return Unavailable(err, "the time for the request ran out")
	case codes.Unavailable, codes.Aborted:
		return Unavailable(err, "temporarily unavailable")
	case codes.InvalidArgument, codes.OutOfRange:
		return &Error{Kind: errorsv1.Kind_KIND_INVALID, Message: s.Message(), Cause: err}
	case codes.NotFound:
		return &Error{Kind: errorsv1.Kind_KIND_NOT_FOUND, Message: s.Message(), Cause: err}
	case codes.FailedPrecondition, codes.AlreadyExists:
		return &Error{Kind: errorsv1.Kind_KIND_REFUSED, Message: s.Message(), Cause: err}
	case codes.PermissionDenied, codes.Unauthenticated:
		return &Error{Kind: errorsv1.Kind_KIND_FORBIDDEN, Message: s.Message(), Cause: err}
	case codes.ResourceExhausted:
		return &Error{Kind: errorsv1.Kind_KIND_LIMITED, Message: s.Message(), Cause: err}
	}
	return Internal(err)
}

// HTTPStatus is the HTTP status of a kind; 500 for one that is not known here.
func HTTPStatus(kind errorsv1.Kind) int { return mapping(kind).http }

type codePair struct {
	code codes.Code
	http int
}

func mapping(kind errorsv1.Kind) codePair {
	switch kind {
	case errorsv1.Kind_KIND_INVALID:
		return codePair{codes.InvalidArgument, http.StatusBadRequest}
	case errorsv1.Kind_KIND_NOT_FOUND:
		return codePair{codes.NotFound, http.StatusNotFound}
	case errorsv1.Kind_KIND_REFUSED:
		return codePair{codes.FailedPrecondition, http.StatusConflict}
	case errorsv1.Kind_KIND_FORBIDDEN:
		return codePair{codes.PermissionDenied, http.StatusForbidden}
	case errorsv1.Kind_KIND_UNAVAILABLE:
		return codePair{codes.Unavailable, http.StatusServiceUnavailable}
	case errorsv1.Kind_KIND_LIMITED:
		return codePair{codes.ResourceExhausted, http.StatusTooManyRequests}
	}
	return codePair{codes.Internal, http.StatusInternalServerError}
}
