package router

import (
	"context"
	"sync"
	"time"
)

// budgets are the contexts of callbacks. Those whose budgets end within a hundredth of a second share one, which ends with the
// first of them: to make one for each, with a timer that hardly ever fires, was a tenth of what deciding a callback takes.
type budgets struct {
	mu  sync.Mutex
	end time.Time
	ctx context.Context
}

// until is a context that ends then, or at most 10 ms before.
func (b *budgets) until(end time.Time) context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	if early := end.Sub(b.end); b.ctx == nil || early < 0 || early > 10*time.Millisecond {
		ctx, cancel := context.WithDeadline(context.Background(), end)
		_ = cancel // it ends by itself
		b.ctx, b.end = ctx, end
	}
	return b.ctx
}
