# make up       a whole cloud with a demo server, in the foreground
# make test     every test that does not need hours
# make gate     format, lints, tests: what a change must pass, cheapest first
# See each target's line below. UP, SUITE and PROFILE take words: make up UP='--uplink eth0'

SHELL := /bin/bash
export PATH := $(PATH):/usr/sbin:/sbin
TARGET := $(or $(CARGO_TARGET_DIR),target)
# The folder of a profile's binaries; `dev` is built soonest and shares all with the tests.
PROFILE ?= dev
SHISA = $(TARGET)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/shisa
STATE ?= .shisa
# A test is ended by its own limits; nextest adds one over all and runs tests of different files at once.
TEST := $(if $(shell command -v cargo-nextest),cargo nextest run --no-fail-fast,cargo test --no-fail-fast)

# What must be there, each with the Debian package that brings it.
PROGRAMS := cc:gcc ld.lld:lld qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils nft:nftables ip:iproute2 \
  ssh:openssh-client ping:iputils-ping python3:python3 cpio:cpio zstd:zstd mke2fs:e2fsprogs unshare:util-linux
# What tests need beyond that, and what measuring a network does.
TEST_PROGRAMS := busybox:busybox iperf3:iperf3
BENCH_PROGRAMS := iperf3:iperf3 jq:jq sockperf:sockperf ethtool:ethtool

.PHONY: help deps deps-test deps-bench cargo build up down guest clients test acceptance fabric-test fabric-test-debian \
  fabric-test-broken planes-test planes-test-broken rollout-test-broken formats-test gate bench bench-store bench-nodes bench-network bench-fabric bench-fabric-node \
  conformance clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 26

# Installs the packages in the array `missing`, if any.
define install
[ $${#missing[@]} = 0 ] && exit 0; \
	[ "$$(id -u)" = 0 ] || { echo "make $@: missing packages, and only root installs them: $${missing[*]}" >&2; exit 1; }; \
	echo "installing $${missing[*]}"; export DEBIAN_FRONTEND=noninteractive; \
	apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null 2>&1 || \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null; }
endef

# The packages of the programs in WANTED that are not there.
define programs
missing=(); \
	for p in $$WANTED; do command -v "$${p%:*}" >/dev/null || missing+=("$${p#*:}"); done; \
	[ -e /usr/include/stdio.h ] || missing+=(libc6-dev); \
	python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv); \
	$(install)
endef

deps: cargo ## installs the Debian packages that are missing, and no others
	@WANTED='$(PROGRAMS)'; $(programs)

# The tests start servers of their own: what the packages would start is not wanted.
deps-test: deps ## what the tests need beyond that: the servers of the store's engines, and tools for packets
	@WANTED='$(TEST_PROGRAMS)'; $(programs)
	@missing=(); command -v pg_createcluster >/dev/null || missing+=(postgresql-common); $(install)
	@conf=/etc/postgresql-common/createcluster.conf; compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || \
	  sed -i 's/^#* *create_main_cluster *=.*/create_main_cluster = false/' $$conf
	@missing=(); compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql); \
	etcd=$$(command -v etcd); [ -n "$$etcd" ] || missing+=(etcd-server); \
	command -v etcdctl >/dev/null || missing+=(etcd-client); \
	($(install)) && { [ -n "$$etcd" ] || systemctl disable -q --now etcd 2>/dev/null || true; }

deps-bench: deps
	@WANTED='$(BENCH_PROGRAMS)'; $(programs)

cargo:
	@command -v cargo >/dev/null || { echo "make: there is no cargo: install Rust 1.95 or newer with rustup" >&2; exit 1; }

build: deps ## builds the binary
	cargo build --profile $(PROFILE) -p shisa

guest: deps ## builds the small guest image
	guest/build

up: build guest ## starts the cloud, makes the demo, waits until its server answers by SSH; Ctrl-C stops it
	@$(SHISA) up --state $(STATE) --image guest/out/guest.qcow2 --demo $(UP)

