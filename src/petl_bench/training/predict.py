"""Runs a model over rows without gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from petl_bench.errors import DivergedError
from petl_bench.training.batching import sorted_batches
from petl_bench.training.feed import Feed

if TYPE_CHECKING:
    from accelerate import Accelerator


def predict_logits(model: torch.nn.Module, feed: Feed, batch_size: int, accelerator: Accelerator) -> np.ndarray:
    """The model's outputs for every row, in the rows' order.

    Batches are shared out over the processes; every process returns all rows.

    Returns:
        float32, shape (rows, outputs).

    Raises:
        DivergedError: where an output is not finite.
    """
    batches = sorted_batches(feed.rows.lengths, batch_size)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    was_training = model.training
    model.eval()
    found: list[tuple[np.ndarray, np.ndarray]] = []
    with torch.inference_mode(), accelerator.autocast():
        for indices in tqdm(mine, desc="evaluating", leave=False, delay=2, disable=None):
            outputs = feed.forward(model, feed.batch(indices))
            found.append((indices, outputs.logits.float().cpu().numpy()))
    model.train(was_training)
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        found = gather_object(found)
    logits = np.empty((len(feed.rows), found[0][1].shape[1]), dtype=np.float32)
    for indices, values in found:
        logits[indices] = values
    if not np.isfinite(logits).all():
        raise DivergedError(
            "The model's outputs are not finite: lower train.learning_rate or use train.precision=fp32."
        )
    return logits


def logits_to_predictions(logits: np.ndarray) -> np.ndarray:
    """Class indices, or the values themselves where there is one output; shape (rows,)."""
    return logits[:, 0].astype(np.float64) if logits.shape[1] == 1 else logits.argmax(axis=1)
