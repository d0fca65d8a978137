"""From a layer plan as it is asked for to the plan that a run uses; `layers=variability` looks at the rows first."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from petl_bench.backbones.config import STRATEGIES, BackboneConfig, LayersConfig
from petl_bench.backbones.load import Backbone, open_backbone
from petl_bench.errors import RequestError, RunError, unknown_choice
from petl_bench.layers.variability import bins_of, variability
from petl_bench.records.schema import Layers

if TYPE_CHECKING:
    from petl_bench.tasks.load import Task
    from petl_bench.tasks.rows import Rows

_log = logging.getLogger(__name__)
# Draws the rows that are looked at, and the labels of the null line.
_SEED = 0


def choose_layers(
    layers: LayersConfig, backbone: BackboneConfig, task: Task, batch_size: int, device: str
) -> tuple[LayersConfig, Layers | None]:
    """Returns a plan that needs no rows any more, and how it was found; other plans pass unchanged.

    Args:
        layers: As the user asks for them.
        backbone: Whose states are looked at, before it is adapted.
        task: Whose training rows are used.
        batch_size: Rows a forward pass.
        device: Where to run.

    Raises:
        RequestError: for settings out of range, or a class without an example.
        RunError: where the backbone's states are not finite.
    """
    if layers.name != "variability":
        return layers, None
    check_variability(layers)
    opened = open_backbone(backbone, LayersConfig())
    rows, classes, num_classes = _labelled_rows(layers, task)
    states = pooled_states(opened, rows, task.settings.max_length, batch_size, device)
    shuffled = np.random.default_rng(_SEED).permutation(classes)
    try:
        measured = [variability(layer, classes, num_classes) for layer in states]
        null_line = [variability(layer, shuffled, num_classes) for layer in states]
    except ValueError as error:
        if not np.isfinite(states).all():
            raise RunError(f"layers=variability cannot be measured: {error}.") from error
        raise RequestError(
            f"layers=variability cannot be measured: {error}. Use more rows (layers.num_examples, "
            "task.num_train_examples) or another layer plan."
        ) from error
    if not np.isfinite(measured).any():
        raise RequestError(
            "layers=variability: every layer gives all classes the same mean state; choose another plan."
        )
    chosen = place(layers, int(np.argmin(measured)) + 1, len(measured))
    _report(measured, null_line, chosen, len(rows))
    found = Layers(chosen.bottom, chosen.top, chosen.head, len(measured), measured, null_line, len(rows))  # type: ignore[arg-type]
    return chosen, found


def place(layers: LayersConfig, best: int, num_layers: int) -> LayersConfig:
    """The window that a strategy makes of the best layer l* (1-based)."""
    width = min(layers.k or best, best)
    bottom, top, head = {
        "prefix": (1, best, best),
        "window": (best - width + 1, best, best),
        "window_top_head": (best - width + 1, best, num_layers),
        "top": (num_layers - best + 1, num_layers, num_layers),
    }[layers.strategy or "prefix"]
    return LayersConfig(name="window", bottom=bottom, top=top, head=head)


def check_variability(layers: LayersConfig) -> None:
    """Raises RequestError for a setting of `layers=variability` out of its range."""
    if layers.strategy not in STRATEGIES:
        raise unknown_choice("layers.strategy", layers.strategy, STRATEGIES)
    if (layers.num_bins or 0) < 2:
        raise RequestError(f"layers.num_bins={layers.num_bins} must be at least 2.")
    if layers.k is not None and layers.k < 1:
        raise RequestError(f"layers.k={layers.k} must be at least 1.")
    if layers.num_examples is not None and layers.num_examples < 2:
        raise RequestError(f"layers.num_examples={layers.num_examples} must be at least 2.")


def extreme_plans(layers: LayersConfig, num_layers: int) -> list[LayersConfig]:
    """The plans that `layers` comes to with the lowest and the highest layer chosen, and the lowest at full width.

    A plan that asks no rows stands for itself.

    Raises:
        RequestError: for a setting out of its range.
    """
    if layers.name != "variability":
        return [layers]
    check_variability(layers)
    widest = min(layers.k or num_layers, num_layers)
    choices = {1, widest, num_layers} if layers.strategy == "window_top_head" else {1, num_layers}
    return [place(layers, best, num_layers) for best in sorted(choices)]


def _labelled_rows(layers: LayersConfig, task: Task) -> tuple[Rows, np.ndarray, int | None]:
    """The rows to look at, their classes, and how many classes there must be."""
    rows = task.train
    if layers.num_examples is not None and layers.num_examples < len(rows):
        rows = rows.take(np.random.default_rng(_SEED).permutation(len(rows))[: layers.num_examples])
    assert rows.labels is not None
    if task.labels is None:
        return rows, bins_of(rows.labels, layers.num_bins or 2), None
    return rows, rows.labels, len(task.labels)


def pooled_states(backbone: Backbone, rows: Rows, max_length: int, batch_size: int, device: str) -> np.ndarray:
    """Mean state of each row over its tokens, special ones and padding left out; pairs are encoded jointly.

    Returns:
        float32, shape (layers, rows, d); the embeddings are not among the layers.
    """
    import torch

    anatomy, tokenizer = backbone.anatomy, backbone.load_tokenizer()
    model: torch.nn.Module = backbone.build_model(2).eval()
    model.to(device)
    encoder: Any = model.get_submodule(anatomy.encoder)
    # Where the norms come first, the encoder's last state alone is normed: so is each, as if the encoder ended there.
    final_norm = model.get_submodule(anatomy.above_layers[0]) if anatomy.norm_first else torch.nn.Identity()
    order = sorted(range(len(rows)), key=lambda index: -sum(len(column[index]) for column in rows.texts))
    pooled: np.ndarray | None = None
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        columns = [[column[index] for index in indices] for column in rows.texts]
        batch = tokenizer(
            *columns,
            truncation=True,
            max_length=max_length,
            padding=True,
            return_special_tokens_mask=True,
            return_tensors="pt",
        ).to(device)
        words = (1 - batch.pop("special_tokens_mask")) * batch["attention_mask"]
        with torch.inference_mode():
            *inner, last = encoder(**batch, output_hidden_states=True).hidden_states[1:]
            states = [*map(final_norm, inner), last]
        weights = words[..., None].float()
        # A row without words keeps the mean of nothing: zero.
        means = [(state.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1) for state in states]
        found = torch.stack(means).cpu().numpy()
        if pooled is None:
            pooled = np.empty((len(found), len(rows), found.shape[2]), dtype=np.float32)
        pooled[:, indices] = found
    assert pooled is not None
    return pooled


def _report(measured: list[float], null_line: list[float], chosen: LayersConfig, num_rows: int) -> None:
    best = int(np.argmin(measured))
    _log.info("variability by layer, over %d training rows (with shuffled labels):", num_rows)
    for number, (value, null) in enumerate(zip(measured, null_line, strict=True)):
        _log.info("  layer %2d  %.4g (%.4g)%s", number + 1, value, null, "  <- lowest" if number == best else "")
    _log.info("layers %s..%s are adapted, the head reads layer %s", chosen.bottom, chosen.top, chosen.head)


def settled_layers(layers: LayersConfig, record: Layers | None) -> LayersConfig:
    """The plan of a finished run, without looking at rows again."""
    if record is None or layers.name != "variability":
        return layers
    return LayersConfig(name="window", bottom=record.bottom, top=record.top, head=record.head)
