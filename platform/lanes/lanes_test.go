package lanes

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// One of a key at a time, in the order in which they came; other keys are not delayed.
func TestLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &Lanes{}
		ctx := context.Background()
		leave, _ := l.Enter(ctx, "a")
		var order []int
		for i := range 5 {
			go func() {
				leave, err := l.Enter(ctx, "a")
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, i)
				leave()
			}()
			synctest.Wait()
		}
		other, err := l.Enter(ctx, "b")
		if err != nil {
			t.Fatal(err)
		}
		other()
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := l.Enter(short, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		leave()
		synctest.Wait()
		if fmt.Sprint(order) != "[0 1 2 3 4]" {
			t.Errorf("order %v", order)
		}
		if len(l.m) != 0 {
			t.Errorf("%d lanes are left", len(l.m))
		}
	})
}

// Who gives up just as its turn comes passes it on.
func TestTurnAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &Lanes{}
		for range 1000 { // whether it gives up before or after is random
			leave, _ := l.Enter(t.Context(), "a")
			ctx, cancel := context.WithCancel(t.Context())
			for _, ctx := range []context.Context{ctx, t.Context()} {
				go func() {
					if leave, err := l.Enter(ctx, "a"); err == nil {
						leave()
					}
				}()
				synctest.Wait()
			}
			cancel()
			leave()
			synctest.Wait()
			if len(l.m) != 0 {
				t.Fatal("the lane is never free again")
			}
		}
	})
}
