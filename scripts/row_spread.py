"""How much rows differ in what a head may read: the first token's state, and the mean of all tokens', layer by layer.

python scripts/row_spread.py backbone=minilm task=mrpc data_root=DIR
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from petl_bench.backbones.load import open_backbone
from petl_bench.config import load_config
from petl_bench.tasks.encode import encode
from petl_bench.tasks.load import load_task
from petl_bench.training.batches import collate

ROWS, BATCH = 256, 64


def spread(states: torch.Tensor) -> float:
    """The standard deviation over rows, as a share of the mean over rows; both as lengths of vectors."""
    return float(states.std(dim=0).norm() / states.mean(dim=0).norm())


def main() -> None:
    """Prints a table in Markdown, for the first training rows."""
    cfg = load_config(["backbone=minilm", "task=banking77", *sys.argv[1:]])
    backbone = open_backbone(cfg.backbone, cfg.layers)
    rows = load_task(cfg.task, cfg.data_root).train
    encoded = encode(rows, backbone.load_tokenizer(), cfg.task.max_length, cached=False)
    encoder = backbone.build_model(2).eval().get_submodule(backbone.anatomy.encoder)
    first: list[list[torch.Tensor]] = []
    means: list[list[torch.Tensor]] = []
    for start in range(0, min(ROWS, len(encoded)), BATCH):
        inputs = collate(encoded, np.arange(start, min(start + BATCH, ROWS, len(encoded)))).inputs
        with torch.no_grad():
            states = encoder(**inputs, output_hidden_states=True).hidden_states[1:]
        mask = inputs["attention_mask"][:, :, None]
        first.append([state[:, 0] for state in states])
        means.append([(state * mask).sum(dim=1) / mask.sum(dim=1) for state in states])
    print("| layer | first token | mean of the tokens |\n|---|---|---|")
    for layer, (one, other) in enumerate(zip(zip(*first, strict=True), zip(*means, strict=True), strict=True), start=1):
        print(f"| {layer} | {spread(torch.cat(one)):.3f} | {spread(torch.cat(other)):.3f} |")


if __name__ == "__main__":
    main()
