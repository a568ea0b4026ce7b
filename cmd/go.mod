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
