"""A wheel built from the sdist finds its configs, in an environment without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_wheel_from_the_sdist_runs_and_lists(tmp_path):
    # `build` without a target makes the sdist first, then the wheel from it.
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(site)}

    def call(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, str(site / "bin" / "petl-bench"), *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    where = subprocess.run(
        [sys.executable, "-c", "import petl_bench; print(petl_bench.__file__)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(site))
    for name in ("banking77", "clinc150"):
        shipped = site / "petl_bench" / "tasks" / "data" / name
        assert {"LICENSE", "README.md", "test-00000-of-00001.parquet"} <= {file.name for file in shipped.iterdir()}
    assert {"banking77", "clinc150", "mrpc", "smoke"} <= {
        task["task"] for task in json.loads(call("list", "tasks", "--json"))
    }
    short = ["task=smoke", "backbone=tiny_bert", "task.num_train_examples=64", "train.epochs=1"]
    record = json.loads(call("run", "--json", *short, "measure.ledger=false", "measure.inference=false"))
    assert record["status"] == "finished"
