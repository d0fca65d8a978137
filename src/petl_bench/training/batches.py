"""Which rows share a batch, and how a batch becomes tensors and reaches the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

MEGABATCH = 50

# The label of tokens that the loss ignores; it is written by `petl_bench.tasks.encode`, which does not use torch.
NO_LABEL = nn.CrossEntropyLoss().ignore_index


class TokenRows(Protocol):
    """Token ids of many rows without padding; `petl_bench.tasks.encode.EncodedRows` is one."""

    @property
    def ids(self) -> np.ndarray:
        """Token ids of all rows, shape (tokens,)."""

    @property
    def types(self) -> np.ndarray | None:
        """Segment ids, shape (tokens,); None if the model has none."""

    @property
    def offsets(self) -> np.ndarray:
        """Row i is `ids[offsets[i]:offsets[i + 1]]`."""

    @property
    def labels(self) -> np.ndarray | None:
        """One label or one array of labels per row, or for rows of words one per token; None if the rows have none."""

    @property
    def read_tokens(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The tokens that represent the words of rows of words; None if the model has one output per row.

        Two arrays: the token of each word, an index into `ids`, or -1 for none, shape (words,); and where the words of
        each row begin in the first array, shape (rows + 1,).
        """

    @property
    def pad_id(self) -> int:
        """The token id of padding."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""

    def __len__(self) -> int: ...


def epoch_batches(lengths: np.ndarray, batch_size: int, batching: str, seed: int, epoch: int) -> list[np.ndarray]:
    """Distributes the rows of one epoch over batches; each row occurs once.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows of a batch; one batch may have fewer.
        batching: `shuffled`, or `length_grouped`: rows are shuffled into megabatches of 50 batches, sorted by length
            within each, and the batches shuffled again.
        seed: The run's seed.
        epoch: Counted from 0.

    Returns:
        Row indices of each batch, the same for the same seed and epoch.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    if batching == "shuffled":
        return _chunks(order, batch_size)
    batches: list[np.ndarray] = []
    for megabatch in _chunks(order, batch_size * MEGABATCH):
        batches += _chunks(megabatch[np.argsort(-lengths[megabatch], kind="stable")], batch_size)
    return [batches[i] for i in generator.permutation(len(batches))]


def sorted_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Returns batches for evaluation, longest rows first: this saves padding, and a lack of memory shows early."""
    return _chunks(np.argsort(-lengths, kind="stable"), batch_size)


def _chunks(indices: np.ndarray, size: int) -> list[np.ndarray]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


@dataclass
class Batch:
    """Tensors of one batch.

    Attributes:
        inputs: `input_ids`, perhaps `attention_mask` (only where there is padding) and `token_type_ids`, each of shape
            (rows, longest).
        labels: Shape (rows,), (rows, classes) or, for rows of words, (rows, longest); None if the rows have none.
        num_tokens: Number of tokens, padding excluded.
        num_padded_tokens: Number of tokens, padding included.
        states: Features of the frozen layers for these rows, by layer (0: the embeddings), each of shape
            (rows, longest, d); None if the model computes everything itself.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    num_tokens: int
    num_padded_tokens: int
    states: dict[int, torch.Tensor] | None = None

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on another device; copies to a CUDA device are asynchronous."""
        if device.type == "cpu":
            return self

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.device.type == "cpu":
                tensor = tensor.pin_memory()
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            inputs={name: moved(tensor) for name, tensor in self.inputs.items()},
            labels=None if self.labels is None else moved(self.labels),
            states=None if self.states is None else {layer: moved(state) for layer, state in self.states.items()},
        )


def collate(rows: TokenRows, indices: np.ndarray) -> Batch:
    """Makes a batch of these rows, padded to the longest of them; a batch without padding has no mask."""
    lengths = rows.lengths[indices]
    shape = (len(indices), int(lengths.max()))
    input_ids = np.full(shape, rows.pad_id, dtype=np.int64)
    mask = np.arange(shape[1])[None, :] < lengths[:, None]
    token_positions = [np.arange(rows.offsets[i], rows.offsets[i + 1]) for i in indices]
    flat = np.concatenate(token_positions)
    input_ids[mask] = rows.ids[flat]
    inputs = {"input_ids": torch.from_numpy(input_ids)}
    if not mask.all():
        inputs["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
    if rows.types is not None:
        types = np.zeros(shape, dtype=np.int64)
        types[mask] = rows.types[flat]
        inputs["token_type_ids"] = torch.from_numpy(types)
    labels = None
    if rows.labels is not None and rows.read_tokens is not None:
        padded = np.full(shape, NO_LABEL, dtype=np.int64)
        padded[mask] = rows.labels[flat]
        labels = torch.from_numpy(padded)
    elif rows.labels is not None:
        labels = torch.from_numpy(_label_dtype(rows.labels[indices]))
    return Batch(inputs, labels, int(lengths.sum()), mask.size)


def loss_terms(rows: TokenRows, indices: np.ndarray, class_weights: np.ndarray | None = None) -> float:
    """Number of terms over which the loss of these rows is a mean: rows, or the words that have a label.

    Args:
        rows: All rows.
        indices: The rows that the loss is computed for.
        class_weights: The weight of each class, shape (classes,); each term then counts with the weight of its class.
            None: all weigh 1.
    """
    labelled = indices
    if rows.read_tokens is not None:
        tokens, offsets = rows.read_tokens
        words = np.concatenate([tokens[:0], *(tokens[offsets[row] : offsets[row + 1]] for row in indices)])
        labelled = words[words >= 0]
    if class_weights is None:
        return len(labelled)
    assert rows.labels is not None
    return float(class_weights[rows.labels[labelled]].sum())


def balanced_weights(rows: TokenRows, num_classes: int) -> np.ndarray:
    """Weights that give every class the same share in the loss of all rows: scikit-learn's `balanced`.

    Args:
        rows: The training rows, of classes or tags.
        num_classes: Number of classes; those without a row get the weight 1.

    Returns:
        Number of rows, or words, divided by the number of classes that occur and by that of the rows, or words, of the
        class; shape (classes,).
    """
    from sklearn.utils.class_weight import compute_class_weight

    assert rows.labels is not None
    labels = rows.labels[rows.labels != NO_LABEL]
    classes, weights = np.unique(labels), np.ones(num_classes)
    weights[classes] = compute_class_weight("balanced", classes=classes, y=labels)
    return weights


def _label_dtype(labels: np.ndarray) -> np.ndarray:
    return labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64)


class BatchSource:
    """Makes batches of token ids, and runs a model on them.

    Args:
        rows: The rows that batches are made of.
        device: The model's device.
    """

    def __init__(self, rows: TokenRows, device: torch.device) -> None:
        self.rows, self.device = rows, device

    def batch(self, indices: np.ndarray) -> Batch:
        """Returns a batch of these rows, on the model's device."""
        return collate(self.rows, indices).to(self.device)

    def forward(self, model: nn.Module, batch: Batch, labels: torch.Tensor | None = None) -> Any:
        """Returns the model's outputs for a batch; with labels, its loss too."""
        return model(**batch.inputs) if labels is None else model(**batch.inputs, labels=labels)
