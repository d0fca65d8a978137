"""Inference throughput of CoDA against its own r=1 model, interleaved in one process, on random weights.

python scripts/bench_coda.py                         # BERT-base shape, batch 8, 128 tokens
python scripts/bench_coda.py --batch-size 16 --repeats 10 --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from petl_bench.backbones.load import open_backbone
from petl_bench.config import load_config
from petl_bench.methods.base import adapt
from petl_bench.methods.registry import AdaptContext

VARIANTS = {
    "r=1": ["method.reduction=1"],
    "r=3 k2k": ["method.reduction=3"],
    "r=5 k2k": ["method.reduction=5"],
    "r=3 k2all": ["method.reduction=3", "method.attention=k2all"],
    "r=5 k2all": ["method.reduction=5", "method.attention=k2all"],
    "r=3 k2k iterative": ["method.reduction=3", "method.solver=iterative"],
}


def build(backbone: str, overrides: list[str]) -> torch.nn.Module:
    """A model with random weights in eval mode."""
    cfg = load_config([f"backbone={backbone}", "backbone.weights=random", "method=coda", *overrides])
    opened = open_backbone(cfg.backbone, cfg.layers)
    torch.manual_seed(0)
    context = AdaptContext(opened.anatomy, opened.plan, num_training_steps=1)
    return adapt(opened.build_model(2), cfg.method, context).eval()


def main() -> None:
    """Prints examples/s and ratios to r=1: median, lowest and highest over the repeats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="bert_base")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    models = {name: build(args.backbone, overrides) for name, overrides in VARIANTS.items()}
    ids = torch.randint(5, 300, (args.batch_size, args.length), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for repeat in range(args.repeats + 1):
            for name, model in models.items():
                started = time.perf_counter()
                model(**inputs)
                # The first round warms up.
                if repeat:
                    seconds[name].append(time.perf_counter() - started)
    rows = []
    for name, taken in seconds.items():
        ratios = [base / own for base, own in zip(seconds["r=1"], taken, strict=True)]
        rows.append(
            {
                "model": name,
                "examples_per_second": args.batch_size / statistics.median(taken),
                "ratio_median": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
            }
        )
    if args.json:
        settings = {"torch": torch.__version__, "threads": torch.get_num_threads(), **vars(args)}
        print(json.dumps({"settings": settings, "rows": rows}, indent=2))
        return
    for row in rows:
        print(
            f"{row['model']:18} {row['examples_per_second']:8.1f} examples/s   "
            f"x{row['ratio_median']:.2f} ({row['ratio_min']:.2f}..{row['ratio_max']:.2f})"
        )


if __name__ == "__main__":
    main()
