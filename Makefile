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
DEMO_TASK := task=demo task.num_train_examples=1200
DEMO_METHODS := full,head,bitfit,lora,houlsby,prefix,fl_tuning,coda,flat,lst

.PHONY: help install demo test test-slow bench lint format clean

help:
	@sed -n 's/^# \(make.*\)/\1/p' Makefile

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/petl-bench run -m $(DEMO_TASK) method=$(DEMO_METHODS) runs_dir=$(RUNS)
	$(BIN)/petl-bench run $(DEMO_TASK) method=layer_selection layers.strategy=window runs_dir=$(RUNS)
	$(BIN)/petl-bench run $(DEMO_TASK) method=head method.pooler=true runs_dir=$(RUNS)
	$(BIN)/petl-bench run $(DEMO_TASK) method=coda method.attention=k2all runs_dir=$(RUNS)
	@# Two of PEFT's shelf, as examples of them all.
	$(BIN)/petl-bench run $(DEMO_TASK) method=peft method.type=IA3 runs_dir=$(RUNS)
	$(BIN)/petl-bench run $(DEMO_TASK) method=peft method.type=ADALORA +method.args.lora_alpha=32 \
		train.learning_rate=1e-2 runs_dir=$(RUNS)
	$(BIN)/petl-bench report $(RUNS) --plot $(RUNS)/comparison.png

# One thread each: two processes with two threads each would mostly wait for one another.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto

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
