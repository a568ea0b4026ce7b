// Command state runs the state service as a process of its own. Everything it can be told is in state.Config.
package main

import (
	"context"
	"time"

	"callrelay/platform/config"
	"callrelay/platform/run"
	"callrelay/platform/telemetry"
	"callrelay/services/state"
)

func main() { run.Main(serve) }

func serve(ctx context.Context) error {
	cfg, err := config.Load[state.Config]()
	if err != nil {
		return err
	}
	tel, err := telemetry.Start(ctx, "callrelay-state")
	if err != nil {
		return err
	}
	defer tel.Shutdown(context.WithoutCancel(ctx))
	svc, err := state.New(cfg, tel)
	if err != nil {
		return err
	}
	return run.Serve(ctx, run.HostConfig{Name: "state", GRPCAddr: cfg.GRPCAddr, MetricsAddr: cfg.MetricsAddr,
		StopTimeout: 4 * time.Second, Telemetry: tel}, svc)
}
