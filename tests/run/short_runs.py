"""Settings that make a run short, and rows written as JSON lines."""

from __future__ import annotations

import json

FAST = [
    "measure.ledger=false",
    "measure.inference=false",
    "backbone.architecture.num_hidden_layers=2",
    "train.batch_size=8",
]


def write(file, rows):
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file
