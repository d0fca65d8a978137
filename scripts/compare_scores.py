"""Holds petl_bench's scores against those of transformers' Trainer: same model, rows, optimizer and updates, several seeds.

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

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from bench_speed_sides import train_by_petl_bench, train_by_trainer

from petl_bench.config import load_config


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-root", default=os.environ.get("PETL_BENCH_DATA"), required="PETL_BENCH_DATA" not in os.environ
    )
    parser.add_argument("--method", default="lora")
    parser.add_argument("--tasks", nargs="+", default=["mrpc=1200", "cola=4000"], metavar="TASK=ROWS")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    results = []
    for task, rows in (one.split("=") for one in options.tasks):
        found: dict[str, list[float]] = {"petl_bench": [], "Trainer": []}
        for seed in range(options.seeds):
            cfg = load_config(
                [
                    *(f"task={task}", f"data_root={options.data_root}", f"task.num_train_examples={rows}"),
                    *(f"method={options.method}", f"train.epochs={options.epochs}", f"train.seed={seed}"),
                    *("measure.ledger=false", "measure.inference=false"),
                ]
            )
            with tempfile.TemporaryDirectory() as folder:
                found["petl_bench"].append(train_by_petl_bench(replace(cfg, runs_dir=folder)).score)
            trained = train_by_trainer(cfg, (options.epochs,), padded=False)
            found["Trainer"].append(trained[options.epochs].score)
            print(
                f"{task} seed {seed}: " + "  ".join(f"{side} {scores[-1]:.4f}" for side, scores in found.items()),
                flush=True,
            )
        means = {side: statistics.mean(scores) for side, scores in found.items()}
        spread = statistics.stdev(found["Trainer"])
        print(
            f"{task}: {cfg.task.metric} "
            + "  ".join(f"{side} {mean:.4f}" for side, mean in means.items())
            + f"  (Trainer's sd {spread:.4f})",
            flush=True,
        )
        results.append(
            {
                "task": task,
                "rows": int(rows),
                "epochs": options.epochs,
                "method": options.method,
                "metric": cfg.task.metric,
                "scores": found,
            }
        )
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
