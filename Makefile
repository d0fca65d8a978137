# make demo   compare the methods on the embedded default (no network but a Python package index)
# make test   the test suite
# make bench  petl_bench against transformers' Trainer; GLUE rows in PETL_BENCH_DATA; under ten minutes on two cores
# make lint   formatting, style, types, room boundaries
# Each makes the virtual environment first, if it is missing or out of date.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUNS ?= runs/demo
BENCH ?= bench

.PHONY: help install demo test test-slow bench lint format clean

help:
	@sed -n 's/^# \(make.*\)/\1/p' Makefile

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/petl-bench study demo runs_dir=$(RUNS)
	$(BIN)/petl-bench report $(RUNS) --plot $(RUNS)/comparison.png --html $(RUNS)/comparison.html

# One thread each: two processes with two threads each would mostly wait for one another.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

bench: $(INSTALLED)
	$(BIN)/python scripts/bench_speed.py --out $(BENCH).json --plot $(BENCH).png

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
