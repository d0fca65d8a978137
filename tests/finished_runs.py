"""Finished runs of each type of task on a local backbone, which tests of what a run is used for share."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from petl_bench.backbones.load import open_backbone
from petl_bench.config import load_config
from petl_bench.run.lifecycle import identify
from petl_bench.run.run import run

WORDS = {"billing": "bbbb", "card": "ccc", "Other things": "xxxxx"}
LABELS = sorted(WORDS)
TEXT_COLUMN = {"classification": "question", "regression": "question", "multilabel": "question", "tagging": "tokens"}
# Enough to tell the labels apart.
EPOCHS = {"classification": 4, "regression": 4, "multilabel": 4, "tagging": 12}
METRICS = {
    "classification": "task.metrics=[accuracy,macro_f1] task.metric=accuracy",
    "regression": "task.type=regression task.metrics=[pearson,mean_squared_error] task.metric=pearson",
}


def table(kind: str, count: int, seed: int) -> pd.DataFrame:
    """Texts of one to five words, whose labels a model with a byte for a token learns at once."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        chosen = LABELS[number % 3]
        words = [WORDS[chosen]] * rng.integers(1, 6)
        if kind == "multilabel":
            named = [name for name in LABELS if rng.random() < 0.5]
            rows.append({"question": " ".join(["a", *(WORDS[one] for one in named)]), "label": ",".join(named)})
        elif kind == "tagging":
            tags = ["B-card", *["I-card"] * (len(words) - 1)] if chosen == "card" else ["O"] * len(words)
            rows.append({"tokens": ["a", *words], "label": ["O", *tags]})
        else:
            label = float(len(words)) if kind == "regression" else chosen
            rows.append({"question": " ".join(words), "label": label})
    return pd.DataFrame(rows)


@functools.cache
def root() -> Path:
    """A folder with the backbone in `base` and the rows of every type of task."""
    folder = Path(tempfile.mkdtemp(prefix="finished-runs-"))
    cfg = load_config(["backbone=tiny_bert", "backbone.architecture.num_hidden_layers=2"])
    backbone = open_backbone(cfg.backbone, cfg.layers)
    backbone.build_model(2).save_pretrained(folder / "base")
    backbone.load_tokenizer().save_pretrained(folder / "base")
    for kind in TEXT_COLUMN:
        for split, count, seed in (("train", 60, 0), ("dev", 24, 1)):
            rows = table(kind, count, seed)
            rows.to_json(folder / f"{kind}-{split}.jsonl", orient="records", lines=True)
    return folder


@functools.cache
def finished(kind: str = "classification", *overrides: str) -> Path:
    """The folder of a run, which tests must leave as it is."""
    files = root()
    task = {"multilabel": "multilabel", "tagging": "tagging"}.get(kind, "custom")
    cfg = load_config(
        [
            *(f"task={task}", f"task.text_columns=[{TEXT_COLUMN[kind]}]", "task.label_column=label"),
            *METRICS.get(kind, "").split(),
            *(
                f"task.train_file={files / f'{kind}-train.jsonl'}",
                f"task.validation_file={files / f'{kind}-dev.jsonl'}",
            ),
            *("backbone=tiny_bert", "backbone.weights=pretrained", f"backbone.path={files / 'base'}"),
            *("task.max_length=48", "train.batch_size=8", "train.learning_rate=1e-2"),
            f"train.epochs={EPOCHS[kind]}",
            *("measure.ledger=false", "measure.inference=false", f"runs_dir={files / 'runs'}"),
            *(overrides or ("method=lora",)),
        ]
    )
    run(cfg)
    return identify(cfg).folder


def record_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def code_of(card: str) -> str:
    """The code of a model card."""
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
