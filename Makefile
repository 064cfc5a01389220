# Every target makes what it needs first: a fresh clone wants only Python 3.11 (or newer), make and gcc.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
DEBIAN_POSTGRES ?= /usr/lib/postgresql/15/bin
PYTHON_VERSIONS ?= 3.11 3.12 3.13
# Most tests wait for something: two at a time, each half with a server of its own.
PYTEST_ARGS ?= -n 3 --dist worksteal
# tests/support/modes.py says what they are.
MODES := suspending twice unparked unprepared pgbouncer encrypted

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint type ci build migrate bench bench-long bench-quick bench-document fan-out test-pg15 explore test-versions test-modes $(MODES:%=test-%) mutations chaos chaos-short bank model fuzz clean

help: ## Show what can be made
	@grep -hE '^[a-z][a-z0-9%-]*:.*## ' $(MAKEFILE_LIST) | sed -e 's/^example-%/example-NAME/' \
		| awk -F ':.*## ' '{ printf "  make %-15s %s\n", $$1, $$2 }'

demo: $(VENV)/installed-demo ## Kill a worker in the middle of an execution and watch another finish it
	@$(BIN)/python -m examples.demo

test: $(VENV)/installed-dev ## Run the whole test suite on a PostgreSQL of its own
	$(BIN)/pytest $(PYTEST_ARGS)

lint: $(VENV)/installed-dev ## Check style, format and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: $(VENV)/installed-dev ## Check types: mypy and pyright, both strict, and the public surface
	$(BIN)/mypy
	$(BIN)/mypy $(wildcard tests/typing/*.py)
	$(BIN)/pyright
	PATH="$(CURDIR)/$(BIN):$$PATH" pyright --verifytypes zart --ignoreexternal

ci: lint type test chaos-short ## Everything that must pass before a change is kept

build: $(VENV)/installed-dev ## Build the wheel and the source archive into dist/
	$(BIN)/python -m build --no-isolation

example-%: $(VENV)/installed-demo ## Run one of examples/, such as example-onboarding
	@$(BIN)/python -m examples.$*

# These want a web framework.
example-django_shop example-fastapi_orders example-flask_holidays: $(VENV)/installed-dev

migrate: $(VENV)/installed-demo ## Create or update the tables in the database that ZART_DATABASE_URL names
	@test -n "$$ZART_DATABASE_URL" || { echo "name the database first: make migrate ZART_DATABASE_URL=postgresql://..." >&2; exit 2; }
	@$(BIN)/zart migrate

CASE ?=
BENCH_ARGS ?=

bench: $(VENV)/installed-demo ## Measure Zart and its peers on one machine, in less than 15 minutes (CASE=a: one case)
	@$(BIN)/python -m tests.benchmarks $(foreach letter,$(CASE),--case $(letter)) $(BENCH_ARGS)

bench-long: $(VENV)/installed-demo ## Measure how it grows, what it keeps in memory, and how it lasts: about an hour
	@$(BIN)/python -m tests.benchmarks --long $(BENCH_ARGS)

bench-quick: $(VENV)/installed-demo ## Measure steps per second beside DBOS, on one server, in a few minutes
	@$(BIN)/python -m tests.benchmarks --quick $(BENCH_ARGS)

bench-document: $(VENV)/installed-demo ## Write benchmarks.md, and the figures of performance.md, from what was measured last
	@$(BIN)/python -m tests.benchmarks --document

fan-out: $(VENV)/installed-dev ## Measure fan-outs of 100 to 10,000 on two worker processes, one of which is killed
	@$(BIN)/python -m tests.benchmarks --case f

test-pg15: $(VENV)/installed-dev ## Run the test suite on the PostgreSQL in DEBIAN_POSTGRES instead of the wheel's
	@test -x $(DEBIAN_POSTGRES)/postgres || { echo "no postgres in $(DEBIAN_POSTGRES): set DEBIAN_POSTGRES" >&2; exit 2; }
	ZART_TEST_POSTGRES_BIN=$(DEBIAN_POSTGRES) $(BIN)/pytest $(PYTEST_ARGS)

EXPLORE_ARGS ?=

explore: $(VENV)/installed-dev ## Kill workers at every named point of the engine, then at pairs of them
	$(BIN)/python -m tests.crashes.explore $(EXPLORE_ARGS)

test-suspending: ## Run the test suite with every record replayed instead of delivered
test-twice: ## Run it with every body replayed in whole at its end, which must be the same
test-unparked: ## Run it with no waiting body kept in memory
test-unprepared: ## Run it without prepared statements
test-pgbouncer: ## Run it through PgBouncer in transaction mode (apt-get install pgbouncer)
test-encrypted: ## Run it with all payloads encrypted
$(MODES:%=test-%): test-%: $(VENV)/installed-dev
	ZART_TEST_MODE=$* $(BIN)/pytest $(PYTEST_ARGS)

test-modes: $(MODES:%=test-%) ## Run it in each of these modes, one after another

# What a step's identity is must not depend on the Python: the same golden list on each that is here.
test-versions: ## Run the identity tests on every Python of PYTHON_VERSIONS that is installed
	@set -e; for version in $(PYTHON_VERSIONS); do \
		python=$$(ls -d "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version.*/bin/python 2>/dev/null | tail -n 1); \
		test -n "$$python" || python=$$(command -v python$$version) || { echo "Python $$version is not here: left out"; continue; }; \
		test -x .venv-$$version/bin/pytest || { \
			$$python -m venv .venv-$$version; \
			.venv-$$version/bin/pip install --quiet -e '.[embedded,fast]' 'pytest>=8.2' 'pytest-timeout>=2.3' 'anyio>=4.12' 'hypothesis>=6.100'; }; \
		.venv-$$version/bin/python --version; \
		.venv-$$version/bin/pytest -q tests/unit/test_lineage.py; \
	done

mutations: $(VENV)/installed-dev ## Break each promise once, in a copy, and see that its tests fail (MUTATIONS=fence-removed)
	@$(BIN)/python -m tests.mutations $(MUTATIONS)

model: $(VENV)/installed-dev ## Compare the tables with a model of the state machine for five minutes (MODEL_ARGS=--seed 7)
	@$(BIN)/python -m tests.model $(MODEL_ARGS)

chaos: $(VENV)/installed-dev ## Try to break it for twenty minutes: real processes, real faults (CHAOS_ARGS=--seed 7)
	$(BIN)/python -m tests.chaos --minutes 20 --scenarios $(CHAOS_ARGS)

chaos-short: $(VENV)/installed-dev ## The same for three minutes
	$(BIN)/python -m tests.chaos --minutes 3 $(CHAOS_ARGS)

bank: $(VENV)/installed-dev ## Move money 5,000 times while workers are killed and the database crashes (BANK_ARGS=--seed 7)
	$(BIN)/python -m tests.bank $(BANK_ARGS)

# Twelve times the examples of the suite, new ones each time; FUZZ_SEED repeats those of an earlier run.
FUZZ_FACTOR ?= 12
FUZZ_SEED ?= $(shell date +%s)

fuzz: $(VENV)/installed-dev ## Give bad input in bulk, new each time, for about five minutes; FUZZ_SEED=N repeats a run
	@echo "FUZZ_SEED=$(FUZZ_SEED)"
	ZART_FUZZ=$(FUZZ_FACTOR) $(BIN)/pytest tests/fuzz --timeout=600 --hypothesis-seed=$(FUZZ_SEED) $(PYTEST_ARGS)

clean: ## Remove what was built or cached; the virtual environments and .zart/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet -e '.[embedded,fast]'
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet -e '.[dev]'
	@touch $@ $(VENV)/installed-demo