down: ## ends everything of the cloud, also after a crash; records stay (make down WIPE=--wipe: they do not)
	@$(SHISA) down --state $(STATE) $(WIPE)

clients: deps ## makes .venv with the openstack client
	conformance/clients

test: deps-test guest clients ## every test that does not need hours
	$(TEST) --workspace
	$(MAKE) acceptance

acceptance: deps guest clients ## a user's day with the openstack client on real guests (part of test)
	cargo test -p shisa --test client -- --ignored --nocapture

fabric-test: deps-test ## three hosts with real packets, the long form (a short one is part of test)
	cargo test -p shisa --test fabric --no-run
	cargo test -q -p shisa --test fabric -- --full

fabric-test-debian: deps-test ## the same in a guest with Debian's kernel: tracked bridges, flowtables
	guest/host/build
	shisa/tests/fabric/debian --full

# Each fault with a check that must find it.
BROKEN := break-snat:snat break-security-group:group-inward break-east-west:east-west

fabric-test-broken: deps-test ## that fabric-test finds what is broken on purpose
	@trap 'cargo build -q -p shisa' EXIT; \
	for fault in $(BROKEN); do \
	  run="cargo test -q -p shisa --test fabric --features $${fault%:*}"; \
	  $$run --no-run || exit 1; \
	  if said=$$($$run 2>&1); then echo "$${fault%:*}: nothing failed"; exit 1; fi; \
	  failed=$$(grep '^failed: ' <<<"$$said") && grep -qw -- "$${fault#*:}" <<<"$$failed" || \
	    { echo "$$said"; echo "$${fault%:*}: $${fault#*:} did not fail"; exit 1; }; \
	  echo "$${fault%:*}: $$failed"; \
	done

planes-test: deps-test ## two planes of different builds over each engine under load: switched, taken back, killed (PLANES='--engine sqlite': over one)
	@mkdir -p $(TARGET)/planes
	cargo build --release -p shisa --features next-format && cp $(TARGET)/release/shisa $(TARGET)/planes/other
	cargo test --release -p shisa --test planes --no-run
	SHISA_OTHER=$(abspath $(TARGET))/planes/other cargo test --release -q -p shisa --test planes -- --full $(PLANES)

planes-test-broken: deps-test ## that planes-test finds an owner that is not fenced, and requests that are done twice
	@trap 'cargo build -q -p shisa' EXIT; \
	for fault in break-fence break-replay; do \
	  run="cargo test -q -p shisa --test planes --features $$fault"; \
	  $$run --no-run || exit 1; \
	  if said=$$($$run 2>&1); then echo "$$fault: nothing failed"; exit 1; fi; \
	  failed=$$(grep '^failed: ' <<<"$$said") || { echo "$$said"; echo "$$fault: it did not end"; exit 1; }; \
	  echo "$$fault: $$failed"; \
	done

# Each broken candidate with the step of a rollout that must find it.
CANDIDATES := break-digest:digest break-answer:reads break-panic:reads break-change:changes break-slow:cost break-leak:cost \
  break-contract:conformance break-back:rehearsal break-after:bake break-nodes:local

