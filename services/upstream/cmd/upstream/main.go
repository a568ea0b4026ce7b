// Command upstream runs the upstream service as a process of its own. Everything it can be told is in upstream.Config.
package main

import (
	"context"
	"time"

	"callrelay/platform/config"
	"callrelay/platform/rpc"
	"callrelay/platform/run"
	"callrelay/platform/telemetry"
	"callrelay/services/upstream"
)

func main() { run.Main(serve) }

func serve(ctx context.Context) error {
	cfg, err := config.Load[upstream.Config]()
	if err != nil {
		return err
	}
	tel, err := telemetry.Start(ctx, "callrelay-upstream")
	if err != nil {
		return err
	}
	defer tel.Shutdown(context.WithoutCancel(ctx))
	state, err := rpc.Dial(cfg.StateAddr)
	if err != nil {
		return err
	}
	svc, err := upstream.New(cfg, tel, state)
	if err != nil {
		return err
	}
	return run.Serve(ctx, run.HostConfig{Name: "upstream", GRPCAddr: cfg.GRPCAddr, MetricsAddr: cfg.MetricsAddr,
		StopTimeout: cfg.StopTimeout + time.Second, Telemetry: tel}, svc)
}
