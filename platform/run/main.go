// Package run owns how a process and the services in it live and end: signals, exit codes, the order of starting and stopping,
// health and the metrics listener. All four services run through it, alone in their process or together in one.
//
// It does not know what a service does, does not read configuration, and does not start telemetry: those arrive ready.
package run

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// ExitError gives Main's process the exit code Code. Without an Err nothing is printed.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit %d", e.Code)
	}
	return e.Err.Error()
}

// Unwrap returns the error behind the code.
func (e *ExitError) Unwrap() error { return e.Err }

// Main is the whole of a main function. The context of f ends with SIGINT or SIGTERM; a second signal ends the process at
// once. What f returns is printed once to stderr and exits with 1, or as an *ExitError says; it is no error that f ends with
// its cancelled context after a signal.
func Main(f func(ctx context.Context) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // gives the signals their usual effect back
	err := f(ctx)
	if err == nil || ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return
	}
	code := 1
	exit, ok := errors.AsType[*ExitError](err)
	if ok {
		code = exit.Code
	}
	if !ok || exit.Err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
	}
	os.Exit(code)
}
