module callrelay/sim

go 1.26.0
