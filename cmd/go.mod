module callrelay/cmd

go 1.26.0

replace callrelay/gen => ../gen

replace callrelay/platform => ../platform

replace callrelay/callback => ../callback

replace callrelay/services/ingress => ../services/ingress

replace callrelay/services/router => ../services/router

replace callrelay/services/state => ../services/state

replace callrelay/services/upstream => ../services/upstream

replace callrelay/sim => ../sim

require (
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/redis/go-redis/v9 v9.23.0 // indirect
	github.com/spf13/cobra v1.10.2 // indirect
	github.com/spf13/pflag v1.0.9 // indirect
	go.uber.org/atomic v1.12.0 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/sys v0.48.0 // indirect
	golang.org/x/text v0.42.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	google.golang.org/grpc v1.85.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)
