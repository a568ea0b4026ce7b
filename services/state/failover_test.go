package state

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"callrelay/platform/redistest"
)

// TestFailover lets Sentinel replace the master under load. With STATE_REPLICAS_ACK nothing that was acknowledged is lost,
// no commit and no result, even where the replicas had heard nothing of the master's last second; and state follows by
// itself. Rule 14: it keeps its time. (With STATE_REPLICAS_ACK=0 the last one loses acknowledged commits: docs/durability.md.)
func TestFailover(t *testing.T) {
	ctx := context.Background()
	for _, fault := range []struct {
		name       string
		harm, mend func(t *testing.T, master *redistest.Server)
	}{
		{"the master stops and comes back as one", func(_ *testing.T, master *redistest.Server) { master.Stop() },
			func(_ *testing.T, master *redistest.Server) { master.Continue() }},
		{"the master is cut off from its replicas, then killed", func(t *testing.T, master *redistest.Server) {
			c := master.Client(t)
			if err := c.ConfigSet(ctx, "requirepass", "nobody knows it").Err(); err != nil { // who is connected stays
				t.Fatal(err)
			}
			if err := c.ClientKillByFilter(ctx, "TYPE", "replica").Err(); err != nil {
				t.Fatal(err)
			}
			wait(t, time.Second)
			master.Kill()
		}, func(t *testing.T, master *redistest.Server) { master.Up(t) }},
	} {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			master := redistest.Start(t)
			replicas := []*redistest.Server{master.StartReplica(t), master.StartReplica(t)}
			url := master.StartSentinels(t, len(replicas), time.Second)
			p := startState(t, url, "STATE_REPLICAS_ACK=1")
			n := startLoad(t, p)
			n.progress(t, 100)
			before := len(p.log())
			fault.harm(t, master)
			redistest.Poll(t, 40*time.Second, "a replica becomes the master", func() bool {
				for _, r := range replicas {
					if strings.Contains(r.Client(t).Info(ctx, "replication").Val(), "role:master") {
						return true
					}
				}
				return false
			})
			n.progress(t, 100)
			fault.mend(t, master)
			c := master.Client(t)
			redistest.Poll(t, 40*time.Second, "the old master follows the new one", func() bool {
				return strings.Contains(c.Info(ctx, "replication").Val(), "master_link_status:up")
			})
			n.progress(t, 100)
			if lines := p.log()[before:]; len(lines) > 2*maxLines {
				t.Errorf("%d lines in the log:\n%s", len(lines), strings.Join(lines, "\n"))
			}
			n.settled(t)
		})
	}
}

// Two state processes while Redis fails over and one of them is killed in the middle of it.
func TestTwoStatesAndFailover(t *testing.T) {
	t.Parallel()
	master := redistest.Start(t)
	master.StartReplica(t)
	master.StartReplica(t)
	url := master.StartSentinels(t, 2, time.Second)
	a, b := startState(t, url, "STATE_REPLICAS_ACK=1"), startState(t, url, "STATE_REPLICAS_ACK=1")
	n := startLoad(t, a, b)
	n.progress(t, 100)
	master.Kill()
	a.signal(syscall.SIGKILL)
	<-a.gone
	n.progress(t, 100)
	a.up(t)
	a.ready(t)
	n.progress(t, 100)
	n.settled(t)
}
