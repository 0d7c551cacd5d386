# The one list of commands. CI calls the same ones.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := run
.PHONY: run test soak lint fmt bench bench-full deb clean toolchain lint-tools test-packages bench-packages
# Two recipes may call apt-get: one at a time, also under make -j.
.NOTPARALLEL:

export CARGO_TARGET_DIR := $(CURDIR)/build/cargo
# What is measured and tested starts as what is installed does: from bytecode.
unexport PYTHONDONTWRITEBYTECODE
PYTHON := .venv/bin/python
CRATE := blockd/fastpath
RUST := $(shell find $(CRATE) -name '*.rs' -not -path '*/target/*') $(CRATE)/Cargo.toml $(CRATE)/Cargo.lock
CONFIG ?= config/blockd.yaml

run: build/run.stamp  ## build what changed, then serve the sample config until Ctrl-C
	@exec .venv/bin/blockd serve --config $(CONFIG)

test: build/dev.stamp test-packages  ## everything that must hold, in at most 12 minutes
	cargo test --quiet --locked --manifest-path $(CRATE)/Cargo.toml --no-default-features
	$(PYTHON) -m pytest -m "not soak" -q -n 4 --dist loadfile

soak: build/dev.stamp test-packages  ## what takes longer
	$(PYTHON) -m pytest -m soak -q --timeout 3600

lint: build/dev.stamp lint-tools  ## style, types, arrows between rooms
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports
	cargo fmt --check --manifest-path $(CRATE)/Cargo.toml
	cargo clippy --quiet --locked --manifest-path $(CRATE)/Cargo.toml --all-targets -- -D warnings
	cargo fmt --check --manifest-path benchmarks/load/Cargo.toml
	cargo clippy --quiet --locked --manifest-path benchmarks/load/Cargo.toml --all-targets -- -D warnings

fmt: build/dev.stamp lint-tools  ## put the code in order
	$(PYTHON) -m ruff check --fix-only .
	$(PYTHON) -m ruff format .
	cargo fmt --manifest-path $(CRATE)/Cargo.toml
	cargo fmt --manifest-path benchmarks/load/Cargo.toml

bench: build/dev.stamp bench-packages  ## structures alone, then peak and a tenth of it beside the rivals: 10 minutes
	cargo bench --quiet --locked --manifest-path benchmarks/load/Cargo.toml --bench structures -- --quick --quiet
	$(PYTHON) -m benchmarks.full --short

bench-full: build/dev.stamp bench-packages  ## every goal beside what is measured: about half an hour
	$(PYTHON) -m benchmarks.full
	$(PYTHON) -m benchmarks.growth

deb: build/dev.stamp  ## a Debian 12 package, in build/
	systemd/debian/build

clean:  ## forget what was built; the state directory stays
	rm -rf build .venv $(CRATE)/_native*.so

# Installs Debian packages, or stops: in a condition of the shell, a step that fails ends nothing by itself. dpkg's lock is
# waited for; an archive that is away is an error here, and to apt-get update only a warning.
APT := apt-get -q -o DPkg::Lock::Timeout=120 -o APT::Update::Error-Mode=any
define apt_install
{ $(APT) update && DEBIAN_FRONTEND=noninteractive $(APT) install -y --no-remove --no-install-recommends $(1); } || \
	  { echo "apt-get could not install $(1): its message is above" >&2; exit 1; }
endef

# A root that has no Rust gets Debian's newest; anybody else is told what to do. Nothing is ever removed.
toolchain:
	@wanted=$$(sed -n 's/^rust-version = "\(.*\)"/\1/p' $(CRATE)/Cargo.toml); \
	if ! command -v cargo >/dev/null; then \
	  if [ "$$(id -u)" = 0 ]; then $(call apt_install,cargo-web rustc-web); \
	  else echo "blockd needs Rust $$wanted or newer: sudo apt-get install cargo-web rustc-web" >&2; exit 1; fi; fi; \
	have=$$(cargo --version | cut -d' ' -f2); \
	if [ "$$(printf '%s\n' "$$wanted" "$$have" | sort -V | head -n1)" != "$$wanted" ]; then \
	  echo "cargo $$have is older than $$wanted: install Debian's cargo-web and rustc-web, or rustup's, in its place" >&2; exit 1; fi

.venv/bin/python:
	@if ! python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  if [ "$$(id -u)" = 0 ]; then $(call apt_install,python3-venv gcc libc6-dev); \
	  else echo "blockd needs Python 3.11 with venv: sudo apt-get install python3-venv" >&2; exit 1; fi; fi
	python3 -m venv .venv || { rm -rf .venv; exit 1; }

build/run.stamp: $(RUST) pyproject.toml
	@$(MAKE) --no-print-directory toolchain .venv/bin/python
	@echo "building blockd: a few minutes the first time"
	.venv/bin/pip install --quiet --disable-pip-version-check -e .
	@mkdir -p build && touch $@

build/dev.stamp: $(RUST) pyproject.toml
	@$(MAKE) --no-print-directory toolchain .venv/bin/python
	@echo "building blockd: a few minutes the first time"
	.venv/bin/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@mkdir -p build && touch build/run.stamp $@

lint-tools:
	@if ! { cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1; then \
	  if [ "$$(id -u)" = 0 ] && dpkg -s cargo-web >/dev/null 2>&1; then \
	    $(call apt_install,rustfmt-web rust-web-clippy); \
	  else echo "make lint needs rustfmt and clippy: sudo apt-get install rustfmt-web rust-web-clippy" >&2; exit 1; fi; fi

# The real servers that tests talk to. They are run from temporary directories, never as services: policy-rc.d keeps
# their packages from starting them, and what was installed here is disabled for the next boot.
BENCH_PACKAGES := knot-resolver
TEST_PACKAGES := bind9 bind9-dnsutils bird2 curl dnsdist dnsmasq-base dnsperf init-system-helpers iproute2 isc-dhcp-client kea-dhcp4-server knot-dnsutils nftables nsd pdns-recursor postgresql procps prometheus python3 systemd unbound
# Plots are drawn by the benchmarks alone.
WANTED_PACKAGES = $(TEST_PACKAGES)
bench-packages: WANTED_PACKAGES = $(TEST_PACKAGES) $(BENCH_PACKAGES)
bench-packages: test-packages
	.venv/bin/pip install --quiet --disable-pip-version-check -e '.[bench]'

test-packages:
	@missing=$$(for p in $(WANTED_PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ]; then \
	    policy=/usr/sbin/policy-rc.d; \
	    if [ ! -e $$policy ]; then trap "rm -f $$policy" EXIT; printf '#!/bin/sh\nexit 101\n' >$$policy; chmod 755 $$policy; fi; \
	    $(call apt_install,$$missing); \
	    for p in $$missing; do systemctl --quiet disable $$p.service 2>/dev/null || true; done; \
	  else echo "the tests need: sudo apt-get install" $$missing >&2; exit 1; fi; fi
