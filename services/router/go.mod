module callrelay/services/router

go 1.26.0

replace callrelay/gen => ../../gen
replace callrelay/platform => ../../platform
replace callrelay/callback => ../../callback
