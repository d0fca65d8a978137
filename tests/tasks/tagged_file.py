"""A tagging task whose rows are those of one file, and names of tags for it."""

from __future__ import annotations

import json

import pandas as pd

from petl_bench.config import load_config
from petl_bench.tasks.load import load_task

LABELS = ["O", "B-loc", "I-loc", "B-per", "I-per"]


def loaded(tmp_path, content, name="train.conll", *overrides):
    """A task whose rows to train and to report on are those of one file."""
    file = tmp_path / name
    if isinstance(content, str):
        file.write_text(content, encoding="utf-8")
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif name.endswith(".parquet"):
        pd.DataFrame(content).to_parquet(file)
    else:
        file.write_text("".join(f"{json.dumps(row)}\n" for row in content))
    files = [f"task.train_file='{file}'", f"task.validation_file='{file}'"]
    return load_task(load_config(["task=tagging", *files, *overrides]).task, None)
