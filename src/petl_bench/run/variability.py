"""Chooses the layers to adapt by hidden-state variability (Xie et al., Findings of EMNLP 2022, 3.1; their code)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from petl_bench.backbones.anatomy import LayersConfig, check_variability, layer_window
from petl_bench.backbones.load import Backbone, open_backbone
from petl_bench.backbones.source import BackboneConfig
from petl_bench.errors import RequestError, RunError
from petl_bench.records.schema import Layers
from petl_bench.tasks.encode import encode
from petl_bench.training.batches import collate

if TYPE_CHECKING:
    import torch

    from petl_bench.tasks.load import Task
    from petl_bench.tasks.rows import Rows


def variability(states: np.ndarray, labels: np.ndarray, num_classes: int | None = None) -> float:
    """The metric nu: spread within classes relative to the spread between them; low where a layer is specialised.

    `nu = trace(Sw pinv(Sb)) / |Y|`, with the within-class covariance Sw averaged over classes, and Sb the covariance of
    the class means around *their* mean: each class weighs the same whatever its size. Computed in float64 in the space
    of the class means, at most |Y| - 1 dimensions, which gives the same number without the d x d matrices.

    nu depends on the number of examples: compare layers at the same one.

    Args:
        states: One pooled state an example, shape (examples, d).
        labels: Class indices, shape (examples,).
        num_classes: How many classes there must be; None: those that occur.

    Raises:
        ValueError: If a class has no example, there are fewer than two, or a state is not finite. A class with one
            example is allowed; it adds no spread.

    Returns:
        nu; infinity where all classes have the same mean.
    """
    states = np.asarray(states, dtype=np.float64)
    if not np.isfinite(states).all():
        raise ValueError("a hidden state is not finite")
    if not np.isfinite(labels).all():
        raise ValueError("a label is not finite")
    classes, sizes = np.unique(labels, return_counts=True)
    if num_classes is not None and set(classes.tolist()) != set(range(num_classes)):
        missing = sorted(set(range(num_classes)) - set(classes.tolist()))
        if missing:
            raise ValueError(f"class {missing[0]} has no example among {len(labels)} rows")
        raise ValueError(f"labels outside 0..{num_classes - 1}")
    if len(classes) < 2:
        raise ValueError("at least two classes are needed")
    if sizes.max() < 2:
        raise ValueError("no class has two examples, so there is no spread within classes")
    means = np.stack([states[labels == label].mean(axis=0) for label in classes])
    between = (means - means.mean(axis=0)) / np.sqrt(len(classes))
    _, singular, directions = np.linalg.svd(between, full_matrices=False)
    nonzero = singular > singular.max() * max(between.shape) * np.finfo(np.float64).eps
    # Means that differ by less than rounding are the same.
    nonzero &= singular > np.abs(states).max() * max(between.shape) * np.finfo(np.float64).eps
    if not nonzero.any():
        return math.inf
    scaled = directions[nonzero] / singular[nonzero, None]
    spread = [
        np.square((states[labels == label] - mean) @ scaled.T).sum(axis=1).mean()
        for label, mean in zip(classes, means, strict=True)
    ]
    return float(np.sum(spread) / len(classes) ** 2)


def bins_of(targets: np.ndarray, num_bins: int) -> np.ndarray:
    """Classes of about equal size for regression targets: the bounds are their quantiles; empty bins are left out."""
    bounds = np.unique(np.quantile(targets, np.linspace(0, 1, num_bins + 1)[1:-1], method="higher"))
    # A bound at the lowest target would leave nothing below it, and many equal targets must not swallow the others.
    bounds = bounds[bounds > targets.min()]
    if not len(bounds):
        bounds = np.unique(targets)[1:2]
    return np.unique(np.searchsorted(bounds, targets, side="right"), return_inverse=True)[1]


_log = logging.getLogger(__name__)

# The seed for drawing the rows in use and the labels of the null line.
_SEED = 0

# The maximum number of words of each tag in use.
_WORDS_OF_A_TAG = 500


def choose_layers(
    layers: LayersConfig, backbone: BackboneConfig, task: Task, batch_size: int, device: str
) -> tuple[LayersConfig, Layers | None]:
    """Resolves `layers=variability` into a plan that needs no rows; other plans are returned unchanged.

    Args:
        layers: The layer plan of the settings.
        backbone: The backbone, before it is adapted.
        task: The task; its training rows are used.
        batch_size: Rows of a forward pass.
        device: Device to compute on.

    Returns:
        The resolved plan, and what the record says of it; None for a plan that is not by variability.

    Raises:
        RequestError: For settings out of range, or a class without an example.
        RunError: If the backbone's states are not finite.
    """
    if layers.name != "variability":
        return layers, None
    check_variability(layers)
    if task.settings.type == "multilabel":
        raise RequestError(
            "layers=variability needs one class a row, and rows of task.type=multilabel have several labels: choose "
            "another layer plan."
        )
    opened = open_backbone(backbone, LayersConfig())
    if task.settings.type == "tagging":
        rows = _drawn_rows(layers, task)
        states, classes = word_states(opened, rows, task.settings.max_length, batch_size, device)
        num_classes = None
    else:
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
    chosen = layer_window(layers, int(np.argmin(measured)) + 1, len(measured))
    _report(measured, null_line, chosen, len(rows))
    described = Layers(chosen.bottom, chosen.top, chosen.head, len(measured), measured, null_line, len(rows))  # type: ignore[arg-type]
    return chosen, described


def _labelled_rows(layers: LayersConfig, task: Task) -> tuple[Rows, np.ndarray, int | None]:
    """The rows to look at, their classes, and how many classes there must be."""
    rows = _drawn_rows(layers, task)
    assert rows.labels is not None
    if task.labels is None:
        return rows, bins_of(rows.labels, layers.num_bins or 2), None
    return rows, rows.labels, len(task.labels)


def _drawn_rows(layers: LayersConfig, task: Task) -> Rows:
    rows = task.train
    if layers.num_examples is not None and layers.num_examples < len(rows):
        rows = rows.take(np.random.default_rng(_SEED).permutation(len(rows))[: layers.num_examples])
    return rows


def word_states(
    backbone: Backbone, rows: Rows, max_length: int, batch_size: int, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the hidden state of words at their first token, for at most `_WORDS_OF_A_TAG` random words of each tag.

    The paper does not cover tagging; using words in place of rows and tags in place of classes is our choice.

    Args:
        backbone: The backbone, before it is adapted.
        rows: Rows of words with tags.
        max_length: Most tokens of a row.
        batch_size: Rows of a forward pass.
        device: Device to compute on.

    Returns:
        float32, shape (layers, words, d), and the tags, shape (words,).
    """
    import torch

    encoded = encode(rows, backbone.load_tokenizer(), max_length)
    assert encoded.labels is not None
    drawn: list[np.ndarray] = []
    generator = np.random.default_rng(_SEED)
    for tag in np.unique(encoded.labels[encoded.labels >= 0]):
        drawn.append(generator.permutation(np.flatnonzero(encoded.labels == tag))[:_WORDS_OF_A_TAG])
    tokens = np.sort(np.concatenate(drawn))
    row_of_token = np.searchsorted(encoded.offsets, tokens, side="right") - 1
    layer_states = _layer_states(backbone, device)
    vectors: np.ndarray | None = None
    chosen = np.unique(row_of_token)
    for start in range(0, len(chosen), batch_size):
        indices = chosen[start : start + batch_size]
        with torch.inference_mode():
            states = layer_states(collate(encoded, indices).to(torch.device(device)).inputs)
        words = np.flatnonzero(np.isin(row_of_token, indices))
        places = np.searchsorted(indices, row_of_token[words]), tokens[words] - encoded.offsets[row_of_token[words]]
        if vectors is None:
            vectors = np.empty((len(states), len(tokens), states[0].shape[-1]), dtype=np.float32)
        for layer, state in enumerate(states):
            vectors[layer, words] = state.float().cpu().numpy()[places]
    assert vectors is not None
    return vectors, encoded.labels[tokens]


