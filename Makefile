# Everything runs in .venv, which holds exactly what requirements.lock says; nothing is installed outside of this folder.

PYTHON ?= python3
UV_VERSION := 0.13.9

UV := .uv/bin/uv
UV_INSTALLED := .uv/$(UV_VERSION)
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo check test chaos bench up down lock

help:
	@echo "make demo    the whole way once: servers, workers, 30 articles, three answers"
	@echo "make up      start Kafka, OpenSearch, Milvus and the workers on this machine"
	@echo "make down    stop them; the data stays"
	@echo "make check   lint, types, import rules and unit tests"
	@echo "make test    every test, those against real servers included"
	@echo "make chaos   kill, stop and freeze everything while 2,000 documents flow (SEED=7 gives run 7 again)"
	@echo "make bench   what the pipeline costs, next to the bare encoder, a plain loop, other pipelines (QUICK=1: six of the ten, 5 minutes)"
	@echo "make setup   the environment in .venv, from requirements.lock"
	@echo "make lock    resolve requirements.lock again from pyproject.toml"
	@echo
	@echo "PYTHON=python3.12 make ... takes another Python (3.11 or later)."

setup: $(INSTALLED)

demo:
	@started=$$(date +%s); \
	$(MAKE) --no-print-directory setup && \
	$(BIN)/headrace demo --setup-seconds $$(( $$(date +%s) - started ))

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/unit tests/client/unit

test: setup
	$(BIN)/pytest

chaos: setup
	HEADRACE_CHAOS_FORM=long HEADRACE_CHAOS_SEED=$(SEED) $(BIN)/pytest -s tests/chaos/test_chaos.py tests/chaos/test_milvus_recovery.py

bench: setup
	$(BIN)/headrace up --servers-only
	$(BIN)/python -m bench $(if $(QUICK),--quick) $(if $(KEEP),--keep)

up: setup
	$(BIN)/headrace up

down:
	@if [ -x $(BIN)/headrace ]; then $(BIN)/headrace down; else echo "nothing was set up here, so nothing runs"; fi

lock: $(UV_INSTALLED)
	$(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --all-extras \
		-o requirements.lock pyproject.toml
	for peer in llama_index haystack quix_streams; do \
		$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
			-o bench/peers/$$peer.lock bench/peers/$$peer.in || exit 1; \
	done

# Exactly the lock, checked by its hashes; then the project and its client, built without asking an index for anything.
$(INSTALLED): requirements.lock pyproject.toml client/pyproject.toml | $(UV_INSTALLED)
	@[ -x $(BIN)/python ] || $(UV) venv --quiet --python $(PYTHON) .venv
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e . -e client
	@touch $@

# The name carries the version: another one is installed anew.
$(UV_INSTALLED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "headrace needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo not there);" \
			"try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv .uv || { echo "install the venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@
