# One image per program:
#
#   docker build --build-arg SERVICE=ingress -t callrelay-ingress .
#
# SERVICE is ingress, router, state, upstream or topsii-sim; docker compose builds all of them. This file could not be
# tried where it was written, for want of a Docker daemon: only its go build line was, on a copy of the repository.

FROM golang:1.26-bookworm AS build
ARG SERVICE
WORKDIR /src
# The whole workspace, since go.work wants every module. The mounts keep modules and objects between the programs.
COPY . .
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    if [ "$SERVICE" = topsii-sim ]; then program=callrelay/sim/cmd/topsii-sim; \
    else program="callrelay/services/$SERVICE/cmd/$SERVICE"; fi && \
    CGO_ENABLED=0 go build -tags grpcnotrace -trimpath -buildvcs=false -o /program "$program" && mkdir /spool

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /program /program
# Where ingress spools: a volume mounted here belongs to the user below.
COPY --from=build --chown=65532:65532 /spool /spool
USER 65532:65532
ENTRYPOINT ["/program"]
