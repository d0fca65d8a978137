"""What the runs of a study will take, as `petl-bench plan` counts it, before any of them is made."""

from __future__ import annotations

from petl_bench.config import RunConfig, settled
from petl_bench.costs import cost_key
from petl_bench.plan import PlanRow, count_all
from petl_bench.records.study_file import PlannedCosts
from petl_bench.studies.expand import Cell
from petl_bench.tasks.load import find_labels


def predict_costs(configs: list[tuple[Cell, RunConfig]]) -> list[PlannedCosts]:
    """Parameters and peak memory of each method on each task; cells that cost the same are counted once."""
    by_cell = {(cell.method, cell.task): settled(cfg) for cell, cfg in configs}
    keys = {name: cost_key(cfg, cfg.layers, find_labels(cfg.task)) for name, cfg in by_cell.items()}
    distinct = {keys[name]: cfg for name, cfg in by_cell.items()}
    counted = dict(zip(distinct, count_all([(cfg, None) for cfg in distinct.values()]), strict=True))
    return [_costs(*name, counted[keys[name]]) for name in by_cell]


def _costs(method: str, task: str, row: PlanRow | Exception) -> PlannedCosts:
    if not isinstance(row, PlanRow):
        return PlannedCosts(method, task, note=str(row))
    assert row.params
    assert row.ledger
    return PlannedCosts(
        method=method,
        task=task,
        trainable_method=row.params.trainable_method,
        trainable_head=row.params.trainable_head,
        trainable_share_of_backbone_percent=row.params.trainable_share_of_backbone_percent,
        peak_bytes=row.ledger.peak_bytes,
        note=row.note,
    )
