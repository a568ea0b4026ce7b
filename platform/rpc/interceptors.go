package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"

	errorsv1 "callrelay/gen/callrelay/errors/v1"
	"callrelay/platform/errkind"
)

const (
	// wayBack is taken from a caller's deadline, so that it gets our answer and not its own timeout.
	wayBack = 20 * time.Millisecond
	// worthwhile is the least time in which a handler can do anything.
	worthwhile = 10 * time.Millisecond
)

func unaryErrors(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
		defer func() { err = outcome(ctx, log, info.FullMethod, recover(), err) }()
		return handle(ctx, req)
	}
}

func streamErrors(log *slog.Logger) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
		defer func() { err = outcome(stream.Context(), log, info.FullMethod, recover(), err) }()
		return handle(srv, stream)
	}
}

// outcome is what a handler's end means to its caller. Bugs are logged here, because their cause goes no further.
func outcome(ctx context.Context, log *slog.Logger, method string, panicked any, err error) error {
	if panicked != nil {
		log.ErrorContext(ctx, "panic", "method", method, "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
		return errkind.Internal(fmt.Errorf("panic: %v", panicked))
	}
	e := errkind.From(err)
	if e == nil {
		return nil
	}
	if e.Kind == errorsv1.Kind_KIND_INTERNAL {
		log.ErrorContext(ctx, "internal error", "method", method, "error", err)
	}
	return e
}

func unaryDeadline(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return handle(ctx, req)
	}
	deadline = deadline.Add(-wayBack)
	if time.Until(deadline) < worthwhile {
		return nil, errkind.Unavailable(nil, "too little time left for the request")
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	return handle(ctx, req)
}
