"""Draws designs of FLAT that its abstract allows, as a study of MiniLM, and ranks them by that study's selection rows.

    python scripts/flat_designs.py draw > conf/study/flat_search.yaml
    petl-bench study flat_search data_root=DIR runs_dir=RUNS executor.workers=2
    python scripts/flat_designs.py rank RUNS
    python scripts/flat_designs.py draw --best RUNS > conf/study/flat_final.yaml     # the best ones, five seeds

Every design has 0.53 % of BERT-base's parameters, which decides its width there; on MiniLM, half as wide, it has half
that width. The runs hold rows of the training split out and choose by those; the validation split is not read.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from bisect import bisect_left
from collections import defaultdict
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
import yaml
from scipy.stats import t

from petl_bench.methods.flat.model import FlatConfig, FlatNetwork
from petl_bench.records.store import read_record
from petl_bench.records.study_file import StudyFile, read_study

# BERT-base with its pooler, and the share that the abstract states, to the digit that it rounds to.
BERT_BASE, LAYERS, HIDDEN, SHARES = 109_482_240, 12, 768, (0.525, 0.535)
CHOICES: dict[str, list[Any]] = {
    "score": ["dot", "additive", "scalar", "uniform"],
    # The blocks of the side network, and how many.
    "side": [("transformer", 1), ("transformer", 2), ("transformer", 3), ("mlp", 1), ("mlp", 2), ("none", 0)],
    "pool": ["mean", "cls"],
    "include_embeddings": [True, False],
    "dropout": [0.0, 0.1, 0.3],
    "rate": [1e-3, 2e-3, 5e-3],
}
DRAWN, KEPT, SEEDS = 32, 5, 5
TASKS = ("cola", "sst2", "mrpc", "stsb", "rte", "qnli")
# Training rows, passes over them, and updates between two evaluations: 210 to 378 updates and four evaluations.
SIZES = {100: (30, 53), 500: (10, 79), 1000: (6, 95)}
Design = dict[str, Any]


def main() -> int:
    """Prints a study, or a ranking."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("draw")
    draw.add_argument("--best", type=Path)
    commands.add_parser("rank").add_argument("runs", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "rank":
        rank(arguments.runs)
    elif arguments.best:
        best = [name for name, _ in ranking(arguments.best)[:KEPT]]
        print_study({name: settings_of(drawn()[name]) for name in dict.fromkeys(["flat_p", *best])}, SEEDS)
    else:
        print_study({name: settings_of(design) for name, design in drawn().items()}, 1)
    return 0


def drawn() -> dict[str, Design]:
    """The designs by name: FLAT-P first, then distinct ones at random, of those that have a width."""
    every = [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]
    sized = ((design, bert_width(design["score"], design["side"], design["include_embeddings"])) for design in every)
    fitting = [design | {"width": width} for design, width in sized if width]
    flat_p = {"score": "dot", "side": ("transformer", 2), "pool": "mean", "include_embeddings": True, "dropout": 0.1}
    first = next(design for design in fitting if flat_p.items() <= design.items() and design["rate"] == 2e-3)
    order = np.random.default_rng(0).permutation(len(fitting))
    others = [fitting[index] for index in order if fitting[index] is not first][: DRAWN - 1]
    return {"flat_p": first} | {f"flat_{number:02d}": design for number, design in enumerate(others, 1)}


@cache
def bert_width(score: str, side: tuple[str, int], include_embeddings: bool) -> int | None:
    """The width at which a design has the stated share of BERT-base's parameters; None where no width has."""
    low, high = (BERT_BASE * share / 100 for share in SHARES)
    design = {"score": score, "side": side, "include_embeddings": include_embeddings, "pool": "mean", "dropout": 0.0}
    # The first width that is not too small; the number of parameters grows with it.
    width = bisect_left(range(129), low, key=lambda width: num_parameters(design, width))
    return width if num_parameters(design, width) < high else None


def num_parameters(design: Design, width: int) -> int:
    """Trained parameters on BERT-base with two labels; 0 for no width."""
    if width == 0:
        return 0
    config = FlatConfig(width=width, **architecture(design))
    with torch.device("meta"):
        parts = (FlatNetwork(LAYERS + 1, HIDDEN, config), torch.nn.Linear(HIDDEN, 2))
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def architecture(design: Design) -> dict[str, Any]:
    """A design's settings of the method, its width left out."""
    side, num_blocks = design["side"]
    given = {key: design[key] for key in ("score", "pool", "include_embeddings", "dropout")}
    return given | {"side": side, "num_blocks": num_blocks}


def settings_of(design: Design) -> list[str]:
    """The settings of a design on MiniLM, as a study writes them."""
    width = round(design["width"] / 2)
    options = {**architecture(design), "width": width}
    written = [
        f"method.{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in options.items()
    ]
    return ["method=flat", *written, f"train.learning_rate={design['rate']:g}"]


def print_study(methods: dict[str, list[str]], num_seeds: int) -> None:
    """Prints a study of some designs on all tasks and sizes."""
    print(f"# petl-bench study {'flat_search' if num_seeds == 1 else 'flat_final'} data_root=DIR")
    print("# Made by scripts/flat_designs.py, which says how its runs choose FLAT's design.")
    study = {
        "description": "Designs of FLAT with 0.53 % of BERT-base's parameters, on rows that only choose",
        # But for STS-B, which has no classes to draw by, the same rows are held out at every size. The features of
        # a task are computed once for all designs.
        "settings": [
            *("backbone=minilm", "task.held_out_draw=stratified", "train.batch_size=16", "train.cache=disk"),
            *("train.save_weights=false", "measure.inference=false"),
        ],
        "methods": methods,
        "tasks": {
            f"{task}_{size}": [
                *(f"task={task}", "task.validation_split=null", f"task.num_train_examples={size}"),
                *(f"train.epochs={epochs}", f"train.evaluate_every={every}"),
            ]
            for task in TASKS
            for size, (epochs, every) in SIZES.items()
        },
        "seeds": list(range(num_seeds)),
    }
    print(yaml.safe_dump(study, sort_keys=False, width=180, default_flow_style=None), end="")


def study_of(runs: Path) -> StudyFile:
    """The plan of the study in a folder."""
    study = read_study(runs)
    if study is None:
        sys.exit(f"{runs} holds no study.")
    return study


def selection_scores(runs: Path) -> dict[str, dict[tuple[str, int], float]]:
    """The best score on the held-out rows, in percent, by design and by task and seed."""
    scores: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for run in study_of(runs).runs:
        file = runs / run.folder / "result.json"
        if not file.exists():
            continue
        record = read_record(file)
        assert record.protocol
        assert record.protocol.selection_split == "train_held_out"
        values = [entry.scores[record.protocol.metric] for entry in record.history]
        scores[run.method][run.task, run.seed] = 100 * max(values)
    return scores


def ranking(runs: Path) -> list[tuple[str, list[float]]]:
    """The designs, best first, each with its mean over the tasks and sizes, one for each seed that all designs have."""
    study, scores = study_of(runs), selection_scores(runs)
    tasks = list(dict.fromkeys(run.task for run in study.runs))
    seeds = [
        seed
        for seed in study.seeds
        if all((task, seed) in scores[method] for method in study.methods for task in tasks)
    ]
    if not seeds:
        sys.exit(f"{runs}: no seed has the runs of all designs yet; `petl-bench study` makes what is missing.")
    means = {name: [fmean(scores[name][task, seed] for task in tasks) for seed in seeds] for name in study.methods}
    return sorted(means.items(), key=lambda item: -fmean(item[1]))


def difference(values: list[float], others: list[float]) -> str:
    """The mean difference over seeds with its interval of 95 % by Student's t; empty for fewer than two seeds."""
    if len(values) < 2:
        return ""
    differences = [one - other for one, other in zip(values, others, strict=True)]
    half = t.ppf(0.975, len(differences) - 1) * stdev(differences) / len(differences) ** 0.5
    return f"{fmean(differences):.2f} ± {half:.2f}"


def rank(runs: Path) -> None:
    """Prints the designs, best first, and the mean of every choice over the designs that have it.

    The first seed picked the best designs, so what they are better by is told without it.
    """
    designs = drawn()
    by_choice: dict[str, list[float]] = defaultdict(list)
    ranked = ranking(runs)
    of_flat_p = dict(ranked)["flat_p"]
    print("| design | seeds | mean | sd over seeds | minus FLAT-P, without the first seed | settings |")
    print("|---|---:|---:|---:|---:|---|")
    for name, means in ranked:
        spread = f"{stdev(means):.2f}" if len(means) > 1 else ""
        against = difference(means[1:], of_flat_p[1:]) if name != "flat_p" else ""
        settings = [one.removeprefix("method.") for one in settings_of(designs[name])[1:]]
        print(f"| {name} | {len(means)} | {fmean(means):.2f} | {spread} | {against} | {' '.join(settings)} |")
        for setting in settings:
            by_choice[setting].append(fmean(means))
    print("\n| choice | designs | mean |\n|---|---:|---:|")
    for setting, values in sorted(by_choice.items()):
        if not setting.startswith("width"):
            print(f"| {setting} | {len(values)} | {fmean(values):.2f} |")


if __name__ == "__main__":
    sys.exit(main())
