// Command bench compares callrelay with a bare HTTP handler, a relay in memory, a relay on asynq and the least that a
// relay on Redis can do: all in turn, in several rounds, on this machine.
//
// It owns the flags and the order of the rounds, and answers for every process that it started: none is left when it ends.
// What is started and measured is in package contest. As `bench serve` it is one of the relays that callrelay is compared
// with.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"callrelay/bench/internal/baseline"
	"callrelay/bench/internal/contest"
	"callrelay/bench/internal/proc"
	"callrelay/bench/internal/report"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == "serve" {
		return serve(ctx, args[1:])
	}
	if len(args) > 0 && args[0] == guarded {
		return compare(ctx, args[1:], os.Stdout)
	}
	return guard(ctx, args)
}

// guarded is the first argument of a bench that is watched by guard.
const guarded = "guarded"

// guard runs the benchmark in a child and kills what is left when that has ended, however it ended.
func guard(ctx context.Context, args []string) error {
	if err := proc.Adopt(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, append([]string{guarded}, args...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return err
	}
	// It is told of a Ctrl-C by the terminal, of everything else by us; it takes both as one.
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })()
	err = cmd.Wait()
	return errors.Join(err, proc.KillDescendants())
}

// compare runs the contenders and prints the report.
func compare(ctx context.Context, args []string, out io.Writer) error {
	var set contest.Settings
	flags := flag.NewFlagSet("bench", flag.ExitOnError)
	only := flags.String("only", "", "run only contenders whose name matches this `regexp`")
	list := flags.Bool("list", false, "print the names of the contenders and end")
	rounds := flags.Int("rounds", 3, "how often everything is run, in turn")
	quick := flags.Bool("quick", false, "one round of two seconds each: does it work, not how fast")
	file := flags.String("json", "", "also write the report, with the figures of each round, to this `file`")
	flags.StringVar(&set.Bin, "bin", "bin", "`folder` with callrelay and its services (make build)")
	flags.StringVar(&set.Dir, "dir", os.TempDir(), "`folder` for Redis' data, on the disk that counts")
	flags.DurationVar(&set.WarmUp, "warmup", 2*time.Second, "load before each measurement")
	flags.DurationVar(&set.Duration, "duration", 8*time.Second, "length of each measurement")
	flags.DurationVar(&set.HeldFor, "held", 4*time.Second, "how long callrelay accepts while deliveries are held; 0: not at all")
	flags.IntVar(&set.Lanes, "connections", 64, "connections of the dialer")
	flags.IntVar(&set.Backlog, "backlog", 1000, "callbacks accepted and not yet delivered, at most, in the sustained rate")
	flags.IntVar(&set.Singles, "singles", 100, "callbacks on an idle relay")
	flags.Float64Var(&set.Rate, "rate", 0, "callbacks per second of the open loop; 0: a quarter of the sustained rate")
	flags.IntVar(&set.Stored, "stored", 0, "store so many calls in callrelay and measure it again")
	flags.DurationVar(&set.Soak, "soak", 0, "how long callrelay runs at the rate of the open loop while its memory and goroutines are watched; 0: not at all")
	flags.BoolVar(&set.Slow, "slow", false, "also a CRM that takes 200 ms for each delivery, at 1,000 callbacks/s")
	flags.StringVar(&set.Profile, "profile", "", "write CPU profiles of callrelay under sustained load to this `folder`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *quick {
		*rounds, set.WarmUp, set.Duration, set.HeldFor, set.Singles = 1, time.Second, 2*time.Second, min(set.HeldFor, time.Second), 20
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	contenders := contest.Contenders(match)
	if *list {
		for _, c := range contenders {
			fmt.Fprintln(out, c.Name)
		}
		return nil
	}
	if set.Self, err = os.Executable(); err != nil {
		return err
	}
	if set.Profile != "" {
		if err := os.MkdirAll(set.Profile, 0o755); err != nil {
			return err
		}
	}
	if err := proc.Adopt(); err != nil {
		return err
	}
	debug.SetGCPercent(400) // dialer and CRM shall cost little; the contenders have their own settings

	var runs []report.Run
	began := time.Now()
	for round := range *rounds {
		for _, c := range contenders {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, *rounds, c.Name)
			of, err := contest.Measure(ctx, set, c)
			if err != nil {
				return err
			}
			runs = append(runs, of...)
		}
	}
	r := report.New(runs)
	r.Machine = machine(set.Dir)
	r.Settings = map[string]string{"command": "bench " + strings.Join(args, " "), "rounds": fmt.Sprint(*rounds),
		"took": time.Since(began).Round(time.Second).String()}
	if *file != "" {
		text, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(*file, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	return r.Write(out)
}

// machine says where the figures are from.
func machine(dir string) map[string]string {
	out := map[string]string{"processors": fmt.Sprint(runtime.NumCPU()), "go": runtime.Version(), "date": time.Now().Format(time.DateOnly)}
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		_, after, _ := strings.Cut(string(info), "model name")
		model, _, _ := strings.Cut(after, "\n")
		out["model"] = strings.TrimSpace(strings.TrimLeft(model, "\t :"))
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		out["load average at the end"], _, _ = strings.Cut(string(load), " ")
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(cmp.Or(dir, "."), &fs); err == nil && fs.Type == 0x01021994 {
		out["disk"] = "NONE: " + dir + " is in memory, so appendfsync costs nothing (-dir takes another)"
	}
	return out
}

// serve is one of the relays that callrelay is compared with, as a process of its own.
func serve(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench serve", flag.ExitOnError)
	addr := flags.String("addr", "", "listen `address`")
	crm := flags.String("crm", "", "`URL` of TopS.II")
	redis := flags.String("redis", "", "unix `socket` of Redis")
	if err := flags.Parse(args); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", func(http.ResponseWriter, *http.Request) {})
	switch kind := flags.Arg(0); kind {
	case "bare":
		mux.Handle("/index.php", baseline.Bare())
	case "memory":
		mux.Handle("/index.php", baseline.NewMemory(baseline.NewCRM(*crm)))
	case "asynq":
		relay, err := baseline.NewAsynq(baseline.NewCRM(*crm), *redis)
		if err != nil {
			return err
		}
		defer relay.Close()
		mux.Handle("/index.php", relay)
	case "floor":
		relay, err := baseline.NewFloor(ctx, baseline.NewCRM(*crm), *redis)
		if err != nil {
			return err
		}
		defer relay.Close()
		mux.Handle("/index.php", relay)
	default:
		return fmt.Errorf("bare, memory, asynq or floor, not %q", kind)
	}
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: mux}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
