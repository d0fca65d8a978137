"""Compares answers of `petl-bench choose` with a study that trained every setting on all rows (`docs/choose.md`).

    petl-bench study choose_grid data_root=DIR runs_dir=GRID
    petl-bench choose task=stsb ... runs_dir=FOLDER --json > answer.json     # with the study's settings; into FOLDER
    petl-bench run ... train.seed=1 runs_dir=FOLDER                          # the answer with further seeds
    python scripts/choose_regret.py GRID stsb_1000=FOLDER [GRID TASK=FOLDER ...]

The study's answer is the method whose chosen setting has the best mean on the selection rows. Regret is its mean on the
reported rows minus that of the answer of `choose`, in points; the effort is the number of updates of `choose` over that
of the study on the same task and methods.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean, stdev

from petl_bench.records.schema import Record
from petl_bench.records.store import read_record
from petl_bench.records.study_file import read_study, selection_score
from petl_bench.studies.choice import TRIAL_SEED


def main() -> int:
    """Prints a Markdown table."""
    print("| task | best of the study | score | answer of `choose` | score | regret | updates |")
    print("|---|---|---:|---|---:|---:|---:|")
    grid, regrets = Path(), []
    for argument in sys.argv[1:]:
        task, equals, folder = argument.partition("=")
        if not equals:
            grid = Path(argument)
            continue
        ours, answer = records_of(Path(folder)), json.loads((Path(folder) / "answer.json").read_text())
        chosen = with_more_seeds(read_record(Path(folder) / Path(answer["run"]).name / "result.json"), ours)
        trained = {record.config["method"]["name"] for record in ours}
        best, theirs = best_of(grid, task, trained)
        regrets.append(fmean(reported(best)) - fmean(reported(chosen)))
        effort = sum(updates(record) for record in ours if record.protocol.seed in (*answer["seeds"], TRIAL_SEED))
        effort /= sum(map(updates, theirs))
        cells = [task, name(best[0]), spread(best), name(chosen[0]), spread(chosen)]
        print(f"| {' | '.join(cells)} | {regrets[-1]:+.1f} | {100 * effort:.0f} % |")
    print(f"\nmean regret: {fmean(regrets):+.2f} points on {len(regrets)} tasks")
    return 0


def records_of(folder: Path) -> list[Record]:
    """The records of the finished runs directly below a folder."""
    records = [read_record(file) for file in sorted(folder.glob("*/result.json"))]
    return [record for record in records if record.status == "finished"]


def best_of(grid: Path, task: str, methods: set[str]) -> tuple[list[Record], list[Record]]:
    """The runs of the method whose chosen setting is best on the selection rows, and all runs of the task."""
    study = read_study(grid)
    assert study is not None, grid
    records, chosen = [], {}
    for run in study.runs:
        if run.task == task and run.method in methods and (grid / run.folder).is_dir():
            records.append(read_record(grid / run.folder / "result.json"))
            if not run.is_trial and run.chosen:
                chosen.setdefault(run.method, []).append(records[-1])
    best = max(chosen.values(), key=lambda mine: fmean(selection_score(record) or 0.0 for record in mine))
    return best, records


def with_more_seeds(answer: Record, records: list[Record]) -> list[Record]:
    """The runs that have the settings of the answer's, whatever their seed."""

    def settings(record: Record) -> object:
        train = record.config["train"] | {"seed": None, "save_weights": None, "cache": None}
        return [train, *(record.config[group] for group in ("backbone", "layers", "method", "task"))]

    return [record for record in records if settings(record) == settings(answer)]


def reported(records: list[Record]) -> list[float]:
    """Scores on the reported rows, in points."""
    return [100 * record.selected_scores[record.config["task"]["metric"]] for record in records]


def updates(record: Record) -> int:
    """The number of updates of a run."""
    return record.history[-1].step


def name(record: Record) -> str:
    """The method, and what its head reads."""
    pooling = record.config["backbone"]["pooling"]
    return record.config["method"]["name"] + (f", {pooling}" if pooling else "")


def spread(records: list[Record]) -> str:
    """Mean and standard deviation of the reported scores."""
    scores = reported(records)
    return f"{fmean(scores):.1f}" + (f" ± {stdev(scores):.1f}" if len(scores) > 1 else " (1 seed)")


if __name__ == "__main__":
    sys.exit(main())
