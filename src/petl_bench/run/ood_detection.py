"""How well a trained model tells rows of its classes from others: four scores of each row, and what they come to.

All scores are larger for rows that are more in distribution. Definitions and rules are those of LaCL (Cho et al.,
Findings of EMNLP 2022); docs/ood.md names them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from petl_bench.backbones.anatomy import classifier_of
from petl_bench.errors import RequestError, RunError
from petl_bench.records import FPR_RULE
from petl_bench.records.predictions import Ood, OodScore, Predictions
from petl_bench.records.store import DETECTOR_FILE
from petl_bench.tasks.load import Task
from petl_bench.tasks.rows import Rows

if TYPE_CHECKING:
    from accelerate import Accelerator

    from petl_bench.training.batches import BatchSource

Array = NDArray[Any]

# Rows whose similarities to all training rows are computed at once.
_CHUNK = 512


@contextmanager
def last_linear_input(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """A context whose list has the last linear layer's input in the model's latest forward pass, shape (n, d)."""
    latest: list[torch.Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        latest[:] = [inputs[0]]

    handles = [module.register_forward_pre_hook(keep) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        yield latest
    finally:
        for handle in handles:
            handle.remove()


def logits_and_vectors(
    model: nn.Module, source: BatchSource, batch_size: int, accelerator: Accelerator
) -> tuple[Array, Array]:
    """Computes for every row, in the rows' order, the logits and the vector that the last linear layer reads.

    Args:
        model: The model, unwrapped.
        source: Batches of the rows.
        batch_size: Rows of a batch.
        accelerator: The process's device, precision and place among the processes.

    Returns:
        float32, shapes (rows, classes) and (rows, d).

    Raises:
        RunError: If no linear layer reads one vector a row.
    """
    from petl_bench.run.evaluate import predict_outputs

    # Not taken from the outputs, as a process may have no batch.
    num_classes = classifier_of(model).config.num_labels
    with last_linear_input(model) as latest:

        def values(outputs: Any) -> torch.Tensor:
            """Logits and vectors side by side, shape (batch, classes + d)."""
            if not latest or latest[0].shape[:-1] != outputs.logits.shape[:-1]:
                raise RunError(
                    "task.ood: the model has no last linear layer that reads one vector a row: leave it out."
                )
            return torch.cat([outputs.logits.float(), latest[0].float()], dim=1)

        both = predict_outputs(model, source, batch_size, accelerator, values)
    return both[:, :num_classes], both[:, num_classes:]


@dataclass(frozen=True)
class Detector:
    """What the scores of a row are computed from besides its own logits and vector.

    Attributes:
        means: The mean vector of each class's training rows, shape (classes, d).
        factor: A matrix L with L L^T the (pseudo-)inverse of the classes' shared covariance, shape (d, at most d).
        directions: The training rows' vectors at unit length, shape (training rows, d).
    """

    means: Array
    factor: Array
    directions: Array

    @classmethod
    def fit(cls, vectors: Array, labels: Array) -> Detector:
        """Fits the means, and the covariance by Ledoit and Wolf's shrinkage.

        Args:
            vectors: Of the training rows, shape (rows, d).
            labels: Their classes, shape (rows,).

        Returns:
            The detector, which scores new rows.
        """
        from sklearn.covariance import LedoitWolf

        vectors = vectors.astype(np.float64)
        classes, index = np.unique(labels, return_inverse=True)
        means = np.stack([vectors[index == number].mean(axis=0) for number in range(len(classes))])
        covariance = LedoitWolf(assume_centered=True).fit(vectors - means[index]).covariance_
        # As for scikit-learn's `precision_`, directions without any variance do not count.
        variances, axes = np.linalg.eigh(covariance)
        has_variance = variances > len(variances) * np.finfo(np.float64).eps * variances.max()
        factor = axes[:, has_variance] / np.sqrt(variances[has_variance])
        return cls(*(array.astype(np.float32) for array in (means, factor, _at_unit_length(vectors))))

    def scores(self, logits: Array, vectors: Array) -> dict[str, Array]:
        """The four scores of each row.

        Args:
            logits: Shape (rows, classes).
            vectors: Shape (rows, d).

        Returns:
            float32, shape (rows,), by the names of `OOD_SCORES`.
        """
        from scipy.spatial.distance import cdist
        from scipy.special import logsumexp

        logits, vectors = logits.astype(np.float64), vectors.astype(np.float64)
        energy = logsumexp(logits, axis=1)
        factor = self.factor.astype(np.float64)
        distances = cdist(vectors @ factor, self.means.astype(np.float64) @ factor, "sqeuclidean")
        units = _at_unit_length(vectors).astype(np.float32)
        chunks = np.split(units, range(_CHUNK, len(units), _CHUNK))
        scores = {
            "msp": np.exp(logits.max(axis=1) - energy),
            "energy": energy,
            "mahalanobis": -distances.min(axis=1),
            "cosine": np.concatenate([(chunk @ self.directions.T).max(axis=1) for chunk in chunks]),
        }
        return {name: values.astype(np.float32) for name, values in scores.items()}

    def save(self, folder: Path) -> None:
        """Writes the detector into a run's folder."""
        from safetensors.numpy import save_file

        arrays = {field.name: np.ascontiguousarray(getattr(self, field.name)) for field in fields(self)}
        save_file(arrays, folder / DETECTOR_FILE)

    @classmethod
    def load(cls, folder: Path) -> Detector:
        """Reads the detector of a run's folder.

        Raises:
            RequestError: If there is none, or it is broken.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        file = folder / DETECTOR_FILE
        try:
            return cls(**load_file(file))
        except (OSError, SafetensorError, TypeError) as error:
            raise RequestError(
                f"{file} is missing or broken: make the run again with task.ood and train.save_weights=true, or copy "
                "it again."
            ) from error


def _at_unit_length(vectors: Array) -> Array:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0))


def threshold_of(scores: Array) -> float:
    """The score that 95 % of in-distribution rows reach: the one at position n // 20 of the n sorted scores."""
    return float(np.sort(scores)[len(scores) // 20])


def judged(known: Array, other: Array, selection: Array) -> OodScore:
    """How well one score tells two sets of rows apart.

    Args:
        known: Scores of the report rows, which are in distribution.
        other: Scores of rows that are out of distribution.
        selection: Scores of the selection rows, to which the threshold for further rows is fitted.

    Returns:
        AUROC, both average precisions, FPR@95 and the threshold.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores = np.concatenate([known, other]).astype(np.float64)
    is_known = np.repeat([1, 0], [len(known), len(other)])
    return OodScore(
        auroc=float(roc_auc_score(is_known, scores)),
        aupr_in=float(average_precision_score(is_known, scores)),
        aupr_out=float(average_precision_score(1 - is_known, -scores)),
        fpr95=float(np.mean(other >= threshold_of(known))),
        threshold=threshold_of(selection),
    )


@dataclass(frozen=True)
class Detection:
    """What a trained model says about rows in and out of distribution.

    Attributes:
        described: The summary of its scores, for the record.
        scores: By split (`report`, `ood` and `selection`) and by name, shape (rows,).
        logits: Of the rows out of distribution, shape (rows, classes).
        detector: Gives the scores of further rows.
    """

    described: Ood
    scores: dict[str, dict[str, Array]]
    logits: Array
    detector: Detector

    def added_to(self, predictions: Mapping[str, Predictions], rows: Rows) -> dict[str, Predictions]:
        """Adds the scores to the predictions by split, and the rows out of distribution as the split `ood`."""
        assert rows.labels is not None
        added = {
            split: replace(of_split, scores=self.scores.get(split, of_split.scores))
            for split, of_split in predictions.items()
        }
        return added | {"ood": Predictions(rows.ids(), rows.labels, self.logits, scores=self.scores["ood"])}


def detect(
    model: nn.Module, task: Task, sources: Mapping[str, BatchSource], batch_size: int, accelerator: Accelerator
) -> Detection:
    """Scores the report rows and those out of distribution with the weights that the model has.

    Args:
        model: The trained model, unwrapped.
        task: With rows that are out of distribution.
        sources: Batches by split: `train`, `selection`, `report` and `ood`.
        batch_size: Rows of a batch.
        accelerator: The process's device, precision and place among the processes.

    Returns:
        The detector, the scores of all rows, and how well each score tells them apart.

    Raises:
        RunError: If no linear layer of the model reads one vector a row.
    """
    assert task.labels is not None
    assert task.ood is not None
    assert task.train.labels is not None
    _, vectors = logits_and_vectors(model, sources["train"], batch_size, accelerator)
    detector = Detector.fit(vectors, task.train.labels)
    scores: dict[str, dict[str, Array]] = {}
    logits: Array = np.empty(0)
    for split in ("selection", "report", "ood"):
        if split == "report" and task.reports_on_selection:
            scores[split] = scores["selection"]
            continue
        logits, vectors = logits_and_vectors(model, sources[split], batch_size, accelerator)
        scores[split] = detector.scores(logits, vectors)
    by_score = {
        name: judged(scores["report"][name], scores["ood"][name], scores["selection"][name]) for name in scores["ood"]
    }
    settings = task.settings
    assert settings.ood is not None
    described = Ood(settings.ood, settings.ood_share, task.labels, len(task.ood), f"share of {FPR_RULE}", **by_score)
    return Detection(described, scores, logits, detector)