def _layer_states(backbone: Backbone, device: str) -> Callable[[Any], list[torch.Tensor]]:
    """A function that maps the encoder's inputs to the states of layers 1..L, each of shape (rows, tokens, d)."""
    import torch

    model: torch.nn.Module = backbone.build_model(2).eval()
    model.to(device)
    encoder: Any = model.get_submodule(backbone.anatomy.encoder)
    # Pre-norm encoders norm only their last state; here each state is normed, as if the encoder ended there.
    above = backbone.anatomy.above_layers
    final_norm = model.get_submodule(above[0]) if backbone.anatomy.norm_first else torch.nn.Identity()

    def states(inputs: Any) -> list[torch.Tensor]:
        *inner, last = encoder(**inputs, output_hidden_states=True).hidden_states[1:]
        return [*map(final_norm, inner), last]

    return states


def pooled_states(backbone: Backbone, rows: Rows, max_length: int, batch_size: int, device: str) -> np.ndarray:
    """Computes the mean hidden state of each row over its tokens, without special tokens and padding.

    Args:
        backbone: The backbone, before it is adapted.
        rows: The rows; pairs are encoded jointly.
        max_length: Most tokens of a row.
        batch_size: Rows of a forward pass.
        device: Device to compute on.

    Returns:
        float32, shape (layers, rows, d); the embeddings are not among the layers.
    """
    import torch

    tokenizer, layer_states = backbone.load_tokenizer(), _layer_states(backbone, device)
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
        is_text = (1 - batch.pop("special_tokens_mask")) * batch["attention_mask"]
        with torch.inference_mode():
            states = layer_states(batch)
        weights = is_text[..., None].float()
        # The state of a row of special tokens alone is zero.
        means = [(state.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1) for state in states]
        batch_means = torch.stack(means).cpu().numpy()
        if pooled is None:
            pooled = np.empty((len(batch_means), len(rows), batch_means.shape[2]), dtype=np.float32)
        pooled[:, indices] = batch_means
    assert pooled is not None
    return pooled


def _report(measured: list[float], null_line: list[float], chosen: LayersConfig, num_rows: int) -> None:
    best = int(np.argmin(measured))
    _log.info("variability by layer, over %d training rows (with shuffled labels):", num_rows)
    for number, (value, null) in enumerate(zip(measured, null_line, strict=True)):
        _log.info("  layer %2d  %.4g (%.4g)%s", number + 1, value, null, "  <- lowest" if number == best else "")
    _log.info("layers %s..%s are adapted, the head reads layer %s", chosen.bottom, chosen.top, chosen.head)


def resolved_layers(layers: LayersConfig, record: Layers | None) -> LayersConfig:
    """The plan of a finished run, without looking at rows again."""
    if record is None or layers.name != "variability":
        return layers
    return LayersConfig(name="window", bottom=record.bottom, top=record.top, head=record.head)
