module callrelay/test

go 1.26.0

replace callrelay/gen => ../gen

replace callrelay/platform => ../platform

replace callrelay/callback => ../callback

replace callrelay/services/ingress => ../services/ingress

replace callrelay/services/router => ../services/router

replace callrelay/services/state => ../services/state

replace callrelay/services/upstream => ../services/upstream

replace callrelay/sim => ../sim

replace callrelay/cmd => ../cmd

require github.com/compose-spec/compose-go/v2 v2.16.2 // indirect
