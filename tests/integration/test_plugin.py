"""A method of someone else's package joins by its entry point, without a change here (docs/add-a-method.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

MODULE = """
from dataclasses import dataclass
from petl_bench.methods.registry import MethodConfig
from petl_bench.methods.registry import Method


@dataclass
class NormsMethodConfig(MethodConfig):
    name: str = "norms"
    default_learning_rate: float = 1e-3
    embeddings: bool = False


def adapt(model, config, context):
    for name, parameter in model.named_parameters():
        wanted = "norm" in name.lower() and (config.embeddings or "embeddings" not in name)
        parameter.requires_grad = wanted or context.anatomy.in_head(name)
    return model


NORMS = Method("norms", "the norms alone", "reconstruction", NormsMethodConfig, "their_package:adapt")
"""


@pytest.fixture
def petl_bench(tmp_path):
    """Runs the program where the plugin is installed."""
    site = tmp_path / "site"
    metadata = site / "their_package-0.1.dist-info"
    metadata.mkdir(parents=True)
    (site / "their_package.py").write_text(MODULE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 0.1\n")
    (metadata / "entry_points.txt").write_text("[petl_bench.methods]\nnorms = their_package:NORMS\n")

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(site)}
        command = [sys.executable, "-m", "petl_bench", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return call


def test_a_plugin_method_is_listed_run_and_reported(petl_bench):
    listed = json.loads(petl_bench("list", "methods", "--json").stdout)
    assert {"method": "norms", "origin": "reconstruction", "what is trained": "the norms alone"} in listed
    tiny = ["backbone=tiny_bert", "task.num_train_examples=64", "train.epochs=1"]
    record = json.loads(petl_bench("run", "--json", "method=norms", *tiny).stdout)
    assert record["config"]["train"]["learning_rate"] == 1e-3
    assert record["params"]["trainable_method"] == 4 * 2 * 2 * 32
    wider = json.loads(petl_bench("run", "--json", "method=norms", "method.embeddings=true", *tiny).stdout)
    assert wider["params"]["trainable_method"] == (4 * 2 + 1) * 2 * 32
    report = petl_bench("report", "runs", "--format", "md").stdout
    assert "| norms embeddings=False |" in report
    assert "| norms embeddings=True |" in report


def test_a_plugin_that_cannot_be_imported_is_named(petl_bench, tmp_path):
    (tmp_path / "site" / "their_package.py").write_text("import nothing_of_this_name")
    done = petl_bench("list", "methods")
    assert done.returncode == 2
    assert "norms" in done.stderr
    assert "nothing_of_this_name" in done.stderr
    assert "Traceback" not in done.stderr
