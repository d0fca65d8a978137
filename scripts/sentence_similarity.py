"""How well the mean of an encoder's last states ranks pairs of sentences by likeness, without any training on them.

    python scripts/sentence_similarity.py DATA_ROOT [ADAPTER ...]

Prints Spearman's correlation of cosine similarity and label on STS-B's validation pairs: for MiniLM itself, for MiniLM
with an untrained CoDA adapter, and for each adapter that `petl-bench pretrain method=coda` made.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from peft import PeftModel, get_peft_model
from scipy.stats import spearmanr
from torch import nn
from transformers.utils import logging

from petl_bench.backbones.load import Backbone, open_backbone
from petl_bench.config import load_config
from petl_bench.methods.coda.model import CodaConfig
from petl_bench.methods.modules import pool

PAIRS, BATCH = 400, 50


def main() -> None:
    """Prints a line an encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("adapters", nargs="*", type=Path)
    arguments = parser.parse_args()
    # The fresh head, which transformers warns of, is not used.
    logging.set_verbosity_error()
    rows = pd.concat(map(pd.read_parquet, sorted((arguments.data_root / "stsb").glob("validation-*.parquet"))))
    pairs = rows.sample(PAIRS, random_state=0)
    print(f"MiniLM: {correlation(encoder(), pairs):.3f}")
    for attention in ("k2all", "k2k"):
        torch.manual_seed(0)
        config = CodaConfig(reduction=3.0, attention=attention, straight_through=True)
        print(f"untrained, {attention}, r = 3: {correlation(get_peft_model(encoder(), config), pairs):.3f}")
    for folder in arguments.adapters:
        model = PeftModel.from_pretrained(encoder(), folder)
        print(f"{folder}, r = {model.peft_config['default'].reduction:g}: {correlation(model, pairs):.3f}")


def encoder() -> nn.Module:
    """The bare MiniLM."""
    model: nn.Module = minilm().build_model(1).base_model
    return model


def minilm() -> Backbone:
    """The embedded backbone, all layers."""
    cfg = load_config(["backbone=minilm"])
    return open_backbone(cfg.backbone, cfg.layers)


def correlation(model: nn.Module, pairs: pd.DataFrame) -> float:
    """Spearman's correlation of the cosine similarity of a pair's means with its label."""
    first, second = (means(model.eval(), pairs[column].tolist()) for column in ("sentence1", "sentence2"))
    return float(spearmanr(torch.cosine_similarity(first, second), pairs["label"]).statistic)


@torch.no_grad()
def means(model: nn.Module, texts: list[str]) -> torch.Tensor:
    """The mean state of each text, shape (texts, d)."""
    tokenizer = minilm().load_tokenizer()
    found = []
    for start in range(0, len(texts), BATCH):
        inputs = tokenizer(texts[start : start + BATCH], padding=True, return_tensors="pt")
        found.append(pool(model(**inputs).last_hidden_state, inputs["attention_mask"].float(), "mean"))
    return torch.cat(found)


if __name__ == "__main__":
    main()
