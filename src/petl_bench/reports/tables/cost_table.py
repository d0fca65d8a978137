"""The table of `petl-bench plan`: what each method takes, before it is run."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from petl_bench.records.schema import LedgerAtPeak
from petl_bench.reports.tables.columns import MIB, MISSING
from petl_bench.reports.tables.table import ReportTable

KINDS = [field.name.removesuffix("_bytes") for field in fields(LedgerAtPeak)]


def cost_table(rows: list[dict[str, Any]]) -> ReportTable:
    """One row a method.

    Args:
        rows: As `petl-bench plan --json` prints them.
    """
    counted = [row for row in rows if row["params"]]
    ledger = counted[0]["memory"]["ledger"]
    with_budget = "fits" in counted[0]
    header = ["method", "layers", "method params", "head params", "% of backbone"]
    header += [f"{kind} MiB" for kind in KINDS]
    header += ["peak MiB", "x below full", "step GFLOP", "inference GFLOP"]
    header += ["fits", "largest batch"] if with_budget else []
    title = (
        f"{counted[0]['backbone']}, {counted[0]['task']}: one update of {ledger['batch_size']} rows x "
        f"{ledger['sequence_length']} tokens, {counted[0]['precision']}, AdamW"
    )
    cells = [_cells(row, with_budget) for row in counted]
    return ReportTable(title, header, cells, _notes(rows, ledger))


def _cells(row: dict[str, Any], with_budget: bool) -> list[str]:
    params, ledger, flops, layers = row["params"], row["memory"]["ledger"], row["flops"], row["layers"]
    reduction = row["peak_reduction"]
    cells = [
        row["label"],
        f"{layers['bottom']}-{layers['top']}",
        f"{params['trainable_method']:,}",
        f"{params['trainable_head']:,}",
        f"{params['trainable_share_of_backbone_percent']:.3f}",
        *(f"{ledger[f'{kind}_bytes'] / MIB:,.1f}" for kind in KINDS),
        f"{ledger['peak_bytes'] / MIB:,.1f}",
        MISSING if reduction is None else f"{reduction:.2f}",
        f"{flops['train_step_flops'] / 1e9:,.1f}",
        f"{flops['inference_flops'] / 1e9:,.1f}",
    ]
    if with_budget:
        cells += ["yes" if row["fits"] else "no", f"{row['largest_batch_size']:,}"]
    return cells


def _notes(rows: list[dict[str, Any]], ledger: dict[str, Any]) -> list[str]:
    kernels = {row["memory"]["ledger"]["attention_kernel"] for row in rows if row["params"]}
    split = f", in {ledger['accumulation']} passes" if ledger["accumulation"] > 1 else ""
    notes = [
        f"the update: optimizer states are there, no row is padded{split}; counted storage by storage as torch's "
        f"{ledger['device']} kernels allocate (attention: {', '.join(sorted(kernels))})",
        "each kind at its own most, temporaries at the peak; the kinds need not be at their most when the peak is",
        "% of backbone: trained parameters, head included, over the encoder's (head excluded)",
        "GFLOP: matrix products and fused attention, a multiply-add as two; inference: the same rows, merged if it can",
    ]
    return notes + [f"{row['method']}: {row['note']}" for row in rows if row["note"]]
