module callrelay/callback

go 1.26.0

