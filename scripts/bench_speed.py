"""Times petl_bench against the Hugging Face Trainer with PEFT, and the start of its commands; `make bench`.

Both sides train the same model from the same weights on the same rows, with the same optimizer, rates, batch size and
number of updates, and evaluate after every epoch. The Trainer is used as transformers' run_glue.py uses it: random
batches, padded to their longest row or all to 128 tokens. Sides take turns; each figure is a median over the repeats.

    python scripts/bench_speed.py --data-root DIR --out bench.json --plot bench.png
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import pandas
import torch
from bench_speed_sides import Timing, train_by_petl_bench, train_by_trainer

from petl_bench.backbones.load import open_backbone
from petl_bench.config import RunConfig, load_config
from petl_bench.estimate.costs import estimate_costs
from petl_bench.measure import hardware, versions
from petl_bench.run.run import encode_task
from petl_bench.tasks.load import load_task
from petl_bench.training.batches import epoch_batches

EPOCHS = (1, 3, 10)
# Commands that must answer at once: they import no torch.
STARTS = (("--help",), ("list", "methods"), ("run", "--help"))
GEMM_SIZE = 2048


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a tool, and the overrides of what it trains."""

    tool: str
    overrides: tuple[str, ...]

    @property
    def label(self) -> str:
        """The tool and what it trains."""
        return f"{self.tool}: {' '.join(self.overrides)}"


@dataclass(frozen=True)
class Work:
    """A comparison of one or several sides with a reference.

    Attributes:
        name: What is compared.
        sides: The sides that are timed.
        reference: The side that each of them is divided by.
        settings: Overrides that both sides share.
        rows: Number of training rows.
        epochs: Lengths of the training runs that are timed.
        by: "rate" compares examples a second of training, "total" all seconds of a run.
    """

    name: str
    sides: tuple[Side, ...]
    reference: Side
    settings: tuple[str, ...]
    rows: int
    epochs: tuple[int, ...] = (1,)
    by: str = "rate"


def all_work(rows: int, few: int) -> list[Work]:
    """Rates on `rows` rows for one epoch, whole trainings on `few` rows for up to ten."""

    def settings(length: int, precision: str = "fp32") -> tuple[str, ...]:
        return f"task.max_length={length}", f"train.precision={precision}"

    lora = ("method=lora",)
    top = (*lora, "layers=top", "layers.k=2")
    first = "train.last_layer=first_token"
    ours = {name: Side("petl_bench", (f"method={name}",)) for name in ("lora", "full", "flat", "head")}
    dynamic = {name: Side("Trainer", (f"method={name}",)) for name in ("lora", "full")}
    work = [
        Work(f"{name}, at most {length} tokens", (ours[name],), dynamic[name], settings(length), rows)
        for length in (256, 128)
        for name in ("lora", "full")
    ]
    work += [
        Work(f"lora, bf16, at most {length} tokens", (ours["lora"],), dynamic["lora"], settings(length, "bf16"), rows)
        for length in (256, 128)
    ]
    return [
        *work,
        Work("lora, there padded to 128", (ours["lora"],), Side("Trainer padded", lora), settings(128), rows),
        Work("whole trainings, lora there", (ours["flat"], ours["head"]), dynamic["lora"], settings(256), few, EPOCHS,
             "total"),
        Work("top 2 layers, not cached there", (Side("petl_bench", top),), Side("petl_bench uncached", top),
             settings(256), few, EPOCHS[-1:], "total"),
        Work("top 2 layers and the first token of the last, not cached there", (Side("petl_bench", (*top, first)),),
             Side("petl_bench uncached", (*top, first)), settings(256), few, EPOCHS[-1:], "total"),
        Work("lora, first token, at most 256 tokens", (Side("petl_bench", (*lora, first)),), ours["lora"],
             settings(256), rows),
    ]  # fmt: skip


def miniature(data_root: Path, rows: int, folder: Path) -> Path:
    """Writes `rows` random training rows of RTE, and the same share of its validation rows, to a folder."""
    target = folder / "rte"
    target.mkdir(parents=True)
    splits = ("train", "validation")
    tables = {name: pandas.read_parquet(sorted((data_root / "rte").glob(f"{name}-*"))) for name in splits}
    share = min(1.0, rows / len(tables["train"]))
    for name, table in tables.items():
        table.sample(frac=share, random_state=0).to_parquet(target / f"{name}-00000-of-00001.parquet")
    return folder


