# Thaw's tasks; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/go/bin

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
FUZZ_SECONDS ?= 60
STRESS_SECONDS ?= 3600
FUZZ_TARGETS ?=
MUTATION ?= --jobs 2
PYTHON_SOURCES := hostlib vmm images shim cri cli e2e bench demo

.PHONY: help setup demo test lint unit e2e fuzz stress mutation bench bench-quick clean

help: ## List the tasks
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

setup: ## Install and build all that is missing (Debian packages, .venv, guest agent, guest image)
	@tools/setup.sh

demo: setup ## Show the main job on real components, from an image in a registry to a served page
	@$(PYTHON) -m demo.demo

test: lint unit e2e ## Everything: lint, types, import rules, unit and property tests, end-to-end tests

lint: setup ## Formatting, lint, types and import rules of Python and Rust
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	cd guest_agent && cargo fmt --check && cargo fmt --check --manifest-path fuzz/Cargo.toml && rustfmt --check --edition 2024 ../vmm/qemu/stand_in.rs && cargo clippy --quiet --release --locked --all-targets -- -D warnings

unit: setup ## Unit and property tests of Python and Rust
	cd guest_agent && cargo test --quiet --release --locked
	$(PYTEST)

e2e: setup ## End-to-end tests with a real registry, QEMU, kernel, nginx and crictl
	@tools/clients.sh
	$(PYTEST) --timeout 300 e2e/tests

fuzz: setup ## Fuzz the parsers, FUZZ_SECONDS (60) each, all or FUZZ_TARGETS; finds are kept in .build/fuzz
	@tools/fuzz.sh $(FUZZ_SECONDS) $(FUZZ_TARGETS)

stress: setup ## Eight clients that do what they like, STRESS_SECONDS (3600), under a model of what may be true
	$(PYTHON) -m e2e.stress $(STRESS_SECONDS)

mutation: setup ## Take each field of CRI that a test is named for out in turn: it must fail; MUTATION="--jobs 2 --resume"
	@tools/clients.sh
	$(PYTHON) -m e2e.mutation $(MUTATION)

bench: setup ## Measure Thaw beside containerd + runc (builds them once): bench/results/*.json and plots, in 15 minutes
	@tools/apt.sh wrk
	@tools/clients.sh
	@tools/peer.sh
	$(PYTHON) -m bench

bench-quick: setup ## The same with fewer rows and rounds, in 3 minutes; the peer only where it is built
	@tools/apt.sh wrk
	@tools/clients.sh
	$(PYTHON) -m bench --quick

clean: ## Remove all that was built (not what apt-get installed)
	rm -rf .build .venv guest_agent/target vmm/qemu/stand_in.so e2e/evidence bench/results
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
