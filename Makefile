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
.PHONY: help build zagent dist dist-check image test test-upgrade test-deploy h2spec test-istiod conform nightly soak demo demo-shell bench bench-state fuzz generate check fmt vet lint arch fresh tidy clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## bin/ztunnel, static
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ztunnel ./cmd/ztunnel

# Apart from build, since it brings Kubernetes' client along: the first time takes minutes.
zagent: ## bin/zagent, the node agent for nodes without istio-cni, static
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/zagent ./cmd/zagent

# What a release consists of: each command for each architecture, with Go's
# own cryptography and with the module that has a FIPS 140-3 certificate, a bill of
# materials for each, and the sums of all. The version is git's: the tag, or
# one made of the commit.
DIST        ?= bin/dist
DIST_ARCHES ?= amd64 arm64
dist: ## static binaries for amd64 and arm64, with and without the FIPS module, SBOMs, sums; in bin/dist
	@[ -d .git ] || { echo "dist: not a git clone (a worktree does not do either): go build could not tell the version"; exit 1; }
	@rm -rf $(DIST) && mkdir -p $(DIST)
	@set -eu; for command in $(notdir $(wildcard cmd/*)); do for arch in $(DIST_ARCHES); do for fips in off v1.0.0; do \
		file=$(DIST)/$$command-linux-$$arch; [ $$fips = off ] || file=$$file-fips; echo "$$file"; \
		GOFLAGS= CGO_ENABLED=0 GOOS=linux GOARCH=$$arch GOAMD64=v1 GOARM64=v8.0 GOFIPS140=$$fips \
			$(GO) build -buildvcs=true -trimpath -ldflags='-s -w' -o $$file ./cmd/$$command; \
	done; done; done
	@$(GO) -C .ci/sbom run . $(addprefix $(abspath $(DIST))/,$(foreach c,$(notdir $(wildcard cmd/*)),$(foreach a,$(DIST_ARCHES),$c-linux-$a $c-linux-$a-fips)))
	@cd $(DIST) && sha256sum -- * >SHA256SUMS && cat SHA256SUMS

# The second time in another directory, with a cache of its own: everything is
# compiled again.
dist-check: dist ## make dist once more elsewhere: the same bytes; nothing is linked at run time
	@set -eu; for file in $$(cd $(DIST) && ls | grep -v -e '\.json$$' -e SUMS); do \
		! readelf -lW $(DIST)/$$file | grep -q INTERP || { echo "$$file is not static"; exit 1; }; done
	@set -eu; other=$$(mktemp -d); trap 'rm -rf "$$other"' EXIT; \
		git clone -q --no-hardlinks . "$$other/quite/another/path"; \
		GOCACHE=$$other/cache $(MAKE) --no-print-directory -C "$$other/quite/another/path" dist DIST=bin/dist DIST_ARCHES='$(DIST_ARCHES)' >/dev/null; \
		diff $(DIST)/SHA256SUMS "$$other/quite/another/path/bin/dist/SHA256SUMS"
	@echo "dist-check: the same bytes twice"

# Nothing but the binary is in it, so nothing is fetched. BUILDAH's machine needs
# no daemon; with docker, see deploy/README.md.
IMAGE      ?= ztunnel:dev
IMAGE_ARCH ?= $(shell $(GO) env GOHOSTARCH)
VARIANT    ?=
BUILDAH    ?= buildah
image: ## the container image IMAGE (ztunnel:dev) of make dist's binary; VARIANT=-fips for that one (buildah)
	@[ -e $(DIST)/ztunnel-linux-$(IMAGE_ARCH)$(VARIANT) ] || $(MAKE) --no-print-directory dist DIST_ARCHES=$(IMAGE_ARCH)
	$(BUILDAH) build --format oci --platform linux/$(IMAGE_ARCH) --timestamp $$(git log -1 --format=%ct) \
		--label org.opencontainers.image.revision=$$(git rev-parse HEAD) \
		--build-arg TARGETARCH=$(IMAGE_ARCH) --build-arg VARIANT=$(VARIANT) -f deploy/Dockerfile -t $(IMAGE) .

test: ## every test that this user may run; as root also those that need namespaces and programs
	$(GO_TEST) $(RACE) -shuffle=on -timeout 15m $(PACKAGES)

# A module of its own, so that h2spec is none of ours.
h2spec: ## HTTP/2's conformance tests against the server's side of tunnels, both engines
	cd test/h2spec && $(GO) mod tidy -diff && $(GO) vet ./... && $(GO_TEST) -count=1 -timeout 5m $(PACKAGES)

# A module of its own, with some 140 others in it: the first build takes minutes.
test-istiod: ## the proxy under Istio's own control plane and node agent (root)
	cd test/istiod && $(GO) mod tidy -diff && $(GO) vet ./... && $(GO_TEST) -count=1 -timeout 15m $(PACKAGES)

# A module of its own: Kubernetes' types and kustomize are none of ours.
test-deploy: ## deploy/: manifests as Kubernetes reads them, the image under runc with the least rights (root, buildah, runc)
	cd .ci/sbom && $(GO) mod tidy -diff && $(GO) vet ./... && $(GO) test -count=1 ./...
	cd test/deploy && $(GO) mod tidy -diff && $(GO) vet ./... && $(GO_TEST) -count=1 -timeout 10m $(PACKAGES)

# A short form is in make test.
test-upgrade: ## both nodes' proxies replaced 20 times under everything, and how long 1, 1,000 and 10,000 connections stand still (root)
	ZTUNNEL_TESTS_UPGRADE=long $(GO_TEST) -count=1 -v -timeout 30m ./test/upgrade

# What takes longer than a change should wait for. docs/compat.md says when it ran last.
nightly: soak test-upgrade dist-check ## make soak, test-upgrade and dist-check, and variables ignored one by one under the tests of whole processes (root)
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
