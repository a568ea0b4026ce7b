package state

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"

	errorsv1 "callrelay/gen/callrelay/errors/v1"
	"callrelay/platform/errkind"
)

// apart handles the items of a message together. Where that panics, each is handled alone, so that a bug which one of them meets fails
// nobody else's and does not end the process; what the first time wrote is recognised by its input id or token. Nobody knows how far the
// one came, so its answer is UNAVAILABLE and not INTERNAL, which is definite: ingress would take a callback out of its spool for it.
func apart[I, A any](log *slog.Logger, items []I, handle func([]I) []A, fail func(I, *errorsv1.Error) A) (answers []A) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		log.Error("panic", "items", len(items), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		if len(items) == 1 {
			answers = []A{fail(items[0], errkind.Unavailable(errors.New("panic"), "state met a bug, see its log").Proto())}
			return
		}
		answers = nil
		for i := range items {
			answers = append(answers, apart(log, items[i:i+1], handle, fail)...)
		}
	}()
	return handle(items)
}
