"""Reads back what W&B wrote offline."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any


@dataclass
class Mirror:
    """One offline run."""

    start: Any
    config: dict[str, Any]
    points: list[dict[str, Any]]
    axes: set[str]
    summary: dict[str, Any]


def read_offline(file) -> Mirror:
    parts = list(wandb_records(file))

    def of_type(name):
        return [getattr(part, name) for part in parts if part.WhichOneof("record_type") == name]

    start = of_type("run")[0]
    summary = {}
    for part in of_type("summary"):
        summary |= _items(part.update)
    return Mirror(
        start=start,
        config=_items(start.config.update),
        points=[_items(point.item) for point in of_type("history")],
        axes={axis.step_metric for axis in of_type("metric") if axis.step_metric},
        summary=summary,
    )


def _items(items) -> dict[str, Any]:
    return {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in items}


def wandb_records(file):
    """Reads W&B's offline file: a LevelDB log of protobuf records behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content = file.read_bytes()
    position, pending = 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        pending += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pending)
            yield record
            pending = b""
