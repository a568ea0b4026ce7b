module callrelay/platform

go 1.26.0

replace callrelay/gen => ../gen
