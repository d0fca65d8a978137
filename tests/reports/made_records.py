"""Records as a study over methods, tasks, seeds and numbers of rows would leave them, without training anything."""

from __future__ import annotations

import copy
import math
import random

from petl_bench.config import load_config
from petl_bench.records.schema import (
    Data,
    Flops,
    HistoryEntry,
    Inference,
    Layers,
    Memory,
    MemoryEstimate,
    Params,
    Record,
    RunProtocol,
    Scores,
    Time,
)

# Trained parameters, and how far from the best score.
METHODS = {
    "full": (22_713_986, 0.0), "houlsby": (600_962, 0.004), "lora": (74_498, 0.006), "prefix": (92_930, 0.021),
    "fl_tuning": (11_522, 0.034), "bitfit": (25_730, 0.018), "coda": (310_274, 0.012), "lst": (420_866, 0.02),
    "flat": (155_906, 0.026), "head": (770, 0.09),
}  # fmt: skip
TASKS = {"mrpc": ("f1", 0.88), "cola": ("matthews_correlation", 0.52), "sst2": ("accuracy", 0.92)}
BACKBONE_PARAMS = 22_713_216

_configs: dict[str, dict] = {}


def made_record(method: str, task: str, seed: int, rows: int = 3000, variant: float | None = None) -> Record:
    """One record; its numbers depend on its arguments alone."""
    if task not in _configs:
        _configs[task] = load_config([f"task={task}"]).to_dict()
    config = copy.deepcopy(_configs[task])
    config["method"] = {"name": method}
    config["train"] |= {"seed": seed, "learning_rate": variant or 1e-3}
    config["task"]["num_train_examples"] = rows
    metric, top = TASKS[task]
    trained, below = METHODS[method]
    noise = random.Random(f"{method}{task}{seed}{rows}{variant}")
    score = (top - below) * (1 - 0.35 * math.exp(-rows / 900)) + noise.gauss(0, 0.006)
    share = trained / BACKBONE_PARAMS
    record = Record(run_key=f"{method}-{task}-{seed}-{rows}-{variant}", config=config)
    record.protocol = RunProtocol(
        task, metric, True, "validation", "validation", "best", rows, 872, 128, seed, "fp32", "sdpa", "length_grouped"
    )
    record.params = Params(BACKBONE_PARAMS + trained, BACKBONE_PARAMS, trained, trained - 770, 770, 100 * share)
    record.scores = Scores({metric: score}, {metric: score}, 3.0)
    record.history = [
        HistoryEntry(i / 4, 23 * i, 0.7, {metric: score * (1 - 0.5 * math.exp(-i / 3)) + noise.gauss(0, 0.004)}, 1.0)
        for i in range(1, 13)
    ]
    record.time = Time(60 + 90 * share**0.3 + seed, 5.0, None, 210 - 90 * share**0.3, 3000.0, 0.02)
    peak = int((180 + 330 * share**0.35) * 2**20)
    record.memory = Memory(MemoryEstimate(32, 128, peak, 0, 0, 0, 0, peak), process_peak_rss_bytes=peak * 3)
    record.flops = Flops(int(4e10 * (1 + share)), int(2e10))
    slow = {"houlsby": 1.15, "prefix": 1.1, "coda": 0.8}.get(method, 1.0)
    record.inference = Inference(32, 128, 9.0 * slow, 240 / slow)
    record.data = Data("glue", None, "0", {"train": rows, "validation": 872})
    record.versions = {"petl-bench": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"}
    record.hardware = {"processor": "AMD EPYC", "logical_cores": 2, "device": None, "num_processes": 1}
    record.git = {"commit": "48abb1a0000000000", "dirty": False}
    record.layers = Layers(1, 6, 6, 6)
    return record


def variability_record(task: str = "mrpc", seed: int = 0) -> Record:
    """A record whose layers were chosen by their variability; the first layer's is infinite."""
    record = made_record("lora", task, seed)
    record.run_key += "-variability"
    record.config["layers"]["name"] = "variability"
    record.layers = Layers(3, 5, 5, 6, [None, 4.0, 2.0, 1.0, 0.8, 1.4], [90.0, 80.0, 85.0, 70.0, 75.0, 60.0], 1000)
    return record


def made_study(seeds: int = 3) -> list[Record]:
    """Every method on every task over seeds; three of them on fewer rows too; one with chosen layers."""
    records = [made_record(method, task, seed) for task in TASKS for method in METHODS for seed in range(seeds)]
    for method in ("full", "lora", "bitfit"):
        for rows in (100, 300, 1000):
            records += [made_record(method, "mrpc", seed, rows) for seed in range(seeds)]
    return [*records, *(variability_record(seed=seed) for seed in range(seeds))]
