# SPDX-License-Identifier: Apache-2.0
#
# Everything that people and CI run. `make` lists it.

# Versions, once: CI, the Vagrantfile and the documents ask `make -s print-X`.
GO_VERSION := 1.26
CLANG      ?= clang-19
STRIP      ?= llvm-strip-19
PROTOC     ?= protoc
PROTOC_VERSION := 3.21.12
VAGRANT_BOX := debian/bookworm64

GO        ?= go
# How tests are run; CI puts a runner here that also writes a report.
GO_TEST   ?= $(GO) test
# The race detector needs a C compiler; CI insists on it.
RACE      ?= $(if $(CI),-race,$(if $(shell command -v gcc clang $(CLANG) 2>/dev/null),-race))
FUZZTIME  ?= 10s
FUZZDIR   ?= .
PACKAGES  ?= ./...

TOOL := $(GO) tool -modfile=.ci/tools/go.mod
# Where linux/bpf.h finds asm/types.h: clang's bpf target has no architecture.
BPF_CFLAGS := -O2 -g -Wall -Werror -I/usr/include/$(shell uname -m)-linux-gnu
ifeq ($(RACE),-race)
test: export CGO_ENABLED = 1
endif

.DEFAULT_GOAL := help
.PHONY: help build test h2spec test-istiod conform nightly soak demo demo-shell bench bench-state fuzz generate check fmt vet lint arch fresh tidy clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## bin/ztunnel, static
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ztunnel ./cmd/ztunnel

test: ## every test that this user may run; as root also those that need namespaces and programs
	$(GO_TEST) $(RACE) -shuffle=on -timeout 15m $(PACKAGES)

# A module of its own, so that h2spec is none of ours.
h2spec: ## HTTP/2's conformance tests against the server's side of tunnels, both engines
	cd test/h2spec && $(GO) mod tidy -diff && $(GO) vet ./... && $(GO_TEST) -count=1 -timeout 5m $(PACKAGES)

# A module of its own, with some 140 others in it: the first build takes minutes.
test-istiod: ## the proxy under Istio's own control plane and node agent (root)
	cd test/istiod && $(GO) mod tidy -diff && $(GO) vet ./... && $(GO_TEST) -count=1 -timeout 15m $(PACKAGES)

# What takes longer than a change should wait for. docs/compat.md says when it ran last.
nightly: soak ## make soak, and variables ignored one by one under the tests of whole processes (root)
	ZTUNNEL_TESTS_NIGHTLY=1 $(GO_TEST) -count=1 -v -timeout 30m -run TestATestFailsForEachVariableThatIsIgnored ./test/variables

conform: build ## play test/conform's scenarios against BIN (bin/ztunnel), with the arguments ARGS (root)
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./test/conform/cmd/conform
	bin/conform -bin $(or $(BIN),bin/ztunnel) $(ARGS)

# Ten minutes and some; a shorter one: DURATION=1m. SEED= repeats one, roughly.
DURATION ?= 10m
soak: build ## everything at once for DURATION, a book of each connection, and what has leaked (root)
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./test/soak
	bin/soak -duration $(DURATION) $(if $(SEED),-seed $(SEED)) $(if $(TLS_ENGINE),-engine $(TLS_ENGINE)) $(ARGS)

demo: build ## two nodes and their pods in namespaces, traffic through both proxies, each claim checked (root)
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./test/demo
	bin/demo

demo-shell: build ## the same, left up, with a shell in a pod (root)
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./test/demo
	bin/demo -shell

# What is measured, and how long: BENCH="-rounds 1 -only DNS"; bin/bench -h.
bench: build ## what the proxy costs, in namespaces, beside plain TCP and with PEER=<binary> beside another ztunnel (root)
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./test/bench
	bin/bench -json bin/bench.json $(if $(PEER),-peer '$(PEER)') $(BENCH)

bench-state: ## time, memory and lookups of a mesh of 100,000 workloads; a table, and JSON in bin
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./test/benchstate
	bin/benchstate -json bin/bench-state.json

# Go's fuzzer sometimes fails because its time is up (golang/go#48591); what it
# really finds it writes to testdata, where a second run meets it at once.
fuzz: ## each fuzz target below FUZZDIR (.) for FUZZTIME (10s)
	@set -eu; grep -rl --include='*_test.go' '^func Fuzz' $(FUZZDIR) | sort | while read -r file; do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' $$file); do \
			echo "$$(dirname $$file) $$target"; \
			run="$(GO) test -run ^$$ -fuzz ^$$target\$$ -fuzztime $(FUZZTIME) ./$$(dirname $$file)"; \
			$$run </dev/null || { echo "once more: what was found is in testdata and fails again"; $$run </dev/null; }; \
		done; \
	done

generate: ## rebuild what clang and protoc write
	BPF2GO_CC=$(CLANG) BPF2GO_STRIP=$(STRIP) BPF2GO_CFLAGS="$(BPF_CFLAGS)" $(GO) generate ./...

check: fmt vet lint arch fresh tidy ## all that CI checks besides tests

fmt: ## fail if a file is not formatted
	@bad=$$(gofmt -l $$(git ls-files '*.go' | grep -v '\.pb\.go$$')); \
		[ -z "$$bad" ] || { echo "not formatted by gofmt:"; echo "$$bad"; exit 1; }
	@if command -v clang-format-19 >/dev/null; then clang-format-19 --dry-run --Werror $$(git ls-files 'bpf/*.c' 'bpf/*.h'); \
		elif [ -n "$(CI)" ]; then echo "clang-format-19 is missing"; exit 1; fi

vet: ## what go vet finds
	$(GO) vet ./...

lint: ## what the linters of .golangci.yaml find
	$(TOOL) golangci-lint run ./...

arch: ## the house rules, as tests
	$(GO) test -count=1 ./test/arch

fresh: ## fail if generated files are older than their sources (needs clang and protoc; CI insists)
	@if [ -n "$(CI)" ] || { command -v $(CLANG) && command -v $(PROTOC); } >/dev/null; then \
		$(MAKE) --no-print-directory generate && git diff --exit-code -- '*_bpfel.go' '*_bpfel.o' '*.pb.go'; \
	else echo "fresh: skipped, $(CLANG) or $(PROTOC) is missing"; fi

tidy: ## fail if go.mod does not fit the imports
	$(GO) mod tidy -diff

clean: ## remove what build made
	rm -rf bin

print-%:
	@echo '$($*)'
