"""Weights and inputs that this library and the reference both make from names, so that none need be stored."""

from __future__ import annotations

import zlib

import numpy as np

HIDDEN, LAYERS, HEADS, FEED_FORWARD, BOTTLENECK, PREFIX = 16, 2, 2, 24, 6, 3
SHARED = {
    "vocab_size": 40,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FEED_FORWARD,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
}
CONFIGS = {
    "bert": SHARED,
    "roberta": SHARED,
    "electra": SHARED | {"embedding_size": HIDDEN},
    "distilbert": {
        "vocab_size": 40,
        "dim": HIDDEN,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "hidden_dim": FEED_FORWARD,
        "max_position_embeddings": 24,
        "pad_token_id": 0,
    },
    "deberta-v2": SHARED
    | {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 4,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
    },
}
IDS = [[5, 9, 30, 12, 7], [8, 22, 3, 0, 0]]
MASK = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def values(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers from a seed that the key gives; norms are kept near one."""
    drawn = 0.2 * np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    return 1.0 + drawn if "norm" in key.lower() and key.endswith("weight") else drawn