rollout-test-broken: deps ## that a rollout finds candidates that are broken on purpose, before or after the switch
	@mkdir -p $(TARGET)/broken; \
	cargo build -q -p shisa --features break-candidate || exit 1; \
	for fault in $(CANDIDATES) any; do cp $(TARGET)/debug/shisa $(TARGET)/broken/$${fault%:*} || exit 1; done; \
	cargo test -q -p shisa --test rollout --no-run || exit 1; \
	for fault in $(CANDIDATES); do \
	  said=$$(SHISA_CANDIDATE=$(abspath $(TARGET))/broken/$${fault%:*} SHISA_EXPECT=$${fault#*:} \
	    cargo test -q -p shisa --test rollout -- --ignored --nocapture 2>&1) || { echo "$$said"; echo "$${fault%:*}: FAILED"; exit 1; }; \
	  echo "$${fault%:*}: $$(grep '^rollout 1 did not end' <<<"$$said")"; \
	done; \
	said=$$(SHISA_CANDIDATE=$(abspath $(TARGET))/broken/any SHISA_FAULT=break-nodes \
	  cargo test -q -p shisa --test join -- --ignored --nocapture 2>&1) || { echo "$$said"; echo "a node that hangs: FAILED"; exit 1; }; \
	echo "a node that hangs: $$(grep '^rollout 1 did not end' <<<"$$said")"

# The version before this one: the last tag, else what main was before its last merge.
LAST ?= $(shell git describe --tags --abbrev=0 2>/dev/null || git rev-parse --verify -q main^1 || git rev-parse HEAD^1)

# The last release is built in a target of its own: cargo takes packages of one name and version for the same.
formats-test: deps ## two versions over one store that take turns: this one with a later format, and the last release with this one
	@mkdir -p $(TARGET)/formats; tree=$(abspath $(TARGET))/formats/tree; \
	trap 'git worktree remove --force "$$tree" 2>/dev/null; cargo build -q -p shisa' EXIT; \
	cargo build -q -p shisa --features next-format && cp $(TARGET)/debug/shisa $(TARGET)/formats/next || exit 1; \
	git worktree remove --force "$$tree" 2>/dev/null; git worktree add -q --detach "$$tree" $(LAST) || exit 1; \
	built=$(abspath $(TARGET))/formats/last-target; (cd "$$tree" && CARGO_TARGET_DIR=$$built cargo build -q -p shisa) && \
	  cp $$built/debug/shisa $(TARGET)/formats/last || exit 1; \
	SHISA_NEXT=$(abspath $(TARGET))/formats/next SHISA_LAST=$(abspath $(TARGET))/formats/last \
	  cargo test -p shisa --test formats -- --ignored --nocapture --test-threads 1

gate: deps ## format, lints, tests: cheapest first
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(MAKE) test

bench: deps ## the figures beside their budgets
	cargo build --release -p shisa && cargo bench -p bench --bench store --bench api

ENGINES ?= sqlite postgres etcd
bench-store: deps deps-test ## the store on each engine beside its budgets: make bench-store ENGINES='sqlite etcd'
	cargo bench -p bench --bench store -- $(ENGINES)

bench-nodes: deps ## thousands of simulated nodes on one plane beside the budgets: make bench-nodes NODES=10000
	cargo build --release -p shisa && NODES='$(or $(NODES),10000)' cargo bench -p bench --bench nodes

# PEER is a directory with openstack-up.sh and openstack-down.sh, which start and end a real OpenStack on loopback.
bench-network: deps ## Networking beside a real neutron-server: make bench-network PEER=DIR (without: alone)
	cargo build --release -p shisa && PEER='$(if $(PEER),$(abspath $(PEER)))' cargo bench -p bench --bench network

# The same directory, with dataplane-limits.sh. Samples stay in the target's directory.
bench-fabric: deps-bench ## the fabric beside other data planes, here and by instructions in a guest: make bench-fabric PEER=DIR
	cargo build --release -p fabric --example host
	bench/fabric native $(TARGET)/release/examples/host $(TARGET)/bench-fabric $(PEER)
	$(if $(PEER),bench/fabric counted $(TARGET)/release/examples/host $(TARGET)/bench-fabric $(PEER))

bench-fabric-node: deps ## what a change of a node's network costs, with the budgets of issue 3; needs root
	cargo test --release -p fabric --test host -- --ignored --nocapture --test-threads 1

conformance: build ## OpenStack's own tests against the cloud that is up: make conformance SUITE=identity
	conformance/run $(or $(SUITE),identity)

clean: ## removes what was built; the cloud's state stays
	cargo clean
	rm -rf guest/out guest/cache .venv
