// Command router runs the router service as a process of its own. Everything it can be told is in router.Config.
package main

import (
	"context"
	_ "time/tzdata" // TIMEZONE works on a machine without zone files

	"callrelay/platform/config"
	"callrelay/platform/rpc"
	"callrelay/platform/run"
	"callrelay/platform/telemetry"
	"callrelay/services/router"
)

func main() { run.Main(serve) }

func serve(ctx context.Context) error {
	cfg, err := config.Load[router.Config]()
	if err != nil {
		return err
	}
	tel, err := telemetry.Start(ctx, "callrelay-router")
	if err != nil {
		return err
	}
	defer tel.Shutdown(context.WithoutCancel(ctx))
	state, err := rpc.Dial(cfg.StateAddr)
	if err != nil {
		return err
	}
	svc, err := router.New(cfg, tel, state)
	if err != nil {
		return err
	}
	return run.Serve(ctx, run.HostConfig{Name: "router", GRPCAddr: cfg.GRPCAddr, MetricsAddr: cfg.MetricsAddr,
		StopTimeout: router.StopTimeout, Telemetry: tel}, svc)
}
