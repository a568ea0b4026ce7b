// Command ingress runs the ingress service as a process of its own. Everything it can be told is in ingress.Config.
package main

import (
	"context"
	_ "time/tzdata" // TIMEZONE works on a machine without zone files

	"callrelay/platform/config"
	"callrelay/platform/rpc"
	"callrelay/platform/run"
	"callrelay/platform/telemetry"
	"callrelay/services/ingress"
)

func main() { run.Main(serve) }

func serve(ctx context.Context) error {
	cfg, err := config.Load[ingress.Config]()
	if err != nil {
		return err
	}
	tel, err := telemetry.Start(ctx, "callrelay-ingress")
	if err != nil {
		return err
	}
	defer tel.Shutdown(context.WithoutCancel(ctx))
	router, err := rpc.Dial(cfg.RouterAddr)
	if err != nil {
		return err
	}
	svc, err := ingress.New(cfg, tel, router)
	if err != nil {
		return err
	}
	return run.Serve(ctx, run.HostConfig{Name: "ingress", GRPCAddr: cfg.GRPCAddr, MetricsAddr: cfg.MetricsAddr,
		StopTimeout: cfg.StopTimeout(), Telemetry: tel}, svc)
}
