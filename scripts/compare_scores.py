"""Compares petl_bench's scores with the Trainer's: same model, rows, optimizer and number of updates, several seeds.

python scripts/compare_scores.py --data-root DIR --tasks mrpc=1200 cola=4000 --out scores.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from bench_speed_sides import train_by_petl_bench, train_by_trainer

from petl_bench.config import RunConfig, load_config


def both_sides(cfg: RunConfig) -> dict[str, float]:
    """The score after the last epoch, by side."""
    with tempfile.TemporaryDirectory() as folder:
        ours = train_by_petl_bench(replace(cfg, runs_dir=folder))
    theirs = train_by_trainer(cfg, (cfg.train.epochs,), padded=False)[cfg.train.epochs]
    return {"petl_bench": ours.score, "Trainer": theirs.score}


def compare(task: str, rows: str, options: argparse.Namespace) -> dict[str, Any]:
    """Scores of one task over the seeds."""
    found: dict[str, list[float]] = {"petl_bench": [], "Trainer": []}
    base = [f"task={task}", f"task.num_train_examples={rows}", f"data_root={options.data_root}"]
    base += [f"method={options.method}", f"train.epochs={options.epochs}"]
    for seed in range(options.seeds):
        cfg = load_config([*base, f"train.seed={seed}", "measure.ledger=false", "measure.inference=false"])
        for side, score in both_sides(cfg).items():
            found[side].append(score)
        print(f"{task} seed {seed}: {found['petl_bench'][-1]:.4f}, Trainer {found['Trainer'][-1]:.4f}", flush=True)
    for side, scores in found.items():
        print(
            f"{task} {cfg.task.metric}, {side}: {statistics.mean(scores):.4f} ± {statistics.stdev(scores):.4f}",
            flush=True,
        )
    return {"settings": base[:2] + base[3:], "metric": cfg.task.metric, "scores": found}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default=os.environ.get("PETL_BENCH_DATA"), help="GLUE rows")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--tasks", nargs="+", default=["mrpc=1200", "cola=4000"], metavar="TASK=ROWS")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    if not options.data_root:
        parser.error("--data-root (or PETL_BENCH_DATA) must name a folder laid out like nyu-mll/glue")
    results = [compare(*one.split("="), options) for one in options.tasks]
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
