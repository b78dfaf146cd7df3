# Everything here sets up what it needs: Python 3.11 or newer and make are enough.
PYTHON ?= python3
PORT ?= 8000
PAGE_PORT ?= 5173
# Two at a time, since much of the suite waits for other processes. A file's tests stay together, for they share
# servers; files go in the order of their names, in which the last ones are short.
TEST_IN_PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder
# Its rounds have a limit of real time, and a report that is shown: it has the machine to itself.
TEST_ALONE := tests/delivery/test_delivery.py
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help serve example test test-client test-client-with-node test-contract test-package test-pythons lint types fuzz soak bench bench-quick bench-peers lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

serve: $(VENV)/.serve ## serve on http://127.0.0.1:8000 (PORT=...), with an embedded Valkey unless REDIS_URL is set
	exec $(BIN)/python -m app serve --port $(PORT)

example: client/node_modules/.package-lock.json $(VENV)/.serve ## a board in React on http://127.0.0.1:5173 (PAGE_PORT=...), for two windows and more; needs Node 20.19
	exec node client/example/start.mjs --port $(PORT) --page-port $(PAGE_PORT)

test: $(VENV)/.dev lint types test-client ## every check that needs nothing more than this machine has
	$(BIN)/python -m pytest $(TEST_IN_PARALLEL) --ignore $(TEST_ALONE)
	$(BIN)/python -m pytest $(TEST_ALONE)

test-client: $(VENV)/.dev
	@if command -v node >/dev/null; then $(MAKE) --no-print-directory test-client-with-node; \
	  else echo "test-client: skipped, the browser's side needs node and npm"; fi

test-client-with-node: client/node_modules/.package-lock.json
	cd client && npm run --silent generate -- --check && npm run --silent check && npm test --silent && npm run --silent test:browser

test-contract: client/node_modules/.package-lock.json ## launchdarkly's sse-contract-tests against the browser's side (needs Go and its modules; half a minute)
	cd client && npm run --silent test:contract

test-package: $(VENV)/.dev client/node_modules/.package-lock.json ## the browser's side as npm would deliver it, in fresh applications (needs npm's registry)
	cd client && npm run --silent test:package

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	@if command -v node >/dev/null; then $(BIN)/pyright --pythonpath $(BIN)/python; else echo "types: skipped, pyright needs node"; fi

test-pythons: $(VENV)/.dev ## the suite and the delivery checker under every other Python from 3.11 on that is installed here: ROUNDS=100
	$(BIN)/python -m tests.pythons $(if $(ROUNDS),--rounds $(ROUNDS))

fuzz: $(VENV)/.dev ## 100,000 connections of HTTP/1.1 and 20,000 of HTTP/2 that nobody would make: HTTP1=, HTTP2=, SEED=
	$(BIN)/python -m tests.fuzz --http1 $(or $(HTTP1),100000) --http2 $(or $(HTTP2),20000) $(if $(SEED),--seed $(SEED))

soak: $(VENV)/.dev client/node_modules/.package-lock.json ## the delivery checker and the model of tabs for long, and a browser that sleeps for a minute: ROUNDS=2000
	$(BIN)/python -m tests.delivery --rounds $(or $(ROUNDS),2000)
	cd client && MODEL_RUNS=$$(( $(or $(ROUNDS),2000) * 20 )) npx vitest run --project model
	cd client && SLEEP_MS=60000 npx vitest run --project browser test/browser/outage.test.ts

bench: $(VENV)/.bench bench-peers ## Stalecast beside what else one could use (about an hour, best on an idle machine)
	$(BIN)/python -m bench all --plot

bench-quick: $(VENV)/.bench bench-peers ## every scenario and peer with small counts: no figures
	$(BIN)/python -m bench all --quick --plot $(if $(CI),--require-all)
	$(BIN)/python -m pytest tests/test_bench_*.py

bench-peers:
	@if command -v npm >/dev/null; then npm ci --silent --no-audit --no-fund --prefix bench/peers/better-sse; fi

lock: $(VENV)/.dev ## compile the requirements files anew from pyproject.toml
	for set in ":" "-embedded:--extra embedded" "-dev:--extra embedded --group dev" \
	  "-bench:--extra embedded --group dev --group bench"; do \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-annotate --custom-compile-command "make lock" $${set#*:} pyproject.toml -o requirements$${set%%:*}.txt || exit 1; \
	done
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --custom-compile-command "make lock" --group build -o requirements-build.txt

clean: ## remove what was set up
	rm -rf $(VENV) $(VENV)-* .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Stalecast needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: $(BIN)/python requirements-embedded.txt $(BIN)/stalecast
	$(PIP) install --require-hashes -r requirements-embedded.txt
	touch $@

# The package itself, so that there is the command `stalecast`, and `from app...` in any folder.
$(BIN)/stalecast: $(BIN)/python requirements-build.txt pyproject.toml
	$(PIP) install --require-hashes -r requirements-build.txt
	$(PIP) install --no-deps --no-build-isolation --no-index -e .
	touch $@

client/node_modules/.package-lock.json: client/package-lock.json
	@command -v node >/dev/null && command -v npm >/dev/null || { echo "This needs Node 20.19 or newer, with npm: https://nodejs.org" >&2; exit 1; }
	npm ci --silent --no-audit --no-fund --prefix client
	touch $@

$(VENV)/.dev: $(BIN)/python requirements-dev.txt $(BIN)/stalecast
	$(PIP) install --require-hashes -r requirements-dev.txt
	touch $@ $(VENV)/.serve

$(VENV)/.bench: $(BIN)/python requirements-bench.txt
	$(PIP) install --require-hashes -r requirements-bench.txt
	touch $@ $(VENV)/.dev $(VENV)/.serve
