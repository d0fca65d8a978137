"""Downloads a backbone and a task once, so that machines without a network can run them from the local cache."""

from __future__ import annotations

from collections.abc import Iterator

from petl_bench.backbones.source import find_source
from petl_bench.config import RunConfig
from petl_bench.tasks.load import load_task


def fetch(cfg: RunConfig) -> Iterator[str]:
    """Fetches what `cfg` needs; gives a line for each thing that is there now.

    Raises:
        RunError: where the hub cannot be reached.
        RequestError: where the settings name something that does not exist.
    """
    if cfg.backbone.weights == "random":
        yield f"backbone {cfg.backbone.name}: random weights, nothing to fetch"
    else:
        yield f"backbone {cfg.backbone.name}: {find_source(cfg.backbone).folder}"
    rows = load_task(cfg.task, cfg.data_root).rows_per_split()
    yield f"task {cfg.task.name}: " + ", ".join(f"{count:,} {split} rows" for split, count in rows.items())
