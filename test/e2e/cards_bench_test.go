package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"callrelay/sim/pbx"
)

// BenchmarkCards opens 5,000 pages and says what the process that serves them holds, then plays a call's ringing and hangup
// again and again and says how long a card takes from the event's request to its page. Run it with -benchtime 1x.
func BenchmarkCards(b *testing.B) {
	const watchers, users, calls = 5000, 500, 500
	for b.Loop() {
		dir := b.TempDir()
		build := exec.Command("go", "build", "-o", dir, "callrelay/cmd/callrelay", "callrelay/services/ingress/cmd/ingress",
			"callrelay/services/router/cmd/router", "callrelay/services/state/cmd/state", "callrelay/services/upstream/cmd/upstream")
		if out, err := build.CombinedOutput(); err != nil {
			b.Fatalf("%s%v", out, err)
		}
		var rows []string
		for i := range users {
			rows = append(rows, fmt.Sprintf(`{"id":"%d","name":"0003*%04d","type":"phone","user":"u%d","tokens":["%016x%016x"]}`, i+1, i+1000, i, uint64(i)*0x9e3779b97f4a7c15+0x123456789abcdef0, uint64(i+1)*0xbf58476d1ce4e5b9))
		}
		table := `{"integrations":[{"id":"acme","prefix":"0003","extension_len":4,"webhook":{"url":"http://127.0.0.1:1","secret":"` + crmSecret +
			`","allow_private":["127.0.0.0/8"]},"extensions":[` + strings.Join(rows, ",") + `]}]}`
		path := filepath.Join(dir, "pbx.json")
		if err := os.WriteFile(path, []byte(table), 0o600); err != nil {
			b.Fatal(err)
		}
		extensions, err := pbx.Extensions([]byte(table), "acme")
		if err != nil {
			b.Fatal(err)
		}
		was := bin
		bin = dir
		b.Cleanup(func() { bin = was })
		r := startWith(b, []string{"PBX_INTEGRATIONS=" + path, "CARDS_SECRET=" + cardsSecret, "INGRESS_MAX_CONNECTIONS=12000"}, "--split")
		before := r.rss("ingress")
		conns := make([]net.Conn, watchers)
		concurrently(watchers, 16, func(i int) {
			_, token := r.cardToken(crmSecret, fmt.Sprintf(`{"integration":"acme","user":"u%d"}`, i%users))
			conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
			if err != nil {
				b.Error(err)
				return
			}
			conns[i] = conn
			fmt.Fprintf(conn, "GET /v1/cards:watch?token=%s HTTP/1.1\r\nHost: relay\r\n\r\n", token)
			buf := make([]byte, 2048)
			for text := ""; !strings.Contains(text, "event: cards"); {
				n, err := conn.Read(buf)
				if err != nil {
					b.Errorf("watcher %d: %v %s", i, err, text)
					return
				}
				text += string(buf[:n])
			}
		})
		r.http.CloseIdleConnections()
		after := r.rss("ingress")
		b.ReportMetric(float64(after)/1024, "MB")
		b.ReportMetric(float64(after-before)/watchers, "KB/watcher")

		var took []time.Duration
		for i := range calls {
			reader := bufio.NewReader(conns[i])
			call, x := fmt.Sprintf("C%d", i), extensions[i%users]
			for _, kind := range []string{"dial-in", "hangup"} {
				began := time.Now()
				r.pbxEvent(event(x, call, "leg", kind, "CallStatus", "CANCEL"))
				state := map[string]string{"dial-in": "ringing", "hangup": "ended"}[kind]
				for {
					_ = conns[i].SetReadDeadline(time.Now().Add(10 * time.Second))
					line, err := reader.ReadString('\n')
					if err != nil {
						b.Fatal(err)
					}
					if strings.Contains(line, call) && strings.Contains(line, `"`+state+`"`) {
						break
					}
				}
				took = append(took, time.Since(began))
			}
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-p50")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
		b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "ms-max")
		b.ReportMetric(float64(r.rss("ingress"))/1024, "MB-after")
		for _, conn := range conns {
			_ = conn.Close()
		}
	}
}

var residentSize = regexp.MustCompile(`VmRSS:\s+(\d+) kB`)

// rss is what a child process of the relay holds, in KB.
func (r *relay) rss(name string) int {
	children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", r.cmd.Process.Pid))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, path := range children {
		list, _ := os.ReadFile(path)
		for _, pid := range strings.Fields(string(list)) {
			f, err := os.Open("/proc/" + pid + "/status")
			if err != nil {
				continue
			}
			status, _ := io.ReadAll(f)
			f.Close()
			if m := residentSize.FindSubmatch(status); m != nil && strings.HasPrefix(string(status), "Name:\t"+name+"\n") {
				kb, _ := strconv.Atoi(string(m[1]))
				return kb
			}
		}
	}
	r.t.Fatalf("there is no process %s", name)
	return 0
}
