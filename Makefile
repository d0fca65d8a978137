# make demo       compare the methods on the embedded default: needs a Python package index, and none of the tools below
# make test       all tests except the slow ones
# make test-fast  the quick unit tests, for daily work
# make test-docs  every command and snippet of the README and the docs, with tiny models
# make bench      petl_bench against transformers' Trainer; GLUE rows in PETL_BENCH_DATA; under ten minutes on two cores
# make lint       formatting, style, types, import contracts, syntax of the page's JavaScript
# Each of them first makes the virtual environment if it is missing or out of date; a finished `make install` serves the
# demo, too.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_INSTALLED := $(VENV)/.demo_installed
RUNS ?= runs/demo
BENCH ?= bench

# One thread for each process: two processes with two threads each would mostly wait for one another.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: help install demo test test-fast test-docs test-slow bench lint format clean

help:
	@sed -n 's/^# \(make.*\)/\1/p' Makefile

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(DEMO_INSTALLED) $(INSTALLED)

$(DEMO_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[offline]"
	@touch $(DEMO_INSTALLED)

# Two workers of one thread each are faster than one of two threads.
demo: $(DEMO_INSTALLED)
	$(BIN)/petl-bench study demo runs_dir=$(RUNS) executor.workers=2
	$(BIN)/petl-bench report $(RUNS) --plot $(RUNS)/comparison.png --html $(RUNS)/comparison.html

test: $(INSTALLED)
	$(PYTEST) -m "not slow"

test-fast: $(INSTALLED)
	$(PYTEST) -m "not slow and not integration"

test-docs: $(INSTALLED)
	$(PYTEST) -m "" tests/test_documented_commands.py

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

bench: $(INSTALLED)
	$(BIN)/python scripts/bench_speed.py --out $(BENCH).json --plot $(BENCH).png

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if command -v node >/dev/null; then \
		for file in src/petl_bench/reports/page/*.js; do node --check $$file || exit 1; done; \
	else echo "node is not installed: the syntax of the page's JavaScript is not checked"; fi

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
