"""Compares the memory estimate with what torch's allocator reports on a CUDA device.

    python scripts/check_estimate.py measure docs/cuda_memory.json     # needs a CUDA device
    python scripts/check_estimate.py compare docs/cuda_memory.json     # needs none: prints a table

Twelve methods on four backbones with random weights, two lengths and two precisions, in batches of 16 rows without
padding. What is measured is the third update of a run: forward pass, backward pass, clipping, AdamW.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from petl_bench.backbones.load import Backbone, open_backbone
from petl_bench.config import RunConfig, load_config
from petl_bench.errors import RequestError
from petl_bench.estimate.costs import estimate_costs
from petl_bench.methods.base import AdaptContext, adapt
from petl_bench.training.loop import build_optimizer

BACKBONES = ("bert_base", "roberta_large", "deberta_v3_base", "modernbert_base")
METHODS = (
    *("full", "lora", "houlsby", "prefix", "fl_tuning", "coda", "flat", "lst", "bitfit", "head"),
    *("peft method.type=IA3", "peft method.type=ADALORA"),
)
LENGTHS = (128, 512)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
ROWS = 16
GOAL_PERCENT = 5.0
_UPDATE_KEYS = ("backbone", "method", "length", "precision")


def main() -> int:
    """Measures, or compares with the estimate; returns 1 if an estimate misses the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("measure", "compare"))
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "measure":
        measure(arguments.file)
        return 0
    return compare(json.loads(arguments.file.read_text(encoding="utf-8")))


def config_of(backbone: str, method: str, length: int, precision: str) -> RunConfig:
    """The run that is measured and estimated."""
    overrides = [f"backbone={backbone}", "task=mrpc", f"task.max_length={length}", f"train.batch_size={ROWS}"]
    return load_config([*overrides, f"train.precision={precision}", "train.device=cuda", *f"method={method}".split()])


def measure(file: Path) -> None:
    """Measures every combination and writes the file after each; what it holds of the same device and torch stays."""
    workspaces = _warm_up()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "batch_size": ROWS,
        "workspace_bytes": workspaces,
        "updates": [],
    }
    if file.exists():
        earlier = json.loads(file.read_text(encoding="utf-8"))
        if all(earlier.get(key) == value for key, value in found.items() if key != "updates"):
            found = earlier
    done = [{key: one[key] for key in _UPDATE_KEYS} for one in found["updates"]]
    for name in BACKBONES:
        first = config_of(name, METHODS[0], LENGTHS[0], "fp32")
        backbone = open_backbone(first.backbone, first.layers, weights=False)
        labels = list(first.task.labels or ())
        model = backbone.build_model(len(labels), labels).cuda()
        for length, precision, method in itertools.product(LENGTHS, PRECISIONS, METHODS):
            update = dict(zip(_UPDATE_KEYS, (name, method, length, precision), strict=True))
            if update in done:
                continue
            cfg = config_of(name, method, length, precision)
            try:
                allocated, between = _peak_of_update(copy.deepcopy(model), backbone, cfg)
            except RequestError as error:  # ModernBERT has no biases to train
                print(error)
                continue
            found["updates"].append({**update, "peak_bytes": allocated, "between_updates_bytes": between})
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(*update.values(), f"{allocated / 2**20:,.1f} MiB", flush=True)
        del model


def _warm_up() -> int:
    """Makes cuBLAS allocate its workspaces, which stay, and returns their bytes."""
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(512, 512, device="cuda", dtype=dtype, requires_grad=True)
        nn.functional.linear(matrix, matrix, matrix[0]).sum().backward()
    del matrix
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


def _peak_of_update(model: nn.Module, backbone: Backbone, cfg: RunConfig) -> tuple[int, int]:
    """Bytes at the peak of the third update, and between two updates; what was allocated before the model is left out.

    Args:
        model: The backbone with a fresh head, on the device.
        backbone: What it was built from.
        cfg: The run.
    """
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated() - _bytes(model)
    with torch.device("cuda"):
        model = adapt(model, cfg.method, AdaptContext(backbone.anatomy, backbone.plan, 1000)).cuda().train()
    optimizer = build_optimizer(model, cfg.train, backbone.anatomy.in_head)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ids = torch.randint(5, 100, (ROWS, cfg.task.max_length), device="cuda")
    labels = torch.zeros(ROWS, dtype=torch.int64, device="cuda")
    dtype = PRECISIONS[cfg.train.precision]
    between = 0
    for _ in range(3):
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        between = torch.cuda.memory_allocated() - before
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        del loss
    return torch.cuda.max_memory_allocated() - before, between


def _bytes(model: nn.Module) -> int:
    storages = {tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())}
    return sum(storage.nbytes() for storage in storages)


def compare(measured: dict) -> int:
    """Prints the table of errors; returns 1 if one misses the goal."""
    updates = measured["updates"]
    with ProcessPoolExecutor() as pool:
        estimates = list(pool.map(_estimate, updates))
    errors = {
        (one["method"], one["backbone"], one["length"], one["precision"]): 100 * (estimate / one["peak_bytes"] - 1)
        for one, estimate in zip(updates, estimates, strict=True)
    }
    columns = list(itertools.product(BACKBONES, LENGTHS, PRECISIONS))
    print(
        f"{measured['device']}, torch {measured['torch']}, batches of {measured['batch_size']} rows: error in percent\n"
    )
    print("| method |" + "".join(f" {backbone} {length} {precision} |" for backbone, length, precision in columns))
    print("|---|" + "---:|" * len(columns))
    for method in METHODS:
        cells = [errors.get((method, *column)) for column in columns]
        name = method.removeprefix("peft method.type=")
        print(f"| {name} |" + "".join(" |" if cell is None else f" {cell:+.1f} |" for cell in cells))
    missed = sum(abs(error) > GOAL_PERCENT for error in errors.values())
    print(
        f"\n{len(errors)} updates, {missed} beyond {GOAL_PERCENT:g} %, from {min(errors.values()):+.1f} % to "
        f"{max(errors.values()):+.1f} %"
    )
    return int(missed > 0)


def _estimate(update: dict) -> int:
    torch.set_num_threads(1)
    cfg = config_of(update["backbone"], update["method"], update["length"], update["precision"])
    backbone = open_backbone(cfg.backbone, cfg.layers, weights=False)
    return estimate_costs(cfg, backbone, list(cfg.task.labels or ())).estimate.peak_bytes


if __name__ == "__main__":
    sys.exit(main())