def train(side: Side, work: Work, base: list[str]) -> dict[int, Timing]:
    """Trains once; timings by epoch."""
    overrides = [*base, *work.settings, *side.overrides, f"train.epochs={max(work.epochs)}"]
    if side.tool.startswith("Trainer"):
        return train_by_trainer(load_config(overrides), work.epochs, padded="padded" in side.tool)
    cache = "off" if "uncached" in side.tool else "memory"
    found = {}
    for epochs in work.epochs:
        # Cached features are not kept for the next training: each one computes its own.
        cfg = load_config([*overrides, f"train.epochs={epochs}", f"train.cache={cache}", "train.cache_memory=1B"])
        with tempfile.TemporaryDirectory() as folder:
            found[epochs] = train_by_petl_bench(replace(cfg, runs_dir=folder))
    return found


def start_seconds(repeats: int = 5) -> dict[str, float]:
    """Median seconds that each of the light commands takes in a new process."""
    found = {}
    for words in STARTS:
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "petl_bench", *words], check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
        found[" ".join(("petl-bench", *words))] = statistics.median(seconds)
    return found


def gemm_rate(dtype: torch.dtype = torch.float32) -> float:
    """Operations a second of one large matrix product."""
    first, second = (torch.randn(GEMM_SIZE, GEMM_SIZE).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        first @ second
        seconds.append(time.perf_counter() - started)
    return 2 * GEMM_SIZE**3 / statistics.median(seconds[1:])


def epoch_flops(cfg: RunConfig) -> float:
    """Operations of one epoch of full fine-tuning, padding included, with the batches of the training loop."""
    backbone = open_backbone(cfg.backbone, cfg.layers)
    task = load_task(cfg.task, cfg.data_root)
    lengths = np.array([32, 64, 128])

    def of_one_row(length: int) -> float:
        shape = replace(cfg, task=replace(cfg.task, max_length=int(length)))
        return estimate_costs(shape, backbone, task.labels).flops.train_step_flops / cfg.train.batch_size

    # The operations of projections grow with the length, those of attention with its square.
    polynomial = np.polyfit(lengths, [of_one_row(length) for length in lengths], 2)
    rows = encode_task(task, backbone)["train"]
    batches = epoch_batches(rows.lengths, cfg.train.batch_size, cfg.train.batching, cfg.train.seed, 0)
    return sum(len(batch) * float(np.polyval(polynomial, rows.lengths[batch].max())) for batch in batches)


def compare(work: Work, data_root: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Yields a result for each side and number of epochs; the sides take turns, each time in reversed order."""
    sides = [*work.sides, work.reference]
    found: dict[Side, list[dict[int, Timing]]] = {side: [] for side in sides}
    ceilings = []
    with tempfile.TemporaryDirectory() as folder:
        base = [
            *("task=rte", f"data_root={miniature(data_root, work.rows, Path(folder))}"),
            *("measure.ledger=false", "measure.inference=false"),
        ]
        for repeat in range(repeats):
            for side in sides if repeat % 2 == 0 else reversed(sides):
                ceilings.append(gemm_rate())
                found[side].append(train(side, work, [*base, f"train.seed={repeat}"]))
        flops = epoch_flops(load_config([*base, *work.settings, "method=full"])) if "full" in work.name else None
    for side in work.sides:
        for epochs in work.epochs:
            pairs = [(a[epochs], b[epochs]) for a, b in zip(found[side], found[work.reference], strict=True)]
            result = _result(work, epochs, side, pairs)
            result["gemm_operations_per_second"] = ceilings
            if flops is not None:
                rate = flops / statistics.median(timings[1].train_seconds for timings in found[side])
                result["operations_per_second"] = rate
                result["share_of_gemm"] = rate / statistics.median(ceilings)
            yield result


def _result(work: Work, epochs: int, side: Side, pairs: list[tuple[Timing, Timing]]) -> dict[str, Any]:
    def ratio(ours: Timing, theirs: Timing) -> float:
        return ours.rate / theirs.rate if work.by == "rate" else theirs.total_seconds / ours.total_seconds

    ratios = [ratio(*pair) for pair in pairs]
    return {
        "work": work.name,
        "rows": work.rows,
        "epochs": epochs,
        "settings": list(work.settings),
        "ratio_of": {"rate": "training examples/s", "total": "total time"}[work.by],
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "sides": {
            label: [asdict(one) | {"examples_per_second": one.rate} for one in runs]
            for label, runs in zip((side.label, work.reference.label), zip(*pairs, strict=True), strict=True)
        },
    }


def show(result: dict[str, Any]) -> str:
    """A result as text."""
    spread = f" ({min(result['ratios']):.2f}-{max(result['ratios']):.2f})" if len(result["ratios"]) > 1 else ""
    head = f"{result['work']}, {result['rows']} rows, epochs {result['epochs']}"
    lines = [f"{head}: {result['ratio']:.2f}x in {result['ratio_of']}{spread}"]
    for label, runs in result["sides"].items():
        rate, total, score = (
            statistics.median(run[key] for run in runs) for key in ("examples_per_second", "total_seconds", "score")
        )
        lines.append(f"    {label:60} {rate:8.1f} examples/s  {total:7.1f} s in all  score {score:.3f}")
    if "share_of_gemm" in result:
        ceiling = statistics.median(result["gemm_operations_per_second"])
        lines.append(f"    {result['share_of_gemm']:.0%} of a matrix product's {ceiling / 1e9:.0f} GFLOP/s")
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], file: Path) -> None:
    """Draws one bar for each comparison, a panel for what is compared: speed, or the time of the whole training."""
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(one["ratio_of"] for one in results))
    by_kind = [[one for one in results if one["ratio_of"] == kind] for kind in kinds]
    figure, panels = pyplot.subplots(
        len(kinds),
        figsize=(8, 0.36 * len(results) + 0.8 * len(kinds)),
        sharex=True,
        squeeze=False,
        height_ratios=list(map(len, by_kind)),
        layout="constrained",
    )
    for axes, kind, mine in zip(panels[:, 0], kinds, by_kind, strict=True):
        spreads = [[one["ratio"] - min(one["ratios"]), max(one["ratios"]) - one["ratio"]] for one in mine]
        ratios = [one["ratio"] for one in mine]
        bars = axes.barh(list(map(_name, mine)), ratios, xerr=np.array(spreads).T, color="#4477aa")
        axes.bar_label(bars, fmt="%.1fx", padding=4)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        axes.minorticks_off()
        axes.tick_params(axis="y", labelsize=8.5)
        axes.margins(x=0.2, y=0.02)
        axes.invert_yaxis()
        axes.set_title(kind, loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("times as fast as the other side")
    figure.savefig(file, dpi=150)


def _name(result: dict[str, Any]) -> str:
    ours, theirs = (label.replace("method=", "").partition(": ") for label in result["sides"])
    against = theirs[0] if theirs[2] == ours[2] else f"{theirs[0]}, {theirs[2]}"
    length, precision, *_ = [setting.rpartition("=")[2] for setting in result["settings"]]
    epochs = "1 epoch" if result["epochs"] == 1 else f"{result['epochs']} epochs"
    return textwrap.fill(f"{ours[2]} against {against}: {length} tokens, {precision}, {epochs}", 40)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default=os.environ.get("PETL_BENCH_DATA"), help="GLUE rows; RTE is used")
    parser.add_argument("--rows", type=int, default=320, help="training rows where rates are compared")
    parser.add_argument("--few", type=int, default=96, help="training rows where ten epochs are compared")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", default="", help="comparisons whose name contains this")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--plot", type=Path, help="picture")
    options = parser.parse_args()
    if not options.data_root or not (Path(options.data_root) / "rte").is_dir():
        parser.error("--data-root (or PETL_BENCH_DATA) must name a folder laid out like nyu-mll/glue, with rte in it")
    starts = start_seconds()
    for command, seconds in starts.items():
        print(f"{command}: {seconds:.2f} s until its end", flush=True)
    results = []
    for work in all_work(options.rows, options.few):
        if options.only in work.name:
            for result in compare(work, Path(options.data_root), options.repeats):
                results.append(result)
                print(show(result), flush=True)
    if not results:
        parser.error(f"--only {options.only} names none of: {', '.join(one.name for one in all_work(1, 1))}")
    content = {"hardware": hardware(on_cuda=False, num_processes=1), "versions": versions()}
    content |= {"start_seconds": starts, "results": results}
    if options.out:
        options.out.write_text(json.dumps(content, indent=1) + "\n")
    if options.plot:
        draw(results, options.plot)


if __name__ == "__main__":
    main()
