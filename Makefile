# Two commands for a newcomer: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.DEFAULT_GOAL := help

# With this variable every child process of a test would compile onebeat anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-all lint format soak bench databases clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1 — /'

PYTHON_IS_NEW = @$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "onebeat needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }

.venv/bin/python:
	$(PYTHON_IS_NEW)
	$(PYTHON) -m venv .venv

.venv/.dev: pyproject.toml | .venv/bin/python
	$(PIP) -e '.[dev]'
	@touch $@

.venv/.demo: pyproject.toml | .venv/bin/python
	$(PIP) -e . uvicorn aiosmtpd
	@touch $@

demo: .venv/.demo  ## the example shop on SQLite with four uvicorn workers
	@$(BIN)/python -m examples.shop

test: .venv/.dev  ## whether a change is safe, on SQLite and on the servers of make databases
	$(BIN)/python -m pytest -n 4 --dist worksteal < /dev/null

test-all: .venv/.dev  ## the rest: campaigns with killed processes, long fuzzers, matrices
	$(BIN)/python -m pytest -m "campaign and not alone and not soak" -n 2 --dist worksteal < /dev/null
	$(BIN)/python -m pytest -m "alone and not soak" < /dev/null

lint: .venv/.dev  ## ruff and mypy, strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.dev  ## let ruff rewrite the layout
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

soak: .venv/.dev  ## hours: large campaigns, other versions of Python, half an hour of load on each database
	$(BIN)/python -m pytest -m soak
	@mkdir -p .run
	$(BIN)/python -m bench.soak --chart .run/soak.svg

bench: .venv/.dev  ## measure, beside the raw limits, in one run
	$(BIN)/python -m bench

databases:  ## start a PostgreSQL, MariaDB and Redis of this clone's own, in .run
	$(PYTHON_IS_NEW)
	@$(PYTHON) scripts/databases.py start

clean:  ## stop the databases and remove what the other targets made
	@[ ! -d .run/databases ] || $(PYTHON) scripts/databases.py remove
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .run dist build
