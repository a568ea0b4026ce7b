# `make help` lists what there is. The same targets serve people and .ci/run.
#
# The repository is a workspace of several modules (go.work): the pattern `work` means all packages of all of them, and
# `./...` means nothing at the root.

.DEFAULT_GOAL := help
SHELL := bash

DATA_DIR ?= data
BINARIES := callrelay/cmd/callrelay \
	callrelay/services/ingress/cmd/ingress callrelay/services/router/cmd/router \
	callrelay/services/state/cmd/state callrelay/services/upstream/cmd/upstream \
	callrelay/sim/cmd/topsii-sim callrelay/sim/cmd/kommo-sim callrelay/bench/cmd/bench
GO_TOOLS := bin/tools/.installed
BUF := bin/tools/buf

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

.PHONY: run
run: install ## install what is missing, build, start the relay in one process with simulators of what is around it
	@echo "building (the first time this takes minutes)"
	@$(MAKE) -s build
	@bin/callrelay up --sim --data-dir $(DATA_DIR)

.PHONY: run-split
run-split: install ## the same as four processes that speak gRPC
	@echo "building (the first time this takes minutes)"
	@$(MAKE) -s build
	@bin/callrelay up --sim --split --data-dir $(DATA_DIR)

.PHONY: install
install: ## install what running needs and this machine lacks (redis-server, curl)
	@scripts/install.sh redis curl

# grpcnotrace leaves golang.org/x/net/trace out of grpc: its templates keep the linker from dropping methods that nobody calls, a
# quarter of each program.
.PHONY: build
build: ## build all programs into bin/
	go build -tags grpcnotrace -o bin/ $(BINARIES)

.PHONY: test
test: ## install what is missing, run every test of every module with the race detector
	@scripts/install.sh redis sentinel gcc
	go test -race $$(go list work | grep -v ^callrelay/test)
	go test -race -count=1 callrelay/test/... # never from the cache: they run programs and read files that Go does not know of

.PHONY: check
check: lint ## for the desk, under a minute: format, vet, staticcheck, every test that needs no Redis
	go test $$(go list work | grep -v -e ^callrelay/services/state -e ^callrelay/cmd/internal -e ^callrelay/test -e ^callrelay/bench)

.PHONY: lint
lint: $(GO_TOOLS) ## format, vet, staticcheck
	@unformatted=$$(gofmt -l $$(go list -m -f '{{.Dir}}')); [ -z "$$unformatted" ] || { echo "not formatted (gofmt -w):"; echo "$$unformatted"; exit 1; }
	go vet work
	bin/tools/staticcheck work

.PHONY: verify
verify: lint $(GO_TOOLS) $(BUF) ## what .ci/run checks after the tests: lint, each module alone, protos, generated code
	scripts/modules.sh
	scripts/proto.sh

.PHONY: generate
generate: $(GO_TOOLS) $(BUF) ## generate gen/ from proto/
	rm -rf gen/callrelay gen/openapi
	PATH="$(CURDIR)/bin/tools:$$PATH" buf generate

.PHONY: docs
docs: ## write docs/configuration.md and .env.example from the code
	go test callrelay/test/reference -update

.PHONY: bench
bench: install build ## compare with other relays on this machine, about 27 minutes (BENCH=-quick: 3 minutes)
	bin/bench -json bench.json $(BENCH)

.PHONY: tidy
tidy: ## tidy every module and align their versions
	set -e; for dir in $$(go list -m -f '{{.Dir}}'); do GOWORK=off go -C $$dir mod tidy; done
	go work sync
	set -e; for dir in $$(go list -m -f '{{.Dir}}'); do GOWORK=off go -C $$dir mod tidy; done

.PHONY: clean
clean: ## remove programs, tools and test results; never the data directory
	rm -rf bin tools/node_modules

# Tools are pinned in tools/ and installed again only when a lock file changes.
$(GO_TOOLS): tools/go.mod tools/go.sum
	GOBIN="$(CURDIR)/bin/tools" GOWORK=off go -C tools install tool
	@touch $@

$(BUF): tools/package.json tools/package-lock.json
	@scripts/install.sh npm
	npm --prefix tools ci --no-audit --no-fund
	@mkdir -p $(@D) && cp tools/node_modules/@bufbuild/buf-linux-*/bin/buf $@ && touch $@
