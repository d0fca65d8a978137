"""A method of someone else's package joins by its entry point, without a change here (docs/add-a-method.md)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

# The module and the entry point of the documented example.
DOCUMENT = (Path(__file__).parents[2] / "docs" / "add-a-method.md").read_text()
OWN_PACKAGE = DOCUMENT[DOCUMENT.index("## In a package of your own") :]
MODULE = re.search(r"```python\n(.*?)```", OWN_PACKAGE, flags=re.DOTALL)[1]
PROJECT = tomllib.loads(re.search(r"```toml\n(.*?)```", OWN_PACKAGE, flags=re.DOTALL)[1])


@pytest.fixture
def petl_bench(tmp_path):
    """Runs commands, all in one process, where the plugin is installed; gives exit codes with stdout, and stderr."""
    site = tmp_path / "site"
    metadata = site / "my_norms-0.1.dist-info"
    metadata.mkdir(parents=True)
    (module,) = PROJECT["tool"]["setuptools"]["py-modules"]
    ((group, entries),) = PROJECT["project"]["entry-points"].items()
    (site / f"{module}.py").write_text(MODULE)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PROJECT['project']['name']}\nVersion: 0.1\n")
    lines = [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))

    script = """
import contextlib, io, json, sys
from petl_bench.cli import main
printed = []
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(command)
    printed.append([code, out.getvalue()])
print(json.dumps(printed))
"""

    def call(*commands: list[str]) -> tuple[list[list], str]:
        done = subprocess.run(
            [sys.executable, "-c", script, json.dumps(commands)],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return json.loads(done.stdout), done.stderr

    return call


def test_a_plugin_method_is_listed_run_and_reported(petl_bench):
    run = ["run", "--json", "task=smoke", "backbone=tiny_bert", "task.num_train_examples=64", "train.epochs=1",
           "method=norms", "measure.ledger=false", "measure.inference=false"]  # fmt: skip
    commands = [
        ["list", "methods", "--json"],
        run,
        [*run, "method.embeddings=true"],
        ["report", "runs", "--format", "md"],
    ]
    answers, errors = petl_bench(*commands)
    assert [code for code, _ in answers] == [0, 0, 0, 0], errors
    listed, record, wider = (json.loads(printed) for _, printed in answers[:3])
    assert {"method": "norms", "origin": "reconstruction", "what is trained": "the norms alone"} in listed
    assert record["config"]["train"]["learning_rate"] == 1e-3
    assert record["params"]["trainable_method"] == 4 * 2 * 2 * 32
    assert wider["params"]["trainable_method"] == (4 * 2 + 1) * 2 * 32
    report = answers[3][1]
    assert "| norms embeddings=False |" in report
    assert "| norms embeddings=True |" in report


def test_a_plugin_that_cannot_be_imported_is_named_and_left_out(petl_bench, tmp_path):
    (tmp_path / "site" / "my_norms.py").write_text("import nothing_of_this_name")
    ((listing, listed), (running, _)), errors = petl_bench(["list", "methods", "--json"], ["run", "method=norms"])
    assert listing == 0
    assert {"lora", "full"} <= {row["method"] for row in json.loads(listed)}
    assert running == 2
    assert "'norms' (my_norms:NORMS) cannot be used" in errors
    assert "nothing_of_this_name" in errors
    assert "Traceback" not in errors
