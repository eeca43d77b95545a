# Mailweir's two commands are `make demo` and `make test`; the environment lives in .venv.
# PYTHON: the interpreter to make it with (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := mailweir producer router workers reputation suppression journal simulator console

.PHONY: all demo test lint unit services lock docs client bench clean help

all: $(STAMP)  ## make the environment: .venv with the locked dependencies and the mailweir command

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Mailweir needs Python 3.11 or newer; give one with: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' \
	  || { echo "Python's venv is missing; on Debian: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)  ## the whole way in under three minutes, with one provider failing (KEEP=1 leaves it running)
	$(BIN)/mailweir demo $(if $(KEEP),--keep)

test: $(STAMP) services lint  ## lint, types, import contracts and every test; says what was skipped
	$(BIN)/pytest tests -n 2 --dist loadfile -q -m "not alone"
	$(BIN)/pytest tests/acceptance -q -m alone

lint: $(STAMP)  ## ruff, mypy --strict, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(STAMP)  ## the fast tests alone
	$(BIN)/pytest tests/unit -q

services:  ## install the real servers the suite starts privately (needs root; else says what is missing)
	@sh deploy/services.sh

lock: $(STAMP)  ## pin every dependency with hashes, without index addresses
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --generate-hashes \
	  --no-emit-index-url --no-header --python-version 3.11 --quiet --output-file requirements.lock

docs: $(STAMP)  ## generate the reference pages from the code
	$(BIN)/python -m console.docs

client: $(STAMP)  ## build the client wheel and submit a job with it from an empty environment
	$(BIN)/pytest -q tests/acceptance/test_the_client_wheel.py

bench: $(STAMP)  ## the throughput table of docs/performance.md
	$(BIN)/python -m benchmarks.throughput --messages 20000

clean:  ## remove the environment and what tools left behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
